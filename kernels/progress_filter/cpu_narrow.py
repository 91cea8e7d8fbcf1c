"""The passes of `cpu.py` over a state of any K that is stored in bfloat16: a block of rows is widened, worked on and
rounded.

numba has no bfloat16. Its numbers come as uint16: they are the upper halves of float32's.
"""

from __future__ import annotations

import numpy as np

from bayes_prompt.kernels.progress_filter.cpu_rows import advance_rows, block_rows, predict_rows, score_rows
from bayes_prompt.kernels.shortlist_cpu import note_block
from bayes_prompt.kernels.threads import compiled, inlined

_16, _HALF, _1 = np.uint32(16), np.uint32(0x7FFF), np.uint32(1)


@compiled
def advance_narrow(  # type: ignore[no-untyped-def]
    D, p, prior, index, L, expected, evidence, status, before, after, factor, gain, tiny,
    utility, scores, threshold, noted, first, last
):  # fmt: skip
    """`cpu_rows.advance_rows` of a state in bfloat16."""
    count = 0
    wide_D, wide_p, own = _workspace(D, p, prior)
    for start in range(first, last, wide_p.shape[1]):
        stop = min(start + wide_p.shape[1], last)
        base = _widen(D, p, prior, wide_D, wide_p, own, start, stop)
        seen = slice(np.searchsorted(index, start), np.searchsorted(index, stop))
        advance_rows(
            wide_D, wide_p, base, index[seen] - start, L[seen], expected[seen], evidence[seen], status[seen], before,
            after, factor, gain, tiny, utility, scores[:0], threshold, noted[:0], 0, stop - start
        )  # fmt: skip
        for j in range(p.shape[0]):
            narrow_to(wide_p[j], p[j, start:stop])
            if D.shape[2] > 0 and (seen.stop > seen.start or factor != 1):
                for i in range(p.shape[0]):
                    narrow_to(wide_D[j, i], D[j, i, start:stop])
        if len(scores) > 0:
            base = _widen(D, p, prior, wide_D, wide_p, own, start, stop)  # scored is what was stored
            _score(wide_D, wide_p, base, after, utility, scores[start:stop], threshold, noted)
            count = note_block(scores[start:stop], start, threshold, noted, count) if len(noted) > 0 else 0
    return count


@compiled
def score_narrow(D, p, prior, scale, utility, scores, threshold, noted, first, last):  # type: ignore[no-untyped-def]
    """`cpu_rows.score_rows` of a state in bfloat16."""
    count = 0
    wide_D, wide_p, own = _workspace(D, p, prior)
    for start in range(first, last, wide_p.shape[1]):
        stop = min(start + wide_p.shape[1], last)
        base = _widen(D, p, prior, wide_D, wide_p, own, start, stop)
        _score(wide_D, wide_p, base, scale, utility, scores[start:stop], threshold, noted)
        count = note_block(scores[start:stop], start, threshold, noted, count) if len(noted) > 0 else 0
    return count


@compiled
def predict_narrow(D, p, prior, scale, belief, first, last):  # type: ignore[no-untyped-def]
    """`cpu_rows.predict_rows` of a state in bfloat16."""
    wide_D, wide_p, own = _workspace(D, p, prior)
    wide_b = np.empty_like(wide_p)
    for start in range(first, last, wide_p.shape[1]):
        stop = min(start + wide_p.shape[1], last)
        base = _widen(D, p, prior, wide_D, wide_p, own, start, stop)
        predict_rows(wide_D, wide_p, base, scale, wide_b, 0, stop - start)
        belief[:, start:stop] = wide_b[:, : stop - start]


@compiled
def _score(D, p, prior, scale, utility, out, threshold, noted):  # type: ignore[no-untyped-def]
    """Scores (size,) of a widened block; 8 bits leave the posterior's sum some thousandths from 1."""
    score_rows(D, p, prior, scale, utility, out, threshold, noted[:0], 0, len(out))
    divide_by_mass(p, out)


@compiled
def divide_by_mass(p, out):  # type: ignore[no-untyped-def]
    """Divide scores (size,) by the sum of the posterior p (K, block) where a step was made: else they are already."""
    for r in range(len(out)):
        total = p.dtype.type(0)
        for i in range(p.shape[0]):
            total += p[i, r]
        if total > 0:
            out[r] /= total


@inlined
def _workspace(D, p, prior):  # type: ignore[no-untyped-def]
    """Learned part, posterior and own priors of a block in float32; of no length where there are none."""
    states = p.shape[0]
    block = block_rows(states)
    learned, own = block if D.shape[2] > 0 else 0, block if prior.shape[2] > 1 else 1
    return (
        np.empty((states, states, learned), np.float32),
        np.empty((states, block), np.float32),
        np.empty((states, states, own), np.float32),
    )


@compiled
def _widen(D, p, prior, wide_D, wide_p, own, start, stop):  # type: ignore[no-untyped-def]
    """Fill the workspace; returns the priors of the block, (K, K, 1) or (K, K, block)."""
    for j in range(p.shape[0]):
        widen_to(p[j, start:stop], wide_p[j])
        for i in range(p.shape[0]):
            if D.shape[2] > 0:
                widen_to(D[j, i, start:stop], wide_D[j, i])
            if prior.shape[2] > 1:
                own[j, i, : stop - start] = prior[j, i, start:stop]
    return own if prior.shape[2] > 1 else prior


@inlined
def widen_to(source, target):  # type: ignore[no-untyped-def]
    """Copy numbers, from bfloat16 if that is what they are."""
    if source.itemsize == 2:
        for r in range(len(source)):
            target[r] = np.uint32(np.uint32(source[r]) << _16).view(np.float32)
    else:
        for r in range(len(source)):
            target[r] = source[r]


@inlined
def narrow_to(source, target):  # type: ignore[no-untyped-def]
    """Copy numbers, to bfloat16 if that is stored: rounded to nearest, ties to even; finite numbers only."""
    if target.itemsize == 2:
        for r in range(len(target)):
            bits = np.float32(source[r]).view(np.uint32)
            target[r] = np.uint16(np.uint32(bits + _HALF + ((bits >> _16) & _1)) >> _16)
    else:
        for r in range(len(target)):
            target[r] = source[r]
