"""Functions of a Gaussian belief about a logit: expectations by quadrature, and what an observation makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

_REACH = 6.0  # standard deviations; 2e-9 of a Gaussian lie beyond, and its density there is 1e-8 of the largest
_FINEST = 2.0  # logits: a success rate and its powers change on this scale, however wide the belief about it
_HALVINGS = 64  # of an interval, to its last bit


def expectation(function: Callable[[Tensor], Tensor], mean: Tensor, variance: Tensor, points: int) -> Tensor:
    """E[function(logit)] for logits from Normal(mean, variance), by quadrature.

    The nodes lie about the logit nearest to 0 that the belief reaches: there success rates change, and far from it,
    where a wide belief has most of its mass, a few nodes do.

    Args:
        function: of logits (M, points), the same shape.
        mean: (M,) float64. variance: (M,) float64, positive.
        points: nodes for each row.
    """
    deviation = variance.sqrt()
    reach = _REACH * deviation
    centre = torch.minimum(torch.maximum(-mean, -reach), reach)
    offset, weight = _nodes(centre, deviation.clamp(max=_FINEST), -reach, reach, points)
    weight = weight * (offset.square() / (-2 * variance[:, None])).exp()
    return (weight * function(mean[:, None] + offset)).sum(1) / weight.sum(1)


def tilted(
    mean: Tensor, variance: Tensor, successes: Tensor, trials: Tensor, points: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Normal(mean, variance) of the logit times the chance of a sequence of rollouts: log integral, mean and variance.

    The nodes lie about the mode, as densely as the product is narrow there, so that a thousand rollouts need no more of
    them than one.

    Args:
        mean: (M,) float64. variance: (M,) float64, positive.
        successes, trials: (M,) float64, 0 <= successes <= trials.
        points: nodes for each row.

    Returns:
        Three (M,) float64: the log probability of the sequence (without the binomial coefficient), and the moments of
        the exact posterior of the logit.
    """
    # Everything is told as a distance from the mean, which keeps its digits where the belief is narrow.
    most = variance * trials
    step = most.log1p()  # the mode is within it of the mean or of 0
    low = torch.maximum(-most, mean.clamp(max=0) - step - mean)
    high = torch.minimum(most, mean.clamp(min=0) + step - mean)
    mode = _root(lambda x: x / variance + trials * torch.sigmoid(mean + x) - successes, low, high)
    rate = torch.sigmoid(mean + mode)
    scale = (1 / variance + trials * rate * (1 - rate)).rsqrt().clamp(max=_FINEST)
    reach = (_REACH + 2) * variance.sqrt()  # the product falls off from its mode faster than the Gaussian does
    offset, weight = _nodes(torch.zeros_like(mean), scale, -reach, reach, points)
    logit = (mean + mode)[:, None] + offset
    log_density = successes[:, None] * logsigmoid(logit) + (trials - successes)[:, None] * logsigmoid(-logit)
    log_density -= (mode[:, None] + offset).square() / (2 * variance[:, None])
    terms = weight.log() + log_density
    log_total = terms.logsumexp(1)
    mass = (terms - log_total[:, None]).exp()
    shift = (mass * offset).sum(1)
    spread = (mass * (offset - shift[:, None]).square()).sum(1)
    return log_total - (2 * math.pi * variance).log() / 2, mean + (mode + shift), spread


def polya_gamma(mean: Tensor, variance: Tensor, successes: Tensor, trials: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the variational Gaussian of the same product, all (M,) float64 as in `tilted`.

    Where the iteration over c converges to, found by bisection: for wide beliefs it would take thousands of rounds.
    Source: Polson, Scott and Windle, arXiv 1205.0310, theorem 1 and section 2; the bound is that of Jaakkola
    and Jordan (2000).
    """
    half = successes - trials / 2

    def moments(c: Tensor) -> tuple[Tensor, Tensor]:
        c = c.clamp(min=1e-6)  # tanh(c / 2) / (2 c) is 1/4 to the last digit there
        shrunk = 1 / (1 + variance * trials * torch.tanh(c / 2) / (2 * c))
        return (mean + variance * half) * shrunk, variance * shrunk

    def excess(c: Tensor) -> Tensor:
        new_mean, new_variance = moments(c)
        return c.square() - new_mean.square() - new_variance

    most = ((mean.abs() + variance * trials / 2).square() + variance).sqrt()
    return moments(_root(excess, torch.zeros_like(most), most))


def mixed(logit: Tensor, trials: int | Tensor) -> Tensor:
    """P(0 < successes < trials) given the logit, 1 - p^G - (1-p)^G: shapes broadcast.

    It is even in the logit, so that p may be taken as the larger of the two, whose logarithm does not cancel.
    """
    size = logit.abs()
    log_rate = -torch.log1p((-size).exp())
    return (-torch.expm1(trials * log_rate) - (trials * (log_rate - size)).exp()) * (trials > 1)


def _nodes(centre: Tensor, scale: Tensor, low: Tensor, high: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Nodes from low to high, (M, points), and their weights; the arguments are (M,).

    The trapezoidal rule in t, where x = centre + scale * sinh(t): steps of about `scale` near the centre, which grow in
    proportion to the distance from it. For smooth functions that vanish at both ends it converges exponentially, as
    Gauss and Hermite's rule does, which needs the density to be of one scale.
    """
    start, end = ((edge - centre).div(scale).asinh() for edge in (low, high))
    step = (end - start) / (points - 1)
    up = (start[:, None] + step[:, None] * torch.arange(points, dtype=torch.float64, device=centre.device)).exp()
    down = 1 / up
    half = scale[:, None] / 2
    return centre[:, None] + half * (up - down), half * step[:, None] * (up + down)


def _root(increasing: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Where a function of (M,) crosses 0, from below, between low and high."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = increasing(middle) < 0
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
