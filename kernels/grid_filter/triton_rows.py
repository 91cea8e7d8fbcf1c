"""The Triton kernels of the grid filter: a program has BLOCK rows, WIDTH states wide with those that there are not.

A belief is multiplied with its table one state at a time: the numbers of that state, one a row, times the row of each
table that tells where they go. So sums stay where they are made, and threads exchange nothing until a row is summed up.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bayes_prompt.kernels import progress_filter

_UNEXPECTED = tl.constexpr(progress_filter.UNEXPECTED)


@triton.jit
def score_rows(  # type: ignore[no-untyped-def]
    belief,
    slot,
    vectors,
    shared_scores,
    out,
    num_prompts: tl.int64,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The scores of a block of rows: `reference.score`."""
    row, inside = _block(num_prompts, BLOCK)
    s, seen, unseen = _slots(slot, row, inside)
    b = _tile(belief, row, seen, K, WIDTH)
    u = _tile(vectors, s, seen, K, WIDTH)
    shared = tl.load(shared_scores + (-1 - s), mask=unseen, other=0.0)
    tl.store(out + row, tl.where(seen, tl.sum(b * u, axis=1), shared), mask=inside)


@triton.jit
def look_rows(  # type: ignore[no-untyped-def]
    belief,
    slot,
    gains,
    without,
    shared_values,
    out,
    num_prompts: tl.int64,
    num_outcomes: tl.int64,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What a look at each of a block of rows is worth: `reference.look`, of tables as `look_tables` makes them."""
    row, inside = _block(num_prompts, BLOCK)
    s, seen, unseen = _slots(slot, row, inside)
    b = _tile(belief, row, seen, K, WIDTH)
    w = _tile(without, s, seen, K, WIDTH)
    value = tl.sum(b * w, axis=1)
    for o in range(num_outcomes):
        g = _tile(gains, s * num_outcomes + o, seen, K, WIDTH)
        gain = tl.sum(b * g, axis=1)
        value += tl.where(gain < 0.0, 0.0, gain)  # nan stays nan
    shared = tl.load(shared_values + (-1 - s), mask=unseen, other=0.0)
    tl.store(out + row, tl.where(seen, value, shared), mask=inside)


@triton.jit
def look_index_rows(  # type: ignore[no-untyped-def]
    belief,
    slot,
    vectors,
    tables,
    shared_values,
    out,
    num_prompts: tl.int64,
    K: tl.constexpr,
    OUTCOMES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The prices at which a block of rows breaks even: `reference.look_index`, of `look_index_tables`."""
    row, inside = _block(num_prompts, BLOCK)
    s, seen, unseen = _slots(slot, row, inside)
    now = tl.load(shared_values + (-1 - s), mask=unseen, other=0.0)  # where there are no outcomes
    worth = tl.zeros((BLOCK, OUTCOMES), now.dtype)
    chance = worth
    for j in range(K):
        k = s * K + tl.cast(j, tl.int64)
        b = tl.load(belief + (row * K + tl.cast(j, tl.int64)), mask=seen, other=0.0)
        now += b * tl.load(vectors + k, mask=seen, other=0.0)
        worth += b[:, None] * _tile(tables, 2 * k, seen, OUTCOMES, OUTCOMES)
        chance += b[:, None] * _tile(tables, 2 * k + 1, seen, OUTCOMES, OUTCOMES)
    nu = now
    rising = 1
    while rising > 0:
        stops = worth <= nu[:, None] * chance  # nan goes on
        above = now + tl.sum(tl.where(stops, 0.0, worth), axis=1)
        better = above / (1.0 + tl.sum(tl.where(stops, 0.0, chance), axis=1))
        rising = tl.max((better > nu).to(tl.int32), axis=0)
        nu = tl.where(better <= nu, nu, better)
    tl.store(out + row, nu, mask=inside)


@triton.jit
def predict_rows(  # type: ignore[no-untyped-def]
    belief,
    slot,
    propagators,
    shared,
    index,
    out,
    num_prompts: tl.int64,
    num_asked: tl.int64,
    EVERYONE: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The beliefs now of a block of those who are asked for: `reference.predict`."""
    asked, inside = _block(num_asked, BLOCK)
    row = asked
    if not EVERYONE:
        row = tl.load(index + asked, mask=inside, other=-1)
    s, seen, unseen = _slots(slot, row, inside & (row >= 0) & (row < num_prompts))
    b = _now(belief, propagators, shared, row, s, seen, unseen, K, WIDTH)
    cell, there = _cells(asked, inside, K, WIDTH)
    tl.store(out + cell, b, mask=there)


@triton.jit(do_not_specialize=["num_entries", "now", "decay_bits", "rest_bits"])
def advance_entries(  # type: ignore[no-untyped-def]
    belief,
    slot,
    propagators,
    shared,
    index,
    likelihood,
    prior,
    expected,
    chance,
    status,
    num_prompts: tl.int64,
    num_entries: tl.int64,
    now: tl.int64,
    decay_bits: tl.int64,
    rest_bits: tl.int64,
    EXPECTED: tl.constexpr,
    FORGET: tl.constexpr,
    REMEMBER: tl.constexpr,
    OWN_PRIOR: tl.constexpr,
    TINY: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of entries is observed: `reference.advance`. FORGET: decay < 1; REMEMBER: decay > 0."""
    entry, inside = _block(num_entries, BLOCK)
    row = tl.load(index + entry, mask=inside, other=-1)
    before = tl.load(index + entry - 1, mask=inside & (entry > 0), other=-1)
    counts = inside & (row >= 0) & (row < num_prompts) & (row != before)
    s, seen, unseen = _slots(slot, row, counts)
    b = _now(belief, propagators, shared, row, s, seen, unseen, K, WIDTH)
    cell, there = _cells(entry, counts, K, WIDTH)
    if FORGET:
        own = cell
        if not OWN_PRIOR:
            own, _ = _cells(entry * 0, counts, K, WIDTH)
        logs = _log_power(tl.load(prior + own, mask=there, other=0.0), rest_bits)
        if REMEMBER:
            logs += _log_power(b, decay_bits)
        highest = tl.max(logs, axis=1)[:, None]
        meet = highest > float("-inf")
        mixed = tl.exp2(logs - tl.where(meet, highest, 0.0))
        total = tl.sum(mixed, axis=1)[:, None]
        b = tl.where(meet, mixed / tl.where(meet, total, 1.0), b)
    L = tl.load(likelihood + cell, mask=there, other=0.0)
    total = tl.sum(b * L, axis=1)
    mass = tl.sum(L, axis=1)
    foreseen = total > TINY
    mass = tl.where(counts, tl.where(foreseen, total, mass), 1.0)
    q = tl.where(foreseen[:, None], b * L, L) / mass[:, None]
    tl.debug_barrier()  # other threads of this program have read what is overwritten now
    to, _ = _cells(row, counts, K, WIDTH)
    tl.store(belief + to, q, mask=there)
    tl.store(slot + row, (row * 0 + now).to(tl.int32), mask=counts)
    tl.store(chance + entry, tl.where(counts & foreseen, total, 0.0), mask=inside)
    tl.store(status + entry, tl.where(counts & (total <= TINY), _UNEXPECTED, 0), mask=inside)
    if EXPECTED:
        _, width = _cells(entry, inside, K, WIDTH)
        tl.store(expected + cell, tl.where(there, b, 0.0), mask=width)


@triton.jit(do_not_specialize=["first", "last", "now"])
def settle_rows(  # type: ignore[no-untyped-def]
    belief,
    slot,
    propagators,
    num_prompts: tl.int64,
    first: tl.int64,
    last: tl.int64,
    now: tl.int64,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Those of a block of rows that were left behind are carried on: `reference.settle`."""
    row, inside = _block(num_prompts, BLOCK)
    s, seen, _ = _slots(slot, row, inside)
    behind = seen & (s >= first) & (s < last)
    if tl.max(behind.to(tl.int32), axis=0) > 0:
        b = _now(belief, propagators, belief, row, s, behind, inside & False, K, WIDTH)
        tl.debug_barrier()  # other threads of this program have read what is overwritten now
        cell, there = _cells(row, behind, K, WIDTH)
        tl.store(belief + cell, b, mask=there)
        tl.store(slot + row, (row * 0 + now).to(tl.int32), mask=behind)


@triton.jit
def _block(count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The numbers of this program's rows, and which of them there are."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return row, row < count


@triton.jit
def _slots(slot, row, mask):  # type: ignore[no-untyped-def]
    """The slots of rows (0 where masked), in 64 bits; which have been observed, and which share a belief."""
    s = tl.load(slot + row, mask=mask, other=0).to(tl.int64)
    return s, mask & (s >= 0), mask & (s < 0)


@triton.jit
def _cells(row, mask, K: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Where the numbers of rows lie, (BLOCK, WIDTH), and which of them there are."""
    state = tl.arange(0, WIDTH).to(tl.int64)
    return row[:, None] * K + state[None, :], mask[:, None] & (state < K)[None, :]


@triton.jit
def _tile(table, row, mask, K: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows of a table, 0 where masked."""
    cell, there = _cells(row, mask, K, WIDTH)
    return tl.load(table + cell, mask=there, other=0.0)


@triton.jit
def _now(belief, propagators, shared, row, s, seen, unseen, K: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """The beliefs now of rows, (BLOCK, WIDTH); 0 where neither observed nor shared."""
    b = _tile(shared, -1 - s, unseen, K, WIDTH)
    for j in range(K):
        k = tl.cast(j, tl.int64)
        leaving = tl.load(belief + (row * K + k), mask=seen, other=0.0)
        to = _tile(propagators, s * K + k, seen, K, WIDTH)
        b += leaving[:, None] * to
    return b


@triton.jit
def _log_power(x, bits):  # type: ignore[no-untyped-def]
    """log2 of x to the power of a positive float64 that has these bits; it may be too small for the dtype of x."""
    power = bits.to(tl.int64).to(tl.float64, bitcast=True).to(x.dtype)
    return tl.where(x > 0.0, power * tl.log2(tl.where(x > 0.0, x, 1.0)), float("-inf"))
