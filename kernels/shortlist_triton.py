"""`shortlist` as a Triton function."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def note(score, row, inside, threshold, rows, count, room):  # type: ignore[no-untyped-def]
    """Note the rows of a block that reach the threshold: its scores, its int64 rows, which of them there are.

    threshold, rows, count: pointers to the shortlist's tensors; room: its size, int64. `count` starts at zero.
    """
    reached = inside & (score >= tl.load(threshold))
    one = reached.to(tl.int64)
    hits = tl.sum(one, axis=0)
    if hits > 0:
        first = tl.atomic_add(count, hits, sem="relaxed")
        place = first + tl.cumsum(one, axis=0) - 1
        tl.store(rows + place, row, mask=reached & (place < room))
