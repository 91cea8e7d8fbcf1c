"""Compiled loops that prepare vectors: into fixed point, and into short versions of them."""

from __future__ import annotations

import numpy as np

from bayes_prompt.kernels.threads import compiled


@compiled
def fix_directions(rows, length, values, squares):  # type: ignore[no-untyped-def]
    """Scale each of `rows` (M, D) to `length` and round it; returns the first row that is not finite, or -1."""
    for i in range(len(rows)):
        row, largest = rows[i], 0.0
        for x in row:
            if not np.isfinite(x):
                return i
            largest = max(largest, abs(np.float64(x)))  # squares would overflow, or vanish
        largest, square, whole = 1.0 if largest == 0 else largest, 0.0, 0
        for x in row:
            square += (x / largest) * (x / largest)
        scale = length / np.sqrt(square) if square > 0 else 0.0
        for d in range(len(row)):
            fixed = np.int64(np.rint(np.float64(row[d]) / largest * scale))
            values[i, d] = fixed
            whole += fixed * fixed
        squares[i] = whole
    return -1


@compiled
def extremes(rows, least, most):  # type: ignore[no-untyped-def]
    """Widen least, most (D,) to hold all rows; returns the first row that is not finite, or -1."""
    for i in range(len(rows)):
        for d in range(len(least)):
            x = np.float64(rows[i, d])
            if not np.isfinite(x):
                return i
            least[d], most[d] = min(least[d], x), max(most[d], x)
    return -1


@compiled
def longest(rows, centre):  # type: ignore[no-untyped-def]
    """The largest squared distance of a row from the centre."""
    result = 0.0
    for i in range(len(rows)):
        square = 0.0
        for d in range(len(centre)):
            square += (rows[i, d] - centre[d]) ** 2
        result = max(result, square)
    return result


@compiled
def fix_positions(rows, centre, scale, values, squares):  # type: ignore[no-untyped-def]
    """Shift and scale all rows alike, and round them."""
    for i in range(len(rows)):
        whole = 0
        for d in range(len(centre)):
            fixed = np.int64(np.rint((rows[i, d] - centre[d]) * scale))
            values[i, d] = fixed
            whole += fixed * fixed
        squares[i] = whole


@compiled
def shorten(values, across, short, rest):  # type: ignore[no-untyped-def]
    """Write y = float32(P a) and |a - P^T y| of each row a; returns the largest |P (a - P^T y)|.

    across: P^T, (D, K).
    """
    full, width = across.shape
    sums, left, largest = np.empty(width), np.empty(full), 0.0
    for i in range(len(values)):
        sums[:] = 0.0
        for d in range(full):
            for k in range(width):
                sums[k] += values[i, d] * across[d, k]
        for k in range(width):
            short[k, i] = sums[k]
            sums[k] = np.float64(short[k, i])
        square = 0.0
        for d in range(full):
            left[d] = values[i, d]
            for k in range(width):
                left[d] -= sums[k] * across[d, k]
            square += left[d] * left[d]
        rest[i] = np.sqrt(square) * (1 + 2.0**-20)  # rounded to float32, not below
        sums[:] = 0.0
        for d in range(full):
            for k in range(width):
                sums[k] += left[d] * across[d, k]
        square = 0.0
        for k in range(width):
            square += sums[k] * sums[k]
        largest = max(largest, square)
    return np.sqrt(largest)
