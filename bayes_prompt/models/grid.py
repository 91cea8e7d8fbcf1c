"""Priors over a success rate as K points with probabilities, which is how the grid filter knows them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor
from torch.distributions import Distribution

from bayes_prompt.errors import CannotLower
from bayes_prompt.models import checks
from bayes_prompt.models.rates import Inflated

MOST_POINTS = 512
FARTHEST = 20.0
"""The largest logit of a point that is no atom: 1 - p is then 2e-9, and still has eight digits."""
_FINE = 4001  # logits at which a prior is looked at, 0.01 apart, or closer where it is narrow
_SLOPE = 250  # of them tell how fast its tails fall
_TAIL = 1e-9  # of the prior beyond each end of a grid that is even in the logit, unless it ends here:
_FAR = 8.0  # where a thousand rollouts would hardly tell rates apart
WHAT_WORKS = (
    "a distribution over [0, 1] with a density works, of batch shape () and event shape (): dist.Beta(1.0, 1.0), "
    "priors.logit_normal(0.0, 1.5), a MixtureSameFamily of such, priors.inflated(...) or priors.histogram(...)"
)


@dataclass(frozen=True, eq=False)
class Points:
    """K success rates in ascending order, and a prior's probabilities of them; all (K,) float64.

    logit: -inf and inf at the atoms 0 and 1. mass: sums to one.
    """

    logit: Tensor
    mass: Tensor

    @property
    def rate(self) -> Tensor:
        """Success rates (K,)."""
        return torch.sigmoid(self.logit)

    @property
    def log_rate(self) -> Tensor:
        """log p (K,), without the rounding of p."""
        return torch.nn.functional.logsigmoid(self.logit)

    @property
    def log_failure(self) -> Tensor:
        """log (1 - p) (K,), without the rounding of p."""
        return torch.nn.functional.logsigmoid(-self.logit)

    @property
    def inner(self) -> slice:
        """The points that are no atoms."""
        finite = self.logit.isfinite()
        return slice(int(not finite[0]), len(finite) - int(not finite[-1]))


def lower(prior: Distribution, grid: int | Tensor, reach: float) -> Points:
    """A prior on points. Gradients reach its parameters through `mass`, where the points do not follow from the prior.

    Without a drift (`reach` = 0) and with a number of points, the points are a Gauss quadrature of the prior: filtering
    with the counts of up to 2 K - 2 rollouts is exact for a prior with a smooth density, and as good as exact with
    more. Beliefs that drift leave the prior's neighbourhood: there points are even in the logit, as wide as the prior
    and as `reach`.

    Args:
        prior: over [0, 1], see `WHAT_WORKS`. Atoms of an `Inflated` prior get points of their own among the K.
        grid: K, or the success rates themselves (K,), ascending in [0, 1].
        reach: the logit that points have to reach at least; 0 for none but the prior's.

    Raises:
        CannotLower: the prior has no density there, or another shape. ValueError, TypeError: a bad grid.
    """
    base, atoms = (prior.base, prior.atoms()) if isinstance(prior, Inflated) else (prior, torch.zeros(2).double())
    if base.batch_shape or base.event_shape:
        shapes = f"batch shape {tuple(base.batch_shape)} and event shape {tuple(base.event_shape)}"
        raise CannotLower(f"prior has {shapes}; {WHAT_WORKS}")
    if _reaches_beyond(base):
        raise CannotLower(f"prior, a {type(base).__name__}, has a support that reaches beyond [0, 1]; {WHAT_WORKS}")
    low, high = bool(atoms[0] > 0), bool(atoms[1] > 0)
    if isinstance(grid, Tensor):
        rate = _rates(grid, low, high)
        edges = slice(int(rate[0] == 0), len(rate) - int(rate[-1] == 1))
        logit = torch.logit(rate[edges])
        low, high = bool(rate[0] == 0), bool(rate[-1] == 1)
        mass = _density(base, logit) * _widths(logit)
    else:
        inside = checks.whole("grid", grid, 3 + low + high) - low - high
        if grid > MOST_POINTS:
            raise ValueError(f"grid must be at most {MOST_POINTS} points; got {grid}")
        logit, mass = _even(base, inside, reach) if reach else _gauss(base, inside)
    total = mass.sum()
    if not bool(torch.isfinite(total) & (total > 0)):
        raise CannotLower(f"prior has a density that adds up to {float(total.detach())} on the grid; {WHAT_WORKS}")
    parts = [atoms[:1]] * low + [mass / total * (1 - atoms.sum())] + [atoms[1:]] * high
    ends = [torch.full((1,), -math.inf).double()] * low, [torch.full((1,), math.inf).double()] * high
    return Points(torch.cat([*ends[0], logit, *ends[1]]), torch.cat(parts))


def _even(prior: Distribution, points: int, reach: float) -> tuple[Tensor, Tensor]:
    """Points even in the logit, and the trapezoidal rule's masses of them; what lies beyond counts at the ends."""
    fine, fine_mass = _finely(prior)
    below, above = fine_mass.cumsum(0), fine_mass.flip(0).cumsum(0).flip(0)
    inside = fine[(below > _TAIL) & (above > _TAIL)]
    least, most = min(-reach, max(-_FAR, float(inside[0]))), max(reach, min(_FAR, float(inside[-1])))
    logit = torch.linspace(least, most, points, dtype=torch.float64)
    mass = _density(prior, logit)
    beyond = torch.stack([fine_mass[fine < least].sum(), fine_mass[fine > most].sum()])
    scale = (1 - beyond.sum()) / mass.detach().sum()
    ends = torch.zeros(points, dtype=torch.float64)
    ends[0], ends[-1] = beyond
    return logit, mass + ends / scale


def _gauss(prior: Distribution, points: int) -> tuple[Tensor, Tensor]:
    """Gauss quadrature of the prior over the success rate, by Lanczos from a fine one (Golub and Welsch, 1969)."""
    fine, mass = _finely(prior)
    kept = (mass > 0).numpy()
    x = np.tanh(fine.numpy()[kept] / 2)  # in [-1, 1], where the recurrence is stable
    q = np.sqrt(mass.numpy()[kept])
    points = min(points, len(x))
    basis = np.zeros((points, len(x)))
    diagonal, beside = np.zeros(points), np.zeros(points)
    for k in range(points):
        basis[k] = q
        diagonal[k] = q @ (x * q)
        q = x * q
        for _ in range(2):  # once is not enough to stay orthogonal
            q -= basis[: k + 1].T @ (basis[: k + 1] @ q)
        beside[k] = np.linalg.norm(q)
        if beside[k] < 1e-14:  # a prior of fewer points than that
            points = k + 1
            break
        q /= beside[k]
    nodes, vectors = scipy.linalg.eigh_tridiagonal(diagonal[:points], beside[: points - 1])
    nodes = np.clip(nodes, -math.tanh(FARTHEST / 2), math.tanh(FARTHEST / 2))
    return torch.from_numpy(2 * np.arctanh(nodes)), torch.from_numpy(vectors[0] ** 2)


def _finely(prior: Distribution) -> tuple[Tensor, Tensor]:
    """Many logits, and the prior's probabilities near them, which sum to one."""
    fine = torch.linspace(-FARTHEST, FARTHEST, _FINE, dtype=torch.float64)
    mass = _density(prior, fine).detach()
    there = mass.nonzero()
    if len(there):
        first, last = max(int(there[0]) - 1, 0), min(int(there[-1]) + 1, _FINE - 1)
        fine = torch.linspace(float(fine[first]), float(fine[last]), _FINE, dtype=torch.float64)
        mass = _density(prior, fine).detach()
    for side in (mass, mass.flip(0)):  # beyond its ends a density falls exponentially, if it does not end there
        end, before = side[-1], side[-1 - _SLOPE]
        if 0 < end < before:
            beyond = end / torch.expm1((before / end).log() / _SLOPE)
            mass[-1 if side is mass else 0] += beyond
    total = mass.sum()
    if not bool(torch.isfinite(total) & (total > 0)):
        raise CannotLower(f"prior has a density that adds up to {float(total)}; {WHAT_WORKS}")
    return fine, mass / total


def _density(prior: Distribution, logit: Tensor) -> Tensor:
    """Density of the logit (K,), up to a factor."""
    rate = torch.sigmoid(logit)
    inside = _inside(prior, rate)
    log_jacobian = torch.nn.functional.logsigmoid(logit) + torch.nn.functional.logsigmoid(-logit)
    try:
        log_density = prior.log_prob(rate[inside]) + log_jacobian[inside]
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CannotLower(f"prior, a {type(prior).__name__}, has no density: {reason}; {WHAT_WORKS}") from error
    # The largest may overflow or vanish in a narrow prior; the factor is the caller's business.
    largest = log_density.detach().amax() if log_density.numel() else torch.zeros(())
    found = (log_density - (largest if bool(largest.isfinite()) else 0.0)).exp().double()
    return torch.zeros_like(logit).masked_scatter(inside, found)


def _inside(prior: Distribution, rate: Tensor) -> Tensor:
    """Where (K,) bool the prior has a density at all: a law whose support is narrower refuses other numbers."""
    good = _supported(prior, rate)
    inner = (rate > 0) & (rate < 1)
    return inner if good is None else inner & good


def _reaches_beyond(prior: Distribution) -> bool:
    """Whether the law has rates outside [0, 1], as far as it says."""
    good = _supported(prior, torch.tensor([-1e-3, 1 + 1e-3], dtype=torch.float64))
    return good is not None and bool(good.any())


def _supported(prior: Distribution, rate: Tensor) -> Tensor | None:
    """Which numbers (K,) lie in the law's support, (K,) bool, or None where it does not say."""
    try:
        support: Any = prior.support
        good: Tensor = support.check(rate)
    except (AttributeError, RuntimeError):
        return None
    return good


def _rates(grid: Tensor, low: bool, high: bool) -> Tensor:
    rate = checks.real("grid", grid).detach().cpu().double()
    if rate.ndim != 1 or not 3 <= len(rate) <= MOST_POINTS:
        raise ValueError(f"grid must have shape (K,) with K in [3, {MOST_POINTS}]; got {tuple(rate.shape)}")
    checks.entries("grid", rate, (rate >= 0) & (rate <= 1), "must lie in [0, 1]")
    rising = torch.cat([torch.ones(1, dtype=torch.bool), rate.diff() > 0])
    checks.entries("grid", rate, rising, "must be greater than the entry before it")
    for atom, wanted, end in ((0.0, low, rate[0]), (1.0, high, rate[-1])):
        if wanted and end != atom:
            raise ValueError(f"grid must hold {atom:g}, where the prior has an atom; it ends at {float(end)}")
    return rate


def _widths(logit: Tensor) -> Tensor:
    """What the trapezoidal rule multiplies densities of the logit with."""
    if len(logit) == 1:
        return torch.ones_like(logit)
    gaps = logit.diff()
    return torch.cat([gaps[:1], gaps[:-1] + gaps[1:], gaps[-1:]]) / 2
