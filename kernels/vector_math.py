"""Elementary functions for compiled CPU loops, written so that a loop around them becomes vector instructions.

A call of the C library's log, exp or cos keeps a loop scalar. These have neither calls nor branches, and are right to a
few units in the last place of float64 within the ranges they state. Their polynomials are shortened Taylor series, and
take one fused multiply-add for each term.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

from bayes_prompt.kernels.instructions import fma
from bayes_prompt.kernels.threads import inlined


def _shortened(series: list[float], degree: int, low: float, high: float) -> tuple[float, ...]:
    """A power series as a polynomial of lower degree, nearest to it between low and high: its Chebyshev series cut."""
    cut = Polynomial(series).convert(domain=[low, high], kind=Chebyshev).truncate(degree + 1)
    return tuple(cut.convert(kind=Polynomial, domain=[-1, 1]).coef[::-1].tolist())


_LN2 = math.log(2.0)
# exp subtracts a multiple of ln 2 in two parts; the first has 32 bits, so that its product with any exponent is exact.
_LN2_HIGH = float.fromhex("0x1.62e42feep-1")
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_SQRT_HALF_BITS = np.float64(math.sqrt(0.5)).view(np.int64)
_52, _BIAS = np.int64(52), np.int64(1023)
_1, _2, _EIGHTH, _30 = np.uint64(1), np.uint64(2), np.uint64(1 << 29), np.uint64(30)

# What is cut off is below 2**-56 of the result: (2 atanh(s) - 2 s) / s**3 in s**2, exp(r), (cos(x) - 1) / x**2 and
# (sin(x) - x) / x**3 in x**2, on the ranges that the functions reduce to. Highest power first.
_LOG = _shortened([2 / (2 * k + 3) for k in range(16)], 6, 0.0, (3 - math.sqrt(8)) ** 2)
_EXP = _shortened([1 / math.factorial(k) for k in range(20)], 11, -_LN2 / 2, _LN2 / 2)
_COS = _shortened([(-1) ** (k + 1) / math.factorial(2 * k + 2) for k in range(12)], 5, 0.0, (math.pi / 4) ** 2)
_SIN = _shortened([(-1) ** (k + 1) / math.factorial(2 * k + 3) for k in range(12)], 5, 0.0, (math.pi / 4) ** 2)


@inlined
def polynomial(x, coefficients):  # type: ignore[no-untyped-def]
    """The polynomial of the coefficients, a tuple with that of the highest power first."""
    value = coefficients[0]
    for k in range(1, len(coefficients)):
        value = fma(value, x, coefficients[k])
    return value


@inlined
def log(x):  # type: ignore[no-untyped-def]
    """The natural logarithm of a normal positive float64."""
    bits = np.float64(x).view(np.int64)
    exponent = (bits - _SQRT_HALF_BITS) >> _52
    mantissa = np.int64(bits - (exponent << _52)).view(np.float64)  # in [sqrt(1/2), sqrt(2))
    s = (mantissa - 1.0) / (mantissa + 1.0)  # log(mantissa) = 2 atanh(s)
    square = s * s
    return fma(np.float64(exponent), _LN2, fma(s * square, polynomial(square, _LOG), 2.0 * s))


@inlined
def exp_minus(t):  # type: ignore[no-untyped-def]
    """exp(-t) for a float64 t >= 0, infinity included; 0 from 746 on."""
    t = t if t < 800.0 else 800.0
    exponent = np.int64(fma(t, 1.0 / _LN2, 0.5))
    r = fma(np.float64(exponent), _LN2_LOW, fma(np.float64(exponent), _LN2_HIGH, -t))  # within ln 2 / 2 of zero
    half = exponent >> np.int64(1)  # the power of two in two factors, for it may be subnormal
    first = np.int64((_BIAS - half) << _52).view(np.float64)
    second = np.int64((_BIAS - (exponent - half)) << _52).view(np.float64)
    return polynomial(r, _EXP) * first * second


@inlined
def cos_sin(word):  # type: ignore[no-untyped-def]
    """Cosine and sine of 2 pi (word + 1/2) / 2**32, for a uint64 word below 2**32."""
    quarter = (word + _EIGHTH) >> _30
    distance = np.float64(np.int64(word) - np.int64(quarter << _30)) + 0.5
    x = distance * (2.0**-31 * math.pi)  # within pi / 4 of zero
    square = x * x
    cos = fma(square, polynomial(square, _COS), 1.0)
    sin = fma(x * square, polynomial(square, _SIN), x)
    odd = (quarter & _1) == _1
    c, s = (sin if odd else cos), (cos if odd else sin)
    return (-c if ((quarter + _1) & _2) == _2 else c), (-s if (quarter & _2) == _2 else s)
