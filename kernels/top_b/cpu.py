"""The exact pick on the CPU: one pass over the scores, a bounded heap for each range of rows, one small sort at the
end.

A range is read in blocks. A block without a score that reaches the heap's worst, or a bound that the best of a sample
give, costs one vectorised comparison a row; keys are computed only for rows that may enter the heap.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bayes_prompt.kernels import rng
from bayes_prompt.kernels.rng_cpu import four_tie_keys, tie_key
from bayes_prompt.kernels.shortlist import Shortlist
from bayes_prompt.kernels.threads import compiled, inlined, over_rows
from bayes_prompt.kernels.top_b import check_arguments

_BLOCK = 256
_MIN_ROWS = 1 << 17  # a row takes a nanosecond or two
_SAMPLED = 16  # rows looked at for the bound, for each one wanted
_LEAST_STRIDE, _STRIDE = 16, 256  # of these rows: nearer to one another, looking costs more than it spares


def top_b(
    scores: Tensor,
    allowed: Tensor | None,
    batch: int,
    seed: int | Tensor,
    step: int | Tensor,
    first_prompt: int,
    shortlist: Shortlist | None = None,
) -> Tensor:
    """See `reference.top_b`."""
    _, _, first_prompt = check_arguments(scores, allowed, batch, seed, step, first_prompt, shortlist)
    numbers = (*rng.known(seed, step), first_prompt)
    value = scores.detach().numpy()
    mask = None if allowed is None else allowed.numpy()
    rows, asked = None if shortlist is None else _noted(shortlist, mask, batch), 0
    if rows is None:
        asked = batch if shortlist is None else max(batch, shortlist.wanted)
        rows = _best(value, mask, asked, *numbers)
    if shortlist is not None:
        _carry_over(shortlist, rows, value[rows], batch, asked)
    score = value[rows]
    if len(rows) > batch > 0:  # whoever scores less than the last one is out, whatever the keys
        inside = ~(score < _cut(score, batch))
        rows, score = rows[inside], score[inside]
    missing = np.isnan(score)
    key = _keys(rows, *numbers)
    order = np.lexsort((rows, key, -np.where(missing, 0, score), missing))[:batch]
    picked = torch.full((batch,), -1, dtype=torch.int64)
    picked[: len(order)] = torch.from_numpy(rows[order])
    return picked


def _noted(shortlist: Shortlist, allowed: np.ndarray | None, batch: int) -> np.ndarray | None:
    """The noted rows that may be picked, if the best `batch` are sure to be among them."""
    count = int(shortlist.count)
    if count > shortlist.rows.numel():
        return None
    rows = shortlist.rows.numpy()[:count]
    rows = rows.copy() if allowed is None else rows[allowed[rows]]
    return rows if len(rows) >= batch else None


def _carry_over(shortlist: Shortlist, rows: np.ndarray, score: np.ndarray, batch: int, asked: int) -> None:
    """Move the threshold to where it should note `wanted` rows of the next scores, if these, the best, are any guide.

    A score that more rows share than there is room for, such as that of all prompts never seen, is no threshold: either
    it is left out, or, where the batch itself ends among those, nothing is worth noting. asked: rows that were searched
    for among all; 0 where those noted were enough.
    """
    if not len(rows) or len(rows) < asked:
        shortlist.threshold.fill_(-np.inf)
        return
    level = float(_cut(score, min(len(rows), max(1, shortlist.wanted))))
    overflowed = int(shortlist.count) > shortlist.rows.numel() and bool(shortlist.threshold.isfinite())
    if overflowed and (score == level).sum() > 1:
        above = score[score > level]
        level = float(above.min()) if len(above) >= max(batch, 1) else np.inf
    shortlist.threshold.fill_(level)
    if (score == level).any():
        shortlist.guide.fill_(int(rows[score == level][-1]))


def _cut(score: np.ndarray, place: int) -> np.floating:
    """The score of the place-th best row, counted from 1; NaN ranks last."""
    return np.partition(np.where(np.isnan(score), -np.inf, score), -place)[-place]


def _best(
    value: np.ndarray, mask: np.ndarray | None, batch: int, seed: int, step: int, first_prompt: int
) -> np.ndarray:
    """The rows that may be among the best `batch`, by one pass over all scores."""
    stride = min(_STRIDE, len(value) // max(1, _SAMPLED * batch))
    bound = value.dtype.type(-np.inf)
    if stride >= _LEAST_STRIDE:
        bound = _bound(value[::stride], None if mask is None else mask[::stride], batch)

    def best(start: int, stop: int) -> np.ndarray:
        part = None if mask is None else mask[start:stop]
        size = min(batch, stop - start)
        score, key, row = np.empty(size, value.dtype), np.empty(size, np.int64), np.empty(size, np.int64)
        count = _collect(value[start:stop], part, bound, seed, step, first_prompt + start, score, key, row)
        return row[:count] + start

    # Every range holds its own `batch` best, so that what remains does not depend on the ranges.
    return np.concatenate(over_rows(len(value), best, min_rows=_MIN_ROWS))


def _bound(sample: np.ndarray, mask: np.ndarray | None, batch: int) -> np.floating:
    """A score that at least `batch` rows reach: as many of the sampled ones do. It spares the heap what comes before.

    In a pool whose scores ascend, every row would enter the heap otherwise.
    """
    sample = sample.copy() if mask is None else sample[mask]
    return _cut(sample, batch) if len(sample) >= batch > 0 else sample.dtype.type(-np.inf)


@compiled
def _keys(rows, seed, step, first_prompt):  # type: ignore[no-untyped-def]
    keys = np.empty(len(rows), np.int64)
    for n in range(len(rows)):
        keys[n] = tie_key(seed, step, first_prompt + rows[n])
    return keys


@inlined
def _before(score, key, row, other_score, other_key, other_row):  # type: ignore[no-untyped-def]
    """Whether a row ranks before another one."""
    if score > other_score:
        return True
    if score < other_score:
        return False
    if np.isnan(score) != np.isnan(other_score):
        return np.isnan(other_score)
    return key < other_key or (key == other_key and row < other_row)


@compiled
def _collect(  # type: ignore[no-untyped-def]
    scores, allowed, bound, seed, step, first_prompt, heap_score, heap_key, heap_row
):  # fmt: skip
    """Fill the heap, its worst row at the root, with the best allowed rows that reach the bound; returns how many."""
    capacity, count, found = len(heap_score), 0, 0
    if capacity == 0:
        return count
    reaches = np.zeros(_BLOCK, np.uint8)
    eights = reaches.view(np.uint64)
    row, value = np.empty(2 * _BLOCK, np.int64), np.empty(2 * _BLOCK, scores.dtype)  # that may enter, from many blocks
    key = np.empty(2 * _BLOCK, np.int64)
    for start in range(0, len(scores), _BLOCK):
        # Slices, for the compiler makes no vector instructions of a loop over part of an array.
        block, worst = scores[start : start + _BLOCK], heap_score[0] if count == capacity else bound
        size, hits = len(block), 0
        for r in range(size):  # no branch either; NaN counts as a hit
            hit = not block[r] < worst
            reaches[r] = hit
            hits += hit
        if hits > size // 2:  # all of them: keys of neighbours come four at once
            first = first_prompt + start
            for n in range((first + size + 3) // 4 - first // 4):
                key[4 * n], key[4 * n + 1], key[4 * n + 2], key[4 * n + 3] = four_tie_keys(seed, step, first // 4 + n)
            count = _admit(block, key[first % 4 :], start, row[:0], allowed, heap_score, heap_key, heap_row, count)
        elif hits > 0:
            reaches[size:] = 0
            for eight in range(len(eights)):
                if eights[eight] != 0:
                    for r in range(8 * eight, min(8 * eight + 8, size)):
                        value[found], row[found] = block[r], start + r
                        found += int(reaches[r])  # not eight bits, which wrap where nothing is compiled
        if found >= _BLOCK or (found > 0 and start + _BLOCK >= len(scores)):
            for n in range(found):  # together, again as vector instructions
                key[n] = tie_key(seed, step, first_prompt + row[n])
            count = _admit(value[:found], key, 0, row, allowed, heap_score, heap_key, heap_row, count)
            found = 0
    return count


@compiled
def _admit(scores, keys, first, rows, allowed, heap_score, heap_key, heap_row, count):  # type: ignore[no-untyped-def]
    """Let those rows into a heap of `count` rows that are better than its worst; returns how many there are then.

    rows: the row of each score; of no length where they are `first` and those that follow it.
    """
    capacity, enters = len(heap_score), np.ones(len(scores), np.bool_)
    if count == capacity:  # among many that tie, few have a key that gets them in
        worst, worst_key, better = heap_score[0], heap_key[0], 0
        for n in range(len(scores)):
            enters[n] = (not scores[n] <= worst) | ((scores[n] == worst) & (keys[n] <= worst_key))
            better += enters[n]
        if better == 0:
            return count
    for n in range(len(scores)):
        if not enters[n]:
            continue
        score, key, row = scores[n], keys[n], rows[n] if len(rows) > 0 else first + n
        full = count == capacity
        if full and not _before(score, key, row, heap_score[0], heap_key[0], heap_row[0]):
            continue
        if allowed is not None and not allowed[row]:
            continue
        if full:
            hole = _sink(score, key, row, heap_score, heap_key, heap_row)
        else:
            hole = _rise(score, key, row, heap_score, heap_key, heap_row, count)
            count += 1
        heap_score[hole], heap_key[hole], heap_row[hole] = score, key, row
    return count


@compiled
def _rise(score, key, row, heap_score, heap_key, heap_row, hole):  # type: ignore[no-untyped-def]
    """Where a row goes that is added as leaf number `hole`; the rows on its way move down."""
    while hole > 0:
        parent = (hole - 1) // 2
        if not _before(heap_score[parent], heap_key[parent], heap_row[parent], score, key, row):
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
        if right < len(heap_score) and _before(
            *(heap_score[child], heap_key[child], heap_row[child]),
            *(heap_score[right], heap_key[right], heap_row[right]),
        ):
            child = right  # the worse of the two
        if not _before(score, key, row, heap_score[child], heap_key[child], heap_row[child]):
            break
        _move(heap_score, heap_key, heap_row, child, hole)
        hole = child
    return hole


@inlined
def _move(heap_score, heap_key, heap_row, source, target):  # type: ignore[no-untyped-def]
    heap_score[target], heap_key[target], heap_row[target] = heap_score[source], heap_key[source], heap_row[source]
