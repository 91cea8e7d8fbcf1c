"""`rng` as compiled scalar functions, bit-equal: words are uint64 values in [0, 2**32)."""

from __future__ import annotations

import numpy as np

from bayes_prompt.kernels import rng
from bayes_prompt.kernels.threads import inlined

# numba promotes uint64 with a signed integer to float64, so every constant is typed.
_MULTIPLIER_0, _MULTIPLIER_1 = map(np.uint64, rng.MULTIPLIERS)
_WEYL_0, _WEYL_1 = map(np.uint64, rng.WEYL)
_MASK, _32, _24 = map(np.uint64, (rng.MASK, 32, 24))
_TIE = rng.TIE


@inlined
def philox(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """Philox4x32-10 of one counter under one key, all uint64 in [0, 2**32)."""
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ k0, p1 & _MASK, (p0 >> _32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL_0) & _MASK, (k1 + _WEYL_1) & _MASK
    return c0, c1, c2, c3


@inlined
def words(seed, step, prompt, stream, attempt):  # type: ignore[no-untyped-def]
    """The four words of `rng.words` for one prompt; integers in the ranges that `rng` checks."""
    key, counter = np.uint64(seed), np.uint64(prompt)
    use = (np.uint64(stream) << _24) | np.uint64(attempt)
    return philox(counter & _MASK, counter >> _32, np.uint64(step), use, key & _MASK, key >> _32)


@inlined
def tie_key(seed, step, prompt):  # type: ignore[no-untyped-def]
    """The key of `rng.tie_keys` for one prompt, as int64; without a branch, so that a loop of it can be vectorised."""
    w0, w1, w2, w3 = words(seed, step, prompt >> 2, _TIE, 0)
    odd, upper = np.uint64(prompt & 1) * _32, np.uint64((prompt >> 1) & 1) * _MASK
    low, high = (w0 | (w1 << _32)) >> odd, (w2 | (w3 << _32)) >> odd
    return np.int64((low ^ ((low ^ high) & upper)) & _MASK)


@inlined
def four_tie_keys(seed, step, four):  # type: ignore[no-untyped-def]
    """The keys of the prompts 4 * four to 4 * four + 3, as int64."""
    w0, w1, w2, w3 = words(seed, step, four, _TIE, 0)
    return np.int64(w0), np.int64(w1), np.int64(w2), np.int64(w3)


@inlined
def uniform(word):  # type: ignore[no-untyped-def]
    """`rng.uniform` in float64, which is exact."""
    return (np.float64(word) + 0.5) * 2.0**-32
