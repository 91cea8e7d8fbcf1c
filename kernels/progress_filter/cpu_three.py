"""The pass of `cpu.py` for three states that learn under a shared prior, which is what DPS is.

A block of rows is copied to a buffer whose rows lie at fixed distances. There the compiler knows that nothing overlaps,
and makes of all that has to be done with a row one loop of vector instructions.
"""

from __future__ import annotations

import numpy as np

from bayes_prompt.kernels.instructions import LINE, prefetch
from bayes_prompt.kernels.progress_filter import SMALLEST_SCALE
from bayes_prompt.kernels.progress_filter.cpu_narrow import divide_by_mass, narrow_to, widen_to
from bayes_prompt.kernels.progress_filter.cpu_rows import condition, score_unmoved
from bayes_prompt.kernels.shortlist_cpu import note_block
from bayes_prompt.kernels.threads import compiled, inlined

_B = 256  # rows of a block, whose 13 numbers a row and those of the next one stay in the first-level cache
_P, _S = 9 * _B, 12 * _B  # where the buffer has the posterior (3, _B) and the scores (_B,), after learned (9, _B)
_AHEAD = 32  # rows worked on between two handfuls of lines fetched for the next block


@compiled
def advance_three(  # type: ignore[no-untyped-def]
    D, p, prior, index, L, expected, evidence, status, before, after, factor, gain, tiny,
    utility, scores, threshold, noted, first, last
):  # fmt: skip
    """`cpu_rows.advance_rows` for K = 3; a state in bfloat16 comes as uint16."""
    buffer = np.empty(13 * _B, prior.dtype)
    learned, posterior = buffer[:_P].reshape((3, 3, _B)), buffer[_P:_S].reshape((3, _B))
    most = min(_B, len(index))
    xi, q, rows = np.empty((most, 3, 3)), np.empty((most, 3)), np.empty(most, np.int64)
    entry, count = np.searchsorted(index, first), 0
    for start in range(first, last, _B):
        size, stop = min(_B, last - start), min(start + _B, last)
        _load(D, p, buffer, start, stop, 0)
        observed = 0
        while entry < len(index) and index[entry] < stop:
            n = index[entry] - start
            if observed == 0 or rows[observed - 1] != n:
                condition(
                    *(learned, posterior, prior, L, before, entry, n, q[observed], xi[observed]),
                    *(tiny, expected, evidence, status),
                )
                rows[observed] = n
                observed += 1
            entry += 1
        for r in range(0, size, _AHEAD):
            _fetch(D, p, stop + r, min(stop + r + _AHEAD, last))
            _predict(buffer[r:], prior, before, min(_AHEAD, size - r))
        if factor != 1:
            _shrink(buffer, factor, tiny / SMALLEST_SCALE)
        for o in range(observed):
            n = rows[o]
            for j in range(3):
                posterior[j, n] = q[o, j]
                for i in range(3):
                    learned[j, i, n] += xi[o, j, i] * gain
                    narrow_to(learned[j, i, n : n + 1], D[j, i, start + n : start + n + 1])
        for k in range(9 if factor == 1 else 0, 12):
            target = D[k // 3, k % 3, start:stop] if k < 9 else p[k - 9, start:stop]
            narrow_to(buffer[k * _B : k * _B + size], target)
        if len(scores) > 0:
            if p.itemsize == 2:  # scored is what was stored
                _load(D, p, buffer, start, stop, 9 if observed == 0 and factor == 1 else 0)
            _score(buffer, prior, after, utility, size)
            out = scores[start:stop]
            _finish(buffer, out, p.itemsize == 2)
            if len(noted) > 0:
                count = note_block(out, start, threshold, noted, count)
    return count


@compiled
def score_three(D, p, prior, scale, utility, scores, threshold, noted, first, last):  # type: ignore[no-untyped-def]
    """`cpu_rows.score_rows` for K = 3: to the last bit what `advance_three` would have scored."""
    buffer, count = np.empty(13 * _B, prior.dtype), 0
    for start in range(first, last, _B):
        size, stop = min(_B, last - start), min(start + _B, last)
        _load(D, p, buffer, start, stop, 0)
        for r in range(0, size, _AHEAD):
            _fetch(D, p, stop + r, min(stop + r + _AHEAD, last))
            _score(buffer[r:], prior, scale, utility, min(_AHEAD, size - r))
        out = scores[start:stop]
        _finish(buffer, out, p.itemsize == 2)
        score_unmoved(buffer[_P:_S].reshape((3, _B)), utility, out, 0, size)
        if len(noted) > 0:
            count = note_block(out, start, threshold, noted, count)
    return count


@compiled
def _load(D, p, buffer, start, stop, first):  # type: ignore[no-untyped-def]
    """Rows [start, stop) to the buffer, from its part number `first` on."""
    for k in range(first, 12):
        source = D[k // 3, k % 3, start:stop] if k < 9 else p[k - 9, start:stop]
        widen_to(source, buffer[k * _B : k * _B + stop - start])


@compiled
def _finish(w, out, narrow):  # type: ignore[no-untyped-def]
    """The buffer's scores to `out` (size,)."""
    scores = w[_S:]
    for r in range(len(out)):
        out[r] = scores[r]
    if narrow:
        divide_by_mass(w[_P:_S].reshape((3, _B)), out)


@inlined
def _fetch(D, p, start, stop):  # type: ignore[no-untyped-def]
    """Have the processor fetch the numbers of rows [start, stop) ahead."""
    for k in range(12):
        row = D[k // 3, k % 3] if k < 9 else p[k - 9]
        for n in range(start, stop, LINE // p.itemsize):
            prefetch(row, n)


@compiled
def _predict(w, prior, s, size):  # type: ignore[no-untyped-def]
    """The posterior in the buffer becomes the belief that follows from it, or itself in rows without a step."""
    a0, a1, a2 = prior[0, 0, 0], prior[0, 1, 0], prior[0, 2, 0]
    b0, b1, b2 = prior[1, 0, 0], prior[1, 1, 0], prior[1, 2, 0]
    c0, c1, c2 = prior[2, 0, 0], prior[2, 1, 0], prior[2, 2, 0]
    a, b, c = a0 + a1 + a2, b0 + b1 + b2, c0 + c1 + c2
    one = w.dtype.type(1)
    for r in range(size):
        d0, d1, d2 = w[r], w[_B + r], w[2 * _B + r]
        e0, e1, e2 = w[3 * _B + r], w[4 * _B + r], w[5 * _B + r]
        f0, f1, f2 = w[6 * _B + r], w[7 * _B + r], w[8 * _B + r]
        p0, p1, p2 = w[_P + r], w[_P + _B + r], w[_P + 2 * _B + r]
        d = p0 / (a + s * (d0 + d1 + d2))
        e = p1 / (b + s * (e0 + e1 + e2))
        f = p2 / (c + s * (f0 + f1 + f2))
        q0 = d * (a0 + s * d0) + e * (b0 + s * e0) + f * (c0 + s * f0)
        q1 = d * (a1 + s * d1) + e * (b1 + s * e1) + f * (c1 + s * f1)
        q2 = d * (a2 + s * d2) + e * (b2 + s * e2) + f * (c2 + s * f2)
        total = q0 + q1 + q2
        rest = one / total  # rounding would let a belief's sum wander over thousands of steps: it is divided out
        w[_P + r] = rest * (q0 if total >= 0 else p0)
        w[_P + _B + r] = rest * (q1 if total >= 0 else p1)
        w[_P + 2 * _B + r] = rest * (q2 if total >= 0 else p2)


@compiled
def _score(w, prior, s, utility, size):  # type: ignore[no-untyped-def]
    """What the belief that follows from the posterior in the buffer is worth."""
    u0, u1, u2 = utility[0], utility[1], utility[2]
    a = prior[0, 0, 0] + prior[0, 1, 0] + prior[0, 2, 0]
    b = prior[1, 0, 0] + prior[1, 1, 0] + prior[1, 2, 0]
    c = prior[2, 0, 0] + prior[2, 1, 0] + prior[2, 2, 0]
    v0 = prior[0, 0, 0] * u0 + prior[0, 1, 0] * u1 + prior[0, 2, 0] * u2
    v1 = prior[1, 0, 0] * u0 + prior[1, 1, 0] * u1 + prior[1, 2, 0] * u2
    v2 = prior[2, 0, 0] * u0 + prior[2, 1, 0] * u1 + prior[2, 2, 0] * u2
    for r in range(size):
        d0, d1, d2 = w[r], w[_B + r], w[2 * _B + r]
        e0, e1, e2 = w[3 * _B + r], w[4 * _B + r], w[5 * _B + r]
        f0, f1, f2 = w[6 * _B + r], w[7 * _B + r], w[8 * _B + r]
        d = w[_P + r] * (v0 + s * (d0 * u0 + d1 * u1 + d2 * u2)) / (a + s * (d0 + d1 + d2))
        e = w[_P + _B + r] * (v1 + s * (e0 * u0 + e1 * u1 + e2 * u2)) / (b + s * (e0 + e1 + e2))
        f = w[_P + 2 * _B + r] * (v2 + s * (f0 * u0 + f1 * u1 + f2 * u2)) / (c + s * (f0 + f1 + f2))
        w[_S + r] = d + e + f


@compiled
def _shrink(w, factor, least):  # type: ignore[no-untyped-def]
    for r in range(_P):
        rest = factor * w[r]
        w[r] = rest if rest >= least else 0
