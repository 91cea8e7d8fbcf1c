"""Markov chains in continuous time over a few states: from rates of jumps to transitions within some time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Of the series, by fours; the first that is left out is 4e-19 where at most one jump is expected.
_FACTORS = torch.tensor([1 / math.factorial(k) for k in range(20)], dtype=torch.float64).view(5, 4)
_UNCHECKED = 6  # squarings before it is looked whether anything still moves
_ROUNDING = 2.0**-48  # relative, of a sum of products: less is no move, and may go on for ever


def generator(up: Tensor, down: Tensor) -> Tensor:
    """Rates (K, K) of a chain that goes from each state to its neighbours alone, with these rates (K - 1,) each.

    Rows sum to zero. up: of going from k to k + 1. down: of going back.
    """
    none = torch.zeros(1, dtype=torch.float64)
    leaving = torch.cat([up, none]) + torch.cat([none, down])
    return torch.diag(up, 1) + torch.diag(down, -1) - torch.diag(leaving)


def switching(thaw: float, freeze: float) -> Tensor:
    """Rates (2, 2) of changing over whose effect within one unit of time is that of the two probabilities."""
    total = thaw + freeze
    if total == 0:
        return torch.zeros(2, 2, dtype=torch.float64)
    rate = -torch.log1p(torch.tensor(-total, dtype=torch.float64)) / total
    return rate * torch.tensor([[-thaw, thaw], [freeze, -freeze]], dtype=torch.float64)


def exponential(rates: Tensor, elapsed: float) -> Tensor:
    """exp(rates * elapsed), of one chain (K, K) or several (J, K, K): transitions, whose rows sum to one.

    The time is halved until a chain is expected to jump once at most; what comes of that is squared until the time is
    reached, or nothing moves. Up to a factor of each row, the short transition is the exponential of what is not
    negative, the rates and as much on the diagonal as makes up for those of leaving (uniformisation; Jensen, 1953). So
    nothing cancels: an entry is good to roundings of itself where it takes few jumps, however rare they are, and so is
    what comes of it in a long time; of ways of twenty jumps within a short time nothing is known, which are 4e-19.
    What a chain comes to depends on those beside it in roundings alone.
    """
    chains = rates.reshape(-1, *rates.shape[-2:])
    leaving = chains.detach().abs().amax((1, 2))
    halvings = [_halvings(jumps, elapsed) for jumps in leaving.tolist()]
    times = torch.tensor([math.ldexp(elapsed, -each) for each in halvings], dtype=torch.float64)
    here = torch.eye(rates.shape[-1], dtype=torch.float64)
    found = _stochastic(_series((chains + leaving[:, None, None] * here) * times[:, None, None]))
    for done in range(max(halvings)):
        short = torch.tensor([place for place, each in enumerate(halvings) if each > done])
        before = found[short]
        after = _stochastic(before @ before)
        found = found.index_copy(0, short, after)
        if done >= _UNCHECKED and torch.allclose(before, after, rtol=_ROUNDING, atol=0):
            break
    return found.reshape(rates.shape)


def _halvings(jumps: float, elapsed: float) -> int:
    """How often the time is halved, so that a chain that makes so many jumps in a unit of it makes one at most."""
    few = jumps * min(elapsed, 1.0)  # either factor may be too large for their product
    return 0 if few == 0 else max(0, math.ceil(math.log2(few) + math.log2(max(elapsed, 1.0))))


def _series(x: Tensor) -> Tensor:
    """The exponential's series (J, K, K), of matrices that are about one at most: four powers, and Horner's scheme."""
    one, square = torch.eye(x.shape[-1], dtype=torch.float64).expand_as(x), x @ x
    fourth, powers = square @ square, torch.stack([one, x, square, square @ x])
    *parts, total = torch.einsum("ab,bjkl->ajkl", _FACTORS, powers)
    for part in reversed(parts):
        total = torch.baddbmm(part, total, fourth)
    return total


def _stochastic(matrix: Tensor) -> Tensor:
    """Matrices whose rows are at least 0, divided by what these sum to."""
    return matrix / matrix.sum(-1, keepdim=True)
