"""What a Beta belief says of the coming rollouts, in float64, without the cancellation of the textbook formulas.

Parameters are (M,) tensors, positive and finite, from the smallest normal number to where alpha + beta overflows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bayes_prompt.models.numerics import log_beta_binomial, log_shifts, stirling_tail

__all__ = ["entropy", "log_beta_binomial", "mean", "mixed_probability"]

_CACHED = 1 << 14  # rows worked on at a time on a CPU: the temporaries then stay in its cache
_SUMMED = 16  # terms summed one by one before the closed form takes over


def mean(alpha: Tensor, beta: Tensor) -> Tensor:
    """alpha / (alpha + beta), (M,) in the type of `alpha`, also where the sum would overflow."""
    half = 0.5 * alpha
    return half / (half + 0.5 * beta)


def mixed_probability(alpha: Tensor, beta: Tensor, trials: int | Tensor) -> Tensor:
    """P(0 < successes < trials) = 1 - E[p^G] - E[(1 - p)^G], in [0, 1].

    A sum of positive terms, the chances that rollout g + 1 is the first to differ: nothing cancels, however small.

    Args:
        alpha: (M,).
        beta: (M,).
        trials: G >= 1, one number or (M,) integers.

    Returns:
        (M,) float64; zeros where G = 1. The relative error is within some 10^-14.
    """
    if isinstance(trials, Tensor):
        return _in_parts(_mixed, alpha, beta, trials)
    return _in_parts(lambda a, b: _mixed(a, b, trials), alpha, beta)


def entropy(alpha: Tensor, beta: Tensor) -> Tensor:
    """Differential entropy in nats, (M,) float64: 0 for the uniform law, negative for every other."""
    return _in_parts(_entropy, alpha, beta)


def _in_parts(function: Callable[..., Tensor], *columns: Tensor) -> Tensor:
    """function(*columns) of (M,) columns, a few rows at a time where that is faster."""
    rows = columns[0].numel()
    if columns[0].device.type != "cpu" or rows <= _CACHED:
        return function(*columns)
    out = torch.empty(rows, dtype=torch.float64)
    for start in range(0, rows, _CACHED):
        out[start : start + _CACHED] = function(*(column[start : start + _CACHED] for column in columns))
    return out


def _mixed(alpha: Tensor, beta: Tensor, trials: int | Tensor) -> Tensor:
    alpha, beta = alpha.double(), beta.double()
    terms = _SUMMED if isinstance(trials, Tensor) else min(trials, _SUMMED)
    a, b, total = alpha.clone(), beta.clone(), alpha + beta
    # right = beta * P(the first g are right), wrong = alpha * P(the first g are wrong); a, b, total grow with g.
    right, wrong = alpha / total * beta, beta / total * alpha
    mixed, inverse, term = torch.zeros_like(total), torch.empty_like(total), torch.empty_like(total)
    for g in range(1, terms):
        torch.reciprocal(total.add_(1.0), out=inverse)
        torch.add(right, wrong, out=term)
        if isinstance(trials, Tensor):
            term.mul_(trials > g)
        mixed.addcmul_(term, inverse)
        right.mul_(a.add_(1.0)).mul_(inverse)
        wrong.mul_(b.add_(1.0)).mul_(inverse)
    if isinstance(trials, Tensor) or trials > terms:
        # The others: the chance of a run of g times the chance that it breaks off in what is left of the group.
        left = (torch.as_tensor(trials, device=alpha.device) - terms).clamp(min=0).double()
        for run, same, other in ((right / beta, a, beta), (wrong / alpha, b, alpha)):
            mixed.sub_(run * torch.expm1(-log_shifts(same.add_(1.0), other, left)))
    return mixed.clamp_(max=1.0)


def _entropy(alpha: Tensor, beta: Tensor) -> Tensor:
    """log B(a, b) - (a - 1) ψ(a) - (b - 1) ψ(b) + (a + b - 2) ψ(a + b), without the large parts of each term.

    It is r(a) + r(b) - r(a + b) - ψ(a + b), where r(z) = log Γ(z) - (z - 1) ψ(z) + z grows like log(z) / 2 only.
    """
    rest, _ = _rest_and_digamma(torch.stack((alpha.double(), beta.double())))
    of_total, digamma = _rest_and_digamma(alpha.double() + beta.double())
    return rest[0] + rest[1] - of_total - digamma


def _rest_and_digamma(z: Tensor) -> tuple[Tensor, Tensor]:
    """log Γ(z) - (z - 1) ψ(z) + z, and ψ(z)."""
    digamma = torch.digamma(z)
    big = z.clamp(min=16.0)
    u = big.reciprocal().square()
    # log(z) - 1 / (2 z) - ψ(z); the first term left out is 691/32760 z^-12, 1e-16 at z = 16.
    digamma_tail = u * (1 / 12 - u * (1 / 120 - u * (1 / 252 - u * (1 / 240 - u / 132))))
    large = (big.log() + 1.0 + math.log(2 * math.pi)) / 2 - 0.5 / big
    large = large + stirling_tail(big) + (big - 1.0) * digamma_tail
    return torch.where(z >= 16.0, large, torch.lgamma(z) - (z - 1.0) * digamma + z), digamma
