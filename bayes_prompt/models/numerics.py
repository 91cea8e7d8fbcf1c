"""Logarithms of integrals and of gamma ratios, accurate where the textbook formulas cancel or underflow."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import roots_legendre
from torch import Tensor

# The mass of the integrand that lies more than this far below its peak, in logarithms, is below rounding.
_NEGLIGIBLE = 50.0
# The Stirling series: log Γ(z) minus its leading terms is the sum of these over z, z^3, z^5, ...
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188)
# 64 nodes on [0, 1]: exact for polynomials of degree 127, and to rounding for a bell cut off at _NEGLIGIBLE.
_EXACT_TRIALS = 127
_NODES, _WEIGHTS = roots_legendre(64)
RULE = torch.from_numpy(np.stack([(_NODES + 1.0) / 2.0, np.log(_WEIGHTS / 2.0)]))
"""(2, 64) float64: nodes of `log_mean_power`, and the logarithms of their weights."""


def log_mean_power(s: Tensor, f: Tensor, edges: Tensor, rule: Tensor) -> Tensor:
    """log of the mean of r^s (1 - r)^f over each bin; s and f (M, 1), edges (K + 1,), result (M, K), all in float64.

    Gauss-Legendre in logarithms: every term is positive, so nothing cancels or underflows however extreme the counts.
    With many trials the integrand is a narrow bell; the nodes go where it is. `rule` is RULE on the device of the rest,
    which is not waited for.
    """
    low, high = edges[:-1], edges[1:]
    width = high - low

    def log_power(x: Tensor) -> Tensor:
        # The complement from its own end: 1 - rate would round where the bin ends at 1.
        rate, complement = low + width * x, (1.0 - high) + width * (1.0 - x)
        return torch.special.xlogy(s, rate) + torch.special.xlogy(f, complement)

    mode = s / (s + f).clamp(min=1.0)
    peak = torch.where(width > 0, (mode - low) / torch.where(width > 0, width, 1.0), 0.0).clamp(0.0, 1.0)
    threshold = log_power(peak) - _NEGLIGIBLE
    narrow = s.device.type != "cpu" or bool((s + f > _EXACT_TRIALS).any())
    ends = []
    for end in (0.0, 1.0):
        inside, outside = peak, torch.full_like(peak, end)
        for _ in range(60 if narrow else 0):  # bisection to the last bit
            middle = (inside + outside) / 2.0
            below = log_power(middle) < threshold
            inside, outside = torch.where(below, inside, middle), torch.where(below, middle, outside)
        ends.append(outside)
    start, span = ends[0], ends[1] - ends[0]
    node, log_weight = rule[:, :, None, None]
    terms = log_weight + log_power(start + span * node)
    return torch.where(width > 0, span.log() + torch.logsumexp(terms, 0), log_power(peak))


def log_rising(a: Tensor, n: Tensor) -> Tensor:
    """log Γ(a + n) - log Γ(a) in float64, accurate also where a is large and the difference of the two would cancel.

    The shapes of a and n broadcast.
    """
    big = a.clamp(min=16.0)
    stirling = (big - 0.5) * torch.log1p(n / big) + n * (torch.log(big + n) - 1.0)
    stirling = stirling + stirling_tail(big + n) - stirling_tail(big)
    return torch.where(a >= 16.0, stirling, torch.lgamma(a + n) - torch.lgamma(a))


def log_binomial(a: Tensor, n: Tensor) -> Tensor:
    """log of the generalised binomial coefficient C(a + n - 1, n) = Γ(a + n) / (Γ(a) Γ(n + 1)), a > 0, in float64.

    C(a + n, n), which is symmetric in a and n, times a / (a + n): the larger one goes where log_rising is accurate.
    """
    large, small = torch.maximum(a, n), torch.minimum(a, n)
    return (a / (a + n)).log() + log_rising(large + 1.0, small) - torch.lgamma(small + 1.0)


def log_beta_binomial(alpha: Tensor, beta: Tensor, successes: Tensor, trials: Tensor) -> Tensor:
    """log P(successes of trials) under the Beta-Binomial law, in float64; the shapes broadcast.

    C(t, s) B(a + s, b + t - s) / B(a, b), written as C(a + s - 1, s) C(b + t - s - 1, t - s) / C(a + b + t - 1, t).
    """
    a, b, s, t = (values.double() for values in (alpha, beta, successes, trials))
    return log_binomial(a, s) + log_binomial(b, t - s) - log_binomial(a + b, t)


def log_shifts(z: Tensor, shift: Tensor, n: Tensor) -> Tensor:
    """log of the product over i < n of (z + shift + i) / (z + i), for z >= 16, in float64, all of one shape or scalars.

    That is log_rising(z + shift, n) - log_rising(z, n), to rounding relative to the result: what the Stirling series of
    the four gamma functions have in common is cancelled by hand, so nothing is lost where the shift is tiny.
    """
    both = shift / (z + shift) * (n / (z + n))
    series = shift * torch.log1p(n / (z + shift)) + n * torch.log1p(shift / (z + n)) + (z - 0.5) * torch.log1p(-both)
    return series + _tail_step(z + n, shift) - _tail_step(z, shift)


def _tail_step(z: Tensor, shift: Tensor) -> Tensor:
    """stirling_tail(z + shift) - stirling_tail(z), whose terms v^k - u^k are divided by v - u = -shift u v."""
    u, v = z.reciprocal(), (z + shift).reciprocal()
    total, quotient, power = torch.zeros_like(v), torch.ones_like(v), u  # (v^k - u^k) / (v - u) and u^k for odd k
    for coefficient in _STIRLING:
        total = total + coefficient * quotient
        quotient, power = quotient * v * v + (u + v) * power, power * u * u
    return -shift * u * v * total


def stirling_tail(z: Tensor) -> Tensor:
    """log Γ(z) - [(z - 1/2) log z - z + log(2π) / 2]; the first term left out is 691/360360 z^-11, 1e-16 at z = 16.

    z: of any shape, at least 16.
    """
    total = torch.zeros_like(z)
    for coefficient in reversed(_STIRLING):
        total = total / z.square() + coefficient
    return total / z
