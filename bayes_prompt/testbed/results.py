"""What an experiment gives back, and means with their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from bayes_prompt.history import History


@dataclass(frozen=True)
class Evaluation:
    """The held-out tasks after `step` steps (0: the common start): `successes` of each among `samples` completions."""

    step: int
    successes: list[int]
    samples: int

    @property
    def rates(self) -> list[float]:
        """The success rate of each task."""
        return [count / self.samples for count in self.successes]


@dataclass(frozen=True)
class RunResult:
    """What came out of one method.

    reward, pool_success_rate: of every step: the mean reward of the rollouts, and the selector's estimate of the mean
    success rate of the whole pool.  held_out: every evaluation; the first is of the common start.  coverage: share of
    the pool that was ever rolled out.  seconds_selecting: spent by the selector on choosing and learning.  seconds: of
    the whole run, evaluations included.  history: (steps, prompts).
    """

    method: str
    seed: int
    steps: int
    rollouts: int
    reward: list[float]
    pool_success_rate: list[float]
    held_out: list[Evaluation]
    coverage: float
    seconds_selecting: float
    seconds: float
    history: History

    @property
    def effective_sample_ratio(self) -> list[float]:
        """Of every step: the share of the groups in which some rollouts succeeded and some failed."""
        return (self._mixed.sum(1) / (self.history.trials > 0).sum(1)).tolist()

    @property
    def useful_prompts(self) -> list[int]:
        """Up to every step: the number of distinct prompts that ever gave such a group."""
        return (self._mixed.cumsum(0) > 0).sum(1).tolist()

    @property
    def _mixed(self) -> Tensor:
        successes, trials = self.history.successes, self.history.trials
        assert successes is not None
        return (successes > 0) & (successes < trials)


class NotWritten(RuntimeError):
    """The work is done, but what came out could not be written.

    results: what `run` would have returned.
    """

    def __init__(self, message: str, results: list[RunResult]) -> None:
        super().__init__(message)
        self.results = results


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error over prompts (NaN for a single one)."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)
