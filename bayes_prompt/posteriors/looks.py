"""What a look at a prompt is worth: it may show that the prompt should be rolled out again, or that it should not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayes_prompt.posteriors import checks

MOST_ROLLOUTS = 64
"""A look of more rollouts is taken for one of so many, which tells nearly as much."""
POINTS = 96
"""Success rates at which a belief that has a density is looked at."""


def horizon(name: str, value: float) -> float:
    """Steps that a look is of use for. Raises TypeError or ValueError unless `value` is finite and at least 0."""
    checks.number(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and at least 0; got {value}")
    return float(value)


def index(now: Tensor, chance: Tensor, worth: Tensor, horizon: float) -> Tensor:
    """The price of a place in the batch at which a prompt breaks even, (B,): a Gittins index with one look ahead.

    A prompt that is picked at the price nu brings now - nu, and for `horizon` further steps the better of stopping and
    going on: horizon * E[max(m - nu, 0)], with m what it will be worth after the look. The index is the largest nu at
    which that is not below 0. Over the sets of outcomes after which one goes on it is the largest of
    (now + horizon * sum of worth) / (1 + horizon * sum of chance): Dinkelbach's iteration finds it, after as many
    rounds as there are outcomes at most.

    Source: Gittins, "Bandit processes and dynamic allocation indices" (1979), cut off after one look.

    Args:
        now: (B,) what it is worth now. chance: (B, O) P(outcome). worth: (B, O) chance times the worth after it.
        horizon: steps that the look is of use for, at least 0.
    """
    nu = now
    for _ in range(chance.shape[1] + 1):
        goes_on = worth > nu[:, None] * chance
        better = (now + horizon * (worth * goes_on).sum(1)) / (1 + horizon * (chance * goes_on).sum(1))
        if not bool((better > nu).any()):
            break
        nu = torch.maximum(nu, better)
    return nu


def gain(chance: Tensor, worth: Tensor, threshold: float | Tensor) -> Tensor:
    """What a look adds to the better of a prompt and one of worth `threshold`, (B,): the knowledge gradient.

    E[max(m, threshold)] - max(E[m], threshold), with m the prompt's worth after the look. Source: Frazier, Powell and
    Dayanik, "A knowledge-gradient policy for sequential information collection" (2008). Arguments as of `index`.
    """
    told = torch.maximum(worth, threshold * chance).sum(1)
    return (told - torch.maximum(worth.sum(1), torch.as_tensor(threshold, dtype=worth.dtype))).clamp(min=0)


def quantile(mass: Tensor, worth: Tensor, level: float) -> Tensor:
    """The `level` quantile (B,) of the worth (Q,) of points that have masses (B, Q)."""
    order = worth.argsort()
    below = mass[:, order].cumsum(1)
    place = (below < level * below[:, -1:]).sum(1).clamp(max=len(worth) - 1)
    return worth[order][place]


def rates(device: torch.device) -> Tensor:
    """`POINTS` success rates, (POINTS,) float64: even in the angle whose squared sine they are, in which counts are
    equally telling everywhere.
    """
    angle = (torch.arange(POINTS, dtype=torch.float64, device=device) + 0.5) * (torch.pi / 2 / POINTS)
    return torch.sin(angle).square()


def binomial(rate: Tensor, trials: int) -> Tensor:
    """P(successes | rate), (trials + 1, Q), for rates (Q,) within (0, 1)."""
    won = torch.arange(trials + 1, dtype=torch.float64, device=rate.device)[:, None]
    ways = torch.lgamma(torch.tensor(trials + 1.0).double()) - torch.lgamma(won + 1) - torch.lgamma(trials - won + 1)
    return (ways + torch.special.xlogy(won, rate) + torch.special.xlog1py(trials - won, -rate)).exp()
