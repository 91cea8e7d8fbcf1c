"""What was picked lately, for acquisitions that keep away from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayes_prompt.checkpoint import require_integer, require_keys, require_rows
from bayes_prompt.errors import CheckpointError


class RecentPicks:
    """The rows of the last batches, and of the batch that is being picked, in the order of their picks.

    Picks of fewer than `batch_size` prompts are parts of one batch until it is full. batches: full ones that are kept.
    """

    def __init__(self, batch_size: int, batches: int) -> None:
        self.batch_size, self.batches = batch_size, batches
        self.rows = torch.zeros(0, dtype=torch.int64)
        self.begun = 0  # how many of the rows, the last ones, belong to the batch that is being picked

    def begun_before(self, wanted: int) -> int:
        """How many of the rows share a batch with `wanted` further ones: none where it has no room for them."""
        return self.begun if self.begun + wanted <= self.batch_size else 0

    def add(self, rows: Tensor, begun: int) -> None:
        """They were picked: rows (B,), -1 for nobody, for a batch of which `begun` were picked before."""
        rows = rows.cpu()
        rows = rows[rows >= 0]
        self.begun = begun + len(rows)
        keep = self.batch_size * self.batches + self.begun
        self.rows = torch.cat([self.rows, rows])[-keep:] if keep else rows

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"index": self.rows.clone(), "begun": self.begun}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state` gave; of a selector with another batch size, as much as it had kept."""
        self.rows, self.begun = state["index"].clone(), state["begun"]

    @staticmethod
    def check(state: Mapping[str, Any], num_prompts: int) -> None:
        """CheckpointError unless `restore` can take it."""
        require_keys("selector.recent", state, ("index", "begun"))
        require_rows("selector.recent.index", state["index"])
        require_integer("selector.recent.begun", state["begun"], 0, len(state["index"]))
        bad = (state["index"] < 0) | (state["index"] >= num_prompts)
        if bool(bad.any()):
            row = int(state["index"][bad][0])
            raise CheckpointError(f"selector.recent.index holds {row}, which must lie in [0, {num_prompts})")
