"""Short versions of all vectors, which bound their products with others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bayes_prompt.kernels.diverse_pick import Vectors
from bayes_prompt.kernels.diverse_pick.cpu_vectors import shorten
from bayes_prompt.kernels.threads import over_rows

_SAMPLED = 1 << 14  # rows from which directions are estimated
_ROUNDS = 6  # of subspace iteration: any directions are right, good ones prune more


@dataclass(frozen=True)
class Projection:
    """With directions P (K, D) and short vectors y, a = P^T y + e for every row a, whatever rounding did to P and y.

    For any b = P^T z + r with z = P b: a . b = y . z + (P e) . z + e . r, so that a . b differs from y . z by at most
    |e| |r| + leak * |z|. short: (K, N) float32, the y. rest: (N,) float32, at least |e|. leak: at least every |P e|.
    """

    directions: np.ndarray
    short: np.ndarray
    rest: np.ndarray
    leak: float

    def split(self, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The z (K,) and r (D,) of a row (D,), float64."""
        short = self.directions @ row
        return short, row - self.directions.T @ short


def project(vectors: Vectors, width: int) -> Projection:
    """Project on the `width` directions along which the pool is longest."""
    rows, full = vectors.values.shape
    directions = _directions(vectors.values, min(width, full))
    across = np.ascontiguousarray(directions.numpy().T)
    short, rest = np.empty((len(directions), rows), np.float32), np.empty(rows, np.float32)
    values = vectors.values.numpy()

    def part(start: int, stop: int) -> float:
        return float(shorten(values[start:stop], across, short[:, start:stop], rest[start:stop]))

    leak = max(over_rows(rows, part))
    return Projection(directions.numpy(), short, rest, leak * (1 + 2.0**-20) + 1e-6)


def _directions(values: Tensor, width: int) -> Tensor:
    """(width, D) float64, as good as orthonormal."""
    sample = values[:: max(1, len(values) // _SAMPLED)].double()
    start = torch.randn((values.shape[1], width), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.linalg.qr(start)[0]
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(sample.T @ (sample @ basis))[0]
    return basis.T.contiguous()
