"""The greedy pick in float64, every distance of it: the definition, and what runs on devices other than the CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bayes_prompt.kernels import rng
from bayes_prompt.kernels.diverse_pick import Terms, Vectors

_NUMBERS = 1 << 24  # that are converted to float64 at a time


def pick(
    vectors: Vectors, utility: Tensor, batch: int, terms: Terms, seed: int, step: int, first_prompt: int
) -> tuple[Tensor, Tensor, int]:
    """The next `batch` rows, (batch,) int64 in the order in which they were picked, what each added, (batch,) float64,
    and how many products of vectors that took. Where rows run out the rest is -1, which adds -inf.

    utility: (N,) float64; rows with -inf are not picked. Of rows that add the same, the smallest tie key of
    first_prompt + row is picked, then the smallest row.

    What a row adds is computed as utility + weight * (factor * batch part + factor * history part), each operation
    rounded once. Squared distances are exact integers; roots are added in the order of the rows.
    """
    utility = utility.clone()
    factor, past_factor = terms.factors(vectors.unit)
    earlier, now = _Distances(vectors, terms.variant), _Distances(vectors, terms.variant)
    for row in terms.history.tolist():
        earlier.add(row)
    for row in terms.chosen.tolist():
        now.add(row)
        utility[row] = -torch.inf
    rows = torch.full((batch,), -1, dtype=torch.int64, device=utility.device)
    gains = torch.full((batch,), -torch.inf, dtype=torch.float64, device=utility.device)
    past = past_factor * earlier.part()
    for place in range(batch):
        gain = utility + terms.weight * (factor * now.part() + past)
        best = gain.amax()
        if best == -torch.inf:
            break
        tied = (gain == best).nonzero().squeeze(1)
        keys = rng.tie_keys(seed, step, first_prompt + tied)
        row = tied[keys.argmin()] if len(tied) > 1 else tied[0]
        rows[place], gains[place] = row, best
        utility[row] = -torch.inf
        if place + 1 < batch:
            now.add(int(row))
    return rows, gains, (earlier.count + now.count) * len(utility)


class _Distances:
    """The sum or the least of the distances of every row to those added so far."""

    def __init__(self, vectors: Vectors, variant: str) -> None:
        self.vectors, self.least, self.count = vectors, variant == "min", 0
        self.value = torch.zeros(len(vectors.values), dtype=torch.float64, device=vectors.values.device)

    def add(self, row: int) -> None:
        squared = _squared_distances(self.vectors, row)
        if self.least:
            self.value = torch.minimum(self.value, squared) if self.count else squared
        else:
            self.value += _root(squared) if self.vectors.root else squared
        self.count += 1

    def part(self) -> Tensor:
        return _root(self.value) if self.least and self.vectors.root else self.value


def _squared_distances(vectors: Vectors, row: int) -> Tensor:
    """Of every row to one row, (N,) float64, exact: all sums are integers below 2**53."""
    values, squares = vectors.values, vectors.squares.double()
    one = values[row].double()
    height = max(1, _NUMBERS // values.shape[1])
    products = [values[start : start + height].double() @ one for start in range(0, len(values), height)]
    return squares + squares[row] - 2 * torch.cat(products)


def _root(values: Tensor) -> Tensor:
    """Rounded correctly, which torch's own root on the CPU is not always (MKL's is off in the last bit at times)."""
    return torch.from_numpy(np.sqrt(values.numpy())) if values.device.type == "cpu" else values.sqrt()
