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
from bayes_prompt.kernels.shortlist import Shortlist
from bayes_prompt.kernels.shortlist_cpu import note_block, note_ranges
from bayes_prompt.kernels.thompson import (
    MAX_ATTEMPTS,
    MIN_SHAPE,
    SERIES_BELOW,
    SERIES_TERMS,
    check_beta,
    check_dirichlet,
    check_score,
    check_state,
)
from bayes_prompt.kernels.threads import compiled, inlined, over_rows
from bayes_prompt.kernels.vector_math import cos_sin, exp_minus, log

_STATE, _BETA, _BOOST, _GAMMA = rng.STATE, rng.BETA, rng.BOOST, rng.GAMMA
_ROW_SHIFT, _ENTRY_SHIFT = rng.GAMMA_ROW_SHIFT, rng.GAMMA_ENTRY_SHIFT
_BLOCK = 1024  # rows whose intermediate numbers stay in a core's own caches
PIECES_A_THREAD = 8  # evens out threads that the machine does not schedule alike


def sample_beta(
    alpha: Tensor, beta: Tensor, seed: int | Tensor, step: int | Tensor, first_prompt: int, out: Tensor
) -> None:
    """See `reference.sample_beta`."""
    seed, step, first_prompt = check_beta(alpha, beta, seed, step, first_prompt, out)
    seed, step = rng.known(seed, step)
    a, b, draws = alpha.detach().numpy(), beta.detach().numpy(), out.numpy()

    def rows(start: int, stop: int) -> None:
        _sample_beta(a[start:stop], b[start:stop], seed, step, first_prompt + start, draws[start:stop])

    over_rows(len(draws), rows, PIECES_A_THREAD)


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
    seed, step = rng.known(seed, step)
    a, b, values = alpha.detach().numpy(), beta.detach().numpy(), scores.numpy()
    low, high = values.dtype.type(low), values.dtype.type(high)
    room = 0 if shortlist is None else shortlist.rows.numel()
    threshold = None if shortlist is None else shortlist.threshold.numpy()[0]

    def rows(start: int, stop: int) -> tuple[np.ndarray, int]:
        noted, part = np.empty(min(room, stop - start), np.int64), slice(start, stop)
        draws = (a[part], b[part], seed, step, first_prompt + start)
        return noted, _score_beta(*draws, low, high, values[part], start, threshold, noted)

    ranges = over_rows(len(values), rows, PIECES_A_THREAD)
    if shortlist is not None:
        note_ranges(shortlist, ranges)


def sample_state(belief: Tensor, seed: int | Tensor, step: int | Tensor, first_prompt: int, out: Tensor) -> None:
    """See `reference.sample_state`."""
    seed, step, first_prompt = check_state(belief, seed, step, first_prompt, out)
    seed, step = rng.known(seed, step)
    beliefs, states = belief.detach().numpy(), out.numpy()

    def rows(start: int, stop: int) -> None:
        _sample_state(beliefs[:, start:stop], seed, step, first_prompt + start, states[start:stop])

    over_rows(len(states), rows, PIECES_A_THREAD)


def sample_dirichlet(
    concentration: Tensor, seed: int | Tensor, step: int | Tensor, first_prompt: int, out: Tensor
) -> None:
    """See `reference.sample_dirichlet`."""
    seed, step, first_prompt = check_dirichlet(concentration, seed, step, first_prompt, out)
    seed, step = rng.known(seed, step)
    shapes, draws = concentration.detach().numpy(), out.numpy()

    def rows(start: int, stop: int) -> None:
        _sample_dirichlet(shapes, seed, step, first_prompt, start, stop, draws)

    over_rows(draws.shape[2], rows, PIECES_A_THREAD)


@compiled
def _sample_beta(alpha, beta, seed, step, first_prompt, out):  # type: ignore[no-untyped-def]
    work = _workspace()
    for start in range(0, len(out), _BLOCK):
        stop = min(start + _BLOCK, len(out))
        _draw_beta(alpha[start:stop], beta[start:stop], seed, step, first_prompt + start, work, out[start:stop])


@compiled
def _score_beta(  # type: ignore[no-untyped-def]
    alpha, beta, seed, step, first_prompt, low, high, scores, first_row, threshold, noted
):
    """Draws, scored block by block while they are in the cache; returns how many rows reach the threshold.

    first_row: the row of the pool that the range starts with. threshold: None where nothing is noted.
    """
    work, count = _workspace(), 0
    for start in range(0, len(scores), _BLOCK):
        stop = min(start + _BLOCK, len(scores))
        block = scores[start:stop]  # holds the draws until they are scored
        _draw_beta(alpha[start:stop], beta[start:stop], seed, step, first_prompt + start, work, block)
        for n in range(len(block)):
            outside = max(low - block[n], block[n] - high)
            block[n] = -(outside if outside > 0.0 else 0.0)
        if threshold is not None:
            count = note_block(block, first_row + start, threshold, noted, count)
    return count


@inlined
def _workspace():  # type: ignore[no-untyped-def]
    """Of a block: rows, what was drawn, constants and proposals of those that are tried again, and which are open."""
    return (
        np.empty(_BLOCK, np.int64),
        (np.empty(_BLOCK), np.empty(_BLOCK)),
        (np.empty(_BLOCK), np.empty(_BLOCK)),
        (np.empty(_BLOCK), np.empty(_BLOCK)),
        (np.empty(_BLOCK, np.bool_), np.empty(_BLOCK, np.bool_)),
    )


@compiled
def _draw_beta(alpha, beta, seed, step, first_prompt, work, out):  # type: ignore[no-untyped-def]
    """Draws for a block of at most _BLOCK rows."""
    row, (drawn_a, drawn_b), (d_a, d_b), (y_a, y_b), (open_a, open_b) = work
    _first_attempt(alpha, beta, seed, step, first_prompt, drawn_a, drawn_b, open_a, open_b)
    pending = 0
    for n in range(len(out)):  # without a branch, which would be mispredicted too often
        row[pending] = n
        pending += open_a[n] | open_b[n]
    for i in range(pending):
        n = row[i]
        d_a[i], d_b[i], y_a[i], y_b[i] = _constant(alpha[n]), _constant(beta[n]), drawn_a[n], drawn_b[n]
        open_a[i], open_b[i] = open_a[n], open_b[n]
    for attempt in range(MAX_ATTEMPTS):
        if pending == 0:
            break
        _attempt(seed, step, first_prompt, row[:pending], attempt, d_a, d_b, y_a, y_b, open_a, open_b)
        left = 0
        for i in range(pending):
            drawn_a[row[i]], drawn_b[row[i]] = y_a[i], y_b[i]
            row[left], d_a[left], d_b[left], y_a[left], y_b[left] = row[i], d_a[i], d_b[i], y_a[i], y_b[i]
            still_a, still_b = open_a[i], open_b[i]
            open_a[left], open_b[left] = still_a, still_b
            left += still_a | still_b
        pending = left
    _finish(alpha, beta, seed, step, first_prompt, work, out)


@compiled
def _first_attempt(alpha, beta, seed, step, first, y_a, y_b, open_a, open_b):  # type: ignore[no-untyped-def]
    """The first attempt at every row, as far as the cheap test settles it: what it accepts, else 0."""
    for n in range(len(alpha)):
        d_a, d_b = _constant(alpha[n]), _constant(beta[n])
        w0, w1, w2, w3 = words(seed, step, first + n, _BETA, 0)
        a, b = _proposals(w0, w1, d_a, d_b)
        accepted_a, accepted_b = _surely_accepts(a, d_a, uniform(w2)), _surely_accepts(b, d_b, uniform(w3))
        y_a[n], y_b[n] = (a if accepted_a else 0.0), (b if accepted_b else 0.0)
        open_a[n], open_b[n] = not accepted_a, not accepted_b


@compiled
def _attempt(seed, step, first, row, attempt, d_a, d_b, y_a, y_b, open_a, open_b):  # type: ignore[no-untyped-def]
    """One attempt at every pending row: y becomes the proposal of a gamma variate that is open and accepts it."""
    for i in range(len(row)):
        w0, w1, w2, w3 = words(seed, step, first + row[i], _BETA, attempt)
        a, b = _proposals(w0, w1, d_a[i], d_b[i])
        accepted_a, accepted_b = _accepts(a, d_a[i], uniform(w2)), _accepts(b, d_b[i], uniform(w3))
        y_a[i] = a if open_a[i] & accepted_a else y_a[i]
        y_b[i] = b if open_b[i] & accepted_b else y_b[i]
        open_a[i] = open_a[i] & (not accepted_a)
        open_b[i] = open_b[i] & (not accepted_b)


@inlined
def _proposals(w0, w1, d_a, d_b):  # type: ignore[no-untyped-def]
    """Two normals by Box-Muller, one for each gamma variate, over the square root of nine times its constant."""
    square = log(uniform(w0)) * (-2.0 / 9.0)
    cos, sin = cos_sin(w1)
    return math.sqrt(square / d_a) * cos, math.sqrt(square / d_b) * sin


@compiled
def _finish(alpha, beta, seed, step, first_prompt, work, out):  # type: ignore[no-untyped-def]
    """X / (X + Y) from y of the gamma variates, carried down to shapes below 1."""
    row, (y_a, y_b), (a, b), (_, logit), _ = work
    for n in range(len(out)):
        v_a, v_b = 1.0 + y_a[n], 1.0 + y_b[n]
        x, y = _constant(alpha[n]) * (v_a * v_a * v_a), _constant(beta[n]) * (v_b * v_b * v_b)
        out[n] = x / (x + y)
        y_a[n], y_b[n] = x, y
    boosted = 0
    for n in range(len(out)):
        row[boosted] = n
        boosted += (alpha[n] < 1.0) | (beta[n] < 1.0)
    for i in range(boosted):
        n = row[i]
        a[i], b[i], logit[i] = _shape(alpha[n]), _shape(beta[n]), y_a[n] / y_b[n]
    for i in range(boosted):  # through the logit, for gamma variates of small shapes underflow
        w0, w1, _, _ = words(seed, step, first_prompt + row[i], _BOOST, 0)
        up = log(uniform(w0)) / a[i] if a[i] < 1.0 else 0.0
        down = log(uniform(w1)) / b[i] if b[i] < 1.0 else 0.0
        logit[i] = log(logit[i]) + up - down
        small = exp_minus(abs(logit[i]))
        nearer = small / (1.0 + small)  # as in the reference
        logit[i] = nearer if logit[i] < 0.0 else 1.0 - nearer
    for i in range(boosted):
        out[row[i]] = logit[i]


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


@compiled
def _sample_dirichlet(concentration, seed, step, first_prompt, start, stop, out):  # type: ignore[no-untyped-def]
    work = np.empty(_BLOCK, np.int64), np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK, np.bool_)
    logs = np.empty((concentration.shape[1], _BLOCK))
    for row in range(len(concentration)):
        for first in range(start, stop, _BLOCK):
            last = min(first + _BLOCK, stop)
            for entry in range(len(logs)):
                attempts = row << _ROW_SHIFT | entry << _ENTRY_SHIFT
                shape = concentration[row, entry, first:last]
                _log_gamma(shape, seed, step, first_prompt + first, attempts, work, logs[entry])
            _softmax(concentration[row], logs, first, last, out[row])


@compiled
def _log_gamma(shape, seed, step, first_prompt, attempts, work, out):  # type: ignore[no-untyped-def]
    """Logarithms of gamma variates for a block of at most _BLOCK rows, from the attempts that start at `attempts`."""
    row, d, y, accepted = work
    pending = len(shape)
    for n in range(pending):
        row[n] = n
        d[n] = _constant(shape[n])
    for attempt in range(-1, MAX_ATTEMPTS):  # -1: as in `_draw_beta`
        _attempt_one(seed, step, first_prompt, row[:pending], attempts, attempt, d, y, accepted)
        left = 0
        for i in range(pending):
            out[row[i]] = y[i] if accepted[i] else 0.0
            row[left], d[left] = row[i], d[i]
            left += not accepted[i]
        pending = left
        if pending == 0:
            break
    boosted = 0
    for n in range(len(shape)):
        v = 1.0 + out[n]
        out[n] = log(_constant(shape[n]) * (v * v * v))
        boosted += shape[n] < 1.0
    if boosted > 0:
        _boost(shape, seed, step, first_prompt, attempts, out)


@compiled
def _attempt_one(seed, step, first, row, attempts, attempt, d, y, accepted):  # type: ignore[no-untyped-def]
    """One attempt at the gamma variate of every pending row: its proposal, and whether it is accepted."""
    for i in range(len(row)):
        w0, w1, w2, _ = words(seed, step, first + row[i], _GAMMA, attempts + max(attempt, 0))
        cos, _ = cos_sin(w1)
        y[i] = math.sqrt(-2.0 * log(uniform(w0))) * cos / math.sqrt(9.0 * d[i])
        if attempt < 0:
            accepted[i] = _surely_accepts(y[i], d[i], uniform(w2))
        else:
            accepted[i] = _accepts(y[i], d[i], uniform(w2))


@compiled
def _boost(shape, seed, step, first_prompt, attempts, out):  # type: ignore[no-untyped-def]
    for n in range(len(shape)):
        _, _, _, w3 = words(seed, step, first_prompt + n, _GAMMA, attempts)
        out[n] += log(uniform(w3)) / _shape(shape[n]) if shape[n] < 1.0 else 0.0


@compiled
def _softmax(concentration, logs, first, last, out):  # type: ignore[no-untyped-def]
    """`reference.sample_dirichlet` for some columns of a row, from the logarithms, which it overwrites."""
    largest, others, ones = np.full(last - first, -1e300), np.zeros(last - first), np.zeros(last - first)
    for k in range(len(concentration)):
        shape, log_x = concentration[k, first:last], logs[k]
        for n in range(len(shape)):
            largest[n] = max(largest[n], log_x[n] if shape[n] > 0.0 else -1e300)
    for k in range(len(concentration)):
        shape, weight = concentration[k, first:last], logs[k]
        for n in range(len(shape)):
            share = exp_minus(largest[n] - weight[n]) if shape[n] > 0.0 else 0.0
            others[n] += share if share < 1.0 else 0.0
            ones[n] += 0.0 if share < 1.0 else 1.0
            weight[n] = share
    for n in range(len(others)):
        others[n] += max(ones[n] - 1.0, 0.0)
    for k in range(len(concentration)):
        draw, weight = out[k, first:last], logs[k]
        for n in range(len(draw)):
            total = 1.0 + others[n]
            draw[n] = weight[n] / total if weight[n] < 1.0 else 1.0 - others[n] / total
