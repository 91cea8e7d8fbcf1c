"""The compiled loops of `cpu_search.py`: a bounded heap that is shown the scores of a range of rows.

They are read in blocks. A block without a score that reaches the heap's worst, or the lower bound, costs one vectorised
comparison a row; keys are computed only for rows that may enter the heap.
"""

from __future__ import annotations

import numpy as np

from bayes_prompt.kernels.rng_cpu import four_tie_keys, tie_key
from bayes_prompt.kernels.threads import compiled, inlined

_BLOCK = 256


@compiled
def tie_keys(rows, seed, step, first_prompt):  # type: ignore[no-untyped-def]
    """The keys of rows (M,), int64."""
    keys = np.empty(len(rows), np.int64)
    for n in range(len(rows)):
        keys[n] = tie_key(seed, step, first_prompt + rows[n])
    return keys


@inlined
def before(score, key, row, other_score, other_key, other_row):  # type: ignore[no-untyped-def]
    """Whether a row ranks before another one."""
    if score > other_score:
        return True
    if score < other_score:
        return False
    if np.isnan(score) != np.isnan(other_score):
        return np.isnan(other_score)
    return key < other_key or (key == other_key and row < other_row)


@compiled
def collect(  # type: ignore[no-untyped-def]
    scores, allowed, low, high, seed, step, first_prompt, heap_score, heap_key, heap_row
):  # fmt: skip
    """Fill the heap, its worst row at the root, with the best allowed rows that score from `low` to `high`.

    Returns how many they are. Rows that score NaN are among them, where there is room.
    """
    capacity, count, found = len(heap_score), 0, 0
    if capacity == 0:
        return count
    reaches, keys = np.zeros(_BLOCK, np.uint8), np.empty(2 * _BLOCK, np.uint32)
    eights = reaches.view(np.uint64)
    # Of rows that may enter, from many blocks.
    row, value, key = np.empty(2 * _BLOCK, np.int64), np.empty(2 * _BLOCK, scores.dtype), np.empty(2 * _BLOCK, np.int64)
    for start in range(0, len(scores), _BLOCK):
        # Slices, for the compiler makes no vector instructions of a loop over part of an array.
        block, worst = scores[start : start + _BLOCK], heap_score[0] if count == capacity else low
        size, hits = len(block), 0
        for r in range(size):  # no branch either; NaN counts as a hit
            hit = (not block[r] < worst) & (not block[r] > high)
            reaches[r] = hit
            hits += hit
        if hits > size // 32 and count == capacity:  # among many that tie, few have a key that gets them in
            first, worst_key = first_prompt + start, np.uint32(heap_key[0])
            for n in range((first + size + 3) // 4 - first // 4):  # keys of neighbours come four at once
                keys[4 * n], keys[4 * n + 1], keys[4 * n + 2], keys[4 * n + 3] = four_tie_keys(
                    seed, step, first // 4 + n
                )
            own, hits = keys[first % 4 : first % 4 + size], 0
            for r in range(size):
                hit = (reaches[r] != 0) & ((block[r] != worst) | (own[r] <= worst_key))
                reaches[r] = hit
                hits += hit
        if hits > 0:
            reaches[size:] = 0
            for eight in range(len(eights)):
                if eights[eight] != 0:
                    for r in range(8 * eight, min(8 * eight + 8, size)):
                        value[found], row[found] = block[r], start + r
                        if reaches[r] != 0 and (allowed is None or allowed[start + r]):
                            found += 1
        if found >= _BLOCK or (found > 0 and start + _BLOCK >= len(scores)):
            for n in range(found):  # together, again as vector instructions
                key[n] = tie_key(seed, step, first_prompt + row[n])
            count = _admit(value[:found], key, row, heap_score, heap_key, heap_row, count)
            found = 0
    return count


@compiled
def _admit(scores, keys, rows, heap_score, heap_key, heap_row, count):  # type: ignore[no-untyped-def]
    """Let those rows into a heap of `count` rows that are better than its worst; returns how many there are then."""
    for n in range(len(scores)):
        score, key, row = scores[n], keys[n], rows[n]
        if count < len(heap_score):
            hole = _rise(score, key, row, heap_score, heap_key, heap_row, count)
            count += 1
        elif before(score, key, row, heap_score[0], heap_key[0], heap_row[0]):
            hole = _sink(score, key, row, heap_score, heap_key, heap_row)
        else:
            continue
        heap_score[hole], heap_key[hole], heap_row[hole] = score, key, row
    return count


@compiled
def _rise(score, key, row, heap_score, heap_key, heap_row, hole):  # type: ignore[no-untyped-def]
    """Where a row goes that is added as leaf number `hole`; the rows on its way move down."""
    while hole > 0:
        parent = (hole - 1) // 2
        if not before(heap_score[parent], heap_key[parent], heap_row[parent], score, key, row):
            break
        _move(heap_score, heap_key, heap_row, parent, hole)
        hole = parent
    return hole


@compiled
def _sink(score, key, row, heap_score, heap_key, heap_row):  # type: ignore[no-untyped-def]
    """Where a row goes that replaces the root; the rows on its way move up."""
    hole = 0
    while 2 * hole + 1 < len(heap_score):
        child, right = 2 * hole + 1, 2 * hole + 2
        if right < len(heap_score) and before(
            *(heap_score[child], heap_key[child], heap_row[child]),
            *(heap_score[right], heap_key[right], heap_row[right]),
        ):
            child = right  # the worse of the two
        if not before(score, key, row, heap_score[child], heap_key[child], heap_row[child]):
            break
        _move(heap_score, heap_key, heap_row, child, hole)
        hole = child
    return hole


@inlined
def _move(heap_score, heap_key, heap_row, source, target):  # type: ignore[no-untyped-def]
    heap_score[target], heap_key[target], heap_row[target] = heap_score[source], heap_key[source], heap_row[source]
