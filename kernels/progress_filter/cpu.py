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

from bayes_prompt.kernels.progress_filter import (
    IMPOSSIBLE,
    SMALLEST_SCALE,
    UNEXPECTED,
    Scoring,
    check_scoring,
    check_state,
    check_step,
)
from bayes_prompt.kernels.progress_filter.cpu_three import advance_three
from bayes_prompt.kernels.shortlist_cpu import note_block, note_ranges
from bayes_prompt.kernels.threads import compiled, inlined, over_rows

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
    evidence: Tensor,
    status: Tensor,
    scoring: Scoring | None = None,
) -> None:
    """Advance the filter of N prompts by one step, in place: `reference.advance`, on CPU tensors, in their dtype."""
    state = _state(learned, posterior, scale, prior)
    check_step(posterior, index, likelihood, decay, evidence, status)
    out = _scoring(scoring, posterior)
    scalar = posterior.numpy().dtype.type
    before, after, factor = float(scale), float(scale), 1.0
    if learned is not None:
        after = before * decay
        if after < SMALLEST_SCALE:
            factor, after = after, 1.0
        scale.fill_(after)
    observed = (index.numpy(), likelihood.numpy(), evidence.zero_().numpy(), status.zero_().numpy())
    learns = learned is not None
    scales = (scalar(before if learns else 0), scalar(after if learns else 0), scalar(factor), 1.0 / after)
    tiny = torch.finfo(posterior.dtype).tiny

    three = learns and posterior.shape[0] == 3 and prior.ndim == 2
    kernel = partial(advance_three, *state, _condition) if three else partial(_advance_rows, *state)

    def rows(start: int, stop: int) -> tuple[np.ndarray, int]:
        return out.noted(lambda *where: kernel(*observed, *scales, tiny, *where, start, stop))

    out.finish(_over(posterior, rows))


def score(learned: Tensor | None, posterior: Tensor, scale: Tensor, prior: Tensor, scoring: Scoring) -> None:
    """See `reference.score`."""
    state = _state(learned, posterior, scale, prior)
    out = _scoring(scoring, posterior)
    now = posterior.numpy().dtype.type(0 if learned is None else float(scale))

    def rows(start: int, stop: int) -> tuple[np.ndarray, int]:
        return out.noted(lambda *where: _score_rows(*state, now, *where, start, stop))

    out.finish(_over(posterior, rows))


def predict(learned: Tensor | None, posterior: Tensor, scale: Tensor, prior: Tensor, belief: Tensor) -> None:
    """See `reference.predict`."""
    state = _state(learned, posterior, scale, prior)
    now = posterior.numpy().dtype.type(0 if learned is None else float(scale))
    out = belief.numpy()
    _over(posterior, lambda start, stop: _predict_rows(*state, now, out, start, stop))


def _state(
    learned: Tensor | None, posterior: Tensor, scale: Tensor, prior: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The checked state as arrays; fixed transitions as a `learned` of no rows."""
    check_state(learned, posterior, scale, prior)
    if posterior.device.type != "cpu":
        raise ValueError(f"posterior must be on the CPU for this backend, got {posterior.device}")
    states = posterior.shape[0]
    table = posterior.new_empty((states, states, 0)) if learned is None else learned
    return table.numpy(), posterior.numpy(), prior.reshape(states, states, -1).numpy()


class _scoring:
    """Where scores and noted rows go; of no length where nobody asks."""

    def __init__(self, scoring: Scoring | None, posterior: Tensor) -> None:
        if scoring is not None:
            check_scoring(scoring, posterior)
        self.shortlist = None if scoring is None else scoring.shortlist
        self.room = 0 if self.shortlist is None else self.shortlist.rows.numel()
        nothing = posterior.new_empty(0)
        self.arrays = (
            (nothing if scoring is None else scoring.utility).numpy(),
            (nothing if scoring is None else scoring.scores).numpy(),
        )
        self.threshold = posterior.numpy().dtype.type(float("inf"))
        if self.shortlist is not None:
            self.threshold = self.shortlist.threshold.numpy()[0]

    def noted(self, kernel: Callable[..., int]) -> tuple[np.ndarray, int]:
        """Call a kernel for a range of rows; the rows it noted and how many reached the threshold."""
        rows = np.empty(self.room, np.int64)
        return rows, kernel(*self.arrays, self.threshold, rows)

    def finish(self, ranges: list[tuple[np.ndarray, int]]) -> None:
        if self.shortlist is not None:
            note_ranges(self.shortlist, ranges)


def _over(posterior: Tensor, rows: Callable[[int, int], Any]) -> list[Any]:
    states, prompts = posterior.shape
    if prompts * states * states < WORTH_THREADS:
        return [rows(0, prompts)]
    return over_rows(prompts, rows, PIECES_A_THREAD)


def block_rows(states: int) -> int:
    """Rows per block: long enough for the processor to fetch ahead in each array, few enough to stay in its cache."""
    return max(64, 9 * 1024 // (states * states) // 16 * 16)


_block_rows = compiled(block_rows)


@compiled
def _advance_rows(  # type: ignore[no-untyped-def]
    D,
    p,
    prior,
    index,
    L,
    evidence,
    status,
    before,
    after,
    factor,
    gain,
    tiny,
    utility,
    scores,
    threshold,
    noted,
    first,
    last,
):
    states = p.shape[0]
    learn = D.shape[2] > 0
    block = _block_rows(states)
    xi = np.empty((block, states, states), np.float64)
    q = np.empty((block, states), np.float64)
    rows = np.empty(block, np.int64)
    sums, weight, b = _workspace(p, block)
    next_entry, count = np.searchsorted(index, first), 0
    for start in range(first, last, block):
        stop = min(start + block, last)
        observed = 0
        while next_entry < len(index) and index[next_entry] < stop:
            n = index[next_entry]
            if observed == 0 or rows[observed - 1] != n:
                _condition(D, p, prior, L, before, next_entry, n, q[observed], xi[observed], tiny, evidence, status)
                rows[observed] = n
                observed += 1
            next_entry += 1
        _sum_block(D, sums, start, stop)
        _predict_block(D, p, prior, before, sums, weight, b, start, stop)
        if factor != 1:
            _shrink(D, factor, tiny / SMALLEST_SCALE, start, stop)
            _sum_block(D, sums, start, stop)
        for o in range(observed):
            for j in range(states):
                b[j, rows[o] - start] = q[o, j]
                if learn:
                    for i in range(states):
                        D[j, i, rows[o]] += xi[o, j, i] * gain
                    sums[j, rows[o] - start] = D[j, :, rows[o]].sum()
        for i in range(states):
            row, new = p[i, start:stop], b[i]
            for r in range(stop - start):
                row[r] = new[r]
        if len(scores) > 0:
            out = scores[start:stop]
            _score_next(D, b, prior, after, sums, weight, utility, out, start, stop)
            count = note_block(out, start, threshold, noted, count) if len(noted) > 0 else 0
    return count


@compiled
def _score_rows(D, p, prior, scale, utility, scores, threshold, noted, first, last):  # type: ignore[no-untyped-def]
    block, count = _block_rows(p.shape[0]), 0
    sums, weight, b = _workspace(p, block)
    for start in range(first, last, block):
        stop = min(start + block, last)
        _sum_block(D, sums, start, stop)
        _predict_block(D, p, prior, scale, sums, weight, b, start, stop)
        out = scores[start:stop]
        out[:] = 0
        for i in range(len(utility)):
            worth, row = utility[i], b[i]
            for r in range(len(out)):
                out[r] += worth * row[r]
        count = note_block(out, start, threshold, noted, count) if len(noted) > 0 else 0
    return count


@compiled
def _predict_rows(D, p, prior, scale, belief, first, last):  # type: ignore[no-untyped-def]
    block = _block_rows(p.shape[0])
    sums, weight, b = _workspace(p, block)
    for start in range(first, last, block):
        stop = min(start + block, last)
        _sum_block(D, sums, start, stop)
        _predict_block(D, p, prior, scale, sums, weight, b, start, stop)
        belief[:, start:stop] = b[:, : stop - start]


@inlined
def _workspace(p, block):  # type: ignore[no-untyped-def]
    """Sums over the states reached (K, block), one more vector (block,), and a belief (K, block)."""
    states = p.shape[0]
    return np.empty((states, block), p.dtype), np.empty(block, p.dtype), np.empty((states, block), p.dtype)


@compiled
def _condition(D, p, prior, L, scale, m, n, q, xi, tiny, evidence, status):  # type: ignore[no-untyped-def]
    """Row n given row m of the likelihood: q the posterior of its state, xi the expected transition."""
    states = p.shape[0]
    learn = D.shape[2] > 0
    own = n if prior.shape[2] > 1 else 0
    q[:] = 0.0
    x = 0.0
    for j in range(states):
        mass = 0.0
        for i in range(states):
            xi[j, i] = np.float64(prior[j, i, own])
            if learn:
                xi[j, i] += np.float64(scale) * np.float64(D[j, i, n])
            mass += xi[j, i]
        for i in range(states):
            q[i] += np.float64(p[j, n]) * (xi[j, i] / mass)
            xi[j, i] = abs(np.float64(p[j, n])) * (xi[j, i] / mass) * np.float64(L[m, i])
            x += xi[j, i]
    flags = 0
    if x > tiny:
        xi /= x
    else:
        xi[:] = 0.0
        flags = IMPOSSIBLE if learn else 0
    total = q.sum()
    for i in range(states):
        q[i] = -np.float64(p[i, n]) if total < 0.0 else q[i] / total
    total = 0.0
    for i in range(states):
        total += q[i] * np.float64(L[m, i])
    if total > tiny:
        evidence[m] = total
        for i in range(states):
            q[i] = q[i] * np.float64(L[m, i]) / total
    else:
        flags |= UNEXPECTED
        mass = 0.0
        for i in range(states):
            mass += np.float64(L[m, i])
        for i in range(states):
            q[i] = np.float64(L[m, i]) / mass
    status[m] = flags


@compiled
def _sum_block(D, sums, start, stop):  # type: ignore[no-untyped-def]
    """What rows [start, stop) have learned about leaving each state, (K, block)."""
    for j in range(D.shape[0] if D.shape[2] > 0 else 0):
        total = sums[j]
        for i in range(D.shape[1]):
            d = D[j, i, start:stop]
            for r in range(len(d)):
                total[r] = d[r] if i == 0 else total[r] + d[r]


@inlined
def _share(row, prior, scale, sums, j, weight, start, stop):  # type: ignore[no-untyped-def]
    """weight (block,) becomes row (size,) over the concentrations' sum in state j."""
    size = stop - start
    total = sums[j]
    if prior.shape[2] == 1:
        mass = prior[j, 0, 0]
        for i in range(1, prior.shape[1]):
            mass += prior[j, i, 0]
        if scale > 0:
            for r in range(size):
                weight[r] = row[r] / (mass + scale * total[r])
        else:
            mass = 1 / mass
            for r in range(size):
                weight[r] = row[r] * mass
    else:
        weight[:size] = 0
        for i in range(prior.shape[1]):
            own = prior[j, i, start:stop]
            for r in range(size):
                weight[r] += own[r]
        if scale > 0:
            for r in range(size):
                weight[r] += scale * total[r]
        for r in range(size):
            weight[r] = row[r] / weight[r]


@inlined
def _spread(D, prior, scale, j, i, factor, weight, to, start, stop):  # type: ignore[no-untyped-def]
    """Add factor * weight * concentration [j, i] to `to`."""
    size = stop - start
    shared = prior.shape[2] == 1
    c = factor * prior[j, i, 0]
    own = prior[j, i, start:stop]
    if scale > 0:
        d, part = D[j, i, start:stop], factor * scale
        if shared:
            for r in range(size):
                to[r] += weight[r] * (c + part * d[r])
        else:
            for r in range(size):
                to[r] += weight[r] * (factor * own[r] + part * d[r])
    elif shared:
        for r in range(size):
            to[r] += weight[r] * c
    else:
        for r in range(size):
            to[r] += weight[r] * (factor * own[r])


@compiled
def _predict_block(D, p, prior, scale, sums, weight, b, start, stop):  # type: ignore[no-untyped-def]
    """Rows [start, stop): b (K, block) becomes the belief that follows from p, or minus p in rows without a step."""
    states, size = p.shape[0], stop - start
    b[:, :size] = 0
    for j in range(states):
        _share(p[j, start:stop], prior, scale, sums, j, weight, start, stop)
        for i in range(states):
            _spread(D, prior, scale, j, i, p.dtype.type(1), weight, b[i], start, stop)
    # Rounding would let a belief's sum wander over thousands of steps: it is divided out.
    one = p.dtype.type(1)
    for i in range(states):
        to = b[i]
        for r in range(size):
            weight[r] = to[r] if i == 0 else weight[r] + to[r]
    for r in range(size):
        weight[r] = one / weight[r]
    for i in range(states):
        to, row = b[i], p[i, start:stop]
        for r in range(size):
            to[r] = -row[r] if weight[r] < 0 else to[r] * weight[r]


@compiled
def _score_next(D, b, prior, scale, sums, weight, utility, out, start, stop):  # type: ignore[no-untyped-def]
    """Rows [start, stop) from their posterior b (K, block): what the belief that follows is worth."""
    out[:] = 0
    for j in range(len(utility)):
        _share(b[j], prior, scale, sums, j, weight, start, stop)
        for i in range(len(utility)):
            if utility[i] != 0:
                _spread(D, prior, scale, j, i, utility[i], weight, out, start, stop)


@compiled
def _shrink(D, factor, least, start, stop):  # type: ignore[no-untyped-def]
    for j in range(D.shape[0]):
        for i in range(D.shape[1]):
            row = D[j, i, start:stop]
            for r in range(len(row)):
                rest = factor * row[r]
                row[r] = rest if rest >= least else 0
