"""A batch of useful prompts that lie far from one another, picked greedily; `reference` is the definition.

With utilities u, distances d, a weight w, earlier rows H and a whole batch of B rows, two objectives:

- "sum", of a set: F(S) = sum of u_i + w * (sum of d(i, j) over ordered pairs of S / (B - 1) + sum of mean of d(i, H)).
  A row's share of the dispersion is its mean distance to the others of its batch, so w means the same for every B.
  What i adds to S is u_i + w * (2 / (B - 1) * sum of d(i, S) + mean of d(i, H)).
- "min", of a sequence: each row adds u_i + w * (least d(i, rows before it) + least d(i, H)). With w large this is
  farthest-first traversal; the sum of the least distances is never below the length of the minimum spanning tree.

A greedy pick takes the row that adds most, again and again. Sources: GPS, arXiv 2602.01970 (utility + weight *
(dispersion + distance to earlier batches), greedily); Borodin, Lee and Ye, PODS 2012 (greedy max-sum diversification);
Gonzalez, TCS 38, 1985 (farthest first).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

METRICS = ("cosine", "euclidean")
VARIANTS = ("sum", "min")
LENGTH = 2**14
"""The length of the longest vector in fixed point."""
DIMENSIONS = 2**16
"""The largest D for which int32 holds every squared distance, (2 * (LENGTH + sqrt(D) / 2))**2."""


@dataclass(frozen=True)
class Vectors:
    """A pool in fixed point, so that every product of two vectors is an exact integer, in whatever order it is added.

    values: (N, D) int16. squares: (N,) int32, the squared lengths. root: whether a distance is the root of the
    squared distance of `values` (Euclidean) or that itself (cosine). unit: what one of these is worth as a distance.
    """

    values: Tensor
    squares: Tensor
    root: bool
    unit: float


@dataclass(frozen=True)
class Terms:
    """What is asked of a pick beside the utilities. rows: int64 on the CPU.

    whole: B, the size of the batch when it is full. history: (M,) rows of earlier batches, which may occur twice.
    chosen: (C,) rows that are in the batch already.
    """

    weight: float
    variant: str
    whole: int
    history: Tensor
    chosen: Tensor

    def factors(self, unit: float) -> tuple[float, float]:
        """What the sum or least of the distances to the batch, and of those to the history, are multiplied by."""
        if self.variant == "min":
            return unit, unit
        return 2 * unit / max(1, self.whole - 1), unit / max(1, len(self.history))
