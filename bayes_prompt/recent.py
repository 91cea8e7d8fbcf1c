"""What was picked lately, for acquisitions that keep away from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayes_prompt.checkpoint import require_integer, require_keys, require_rows
from bayes_prompt.errors import CheckpointError


@dataclass(frozen=True)
class OpenBatch:
    """A batch that a pick goes on with, or begins.

    number: of the batches begun before it. rows: (M,) int64, the last picks in order, of which the last `begun` belong
    to this batch.
    """

    number: int
    rows: Tensor
    begun: int

    @property
    def mates(self) -> Tensor:
        """Who of this batch was picked before, (begun,) int64."""
        return self.rows[len(self.rows) - self.begun :]


class RecentPicks:
    """The rows of the last batches, and of the batch that is being picked, in the order of their picks.

    Picks of fewer than `batch_size` prompts are parts of one batch until it is full. batches: full ones that are kept.
    Picks that are given back are forgotten: nobody rolls them out, and their places in a batch go to others.
    """

    def __init__(self, batch_size: int, batches: int) -> None:
        self.batch_size, self.batches = batch_size, batches
        self.rows = torch.zeros(0, dtype=torch.int64)
        self.begun = 0  # how many of the rows, the last ones, belong to a batch that is not full yet
        self.started = 0  # batches begun so far

    def batch(self, wanted: int, again: Sequence[int] = ()) -> OpenBatch:
        """The batch of `wanted` further prompts: the one that is being picked, or another where it has no room.

        again: prompts that this pick hands out once more, before them. Unless they belong to the batch that is being
        picked they begin another.
        """
        first, mates = torch.tensor(again, dtype=torch.int64), self.rows[len(self.rows) - self.begun :]
        if 0 < self.begun <= self.batch_size - wanted and bool(torch.isin(first, mates).all()):
            return OpenBatch(self.started - 1, self.rows, self.begun)
        before = self.rows[~torch.isin(self.rows, first)] if again else self.rows
        return OpenBatch(self.started, torch.cat([before, first]), len(first))

    def add(self, rows: Tensor, batch: OpenBatch) -> None:
        """They were picked for this batch: rows (B,), -1 for nobody."""
        rows = rows.cpu()
        rows = rows[rows >= 0]
        begun = batch.begun + len(rows)
        self.begun, self.started = begun if begun < self.batch_size else 0, batch.number + 1
        self.rows = torch.cat([batch.rows, rows])
        self.rows = self.rows[max(0, len(self.rows) - self.batch_size * self.batches - self.begun) :]

    def give_back(self, prompt: int, last: int) -> None:
        """Forget a pick of this prompt, the `last`-th from the end, if it is kept."""
        picks = (self.rows == prompt).nonzero()[:, 0]
        if len(picks) >= last:
            place = int(picks[-last])
            self.begun -= place >= len(self.rows) - self.begun
            self.rows = torch.cat([self.rows[:place], self.rows[place + 1 :]])

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"index": self.rows.clone(), "begun": self.begun, "started": self.started}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state` gave; of a selector with another batch size, as much as it had kept."""
        self.rows, self.begun, self.started = state["index"].clone(), state["begun"], state["started"]

    @staticmethod
    def check(state: Mapping[str, Any], num_prompts: int) -> None:
        """CheckpointError unless `restore` can take it."""
        require_keys("selector.recent", state, ("index", "begun", "started"))
        require_rows("selector.recent.index", state["index"])
        require_integer("selector.recent.begun", state["begun"], 0, len(state["index"]))
        require_integer("selector.recent.started", state["started"], int(state["begun"] > 0), 2**32 - 1)
        bad = (state["index"] < 0) | (state["index"] >= num_prompts)
        if bool(bad.any()):
            row = int(state["index"][bad][0])
            raise CheckpointError(f"selector.recent.index holds {row}, which must lie in [0, {num_prompts})")
