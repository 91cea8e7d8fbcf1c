"""The grid filter compiled for the CPU (numba): rows one after the other, for each is a contiguous piece of memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bayes_prompt.kernels.grid_filter import (
    check_advance,
    check_look,
    check_look_index,
    check_predict,
    check_score,
    check_settle,
    look_index_tables,
    look_tables,
)
from bayes_prompt.kernels.grid_filter.cpu_product import VECTOR_BYTES, lanes, positive_part, product, summing
from bayes_prompt.kernels.instructions import LINE, prefetch
from bayes_prompt.kernels.progress_filter import UNEXPECTED
from bayes_prompt.kernels.threads import compiled, inlined, over_rows
from bayes_prompt.kernels.vector_math import exp_minus, log

PIECES_A_THREAD = 4  # rows that were never observed cost next to nothing, and may lie together
WORTH_THREADS = 1 << 19  # products of two numbers: a good tenth of a millisecond, several times the cost of a wake-up
AHEAD = 16  # rows: between those that were never observed, the processor does not guess which comes next
TOGETHER = 16  # rows for each table: among so many, those of a table follow each other, and it is read from near by
LEAST_TOGETHER = 1 << 11
LARGEST = 64  # the largest sums of a price are about two to the power of this

_SMALLEST, _LOG_OF_2_TO_54 = 2.0**-1022, 54 * np.log(2.0)


def predict(
    belief: Tensor, slot: Tensor, propagators: Tensor, shared: Tensor, index: Tensor | None, out: Tensor
) -> None:
    """See `reference.predict`; in the dtype of the tensors."""
    check_predict(belief, slot, propagators, shared, index, out)
    tables = _arrays(belief, slot, propagators, shared)
    rows, to = (slot.new_empty(0, dtype=torch.int64) if index is None else index).numpy(), out.numpy()
    _over(len(out), belief.shape[1] ** 2, lambda *span: _predict(*tables, rows, to, index is None, *span))


def score(belief: Tensor, slot: Tensor, vectors: Tensor, shared_scores: Tensor, out: Tensor) -> None:
    """See `reference.score`; in the dtype of the tensors."""
    check_score(belief, slot, vectors, shared_scores, out)
    arrays = _arrays(belief, slot, vectors, shared_scores, out)
    _over(len(belief), belief.shape[1], lambda *span: _score(*arrays, *span))


def look(
    belief: Tensor,
    slot: Tensor,
    chances: Tensor,
    worths: Tensor,
    shared_values: Tensor,
    threshold: float | Tensor,
    out: Tensor,
) -> None:
    """See `reference.look`; in the dtype of the tensors."""
    check_look(belief, slot, chances, worths, shared_values, threshold, out)
    gains, without = look_tables(chances, worths, threshold)
    tables, outcomes, states = gains.shape
    width = lanes(gains.numpy().dtype)
    side_by_side = gains.new_zeros(tables, states, -(-outcomes // width) * width)
    side_by_side[:, :, :outcomes] = gains.transpose(1, 2)
    arrays = _arrays(belief, slot, side_by_side, without, shared_values, out)
    _over(len(belief), side_by_side[:1].numel(), lambda *span: _look(*arrays, *span))


def look_index(
    belief: Tensor,
    slot: Tensor,
    vectors: Tensor,
    chances: Tensor,
    worths: Tensor,
    shared_values: Tensor,
    horizon: float,
    out: Tensor,
) -> None:
    """See `reference.look_index`; in the dtype of the tensors."""
    check_look_index(belief, slot, vectors, chances, worths, shared_values, horizon, out)
    width = lanes(chances.numpy().dtype)
    columns = -(-max(1, chances.shape[1]) // width) * width
    unit = _unit(horizon)
    tables = look_index_tables(chances, worths, horizon * unit, columns).flatten(2)
    arrays = _arrays(belief, slot, vectors * unit, tables, shared_values, out)
    _over(len(belief), tables[:1].numel(), lambda *span: _look_index(*arrays, belief.numpy().dtype.type(unit), *span))


def advance(
    belief: Tensor,
    slot: Tensor,
    propagators: Tensor,
    shared: Tensor,
    index: Tensor,
    likelihood: Tensor,
    now: int,
    expected: Tensor | None,
    chance: Tensor,
    status: Tensor,
    decay: float = 1.0,
    prior: Tensor | None = None,
) -> None:
    """See `reference.advance`; beliefs now in the dtype of the tensors, the observation in float64."""
    check_advance(belief, slot, propagators, shared, index, likelihood, now, expected, chance, status, decay, prior)
    if expected is None:
        expected = likelihood[:0]
    pull = likelihood[:0].double()
    if prior is not None and decay < 1.0:
        pull = (1.0 - decay) * prior.double().log().reshape(-1, belief.shape[1])
    state = _arrays(belief, slot, propagators, shared)
    for out in (expected, chance, status):
        out.zero_()
    seen = _arrays(index, likelihood, pull, expected, chance, status)
    tiny, entries = torch.finfo(likelihood.dtype).tiny, max(1, len(index))
    work = entries * belief.shape[1] ** 2 / max(1, len(belief))
    _over(len(belief), work, lambda *span: _advance(*state, *seen, np.int32(now), decay, tiny, *span))


def settle(belief: Tensor, slot: Tensor, propagators: Tensor, first: int, last: int, now: int) -> None:
    """See `reference.settle`; in the dtype of the tensors."""
    check_settle(belief, slot, propagators, first, last, now)
    state = _arrays(belief, slot, propagators)
    _over(len(belief), belief.shape[1] ** 2, lambda *span: _settle(*state, first, last, np.int32(now), *span))


def _arrays(belief: Tensor, *others: Tensor) -> tuple[np.ndarray, ...]:
    if belief.device.type != "cpu":
        raise ValueError(f"belief must be on the CPU for this backend, got {belief.device}")
    return tuple(tensor.detach().numpy() for tensor in (belief, *others))


def _over(rows: int, work: float, task: Callable[[int, int], None]) -> None:
    """Call task(start, stop) for ranges that make up the rows, of so much work each."""
    if rows * work < WORTH_THREADS:
        task(0, rows)
    else:
        over_rows(rows, task, PIECES_A_THREAD, min_rows=1)


@summing
def _dot(x, y):  # type: ignore[no-untyped-def]
    total = x.dtype.type(0)
    for k in range(len(x)):
        total += x[k] * y[k]
    return total


@inlined
def _carry(row, table, to):  # type: ignore[no-untyped-def]
    """to = row @ table."""
    if len(to) >= VECTOR_BYTES // to.itemsize:
        product(row, table, to)
        return
    to[:] = 0
    for j in range(len(row)):
        for i in range(len(to)):
            to[i] += row[j] * table[j, i]


@inlined
def _fetch(cells, states, slot, n):  # type: ignore[no-untyped-def]
    """A hint that row n will be needed, if it has been observed."""
    if slot[n] >= 0:
        for k in range(n * states, (n + 1) * states, LINE // cells.itemsize):
            prefetch(cells, k)


@inlined
def _now(belief, slot, propagators, shared, n, to):  # type: ignore[no-untyped-def]
    if slot[n] < 0:
        to[:] = shared[-1 - slot[n]]
    else:
        _carry(belief[n], propagators[slot[n]], to)


@compiled
def _predict(belief, slot, propagators, shared, index, out, everyone, first, last):  # type: ignore[no-untyped-def]
    for m in range(first, last):
        n = m if everyone else index[m]
        if n < 0 or n >= len(belief):
            out[m] = 0
        else:
            _now(belief, slot, propagators, shared, n, out[m])


@compiled
def _score(belief, slot, vectors, shared_scores, out, first, last):  # type: ignore[no-untyped-def]
    cells, states = belief.reshape(-1), belief.shape[1]
    for n in range(first, last):
        _fetch(cells, states, slot, min(n + AHEAD, last - 1))
        s = slot[n]
        out[n] = _dot(belief[n], vectors[s]) if s >= 0 else shared_scores[-1 - s]


@compiled
def _look(belief, slot, gains, without, shared_values, out, first, last):  # type: ignore[no-untyped-def]
    cells, states = belief.reshape(-1), belief.shape[1]
    for n in range(first, last):
        _fetch(cells, states, slot, min(n + AHEAD, last - 1))
        s = slot[n]
        if s < 0:
            out[n] = shared_values[-1 - s]
        else:
            out[n] = _dot(belief[n], without[s]) + positive_part(belief[n], gains[s])


@inlined
def _by_table(slot, first, last, order, ends):  # type: ignore[no-untyped-def]
    """The rows [first, last), those of each table together, those without one before them; order, ends: scratch."""
    ends[:] = 0
    for n in range(first, last):
        ends[max(slot[n], -1) + 1] += 1
    total = 0
    for table in range(len(ends)):
        total, ends[table] = total + ends[table], total
    for n in range(first, last):
        table = max(slot[n], -1) + 1
        order[ends[table]] = n
        ends[table] += 1
    return order[: last - first]


def _unit(horizon: float) -> float:
    """What stands for 1 in a price's sums, a power of two, so that nothing else is rounded.

    Prompts that hardly drift have tables with tiny entries far from the diagonal. Times small chances these would be
    subnormal numbers, each of which costs a processor over a hundred cycles, and there may be some in every row.
    """
    return math.ldexp(1.0, max(0, LARGEST - math.ceil(math.log2(max(horizon, 1.0)))))


@compiled
def _look_index(belief, slot, vectors, tables, shared_values, out, unit, first, last):  # type: ignore[no-untyped-def]
    cells, states = belief.reshape(-1), belief.shape[1]
    sums, ends = np.empty(tables.shape[2], belief.dtype), np.empty(1 + len(tables), np.int64)
    block = max(LEAST_TOGETHER, TOGETHER * len(tables))
    order = np.empty(min(block, last - first), np.int64)
    for start in range(first, last, block):
        rows = _by_table(slot, start, min(start + block, last), order, ends)
        for place in range(len(rows)):
            _fetch(cells, states, slot, rows[min(place + AHEAD, len(rows) - 1)])
            n = rows[place]
            s = slot[n]
            if s < 0:
                out[n] = shared_values[-1 - s]
            else:
                product(belief[n], tables[s], sums)
                out[n] = _break_even(_dot(belief[n], vectors[s]), sums, unit)


@summing
def _break_even(now, sums, unit):  # type: ignore[no-untyped-def]
    """The largest (now + sum of worths) / (unit + sum of chances) over sets of outcomes; sums: worths, then chances."""
    none, outcomes = sums.dtype.type(0), len(sums) // 2
    nu = now / unit
    for _ in range(outcomes + 1):
        above, below = none, none
        for o in range(outcomes):
            worth, chance = sums[o], sums[outcomes + o]
            stops = worth <= nu * chance  # nan goes on
            above += none if stops else worth
            below += none if stops else chance
        better = (now + above) / (unit + below)
        if better <= nu:
            break
        nu = better
    return nu


@compiled
def _advance(  # type: ignore[no-untyped-def]
    belief,
    slot,
    propagators,
    shared,
    index,
    likelihood,
    pull,
    expected,
    chance,
    status,
    now,
    decay,
    tiny,
    first,
    last,
):
    """Entries of the rows [first, last), which are consecutive, for the index ascends. pull: (1 - decay) log prior."""
    states = belief.shape[1]
    moved, b, logs = np.empty(states, belief.dtype), np.empty(states), np.empty(states)
    for m in range(np.searchsorted(index, first), np.searchsorted(index, last)):
        n = index[m]
        if m > 0 and index[m - 1] == n:
            continue
        _now(belief, slot, propagators, shared, n, moved)
        for k in range(states):
            b[k] = moved[k]
        if decay < 1.0:
            _forget(b, decay, pull[m if len(pull) == len(index) else 0], logs)
        if len(expected) > 0:
            for k in range(states):
                expected[m, k] = b[k]
        L, row = likelihood[m], belief[n]
        total, mass = 0.0, 0.0
        for k in range(states):
            total += b[k] * L[k]
            mass += L[k]
        if total > tiny:
            chance[m] = total
            for k in range(states):
                row[k] = b[k] * L[k] / total
        else:
            status[m] = UNEXPECTED
            for k in range(states):
                row[k] = L[k] / mass
        slot[n] = now


@inlined
def _forget(b, decay, pull, logs):  # type: ignore[no-untyped-def]
    """b becomes the normalised geometric mean of itself and the prior; it stays if they share no state."""
    highest, total = -np.inf, 0.0
    for k in range(len(b)):
        logs[k] = pull[k] + (decay * _log(b[k]) if decay > 0.0 else 0.0)
    for k in range(len(b)):
        highest = max(highest, logs[k])
    if highest == -np.inf:
        return
    for k in range(len(b)):
        b[k] = exp_minus(highest - logs[k])
    for k in range(len(b)):
        total += b[k]
    for k in range(len(b)):
        b[k] /= total


@inlined
def _log(x):  # type: ignore[no-untyped-def]
    """The logarithm of any x >= 0: minus infinity, or that of a normal number."""
    small = x < _SMALLEST
    value = log(x * 2.0**54 if small else x) - (_LOG_OF_2_TO_54 if small else 0.0)
    return value if x > 0.0 else (-np.inf if x == 0.0 else x)


@compiled
def _settle(belief, slot, propagators, from_slot, to_slot, now, first, last):  # type: ignore[no-untyped-def]
    moved = np.empty(belief.shape[1], belief.dtype)
    for n in range(first, last):
        if from_slot <= slot[n] < to_slot:
            _carry(belief[n], propagators[slot[n]], moved)
            belief[n] = moved
            slot[n] = now
