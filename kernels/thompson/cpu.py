"""Thompson draws on the CPU: one compiled pass over the rows, in float64 whatever the type of the tensors."""

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
from bayes_prompt.kernels.threads import compiled, over_rows

_STATE, _BETA, _BOOST = rng.STATE, rng.BETA, rng.BOOST
PIECES_A_THREAD = 8  # rows cost unequally: some need a second attempt, some a boost


def sample_beta(alpha: Tensor, beta: Tensor, seed: int, step: int, first_prompt: int, out: Tensor) -> None:
    """See `reference.sample_beta`."""
    check_beta(alpha, beta, seed, step, first_prompt, out)
    a, b, draws = alpha.detach().numpy(), beta.detach().numpy(), out.numpy()

    def rows(start: int, stop: int) -> None:
        _sample_beta(a[start:stop], b[start:stop], seed, step, first_prompt + start, draws[start:stop])

    over_rows(len(draws), rows, PIECES_A_THREAD)


def sample_state(belief: Tensor, seed: int, step: int, first_prompt: int, out: Tensor) -> None:
    """See `reference.sample_state`."""
    check_state(belief, seed, step, first_prompt, out)
    beliefs, states = belief.detach().numpy(), out.numpy()

    def rows(start: int, stop: int) -> None:
        _sample_state(beliefs[:, start:stop], seed, step, first_prompt + start, states[start:stop])

    over_rows(len(states), rows, PIECES_A_THREAD)


@compiled
def _accepts(y, d, u):  # type: ignore[no-untyped-def]
    """`reference._accepts`."""
    if y <= -1.0:
        return False
    square = y * y
    # Marsaglia and Tsang's squeeze, u < 1 - 0.0331 x**4 with x**2 = 9 d y**2, implies the test and settles most of
    # them.
    if u < 1.0 - 0.0331 * 81.0 * (d * square) * (d * square):
        return True
    if abs(y) < SERIES_BELOW:
        rest = 0.0
        for power in range(SERIES_TERMS + 3, 3, -1):
            rest = rest * y + (1.0 if power % 2 else -1.0) / power
        rest *= square * square
    else:
        rest = math.log1p(y) - y * (1.0 - y * (0.5 - y / 3.0))
    return math.log(u) < 3.0 * d * rest


@compiled
def _sample_beta(alpha, beta, seed, step, first_prompt, out):  # type: ignore[no-untyped-def]
    for n in range(len(out)):
        prompt = first_prompt + n
        a, b = max(np.float64(alpha[n]), MIN_SHAPE), max(np.float64(beta[n]), MIN_SHAPE)
        d_a = (a + 1.0 if a < 1.0 else a) - 1.0 / 3.0
        d_b = (b + 1.0 if b < 1.0 else b) - 1.0 / 3.0
        y_a = y_b = 0.0
        open_a = open_b = True
        attempt = 0
        while (open_a or open_b) and attempt < MAX_ATTEMPTS:
            w0, w1, w2, w3 = words(seed, step, prompt, _BETA, attempt)
            radius = math.sqrt(-2.0 * math.log(uniform(w0)))
            angle = 2.0 * math.pi * uniform(w1)
            if open_a:
                y = radius * math.cos(angle) / math.sqrt(9.0 * d_a)
                if _accepts(y, d_a, uniform(w2)):
                    y_a, open_a = y, False
            if open_b:
                y = radius * math.sin(angle) / math.sqrt(9.0 * d_b)
                if _accepts(y, d_b, uniform(w3)):
                    y_b, open_b = y, False
            attempt += 1
        if a >= 1.0 and b >= 1.0:
            v_a, v_b = 1.0 + y_a, 1.0 + y_b
            x, y = d_a * v_a * v_a * v_a, d_b * v_b * v_b * v_b  # the gamma variates themselves: no logarithm is needed
            out[n] = x / (x + y)
            continue
        logit = math.log(d_a / d_b) + 3.0 * (math.log1p(y_a) - math.log1p(y_b))
        w0, w1, _, _ = words(seed, step, prompt, _BOOST, 0)
        if a < 1.0:
            logit += math.log(uniform(w0)) / a
        if b < 1.0:
            logit -= math.log(uniform(w1)) / b
        small = math.exp(-abs(logit))
        out[n] = (1.0 if logit >= 0.0 else small) / (1.0 + small)


@compiled
def _sample_state(belief, seed, step, first_prompt, out):  # type: ignore[no-untyped-def]
    states, rows = belief.shape
    for n in range(rows):
        total = 0.0
        for state in range(states):
            total += belief[state, n]
        word, _, _, _ = words(seed, step, first_prompt + n, _STATE, 0)
        target = uniform(word) * total
        cumulative, drawn = 0.0, -1
        for state in range(states):
            cumulative += belief[state, n]
            if belief[state, n] > 0.0:
                drawn = state
                if cumulative > target:
                    break
        out[n] = drawn
