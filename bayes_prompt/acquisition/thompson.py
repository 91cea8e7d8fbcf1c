"""Scores by the distance of a success rate, drawn from the belief or its mean, to the wanted one (MoPPS)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayes_prompt.acquisition.batch import Batch
from bayes_prompt.acquisition.scores import Acquisition
from bayes_prompt.kernels.shortlist import Shortlist
from bayes_prompt.posteriors import checks
from bayes_prompt.posteriors.base import Posterior


@dataclass(frozen=True)
class TargetSuccessRate(Acquisition):
    """Nearest to a target success rate (MoPPS, arXiv 2507.04632: a Thompson draw nearest to 0.5).

    target: the wanted success rate in [0, 1]. draw: judge a Thompson draw (True, explores) or the mean (False).
    """

    target: float = 0.5
    draw: bool = True

    def __post_init__(self) -> None:
        _check(self, "target")

    def scores(self, posterior: Posterior, seed: int, step: int) -> Tensor:
        """Scores (N,), minus the distance to the target."""
        return -(_success_rate(posterior, self.draw, seed, step) - self.target).abs()

    def ranking(self, posterior: Posterior, seed: int, step: int, batch: Batch) -> tuple[Tensor, Shortlist | None]:
        """Scores (N,), which some posteriors work out while they draw."""
        if not self.draw or type(self).scores is not TargetSuccessRate.scores:
            return super().ranking(posterior, seed, step, batch)
        return posterior.draw_scores(seed, step, self.target, self.target, batch.size)


@dataclass(frozen=True)
class Threshold(Acquisition):
    """Any prompt whose success rate lies in [low, high], at random; where too few do, the nearest (MoPPS's variant).

    low, high: bounds in [0, 1]. draw: judge a Thompson draw (True) or the mean (False).
    """

    low: float
    high: float
    draw: bool = True

    def __post_init__(self) -> None:
        _check(self, "low", "high")
        if self.low > self.high:
            raise ValueError(f"low and high must satisfy low <= high; got {self.low} and {self.high}")

    def scores(self, posterior: Posterior, seed: int, step: int) -> Tensor:
        """Scores (N,), 0 within the bounds and minus the distance to them outside."""
        rate = _success_rate(posterior, self.draw, seed, step)
        return -torch.maximum(self.low - rate, rate - self.high).clamp(min=0)

    def ranking(self, posterior: Posterior, seed: int, step: int, batch: Batch) -> tuple[Tensor, Shortlist | None]:
        """Scores (N,), which some posteriors work out while they draw."""
        if not self.draw or type(self).scores is not Threshold.scores:
            return super().ranking(posterior, seed, step, batch)
        return posterior.draw_scores(seed, step, self.low, self.high, batch.size)


def _check(acquisition: TargetSuccessRate | Threshold, *rates: str) -> None:
    """Rates in [0, 1], kept as Python's own floats, so that equal settings are written alike in checkpoints."""
    for name in rates:
        value = getattr(acquisition, name)
        checks.number(name, value)
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1]; got {value}")
        object.__setattr__(acquisition, name, float(value))
    if not isinstance(acquisition.draw, bool):
        raise TypeError(f"draw must be True or False; got {acquisition.draw!r}")


def _success_rate(posterior: Posterior, draw: bool, seed: int, step: int) -> Tensor:
    return posterior.sample_success_rate(seed, step) if draw else posterior.success_rate()
