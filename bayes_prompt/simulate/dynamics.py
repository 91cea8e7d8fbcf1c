"""How a skill grows, spreads and decays: the parts of a `World` that time acts through.

Each is a frozen declaration that is called with float64 tensors (N,) and gives one; so may any function be that a user
puts in its place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayes_prompt.models import checks


def lessons(successes: Tensor, trials: Tensor) -> Tensor:
    """What groups of rollouts have to teach: s (G - s) / G, the sum of squared deviations of their rewards.

    successes, trials: counts of any one shape; where trials are 0, nothing is taught. The result is float64, at most
    G / 4, and 0 for groups that agree: their advantages are all 0 (GRPO, arXiv 2402.03300).
    """
    failures = (trials - successes).to(torch.float64)
    return successes * failures / trials.clamp(min=1)


@dataclass(frozen=True)
class Growth:
    """Skill grows with what was taught, with diminishing returns: d skill / d felt = rate * (1 - skill / saturation).

    Args:
        rate: logits for a unit of `lessons`, at least 0.
        saturation: the skill in logits that is never passed, greater than 0; infinite: no diminishing returns.
    """

    rate: float = 0.1
    saturation: float = math.inf

    def __post_init__(self) -> None:
        """Check both numbers."""
        _at_least_zero("rate", self.rate)
        checks.number("saturation", self.saturation)
        if not self.saturation > 0:
            raise ValueError(f"saturation must be greater than 0; got {self.saturation!r}")

    def __call__(self, skill: Tensor, felt: Tensor) -> Tensor:
        """Skill (N,) after lessons of which each prompt felt so much (N,): exact, however large the step."""
        gain = self.rate * felt
        if self.saturation == math.inf:
            return skill + gain
        return skill - (self.saturation - skill) * torch.expm1(-gain / self.saturation)


@dataclass(frozen=True)
class Forgetting:
    """Skill of prompts that a step taught nothing about decays: skill * exp(-rate).

    Args:
        rate: a step's, at least 0.
    """

    rate: float = 0.01

    def __post_init__(self) -> None:
        """Check the number."""
        _at_least_zero("rate", self.rate)

    def __call__(self, skill: Tensor, taught: Tensor) -> Tensor:
        """What is left of skill (N,) after a step that taught each prompt so much itself (N,)."""
        return torch.where(taught > 0, skill, skill * math.exp(-self.rate))


@dataclass(frozen=True)
class Transfer:
    """Whom a lesson helps: the prompt itself, its group, and everyone.

    Args:
        own: what a lesson is worth to the prompt that it was about, at least 0.
        kin: to every prompt of its group, itself included; above 0 the world needs groups.
        everyone: to every prompt of the pool.
    """

    own: float = 1.0
    kin: float = 0.0
    everyone: float = 0.0

    def __post_init__(self) -> None:
        """Check every weight."""
        for name in ("own", "kin", "everyone"):
            _at_least_zero(name, getattr(self, name))

    def __call__(self, taught: Tensor, groups: Tensor | None, embeddings: Tensor | None) -> Tensor:
        """What each prompt felt (N,) of lessons (N,), given groups (N,)."""
        felt = self.own * taught + self.everyone * taught.sum()
        if self.kin:
            if groups is None:
                raise ValueError(f"transfer has kin = {self.kin}, which needs groups; the world has none")
            totals = taught.new_zeros(int(groups.max()) + 1).index_add_(0, groups, taught)
            felt = felt + self.kin * totals[groups]
        return felt


@dataclass(frozen=True)
class SimilarTransfer:
    """Whom a lesson helps: the prompt itself, and others by how near their texts are.

    Args:
        own: what a lesson is worth to the prompt that it was about, at least 0.
        similar: to a prompt with the same embedding, itself included, at least 0; to others exp(-|x - x'|^2 /
            (2 length^2)) of that.
        length: the distance of embeddings over which lessons carry, greater than 0.
    """

    own: float = 1.0
    similar: float = 0.1
    length: float = 1.0

    def __post_init__(self) -> None:
        """Check every number."""
        _at_least_zero("own", self.own)
        _at_least_zero("similar", self.similar)
        checks.number("length", self.length)
        if not 0 < self.length < math.inf:
            raise ValueError(f"length must be finite and greater than 0; got {self.length!r}")

    def __call__(self, taught: Tensor, groups: Tensor | None, embeddings: Tensor | None) -> Tensor:
        """What each prompt felt (N,) of lessons (N,), given embeddings (N, D)."""
        if embeddings is None:
            raise ValueError("transfer is a SimilarTransfer, which needs embeddings; the world has none")
        (about,) = taught.nonzero(as_tuple=True)  # a batch of them: the kernel of the whole pool is never made
        squares = embeddings.square().sum(1)
        distances = squares[:, None] + squares[about] - 2 * embeddings @ embeddings[about].T
        kernel = torch.exp(-distances.clamp(min=0) / (2 * self.length**2))
        return self.own * taught + self.similar * (kernel @ taught[about])


def _at_least_zero(name: str, value: float) -> None:
    checks.number(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and at least 0; got {value!r}")
