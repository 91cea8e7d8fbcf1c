"""Counter-based random numbers: Philox4x32-10 in torch, which the CPU and Triton versions equal bit for bit.

Every random word is a function of (seed, step, prompt, stream, attempt) and of nothing else, so draws do not depend on
the device, on how a pool is chunked or on the number of ranks. The layout of key and counter is a stability contract::

    key     = (seed & 0xffffffff, seed >> 32)
    counter = (prompt & 0xffffffff, prompt >> 32, step, stream << 24 | attempt)

The attempts of one use of randomness count from 0; of GAMMA they are row << 15 | entry << 6 | attempt. Of TIE the four
words belong to four prompts: prompt & 3 says which word, and prompt >> 2 stands in the counter.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 4.3. Words are
held in int64 tensors (torch has no arithmetic on uint32), each in [0, 2**32).
"""

from __future__ import annotations

import operator
from typing import TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", bound=int | Tensor)
"""A seed or step: an integer, or a (1,) int64 tensor that holds one where the draws are made.

A kernel on a GPU reads the tensor while it runs: nobody waits, and a captured graph draws anew at every replay.
"""
Words = tuple[Tensor, Tensor, Tensor, Tensor]

# Streams: which use of randomness a word serves. New uses take new numbers; these never change their meaning.
TIE = 0  # tie-break keys of a top-B pick
STATE = 1  # a state from a belief
BETA = 2  # the gamma variates of a Beta draw, one attempt after the other
BOOST = 3  # the factors that carry a gamma variate to a shape below 1
GAMMA = 4  # the gamma variates of Dirichlet draws, one for each row and entry; the last word of attempt 0 is its boost
CONTEXT = 5  # the latent contexts of a prediction of difficulty
CONTEXT_DRAW = 6  # that of a Thompson draw
LEARNING = 7  # what gradient steps draw
LOGIT = 8  # the logit of a Thompson draw
# 252 to 255, counted down, are of simulated worlds and histories: their luck has nothing to do with a selector's.

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF

SEED_LIMIT = 2**63
STEP_LIMIT = 2**32
PROMPT_LIMIT = 2**62
ATTEMPT_LIMIT = 2**24
GAMMA_ROW_SHIFT, GAMMA_ENTRY_SHIFT = 15, 6
GAMMA_LIMIT = 2**9  # rows and entries of a Dirichlet draw


def check(seed: Number, step: Number, first_prompt: int = 0) -> tuple[Number, Number, int]:
    """The three as Python's own integers, as kernels do not take numpy's; tensors stay as they are, unread.

    Raises ValueError unless 0 <= seed < 2**63, 0 <= step < 2**32 and 0 <= first_prompt < 2**62, TypeError where one is
    no integer. A seed or step in a tensor must be (1,) int64, or the error is the same; its number is taken modulo its
    limit by kernels that read it unseen.
    """
    return (
        _unread("seed", seed, SEED_LIMIT),
        _unread("step", step, STEP_LIMIT),
        _check("first_prompt", first_prompt, PROMPT_LIMIT),
    )


def known(seed: int | Tensor, step: int | Tensor) -> tuple[int, int]:
    """Both as Python's integers, in range: tensors are read, which waits for their device. Raises as `check` does."""
    seed, step, _ = check(seed, step)
    return _check("seed", int(seed), SEED_LIMIT), _check("step", int(step), STEP_LIMIT)


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Encrypt `counter` (four int64 tensors of 32-bit words) under `key` (two 32-bit words): Philox4x32-10."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # The product needs 64 unsigned bits and wraps in int64: its low and high words come out right all the same.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & MASK) ^ c1 ^ k0, p1 & MASK, ((p0 >> 32) & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def words(seed: int | Tensor, step: int | Tensor, prompts: Tensor, stream: int, attempt: int = 0) -> Words:
    """Four random 32-bit words for each of `prompts` (int64, any shape and device, each in [0, 2**62)).

    Returns four int64 tensors of that shape with values in [0, 2**32). Raises ValueError when seed, step, stream or
    attempt is out of range, TypeError when one is no integer or `prompts` is not int64.
    """
    seed, step = known(seed, step)
    stream, attempt = _check("stream", stream, 2**8), _check("attempt", attempt, ATTEMPT_LIMIT)
    if prompts.dtype != torch.int64:
        raise TypeError(f"prompts must be an int64 tensor, got {prompts.dtype}")
    counter = (
        prompts & MASK,
        prompts >> 32,
        torch.full_like(prompts, step),
        torch.full_like(prompts, stream << 24 | attempt),
    )
    return philox(counter, (seed & MASK, seed >> 32))


def derived_seed(seed: int, step: int, stream: int) -> int:
    """A seed in [0, 2**63) for another generator, a function of (seed, step, stream)."""
    low, high, _, _ = words(seed, step, torch.zeros(1, dtype=torch.int64), stream)
    return int(low) | (int(high) & (MASK >> 1)) << 32


def uniform(word: Tensor, dtype: torch.dtype) -> Tensor:
    """The number (word + 1/2) / 2**32 in (0, 1), rounded once to `dtype`; in float32 the largest words round to 1.0."""
    # 2 w + 1 is an integer, so that its conversion is the one rounding; the power of two is exact.
    return (2 * word + 1).to(dtype) * 2.0**-33


def tie_keys(seed: int | Tensor, step: int | Tensor, prompts: Tensor) -> Tensor:
    """The 32-bit tie-break key of each prompt, int64 in [0, 2**32): of two equal scores the smaller key is picked.

    Two prompts have the same key once in 2**32: then the row decides, which a pick notices at its last place at most.
    """
    return torch.stack(words(seed, step, prompts >> 2, TIE)).gather(0, (prompts & 3)[None])[0]


def _unread(name: str, value: Number, limit: int) -> Number:
    if not isinstance(value, Tensor):
        return _check(name, value, limit)  # type: ignore[return-value]
    if value.dtype != torch.int64:
        raise TypeError(f"{name} must be an integer or an int64 tensor, got {value.dtype}")
    if value.shape != (1,):
        raise ValueError(f"{name} must have shape (1,) where it is a tensor, got {tuple(value.shape)}")
    return value


def _check(name: str, value: int, limit: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if not 0 <= number < limit:
        raise ValueError(f"{name} must be in [0, 2**{limit.bit_length() - 1}), got {number}")
    return number
