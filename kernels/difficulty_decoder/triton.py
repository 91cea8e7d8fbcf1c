"""The difficulty decoder for CUDA and ROCm (and, on CPU tensors, Triton's interpreter).

A program reads its rows of the embeddings once and keeps their products with the first layer in registers while it goes
through the draws. Weights of a second layer are taken a tile of outputs at a time, and each tile serves all draws. What
enters the second product is rounded to the type of the features, which is what tensor cores multiply: with features in
bfloat16 each hidden unit by at most 2**-8 of itself. All sums are float32, or float64 where the features are.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayes_prompt.kernels.difficulty_decoder import Decoder, check_arguments
from bayes_prompt.kernels.launch import warps

_TF32 = (9, 10)  # compute capabilities that have room for three products in tf32: Hopper and Blackwell, of data centres
_SERIES = {torch.float32: 8, torch.float64: 16}  # terms that leave less than half a unit in the last place
_BELOW = 0.25  # where the series of 1 - exp(-t) is taken: above it the difference loses two bits at most


def decode(
    features: Tensor,
    decoder: Decoder,
    shifts: Tensor,
    offsets: Tensor,
    trials: int,
    mean: Tensor,
    variance: Tensor,
    informative: Tensor | None,
) -> None:
    """See `reference.decode`.

    float32 is multiplied by tensor cores where they can make it of three products in tf32, which lose less than the
    sums do; other tensor cores would round it.
    """
    check_arguments(features, decoder, shifts, offsets, trials, mean, variance, informative)
    prompts, (hidden, width) = len(features), decoder.first.shape
    if prompts == 0:
        return
    sizes = width, hidden, decoder.last.numel(), len(shifts)
    with torch.cuda.device_of(features):
        constants, threads = _constants(features.dtype, *sizes, tf32=features.is_cuda and _has_tf32())
        _decode[(triton.cdiv(prompts, constants["BLOCK"]),)](
            *(features, *decoder, shifts, offsets, mean, variance, informative, prompts, trials),
            **constants,
            INTERPRETED=not features.is_cuda,
            num_warps=warps(threads),
        )


def _has_tf32() -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability()[0] in _TF32


def _constants(
    dtype: torch.dtype, width: int, hidden: int, outputs: int, draws: int, tf32: bool
) -> tuple[dict[str, Any], int]:
    """Sizes of the network, and of what a program of so many threads takes at once, as measured on an H200."""
    hidden_block = max(16, triton.next_power_of_2(hidden))
    few = hidden_block <= 128
    tf32 = tf32 and dtype == torch.float32
    # Of more units, registers do not hold a product of the loop's stages beside the sum.
    if dtype == torch.bfloat16:
        block, depth, output_block, threads, stages = (64, 32, 128, 128, 3) if few else (64, 32, 128, 256, 1)
    elif tf32:
        block, depth, output_block, threads, stages = (64, 32, 64, 128, 1) if few else (16, 32, 32, 128, 1)
    else:
        block, depth, output_block, threads, stages = (32, 16, 32, 256, 3 if few else 1)
    constants = {
        "WIDTH": width,
        "HIDDEN": hidden,
        "OUTPUTS": outputs,
        "DRAWS": draws,
        "HIDDEN_BLOCK": hidden_block,
        "OUTPUT_BLOCK": output_block,
        "DRAW_BLOCK": triton.next_power_of_2(draws),
        "DEPTH": depth,
        "TERMS": _SERIES[torch.float64 if dtype == torch.float64 else torch.float32],
        "BELOW": _BELOW,
        "PRECISION": "tf32x3" if tf32 else "ieee",
        "STAGES": stages,
        "BLOCK": block,
    }
    return constants, threads


@triton.jit(do_not_specialize=["trials"])
def _decode(  # type: ignore[no-untyped-def]
    features,
    first,
    skip,
    second,
    second_bias,
    last,
    shifts,
    offsets,
    mean,
    variance,
    informative,
    num_prompts: tl.int64,
    trials: tl.int64,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DRAWS: tl.constexpr,
    HIDDEN_BLOCK: tl.constexpr,
    OUTPUT_BLOCK: tl.constexpr,
    DRAW_BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    TERMS: tl.constexpr,
    BELOW: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    scalar: tl.constexpr = mean.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_prompts
    unit = tl.arange(0, HIDDEN_BLOCK).to(tl.int64)
    is_unit = unit < HIDDEN
    draw = tl.arange(0, DRAW_BLOCK)

    products = tl.zeros([BLOCK, HIDDEN_BLOCK], dtype=scalar)
    linear = tl.zeros([BLOCK], dtype=scalar)
    for start in tl.range(0, WIDTH, DEPTH, num_stages=STAGES):
        column = start + tl.arange(0, DEPTH).to(tl.int64)
        is_column = column < WIDTH
        x_at, w_at = features + row[:, None] * WIDTH + column[None, :], first + unit[None, :] * WIDTH + column[:, None]
        x = tl.load(x_at, mask=inside[:, None] & is_column[None, :], other=0.0)
        w = tl.load(w_at, mask=is_column[:, None] & is_unit[None, :], other=0.0)
        product = _product(x, w, scalar, PRECISION, INTERPRETED)
        if STAGES > 1:
            # What is chosen from must be there: a product still under way in the next round might read the x of the
            # round after that, as Triton keeps a copy too few of what is used otherwise too.
            product = tl.where(is_unit[None, :], product, 0.0)
        products += product
        linear += tl.sum(x.to(scalar) * tl.load(skip + column, mask=is_column, other=0.0)[None, :], axis=1)

    logits = linear[:, None] + tl.load(offsets + draw, mask=draw < DRAWS, other=0.0)[None, :]
    if second is None:
        weight = tl.load(last + unit, mask=is_unit, other=0.0)
        shift_at = shifts + unit
        for s in range(DRAWS):
            hidden = tl.maximum(products + tl.load(shift_at, mask=is_unit, other=0.0)[None, :], 0.0)
            total = tl.sum(hidden * weight[None, :], axis=1)
            logits += tl.where((draw == s)[None, :], total[:, None], 0.0)
            shift_at += HIDDEN
    else:
        for start in range(0, OUTPUTS, OUTPUT_BLOCK):
            output = start + tl.arange(0, OUTPUT_BLOCK).to(tl.int64)
            is_output = output < OUTPUTS
            w_at = second + output[None, :] * HIDDEN + unit[:, None]
            w = tl.load(w_at, mask=is_unit[:, None] & is_output[None, :], other=0.0)
            bias = tl.load(second_bias + output, mask=is_output, other=0.0)
            weight = tl.load(last + output, mask=is_output, other=0.0)
            shift_at = shifts + unit
            for s in range(DRAWS):
                hidden = tl.maximum(products + tl.load(shift_at, mask=is_unit, other=0.0)[None, :], 0.0).to(w.dtype)
                outputs = tl.maximum(_product(hidden, w, scalar, PRECISION, INTERPRETED) + bias[None, :], 0.0)
                total = tl.sum(outputs * weight[None, :], axis=1)
                logits += tl.where((draw == s)[None, :], total[:, None], 0.0)
                shift_at += HIDDEN

    is_draw = (draw < DRAWS)[None, :]
    rare = tl.exp(-tl.abs(logits))  # odds of the rarer outcome
    rate = tl.where(logits >= 0, 1.0, rare) / (1.0 + rare)
    average = tl.sum(tl.where(is_draw, rate, 0.0), axis=1) / DRAWS
    distance = tl.where(is_draw, rate - average[:, None], 0.0)
    tl.store(mean + row, average, mask=inside)
    tl.store(variance + row, tl.sum(distance * distance, axis=1) / DRAWS, mask=inside)
    if informative is not None:
        log_sum = _log_one_plus(rare, TERMS)
        groups = trials.to(scalar)
        value = _one_minus_exp(groups * log_sum, TERMS, BELOW) - tl.exp(-groups * (log_sum + tl.abs(logits)))
        value = tl.where((trials == 1) & (logits == logits), 0.0, value)
        tl.store(informative + row, tl.sum(tl.where(is_draw, value, 0.0), axis=1) / DRAWS, mask=inside)


@triton.jit
def _product(a, b, scalar: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr):  # type: ignore[no-untyped-def]
    if INTERPRETED:  # which multiplies the bits of bfloat16 numbers
        a, b = a.to(scalar), b.to(scalar)
    return tl.dot(a, b, input_precision=PRECISION, out_dtype=scalar)


@triton.jit
def _log_one_plus(x, TERMS: tl.constexpr):  # type: ignore[no-untyped-def]
    """log(1 + x) for x in [0, 1], as 2 atanh(s) with s = x / (2 + x): the GPU's own logarithm is rough near 1."""
    s = x / (2.0 + x)
    square = s * s
    value = square * 0.0 + 1.0 / (2 * TERMS + 1)
    for k in tl.static_range(TERMS):
        value = value * square + 1.0 / (2 * (TERMS - 1 - k) + 1)
    return 2.0 * s * value


@triton.jit
def _one_minus_exp(t, TERMS: tl.constexpr, BELOW: tl.constexpr):  # type: ignore[no-untyped-def]
    """1 - exp(-t) for t >= 0, by its series where the difference would cancel."""
    small = tl.minimum(t, BELOW)  # the series of others is not used, and must not overflow
    value = small * 0.0 + 1.0
    for k in tl.static_range(TERMS):
        value = 1.0 - small / (TERMS + 1 - k) * value
    return tl.where(t < BELOW, small * value, 1.0 - tl.exp(-t))


def _variant(dtype: torch.dtype, hidden: int, outputs: int, draws: int, tf32: bool = False, **constants: Any) -> Any:
    """A network of 256 features, and 32 columns more."""
    stored, wide = {
        torch.bfloat16: ("*bf16", "*fp32"),
        torch.float32: ("*fp32", "*fp32"),
        torch.float64: ("*fp64", "*fp64"),
    }[dtype]
    own, threads = _constants(dtype, 288, hidden, outputs or hidden, draws, tf32)
    constants |= own | {"INTERPRETED": False}
    if not outputs:
        constants |= {"second": None, "second_bias": None}
    types = dict.fromkeys(("features", "first", "second"), stored)
    types |= dict.fromkeys(("num_prompts", "trials"), "i64")
    types = {name: types.get(name, wide) for name in _decode.arg_names if name not in constants}
    targets = [tuple(f"sm_{major}0" for major in _TF32)] if tf32 else []
    return _decode, types, constants, threads // 32, *targets


AHEAD_OF_TIME = [
    _variant(torch.bfloat16, 64, 0, 8),
    _variant(torch.bfloat16, 64, 0, 1, informative=None),
    _variant(torch.bfloat16, 256, 256, 8),
    _variant(torch.float32, 64, 0, 8),
    _variant(torch.float32, 256, 256, 8),
    _variant(torch.float32, 64, 0, 8, tf32=True),
    _variant(torch.float32, 256, 256, 8, tf32=True),
    _variant(torch.float64, 64, 0, 8),
]
"""For `kernels.ahead_of_time`: kernel, types of its arguments, constants, number of warps of 32 threads, targets."""
