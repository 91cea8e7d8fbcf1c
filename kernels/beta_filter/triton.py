"""The decayed Beta filter for CUDA and ROCm (and, on CPU tensors, Triton's interpreter)."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayes_prompt.kernels.beta_filter import check_arguments
from bayes_prompt.kernels.launch import float64_bits, warps

THREADS = 128
BLOCK = 4 * THREADS  # 4 rows a thread: one 16-byte access for float32


def advance(
    alpha: Tensor,
    beta: Tensor,
    prior_alpha: Tensor,
    prior_beta: Tensor,
    index: Tensor,
    successes: Tensor,
    trials: Tensor,
    decay: float,
    decay_unobserved: bool,
) -> None:
    """Advance N Beta beliefs by one step, in place: `reference.advance`, in the dtype of the tensors."""
    check_arguments(alpha, beta, prior_alpha, prior_beta, index, successes, trials, decay)
    settings = {"PRIOR_PER_PROMPT": len(prior_alpha) > 1, "BLOCK": BLOCK, "num_warps": warps(THREADS)}
    decays = float64_bits(decay), float64_bits(1.0 - decay)
    parameters = alpha, beta, prior_alpha, prior_beta
    with torch.cuda.device_of(alpha):
        if decay_unobserved and len(alpha):
            _decay[(triton.cdiv(len(alpha), BLOCK),)](*parameters, len(alpha), *decays, **settings)
        if len(index):
            _count[(triton.cdiv(len(index), BLOCK),)](
                *parameters,
                index,
                successes,
                trials,
                len(alpha),
                len(index),
                *decays,
                DECAY=not decay_unobserved,
                **settings,
            )


@triton.jit(do_not_specialize=["decay_bits", "rest_bits"])
def _decay(  # type: ignore[no-untyped-def]
    alpha,
    beta,
    prior_alpha,
    prior_beta,
    num_prompts: tl.int64,
    decay_bits: tl.int64,
    rest_bits: tl.int64,
    PRIOR_PER_PROMPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    _move(alpha, prior_alpha, row, row < num_prompts, decay_bits, rest_bits, PRIOR_PER_PROMPT, True, row * 0)
    _move(beta, prior_beta, row, row < num_prompts, decay_bits, rest_bits, PRIOR_PER_PROMPT, True, row * 0)


@triton.jit(do_not_specialize=["num_entries", "decay_bits", "rest_bits"])
def _count(  # type: ignore[no-untyped-def]
    alpha,
    beta,
    prior_alpha,
    prior_beta,
    index,
    successes,
    trials,
    num_prompts: tl.int64,
    num_entries: tl.int64,
    decay_bits: tl.int64,
    rest_bits: tl.int64,
    DECAY: tl.constexpr,
    PRIOR_PER_PROMPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(index + entry, mask=entry < num_entries, other=-1)
    before = tl.load(index + entry - 1, mask=(entry > 0) & (entry < num_entries), other=-1)
    counts = (row >= 0) & (row < num_prompts) & (row != before)
    won = tl.load(successes + entry, mask=counts, other=0)
    lost = tl.load(trials + entry, mask=counts, other=0) - won
    _move(alpha, prior_alpha, row, counts, decay_bits, rest_bits, PRIOR_PER_PROMPT, DECAY, won)
    _move(beta, prior_beta, row, counts, decay_bits, rest_bits, PRIOR_PER_PROMPT, DECAY, lost)


@triton.jit
def _move(  # type: ignore[no-untyped-def]
    parameter, prior, row, moved, decay_bits, rest_bits, PRIOR_PER_PROMPT: tl.constexpr, DECAY: tl.constexpr, gained
):
    """Decay the parameter of the rows that are moved, if asked to, and add what they gained."""
    scalar = parameter.dtype.element_ty
    value = tl.load(parameter + row, mask=moved, other=0.0)
    if DECAY:
        own = row if PRIOR_PER_PROMPT else tl.zeros_like(row)
        decay = decay_bits.to(tl.int64).to(tl.float64, bitcast=True).to(scalar)
        rest = rest_bits.to(tl.int64).to(tl.float64, bitcast=True).to(scalar)
        value = decay * value + rest * tl.load(prior + own, mask=moved, other=0.0)
    tl.store(parameter + row, value + gained.to(scalar), mask=moved)


def _variant(kernel: Any, scalar: str, own: bool, **constants: bool) -> tuple[Any, dict[str, str], dict[str, Any], int]:
    types = dict.fromkeys(("alpha", "beta", "prior_alpha", "prior_beta"), f"*{scalar}")
    types |= dict.fromkeys(("index", "successes", "trials"), "*i64")
    types |= dict.fromkeys(("num_prompts", "num_entries", "decay_bits", "rest_bits"), "i64")
    types = {name: types[name] for name in kernel.arg_names if name in types}
    return kernel, types, {"PRIOR_PER_PROMPT": own, "BLOCK": BLOCK, **constants}, THREADS // 32


AHEAD_OF_TIME = [
    _variant(_decay, "fp32", False),
    _variant(_decay, "fp32", True),
    _variant(_decay, "fp64", True),
    _variant(_count, "fp32", False, DECAY=True),
    _variant(_count, "fp64", True, DECAY=True),
    _variant(_count, "fp32", False, DECAY=False),
]
"""For `kernels.ahead_of_time`: kernel, types of its arguments, constants, number of warps of 32 threads."""
