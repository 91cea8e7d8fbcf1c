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
BYTES_A_THREAD = 256  # of a belief: 64 registers, of which a program needs two sets at once
BYTES_OF_A_STEP = 64  # an observation needs more sets
BYTES_OF_SUMS = 32  # of a price's outcomes, whose tables are read anew for each state


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
    constants = configuration(belief.shape[1], belief.element_size(), BYTES_OF_A_STEP)
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


def configuration(states: int, itemsize: int, bytes_a_thread: int = BYTES_A_THREAD) -> dict[str, int]:
    """The kernels' constants for K states and numbers of `itemsize` bytes: how many rows make up a program."""
    width = triton.next_power_of_2(states)
    return {"K": states, "WIDTH": width, "BLOCK": max(1, min(512, THREADS * bytes_a_thread // itemsize // width))}


def index_configuration(states: int, outcomes: int, itemsize: int) -> dict[str, int]:
    """The same for `look_index_rows`, which keeps two numbers of each outcome of a row, and none of its states."""
    sums = configuration(max(1, outcomes), itemsize, BYTES_OF_SUMS)
    return {"K": states, "OUTCOMES": sums["WIDTH"], "BLOCK": sums["BLOCK"]}


def _variant(
    kernel: Any, states: int, scalar: str = "fp32", outcomes: int = 0, **asked: Any
) -> tuple[Any, dict[str, str], dict[str, Any], int]:
    itemsize = 4 if scalar == "fp32" else 8
    step = (BYTES_OF_A_STEP,) if kernel is advance_entries else ()
    constants = asked | configuration(states, itemsize, *step)
    if kernel is look_index_rows:
        constants = index_configuration(states, outcomes, itemsize)
    integers = ("num_prompts", "num_asked", "num_entries", "num_outcomes", "now", "first", "last")
    types = dict.fromkeys((*integers, "decay_bits", "rest_bits"), "i64")
    types |= {"slot": "*i32", "status": "*i32", "index": "*i64"}
    names = (name for name in kernel.arg_names if name not in constants)
    return kernel, {name: types.get(name, f"*{scalar}") for name in names}, constants, THREADS // 32


_STEP: dict[str, Any] = {"EXPECTED": True, "FORGET": False, "REMEMBER": True, "OWN_PRIOR": False}
_TINY, _TINY_64 = torch.finfo(torch.float32).tiny, torch.finfo(torch.float64).tiny

AHEAD_OF_TIME = [
    _variant(score_rows, 41),
    _variant(score_rows, 130),
    _variant(score_rows, 41, "fp64"),
    _variant(look_rows, 41),
    _variant(look_rows, 512),
    _variant(look_index_rows, 41, outcomes=9),
    _variant(look_index_rows, 512, outcomes=65),
    _variant(look_index_rows, 41, "fp64", outcomes=9),
    _variant(predict_rows, 41, EVERYONE=True),
    _variant(predict_rows, 130, EVERYONE=False),
    _variant(advance_entries, 41, **_STEP, TINY=_TINY),
    _variant(advance_entries, 41, **_STEP | {"FORGET": True}, TINY=_TINY),
    _variant(advance_entries, 512, **_STEP | {"FORGET": True, "OWN_PRIOR": True}, TINY=_TINY),
    _variant(advance_entries, 41, "fp64", **_STEP | {"FORGET": True}, TINY=_TINY_64),
    _variant(settle_rows, 41),
]
"""For `kernels.ahead_of_time`: kernel, types of its arguments, constants, number of warps of 32 threads."""
