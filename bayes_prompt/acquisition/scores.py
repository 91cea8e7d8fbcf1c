"""Scores that follow from the belief alone. The highest are picked; ties are broken at random."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayes_prompt.acquisition.batch import Batch
from bayes_prompt.kernels.shortlist import Shortlist
from bayes_prompt.posteriors import checks
from bayes_prompt.posteriors.base import Posterior


class Acquisition(ABC):
    """A score for every prompt of any posterior. They add up: `PartialProbability() + EntropyBonus(0.1)`."""

    keeps_places: ClassVar[bool] = False
    """Whether it lifts scores in `ranking` to keep places of a batch, which sums would lose."""

    def __init_subclass__(cls, **options: Any) -> None:
        """TypeError for a `ranking` of one's own that takes something else than what it is told."""
        super().__init_subclass__(**options)
        try:
            signature = inspect.signature(cls.ranking)
        except (TypeError, ValueError):  # a property, say: whoever calls it will tell
            return
        bound = isinstance(inspect.getattr_static(cls, "ranking"), staticmethod | classmethod)
        told = 4 if bound else 5  # batch comes last
        try:
            signature.bind(*[None] * told)
        except TypeError:
            older = True
        else:
            last = list(signature.parameters.values())[told - 1 :]
            older = any(each.name in ("allowed", "mates") for each in last) or (
                bool(last) and last[0].kind < inspect.Parameter.VAR_POSITIONAL and last[0].annotation in (int, "int")
            )
        if older:
            raise TypeError(
                f"{cls.__qualname__}.ranking must take (self, posterior, seed, step, batch), of which batch is a "
                f"Batch; it takes {signature}"
            )

    @abstractmethod
    def scores(self, posterior: Posterior, seed: int, step: int) -> Tensor:
        """Scores (N,), higher is better. Random ones are functions of (seed, step, prompt)."""

    @property
    def by_batch(self) -> bool:
        """Whether `ranking` goes by more of the batch than its size: by who may be picked, and who was before."""
        return False

    def ranking(self, posterior: Posterior, seed: int, step: int, batch: Batch) -> tuple[Tensor, Shortlist | None]:
        """Scores (N,) for a batch, and the shortlist of the best if the posterior keeps one: those of `scores`.

        The scores may be overwritten by the next call and by the next step of the posterior.
        """
        return self.scores(posterior, seed, step), None

    def scores_for(self, posterior: Posterior, seed: int, step: int, batch: Batch) -> Tensor:
        """Scores (N,) for another acquisition that holds this one: those for the batch, where this goes by that."""
        return self.ranking(posterior, seed, step, batch)[0] if self.by_batch else self.scores(posterior, seed, step)

    def __repr__(self) -> str:
        """All that decides a pick, for checkpoints; of a class that does not say it, its name."""
        return type(self).__qualname__

    def __add__(self, other: Acquisition) -> Acquisition:
        """The acquisition whose score is the sum of both."""
        if not isinstance(other, Acquisition):
            return NotImplemented
        if self.keeps_places or other.keeps_places:
            raise TypeError(f"{self!r} + {other!r} would lose kept places: add within, as RevisitFloor(a + b)")
        if hasattr(other, "choose"):  # picks in its own way, and adds scores to its utility
            return NotImplemented
        return Sum(self, other)


@dataclass(frozen=True)
class Sum(Acquisition):
    """The sum of two acquisitions."""

    first: Acquisition
    second: Acquisition

    @property
    def by_batch(self) -> bool:
        """Whether one of the two goes by the batch."""
        return self.first.by_batch or self.second.by_batch

    def scores(self, posterior: Posterior, seed: int, step: int) -> Tensor:
        """Scores (N,)."""
        return self.first.scores(posterior, seed, step) + self.second.scores(posterior, seed, step)

    def ranking(self, posterior: Posterior, seed: int, step: int, batch: Batch) -> tuple[Tensor, Shortlist | None]:
        """Scores (N,), each of the two those that it gives for the batch."""
        first, second = (each.scores_for(posterior, seed, step, batch) for each in (self.first, self.second))
        return first + second, None


@dataclass(frozen=True)
class InformativeProbability(Acquisition):
    """P(0 < successes < trials): the chance that the group has a gradient, E[1 - p^G - (1-p)^G] over the belief.

    trials: the coming group size G; None takes that of the last observation (8 before there was one).
    """

    trials: int | None = None

    def __post_init__(self) -> None:
        if self.trials is not None:
            object.__setattr__(self, "trials", checks.group_size("trials", self.trials))

    def scores(self, posterior: Posterior, seed: int, step: int) -> Tensor:
        """Scores (N,) in [0, 1]."""
        return posterior.informative_probability(posterior.group_size if self.trials is None else self.trials)

    def ranking(self, posterior: Posterior, seed: int, step: int, batch: Batch) -> tuple[Tensor, Shortlist | None]:
        """Scores (N,) in [0, 1], which some posteriors work out while they make a step."""
        if type(self).scores is not InformativeProbability.scores:
            return super().ranking(posterior, seed, step, batch)
        trials = posterior.coming_group_size() if self.trials is None else self.trials
        return posterior.informative_scores(trials, batch.size)


@dataclass(frozen=True)
class PartialProbability(InformativeProbability):
    """The score of DPS (arXiv 2603.10887): P(the prompt will come out partially solved).

    For the published model this is belief[:, 1]; other posteriors answer the same question of the counts.
    """


@dataclass(frozen=True)
class ExpectedVariance(Acquisition):
    """E[p (1 - p)]: the expected variance of one reward, the size of the gradient signal rather than its presence."""

    def scores(self, posterior: Posterior, seed: int, step: int) -> Tensor:
        """Scores (N,) in [0, 1/4]."""
        return posterior.expected_variance()


@dataclass(frozen=True)
class EntropyBonus(Acquisition):
    """weight * entropy of the belief (nats): added to another score it pays for looking where little is known.

    DPS calls the sum "topk+entropy". The entropy is Shannon's for beliefs over states, the differential one for Betas.
    """

    weight: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", _finite("weight", self.weight))

    def scores(self, posterior: Posterior, seed: int, step: int) -> Tensor:
        """Scores (N,)."""
        return self.weight * posterior.entropy()


@dataclass(frozen=True)
class UncertaintyBonus(Acquisition):
    """weight * standard deviation of the success rate under the belief: optimism about prompts that are hardly known.

    Added to `InformativeProbability` it is an upper confidence bound. Where beliefs are calibrated a greedy pick never
    finds out about prompts that look a little worse than those it has.
    """

    weight: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", _finite("weight", self.weight))

    def scores(self, posterior: Posterior, seed: int, step: int) -> Tensor:
        """Scores (N,), between 0 and weight / 2."""
        rate = posterior.success_rate()
        # Var[p] = E[p] (1 - E[p]) - E[p (1 - p)]; what rounding leaves of a rate that is known may be negative.
        return self.weight * (rate * (1 - rate) - posterior.expected_variance()).clamp(min=0).sqrt()


@dataclass(frozen=True)
class QuadraticUtility(Acquisition):
    """The utility of GPS (arXiv 2602.01970): minus the squared distance of the expected success rate to a target.

    target: the wanted success rate in [0, 1].
    """

    target: float = 0.5

    def __post_init__(self) -> None:
        checks.number("target", self.target)
        if not 0 <= self.target <= 1:
            raise ValueError(f"target must lie in [0, 1]; got {self.target}")
        object.__setattr__(self, "target", float(self.target))

    def scores(self, posterior: Posterior, seed: int, step: int) -> Tensor:
        """Scores (N,), between -1 and 0."""
        return -(posterior.success_rate() - self.target).square()


@dataclass(frozen=True)
class Uniform(Acquisition):
    """Every prompt alike: the pick is uniform among those that may be picked."""

    def scores(self, posterior: Posterior, seed: int, step: int) -> Tensor:
        """Scores (N,), all 0."""
        return torch.zeros((), dtype=posterior.dtype, device=posterior.device).expand(posterior.num_prompts)


@dataclass(frozen=True)
class HistoryResampling(Acquisition):
    """Shuffled epochs in which a prompt that was fully solved sits out the next one (history resampling, SRPO).

    A visit costs a prompt one epoch, a fully solved visit two, and whoever has spent the fewest comes first. So nothing
    is dropped for good, and the pool never runs dry.
    """

    def scores(self, posterior: Posterior, seed: int, step: int) -> Tensor:
        """Scores (N,), minus the epochs that each prompt has spent."""
        return -(posterior.visits + posterior.solved).to(posterior.dtype)


def _finite(name: str, value: float) -> float:
    checks.number(name, value)
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite; got {value}")
    return float(value)
