"""Several settings at once, weighted online by how well each predicts the counts (Bayesian model averaging)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bayes_prompt.models import checks
from bayes_prompt.models.drift import Drift, own


@dataclass(frozen=True, eq=False)
class Bank:
    """Members whose weights follow their evidence, in the pool and in every group.

    A prompt keeps one belief: after each look those of the members are averaged by their weights, so that a bank costs
    little more than one member (generalised pseudo-Bayes of order 1; Bar-Shalom, Li and Kirubarajan, 2001, ch. 11.6).
    What members say of hidden modes is averaged, too: weights of members that differ only in how many prompts are in a
    mode are too sure, by up to .11.

    Args:
        members: at least one.
        memory: what is left of the evidence after one unit of time, in [0, 1]; below 1 the weights can turn.
        floor: share of the weights that is even, whatever the evidence, in [0, 1): for changes that are yet to come.
        pooling: the power of the pool's weights in those of a group, in [0, 1], where there are groups: with 0 groups
            are on their own.

    Raises ValueError or TypeError for what is no such thing.
    """

    members: Sequence[Any]
    memory: float = 0.95
    floor: float = 0.05
    pooling: float = 0.3

    def __post_init__(self) -> None:
        """Check every field."""
        try:
            members = tuple(self.members)
        except TypeError:
            raise TypeError(f"members must be a sequence; got {self.members!r}") from None
        if not members:
            raise ValueError("members must be one or more; got none")
        object.__setattr__(self, "members", members)
        checks.unit_interval("memory", self.memory)
        checks.unit_interval("pooling", self.pooling)
        checks.number("floor", self.floor)
        if not 0 <= self.floor < 1:
            raise ValueError(f"floor must lie in [0, 1); got {self.floor}")

    def _numbers(self) -> dict[str, Any]:
        return {name: float(getattr(self, name)) for name in ("memory", "floor", "pooling")}


@dataclass(frozen=True, eq=False)
class DriftBank(Bank):
    """A bank of drifts, each a `Drift`, all with the same number of modes: see `Bank`."""

    members: Sequence[Drift]

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        for place, member in enumerate(self.members):
            if not isinstance(member, Drift):
                raise TypeError(f"members[{place}] must be a Drift; got {type(member).__name__}")
        if len({member.modes for member in self.members}) > 1:
            raise ValueError(f"members must have the same number of modes; got {[m.modes for m in self.members]}")
        object.__setattr__(self, "members", tuple(own(member) for member in self.members))

    @property
    def modes(self) -> int:
        """Of every member."""
        return self.members[0].modes

    @property
    def reach(self) -> float:
        """The farthest of the members'."""
        return max(member.reach for member in self.members)

    def describe(self) -> dict[str, Any]:
        """The bank as JSON-able numbers and strings."""
        return {"drift": "DriftBank", "members": [member.describe() for member in self.members], **self._numbers()}


@dataclass(frozen=True, eq=False)
class DecayBank(Bank):
    """A bank of decays, each in [0, 1], in place of one that is set by hand: see `Bank`."""

    members: Sequence[float] = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        for place, member in enumerate(self.members):
            checks.unit_interval(f"members[{place}]", member)
        object.__setattr__(self, "members", tuple(map(float, self.members)))

    def describe(self) -> dict[str, Any]:
        """The bank as JSON-able numbers and strings."""
        return {"decays": list(self.members), **self._numbers()}


@dataclass(frozen=True, eq=False)
class StrengthBank(Bank):
    """A bank of strengths of partial pooling, in place of one that is set by hand: see `Bank`.

    A strength is how many transitions the pool weighs as at most, in what is believed of those of a group, for each
    state that they lead from; at least 0, which leaves groups on their own, up to infinity, which makes them one pool.
    """

    members: Sequence[float] = (0.0, 10.0, 30.0, 100.0, math.inf)
    memory: float = 0.98
    pooling: float = 1.0

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        for place, member in enumerate(self.members):
            strength(f"members[{place}]", member)
        object.__setattr__(self, "members", tuple(map(float, self.members)))

    def describe(self) -> dict[str, Any]:
        """The bank as JSON-able numbers and strings."""
        return {"strengths": [described(member) for member in self.members], **self._numbers()}


def strength(name: str, value: float) -> None:
    """Raise TypeError or ValueError unless `value` is a strength of partial pooling."""
    checks.number(name, value)
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0; got {value}")


def described(value: float) -> float | str:
    """A strength for a description: infinity is no number of JSON's."""
    return float(value) if math.isfinite(value) else "infinite"
