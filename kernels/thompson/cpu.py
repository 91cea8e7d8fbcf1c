"""Thompson draws on the CPU, in float64 whatever the type of the tensors.

Rows are taken in blocks. A first attempt with a cheap accept test settles most rows of a block; the others move
together and try again, with the exact test, until none is left. All of it is vector instructions.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from bayes_prompt.kernels import rng
from bayes_prompt.kernels.rng_cpu import uniform, words
from bayes_prompt.kernels.thompson import (
    MAX_ATTEMPTS,
    MIN_SHAPE,
    SERIES_BELOW,
    SERIES_TERMS,
    check_beta,
    check_state,
)
from bayes_prompt.kernels.threads import compiled, inlined, over_rows
from bayes_prompt.kernels.vector_math import cos_sin, exp_minus, log

_STATE, _BETA, _BOOST = rng.STATE, rng.BETA, rng.BOOST
_BLOCK = 512  # rows whose intermediate numbers stay in the first-level cache
PIECES_A_THREAD = 8  # evens out threads that the machine does not schedule alike


def sample_beta(alpha: Tensor, beta: Tensor, seed: int, step: int, first_prompt: int, out: Tensor) -> None:
    """See `reference.sample_beta`."""
    seed, step, first_prompt = check_beta(alpha, beta, seed, step, first_prompt, out)
    a, b, draws = alpha.detach().numpy(), beta.detach().numpy(), out.numpy()

    def rows(start: int, stop: int) -> None:
        _sample_beta(a[start:stop], b[start:stop], seed, step, first_prompt + start, draws[start:stop])

    over_rows(len(draws), rows, PIECES_A_THREAD)


def sample_state(belief: Tensor, seed: int, step: int, first_prompt: int, out: Tensor) -> None:
    """See `reference.sample_state`."""
    seed, step, first_prompt = check_state(belief, seed, step, first_prompt, out)
    beliefs, states = belief.detach().numpy(), out.numpy()

    def rows(start: int, stop: int) -> None:
        _sample_state(beliefs[:, start:stop], seed, step, first_prompt + start, states[start:stop])

    over_rows(len(states), rows, PIECES_A_THREAD)


@compiled
def _sample_beta(alpha, beta, seed, step, first_prompt, out):  # type: ignore[no-untyped-def]
    row, drawn_a, drawn_b = np.empty(_BLOCK, np.int64), np.empty(_BLOCK), np.empty(_BLOCK)
    d_a, d_b, y_a, y_b = np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK)
    open_a, open_b = np.empty(_BLOCK, np.bool_), np.empty(_BLOCK, np.bool_)
    for start in range(0, len(out), _BLOCK):
        size = min(_BLOCK, len(out) - start)
        a, b, first = alpha[start : start + size], beta[start : start + size], first_prompt + start
        for n in range(size):
            row[n] = n
            d_a[n], d_b[n] = _constant(a[n]), _constant(b[n])
            y_a[n] = y_b[n] = 0.0
            open_a[n] = open_b[n] = True
        pending = size
        for attempt in range(-1, MAX_ATTEMPTS):  # -1: the first attempt, as far as the cheap test settles it
            _attempt(seed, step, first, row[:pending], attempt, d_a, d_b, y_a, y_b, open_a, open_b)
            left = 0
            for i in range(pending):
                drawn_a[row[i]], drawn_b[row[i]] = y_a[i], y_b[i]
                if open_a[i] | open_b[i]:
                    row[left], d_a[left], d_b[left], y_a[left], y_b[left] = row[i], d_a[i], d_b[i], y_a[i], y_b[i]
                    open_a[left], open_b[left] = open_a[i], open_b[i]
                    left += 1
            pending = left
            if pending == 0:
                break
        _finish(a, b, seed, step, first, drawn_a, drawn_b, out[start : start + size])


@compiled
def _attempt(seed, step, first, row, attempt, d_a, d_b, y_a, y_b, open_a, open_b):  # type: ignore[no-untyped-def]
    """One attempt at every pending row: y becomes the proposal of a gamma variate that is open and accepts it."""
    for i in range(len(row)):
        w0, w1, w2, w3 = words(seed, step, first + row[i], _BETA, max(attempt, 0))
        radius = math.sqrt(-2.0 * log(uniform(w0)))  # Box-Muller: one normal for each gamma variate
        cos, sin = cos_sin(w1)
        a, b = radius * cos / math.sqrt(9.0 * d_a[i]), radius * sin / math.sqrt(9.0 * d_b[i])
        if attempt < 0:
            accepted_a, accepted_b = _surely_accepts(a, d_a[i], uniform(w2)), _surely_accepts(b, d_b[i], uniform(w3))
        else:
            accepted_a, accepted_b = _accepts(a, d_a[i], uniform(w2)), _accepts(b, d_b[i], uniform(w3))
        y_a[i] = a if open_a[i] & accepted_a else y_a[i]
        y_b[i] = b if open_b[i] & accepted_b else y_b[i]
        open_a[i] = open_a[i] & (not accepted_a)
        open_b[i] = open_b[i] & (not accepted_b)


@compiled
def _finish(alpha, beta, seed, step, first_prompt, y_a, y_b, out):  # type: ignore[no-untyped-def]
    """X / (X + Y) from y of the gamma variates, carried down to shapes below 1."""
    boosted = 0
    for n in range(len(out)):
        v_a, v_b = 1.0 + y_a[n], 1.0 + y_b[n]
        x, y = _constant(alpha[n]) * (v_a * v_a * v_a), _constant(beta[n]) * (v_b * v_b * v_b)
        out[n] = x / (x + y)
        y_a[n] = x / y
        boosted += (alpha[n] < 1.0) | (beta[n] < 1.0)
    if boosted == 0:
        return
    for n in range(len(out)):  # through the logit, for gamma variates of small shapes underflow
        a, b = _shape(alpha[n]), _shape(beta[n])
        w0, w1, _, _ = words(seed, step, first_prompt + n, _BOOST, 0)
        up = log(uniform(w0)) / a if a < 1.0 else 0.0
        down = log(uniform(w1)) / b if b < 1.0 else 0.0
        logit = log(y_a[n]) + up - down
        small = exp_minus(abs(logit))
        draw = (1.0 if logit >= 0.0 else small) / (1.0 + small)
        out[n] = draw if (a < 1.0) | (b < 1.0) else out[n]


@inlined
def _shape(parameter):  # type: ignore[no-untyped-def]
    return max(np.float64(parameter), MIN_SHAPE)


@inlined
def _constant(parameter):  # type: ignore[no-untyped-def]
    """Marsaglia and Tsang's d, for shape + 1 where the shape is below 1."""
    shape = _shape(parameter)
    return (shape + 1.0 if shape < 1.0 else shape) - 1.0 / 3.0


@inlined
def _accepts(y, d, u):  # type: ignore[no-untyped-def]
    """`reference._accepts`, without branches."""
    possible = y > -1.0
    y = y if possible else 0.0
    square = y * y
    series = 0.0
    for power in range(SERIES_TERMS + 3, 3, -1):
        series = series * y + (1.0 if power % 2 else -1.0) / power
    direct = log(1.0 + y) - y * (1.0 - y * (0.5 - y * (1.0 / 3.0)))
    rest = series * (square * square) if abs(y) < SERIES_BELOW else direct
    return possible & (log(u) < 3.0 * d * rest)


@inlined
def _surely_accepts(y, d, u):  # type: ignore[no-untyped-def]
    """A test without logarithms that implies `_accepts` and fails for few of the rows that it accepts.

    As 1/k <= 1/4 in the series of log(1 + y), its part from y**4 on is at least -y**4 / (4 min(1, 1 + y)); and u < 1 +
    z implies log u < z. Sharper than Marsaglia and Tsang's squeeze, whose constant has to do for every shape.
    """
    v = 1.0 + y
    square = y * y
    return (v > 0.0) & ((1.0 - u) * (4.0 * (v if v < 1.0 else 1.0)) > 3.0 * d * (square * square))


@compiled
def _sample_state(belief, seed, step, first_prompt, out):  # type: ignore[no-untyped-def]
    target, cumulative, open_ = np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK, np.bool_)
    drawn = np.empty(_BLOCK, np.int64)
    for start in range(0, len(out), _BLOCK):
        size = min(_BLOCK, len(out) - start)
        target[:] = 0.0
        for weights in belief:
            for n in range(size):
                target[n] += weights[start + n]
        for n in range(size):
            word, _, _, _ = words(seed, step, first_prompt + start + n, _STATE, 0)
            target[n] *= uniform(word)
            cumulative[n] = 0.0
            open_[n] = True
            drawn[n] = -1
        for state in range(len(belief)):
            weights = belief[state]
            for n in range(size):
                weight = weights[start + n]
                cumulative[n] += weight
                possible = open_[n] & (weight > 0.0)
                drawn[n] = state if possible else drawn[n]
                open_[n] = open_[n] & ~(possible & (cumulative[n] > target[n]))
        for n in range(size):
            out[start + n] = drawn[n]
