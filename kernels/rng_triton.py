"""`rng` as Triton functions, bit-equal: words are uint32 tensors.

An implementation of our own rather than `tl.philox`: the words are a contract, whatever the version of Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bayes_prompt.kernels import rng

TIE = tl.constexpr(rng.TIE)
STATE = tl.constexpr(rng.STATE)
BETA = tl.constexpr(rng.BETA)
BOOST = tl.constexpr(rng.BOOST)
GAMMA = tl.constexpr(rng.GAMMA)
_MULTIPLIER_0 = tl.constexpr(rng.MULTIPLIERS[0])
_MULTIPLIER_1 = tl.constexpr(rng.MULTIPLIERS[1])
_WEYL_0 = tl.constexpr(rng.WEYL[0])
_WEYL_1 = tl.constexpr(rng.WEYL[1])
_MASK = tl.constexpr(rng.MASK)
# Changes no seed, but makes the interpreter, which holds arguments in [2**31, 2**32) in 32 bits, widen it for a shift.
_SEED_MASK = tl.constexpr(rng.SEED_LIMIT - 1)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """Philox4x32-10: four uint32 tensors under two uint64 words below 2**32 (scalars)."""
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * _MULTIPLIER_0  # of 32-bit factors: one wide multiplication
        p1 = c2.to(tl.uint64) * _MULTIPLIER_1
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0.to(tl.uint32)
        c1 = p1.to(tl.uint32)
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
        k0 = (k0 + _WEYL_0) & _MASK
        k1 = (k1 + _WEYL_1) & _MASK
    return c0, c1, c2, c3


@triton.jit
def moment(number):  # type: ignore[no-untyped-def]
    """A kernel's argument `seed` or `step` as an int64 scalar, whether it is a number or a (1,) int64 tensor.

    The kernel must not annotate such arguments, as they come as either, and lists them in `do_not_specialize`.
    """
    value = tl.load(number) if number.dtype.is_ptr() else number
    return value.to(tl.int64) & _SEED_MASK  # for the interpreter, as it says there


@triton.jit
def words(seed, step, prompt, stream: tl.constexpr, attempt):  # type: ignore[no-untyped-def]
    """The four words of `rng.words` for a block of int64 prompt numbers.

    seed and step are int64 scalars, taken modulo 2**63 and 2**32; attempt is an integer or a block of them.
    """
    c0 = (prompt & _MASK).to(tl.uint32)
    c1 = (prompt >> 32).to(tl.uint32)
    c2 = tl.zeros_like(c0) + step.to(tl.uint32)
    c3 = tl.zeros_like(c0) + (stream << 24) + attempt
    return philox(c0, c1, c2, c3, (seed & _MASK).to(tl.uint64), ((seed & _SEED_MASK) >> 32).to(tl.uint64))


@triton.jit
def tie_keys(seed, step, prompt):  # type: ignore[no-untyped-def]
    """The 32-bit keys of `rng.tie_keys` for a block of int64 prompt numbers, as int64."""
    w0, w1, w2, w3 = words(seed, step, prompt >> 2, TIE, 0)
    odd, upper = (prompt & 1) != 0, (prompt & 2) != 0
    return tl.where(upper, tl.where(odd, w3, w2), tl.where(odd, w1, w0)).to(tl.int64)


@triton.jit
def uniform(word, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """`rng.uniform`: one rounding, in the conversion of an integer."""
    return (word.to(tl.int64) * 2 + 1).to(dtype) * 1.1641532182693481e-10  # 2**-33
