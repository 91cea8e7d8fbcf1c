"""The solving-progress filter compiled for the CPU (numba): one pass over memory in blocks of rows that fit the cache.

Per block the observed rows, usually few, are conditioned in float64 before a dense branch-free sweep advances every row
as if unobserved, and their expected transitions are added after it. Inner loops run over rows and vectorise.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bayes_prompt.kernels.progress_filter import IMPOSSIBLE, UNEXPECTED, check_arguments
from bayes_prompt.kernels.threads import compiled, over_rows

PIECES_A_THREAD = 4  # evens out threads that the machine does not schedule alike
WORTH_THREADS = 1 << 20  # concentrations: about half a millisecond of work, ten times what it costs to wake a thread


def advance(
    concentration: Tensor | None,
    posterior: Tensor,
    belief: Tensor,
    prior: Tensor,
    slot: Tensor,
    likelihood: Tensor,
    decay: float,
    learn: bool,
    evidence: Tensor,
    status: Tensor,
) -> None:
    """Advance the filter of N prompts by one step, in place: `reference.advance`, on CPU tensors, in their dtype."""
    check_arguments(concentration, posterior, belief, prior, slot, likelihood, decay, learn, evidence, status)
    if belief.device.type != "cpu":
        raise ValueError(f"belief must be on the CPU for this backend, got {belief.device}")
    states, prompts = belief.shape
    table = concentration if learn and concentration is not None else belief.new_empty((states, states, 0))
    scalar = belief.numpy().dtype.type
    arrays = (
        table.numpy(),
        posterior.numpy(),
        belief.numpy(),
        prior.reshape(states, states, -1).numpy(),
        slot.numpy(),
        likelihood.numpy(),
        evidence.zero_().numpy(),
        status.zero_().numpy(),
    )
    # 1 - decay is taken in float64, so that the prior stays the fixed point of the decay to within rounding.
    settings = (scalar(decay), scalar(1.0 - decay), torch.finfo(belief.dtype).tiny, learn)

    def work(first: int, last: int) -> None:
        _advance_rows(*arrays, *settings, first, last)

    if prompts * states * states < WORTH_THREADS:
        work(0, prompts)
    else:
        over_rows(prompts, work, PIECES_A_THREAD)


def block_rows(states: int) -> int:
    """Rows per block: all arrays of a block, 4 to 8 bytes an entry, stay well within 256 KiB of second-level cache."""
    return max(64, 20_000 // (states * states + 3 * states + 1) // 16 * 16)


_block_rows = compiled(block_rows)


@compiled
def _advance_rows(C, p, b, prior, slot, L, evidence, status, decay, rest, tiny, learn, first, last):  # type: ignore[no-untyped-def]
    states = b.shape[0]
    block = _block_rows(states)
    xi = np.empty((block, states, states), np.float64)
    rows = np.empty(block, np.int64)
    weight = np.empty(block, b.dtype)
    predicted = np.empty((states, block), b.dtype)
    for start in range(first, last, block):
        stop = min(start + block, last)
        observed = 0
        for n in range(start, stop):
            if slot[n] >= 0:
                rows[observed] = n
                observed += 1
        for o in range(observed):
            _condition(C, p, b, L, slot[rows[o]], rows[o], xi[o], tiny, learn, evidence, status)
        if learn:
            _decay_and_predict(C, p, b, prior, decay, rest, weight, predicted, start, stop)
            for o in range(observed):
                _learn_and_predict(C, p, b, xi[o], rows[o])
        else:
            _predict(p, b, prior, weight, predicted, start, stop)


@compiled
def _condition(C, p, b, L, m, n, xi, tiny, learn, evidence, status):  # type: ignore[no-untyped-def]
    """Row n given row m of the likelihood: belief becomes q, xi the expected transition from the old p and C."""
    states = b.shape[0]
    flags = 0
    if learn:
        x = 0.0
        for j in range(states):
            mass = 0.0
            for i in range(states):
                mass += np.float64(C[j, i, n])
            for i in range(states):
                xi[j, i] = np.float64(p[j, n]) * (np.float64(C[j, i, n]) / mass) * np.float64(L[m, i])
                x += xi[j, i]
        if x > tiny:
            xi /= x
        else:
            xi[:] = 0.0
            flags |= IMPOSSIBLE
    total = 0.0
    for k in range(states):
        total += np.float64(b[k, n]) * np.float64(L[m, k])
    if total > tiny:
        evidence[m] = total
        for k in range(states):
            b[k, n] = np.float64(b[k, n]) * np.float64(L[m, k]) / total
    else:
        flags |= UNEXPECTED
        mass = 0.0
        for k in range(states):
            mass += np.float64(L[m, k])
        for k in range(states):
            b[k, n] = np.float64(L[m, k]) / mass
    status[m] = flags


@compiled
def _decay_and_predict(C, p, b, prior, decay, rest, weight, predicted, start, stop):  # type: ignore[no-untyped-def]
    """Rows [start, stop): C decays towards the prior, p becomes b, and b moves on by C."""
    states, size = b.shape[0], stop - start
    predicted[:, :size] = 0
    for j in range(states):
        weight[:size] = 0
        for i in range(states):
            row = C[j, i, start:stop]
            if prior.shape[2] == 1:
                base = rest * prior[j, i, 0]
                for r in range(size):
                    c = decay * row[r] + base
                    row[r] = c
                    weight[r] += c
            else:
                own = prior[j, i, start:stop]
                for r in range(size):
                    c = decay * row[r] + rest * own[r]
                    row[r] = c
                    weight[r] += c
        _spread(C[j], p[j], b[j], weight, predicted, start, stop)
    _normalise(b, weight, predicted, start, stop)


@compiled
def _predict(p, b, prior, weight, predicted, start, stop):  # type: ignore[no-untyped-def]
    """Rows [start, stop): p becomes b, and b moves on by the mean of the prior."""
    states, size = b.shape[0], stop - start
    predicted[:, :size] = 0
    for j in range(states):
        if prior.shape[2] == 1:
            mass = prior[j, 0, 0]
            for i in range(1, states):
                mass += prior[j, i, 0]
            row, moved = b[j, start:stop], p[j, start:stop]
            for r in range(size):
                moved[r] = row[r]
                weight[r] = row[r] / mass
            for i in range(states):
                share, to = prior[j, i, 0], predicted[i]
                for r in range(size):
                    to[r] += weight[r] * share
        else:
            weight[:size] = 0
            for i in range(states):
                own = prior[j, i, start:stop]
                for r in range(size):
                    weight[r] += own[r]
            _spread(prior[j], p[j], b[j], weight, predicted, start, stop)
    _normalise(b, weight, predicted, start, stop)


@compiled
def _spread(c, p, b, weight, predicted, start, stop):  # type: ignore[no-untyped-def]
    """One state's belief b (N,), remembered in p, spreads over the next states by c (K, N), whose sums are `weight`."""
    size = stop - start
    row, moved = b[start:stop], p[start:stop]
    for r in range(size):
        moved[r] = row[r]
        weight[r] = row[r] / weight[r]
    for i in range(c.shape[0]):
        to, share = predicted[i], c[i, start:stop]
        for r in range(size):
            to[r] += weight[r] * share[r]


@compiled
def _normalise(b, weight, predicted, start, stop):  # type: ignore[no-untyped-def]
    """Rounding would let a belief's sum wander over thousands of steps: it is divided out."""
    states, size = b.shape[0], stop - start
    weight[:size] = 0
    for i in range(states):
        for r in range(size):
            weight[r] += predicted[i, r]
    for i in range(states):
        row = b[i, start:stop]
        for r in range(size):
            row[r] = predicted[i, r] / weight[r]


@compiled
def _learn_and_predict(C, p, b, xi, n):  # type: ignore[no-untyped-def]
    """Row n after the dense sweep: add the expected transition and predict again from p, which now holds q."""
    states = b.shape[0]
    for j in range(states):
        for i in range(states):
            C[j, i, n] += xi[j, i]
    predicted = np.zeros(states)
    for j in range(states):
        mass = 0.0
        for i in range(states):
            mass += np.float64(C[j, i, n])
        for i in range(states):
            predicted[i] += np.float64(p[j, n]) * (np.float64(C[j, i, n]) / mass)
    total = predicted.sum()
    for i in range(states):
        b[i, n] = predicted[i] / total
