"""Embeddings in fixed point."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from bayes_prompt.kernels.diverse_pick import LENGTH, Vectors

_NUMBERS = 1 << 22  # that are converted at a time


def fixed_point(embeddings: Tensor | np.ndarray, metric: str, compiled: bool = False) -> Vectors:
    """Embeddings (N, D) of any floating type, also a memory map, as `Vectors` on their device.

    cosine: every vector is scaled to LENGTH. The distance is half the squared distance of unit vectors, which is
    1 - cosine, in [0, 2]; a zero vector lies 1/2 from all others. euclidean: the pool is centred and scaled so that its
    longest vector has LENGTH; the unit is the root of the mean squared distance of two rows of the pool, so that a
    weight means the same for embeddings of any scale. Rounding moves a vector by sqrt(D / 12) / LENGTH of that length,
    about 0.0003 for D = 256. compiled: by compiled loops, which need numba and the CPU.

    Raises ValueError naming the first row that holds NaN or an infinity.
    """
    rows, width = embeddings.shape
    device = embeddings.device if isinstance(embeddings, Tensor) else torch.device("cpu")
    if compiled:
        return _compiled(embeddings, metric)
    values = torch.empty((rows, width), dtype=torch.int16, device=device)
    squares = torch.empty(rows, dtype=torch.int32, device=device)
    # The middle of the extremes, unlike a mean, does not depend on the order of the rows to the last bit.
    centre, length = _frame(embeddings) if metric == "euclidean" else (torch.zeros(width, device=device), None)
    for start, part in _parts(embeddings):
        if length is None:
            part = part / _or_one(part.abs().amax(1, keepdim=True))  # squares would overflow, or vanish
            part = part / _or_one(part.square().sum(1, keepdim=True).sqrt())
        else:
            part = (part - centre) / length
        fixed = (part * LENGTH).round()
        values[start : start + len(part)] = fixed.to(torch.int16)
        squares[start : start + len(part)] = fixed.square().sum(1).to(torch.int32)
    return _with_unit(values, squares, metric)


def _with_unit(values: Tensor, squares: Tensor, metric: str) -> Vectors:
    if metric == "cosine":
        return Vectors(values, squares, False, 0.5 / LENGTH**2)
    return Vectors(values, squares, True, 1 / (_typical_distance(values, squares) or 1))


def _compiled(embeddings: Tensor | np.ndarray, metric: str) -> Vectors:
    """The same by compiled loops, on the CPU."""
    from bayes_prompt.kernels.diverse_pick import cpu_vectors as loops
    from bayes_prompt.kernels.threads import over_rows

    rows, width = embeddings.shape
    values, squares = np.empty((rows, width), np.int16), np.empty(rows, np.int32)
    height = max(1, _NUMBERS // width)

    def part(block: int) -> tuple[slice, np.ndarray]:
        own = slice(block * height, min((block + 1) * height, rows))
        piece = embeddings[own]
        if isinstance(piece, Tensor):
            piece = (piece if piece.dtype in (torch.float32, torch.float64) else piece.float()).numpy()
        elif piece.dtype not in (np.float32, np.float64):
            piece = piece.astype(np.float64)
        return own, np.ascontiguousarray(piece)

    def turn(start: int, stop: int) -> None:
        for block in range(start, stop):
            own, piece = part(block)
            bad = loops.fix_directions(piece, float(LENGTH), values[own], squares[own])
            if bad >= 0:
                _refuse(own.start + bad)

    def widen(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        least, most = np.full(width, np.inf), np.full(width, -np.inf)
        for block in range(start, stop):
            own, piece = part(block)
            bad = loops.extremes(piece, least, most)
            if bad >= 0:
                _refuse(own.start + bad)
        return least, most

    blocks = -(-rows // height)
    if metric == "cosine":
        over_rows(blocks, turn, min_rows=1)
    else:
        ends = over_rows(blocks, widen, min_rows=1)
        centre = np.min([end[0] for end in ends], 0) / 2 + np.max([end[1] for end in ends], 0) / 2

        def reach(start: int, stop: int) -> float:
            return max(loops.longest(part(block)[1], centre) for block in range(start, stop))

        length = max(over_rows(blocks, reach, min_rows=1)) ** 0.5
        _refuse_vast(length)

        def place(start: int, stop: int) -> None:
            for block in range(start, stop):
                own, piece = part(block)
                loops.fix_positions(piece, centre, LENGTH / (length or 1.0), values[own], squares[own])

        over_rows(blocks, place, min_rows=1)
    return _with_unit(torch.from_numpy(values), torch.from_numpy(squares), metric)


def _refuse(row: int) -> None:
    raise ValueError(f"embeddings[{row}] holds NaN or an infinite number; every number must be finite")


def _refuse_vast(length: float) -> None:
    if not length < float("inf"):
        raise ValueError("embeddings are too large: squared distances between them must be below 1e308")


def _parts(embeddings: Tensor | np.ndarray) -> Iterator[tuple[int, Tensor]]:
    """The first row and the float64 values of each part, checked."""
    height = max(1, _NUMBERS // embeddings.shape[1])
    for start in range(0, embeddings.shape[0], height):
        piece = embeddings[start : start + height]
        part = (piece if isinstance(piece, Tensor) else torch.from_numpy(np.array(piece, np.float64))).to(torch.float64)
        bad = ~part.isfinite().all(1)
        if bool(bad.any()):
            _refuse(start + int(bad.nonzero()[0]))
        yield start, part


def _frame(embeddings: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
    """The middle of the pool, and the length of the vector farthest from it (1 where all are equal)."""
    least, most, length = None, None, None
    for _, part in _parts(embeddings):
        low, high = part.aminmax(dim=0)
        least = low if least is None else torch.minimum(least, low)
        most = high if most is None else torch.maximum(most, high)
    assert least is not None and most is not None  # a pool has rows
    centre = least / 2 + most / 2
    for _, part in _parts(embeddings):
        longest = (part - centre).square().sum(1).amax().sqrt()
        length = longest if length is None else torch.maximum(length, longest)
    assert length is not None
    _refuse_vast(float(length))
    return centre, _or_one(length)


def _or_one(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 1, scale)


def _typical_distance(values: Tensor, squares: Tensor) -> float:
    """The root mean squared distance of two rows, from integers alone."""
    rows, total = len(values), [0] * values.shape[1]
    for start in range(0, rows, _NUMBERS):  # int64 holds the sum of so many, and of many more
        part = values[start : start + _NUMBERS].sum(0, dtype=torch.int64).tolist()
        total = [a + b for a, b in zip(total, part, strict=True)]
    spread = Fraction(int(squares.sum(dtype=torch.int64)), rows) - Fraction(sum(t * t for t in total), rows**2)
    return sqrt(2 * spread)
