"""Scores that know what a look is worth: prompts are rolled out for what they bring now, and for what they may show.

A greedy pick stays with prompts that are known to be good and never learns of better ones; a uniform one wastes
rollouts. What lies between is compared in docs/recipe.md.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from bayes_prompt.acquisition.batch import Batch
from bayes_prompt.acquisition.scores import Acquisition
from bayes_prompt.kernels.shortlist import Shortlist
from bayes_prompt.posteriors import checks
from bayes_prompt.posteriors.base import Posterior

_SURVEYED = 0.11  # of a run, at most (docs/recipe.md)


class OfBatch(Acquisition):
    """A ranking that depends on the batch it is for: on who may be picked at all, and on what was picked before.

    Within another acquisition it is told of the batch too. Where nobody can tell, `scores` raises TypeError.
    """

    @property
    def by_batch(self) -> bool:
        """True: the selector tells all of the batch."""
        return True

    def scores(self, posterior: Posterior, seed: int, step: int) -> Tensor:
        """TypeError in place of scores (N,) for a batch that nobody has told of."""
        raise TypeError(f"{self!r} scores prompts for a batch: ask for its ranking(posterior, seed, step, Batch(size))")

    @abstractmethod
    def ranking(self, posterior: Posterior, seed: int, step: int, batch: Batch) -> tuple[Tensor, Shortlist | None]:
        """Scores (N,) for this batch, and the shortlist of the best, if any."""


@dataclass(frozen=True)
class LookIndex(Acquisition):
    """The highest price of a place in the batch at which a prompt is worth it, with what a look at it would show.

    A Gittins index that looks one step ahead (`posteriors.looks.index`): a prompt of which nothing is known pays as
    much as it may turn out to be worth for `horizon` steps, one that is known well what it is worth now. No weight has
    to be set between the two, and picks hardly depend on a horizon of 10 to 50.

    horizon: steps that what is seen is of use for, at least 0; 0 is `InformativeProbability`.
    trials: the coming group size; None takes that of the last observation (8 before there was one).
    new: the horizon of prompts of which there is no record (`Posterior.unseen`), at least 0; None: the same. What was
        lost before may be lost again soon, so that a first look that pays is of use for longer than a second one.
    num_steps: of the whole run, at least 1, where it is known: calls of `advance` from the posterior's first on. No
        look is of use for longer than the run lasts; in and after the last step what is best now is picked.
    """

    horizon: float = 30.0
    trials: int | None = None
    new: float | None = None
    #: Not in what checkpoints compare: a run may be resumed for longer than it was meant to be.
    num_steps: int | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        new = None if self.new is None else _at_least_0("new", self.new)
        _set(self, horizon=_at_least_0("horizon", self.horizon), trials=_group_size(self.trials), new=new)
        _set(self, num_steps=_run_of(self.num_steps))

    def scores(self, posterior: Posterior, seed: int, step: int) -> Tensor:
        """Scores (N,) in [0, 1]."""
        left = math.inf if self.num_steps is None else max(0, self.num_steps - 1 - posterior.step)
        new = None if self.new is None else min(self.new, left)
        return posterior.look_index(_coming(self.trials, posterior), min(self.horizon, left), new)


@dataclass(frozen=True)
class Survey(OfBatch):
    """Another acquisition, after a first few batches of prompts of which there is no record: its best ones of these.

    What is seen early is of use for longest, and shows what the pool is like; a batch that may be followed by thousands
    should not be picked as if it were the last.

    Batches are counted by their prompts, in units of the batch that is picked now. A prompt counts from when it is
    picked, however late it comes back, and for each step in which it was observed, whoever had picked it. What was
    released does not count: of a batch that came back in part, what came back and what is still out do.

    acquisition: whose scores count. batches: of new prompts (`Posterior.unseen`), at least 0; of half a batch, half are
    new. familiar: whether those that `warm_start` alone told of are new too, so that what another model was like is
    seen of this one. num_steps: of the whole run, at least 1, where it is known: the survey then takes 11% of it at
    most, rounded to a place, for what a survey costs a short run it has no time to return.
    """

    keeps_places: ClassVar[bool] = True
    acquisition: Acquisition
    batches: float = 5.5
    familiar: bool = False
    num_steps: int | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _other(self.acquisition)
        if not isinstance(self.familiar, bool):
            raise TypeError(f"familiar must be True or False; got {self.familiar!r}")
        _set(self, batches=_at_least_0("batches", self.batches), num_steps=_run_of(self.num_steps))

    def scores(self, posterior: Posterior, seed: int, step: int) -> Tensor:
        """Scores (N,) of the other acquisition; places are kept by `ranking`, which knows the batch."""
        return self.acquisition.scores(posterior, seed, step)

    def ranking(self, posterior: Posterior, seed: int, step: int, batch: Batch) -> tuple[Tensor, Shortlist | None]:
        """Scores (N,): as many new prompts as have a place left lie above all others."""
        scores, shortlist = self.acquisition.ranking(posterior, seed, step, batch)
        before = posterior.looks + batch.out - len(batch.mates)
        batches = self.batches if self.num_steps is None else min(self.batches, _SURVEYED * self.num_steps)
        share = min(1.0, batches - before / batch.size)
        places = round(share * batch.size) - len(batch.mates)  # the first of a batch are those
        if places <= 0:
            return scores, shortlist
        new = posterior.visits == 0 if self.familiar else posterior.unseen
        new = batch.among(_not_waiting(new, posterior))
        return _lifted(scores, torch.where(new, scores, -torch.inf), places, share < 1)


@dataclass(frozen=True)
class KnowledgeGradient(OfBatch):
    """P(0 < successes < trials) plus `horizon` times what a look adds to the pick of the coming step.

    What is picked without a look is worth the score of the last prompt of a greedy batch; a look pays where it may
    change on which side of it a prompt lies. Source: Frazier, Powell and Dayanik (2008).

    horizon: steps that what is seen is of use for, at least 0. trials: as of `LookIndex`.
    """

    horizon: float = 10.0
    trials: int | None = None

    def __post_init__(self) -> None:
        _set(self, horizon=_at_least_0("horizon", self.horizon), trials=_group_size(self.trials))

    def ranking(self, posterior: Posterior, seed: int, step: int, batch: Batch) -> tuple[Tensor, Shortlist | None]:
        """Scores (N,) at the price of the last place among those who may be picked and those who were before."""
        trials, free = _coming(self.trials, posterior), batch.allowed
        now = posterior.informative_probability(trials)
        if free is not None:
            free = free.index_fill(0, batch.mates.to(free.device), True)
        open_to = now if free is None else now[free]
        places = min(batch.size, len(open_to))
        price = float(open_to.topk(places).values[-1]) if places else 0.0
        return now + self.horizon * posterior.look_gain(trials, price), None


@dataclass(frozen=True)
class UpperQuantile(Acquisition):
    """The upper quantile of a success rate's P(0 < successes < trials) under the belief: an upper confidence bound.

    level: in (0, 1). trials: as of `LookIndex`.
    """

    level: float = 0.75
    trials: int | None = None

    def __post_init__(self) -> None:
        checks.number("level", self.level)
        if not 0 < self.level < 1:
            raise ValueError(f"level must lie in (0, 1); got {self.level}")
        _set(self, level=float(self.level), trials=_group_size(self.trials))

    def scores(self, posterior: Posterior, seed: int, step: int) -> Tensor:
        """Scores (N,) in [0, 1]."""
        return posterior.informative_quantile(_coming(self.trials, posterior), self.level)


@dataclass(frozen=True)
class ThompsonInformative(Acquisition):
    """P(0 < successes < trials) at a success rate drawn from the belief: Thompson sampling.

    trials: as of `LookIndex`.
    """

    trials: int | None = None

    def __post_init__(self) -> None:
        _set(self, trials=_group_size(self.trials))

    def scores(self, posterior: Posterior, seed: int, step: int) -> Tensor:
        """Scores (N,) in [0, 1], a function of (seed, step, prompt)."""
        rate, trials = posterior.sample_success_rate(seed, step).double(), _coming(self.trials, posterior)
        return (1 - rate**trials - (1 - rate) ** trials).to(posterior.dtype)


@dataclass(frozen=True)
class RevisitFloor(OfBatch):
    """Another acquisition, with a few places of every batch for prompts that have not been looked at for long.

    A starvation guard: the longest absent come first, as many as `share` of a batch has room for, and only those absent
    for at least `absence` steps. Source of the need: greedy picks starve prompts for good, and some come back unsolved.

    acquisition: whose scores count otherwise. absence: steps, at least 1. share: of a batch, in [0, 1]; at least one
    place, unless it is 0.
    """

    keeps_places: ClassVar[bool] = True
    acquisition: Acquisition
    absence: int = 50
    share: float = 0.05

    def __post_init__(self) -> None:
        _other(self.acquisition)
        absence = checks.integer("absence", self.absence, 1)
        checks.number("share", self.share)
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must lie in [0, 1]; got {self.share}")
        _set(self, absence=absence, share=float(self.share))

    def scores(self, posterior: Posterior, seed: int, step: int) -> Tensor:
        """Scores (N,) of the other acquisition; places are kept by `ranking`, which knows the batch."""
        return self.acquisition.scores(posterior, seed, step)

    def ranking(self, posterior: Posterior, seed: int, step: int, batch: Batch) -> tuple[Tensor, Shortlist | None]:
        """Scores (N,): those that are due lie above all others, longest absent first."""
        scores, shortlist = self.acquisition.ranking(posterior, seed, step, batch)
        kept = max(1, round(self.share * batch.size)) if self.share else 0
        places = kept - len(batch.mates)  # the first of a batch are those
        absent = posterior.step - posterior.last_observed
        overdue = batch.among(_not_waiting((absent >= self.absence) & (scores > -torch.inf), posterior))
        if places <= 0 or posterior.step < self.absence or not bool(overdue.any()):
            return scores, shortlist
        scores, due = scores.clone(), torch.where(overdue, absent, -1).double()
        # Of those absent for as long, the better ones.
        low, high = _range(scores)
        better = ((scores.double() - low) / (2 * (high - low).clamp(min=1e-300))).clamp(0, 0.5)
        due += torch.where(due >= 0, better, 0)
        first = due.topk(min(places, len(due)))
        rows = first.indices[first.values >= 0]
        apart = torch.maximum(high - low, high.abs()).clamp(min=1e-30)  # more than is lost in rounding
        above = high + apart * torch.arange(len(rows), 0, -1, dtype=torch.float64, device=scores.device)
        scores[rows] = above.to(scores.dtype)
        return scores, None


def _not_waiting(prompts: Tensor, posterior: Posterior) -> Tensor:
    """Those of prompts (N,) bool of which nothing waits for the next `advance`."""
    waiting = posterior.counts().index  # N for calls that a check on the device refused
    return torch.cat([prompts, prompts.new_zeros(1)]).index_fill(0, waiting, False)[:-1]


def _coming(trials: int | None, posterior: Posterior) -> int:
    return posterior.group_size if trials is None else trials


def _group_size(trials: int | None) -> int | None:
    return None if trials is None else checks.group_size("trials", trials)


def _run_of(num_steps: int | None) -> int | None:
    return None if num_steps is None else checks.integer("num_steps", num_steps, 1)


def _at_least_0(name: str, value: float) -> float:
    checks.number(name, value)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be finite and at least 0; got {value}")
    return float(value)


def _set(acquisition: Acquisition, **fields: object) -> None:
    """Python's own numbers, so that equal settings are written alike in checkpoints."""
    for name, value in fields.items():
        object.__setattr__(acquisition, name, value)


def _other(acquisition: Acquisition) -> None:
    if not isinstance(acquisition, Acquisition) or hasattr(acquisition, "choose"):
        got = type(acquisition).__name__
        raise TypeError(f"acquisition must be an Acquisition that does not choose by itself; got {got}")


def _range(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest finite score, () float64; both 0 where there is none."""
    finite, numbers = scores.isfinite(), scores.double()
    low, high = numbers.where(finite, torch.inf).amin(), numbers.where(finite, -torch.inf).amax()
    return low.where(finite.any(), 0.0), high.where(finite.any(), 0.0)


def _lifted(scores: Tensor, wish: Tensor, places: int, limited: bool) -> tuple[Tensor, None]:
    """Scores (N,) of which those with the largest finite wishes (N,) lie above all others: `places` of them, or all."""
    wanted = wish > -torch.inf
    if limited:
        rows = wish.topk(min(places, len(wish))).indices
        wanted = wanted & torch.zeros_like(wanted).index_fill(0, rows, True)
    low, high = _range(scores)
    # Not much more than the range, beside which the order of what is lifted would be lost in rounding.
    span = torch.where(high > low, 1.5 * (high - low), torch.maximum(high.abs(), torch.ones_like(high)))
    return torch.where(wanted, (scores.double() + span).to(scores.dtype), scores), None
