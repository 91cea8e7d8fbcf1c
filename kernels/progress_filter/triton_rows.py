"""The Triton kernels of the solving-progress filter, for BLOCK rows a program.

Each thread keeps a row or a few to itself: every quantity is a vector over rows, one for each state, so sums over
states are plain additions, nothing is padded, and threads exchange nothing.

Where states are few (RESIDENT) all that is stored of a row is read once and stays in registers until its score is
written; loops over states are unrolled. For more states that would take minutes to compile and more registers than
there are: the loop over the state that is left (`j`) stays a loop, and what it reads a second time comes from the
caches.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bayes_prompt.kernels import progress_filter, shortlist_triton

_UNEXPECTED, _IMPOSSIBLE = tl.constexpr(progress_filter.UNEXPECTED), tl.constexpr(progress_filter.IMPOSSIBLE)
_SMALLEST_SCALE = tl.constexpr(progress_filter.SMALLEST_SCALE)


@triton.jit(do_not_specialize=["decay_bits"])
def step_scales(scale, scales, decay_bits: tl.int64, LEARN: tl.constexpr):  # type: ignore[no-untyped-def]
    """scales: that of before the step, that of after it, what `learned` is multiplied with, what is added with."""
    before = tl.load(scale)
    after = before
    factor = before * 0.0 + 1.0
    if LEARN:
        after = before * decay_bits.to(tl.int64).to(tl.float64, bitcast=True)
        small = after < _SMALLEST_SCALE
        factor = tl.where(small, after, factor)
        after = tl.where(small, 1.0, after)
    tl.store(scales, before)
    tl.store(scales + 1, after)
    tl.store(scales + 2, factor)
    tl.store(scales + 3, 1.0 / after)
    tl.store(scale, after)


@triton.jit
def advance_rows(  # type: ignore[no-untyped-def]
    learned,
    posterior,
    scales,
    prior,
    index,
    bounds,
    likelihood,
    expected,
    evidence,
    status,
    utility,
    scores,
    threshold,
    rows,
    count,
    room: tl.int64,
    num_prompts: tl.int64,
    K: tl.constexpr,
    RESIDENT: tl.constexpr,
    BLOCK: tl.constexpr,
    LEARN: tl.constexpr,
    PRIOR_PER_PROMPT: tl.constexpr,
    TINY: tl.constexpr,
    SCORE: tl.constexpr,
    NOTE: tl.constexpr,
):
    """A block of rows makes a step: `reference.advance`."""
    scalar = prior.dtype.element_ty  # the state may be stored in fewer bits
    before, after = tl.load(scales).to(scalar), tl.load(scales + 1).to(scalar)
    factor, gain = tl.load(scales + 2).to(scalar), tl.load(scales + 3).to(scalar)
    stride = num_prompts.to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < stride
    zero = tl.zeros([BLOCK], dtype=scalar)

    # Which row of the likelihood each row goes with: of several entries the first.
    m = tl.zeros([BLOCK], dtype=tl.int64) - 1
    here = bounds + tl.program_id(0).to(tl.int64)
    first, last = tl.load(here), tl.load(here + 1)
    entry = first
    while entry < last:
        m = tl.where((m < 0) & (tl.load(index + entry) == row), entry, m)
        entry += 1
    observed = (m >= 0) & inside

    if RESIDENT:
        p, base, cells = _read(learned, posterior, prior, row, inside, stride, K, LEARN, PRIOR_PER_PROMPT)
        b = _spread(p, base, cells, before, K, LEARN)
    else:
        b = _spread_streamed(learned, posterior, prior, before, row, inside, stride, K, LEARN, PRIOR_PER_PROMPT)

    # Condition the observed rows. Denominators of rows that do not need one are 1.
    seen = ()
    total = zero
    mass = zero
    for k in tl.static_range(K):
        seen += (tl.load(likelihood + (m * K + k), mask=observed, other=0.0),)
        total += b[k] * seen[k]
        mass += seen[k]
        tl.store(expected + (m * K + k), b[k], mask=observed)
    foreseen = total > TINY
    mass = tl.where(observed, tl.where(foreseen, total, mass), 1.0)
    flags = tl.where(foreseen, 0, _UNEXPECTED)
    q = ()
    for k in tl.static_range(K):
        q += (tl.where(observed, tl.where(foreseen, b[k] * seen[k], seen[k]) / mass, b[k]),)

    if LEARN:
        # The order of factors keeps each finite: a small concentration times a small likelihood would underflow.
        x = zero  # the probability of what was seen, by the learned transitions
        written = observed | (inside & (zero + factor != 1.0))
        if RESIDENT:
            joint = ()
            for j in tl.static_range(K):
                leaving = zero
                for i in tl.static_range(K):
                    leaving += base[j * K + i] + before * cells[j * K + i]
                for i in tl.static_range(K):
                    move = (base[j * K + i] + before * cells[j * K + i]) / leaving
                    joint += (tl.abs(p[j]) * (move * seen[i]),)
                    x += joint[j * K + i]
            possible = observed & (x > TINY)
            x = tl.where(possible, x, 1.0)
            new = ()
            for k in tl.static_range(K * K):
                c = _shrunk(cells[k], factor, TINY) + tl.where(possible, joint[k] / x * gain, 0.0)
                c = c.to(learned.dtype.element_ty)
                tl.store(learned + k * stride + row, c, mask=written)
                new += (c.to(scalar),)
            cells = new
        else:
            if tl.max(written.to(tl.int32), axis=0) > 0:
                for j in range(K):
                    p_j, moves = _moves(
                        learned, posterior, prior, before, j, row, observed, stride, K, PRIOR_PER_PROMPT
                    )
                    arriving = zero
                    for i in tl.static_range(K):
                        arriving += moves[i] * seen[i]
                    x += p_j * arriving
                possible = observed & (x > TINY)
                scaled = tl.where(possible, 1.0 / tl.where(possible, x, 1.0), 0.0)
                for j in range(K):
                    p_j, moves = _moves(
                        learned, posterior, prior, before, j, row, observed, stride, K, PRIOR_PER_PROMPT
                    )
                    for i in tl.static_range(K):
                        cell = learned + (tl.cast(j, tl.int64) * K + i) * stride + row
                        c = _shrunk(tl.load(cell, mask=inside, other=0.0).to(scalar), factor, TINY)
                        c += tl.where(possible, p_j * (moves[i] * seen[i]) * scaled * gain, 0.0)
                        tl.store(cell, c.to(learned.dtype.element_ty), mask=written)
            possible = observed & (x > TINY)
        flags += tl.where(possible, 0, _IMPOSSIBLE)
    tl.store(evidence + m, tl.where(foreseen, total, 0.0), mask=observed)
    tl.store(status + m, flags, mask=observed)
    kept = ()
    for k in tl.static_range(K):
        tl.store(posterior + k * stride + row, q[k].to(posterior.dtype.element_ty), mask=inside)
        kept += (q[k].to(posterior.dtype.element_ty).to(scalar),)

    if SCORE:
        if RESIDENT:
            b = _spread(kept, base, cells, after, K, LEARN)
        else:
            tl.debug_barrier()  # what other threads of this program have stored is read again
            b = _spread_streamed(learned, posterior, prior, after, row, inside, stride, K, LEARN, PRIOR_PER_PROMPT)
        _score(b, utility, scores, threshold, rows, count, room, row, inside, K, NOTE)


@triton.jit
def answer_rows(  # type: ignore[no-untyped-def]
    learned,
    posterior,
    scale,
    prior,
    belief,
    utility,
    scores,
    threshold,
    rows,
    count,
    room: tl.int64,
    num_prompts: tl.int64,
    K: tl.constexpr,
    RESIDENT: tl.constexpr,
    BLOCK: tl.constexpr,
    LEARN: tl.constexpr,
    PRIOR_PER_PROMPT: tl.constexpr,
    SCORE: tl.constexpr,
    NOTE: tl.constexpr,
    WRITE: tl.constexpr,
):
    """What is asked about the belief of a block of rows: the belief itself, or its score."""
    now = tl.load(scale).to(prior.dtype.element_ty)
    stride = num_prompts.to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < stride
    if RESIDENT:
        p, base, cells = _read(learned, posterior, prior, row, inside, stride, K, LEARN, PRIOR_PER_PROMPT)
        b = _spread(p, base, cells, now, K, LEARN)
    else:
        b = _spread_streamed(learned, posterior, prior, now, row, inside, stride, K, LEARN, PRIOR_PER_PROMPT)
    if WRITE:
        for k in tl.static_range(K):
            tl.store(belief + k * stride + row, b[k], mask=inside)
    if SCORE:
        _score(b, utility, scores, threshold, rows, count, room, row, inside, K, NOTE)


@triton.jit
def _read(  # type: ignore[no-untyped-def]
    learned, posterior, prior, row, inside, stride, K: tl.constexpr, LEARN: tl.constexpr, PRIOR_PER_PROMPT: tl.constexpr
):
    """All that is stored of the rows: posterior (K), prior and learned concentrations (K * K)."""
    p = ()
    base = ()
    cells = ()
    for j in tl.static_range(K):
        p += (tl.load(posterior + j * stride + row, mask=inside, other=1.0).to(prior.dtype.element_ty),)
    for k in tl.static_range(K * K):
        if PRIOR_PER_PROMPT:
            base += (tl.load(prior + k * stride + row, mask=inside, other=1.0),)
        else:
            base += (tl.load(prior + k),)
        if LEARN:
            cells += (tl.load(learned + k * stride + row, mask=inside, other=0.0).to(prior.dtype.element_ty),)
    return p, base, cells


@triton.jit
def _spread(p, base, cells, scale, K: tl.constexpr, LEARN: tl.constexpr):  # type: ignore[no-untyped-def]
    """The belief (K) that follows from p, or p itself in rows without a step."""
    b = (tl.zeros_like(p[0]),) * K
    for j in tl.static_range(K):
        leaving = tl.zeros_like(p[0])
        c = ()
        for i in tl.static_range(K):
            if LEARN:
                c += (base[j * K + i] + scale * cells[j * K + i],)
            else:
                c += (base[j * K + i] + tl.zeros_like(p[0]),)
            leaving += c[i]
        share = p[j] / leaving
        so_far = b
        b = ()
        for i in tl.static_range(K):
            b += (so_far[i] + share * c[i],)
    return _normalised(b, p, K)


@triton.jit
def _normalised(b, p, K: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rounding would let a belief's sum wander over thousands of steps: it is divided out. Without a step: p itself."""
    total = tl.zeros_like(b[0])
    for i in tl.static_range(K):
        total += b[i]
    belief = ()
    for i in tl.static_range(K):
        belief += (tl.where(total < 0.0, p[i], b[i]) / total,)
    return belief


@triton.jit
def _spread_streamed(  # type: ignore[no-untyped-def]
    learned,
    posterior,
    prior,
    scale,
    row,
    inside,
    stride,
    K: tl.constexpr,
    LEARN: tl.constexpr,
    PRIOR_PER_PROMPT: tl.constexpr,
):
    """`_read` and `_spread`, one state that is left after the other."""
    scalar = prior.dtype.element_ty
    zero = tl.zeros_like(row).to(scalar)
    b = (zero,) * K
    for j in range(K):
        leaving = zero
        c = ()
        for i in tl.static_range(K):
            c += (_concentration(learned, prior, scale, j, i, row, inside, stride, K, LEARN, PRIOR_PER_PROMPT),)
            leaving += c[i]
        share = tl.load(posterior + tl.cast(j, tl.int64) * stride + row, mask=inside, other=1.0).to(scalar) / leaving
        so_far = b
        b = ()
        for i in tl.static_range(K):
            b += (so_far[i] + share * c[i],)
    p = ()
    for i in tl.static_range(K):
        p += (tl.load(posterior + i * stride + row, mask=inside, other=1.0).to(scalar),)
    return _normalised(b, p, K)


@triton.jit
def _moves(  # type: ignore[no-untyped-def]
    learned, posterior, prior, scale, j, row, inside, stride, K: tl.constexpr, PRIOR_PER_PROMPT: tl.constexpr
):
    """The posterior of state j, and the probabilities (K) of moving on from there."""
    leaving = tl.zeros_like(row).to(prior.dtype.element_ty)
    c = ()
    for i in tl.static_range(K):
        c += (_concentration(learned, prior, scale, j, i, row, inside, stride, K, True, PRIOR_PER_PROMPT),)
        leaving += c[i]
    moves = ()
    for i in tl.static_range(K):
        moves += (c[i] / leaving,)
    p = tl.load(posterior + tl.cast(j, tl.int64) * stride + row, mask=inside, other=1.0)
    return tl.abs(p.to(prior.dtype.element_ty)), moves


@triton.jit
def _concentration(  # type: ignore[no-untyped-def]
    learned,
    prior,
    scale,
    j,
    i: tl.constexpr,
    row,
    inside,
    stride,
    K: tl.constexpr,
    LEARN: tl.constexpr,
    PRIOR_PER_PROMPT: tl.constexpr,
):
    cell = tl.cast(j, tl.int64) * K + i
    if PRIOR_PER_PROMPT:
        c = tl.load(prior + cell * stride + row, mask=inside, other=1.0)
    else:
        c = tl.load(prior + cell + tl.zeros_like(row))
    if LEARN:
        c += scale * tl.load(learned + cell * stride + row, mask=inside, other=0.0).to(prior.dtype.element_ty)
    return c


@triton.jit
def _shrunk(cell, factor, TINY: tl.constexpr):  # type: ignore[no-untyped-def]
    """factor * cell, and no number that the next scale would make subnormal."""
    rest = cell * factor
    least = tl.where(factor != 1.0, TINY / _SMALLEST_SCALE, 0.0)
    return tl.where(rest < least, 0.0, rest)


@triton.jit
def _score(  # type: ignore[no-untyped-def]
    b, utility, scores, threshold, rows, count, room, row, inside, K: tl.constexpr, NOTE: tl.constexpr
):
    score = tl.zeros_like(b[0])
    for i in tl.static_range(K):
        score += tl.load(utility + i) * b[i]
    tl.store(scores + row, score, mask=inside)
    if NOTE:
        shortlist_triton.note(score, row, inside, threshold, rows, count, room)
