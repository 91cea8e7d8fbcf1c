"""Logarithms of integrals and of gamma ratios, accurate where the textbook formulas cancel or underflow."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import logsumexp, roots_legendre, xlogy
from torch import Tensor

# The mass of the integrand that lies more than this far below its peak, in logarithms, is below rounding.
_NEGLIGIBLE = 50.0
# 64 nodes on [0, 1]: exact for polynomials of degree 127, and to rounding for a bell cut off at _NEGLIGIBLE.
_EXACT_TRIALS = 127
_NODES = (roots_legendre(64)[0] + 1.0) / 2.0
_WEIGHTS = roots_legendre(64)[1] / 2.0


def log_mean_power(s: np.ndarray, f: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """log of the mean of r^s (1 - r)^f over each bin; s and f (M, 1), edges (K + 1,), result (M, K).

    Gauss-Legendre in logarithms: every term is positive, so nothing cancels or underflows however extreme the counts.
    With many trials the integrand is a narrow bell; the nodes go where it is.
    """
    low, high = edges[:-1], edges[1:]
    width = high - low

    def log_power(x: np.ndarray) -> np.ndarray:
        # The complement from its own end: 1 - rate would round where the bin ends at 1.
        rate, complement = low + width * x, (1.0 - high) + width * (1.0 - x)
        return xlogy(s, rate) + xlogy(f, complement)

    mode = s / np.maximum(s + f, 1.0)
    peak = np.divide(mode - low, width, out=np.zeros(np.broadcast(mode, width).shape), where=width > 0).clip(0.0, 1.0)
    threshold = log_power(peak) - _NEGLIGIBLE
    ends = []
    for end in (0.0, 1.0):
        inside, outside = peak, np.full_like(peak, end)
        for _ in range(60 if np.any(s + f > _EXACT_TRIALS) else 0):  # bisection to the last bit
            middle = (inside + outside) / 2.0
            below = log_power(middle) < threshold
            inside, outside = np.where(below, inside, middle), np.where(below, middle, outside)
        ends.append(outside)
    start, span = ends[0], ends[1] - ends[0]
    terms = np.stack(
        [np.log(weight) + log_power(start + span * node) for node, weight in zip(_NODES, _WEIGHTS, strict=True)]
    )
    with np.errstate(divide="ignore"):
        return np.where(width > 0, np.log(span) + logsumexp(terms, axis=0), log_power(peak))


def log_rising(a: Tensor, n: Tensor) -> Tensor:
    """log Γ(a + n) - log Γ(a) in float64, accurate also where a is large and the difference of the two would cancel."""
    big = a.clamp(min=16.0)
    stirling = (big - 0.5) * torch.log1p(n / big) + n * (torch.log(big + n) - 1.0)
    stirling = stirling + _stirling_tail(big + n) - _stirling_tail(big)
    return torch.where(a >= 16.0, stirling, torch.lgamma(a + n) - torch.lgamma(a))


def _stirling_tail(z: Tensor) -> Tensor:
    """log Γ(z) - [(z - 1/2) log z - z + log(2π) / 2]; the first term left out is 691/360360 z^-11, 1e-16 at z = 16."""
    u = z.reciprocal().square()
    return (1 / 12 - u * (1 / 360 - u * (1 / 1260 - u * (1 / 1680 - u / 1188)))) / z
