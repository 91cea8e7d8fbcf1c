"""The solving-progress filter for CUDA and ROCm (and, on CPU tensors, Triton's interpreter).

One program advances BLOCK rows, and each thread keeps a row or a few to itself: every quantity is a vector over rows,
one for each state, so sums over states are plain additions, nothing is padded, and threads exchange nothing. The loop
over the state that is left (`j`) stays a loop, the ones over the states that are reached are unrolled: unrolling both
takes minutes to compile at K = 16 and twice the registers at K = 3. A program with observed rows, usually one in
hundreds, reads their concentrations twice: for the probability of what was seen and then, from the cache, to learn.

Block sizes follow the compilers' reports of registers (`kernels.ahead_of_time`): on sm_90 and for K = 3 in float32 a
thread needs 62 registers for 2 rows and 113 for 4, so that a processor has as many bytes in flight either way.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayes_prompt.kernels.launch import float64_bits, warps
from bayes_prompt.kernels.progress_filter import IMPOSSIBLE, UNEXPECTED, check_arguments

THREADS = 256  # with 128 the assembler for sm_80 spills a register or two to fit one program more
_UNEXPECTED, _IMPOSSIBLE = tl.constexpr(UNEXPECTED), tl.constexpr(IMPOSSIBLE)


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
    """Advance the filter of N prompts by one step, in place: `reference.advance`, in the dtype of the tensors."""
    check_arguments(concentration, posterior, belief, prior, slot, likelihood, decay, learn, evidence, status)
    evidence.zero_()
    status.zero_()
    states, prompts = belief.shape
    if prompts == 0:
        return
    constants = configuration(states, belief.element_size(), learn, prior.ndim == 3)
    with torch.cuda.device_of(belief):
        _advance[(triton.cdiv(prompts, constants["BLOCK"]),)](
            concentration if learn else belief,  # not read unless LEARN
            posterior,
            belief,
            prior,
            slot,
            likelihood,
            evidence,
            status,
            prompts,
            float64_bits(decay),
            float64_bits(1.0 - decay),
            **constants,
            num_warps=warps(THREADS),
        )


def configuration(states: int, itemsize: int, learn: bool, per_prompt: bool) -> dict[str, Any]:
    """The kernel's constants for K states and numbers of `itemsize` bytes.

    A thread has 4, 2 or 1 rows: as many as fill a 16-byte access, while its share of a belief stays within 32 bytes.
    """
    rows = max(1, min(16 // itemsize, 32 // (states * itemsize)))
    return {
        "K": states,
        "BLOCK": THREADS * rows,
        "LEARN": learn,
        "PRIOR_PER_PROMPT": per_prompt,
        "TINY": torch.finfo(torch.float32 if itemsize == 4 else torch.float64).tiny,
    }


@triton.jit(do_not_specialize=["decay_bits", "rest_bits"])
def _advance(  # type: ignore[no-untyped-def]
    concentration,
    posterior,
    belief,
    prior,
    slot,
    likelihood,
    evidence,
    status,
    num_prompts: tl.int64,
    decay_bits: tl.int64,
    rest_bits: tl.int64,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    LEARN: tl.constexpr,
    PRIOR_PER_PROMPT: tl.constexpr,
    TINY: tl.constexpr,
):
    scalar = belief.dtype.element_ty
    decay = decay_bits.to(tl.int64).to(tl.float64, bitcast=True).to(scalar)
    rest = rest_bits.to(tl.int64).to(tl.float64, bitcast=True).to(scalar)
    stride = num_prompts.to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < stride
    zero = tl.zeros([BLOCK], dtype=scalar)

    # Condition the observed rows. Denominators of rows that do not need one are 1.
    m = tl.load(slot + row, mask=inside, other=-1).to(tl.int64)
    observed = m >= 0
    seen = ()
    total = zero
    mass = zero
    for k in tl.static_range(K):
        seen += (tl.load(likelihood + (m * K + k), mask=observed, other=0.0),)
        total += tl.load(belief + (k * stride + row), mask=inside, other=0.0) * seen[k]
        mass += seen[k]
    expected = total > TINY
    mass = tl.where(observed, tl.where(expected, total, mass), 1.0)
    flags = tl.where(expected, 0, _UNEXPECTED)

    x = zero  # the probability of what was seen, by the learned transitions
    if LEARN:
        if tl.max(m, axis=0) >= 0:
            for j in range(K):
                place = tl.cast(j, tl.int64) * stride + row
                leaving = zero
                moves = ()
                for i in tl.static_range(K):
                    cell = (tl.cast(j, tl.int64) * K + i) * stride + row
                    c = tl.load(concentration + cell, mask=observed, other=1.0)
                    moves += (c,)
                    leaving += c
                # As below, the probability first: a small concentration times a small likelihood would underflow.
                arriving = zero
                for i in tl.static_range(K):
                    arriving += moves[i] / leaving * seen[i]
                x += tl.load(posterior + place, mask=observed, other=0.0) * arriving
        flags += tl.where(x > TINY, 0, _IMPOSSIBLE)
        tl.debug_barrier()  # no thread may overwrite what another could still have to read
    tl.store(evidence + m, tl.where(expected, total, 0.0), mask=observed)
    tl.store(status + m, flags, mask=observed)

    # Learn, decay and predict.
    predicted = (zero,) * K
    for j in range(K):
        place = tl.cast(j, tl.int64) * stride + row
        leaving = zero
        cells = ()
        prior_cells = ()
        transition = ()
        for i in tl.static_range(K):
            first = tl.cast(j, tl.int64) * K + i
            cells += (first * stride + row,)
            prior_cells += (cells[i] if PRIOR_PER_PROMPT else first + tl.zeros_like(row),)
            if LEARN:
                c = tl.load(concentration + cells[i], mask=inside, other=1.0)
            else:
                c = tl.load(prior + prior_cells[i], mask=inside, other=1.0)
            transition += (c,)
            leaving += c
        if LEARN:
            # p is 0 in rows that were not observed. The order of factors keeps each of them finite.
            p = tl.load(posterior + place, mask=observed, other=0.0)
            scale = tl.where(x > TINY, p / tl.where(x > TINY, x, 1.0), 0.0)
            before, left = transition, leaving
            transition = ()
            leaving = zero
            for i in tl.static_range(K):
                c0 = tl.load(prior + prior_cells[i], mask=inside, other=1.0)
                c = decay * before[i] + rest * c0 + scale * (before[i] / left * seen[i])
                tl.store(concentration + cells[i], c, mask=inside)
                transition += (c,)
                leaving += c
        b = tl.load(belief + place, mask=inside, other=0.0)
        seen_j = tl.load(likelihood + (m * K + j), mask=observed, other=0.0)
        q = tl.where(observed, tl.where(expected, b * seen_j, seen_j) / mass, b)
        tl.store(posterior + place, q, mask=inside)
        share = q / leaving
        so_far = predicted
        predicted = ()
        for i in tl.static_range(K):
            predicted += (so_far[i] + share * transition[i],)

    # Rounding would let a belief's sum wander over thousands of steps: it is divided out.
    mass = zero
    for i in tl.static_range(K):
        mass += predicted[i]
    mass = tl.where(inside, mass, 1.0)
    for i in tl.static_range(K):
        tl.store(belief + (i * stride + row), predicted[i] / mass, mask=inside)


def _variant(
    states: int, scalar: str, learn: bool, per_prompt: bool
) -> tuple[Any, dict[str, str], dict[str, Any], int]:
    floats = dict.fromkeys(("concentration", "posterior", "belief", "prior", "likelihood", "evidence"), f"*{scalar}")
    sizes = dict.fromkeys(("num_prompts", "decay_bits", "rest_bits"), "i64")
    constants = configuration(states, 4 if scalar == "fp32" else 8, learn, per_prompt)
    return _advance, floats | {"slot": "*i32", "status": "*i32"} | sizes, constants, THREADS // 32


AHEAD_OF_TIME = [
    _variant(3, "fp32", learn=True, per_prompt=False),
    _variant(3, "fp32", learn=True, per_prompt=True),
    _variant(3, "fp32", learn=False, per_prompt=False),
    _variant(3, "fp32", learn=False, per_prompt=True),
    _variant(3, "fp64", learn=True, per_prompt=True),
    _variant(16, "fp32", learn=True, per_prompt=True),
]
"""For `kernels.ahead_of_time`: kernel, types of its arguments, constants, number of warps of 32 threads."""
