"""What prompts that nobody has looked at yet learn from those that were."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bayes_prompt.models import checks


@dataclass(frozen=True)
class EmpiricalBayes:
    """The prior of prompts that were never observed, learned from the first looks at others, by group and by pool.

    The prior is a histogram whose masses are pseudo-counts: of the declared prior, of the pool's first looks, and of
    those of the prompt's own group. A first look adds the posterior of the rate that was met (a few steps of EM where a
    batch has several); all drift as rates do, so that a pool that is better trained now is expected to be better.

    Args:
        pool: how many first looks the declared prior weighs as much as, positive and finite.
        group: how many of a group's own first looks the pool's prior weighs as much as, likewise.
        memory: what is left of earlier first looks after one unit of time, in [0, 1]. Which prompts are looked at first
            is up to the acquisition, and changes.
        passes: of EM over the first looks of a step, at least 1.

    Raises ValueError or TypeError for a number out of range.
    """

    pool: float = 5.0
    group: float = 5.0
    memory: float = 0.95
    passes: int = 3

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("pool", "group"):
            checks.number(name, getattr(self, name))
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite; got {getattr(self, name)}")
            object.__setattr__(self, name, float(getattr(self, name)))
        checks.unit_interval("memory", self.memory)
        object.__setattr__(self, "passes", checks.whole("passes", self.passes, 1))

    def describe(self) -> dict[str, Any]:
        """The numbers, by name."""
        numbers = {"pool": self.pool, "group": self.group, "memory": float(self.memory), "passes": self.passes}
        return {"sharing": "EmpiricalBayes", **numbers}
