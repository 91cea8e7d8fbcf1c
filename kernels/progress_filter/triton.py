"""The solving-progress filter for CUDA and ROCm (and, on CPU tensors, Triton's interpreter).

One program advances BLOCK rows. Its tiles are [K_PADDED, BLOCK], rows along the fast axis, with enough rows that every thread
holds all the states of its rows: sums over states need no exchange between threads. Of the (K, K, N) concentrations it holds
one tile [from = j] at a time. A program with observed rows, usually one in hundreds, reads them twice: once for the
probability of what was seen, then, from the cache, for the update.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayes_prompt.kernels.progress_filter import IMPOSSIBLE, UNEXPECTED, check_arguments
from bayes_prompt.kernels.scalars import float64_bits

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
    constants, num_warps = configuration(states, belief.element_size(), learn, prior.ndim == 3)
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
            num_warps=num_warps,
        )


def configuration(states: int, itemsize: int, learn: bool, per_prompt: bool) -> tuple[dict[str, int | float | bool], int]:
    """The constants and the number of warps for K states and numbers of `itemsize` bytes.

    A thread holds K_PADDED states of 1, 2 or 4 rows: 64 bytes of registers a tile, as far as 16-byte accesses and whole rows
    allow. From 32 states on, warps share rows.
    """
    padded = max(2, triton.next_power_of_2(states))
    rows_a_thread = max(1, min(16 // itemsize, 64 // (padded * itemsize)))
    num_warps = min(16, 4 * max(1, padded * itemsize // 128))
    constants = {
        "K": states,
        "K_PADDED": padded,
        "BLOCK": 128 * rows_a_thread,
        "LEARN": learn,
        "PRIOR_PER_PROMPT": per_prompt,
        "TINY": torch.finfo(torch.float32 if itemsize == 4 else torch.float64).tiny,
    }
    return constants, num_warps


@triton.jit(do_not_specialize=["decay_bits", "rest_bits"])
def _advance(
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
    K_PADDED: tl.constexpr,
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

    # Condition the observed rows. Denominators of rows that do not need one are 1.
    m = tl.load(slot + row, mask=inside, other=-1).to(tl.int64)
    observed = m >= 0
    seen = ()
    total = tl.zeros([BLOCK], dtype=scalar)
    mass = tl.zeros([BLOCK], dtype=scalar)
    for k in tl.static_range(K):
        seen = seen + (tl.load(likelihood + m * K + k, mask=observed, other=0.0),)
        total += tl.load(belief + k * stride + row, mask=inside, other=0.0) * seen[k]
        mass += seen[k]
    expected = total > TINY
    mass = tl.where(observed, tl.where(expected, total, mass), 1.0)

    flags = tl.where(expected, 0, _UNEXPECTED)
    x = tl.zeros([BLOCK], dtype=scalar)
    if LEARN:
        if tl.max(m, axis=0) >= 0:
            for j in tl.static_range(K):
                leaving = tl.zeros([BLOCK], dtype=scalar)
                arriving = tl.zeros([BLOCK], dtype=scalar)
                for i in tl.static_range(K):
                    c = tl.load(concentration + (j * K + i) * stride + row, mask=observed, other=1.0)
                    leaving += c
                    arriving += c * seen[i]
                x += tl.load(posterior + j * stride + row, mask=observed, other=0.0) * (arriving / leaving)
        flags += tl.where(x > TINY, 0, _IMPOSSIBLE)
    tl.store(evidence + m, tl.where(expected, total, 0.0), mask=observed)
    tl.store(status + m, flags, mask=observed)

    predicted = ()
    for j in tl.static_range(K):
        c = ()
        leaving = tl.zeros([BLOCK], dtype=scalar)
        for i in tl.static_range(K):
            if LEARN:
                at = concentration + (j * K + i) * stride + row
            else:
                at = prior + (j * K + i) * stride + row if PRIOR_PER_PROMPT else prior + j * K + i + tl.zeros_like(row)
            c = c + (tl.load(at, mask=inside, other=1.0),)
            leaving += c[i]
        if LEARN:
            p = tl.load(posterior + j * stride + row, mask=observed, other=0.0)
            scale = tl.where(x > TINY, p / tl.where(x > TINY, x, 1.0), 0.0)
            c_old = c
            c = ()
            new = tl.zeros([BLOCK], dtype=scalar)
            for i in tl.static_range(K):
                if PRIOR_PER_PROMPT:
                    c0 = tl.load(prior + (j * K + i) * stride + row, mask=inside, other=1.0)
                else:
                    c0 = tl.load(prior + j * K + i)
                c = c + (decay * c_old[i] + rest * c0 + scale * (c_old[i] / leaving * seen[i]),)
                tl.store(concentration + (j * K + i) * stride + row, c[i], mask=inside)
                new += c[i]
            leaving = new
        b = tl.load(belief + j * stride + row, mask=inside, other=0.0)
        q = tl.where(observed, tl.where(expected, b * seen[j], seen[j]) / mass, b)
        tl.store(posterior + j * stride + row, q, mask=inside)
        share = q / leaving
        previous = predicted
        predicted = ()
        for i in tl.static_range(K):
            predicted = predicted + (share * c[i] if j == 0 else previous[i] + share * c[i],)
    total = predicted[0]
    for i in tl.static_range(1, K):
        total += predicted[i]
    for i in tl.static_range(K):
        tl.store(belief + i * stride + row, predicted[i] / tl.where(inside, total, 1.0), mask=inside)


def _variant(states: int, scalar: str, learn: bool, per_prompt: bool) -> tuple[object, dict[str, str], dict[str, object], int]:
    floats = dict.fromkeys(("concentration", "posterior", "belief", "prior", "likelihood", "evidence"), f"*{scalar}")
    sizes = dict.fromkeys(("num_prompts", "decay_bits", "rest_bits"), "i64")
    constants, num_warps = configuration(states, 4 if scalar == "fp32" else 8, learn, per_prompt)
    return _advance, floats | {"slot": "*i32", "status": "*i32"} | sizes, constants, num_warps


AHEAD_OF_TIME = [
    _variant(3, "fp32", True, False),
    _variant(3, "fp32", True, True),
    _variant(3, "fp32", False, False),
    _variant(3, "fp32", False, True),
    _variant(3, "fp64", True, False),
    _variant(5, "fp32", True, False),
    _variant(16, "fp32", True, False),
    _variant(16, "fp64", True, False),
]
"""What `kernels.ahead_of_time` compiles: kernel, types of its arguments, constants, warps."""
