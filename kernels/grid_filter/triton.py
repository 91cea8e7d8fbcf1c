"""The grid filter for CUDA and ROCm (and, on CPU tensors, Triton's interpreter): what is launched."""

from __future__ import annotations

from typing import Any

import torch
import triton
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
from bayes_prompt.kernels.grid_filter.triton_rows import (
    advance_entries,
    look_index_rows,
    look_rows,
    predict_rows,
    score_rows,
    settle_rows,
)
from bayes_prompt.kernels.launch import float64_bits, warps

# On an H200 one warp with many rows was twice as fast as four with half of them (benchmarks/grid_filter.py).
THREADS = 32
# Of the rows of a program: their beliefs, of which it needs two sets at once; those of an observation, which needs more
# sets; and a price's sums over outcomes, whose tables are read anew for each state.
BYTES = {"beliefs": 256 * THREADS, "step": 64 * THREADS, "sums": 32 * THREADS}
# AMD's compiler keeps a mask for each number of a lane, in two of the hundred scalar registers that a wave has.
# Compiled alone, not measured: docs/kernel_resources.md.
BYTES_ON_ROCM = BYTES | {"beliefs": 64 * THREADS, "step": 32 * THREADS}


def predict(
    belief: Tensor, slot: Tensor, propagators: Tensor, shared: Tensor, index: Tensor | None, out: Tensor
) -> None:
    """See `reference.predict`; in the dtype of the tensors."""
    check_predict(belief, slot, propagators, shared, index, out)
    if len(out) == 0:
        return
    constants = configuration(belief.shape[1], belief.element_size())
    with torch.cuda.device_of(belief):
        predict_rows[(triton.cdiv(len(out), constants["BLOCK"]),)](
            belief,
            slot,
            propagators,
            shared,
            slot if index is None else index,  # not read
            out,
            len(belief),
            len(out),
            EVERYONE=index is None,
            **constants,
            num_warps=warps(THREADS),
        )


def score(belief: Tensor, slot: Tensor, vectors: Tensor, shared_scores: Tensor, out: Tensor) -> None:
    """See `reference.score`; in the dtype of the tensors."""
    check_score(belief, slot, vectors, shared_scores, out)
    if len(belief) == 0:
        return
    constants = configuration(belief.shape[1], belief.element_size())
    with torch.cuda.device_of(belief):
        score_rows[(triton.cdiv(len(belief), constants["BLOCK"]),)](
            belief, slot, vectors, shared_scores, out, len(belief), **constants, num_warps=warps(THREADS)
        )


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
    if len(belief) == 0:
        return
    tables = look_tables(chances, worths, threshold)
    constants = configuration(belief.shape[1], belief.element_size())
    sizes = len(belief), chances.shape[1]
    with torch.cuda.device_of(belief):
        look_rows[(triton.cdiv(len(belief), constants["BLOCK"]),)](
            belief, slot, *tables, shared_values, out, *sizes, **constants, num_warps=warps(THREADS)
        )


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
    if len(belief) == 0:
        return
    constants = index_configuration(belief.shape[1], chances.shape[1], belief.element_size())
    tables = look_index_tables(chances, worths, horizon, constants["OUTCOMES"])
    with torch.cuda.device_of(belief):
        look_index_rows[(triton.cdiv(len(belief), constants["BLOCK"]),)](
            belief, slot, vectors, tables, shared_values, out, len(belief), **constants, num_warps=warps(THREADS)
        )


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
    """See `reference.advance`; in the dtype of the tensors."""
    check_advance(belief, slot, propagators, shared, index, likelihood, now, expected, chance, status, decay, prior)
    if len(index) == 0:
        return
    constants = configuration(belief.shape[1], belief.element_size(), "step")
    asked = {
        "EXPECTED": expected is not None,
        "FORGET": decay < 1.0,
        "REMEMBER": decay > 0.0,
        "OWN_PRIOR": prior is not None and prior.ndim == 2,
        "TINY": torch.finfo(belief.dtype).tiny,
    }
    with torch.cuda.device_of(belief):
        advance_entries[(triton.cdiv(len(index), constants["BLOCK"]),)](
            belief,
            slot,
            propagators,
            shared,
            index,
            likelihood,
            likelihood if prior is None else prior,  # not read
            likelihood if expected is None else expected,  # not written
            chance,
            status,
            len(belief),
            len(index),
            now,
            float64_bits(decay),
            float64_bits(1.0 - decay),
            **asked,
            **constants,
            num_warps=warps(THREADS),
        )


def settle(belief: Tensor, slot: Tensor, propagators: Tensor, first: int, last: int, now: int) -> None:
    """See `reference.settle`; in the dtype of the tensors."""
    check_settle(belief, slot, propagators, first, last, now)
    if len(belief) == 0:
        return
    constants = configuration(belief.shape[1], belief.element_size())
    with torch.cuda.device_of(belief):
        settle_rows[(triton.cdiv(len(belief), constants["BLOCK"]),)](
            belief, slot, propagators, len(belief), first, last, now, **constants, num_warps=warps(THREADS)
        )


def configuration(
    states: int, itemsize: int, held: str = "beliefs", rocm: bool = torch.version.hip is not None
) -> dict[str, int]:
    """The kernels' constants for K states and numbers of `itemsize` bytes: how many rows make up a program."""
    width = triton.next_power_of_2(states)
    numbers = (BYTES_ON_ROCM if rocm else BYTES)[held] // itemsize
    return {"K": states, "WIDTH": width, "BLOCK": max(1, min(512, numbers // width))}


def index_configuration(
    states: int, outcomes: int, itemsize: int, rocm: bool = torch.version.hip is not None
) -> dict[str, int]:
    """The same for `look_index_rows`, which keeps two numbers of each outcome of a row, and none of its states."""
    sums = configuration(max(1, outcomes), itemsize, "sums", rocm)
    return {"K": states, "OUTCOMES": sums["WIDTH"], "BLOCK": sums["BLOCK"]}


def _variants(kernel: Any, states: int, scalar: str = "fp32", outcomes: int = 0, **asked: Any) -> list[tuple[Any, ...]]:
    """One for all targets, or two where blocks differ."""
    itemsize, step = 4 if scalar == "fp32" else 8, kernel is advance_entries
    targets = {False: ("sm_80", "sm_90", "sm_100"), True: ("gfx942",)}
    constants: dict[bool, dict[str, Any]] = {}
    for rocm in targets:
        if kernel is look_index_rows:
            constants[rocm] = index_configuration(states, outcomes, itemsize, rocm)
        else:
            constants[rocm] = asked | configuration(states, itemsize, "step" if step else "beliefs", rocm)
    integers = ("num_prompts", "num_asked", "num_entries", "num_outcomes", "now", "first", "last")
    types = dict.fromkeys((*integers, "decay_bits", "rest_bits"), "i64")
    types |= {"slot": "*i32", "status": "*i32", "index": "*i64"}
    names = (name for name in kernel.arg_names if name not in constants[False])
    told = kernel, {name: types.get(name, f"*{scalar}") for name in names}
    if constants[False] == constants[True]:
        return [(*told, constants[False], THREADS // 32)]
    return [(*told, constants[rocm], THREADS // 32, targets[rocm]) for rocm in targets]


_STEP: dict[str, Any] = {"EXPECTED": True, "FORGET": False, "REMEMBER": True, "OWN_PRIOR": False}
_TINY, _TINY_64 = torch.finfo(torch.float32).tiny, torch.finfo(torch.float64).tiny

AHEAD_OF_TIME = [
    *_variants(score_rows, 41),
    *_variants(score_rows, 130),
    *_variants(score_rows, 41, "fp64"),
    *_variants(look_rows, 41),
    *_variants(look_rows, 512),
    *_variants(look_index_rows, 41, outcomes=9),
    *_variants(look_index_rows, 512, outcomes=65),
    *_variants(look_index_rows, 41, "fp64", outcomes=9),
    *_variants(predict_rows, 41, EVERYONE=True),
    *_variants(predict_rows, 130, EVERYONE=False),
    *_variants(advance_entries, 41, **_STEP, TINY=_TINY),
    *_variants(advance_entries, 41, **_STEP | {"FORGET": True}, TINY=_TINY),
    *_variants(advance_entries, 512, **_STEP | {"FORGET": True, "OWN_PRIOR": True}, TINY=_TINY),
    *_variants(advance_entries, 41, "fp64", **_STEP | {"FORGET": True}, TINY=_TINY_64),
    *_variants(settle_rows, 41),
]
"""For `kernels.ahead_of_time`: kernel, types of its arguments, constants, warps of 32 threads; targets if not all."""
