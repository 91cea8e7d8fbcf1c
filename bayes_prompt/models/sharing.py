"""What prompts that nobody has looked at yet learn from those that were."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bayes_prompt.models import checks


@dataclass(frozen=True)
class EmpiricalBayes:
    """The prior of prompts that were never observed, learned from the first looks at others.

    It is a histogram whose masses are pseudo-counts: of the declared prior, of the pool's first looks, and of those at
    prompts of the same group, or with a like embedding. A first look adds the posterior of the rate that was met; all
    drift as rates do, so that a pool that is better trained now is expected to be better. What is known from before
    training (`Posterior.warm_start`) is a first look, too.

    How much a group's or a neighbour's looks say is not known beforehand: several strengths, and for embeddings several
    widths, are weighted online by how well each predicts first looks.

    Args:
        pool: how many first looks the declared prior weighs as much as, positive and finite.
        strengths: how many like prompts' first looks the pool's prior weighs as much as; one or more such numbers.
        widths: of what counts as like, in units of the median squared distance between embeddings; one or more.
        memory: what is left of the evidence for a strength and width when a step brings first looks, in [0, 1].

    Raises ValueError or TypeError for a number out of range.
    """

    pool: float = 10.0
    strengths: Sequence[float] = (3.0, 10.0, 30.0)
    widths: Sequence[float] = (0.03, 0.06, 0.12)
    memory: float = 0.98

    def __post_init__(self) -> None:
        """Check every field."""
        object.__setattr__(self, "pool", _positive("pool", self.pool))
        for name in ("strengths", "widths"):
            values = getattr(self, name)
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise TypeError(f"{name} must be a sequence of numbers; got {values!r}")
            if not values:
                raise ValueError(f"{name} must hold one number or more; got none")
            object.__setattr__(self, name, tuple(_positive(f"{name}[{k}]", each) for k, each in enumerate(values)))
        checks.unit_interval("memory", self.memory)

    def describe(self) -> dict[str, Any]:
        """The numbers, by name."""
        numbers = {"pool": self.pool, "strengths": list(self.strengths), "widths": list(self.widths)}
        return {"sharing": "EmpiricalBayes", **numbers, "memory": float(self.memory)}


def _positive(name: str, value: float) -> float:
    checks.number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite; got {value}")
    return float(value)
