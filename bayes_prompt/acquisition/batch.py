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
        for name, dtype in (("allowed", torch.bool), ("mates", torch.int64)):
            given = getattr(self, name)
            if given is None and name == "allowed":
                continue
            if not isinstance(given, Tensor) or given.dtype != dtype or given.ndim != 1:
                got = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
                raise TypeError(f"{name} must be a tensor of {dtype} with one dimension; got {got}")

    def among(self, prompts: Tensor) -> Tensor:
        """Those of prompts (N,) bool that may be picked."""
        return prompts if self.allowed is None else prompts & self.allowed
