"""A search of all scores on the CPU: a bounded heap for each range of rows, which few rows are shown.

A sample of the scores tells what the best are likely to reach. Where it guessed too high, there is another pass: one as
a rule, three at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np

from bayes_prompt.kernels.shortlist import ROOM_PER_WANTED
from bayes_prompt.kernels.threads import over_rows
from bayes_prompt.kernels.top_b.cpu_heap import collect

_MIN_ROWS = 1 << 17  # a row takes a nanosecond or two
_SAMPLED = 16  # rows looked at for a bound, for each one wanted
_LEAST_STRIDE = 4  # of these rows: where they lie nearer to one another all are looked at
_DEVIATIONS = 2  # of the number of sampled rows among the best: a bound guessed too high, one in 50, costs a pass


@dataclass(frozen=True)
class Plateau:
    """A score that, going by a sample, more rows share than a shortlist has room for."""

    score: np.floating
    tied: np.ndarray  # of the sample, every `stride`-th row: whether it has this score, and may be picked
    stride: int

    @property
    def above(self) -> np.floating:
        """The next score that is no longer shared."""
        with np.errstate(under="ignore", over="ignore"):
            return np.nextafter(self.score, self.score.dtype.type(np.inf))

    def row(self, picked: np.ndarray) -> int | None:
        """A row with this score that was not picked."""
        rows = self.stride * np.flatnonzero(self.tied)
        rows = rows[~np.isin(rows, picked)]
        return int(rows[0]) if len(rows) else None


@dataclass(frozen=True)
class Found:
    """What a search came to.

    rows: (M,) int64 in any order. The best `batch` are among them, and the best `wanted` unless the search ended at a
    `plateau`. everyone: fewer than `wanted` may be picked, and these are all of them.
    """

    rows: np.ndarray
    everyone: bool
    plateau: Plateau | None


def search(
    value: np.ndarray,
    mask: np.ndarray | None,
    batch: int,
    wanted: int,
    seed: int,
    step: int,
    first_prompt: int,
) -> Found:
    """Look for the best rows of scores `value` (N,) among those of `mask` (N,): at least `batch`, better `wanted`."""

    def best(size: int, low: np.floating, high: np.floating) -> np.ndarray:
        """So many rows, or as many as there are, that score from low to high; more than one range gives more."""

        def part(start: int, stop: int) -> np.ndarray:
            heap = min(size, stop - start)
            score, key, row = np.empty(heap, value.dtype), np.empty(heap, np.int64), np.empty(heap, np.int64)
            allowed = None if mask is None else mask[start:stop]
            count = collect(value[start:stop], allowed, low, high, seed, step, first_prompt + start, score, key, row)
            return row[:count] + start

        # Every range holds its own best, so that what remains does not depend on the ranges.
        rows = np.concatenate(over_rows(len(value), part, min_rows=_MIN_ROWS))
        return rows[value[rows] >= low] if low > least else rows  # NaN ranks last, and is shown to the heap as well

    least, most = value.dtype.type(-np.inf), value.dtype.type(np.inf)
    guess, plateau = _guess(value, mask, wanted)
    if plateau is not None:
        rows = best(wanted, plateau.above, most)
        if len(rows) < batch:  # the last one is on the plateau, and nobody beyond it is worth noting
            rows = np.concatenate((rows, best(batch - len(rows), plateau.score, plateau.score)))
        if len(rows) >= batch:
            return Found(rows, False, plateau)
    elif guess > least:
        rows = best(wanted, guess, most)
        if len(rows) >= wanted:
            return Found(rows, False, None)
    rows = best(wanted, least, most)
    return Found(rows, len(rows) < wanted, None)


def _guess(value: np.ndarray, mask: np.ndarray | None, wanted: int) -> tuple[np.floating, Plateau | None]:
    """A score that as many rows as are wanted are likely to reach, but not many more, and the plateau if it is one."""
    stride = (len(value) // max(1, _SAMPLED * wanted)) | 1  # odd, for pools are often put in rounds of 2^n
    if stride < _LEAST_STRIDE:
        stride = 1
    sample, place, least = value[::stride], wanted, value.dtype.type(-np.inf)
    if stride > 1:
        expected = wanted / stride  # of those wanted are in the sample, on average
        place = ceil(expected + _DEVIATIONS * sqrt(expected) + 1)
    if not 0 < place <= len(sample):
        return least, None
    counts = sample > least  # NaN does not
    sample = np.where(counts if mask is None else counts & mask[::stride], sample, least)
    guess = np.partition(sample, -place)[-place]
    tied = sample == guess
    crowded = least < guess < np.inf and np.count_nonzero(tied) > ROOM_PER_WANTED * place
    return guess, Plateau(guess, tied, stride) if crowded else None


def cut(score: np.ndarray, place: int) -> np.floating:
    """The score of the place-th best row, counted from 1; NaN ranks last."""
    return np.partition(np.where(np.isnan(score), -np.inf, score), -place)[-place]
