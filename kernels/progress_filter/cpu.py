"""The solving-progress filter compiled for the CPU (numba): one pass over memory in blocks of rows that fit the cache.

Per block the observed rows, usually few, are conditioned in float64 before a dense branch-free sweep predicts every row
as if unobserved, and are put in their places after it. A second sweep, over what is in the cache by then, scores the
coming belief. Inner loops run over rows and vectorise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayes_prompt.kernels.progress_filter import SMALLEST_SCALE, Scoring, check_scoring, check_state, check_step
from bayes_prompt.kernels.progress_filter.cpu_narrow import advance_narrow, predict_narrow, score_narrow
from bayes_prompt.kernels.progress_filter.cpu_rows import advance_rows, predict_rows, score_rows
from bayes_prompt.kernels.progress_filter.cpu_three import advance_three, score_three
from bayes_prompt.kernels.shortlist_cpu import note_ranges
from bayes_prompt.kernels.threads import over_rows

PIECES_A_THREAD = 4  # evens out threads that the machine does not schedule alike
WORTH_THREADS = 1 << 19  # stored numbers: a quarter of a millisecond of work, five times what it costs to wake a thread


def advance(
    learned: Tensor | None,
    posterior: Tensor,
    scale: Tensor,
    prior: Tensor,
    index: Tensor,
    likelihood: Tensor,
    decay: float,
    expected: Tensor,
    evidence: Tensor,
    status: Tensor,
    scoring: Scoring | None = None,
) -> None:
    """Advance the filter of N prompts by one step, in place: `reference.advance`, on CPU tensors, in their dtype."""
    state = _state(learned, posterior, scale, prior)
    check_step(posterior, index, likelihood, decay, expected, evidence, status)
    out = _Output(scoring, posterior, prior)
    scalar = prior.numpy().dtype.type
    before, after, factor = float(scale), float(scale), 1.0
    if learned is not None:
        after = before * decay
        if after < SMALLEST_SCALE:
            factor, after = after, 1.0
        scale.fill_(after)
    observed = [index.numpy(), likelihood.numpy(), *(out.zero_().numpy() for out in (expected, evidence, status))]
    learns = learned is not None
    scales = (scalar(before if learns else 0), scalar(after if learns else 0), scalar(factor), 1.0 / after)
    tiny = torch.finfo(prior.dtype).tiny
    if _three(learned, prior):
        kernel = partial(advance_three, *state)
    elif posterior.dtype == torch.bfloat16:
        kernel = partial(advance_narrow, *state)
    else:
        kernel = partial(advance_rows, *state)

    def rows(start: int, stop: int) -> tuple[np.ndarray, int]:
        return out.noted(lambda *where: kernel(*observed, *scales, tiny, *where, start, stop), stop - start)

    out.finish(_over(posterior, rows))


def score(learned: Tensor | None, posterior: Tensor, scale: Tensor, prior: Tensor, scoring: Scoring) -> None:
    """See `reference.score`."""
    state = _state(learned, posterior, scale, prior)
    out = _Output(scoring, posterior, prior)
    now = prior.numpy().dtype.type(0 if learned is None else float(scale))
    kernel = score_narrow if posterior.dtype == torch.bfloat16 else score_rows
    if _three(learned, prior):
        kernel = score_three

    def rows(start: int, stop: int) -> tuple[np.ndarray, int]:
        return out.noted(lambda *where: kernel(*state, now, *where, start, stop), stop - start)

    out.finish(_over(posterior, rows))


def predict(learned: Tensor | None, posterior: Tensor, scale: Tensor, prior: Tensor, belief: Tensor) -> None:
    """See `reference.predict`."""
    state = _state(learned, posterior, scale, prior)
    now = prior.numpy().dtype.type(0 if learned is None else float(scale))
    out = belief.numpy()
    narrow = posterior.dtype == torch.bfloat16
    kernel = predict_narrow if narrow else predict_rows
    _over(posterior, lambda start, stop: kernel(*state, now, out, start, stop))


def _three(learned: Tensor | None, prior: Tensor) -> bool:
    return learned is not None and prior.shape == (3, 3)


def _state(
    learned: Tensor | None, posterior: Tensor, scale: Tensor, prior: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The checked state as arrays, bfloat16 as uint16; fixed transitions as a `learned` of no rows."""
    check_state(learned, posterior, scale, prior)
    if posterior.device.type != "cpu":
        raise ValueError(f"posterior must be on the CPU for this backend, got {posterior.device}")
    states = posterior.shape[0]
    if prior.ndim == 3 and prior.shape[2] == 1:  # it must not pass for one that all share, which rounds apart
        prior = prior.expand(-1, -1, 2).contiguous()
    table = posterior.new_empty((states, states, 0)) if learned is None else learned
    if posterior.dtype == torch.bfloat16:
        table, posterior = table.view(torch.uint16), posterior.view(torch.uint16)
    return table.numpy(), posterior.numpy(), prior.reshape(states, states, -1).numpy()


class _Output:
    """Where scores and noted rows go; of no length where nobody asks."""

    def __init__(self, scoring: Scoring | None, posterior: Tensor, prior: Tensor) -> None:
        if scoring is not None:
            check_scoring(scoring, posterior)
        self.shortlist = None if scoring is None else scoring.shortlist
        self.room = 0 if self.shortlist is None else self.shortlist.rows.numel()
        nothing = prior.new_empty(0)
        self.arrays = (
            (nothing if scoring is None else scoring.utility).numpy(),
            (nothing if scoring is None else scoring.scores).numpy(),
        )
        self.threshold = nothing.numpy().dtype.type(float("inf"))
        if self.shortlist is not None:
            self.threshold = self.shortlist.threshold.numpy()[0]

    def noted(self, kernel: Callable[..., int], size: int) -> tuple[np.ndarray, int]:
        """Call a kernel for a range of so many rows; those it noted and how many reached the threshold."""
        rows = np.empty(min(self.room, size), np.int64)
        return rows, kernel(*self.arrays, self.threshold, rows)

    def finish(self, ranges: list[tuple[np.ndarray, int]]) -> None:
        if self.shortlist is not None:
            note_ranges(self.shortlist, ranges)


def _over(posterior: Tensor, rows: Callable[[int, int], Any]) -> list[Any]:
    states, prompts = posterior.shape
    if prompts * states * states < WORTH_THREADS:
        return [rows(0, prompts)]
    return over_rows(prompts, rows, PIECES_A_THREAD)
