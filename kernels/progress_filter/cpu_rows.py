"""The compiled passes over ranges of rows for any number of states: `cpu.py` says how they go about it.

D (K, K, N) is what was learned, of no length where transitions are fixed; p (K, N) the posterior; prior (K, K, 1 or N).
"""

from __future__ import annotations

import numpy as np

from bayes_prompt.kernels.progress_filter import IMPOSSIBLE, SMALLEST_SCALE, UNEXPECTED
from bayes_prompt.kernels.shortlist_cpu import note_block
from bayes_prompt.kernels.threads import compiled, inlined


@compiled
def block_rows(states):  # type: ignore[no-untyped-def]
    """Rows per block: as many as stay in the second-level cache, for each array of a block costs a loop's set-up."""
    return max(1024, min(4096, (1 << 18) // (states * states)))


@compiled
def advance_rows(  # type: ignore[no-untyped-def]
    D,
    p,
    prior,
    index,
    L,
    expected,
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
    """Rows [first, last) make a step: what `reference.advance` says; returns how many reached the threshold."""
    states = p.shape[0]
    learn = D.shape[2] > 0
    block = block_rows(states)
    most = min(block, len(index))
    xi, q = np.empty((most, states, states), np.float64), np.empty((most, states), np.float64)
    rows = np.empty(most, np.int64)
    sums, weight, b = _workspace(p, block)
    next_entry, count = np.searchsorted(index, first), 0
    for start in range(first, last, block):
        stop = min(start + block, last)
        observed = 0
        while next_entry < len(index) and index[next_entry] < stop:
            n = index[next_entry]
            if observed == 0 or rows[observed - 1] != n:
                condition(
                    D, p, prior, L, before, next_entry, n, q[observed], xi[observed], tiny, expected, evidence, status
                )
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
def score_rows(D, p, prior, scale, utility, scores, threshold, noted, first, last):  # type: ignore[no-untyped-def]
    """Rows [first, last) are scored: what `reference.score` says; returns how many reached the threshold."""
    block, count = block_rows(p.shape[0]), 0
    sums, weight, b = _workspace(p, block)
    for start in range(first, last, block):
        stop = min(start + block, last)
        _sum_block(D, sums, start, stop)
        for i in range(p.shape[0]):
            row, copy = p[i, start:stop], b[i]
            for r in range(len(row)):
                copy[r] = row[r]
        out = scores[start:stop]
        _score_next(D, b, prior, scale, sums, weight, utility, out, start, stop)
        score_unmoved(p, utility, out, start, stop)
        count = note_block(out, start, threshold, noted, count) if len(noted) > 0 else 0
    return count


@compiled
def score_unmoved(p, utility, out, start, stop):  # type: ignore[no-untyped-def]
    """Put right the scores of those rows [start, stop) that have made no step: their belief is their posterior."""
    for r in range(stop - start):
        total = p.dtype.type(0)
        for i in range(p.shape[0]):
            total += p[i, start + r]
        if total < 0:
            worth = p.dtype.type(0)
            for i in range(p.shape[0]):
                worth += utility[i] * p[i, start + r]
            out[r] = worth / total


@compiled
def predict_rows(D, p, prior, scale, belief, first, last):  # type: ignore[no-untyped-def]
    """The belief (K, N) of rows [first, last): what `reference.predict` says."""
    block = block_rows(p.shape[0])
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
def condition(D, p, prior, L, scale, m, n, q, xi, tiny, expected, evidence, status):  # type: ignore[no-untyped-def]
    """Row n given row m of the likelihood: q the posterior of its state, xi its transition as it is now expected."""
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
        q[i] = (np.float64(p[i, n]) if total < 0.0 else q[i]) / total
        expected[m, i] = q[i]
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
    """Rows [start, stop): b (K, block) becomes the belief that follows from p, or p itself in rows without a step."""
    states, size = p.shape[0], stop - start
    if D.shape[2] == 0 and prior.shape[2] == 1:
        _mix_block(p, prior, b, start, stop)
    else:
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
            to[r] = (row[r] if weight[r] < 0 else to[r]) * weight[r]


@compiled
def _mix_block(p, prior, b, start, stop):  # type: ignore[no-untyped-def]
    """b (K, block) becomes p of rows [start, stop) times transitions that all rows share: four states at a time."""
    states = p.shape[0]
    table = np.zeros((states + 3, states), p.dtype)
    for j in range(states):
        mass = p.dtype.type(0)
        for i in range(states):
            mass += prior[j, i, 0]
        for i in range(states):
            table[j, i] = prior[j, i, 0] / mass
    for j in range(0, states, 4):
        p0, p1 = p[j, start:stop], p[min(j + 1, states - 1), start:stop]
        p2, p3 = p[min(j + 2, states - 1), start:stop], p[min(j + 3, states - 1), start:stop]
        for i in range(states):
            to, t0, t1, t2, t3 = b[i], table[j, i], table[j + 1, i], table[j + 2, i], table[j + 3, i]
            if j == 0:
                for r in range(len(p0)):
                    to[r] = t0 * p0[r] + t1 * p1[r] + t2 * p2[r] + t3 * p3[r]
            else:
                for r in range(len(p0)):
                    to[r] += t0 * p0[r] + t1 * p1[r] + t2 * p2[r] + t3 * p3[r]


@compiled
def _score_next(D, b, prior, scale, sums, weight, utility, out, start, stop):  # type: ignore[no-untyped-def]
    """Rows [start, stop) from their posterior b (K, block): what the belief that follows is worth."""
    out[:] = 0
    if scale == 0 and prior.shape[2] == 1:  # every row leaves a state alike
        for j in range(len(utility)):
            share, mass, row = out.dtype.type(0), out.dtype.type(0), b[j]
            for i in range(len(utility)):
                share += prior[j, i, 0] * utility[i]
                mass += prior[j, i, 0]
            share /= mass
            for r in range(len(out)):
                out[r] += row[r] * share
        return
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
