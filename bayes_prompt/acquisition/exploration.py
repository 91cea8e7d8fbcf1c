"""Scores that know what a look is worth: prompts are rolled out for what they bring now, and for what they may show.

A greedy pick stays with prompts that are known to be good and never learns of better ones; a uniform one wastes
rollouts. What lies between is compared in docs/recipe.md.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayes_prompt.acquisition.scores import Acquisition
from bayes_prompt.kernels.shortlist import Shortlist
from bayes_prompt.posteriors import checks
from bayes_prompt.posteriors.base import Posterior


class OfBatch(Acquisition):
    """A ranking that depends on the batch it is for: on who may be picked at all, and on what was picked before."""

    @abstractmethod
    def ranking(
        self,
        posterior: Posterior,
        seed: int,
        step: int,
        batch: int,
        allowed: Tensor | None = None,
        mates: Tensor | None = None,
        number: int = 0,
    ) -> tuple[Tensor, Shortlist | None]:
        """Scores (N,) for a batch of `batch` prompts, which may be picked in parts: the best of the whole come first.

        allowed: (N,) bool, who may be picked; None for all. mates: (M,) int64, who of this batch was picked before.
        number: of the batches begun before this one.
        """


@dataclass(frozen=True)
class LookIndex(Acquisition):
    """The highest price of a place in the batch at which a prompt is worth it, with what a look at it would show.

    A Gittins index that looks one step ahead (`posteriors.looks.index`): a prompt of which nothing is known pays as
    much as it may turn out to be worth for `horizon` steps, one that is known well what it is worth now. No weight has
    to be set between the two, and picks hardly depend on a horizon of 10 to 50.

    horizon: steps that what is seen is of use for, at least 0; 0 is `InformativeProbability`.
    trials: the coming group size; None takes that of the last observation (8 before there was one).
    new: the horizon of prompts that nobody has looked at yet, at least 0; None: the same. What was lost before may be
        lost again soon, so that a first look that pays is of use for longer than a second one.
    """

    horizon: float = 30.0
    trials: int | None = None
    new: float | None = None

    def __post_init__(self) -> None:
        new = None if self.new is None else _at_least_0("new", self.new)
        _set(self, horizon=_at_least_0("horizon", self.horizon), trials=_group_size(self.trials), new=new)

    def scores(self, posterior: Posterior, seed: int, step: int) -> Tensor:
        """Scores (N,) in [0, 1]."""
        return posterior.look_index(_coming(self.trials, posterior), self.horizon, self.new)


@dataclass(frozen=True)
class Survey(OfBatch):
    """Another acquisition, after a first few batches of prompts that nobody has looked at yet: its best ones of these.

    What is seen early is of use for longest, and shows what the pool is like; a batch that may be followed by thousands
    should not be picked as if it were the last. Batches count from when they are picked, however late they come back,
    and so do steps that were trained on otherwise.

    acquisition: whose scores count. batches: of new prompts, at least 0; of half a batch, half are new.
    """

    keeps_places: ClassVar[bool] = True
    acquisition: Acquisition
    batches: float = 5.5

    def __post_init__(self) -> None:
        _other(self.acquisition)
        _set(self, batches=_at_least_0("batches", self.batches))

    def scores(self, posterior: Posterior, seed: int, step: int) -> Tensor:
        """Scores (N,) of the other acquisition; places are kept by `ranking`, which knows the batch."""
        return self.acquisition.scores(posterior, seed, step)

    def ranking(
        self,
        posterior: Posterior,
        seed: int,
        step: int,
        batch: int,
        allowed: Tensor | None = None,
        mates: Tensor | None = None,
        number: int = 0,
    ) -> tuple[Tensor, Shortlist | None]:
        """Scores (N,): as many new prompts as have a place left lie above all others. See `OfBatch`."""
        scores, shortlist = _within(self.acquisition, posterior, seed, step, batch, allowed, mates, number)
        share = min(1.0, self.batches - max(number, posterior.step))
        places = round(share * batch) - _count(mates)  # the first of a batch are those
        if places <= 0:
            return scores, shortlist
        new = posterior.unseen if allowed is None else posterior.unseen & allowed
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

    def scores(self, posterior: Posterior, seed: int, step: int) -> Tensor:
        """Scores (N,) for batches of a tenth of the pool, which `ranking` knows better."""
        return self.ranking(posterior, seed, step, max(1, posterior.num_prompts // 10))[0]

    def ranking(
        self,
        posterior: Posterior,
        seed: int,
        step: int,
        batch: int,
        allowed: Tensor | None = None,
        mates: Tensor | None = None,
        number: int = 0,
    ) -> tuple[Tensor, Shortlist | None]:
        """Scores (N,) at the price of the last place among those who may be picked. See `OfBatch`."""
        trials = _coming(self.trials, posterior)
        now = posterior.informative_probability(trials)
        if allowed is not None and mates is not None:  # whose places are among those that the price is of
            allowed = allowed.index_fill(0, mates.to(allowed.device), True)
        free = now if allowed is None else now[allowed]
        places = min(batch, len(free))
        price = float(free.topk(places).values[-1]) if places else 0.0
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

    def ranking(
        self,
        posterior: Posterior,
        seed: int,
        step: int,
        batch: int,
        allowed: Tensor | None = None,
        mates: Tensor | None = None,
        number: int = 0,
    ) -> tuple[Tensor, Shortlist | None]:
        """Scores (N,): those that are due lie above all others, longest absent first. See `OfBatch`."""
        scores, shortlist = _within(self.acquisition, posterior, seed, step, batch, allowed, mates, number)
        kept = max(1, round(self.share * batch)) if self.share else 0
        places = kept - _count(mates)  # the first of a batch are those
        absent = posterior.step - posterior.last_observed
        overdue = absent >= self.absence if allowed is None else (absent >= self.absence) & allowed
        if places <= 0 or posterior.step < self.absence or not bool(overdue.any()):
            return scores, shortlist
        scores, due = scores.clone(), torch.where(overdue, absent, -1).double()
        # Of those absent for as long, the better ones.
        span = (scores.amax() - scores.amin()).double()
        due += torch.where(due >= 0, (scores - scores.amin()).double() / (2 * span.clamp(min=1e-12)), 0)
        first = due.topk(min(places, len(due)))
        rows = first.indices[first.values >= 0]
        top = scores.amax() + 1
        scores[rows] = top + torch.arange(len(rows), 0, -1, dtype=scores.dtype, device=scores.device)
        return scores, None


def _count(mates: Tensor | None) -> int:
    return 0 if mates is None else len(mates)


def _coming(trials: int | None, posterior: Posterior) -> int:
    return posterior.group_size if trials is None else trials


def _group_size(trials: int | None) -> int | None:
    return None if trials is None else checks.group_size("trials", trials)


def _at_least_0(name: str, value: float) -> float:
    checks.number(name, value)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be finite and at least 0; got {value}")
    return float(value)


def _set(acquisition: Acquisition, **fields: object) -> None:
    """Python's own numbers, so that equal settings are written alike in checkpoints."""
    for name, value in fields.items():
        object.__setattr__(acquisition, name, value)


def _within(
    acquisition: Acquisition,
    posterior: Posterior,
    seed: int,
    step: int,
    batch: int,
    *of_batch: Any,
) -> tuple[Tensor, Shortlist | None]:
    """The ranking of the acquisition within, which may depend on the batch itself."""
    told = of_batch if isinstance(acquisition, OfBatch) else ()
    return acquisition.ranking(posterior, seed, step, batch, *told)


def _other(acquisition: Acquisition) -> None:
    if not isinstance(acquisition, Acquisition) or hasattr(acquisition, "choose"):
        got = type(acquisition).__name__
        raise TypeError(f"acquisition must be an Acquisition that does not choose by itself; got {got}")


def _lifted(scores: Tensor, wish: Tensor, places: int, limited: bool) -> tuple[Tensor, None]:
    """Scores (N,) of which those with the largest finite wishes (N,) lie above all others: `places` of them, or all."""
    wanted = wish > -torch.inf
    if limited:
        rows = wish.topk(min(places, len(wish))).indices
        wanted = wanted & torch.zeros_like(wanted).index_fill(0, rows, True)
    span = scores.amax() - scores.amin() + 1
    return torch.where(wanted, scores + span, scores), None
