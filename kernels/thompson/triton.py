"""Thompson draws for CUDA and ROCm (and, on CPU tensors, Triton's interpreter), in the dtype of the beliefs.

Random words equal the reference's bit for bit, and so do draws to rounding, except where an accept test lies within
rounding error: there another attempt is taken.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayes_prompt.kernels import rng, rng_triton, shortlist_triton, thompson
from bayes_prompt.kernels.launch import float64_bits, warps
from bayes_prompt.kernels.shortlist import Shortlist
from bayes_prompt.kernels.thompson import check_beta, check_dirichlet, check_score, check_state
from bayes_prompt.kernels.thompson.triton_gamma import accepts, cos_sin, precision

BLOCK = 256  # rows of a program; a Beta draw needs two gamma variates a row, and a Dirichlet draw as many a program
THREADS = 128
_MAX_ATTEMPTS = tl.constexpr(thompson.MAX_ATTEMPTS)
_MIN_SHAPE = tl.constexpr(thompson.MIN_SHAPE)
_ROW_SHIFT, _ENTRY_SHIFT = tl.constexpr(rng.GAMMA_ROW_SHIFT), tl.constexpr(rng.GAMMA_ENTRY_SHIFT)


def block_rows(dtype: torch.dtype) -> int:
    """Rows of a program that draws: half as many in float64, whose wider numbers would not fit into the registers."""
    return BLOCK if dtype == torch.float32 else BLOCK // 2


def sample_beta(
    alpha: Tensor, beta: Tensor, seed: int | Tensor, step: int | Tensor, first_prompt: int, out: Tensor
) -> None:
    """See `reference.sample_beta`."""
    seed, step, first_prompt = check_beta(alpha, beta, seed, step, first_prompt, out)
    if len(alpha) == 0:
        return
    with torch.cuda.device_of(alpha):
        block = block_rows(alpha.dtype)
        _sample_beta[(triton.cdiv(len(alpha), block),)](
            alpha,
            beta,
            out,
            len(alpha),
            seed,
            step,
            first_prompt,
            **precision(alpha.dtype),
            BLOCK=block,
            num_warps=warps(THREADS),
        )


def score_beta(
    alpha: Tensor,
    beta: Tensor,
    seed: int | Tensor,
    step: int | Tensor,
    first_prompt: int,
    low: float,
    high: float,
    scores: Tensor,
    shortlist: Shortlist | None = None,
) -> None:
    """See `reference.score_beta`."""
    seed, step, first_prompt = check_score(alpha, beta, seed, step, first_prompt, low, high, scores, shortlist)
    noted = None, None, None
    if shortlist is not None:
        noted = shortlist.threshold, shortlist.rows, shortlist.count.zero_()
    if len(alpha) == 0:
        return
    with torch.cuda.device_of(alpha):
        block = block_rows(alpha.dtype)
        _score_beta[(triton.cdiv(len(alpha), block),)](
            alpha,
            beta,
            scores,
            *noted,
            len(alpha),
            seed,
            step,
            first_prompt,
            float64_bits(low),
            float64_bits(high),
            0 if shortlist is None else shortlist.rows.numel(),
            **precision(alpha.dtype),
            BLOCK=block,
            num_warps=warps(THREADS),
        )


def sample_state(belief: Tensor, seed: int | Tensor, step: int | Tensor, first_prompt: int, out: Tensor) -> None:
    """See `reference.sample_state`."""
    seed, step, first_prompt = check_state(belief, seed, step, first_prompt, out)
    if len(out) == 0:
        return
    with torch.cuda.device_of(belief):
        _sample_state[(triton.cdiv(len(out), BLOCK),)](
            belief,
            out,
            len(out),
            *belief.stride(),
            seed,
            step,
            first_prompt,
            NUM_STATES=len(belief),
            BLOCK=BLOCK,
            num_warps=warps(THREADS),
        )


def sample_dirichlet(
    concentration: Tensor, seed: int | Tensor, step: int | Tensor, first_prompt: int, out: Tensor
) -> None:
    """See `reference.sample_dirichlet`."""
    seed, step, first_prompt = check_dirichlet(concentration, seed, step, first_prompt, out)
    rows, entries, prompts = concentration.shape
    if prompts == 0:
        return
    constants = {"ENTRIES": entries} | entry_blocks(entries, concentration.dtype)
    with torch.cuda.device_of(concentration):
        _sample_dirichlet[(triton.cdiv(prompts, constants["BLOCK"]), rows)](
            concentration,
            out,
            prompts,
            seed,
            step,
            first_prompt,
            **precision(concentration.dtype),
            **constants,
            num_warps=warps(THREADS),
        )


def entry_blocks(entries: int, dtype: torch.dtype) -> dict[str, int]:
    """The block of a program that draws from Dirichlet rows of so many entries: powers of two, entries by prompts."""
    entry_block = triton.next_power_of_2(entries)
    return {"ENTRY_BLOCK": entry_block, "BLOCK": max(16, 2 * block_rows(dtype) // entry_block)}


@triton.jit
def _draw_beta(  # type: ignore[no-untyped-def]
    alpha, beta, row, inside, seed, step, first_prompt, SERIES_BELOW: tl.constexpr, TRIG_TERMS: tl.constexpr
):
    """`reference.sample_beta` of a block of rows, those that are inside."""
    scalar = alpha.dtype.element_ty
    seed, step = rng_triton.moment(seed), rng_triton.moment(step)
    prompt = row + first_prompt
    a = tl.maximum(tl.load(alpha + row, mask=inside, other=1.0), _MIN_SHAPE)
    b = tl.maximum(tl.load(beta + row, mask=inside, other=1.0), _MIN_SHAPE)
    d_a = tl.where(a < 1.0, a + 1.0, a) - 1.0 / 3.0
    d_b = tl.where(b < 1.0, b + 1.0, b) - 1.0 / 3.0
    c_a, c_b = 1.0 / tl.sqrt(9.0 * d_a), 1.0 / tl.sqrt(9.0 * d_b)
    log_a, log_b = tl.zeros_like(a), tl.zeros_like(b)  # 3 log v
    open_a, open_b = inside, inside
    attempt = 0
    pending = 1
    while (pending > 0) & (attempt < _MAX_ATTEMPTS):
        w0, w1, w2, w3 = rng_triton.words(seed, step, prompt, rng_triton.BETA, attempt)
        radius = tl.sqrt(-2.0 * tl.log(rng_triton.uniform(w0, scalar)))
        cos, sin = cos_sin(rng_triton.uniform(w1, scalar), TRIG_TERMS)
        accepted_a, log1p_a = accepts(c_a * (radius * cos), d_a, rng_triton.uniform(w2, scalar), SERIES_BELOW)
        accepted_b, log1p_b = accepts(c_b * (radius * sin), d_b, rng_triton.uniform(w3, scalar), SERIES_BELOW)
        accepted_a, accepted_b = open_a & accepted_a, open_b & accepted_b
        log_a, log_b = tl.where(accepted_a, 3.0 * log1p_a, log_a), tl.where(accepted_b, 3.0 * log1p_b, log_b)
        open_a, open_b = open_a & (accepted_a == 0), open_b & (accepted_b == 0)
        pending = tl.max((open_a | open_b).to(tl.int32), axis=0)
        attempt += 1
    # One logarithm of the ratio: of two large shapes the difference of two would keep little.
    logit = tl.log(d_a / d_b) + (log_a - log_b)
    if tl.min(tl.minimum(a, b), axis=0) < 1.0:
        w0, w1, _, _ = rng_triton.words(seed, step, prompt, rng_triton.BOOST, 0)
        logit += tl.where(a < 1.0, tl.log(rng_triton.uniform(w0, scalar)) / a, 0.0)
        logit -= tl.where(b < 1.0, tl.log(rng_triton.uniform(w1, scalar)) / b, 0.0)
    small = tl.exp(-tl.abs(logit))
    nearer = small / (1.0 + small)
    return tl.where(logit < 0.0, nearer, 1.0 - nearer)


@triton.jit(do_not_specialize=["seed", "step", "first_prompt"])
def _sample_beta(  # type: ignore[no-untyped-def]
    alpha,
    beta,
    out,
    num_prompts: tl.int64,
    seed,
    step,
    first_prompt: tl.int64,
    SERIES_BELOW: tl.constexpr,
    TRIG_TERMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_prompts
    draw = _draw_beta(alpha, beta, row, inside, seed, step, first_prompt, SERIES_BELOW, TRIG_TERMS)
    tl.store(out + row, draw, mask=inside)


@triton.jit(do_not_specialize=["seed", "step", "first_prompt", "low_bits", "high_bits", "room"])
def _score_beta(  # type: ignore[no-untyped-def]
    alpha,
    beta,
    scores,
    threshold,
    rows,
    count,
    num_prompts: tl.int64,
    seed,
    step,
    first_prompt: tl.int64,
    low_bits: tl.int64,
    high_bits: tl.int64,
    room: tl.int64,
    SERIES_BELOW: tl.constexpr,
    TRIG_TERMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`threshold`, `rows` and `count` are None where no rows are noted."""
    scalar = alpha.dtype.element_ty
    low = low_bits.to(tl.int64).to(tl.float64, bitcast=True).to(scalar)
    high = high_bits.to(tl.int64).to(tl.float64, bitcast=True).to(scalar)
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_prompts
    draw = _draw_beta(alpha, beta, row, inside, seed, step, first_prompt, SERIES_BELOW, TRIG_TERMS)
    outside = tl.maximum(low - draw, draw - high)
    score = tl.where(outside > 0.0, outside, 0.0) * -1.0  # Triton's own minus makes 0 of 0, torch's -0
    tl.store(scores + row, score, mask=inside)
    if threshold is not None:
        shortlist_triton.note(score, row, inside, threshold, rows, count, room)


@triton.jit(do_not_specialize=["seed", "step", "first_prompt"])
def _sample_dirichlet(  # type: ignore[no-untyped-def]
    concentration,
    out,
    num_prompts: tl.int64,
    seed,
    step,
    first_prompt: tl.int64,
    SERIES_BELOW: tl.constexpr,
    TRIG_TERMS: tl.constexpr,
    ENTRIES: tl.constexpr,
    ENTRY_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All entries of a row at once, for a block of prompts: what is open tries again until nothing is."""
    scalar = concentration.dtype.element_ty
    seed, step = rng_triton.moment(seed), rng_triton.moment(step)
    entry = tl.arange(0, ENTRY_BLOCK)[:, None]
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (entry < ENTRIES) & (column < num_prompts)
    place = (tl.program_id(1).to(tl.int64) * ENTRIES + entry) * num_prompts + column
    prompt = tl.zeros_like(place) + column + first_prompt
    attempts = (tl.program_id(1) << _ROW_SHIFT) | (entry << _ENTRY_SHIFT)
    given = tl.load(concentration + place, mask=inside, other=0.0)
    shape = tl.maximum(given, _MIN_SHAPE)
    d = tl.where(shape < 1.0, shape + 1.0, shape) - 1.0 / 3.0
    c = 1.0 / tl.sqrt(9.0 * d)
    log = tl.log(d / tl.max(d, axis=0)[None, :])  # of the ratio, as in `_draw_beta`; log X up to a term of the column
    open_ = given > 0.0
    attempt = 0
    pending = 1
    while (pending > 0) & (attempt < _MAX_ATTEMPTS):
        w0, w1, w2, _ = rng_triton.words(seed, step, prompt, rng_triton.GAMMA, attempts + attempt)
        radius = tl.sqrt(-2.0 * tl.log(rng_triton.uniform(w0, scalar)))
        cos, _ = cos_sin(rng_triton.uniform(w1, scalar), TRIG_TERMS)
        accepted, log1p = accepts(c * (radius * cos), d, rng_triton.uniform(w2, scalar), SERIES_BELOW)
        accepted = open_ & accepted
        log += tl.where(accepted, 3.0 * log1p, 0.0)
        open_ = open_ & (accepted == 0)
        pending = tl.max(tl.max(open_.to(tl.int32), axis=0), axis=0)
        attempt += 1
    if tl.min(tl.min(tl.where(given > 0.0, shape, 1.0), axis=0), axis=0) < 1.0:
        _, _, _, w3 = rng_triton.words(seed, step, prompt, rng_triton.GAMMA, attempts)
        log += tl.where(shape < 1.0, tl.log(rng_triton.uniform(w3, scalar)) / shape, 0.0)
    log = tl.where(given > 0.0, log, -1e38)
    largest = tl.max(log, axis=0)[None, :]
    weight = tl.exp(log - largest)
    others = tl.sum(tl.where(log < largest, weight, 0.0), axis=0)[None, :]
    others += tl.sum((log == largest).to(scalar), axis=0)[None, :] - 1.0
    total = 1.0 + others
    draw = tl.where(log < largest, weight / total, 1.0 - others / total)
    tl.store(out + place, tl.where(given > 0.0, draw, 0.0), mask=inside)


@triton.jit(do_not_specialize=["seed", "step", "first_prompt"])
def _sample_state(  # type: ignore[no-untyped-def]
    belief,
    out,
    num_prompts: tl.int64,
    state_stride: tl.int64,
    prompt_stride: tl.int64,
    seed,
    step,
    first_prompt: tl.int64,
    NUM_STATES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    scalar = belief.dtype.element_ty
    seed, step = rng_triton.moment(seed), rng_triton.moment(step)
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_prompts
    column = belief + row * prompt_stride
    total = tl.zeros([BLOCK], dtype=scalar)
    for state in range(NUM_STATES):
        total += tl.load(column + state * state_stride, mask=inside, other=0.0)
    word, _, _, _ = rng_triton.words(seed, step, row + first_prompt, rng_triton.STATE, 0)
    target = rng_triton.uniform(word, scalar) * total
    cumulative = tl.zeros([BLOCK], dtype=scalar)
    drawn = tl.full([BLOCK], -1, dtype=tl.int64)
    open_ = inside
    for state in range(NUM_STATES):
        weight = tl.load(column + state * state_stride, mask=inside, other=0.0)
        cumulative += weight
        positive = open_ & (weight > 0.0)
        drawn = tl.where(positive, state, drawn)
        open_ = open_ & ((positive & (cumulative > target)) == 0)
    tl.store(out + row, drawn, mask=inside)


_DTYPES = {"fp32": torch.float32, "fp64": torch.float64}
_DRAW = dict.fromkeys(("num_prompts", "first_prompt"), "i64")
_DRAW |= dict.fromkeys(("seed", "step"), "i32")  # as Triton has numbers that fit, where nothing is annotated


def _beta_variant(scalar: str, **moment: str) -> tuple[object, dict[str, str], dict[str, Any], int]:
    pointers = dict.fromkeys(("alpha", "beta", "out"), f"*{scalar}")
    constants = precision(_DTYPES[scalar]) | {"BLOCK": block_rows(_DTYPES[scalar])}
    return _sample_beta, pointers | _DRAW | moment, constants, THREADS // 32


def _score_variant(scalar: str, notes: bool, **moment: str) -> tuple[object, dict[str, str], dict[str, Any], int]:
    types = dict.fromkeys(("alpha", "beta", "scores"), f"*{scalar}") | _DRAW | moment
    types |= dict.fromkeys(("low_bits", "high_bits", "room"), "i64")
    constants = precision(_DTYPES[scalar]) | {"BLOCK": block_rows(_DTYPES[scalar])}
    noted = {"threshold": f"*{scalar}", "rows": "*i64", "count": "*i64"}
    if notes:
        return _score_beta, types | noted, constants, THREADS // 32
    return _score_beta, types, constants | dict.fromkeys(noted), THREADS // 32


def _state_variant(scalar: str, states: int, **moment: str) -> tuple[object, dict[str, str], dict[str, Any], int]:
    signature = {"belief": f"*{scalar}", "out": "*i64"} | dict.fromkeys(("state_stride", "prompt_stride"), "i64")
    return _sample_state, signature | _DRAW | moment, {"NUM_STATES": states, "BLOCK": BLOCK}, THREADS // 32


def _dirichlet_variant(scalar: str, entries: int, **moment: str) -> tuple[object, dict[str, str], dict[str, Any], int]:
    types = dict.fromkeys(("concentration", "out"), f"*{scalar}") | _DRAW | moment
    constants = precision(_DTYPES[scalar]) | {"ENTRIES": entries} | entry_blocks(entries, _DTYPES[scalar])
    return _sample_dirichlet, types, constants, THREADS // 32


AHEAD_OF_TIME = [
    _beta_variant("fp32"),
    _beta_variant("fp64"),
    _beta_variant("fp32", step="*i64"),
    _score_variant("fp32", notes=False),
    _score_variant("fp32", notes=True, step="*i64"),
    _score_variant("fp64", notes=True),
    _state_variant("fp32", 3),
    _state_variant("fp32", 16, step="*i64"),
    _state_variant("fp64", 3),
    _dirichlet_variant("fp32", 3),
    _dirichlet_variant("fp32", 16, step="*i64"),
    _dirichlet_variant("fp64", 3),
]
"""What `kernels.ahead_of_time` compiles: kernel, types of its arguments, constants, warps."""
