"""What counts as a right answer at test time, and what one more step of samples gains under a Beta belief."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bayes_prompt.posteriors import checks


class Objective(ABC):
    """What counts as a right answer. The first sample gains the mean rate, each step of `stride` samples then less.

    The stride is 1 or 2.
    """

    stride: ClassVar[int] = 1

    @abstractmethod
    def following(self, mean: Tensor, correlation: Tensor, steps: Tensor, gain: Tensor, last: Tensor) -> Tensor:
        """What the step after the next one gains; it must not exceed `gain` where that is positive. All are (M,).

        steps: taken so far. gain: of the next step, which is the mean where none was taken. last: of the last step.
        """


@dataclass(frozen=True)
class AnyCorrect(Objective):
    """pass@n: one right sample is enough, as with a verifier that never errs. The n-th gains E[p (1 - p)^(n - 1)]."""

    def following(self, mean: Tensor, correlation: Tensor, steps: Tensor, gain: Tensor, last: Tensor) -> Tensor:
        """Pólya's urn: after n failures the next sample fails with probability ((1 - m)(1 - r) + n r) / (1 + n r)."""
        agree = steps * correlation
        return gain * ((1 - mean) * (1 - correlation) + agree) / (1 + agree)


@dataclass(frozen=True)
class MajorityVote(Objective):
    """Right answers against all wrong ones taken together, as if they agreed; a coin breaks ties.

    That is exact for two answers and a lower bound for more. An even number of votes is worth the odd one below it, so
    steps are of two samples. The i-th pair gains C(2i - 1, i) E[(2p - 1) (p (1 - p))^i], which falls with i, and for a
    Beta belief has the sign of alpha - beta: where wrong is likelier than right, one sample is best.
    """

    stride: ClassVar[int] = 2

    def following(self, mean: Tensor, correlation: Tensor, steps: Tensor, gain: Tensor, last: Tensor) -> Tensor:
        """The ratio of the gains of pairs i and i + 1; the first is that of half the lead, m - 1/2."""
        agree, alone = steps * correlation, 1 - correlation
        split = (
            (mean * alone + agree) * ((1 - mean) * alone + agree) / ((1 + 2 * agree) * (1 + 2 * agree + correlation))
        )
        return torch.where(steps == 0, mean - 0.5, gain) * split * (4 * steps + 2) / (steps + 1)


@dataclass(frozen=True)
class BestOfN(Objective):
    """A verifier accepts or rejects each sample; the answer is a random accepted one, or any if all were rejected.

    Its verdicts are independent given whether the samples are right. The first sample gains E[p]; the (n + 1)-th then
    (t - f) E[p (1 - p) R^(n - 1)], where R = p (1 - t) + (1 - p)(1 - f) is the chance of a rejection.

    Args:
        sensitivity: t, the chance that a right sample is accepted, in [0, 1].
        false_positive_rate: f, the chance that a wrong one is, in [0, t].
    """

    sensitivity: float = 1.0
    false_positive_rate: float = 0.0

    def __post_init__(self) -> None:
        for name, high in (("sensitivity", 1.0), ("false_positive_rate", self.sensitivity)):
            value = getattr(self, name)
            checks.number(name, value)
            if not 0 <= value <= high:
                raise ValueError(f"{name} must lie in [0, {high}]; got {value}")
            object.__setattr__(self, name, float(value))

    def following(self, mean: Tensor, correlation: Tensor, steps: Tensor, gain: Tensor, last: Tensor) -> Tensor:
        """The three-term recurrence of E[R^k] under Beta(alpha + 1, beta + 1), which is a 2F1(-k, .; .; .)."""
        missed, correct = 1 - self.sensitivity, 1 - self.false_positive_rate  # rejections of right and of wrong samples
        lead = self.sensitivity - self.false_positive_rate
        wrong, agree = (1 - mean) * (1 - correlation), steps * correlation
        forward = missed * (1 + 2 * agree - correlation) + lead * (wrong + agree)
        later = (forward * gain - (agree - correlation) * missed * correct * last) / (1 + agree)
        return torch.where(steps == 0, lead * wrong * gain, later.clamp(min=0.0))
