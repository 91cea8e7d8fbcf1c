"""The batch that scores are for."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bayes_prompt.posteriors import checks


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of prompts that may be picked in parts: the best of the whole come first.

    Attributes:
        size: prompts of the whole, at least 1.
        allowed: (N,) bool, who may be picked; None for all.
        mates: (M,) int64, who of this batch was picked before, and was not given back since.
        out: outings of prompts that have neither come back nor been given back, those of `mates` included.
    """

    size: int
    allowed: Tensor | None = None
    mates: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    out: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", checks.integer("size", self.size, 1))
        object.__setattr__(self, "out", checks.integer("out", self.out, 0))

    def among(self, prompts: Tensor) -> Tensor:
        """Those of prompts (N,) bool that may be picked."""
        return prompts if self.allowed is None else prompts & self.allowed
