"""Batches of useful prompts that lie far from one another and from the last batches (GPS, arXiv 2602.01970)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import bayes_prompt.kernels.backend as backends
from bayes_prompt.kernels import rng
from bayes_prompt.kernels.diverse_pick import DIMENSIONS, METRICS, VARIANTS, Terms
from bayes_prompt.kernels.diverse_pick.vectors import fixed_point
from bayes_prompt.posteriors import checks

if TYPE_CHECKING:
    from bayes_prompt.kernels.diverse_pick.cpu import Search
    from bayes_prompt.kernels.diverse_pick.cpu_projection import Projection


MOST_WEIGHT = 1e100
"""The largest weight of a distance: beyond it sums of distances could overflow."""


def check_weight(name: str, weight: float) -> float:
    """A weight of distances, as Python's own number; TypeError or ValueError otherwise."""
    checks.number(name, weight)
    if not 0 <= weight <= MOST_WEIGHT:
        raise ValueError(f"{name} must lie in [0, {MOST_WEIGHT:g}]; got {weight}")
    return float(weight)


@dataclass(frozen=True)
class DiversePick:
    """What was picked, and the work it took.

    rows: (batch_size,) int64, in the order in which they were picked; -1 where no row was left. gains: (batch_size,)
    float64, what each added to the objective; -inf where no row was left. evaluated: products of two vectors, or of a
    vector and a sum of vectors, each of D operations; the greedy pick that computes every distance takes `naive` of
    them. Neither counts the short vectors that bound the others, nor what an earlier call has found out.
    """

    rows: Tensor
    gains: Tensor
    evaluated: int
    naive: int


class Diversity:
    """A pool of N embeddings, prepared once for exact greedy picks of diverse batches.

    With u the utilities, d the distances, w the weight, B the size of the whole batch and H the rows of the last
    batches, a pick adds the row of largest gain, again and again. With S what was picked before it, row i gains

    - "sum": u_i + w * (2 / (B - 1) * sum of d(i, S) + mean of d(i, H)). It is what i adds to the utilities of a set,
      plus w times, for each row of the set, its mean distance to the others and its mean distance to H: w means the
      same for every B.
    - "min": u_i + w * (least of d(i, S) + least of d(i, H)), as in farthest-first traversal: no near copies in a batch.

    Distances to nothing are 0. Of rows that gain the same, random keys of (seed, step, row) decide. "cosine": d is
    1 - cosine, in [0, 2], and a zero vector lies 1/2 from all others. "euclidean": d is in units of the root mean
    squared distance of the pool. Vectors are in fixed point (16 bits, see `kernels/diverse_pick/vectors.py`): equal
    vectors are 0 apart, and a pick is the same to the last bit however much of the work is spared.

    On the CPU exact gains are computed only of rows whose bounds reach the best; on other devices of all rows. What was
    found out about a batch that is not full yet, some 50 bytes a row, waits there for the call that goes on with it.

    Args:
        embeddings: (N, D) floating, N >= 1 and 1 <= D <= 65536, a tensor, an array or a memory map; copied (2 bytes a
            number), on the device where they are.
        metric: "cosine" or "euclidean". variant: "sum" or "min".

    Raises ValueError or TypeError for another shape, type, metric or variant, or naming the first row not finite.
    """

    def __init__(self, embeddings: Tensor | np.ndarray, *, metric: str = "cosine", variant: str = "min") -> None:
        if metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}; got {metric!r}")
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}")
        if not isinstance(embeddings, Tensor | np.ndarray):
            raise TypeError(f"embeddings must be a tensor or an array; got {type(embeddings).__name__}")
        if embeddings.ndim != 2 or embeddings.shape[0] < 1 or not 1 <= embeddings.shape[1] <= DIMENSIONS:
            raise ValueError(
                f"embeddings must have shape (N, D), N >= 1 and D in [1, {DIMENSIONS}]; got {tuple(embeddings.shape)}"
            )
        floating = embeddings.is_floating_point() if isinstance(embeddings, Tensor) else embeddings.dtype.kind == "f"
        if not floating:
            raise TypeError(f"embeddings must be floating; got {embeddings.dtype}")
        self.metric, self.variant = metric, variant
        held = embeddings.detach() if isinstance(embeddings, Tensor) else embeddings
        on_cpu = not isinstance(held, Tensor) or held.device.type == "cpu"
        self._vectors = fixed_point(held, metric, compiled=on_cpu and backends.resolve("auto", "cpu") == "cpu")
        self._unfinished: dict[tuple[tuple[int, ...], tuple[int, ...]], Search] = {}  # by history and rows chosen

    @property
    def num_prompts(self) -> int:
        """N, the prompts of the pool."""
        return len(self._vectors.values)

    @property
    def values(self) -> Tensor:
        """The pool's vectors in fixed point, (N, D) int16."""
        return self._vectors.values

    def pick(
        self,
        utility: Tensor,
        batch_size: int,
        *,
        weight: float,
        seed: int | Tensor,
        step: int | Tensor,
        history: checks.IntegersLike | None = None,
        chosen: checks.IntegersLike | None = None,
        allowed: Tensor | None = None,
        whole_batch: int | None = None,
        first_prompt: int = 0,
        backend: str = "auto",
    ) -> DiversePick:
        """Pick `batch_size` rows more for a batch of which `chosen` have been picked already.

        Whoever draws one prompt at a time tells `whole_batch`, the size of the batch when it is full, and gets the
        prompts that one call would have picked, for little more than its work if nothing else is picked meanwhile.

        Args:
            utility: (N,) float32 or float64 on the device of the embeddings, finite where allowed. The weights of use
                for -(rate - 1/2)**2 or a probability are .001 to .1.
            batch_size: between 1 and N. weight: in [0, 1e100].
            history: rows (M,) of the last batches; a row that occurs twice counts twice, and may be picked again.
            chosen: rows (C,), each once; not picked again. whole_batch: at least C + batch_size, its default.
            allowed: (N,) bool, or None for all. backend: "auto", "reference" or "cpu".

        Raises ValueError, TypeError or IndexError that names what is wrong.
        """
        size, device = self.num_prompts, self._vectors.values.device
        for name, value in {"utility": utility, "allowed": utility if allowed is None else allowed}.items():
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a tensor of shape ({size},); got {type(value).__name__}")
        if utility.dtype not in (torch.float32, torch.float64) or utility.shape != (size,) or utility.device != device:
            raise ValueError(
                f"utility must be float32 or float64 of shape ({size},) on {device}; "
                f"got {utility.dtype} {tuple(utility.shape)} on {utility.device}"
            )
        batch_size = checks.integer("batch_size", batch_size, 1, size)
        weight = check_weight("weight", weight)
        if allowed is not None and (allowed.dtype != torch.bool or allowed.shape != (size,)):
            raise ValueError(f"allowed must be bool of shape ({size},); got {allowed.dtype} {tuple(allowed.shape)}")
        earlier = checks.rows("history", [] if history is None else history, size)
        already = checks.rows("chosen", [] if chosen is None else chosen, size)
        if len(already.unique()) < len(already):
            values, counts = already.unique(return_counts=True)
            raise ValueError(f"chosen must name a row once; got {int(values[counts > 1][0])} more than once")
        least = len(already) + batch_size
        whole = least if whole_batch is None else checks.integer("whole_batch", whole_batch, least)
        seed, step = rng.known(seed, step)
        _, _, first_prompt = rng.check(seed, step, first_prompt)

        worth = utility.detach().to(torch.float64)
        wrong = ~worth.isfinite() if allowed is None else ~worth.isfinite() & allowed
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise ValueError(f"utility[{row}] = {float(worth[row])} must be finite")
        if allowed is not None:
            worth = torch.where(allowed, worth, -torch.inf)
        terms = Terms(weight, self.variant, whole, earlier, already)
        question = (worth, batch_size, terms, seed, step, first_prompt)
        naive = size * (len(earlier) + max(0, least - 1))
        if self._implementation(backend) == "cpu":
            from bayes_prompt.kernels.diverse_pick import cpu

            past, before = tuple(earlier.tolist()), tuple(already.tolist())
            search = self._unfinished.pop((past, before), None)
            if search is None:
                search = cpu.begin(self._vectors, terms, self._projection if self.variant == "sum" else None)
            found = DiversePick(*cpu.go_on(search, *question), naive)
            if least < whole and int(found.rows[-1]) >= 0:
                self._unfinished = {(past, before + tuple(found.rows.tolist())): search}
            return found
        from bayes_prompt.kernels.diverse_pick import reference

        return DiversePick(*reference.pick(self._vectors, *question), naive)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_unfinished": {}}  # is found out again

    def _implementation(self, backend: str) -> str:
        device = self._vectors.values.device
        if backend == "triton":
            raise backends.BackendUnavailable("backend 'triton' cannot pick diverse batches; take 'auto'")
        if backend == "auto" and device.type != "cpu":
            return "reference"
        return backends.resolve(backend, device)

    @cached_property
    def _projection(self) -> Projection:
        from bayes_prompt.kernels.diverse_pick import cpu
        from bayes_prompt.kernels.diverse_pick.cpu_projection import project

        return project(self._vectors, cpu.WIDTH)
