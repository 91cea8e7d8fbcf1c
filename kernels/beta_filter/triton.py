"""The decayed Beta filter for CUDA and ROCm (and, on CPU tensors, Triton's interpreter)."""

from __future__ import annotations

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
    slot: Tensor,
    index: Tensor,
    successes: Tensor,
    trials: Tensor,
    decay: float,
    decay_unobserved: bool,
) -> None:
    """Advance N Beta beliefs by one step, in place: `reference.advance`, in the dtype of the tensors."""
    check_arguments(alpha, beta, prior_alpha, prior_beta, slot, index, successes, trials, decay)
    lanes = len(alpha) if decay_unobserved else len(index)
    if lanes == 0:
        return
    with torch.cuda.device_of(alpha):
        _advance[(triton.cdiv(lanes, BLOCK),)](
            alpha,
            beta,
            prior_alpha,
            prior_beta,
            slot,
            index,
            successes,
            trials,
            len(alpha),
            len(index),
            float64_bits(decay),
            float64_bits(1.0 - decay),
            EVERY_ROW=decay_unobserved,
            PRIOR_PER_PROMPT=len(prior_alpha) > 1,
            BLOCK=BLOCK,
            num_warps=warps(THREADS),
        )


@triton.jit(do_not_specialize=["num_entries", "decay_bits", "rest_bits"])
def _advance(  # type: ignore[no-untyped-def]
    alpha,
    beta,
    prior_alpha,
    prior_beta,
    slot,
    index,
    successes,
    trials,
    num_prompts: tl.int64,
    num_entries: tl.int64,
    decay_bits: tl.int64,
    rest_bits: tl.int64,
    EVERY_ROW: tl.constexpr,
    PRIOR_PER_PROMPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One lane per row if every row decays, else one per entry: `row` and `entry` name each other where it counts."""
    scalar = alpha.dtype.element_ty
    decay = decay_bits.to(tl.int64).to(tl.float64, bitcast=True).to(scalar)
    rest = rest_bits.to(tl.int64).to(tl.float64, bitcast=True).to(scalar)
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if EVERY_ROW:
        row = lane
        moved = row < num_prompts
        entry = tl.load(slot + row, mask=moved, other=-1).to(tl.int64)
        counts = (entry >= 0) & (entry < num_entries)
        counts = counts & (tl.load(index + entry, mask=counts, other=-1) == row)
    else:
        entry = lane
        row = tl.load(index + entry, mask=entry < num_entries, other=-1)
        inside = (row >= 0) & (row < num_prompts)
        counts = tl.load(slot + row, mask=inside, other=-1).to(tl.int64) == entry
        counts = counts & inside
        moved = counts
    own = row if PRIOR_PER_PROMPT else tl.zeros_like(row)
    a = tl.load(alpha + row, mask=moved, other=0.0)
    b = tl.load(beta + row, mask=moved, other=0.0)
    a0 = tl.load(prior_alpha + own, mask=moved, other=0.0)
    b0 = tl.load(prior_beta + own, mask=moved, other=0.0)
    won = tl.load(successes + entry, mask=counts, other=0)
    lost = tl.load(trials + entry, mask=counts, other=0) - won
    tl.store(alpha + row, decay * a + rest * a0 + won.to(scalar), mask=moved)
    tl.store(beta + row, decay * b + rest * b0 + lost.to(scalar), mask=moved)


def _signature(scalar: str) -> dict[str, str]:
    floats = dict.fromkeys(("alpha", "beta", "prior_alpha", "prior_beta"), f"*{scalar}")
    counts = dict.fromkeys(("index", "successes", "trials"), "*i64")
    sizes = dict.fromkeys(("num_prompts", "num_entries", "decay_bits", "rest_bits"), "i64")
    return floats | {"slot": "*i32"} | counts | sizes


AHEAD_OF_TIME = [
    (_advance, _signature(scalar), {"EVERY_ROW": every, "PRIOR_PER_PROMPT": own, "BLOCK": BLOCK}, THREADS // 32)
    for scalar, every, own in [
        ("fp32", False, False),
        ("fp32", True, False),
        ("fp32", True, True),
        ("fp64", True, True),
    ]
]
"""For `kernels.ahead_of_time`: kernel, types of its arguments, constants, number of warps of 32 threads."""
