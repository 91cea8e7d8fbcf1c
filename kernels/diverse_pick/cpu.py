"""The greedy pick on the CPU: bounds of what all rows add, exact gains only of the rows whose bounds reach the best.

A row that no bound of its own keeps out is computed exactly, so that the pick is that of the reference to the last bit.
Sums: the distances to the rows chosen since a row was last computed are bounded by means of short vectors
(`cpu_projection.py`). Least distances only fall: the last known one is a bound.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from bayes_prompt.kernels.diverse_pick import Terms, Vectors
from bayes_prompt.kernels.diverse_pick import cpu_loops as loops
from bayes_prompt.kernels.diverse_pick.cpu_projection import Projection, project
from bayes_prompt.kernels.threads import over_rows
from bayes_prompt.kernels.top_b.cpu_heap import tie_keys

WIDTH = 16  # of the short vectors: reading them for all rows is most of what a step costs
_AT_ONCE = 32  # rows computed to find what the best is likely to add
_MIN_ROWS = 256  # a row takes a tenth of a microsecond, or many


def pick(
    vectors: Vectors,
    utility: Tensor,
    batch: int,
    terms: Terms,
    seed: int,
    step: int,
    first_prompt: int,
    projection: Projection | None = None,
) -> tuple[Tensor, Tensor, int]:
    """See `reference.pick`; projection: `project(vectors, WIDTH)`, made here for sums where it is not handed over."""
    return go_on(begin(vectors, terms, projection), utility, batch, terms, seed, step, first_prompt)


def begin(vectors: Vectors, terms: Terms, projection: Projection | None = None) -> Search:
    """What is known of all rows before more are picked; it depends on the history and the rows chosen alone."""
    if terms.variant == "min":
        return _Least(vectors, terms)
    return _Sums(vectors, terms, project(vectors, WIDTH) if projection is None else projection)


def go_on(
    search: Search, utility: Tensor, batch: int, terms: Terms, seed: int, step: int, first_prompt: int
) -> tuple[Tensor, Tensor, int]:
    """`pick` with a search that was begun with this history, and has come as far as the rows chosen, in their order."""
    search.ask(utility, batch, terms)
    rows, gains = np.full(batch, -1, np.int64), np.full(batch, -np.inf)
    for place in range(batch):
        tied, gain = search.best()
        if not len(tied):
            break
        row = tied[np.lexsort((tied, tie_keys(tied, seed, step, first_prompt)))[0]]
        rows[place], gains[place] = row, gain
        search.add(int(row))
    products, search.products = search.products, 0
    return torch.from_numpy(rows), torch.from_numpy(gains), products


class Search(ABC):
    """What is known about each row: `total` of its distances to the batch up to row number `upto`, and `past`.

    Utilities and weights are those that were asked for last.
    """

    utility: np.ndarray
    weight: float
    factor: float
    past_factor: float

    def __init__(self, vectors: Vectors, terms: Terms) -> None:
        self.values, self.squares, self.root = vectors.values.numpy(), vectors.squares.numpy(), vectors.root
        self.unit, rows = vectors.unit, len(self.values)
        self.history, self.count, self.products = terms.history.numpy().copy(), len(terms.chosen), 0
        self.chosen = already = terms.chosen.numpy()
        self.bounds = np.empty(rows)
        blocks = -(-rows // loops.BLOCK)
        self.top, self.where = np.empty(blocks), np.empty(blocks, np.int64)
        self.upto, self.seen = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        self.past, self.total = self._squares_to(self.history), self._squares_to(already)

    def ask(self, utility: Tensor, batch: int, terms: Terms) -> None:
        """Make ready to add `batch` rows more."""
        self.weight = float(terms.weight)
        self.factor, self.past_factor = terms.factors(self.unit)
        self.utility = utility.numpy().copy()
        self.utility[self.chosen[: self.count]] = -np.inf
        self.chosen = np.concatenate([self.chosen[: self.count], np.full(batch, -1)])

    def best(self) -> tuple[np.ndarray, float]:
        """The rows that add most, and how much: none, and -inf, where no row is left."""
        over_rows(len(self.top), self._bound, min_rows=16)
        order, best = np.argsort(-self.top, kind="stable"), -np.inf
        for start in range(0, len(order), _AT_ONCE):  # the first row of each block, until no other block can matter
            blocks = order[start : start + _AT_ONCE]
            blocks = blocks[(self.top[blocks] >= best) & (self.top[blocks] > -np.inf)]
            if not len(blocks):
                break
            best = max(best, float(self._settle(self.where[blocks], best).max()))
        if best == -np.inf:
            return np.empty(0, np.int64), best
        rows = loops.reaching(self.bounds, self.top, best)
        gains = self._settle(rows, best)
        best = float(gains.max())
        return rows[gains == best], best

    def add(self, row: int) -> None:
        """Put a row into the batch."""
        self.chosen[self.count] = row
        self.count += 1
        self.utility[row] = -np.inf

    def _squares_to(self, rows: np.ndarray) -> np.ndarray:
        """The sums of the squared distances of all rows to these, (N,) float64, exact."""
        out = np.zeros(len(self.values))
        if len(rows):
            vector = self.values[rows].sum(0, dtype=np.int64)
            totals, count = int(self.squares[rows].sum(dtype=np.int64)), len(rows)

            def part(start: int, stop: int) -> None:
                own = slice(start, stop)
                loops.sum_squared_distances(self.values[own], self.squares[own], vector, totals, count, out[own])

            over_rows(len(out), part)
            self.products += len(out)
        return out

    def _settle(self, rows: np.ndarray, best: float) -> np.ndarray:
        """What rows add; -inf where it is less than `best` and the rest of the way was spared."""
        gains = np.empty(len(rows))

        def part(start: int, stop: int) -> int:
            return self._compute(rows[start:stop], best, gains[start:stop])

        self.products += sum(over_rows(len(rows), part, pieces_a_thread=4, min_rows=_MIN_ROWS))
        return gains

    @abstractmethod
    def _bound(self, start: int, stop: int) -> None:
        """Bound what rows in [start, stop) can still add."""

    @abstractmethod
    def _compute(self, rows: np.ndarray, best: float, gains: np.ndarray) -> int:
        """Write what rows (M,) add into gains (M,); returns how many products that took."""


class _Sums(Search):
    """`since` estimates the squared distances to the batch from number `upto` on; far, pad: by how much it may err."""

    def __init__(self, vectors: Vectors, terms: Terms, projection: Projection) -> None:
        super().__init__(vectors, terms)
        self.projection, size, width = projection, self.count, self.values.shape[1]
        already = self.chosen
        self.vector = self.values[already].sum(0, dtype=np.int64)
        self.totals = int(self.squares[already].sum(dtype=np.int64))
        self.since = np.zeros(len(self.values))
        self.apart = np.zeros((size + 1, width))  # what the rows since each number add up to, beside the directions
        self.far, self.pad = np.zeros(size + 1), np.zeros(size + 1)
        self.new, self.news, self.short = 0, 0.0, np.zeros(len(projection.directions))
        if self.root:  # the mean of roots is not above the root of the mean
            self.past = np.sqrt(len(self.history) * self.past) * self._rounding(len(self.history))
            self.since, self.total = self.total, self.since
        else:
            self.upto[:], self.seen[:] = self.count, len(self.history)

    def ask(self, utility: Tensor, batch: int, terms: Terms) -> None:
        super().ask(utility, batch, terms)
        more = self.count + batch + 1 - len(self.far)
        self.apart = np.pad(self.apart, ((0, more), (0, 0)))
        self.far, self.pad = np.pad(self.far, (0, more)), np.pad(self.pad, (0, more))

    @staticmethod
    def _rounding(terms: int) -> float:
        """A factor that makes up for the rounding of so many roots and sums, each by 2**-53 at most, on both sides."""
        return 1 + (terms + 8) * 2.0**-51

    def add(self, row: int) -> None:
        super().add(row)
        values = self.values[row].astype(np.float64)
        self.short, rest = self.projection.split(values)
        self.new, self.news = 1, float(self.squares[row])
        self.vector += self.values[row]
        self.totals += int(self.squares[row])
        earlier = slice(0, self.count)
        self.apart[earlier] += rest
        self.far[earlier] = 2 * np.linalg.norm(self.apart[earlier], axis=1) * (1 + 2.0**-30)
        # Sums of D + K products below 2**28 and of `count` estimates below 2**31 in float64: 1 is more than they err.
        self.pad[earlier] += 1 + 2 * self.projection.leak * np.linalg.norm(self.short) * (1 + 2.0**-30)

    def best(self) -> tuple[np.ndarray, float]:
        found = super().best()
        self.new, self.news = 0, 0.0
        return found

    def _bound(self, start: int, stop: int) -> None:
        short = self.short if self.new else self.short[:0]
        loops.bound_sums(
            *(start, stop, self.root, self.projection.short, self.projection.rest, self.squares, short, self.news),
            *(self.new, self.total, self.since, self.upto, self.count, self.far, self.pad),
            *(self._rounding(self.count), self.utility, self.weight, self.factor, self.past_factor),
            *(self.past, self.bounds, self.top, self.where),
        )

    def _compute(self, rows: np.ndarray, best: float, gains: np.ndarray) -> int:
        return loops.settle_sums(
            *(self.root, rows, self.values, self.squares, self.vector, self.totals, self.count, self.chosen),
            *(self.history, self.seen, self.total, self.since, self.upto, self.utility, self.weight, self.factor),
            *(self.past_factor, self.past, gains),
        )


class _Least(Search):
    """`total` and `past` are squared: least distances so far, at first mean ones, which are not below the least."""

    def __init__(self, vectors: Vectors, terms: Terms) -> None:
        super().__init__(vectors, terms)
        self.past /= max(1, len(self.history))
        self.total /= max(1, self.count)

    def add(self, row: int) -> None:
        if self.count == 0:
            self.total[:] = 2.0**31  # above every squared distance
        super().add(row)

    def _bound(self, start: int, stop: int) -> None:
        loops.bound_least(
            *(start, stop, self.root, self.total, self.utility, self.weight, self.factor, self.past_factor),
            *(self.past, self.bounds, self.top, self.where),
        )

    def _compute(self, rows: np.ndarray, best: float, gains: np.ndarray) -> int:
        return loops.settle_least(
            *(self.root, rows, self.values, self.squares, self.count, self.chosen, self.history, self.seen),
            *(self.total, self.upto, best, self.utility, self.weight, self.factor, self.past_factor, self.past, gains),
        )
