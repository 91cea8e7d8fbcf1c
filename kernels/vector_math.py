"""Elementary functions for compiled CPU loops, written so that a loop around them becomes vector instructions.

A call of the C library's log, exp or cos keeps a loop scalar. These have neither calls nor branches, and are right to a
few units in the last place of float64 within the ranges they state.
"""

from __future__ import annotations

import math

import numpy as np

from bayes_prompt.kernels.threads import inlined

_LN2 = math.log(2.0)
# exp subtracts a multiple of ln 2 in two parts; the first has 32 bits, so that its product with any exponent is exact.
_LN2_HIGH = float.fromhex("0x1.62e42feep-1")
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_SQRT_HALF_BITS = np.float64(math.sqrt(0.5)).view(np.int64)
_52, _BIAS = np.int64(52), np.int64(1023)
_1, _2, _EIGHTH, _30 = np.uint64(1), np.uint64(2), np.uint64(1 << 29), np.uint64(30)


@inlined
def log(x):  # type: ignore[no-untyped-def]
    """The natural logarithm of a normal positive float64."""
    bits = np.float64(x).view(np.int64)
    exponent = (bits - _SQRT_HALF_BITS) >> _52
    f = (
        np.int64(bits - (exponent << _52)).view(np.float64) - 1.0
    )  # x = 2**exponent (1 + f), 1 + f in [sqrt(1/2), sqrt(2))
    s = f / (2.0 + f)
    square = s * s
    series = 1.0 / 23.0
    for k in range(10, -1, -1):  # log(1 + f) = 2 atanh(s), with s**2 < 0.03
        series = series * square + 1.0 / (2 * k + 1)
    return np.float64(exponent) * _LN2 + 2.0 * s * series


@inlined
def exp_minus(t):  # type: ignore[no-untyped-def]
    """exp(-t) for a float64 t >= 0, infinity included; 0 from 746 on."""
    t = t if t < 800.0 else 800.0
    exponent = np.int64(t / _LN2 + 0.5)
    r = (np.float64(exponent) * _LN2_HIGH - t) + np.float64(exponent) * _LN2_LOW  # within ln 2 / 2 of zero
    series = 1.0
    for k in range(14, 0, -1):
        series = 1.0 + series * (r * (1.0 / k))
    half = exponent >> np.int64(1)  # the power of two in two factors, for it may be subnormal
    first = np.int64((_BIAS - half) << _52).view(np.float64)
    second = np.int64((_BIAS - (exponent - half)) << _52).view(np.float64)
    return series * first * second


@inlined
def cos_sin(word):  # type: ignore[no-untyped-def]
    """Cosine and sine of 2 pi (word + 1/2) / 2**32, for a uint64 word below 2**32."""
    quarter = (word + _EIGHTH) >> _30
    distance = np.float64(np.int64(word) - np.int64(quarter << _30)) + 0.5
    x = distance * (2.0**-31 * math.pi)  # within pi / 4 of zero
    square = x * x
    cos = sin = 1.0
    for k in range(8, 0, -1):
        cos = 1.0 - cos * (square * (1.0 / ((2 * k - 1) * (2 * k))))
        sin = 1.0 - sin * (square * (1.0 / ((2 * k) * (2 * k + 1))))
    sin *= x
    odd = (quarter & _1) == _1
    c, s = (sin if odd else cos), (cos if odd else sin)
    return (-c if ((quarter + _1) & _2) == _2 else c), (-s if (quarter & _2) == _2 else s)
