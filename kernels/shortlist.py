"""Rows that scored well, noted while scores are being written, so that a pick need not read all of them again.

Whoever writes scores compares each with a threshold carried over from the last pick, and notes the rows that reach it.
If at least as many of the noted rows may be picked as are wanted, the best of them are the best of all: nobody who was
left out can rank before any of them. Otherwise, or where more rows reach the threshold than there is room for, the pick
goes over all scores, which is always right. So a threshold that no longer fits costs time, never exactness.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayes_prompt.kernels.arguments import check_layout

LISTED_PER_PICK = 4  # rows that the threshold aims at, in batches: some will be in flight, and scores move
ROOM_PER_WANTED = 4  # rows that there is room for, for each that the threshold aims at


@dataclass(frozen=True)
class Shortlist:
    """What is carried from a pick to the next: tensors on the device of the scores, changed in place.

    threshold: (1,) in the dtype of the scores; of the next scores, rows with at least this are noted, NaN never.
    rows: (room,) int64, the noted rows in any order; entries beyond `count` mean nothing.
    count: (1,) int64, rows that reached the threshold of then (a pick moves it on); where it exceeds the room, not all
        were noted.
    wanted: rows that the next threshold aims at, fewer than there is room for.
    guide: (1,) int64, a row whose score the threshold was. Where all scores move from step to step, so should the
        threshold: whoever can tell the coming score of this row before the others are written may take that.
    """

    threshold: Tensor
    rows: Tensor
    count: Tensor
    wanted: int
    guide: Tensor

    @classmethod
    def empty(cls, batch: int, like: Tensor) -> Shortlist:
        """For picks of `batch` rows of scores `like` (N,). Its first threshold is infinite: the first pick sees all."""
        rows = like.numel()
        return cls(
            torch.full((1,), torch.inf, dtype=like.dtype, device=like.device),
            torch.zeros(min(ROOM_PER_WANTED * LISTED_PER_PICK * batch, rows), dtype=torch.int64, device=like.device),
            torch.zeros(1, dtype=torch.int64, device=like.device),
            min(LISTED_PER_PICK * batch, rows),
            torch.zeros(1, dtype=torch.int64, device=like.device),
        )

    def move(self, before: Tensor, coming: Tensor) -> None:
        """Move the threshold with the score of its guide: from what it was before to what it will be, each (1,)."""
        beyond = torch.nextafter(coming, torch.full_like(coming, torch.inf))
        moved = torch.where(self.threshold > before, beyond, coming)
        self.threshold.copy_(torch.where(self.threshold.isinf(), self.threshold, moved))


def check_shortlist(shortlist: Shortlist, scores: Tensor) -> None:
    """Raise TypeError or ValueError unless `shortlist` can be kept with `scores` (N,)."""
    check_layout("shortlist.threshold", shortlist.threshold, (1,), scores, str(scores.dtype).removeprefix("torch."))
    check_layout("shortlist.rows", shortlist.rows, (shortlist.rows.numel(),), scores, "int64")
    check_layout("shortlist.count", shortlist.count, (1,), scores, "int64")
    check_layout("shortlist.guide", shortlist.guide, (1,), scores, "int64")
    if not 0 <= shortlist.wanted <= shortlist.rows.numel():
        raise ValueError(
            f"shortlist.wanted must lie in [0, {shortlist.rows.numel()}], the room there is; got {shortlist.wanted}"
        )


def note(shortlist: Shortlist, scores: Tensor) -> None:
    """Note the rows of finished scores (N,): what every kernel does while it writes them; the definition."""
    reached = (scores >= shortlist.threshold).nonzero().squeeze(1)
    room = shortlist.rows.numel()
    shortlist.rows[: min(room, len(reached))] = reached[:room]
    shortlist.count.fill_(len(reached))
