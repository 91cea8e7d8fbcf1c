"""Thompson draws for CUDA and ROCm (and, on CPU tensors, Triton's interpreter), in the dtype of the beliefs.

Random words equal the reference's bit for bit, and so do draws to rounding, except where an accept test lies within
rounding error: there another attempt is taken.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from bayes_prompt.kernels import rng_triton, thompson
from bayes_prompt.kernels.launch import warps
from bayes_prompt.kernels.thompson import check_beta, check_state

BLOCK = 256
THREADS = 128
_MAX_ATTEMPTS = tl.constexpr(thompson.MAX_ATTEMPTS)
_MIN_SHAPE = tl.constexpr(thompson.MIN_SHAPE)
_TERMS = tl.constexpr(thompson.SERIES_TERMS)


def sample_beta(alpha: Tensor, beta: Tensor, seed: int, step: int, first_prompt: int, out: Tensor) -> None:
    """See `reference.sample_beta`."""
    seed, step, first_prompt = check_beta(alpha, beta, seed, step, first_prompt, out)
    if len(alpha) == 0:
        return
    with torch.cuda.device_of(alpha):
        _sample_beta[(triton.cdiv(len(alpha), BLOCK),)](
            alpha,
            beta,
            out,
            len(alpha),
            seed,
            step,
            first_prompt,
            **precision(alpha.dtype),
            BLOCK=BLOCK,
            num_warps=warps(THREADS),
        )


def sample_state(belief: Tensor, seed: int, step: int, first_prompt: int, out: Tensor) -> None:
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


def precision(dtype: torch.dtype) -> dict[str, float]:
    """What the series need for the rounding of `dtype`.

    SERIES_BELOW: up to which y the accept test uses its series. No normal exceeds 6.8, so that y = 1/4 means
    d < (6.8 / y)**2 / 9 ~ 82: in float32 the terms left out are 3 d y**12 / 12 ~ 1e-6 there, and beyond a rounding
    error of 6e-8 is multiplied by 3 d ~ 250.
    TRIG_TERMS: of sine and cosine up to pi / 4: 5 leave x**12 / 12! ~ 1e-10, 8 leave x**18 / 18! ~ 2e-18.
    """
    if dtype == torch.float32:
        return {"SERIES_BELOW": 1 / 4, "TRIG_TERMS": 5}
    return {"SERIES_BELOW": thompson.SERIES_BELOW, "TRIG_TERMS": 8}


@triton.jit
def _cos_sin(u, TERMS: tl.constexpr):  # type: ignore[no-untyped-def]
    """cos(2 pi u) and sin(2 pi u) for u in [0, 1]: the range is known, no general reduction of the angle is needed."""
    quarter = tl.floor(4.0 * u + 0.5)
    x = (4.0 * u - quarter) * 1.5707963267948966  # within pi / 4 of zero; the difference is exact
    square = x * x
    cos = tl.zeros_like(u) + 1.0
    sin = cos
    for step in tl.static_range(TERMS):
        # The coefficients are expressions, not variables: a variable would be a float32 tensor.
        cos = 1.0 - cos * (square * (1.0 / ((2 * (TERMS - step) - 1) * (2 * (TERMS - step)))))
        sin = 1.0 - sin * (square * (1.0 / ((2 * (TERMS - step)) * (2 * (TERMS - step) + 1))))
    sin *= x
    turn = quarter.to(tl.int32)
    odd = (turn & 1) == 1
    swapped_cos, swapped_sin = tl.where(odd, sin, cos), tl.where(odd, cos, sin)
    return (
        tl.where(((turn + 1) & 2) == 2, -swapped_cos, swapped_cos),
        tl.where((turn & 2) == 2, -swapped_sin, swapped_sin),
    )


@triton.jit
def _rest(y, SERIES_BELOW: tl.constexpr):  # type: ignore[no-untyped-def]
    """log(1 + y) - y + y**2 / 2 - y**3 / 3, which starts with y**4, and log(1 + y); -1 < y."""
    series = tl.zeros_like(y)
    for step in tl.static_range(_TERMS):
        # (-1)**(k + 1) / k for k from TERMS + 3 down to 4; an expression, as in _cos_sin.
        series = series * y + (((_TERMS + 3 - step) % 2) * 2.0 - 1.0) / (_TERMS + 3 - step)
    square = y * y
    leading = y * (1.0 - y * (0.5 - y * (1.0 / 3.0)))
    log = tl.log(1.0 + y)
    near = tl.abs(y) < SERIES_BELOW
    rest = tl.where(near, series * (square * square), log - leading)
    return rest, tl.where(near, leading + rest, log)


@triton.jit(do_not_specialize=["seed", "step", "first_prompt"])
def _sample_beta(  # type: ignore[no-untyped-def]
    alpha,
    beta,
    out,
    num_prompts: tl.int64,
    seed: tl.int64,
    step: tl.int64,
    first_prompt: tl.int64,
    SERIES_BELOW: tl.constexpr,
    TRIG_TERMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    scalar = alpha.dtype.element_ty
    seed, step = seed.to(tl.int64), step.to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_prompts
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
        cos, sin = _cos_sin(rng_triton.uniform(w1, scalar), TRIG_TERMS)
        y_a, y_b = c_a * (radius * cos), c_b * (radius * sin)
        possible_a, possible_b = open_a & (y_a > -1.0), open_b & (y_b > -1.0)
        rest_a, log1p_a = _rest(tl.where(possible_a, y_a, 0.0), SERIES_BELOW)
        rest_b, log1p_b = _rest(tl.where(possible_b, y_b, 0.0), SERIES_BELOW)
        accepted_a = possible_a & (tl.log(rng_triton.uniform(w2, scalar)) < 3.0 * d_a * rest_a)
        accepted_b = possible_b & (tl.log(rng_triton.uniform(w3, scalar)) < 3.0 * d_b * rest_b)
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
    tl.store(out + row, tl.where(logit >= 0.0, 1.0, small) / (1.0 + small), mask=inside)


@triton.jit(do_not_specialize=["seed", "step", "first_prompt"])
def _sample_state(  # type: ignore[no-untyped-def]
    belief,
    out,
    num_prompts: tl.int64,
    state_stride: tl.int64,
    prompt_stride: tl.int64,
    seed: tl.int64,
    step: tl.int64,
    first_prompt: tl.int64,
    NUM_STATES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    scalar = belief.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_prompts
    column = belief + row * prompt_stride
    total = tl.zeros([BLOCK], dtype=scalar)
    for state in range(NUM_STATES):
        total += tl.load(column + state * state_stride, mask=inside, other=0.0)
    word, _, _, _ = rng_triton.words(seed.to(tl.int64), step.to(tl.int64), row + first_prompt, rng_triton.STATE, 0)
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


def _beta_variant(scalar: str, dtype: torch.dtype) -> tuple[object, dict[str, str], dict[str, float], int]:
    pointers = dict.fromkeys(("alpha", "beta", "out"), f"*{scalar}")
    numbers = dict.fromkeys(("num_prompts", "seed", "step", "first_prompt"), "i64")
    return _sample_beta, pointers | numbers, precision(dtype) | {"BLOCK": BLOCK}, THREADS // 32


def _state_variant(scalar: str, states: int) -> tuple[object, dict[str, str], dict[str, float], int]:
    sizes = ("num_prompts", "state_stride", "prompt_stride", "seed", "step", "first_prompt")
    signature = {"belief": f"*{scalar}", "out": "*i64"} | dict.fromkeys(sizes, "i64")
    return _sample_state, signature, {"NUM_STATES": states, "BLOCK": BLOCK}, THREADS // 32


AHEAD_OF_TIME = [
    _beta_variant("fp32", torch.float32),
    _beta_variant("fp64", torch.float64),
    _state_variant("fp32", 3),
    _state_variant("fp32", 16),
    _state_variant("fp64", 3),
]
"""What `kernels.ahead_of_time` compiles: kernel, types of its arguments, constants, warps."""
