"""How many samples each prompt should get at test time: the most right answers from a total budget of samples.

A belief about a success rate is a Beta law, given by its mean m and its correlation r = Var[p] / (m (1 - m)), which is
1 / (alpha + beta + 1): 0 for a rate that is known, 1 for a prompt that is always or never solved. In these two every
gain below is a short recurrence without special cases.

What one more step gains never grows with the steps before it, for any Beta belief and any of the three objectives. So
buying the best steps first is the optimum, and the budget sets a threshold: all steps that gain more per sample are
bought, none that gain less. Memory grows with N, time with N plus the budget, and one turn of a loop goes to each step
of the prompt that gets the most: 20,000 samples of one prompt take some ten seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from bayes_prompt.acquisition.objectives import Objective
from bayes_prompt.posteriors import checks
from bayes_prompt.posteriors.base import Posterior
from bayes_prompt.posteriors.checks import IntegersLike

RatesLike: TypeAlias = Tensor | np.ndarray | list[float]

_ROUNDING = 1e-12  # accuracies that differ by less are equal
_EXCESS = 1e-6  # what float32 may add to a variance


@dataclass(frozen=True, eq=False)
class RateBeliefs:
    """Beta beliefs about the success rates of N prompts. Other beliefs are told by their first two moments.

    Attributes:
        mean: (N,) float64, expected success rates in [0, 1].
        correlation: (N,) float64 in [0, 1], Var[p] / (mean (1 - mean)): how much two samples of a prompt agree.

    Raises ValueError or TypeError that names the first bad entry.
    """

    mean: Tensor
    correlation: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _numbers("mean", self.mean))
        object.__setattr__(self, "correlation", _numbers("correlation", self.correlation, like=self.mean))

    @classmethod
    def known(cls, rate: RatesLike) -> RateBeliefs:
        """Success rates (N,) that are known exactly."""
        mean = _numbers("rate", rate)
        return cls(mean, torch.zeros_like(mean))

    @classmethod
    def beta(cls, alpha: RatesLike, beta: RatesLike) -> RateBeliefs:
        """Beta(alpha, beta) for each prompt; both (N,), positive and finite."""
        limits = (torch.finfo(torch.float64).tiny, torch.finfo(torch.float64).max / 4)
        a = _numbers("alpha", alpha, *limits)
        b = _numbers("beta", beta, *limits, like=a)
        return cls(a / (a + b), 1 / (a + b + 1))

    @classmethod
    def moments(cls, mean: RatesLike, deviation: RatesLike) -> RateBeliefs:
        """Means (N,) and standard deviations (N,); a deviation is at most sqrt(mean (1 - mean))."""
        mean = _numbers("mean", mean)
        deviation = _numbers("deviation", deviation, like=mean)
        most, variance = mean * (1 - mean), deviation.square()
        _refuse("deviation", deviation, variance <= most + _EXCESS, "must be at most sqrt(mean * (1 - mean))")
        return cls(mean, torch.where(most > 0, variance / most, 0.0).clamp(max=1.0))

    @classmethod
    def of(cls, posterior: Posterior, index: Tensor | None = None) -> RateBeliefs:
        """What any posterior believes of all its prompts, or of the rows `index` (B,).

        Of a Beta it is the same, up to the rounding of its dtype. In float32 that is much where a rate is known to lie
        near 0 or 1: hand such beliefs over by `beta`.
        """
        mean, expected_variance = posterior.success_rate(index).double(), posterior.expected_variance(index).double()
        return cls(mean.clamp(0, 1), _correlation(mean.clamp(0, 1), expected_variance))

    def binned(self, bins: int) -> RateBeliefs:
        """Every prompt believed to be an unknown one of its bin; the bins have equal widths in the predicted rate.

        All prompts of a bin then get the same number of samples, give or take one step. This is our reading of GPS
        (arXiv 2602.01970), which bins prompts by predicted difficulty and moves samples to the hard but solvable ones;
        how it shares them out is not known to us, here it is the optimum for the bins.
        """
        bins = checks.integer("bins", bins, 1)
        of = (self.mean * bins).long().clamp(max=bins - 1)
        size = torch.bincount(of, minlength=bins).clamp(min=1)
        each = self.mean * (1 - self.mean) * (1 - self.correlation)
        mean, expected_variance = (torch.bincount(of, column, bins) / size for column in (self.mean, each))
        return RateBeliefs(mean.clamp(0, 1)[of], _correlation(mean, expected_variance)[of])


@dataclass(frozen=True, eq=False)
class Allocation:
    """Samples for every prompt, and what they are expected to be worth.

    Attributes:
        samples: (N,) int64, the samples of each prompt. Their sum is the budget, or less where no more would gain.
        uniform: (N,) int64, the same budget spread as evenly as minimum and maximum allow.
        accuracy: expected share of prompts that come out right, in [0, 1].
        uniform_accuracy: the same for `uniform`.
        saving: share of the budget that would be saved at the expected accuracy of `uniform`, in [0, 1].
    """

    samples: Tensor
    uniform: Tensor
    accuracy: float
    uniform_accuracy: float
    saving: float


def allocate(
    beliefs: RateBeliefs | Posterior,
    budget: int,
    objective: Objective,
    *,
    minimum: int | IntegersLike = 1,
    maximum: int | IntegersLike | None = None,
) -> Allocation:
    """The allocation of at most `budget` samples with the highest expected accuracy: the exact optimum, up to rounding.

    It is exact for Beta beliefs. Steps that gain the same go to the prompts that come first; those without gain are
    not bought.

    Args:
        beliefs: of N prompts; a posterior is asked for its first two moments.
        budget: samples in all, from the sum of `minimum` to that of `maximum`.
        objective: what counts as right: `AnyCorrect()`, `MajorityVote()`, `BestOfN(0.9, 0.1)`.
        minimum, maximum: samples of a prompt, one integer or (N,); no maximum by default. A prompt without samples is
            not right.

    Raises:
        ValueError, TypeError: not integers, a minimum above its maximum, a budget that cannot be met.
    """
    if isinstance(beliefs, Posterior):
        beliefs = RateBeliefs.of(beliefs)
    if not isinstance(beliefs, RateBeliefs):
        raise TypeError(f"beliefs must be RateBeliefs or a posterior; got {type(beliefs).__name__}")
    if not isinstance(objective, Objective):
        raise TypeError(f"objective must be an Objective, such as AnyCorrect(); got {type(objective).__name__}")
    budget = checks.integer("budget", budget, 0)
    least = _bounds("minimum", minimum, beliefs.mean)
    most = _bounds("maximum", min(budget, checks.MAX_TRIALS) if maximum is None else maximum, beliefs.mean)
    _refuse("minimum", least, (least <= most) | (maximum is None), "must be at most its maximum")
    low, high = int(least.sum()), int(most.sum())
    if budget < low:
        raise ValueError(f"budget must be at least {low}, the sum of minimum; got {budget}")
    if budget > high:
        raise ValueError(f"budget must be at most {high}, the sum of maximum; got {budget}")
    start = _Path.walk(beliefs, least, objective, most)
    uniform = _even(budget, least, most)
    uniform_accuracy = expected_accuracy(beliefs, uniform, objective)
    needed = _needed(start.copy(), float((uniform_accuracy - start.value).sum()) - _ROUNDING * len(least))
    best = start.copy()
    if best.fill(budget - low, by_gain=False) == 1:
        _spend_last(best, start)
    return Allocation(
        samples=best.samples,
        uniform=uniform,
        accuracy=float(expected_accuracy(beliefs, best.samples, objective).mean()),
        uniform_accuracy=float(uniform_accuracy.mean()),
        saving=max(0.0, 1 - needed / budget) if budget else 0.0,
    )


def expected_accuracy(beliefs: RateBeliefs, samples: Tensor, objective: Objective) -> Tensor:
    """P(the answer is right) for each prompt, (N,) float64, from `samples` (N,) of it."""
    samples = _bounds("samples", samples, beliefs.mean)
    return _Path.walk(beliefs, samples, objective, samples).value.clamp(0, 1)


@dataclass
class _Path:
    """How far each of M prompts has gone, and what its next step gains. Every tensor is (M,)."""

    objective: Objective
    mean: Tensor
    correlation: Tensor
    limit: Tensor  # steps at most
    steps: Tensor  # taken
    samples: Tensor  # that they cost, or the minimum if that is more
    value: Tensor  # P(right)
    gain: Tensor  # of the next step
    last: Tensor  # gain of the last one

    @classmethod
    def walk(cls, beliefs: RateBeliefs, samples: Tensor, objective: Objective, most: Tensor) -> _Path:
        """Every prompt with its first `samples` (N,) taken, and no more than `most` (N,) to come."""
        target, limit = ((n + objective.stride - 1) // objective.stride for n in (samples, most))
        none, zero = torch.zeros_like(samples), torch.zeros_like(beliefs.mean)
        path = cls(objective, beliefs.mean, beliefs.correlation, limit, none, samples, zero, beliefs.mean, zero).copy()
        path.climb(lambda part, rows: part.steps < target[rows])
        path.samples = samples.clone()
        return path

    def at(self, rows: Tensor) -> _Path:
        """A copy of some rows."""
        return _Path(self.objective, *(getattr(self, name).index_select(0, rows) for name in _TENSORS))

    def copy(self) -> _Path:
        """A copy of all rows."""
        return _Path(self.objective, *(getattr(self, name).clone() for name in _TENSORS))

    def cost(self) -> Tensor:
        """Samples of the next step: one, or the stride; less where a minimum has paid for a part of it."""
        return self.objective.stride * self.steps + 1 - self.samples

    def slope(self) -> Tensor:
        """Gain of the next step for each of its samples; 0 where no more are allowed. It never grows along a path."""
        return torch.where(self.steps < self.limit, self.gain / self.cost(), 0.0)

    def amount(self, by_gain: bool) -> Tensor:
        """What the next step adds: accuracy, or samples."""
        return self.gain if by_gain else self.cost()

    def advance(self) -> None:
        """Take the next step of every row."""
        following = self.objective.following(self.mean, self.correlation, self.steps, self.gain, self.last)
        self.samples = self.samples + self.cost()
        self.steps = self.steps + 1
        self.value = self.value + self.gain
        # Rounding must not make a later step better than an earlier one.
        self.last, self.gain = self.gain, torch.where(self.gain > 0, torch.minimum(following, self.gain), following)

    def climb(
        self, goes_on: Callable[[_Path, Tensor], Tensor], room: float = math.inf, by_gain: bool = False
    ) -> float | None:
        """Take steps while `goes_on(part, rows)`. What is left of `room`; None, and no step, where it is exceeded."""
        rows = _true(goes_on(self, torch.arange(len(self.steps), device=self.steps.device)))
        part, stopped = self.at(rows), []
        while len(rows):
            room -= float(part.amount(by_gain).sum())
            if room < 0:
                return None
            part.advance()
            on = goes_on(part, rows)
            off, on = _true(~on), _true(on)
            stopped.append((rows[off], part.at(off)))
            rows, part = rows[on], part.at(on)
        for rows, part in stopped:
            self.put(rows, part)
        return room

    def put(self, rows: Tensor, part: _Path) -> None:
        """Write how far `part` has gone into the given rows."""
        for name in _MOVING:
            getattr(self, name)[rows] = getattr(part, name)

    def fill(self, room: float, by_gain: bool) -> float:
        """Take the best steps, those of the first rows where they tie, while they fit in `room`. What is left of it."""
        # Positive floats are ordered like their bits. Steps from `high` on are taken, those from `low` on do not fit.
        low, high, jump = 0, int(np.float64(1.0).view(np.int64)) + 1, 1 << 52
        while room > 0 and high - low > 1:
            middle = max(high - jump, (low + high) // 2)  # down by jumps, until one goes too far
            left = self.climb(_slope_from(middle), room, by_gain)
            if left is None:
                low = middle
            else:
                room, high, jump = left, middle, 2 * jump
        ties = _slope_from(max(low, 1))
        while room > 0 and len(rows := _true(ties(self, self.steps))):
            total = self.at(rows).amount(by_gain).cumsum(0)
            fits = int((total <= room).sum())
            part = self.at(rows[:fits])
            part.advance()
            self.put(rows[:fits], part)
            room -= float(total[fits - 1]) if fits else 0.0
            if fits < len(rows):
                break
        return room


_TENSORS = [field.name for field in fields(_Path) if field.name != "objective"]
_MOVING = ("steps", "samples", "value", "gain", "last")


def _slope_from(bits: int) -> Callable[[_Path, Tensor], Tensor]:
    """Whether the next step has at least the slope with these bits."""
    threshold = float(np.int64(bits).view(np.float64))
    return lambda part, rows: part.slope() >= threshold


def _needed(start: _Path, gain: float) -> int:
    """The samples that reach `gain` beyond `start` along the best path, which it walks."""
    if gain > 0 and start.fill(gain, by_gain=True) > 0:
        slope, row = start.slope().max(0)
        return int(start.samples.sum()) + (int(start.cost()[row]) if slope > 0 else 0)
    return int(start.samples.sum())


def _spend_last(path: _Path, start: _Path) -> None:
    """Spend a single sample that is left over although steps of two would gain more.

    The most that k steps of two samples are worth, with the best steps of one beside them, is concave in k. So the
    optimum is one of two: one more step of one sample, or one fewer and a pair in its place.
    """
    slope, cost = path.slope(), path.cost()
    single, pair = torch.where(cost == 1, slope, 0.0), torch.where(cost == 2, 2 * slope, 0.0)
    given_back = torch.where(path.samples - start.samples == 1, path.last, math.inf)
    if float(pair.max() - given_back.min()) > float(single.max()):
        worst = given_back.argmin()
        path.samples[worst] -= 1
        path.samples[pair.argmax()] += 2
    elif single.max() > 0:
        path.samples[single.argmax()] += 1


def _even(budget: int, least: Tensor, most: Tensor) -> Tensor:
    """The budget spread as evenly as the bounds allow; what does not divide goes to the first prompts."""
    low, high = 0, budget + 1  # a level that the budget reaches, one that it does not
    while high - low > 1:
        middle = (low + high) // 2
        reached = int(most.clamp(max=middle).maximum(least).sum()) <= budget
        low, high = (middle, high) if reached else (low, middle)
    even = most.clamp(max=low).maximum(least)
    more = _true((even == low) & (even < most))
    even[more[: budget - int(even.sum())]] += 1
    return even


def _correlation(mean: Tensor, expected_variance: Tensor) -> Tensor:
    """Var[p] / (m (1 - m)) from E[p (1 - p)], (N,): what is left of the largest variance."""
    most = mean * (1 - mean)
    return torch.where(most > 0, 1 - expected_variance / most, 0.0).clamp(0.0, 1.0)


def _numbers(name: str, values: RatesLike, low: float = 0.0, high: float = 1.0, like: Tensor | None = None) -> Tensor:
    """Values in [low, high] as (N,) float64, of the shape and on the device of `like`."""
    try:
        tensor = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must hold numbers; got {type(values).__name__}") from error
    if tensor.dtype == torch.bool or tensor.is_complex():
        raise TypeError(f"{name} must hold real numbers; got {tensor.dtype}")
    if tensor.ndim != 1 or not tensor.numel():
        raise ValueError(f"{name} must have shape (N,) with N >= 1; got {tuple(tensor.shape)}")
    if like is not None and tensor.shape != like.shape:
        raise ValueError(f"{name} must have {len(like)} entries, one for each prompt; got {len(tensor)}")
    tensor = tensor.detach().to(torch.float64 if like is None else like)
    _refuse(name, tensor, (tensor >= low) & (tensor <= high), f"must be finite and lie in [{low:g}, {high:g}]")
    return tensor


def _bounds(name: str, values: int | IntegersLike, like: Tensor) -> Tensor:
    """Numbers of samples, one or one for each prompt, as (N,) int64 on the device of `like`."""
    tensor = checks.integers(name, values, len(like) if isinstance(values, int | np.integer) else None, single=True)
    if len(tensor) != len(like):
        raise ValueError(f"{name} must have {len(like)} entries, one for each prompt; got {len(tensor)}")
    _refuse(name, tensor, (tensor >= 0) & (tensor <= checks.MAX_TRIALS), "must lie in [0, 2**31)")
    return tensor.to(like.device)


def _refuse(name: str, values: Tensor, good: Tensor, accepted: str) -> None:
    if not bool(good.all()):
        row = int(_true(~good)[0])
        raise ValueError(f"{name}[{row}] = {values[row].item()} {accepted}")


def _true(mask: Tensor) -> Tensor:
    return mask.nonzero().squeeze(1)
