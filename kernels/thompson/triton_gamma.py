"""What a Triton program needs for the proposals of gamma variates and their test (Marsaglia and Tsang)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bayes_prompt.kernels import thompson

_TERMS = tl.constexpr(thompson.SERIES_TERMS)


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
def cos_sin(u, TERMS: tl.constexpr):  # type: ignore[no-untyped-def]
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
def log1p_rest(y, SERIES_BELOW: tl.constexpr):  # type: ignore[no-untyped-def]
    """log(1 + y) - y + y**2 / 2 - y**3 / 3, which starts with y**4, and log(1 + y); -1 < y."""
    series = tl.zeros_like(y)
    for step in tl.static_range(_TERMS):
        # (-1)**(k + 1) / k for k from TERMS + 3 down to 4; an expression, as in cos_sin.
        series = series * y + (((_TERMS + 3 - step) % 2) * 2.0 - 1.0) / (_TERMS + 3 - step)
    square = y * y
    leading = y * (1.0 - y * (0.5 - y * (1.0 / 3.0)))
    log = tl.log(1.0 + y)
    near = tl.abs(y) < SERIES_BELOW
    rest = tl.where(near, series * (square * square), log - leading)
    return rest, tl.where(near, leading + rest, log)


@triton.jit
def accepts(y, d, u, SERIES_BELOW: tl.constexpr):  # type: ignore[no-untyped-def]
    """`reference._accepts`, and log(1 + y) of the proposals that it accepts."""
    possible = y > -1.0
    rest, log1p = log1p_rest(tl.where(possible, y, 0.0), SERIES_BELOW)
    return possible & (tl.log(u) < 3.0 * d * rest), log1p
