"""`shortlist` for compiled CPU loops: a range of rows notes its own, and the ranges are put together at the end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bayes_prompt.kernels.shortlist import Shortlist
from bayes_prompt.kernels.threads import compiled


@compiled
def note_block(scores, first_row, threshold, rows, count):  # type: ignore[no-untyped-def]
    """Note those rows of a block of scores that reach the threshold; returns how many rows have reached it so far.

    scores: (size,) of the rows from `first_row` on. rows: (room,) int64, filled from entry `count` on while there is
    room.
    """
    hits = 0
    for r in range(len(scores)):  # no branch, so that it becomes vector instructions
        hits += scores[r] >= threshold
    if hits > 0 and count >= len(rows):
        count += hits
    elif hits > 0:
        for r in range(len(scores)):
            if scores[r] >= threshold:
                if count < len(rows):
                    rows[count] = first_row + r
                count += 1
    return count


def note_ranges(shortlist: Shortlist, ranges: Sequence[tuple[np.ndarray, int]]) -> None:
    """Take over what consecutive ranges of rows noted, each as its (room,) rows and how many reached the threshold."""
    room, filled, total = shortlist.rows.numel(), 0, 0
    for rows, count in ranges:
        kept = min(count, len(rows), room - filled)
        shortlist.rows[filled : filled + kept] = torch.from_numpy(rows[:kept])
        filled += kept
        total += count
    shortlist.count.fill_(total)
