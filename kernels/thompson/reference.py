"""Thompson draws: the definition, in float64 torch. Row n of every call draws for prompt number first_prompt + n."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayes_prompt.kernels import rng
from bayes_prompt.kernels.shortlist import Shortlist, note
from bayes_prompt.kernels.thompson import (
    MAX_ATTEMPTS,
    MIN_SHAPE,
    SERIES_BELOW,
    SERIES_TERMS,
    check_beta,
    check_dirichlet,
    check_score,
    check_state,
    prompt_numbers,
)


def sample_beta(
    alpha: Tensor, beta: Tensor, seed: int | Tensor, step: int | Tensor, first_prompt: int, out: Tensor
) -> None:
    """Write one draw from Beta(alpha[n], beta[n]) into out[n].

    All are (N,) float32 or float64, contiguous; parameters are positive and finite. Seed and step are integers, or (1,)
    int64 tensors on the device of alpha, which kernels on a GPU read while they run (`rng.Number`).
    Draws lie in [0, 1] and are never NaN, for parameters from 1e-6 to 1e10. The draw is logistic(log X - log Y) with
    gamma variates X and Y of shapes alpha and beta. Source: Marsaglia and Tsang, "A simple method for generating gamma
    variables", ACM TOMS 26(3), 2000; shapes below 1 by X(a) = X(a + 1) U**(1/a), their section 6.
    Raises TypeError or ValueError for tensors of another dtype or shape, and when seed, step or first_prompt is out of
    range.
    """
    seed, step, first_prompt = check_beta(alpha, beta, seed, step, first_prompt, out)
    seed, step = rng.known(seed, step)
    prompts = prompt_numbers(first_prompt, len(alpha), alpha)
    a, b = alpha.double().clamp_min(MIN_SHAPE), beta.double().clamp_min(MIN_SHAPE)
    (d_a, c_a), (d_b, c_b) = _constants(a), _constants(b)
    y_a, y_b = torch.zeros_like(a), torch.zeros_like(b)
    open_a, open_b = torch.ones_like(a, dtype=torch.bool), torch.ones_like(b, dtype=torch.bool)
    for attempt in range(MAX_ATTEMPTS):
        rows = (open_a | open_b).nonzero().squeeze(1)
        if len(rows) == 0:
            break
        u = [rng.uniform(word, torch.float64) for word in rng.words(seed, step, prompts[rows], rng.BETA, attempt)]
        radius, angle = (-2 * u[0].log()).sqrt(), 2 * math.pi * u[1]  # Box-Muller: one normal for each gamma
        for d, c, y, still, x, chance in (
            (d_a, c_a, y_a, open_a, radius * angle.cos(), u[2]),
            (d_b, c_b, y_b, open_b, radius * angle.sin(), u[3]),
        ):
            proposal = c[rows] * x
            accepted = still[rows] & _accepts(proposal, d[rows], chance)
            y[rows] = torch.where(accepted, proposal, y[rows])
            still[rows] &= ~accepted
    logit = (d_a / d_b).log() + 3 * (y_a.log1p() - y_b.log1p())
    boost_a, boost_b, _, _ = rng.words(seed, step, prompts, rng.BOOST)
    logit += torch.where(a < 1, rng.uniform(boost_a, torch.float64).log() / a, 0)
    logit -= torch.where(b < 1, rng.uniform(boost_b, torch.float64).log() / b, 0)
    small = (-logit.abs()).exp()
    nearer = small / (1 + small)  # the distance to the nearer end; 1 minus it is rounded once, 1 / (1 + small) twice
    out.copy_(torch.where(logit < 0, nearer, 1 - nearer))


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
    """Write minus the distance of a draw from Beta(alpha[n], beta[n]) to [low, high] into scores[n].

    The draw is that of `sample_beta`, rounded to the dtype of the tensors as it would be stored; so are 0 <= low <=
    high <= 1. scores: (N,), like alpha. shortlist: notes the rows whose score reaches its threshold.
    Raises TypeError or ValueError as `sample_beta` does, and for a band or shortlist that is none.
    """
    seed, step, first_prompt = check_score(alpha, beta, seed, step, first_prompt, low, high, scores, shortlist)
    rate = torch.empty_like(scores)
    sample_beta(alpha, beta, seed, step, first_prompt, rate)
    scores.copy_(-torch.maximum(low - rate, rate - high).clamp(min=0))
    if shortlist is not None:
        note(shortlist, scores)


def sample_dirichlet(
    concentration: Tensor, seed: int | Tensor, step: int | Tensor, first_prompt: int, out: Tensor
) -> None:
    """Write one draw from Dirichlet(concentration[r, :, n]) into out[r, :, n], for every row r and prompt n.

    Both are (R, K, N) float32 or float64, contiguous, R and K up to 512: for transition matrices [from, to, prompt].
    Concentrations are not negative and finite. One of 0 draws exactly 0; where all of a row are 0 so are its draws,
    which then sum to 0. Every other row sums to one to rounding, for concentrations from 1e-6 to 1e10.
    The draw is the softmax of log gamma variates (sources: `sample_beta`), for small shapes underflow themselves. Entry
    k of row r has the attempts (r << 15 | k << 6) + 0, 1, 2, ... of stream GAMMA to itself: two words for a normal,
    one for the accept test; the fourth word of attempt 0 is U in X(a) = X(a + 1) U**(1/a).
    Raises TypeError or ValueError as `sample_beta` does.
    """
    seed, step, first_prompt = check_dirichlet(concentration, seed, step, first_prompt, out)
    seed, step = rng.known(seed, step)
    prompts = prompt_numbers(first_prompt, concentration.shape[2], concentration)
    for r, row in enumerate(concentration.double()):
        logs = torch.stack([_log_gamma(shape, seed, step, prompts, r, k) for k, shape in enumerate(row)])
        logs = logs.where(row > 0, -torch.inf)
        weight = (logs - logs.amax(0).clamp_min(-1e300)).exp()  # 1 for the largest
        others = (weight * (weight < 1)).sum(0) + ((weight == 1).sum(0) - 1).clamp_min(0)
        nearest = 1 - others / (1 + others)  # as in `sample_beta`
        out[r] = torch.where(weight < 1, weight / (1 + others), nearest)


def _log_gamma(shape: Tensor, seed: int, step: int, prompts: Tensor, row: int, entry: int) -> Tensor:
    """The logarithm of one gamma variate a prompt, that of entry `entry` in row `row` of a Dirichlet draw."""
    shape = shape.clamp_min(MIN_SHAPE)
    d, c = _constants(shape)
    y, still = torch.zeros_like(shape), torch.arange(len(shape), device=shape.device)
    first = row << rng.GAMMA_ROW_SHIFT | entry << rng.GAMMA_ENTRY_SHIFT
    for attempt in range(first, first + MAX_ATTEMPTS):
        u = [rng.uniform(word, torch.float64) for word in rng.words(seed, step, prompts[still], rng.GAMMA, attempt)]
        if attempt == first:
            boost = torch.where(shape < 1, u[3].log() / shape, 0)
        proposal = c[still] * (-2 * u[0].log()).sqrt() * (2 * math.pi * u[1]).cos()
        accepted = _accepts(proposal, d[still], u[2])
        y[still[accepted]] = proposal[accepted]
        still = still[~accepted]
        if len(still) == 0:
            break
    return d.log() + 3 * y.log1p() + boost


def sample_state(belief: Tensor, seed: int | Tensor, step: int | Tensor, first_prompt: int, out: Tensor) -> None:
    """Write a state drawn from belief[:, n] into out[n].

    belief: (K, N) float32 or float64, not negative, any strides. out: (N,) int64, contiguous.
    The state is the first whose cumulative belief exceeds u times the total, so that sums that end below 1 are right; a
    state of belief 0 is never drawn, and a column without a positive belief gives -1.
    Raises TypeError or ValueError as `sample_beta` does.
    """
    seed, step, first_prompt = check_state(belief, seed, step, first_prompt, out)
    seed, step = rng.known(seed, step)
    prompts = prompt_numbers(first_prompt, belief.shape[1], belief)
    word, _, _, _ = rng.words(seed, step, prompts, rng.STATE)
    cumulative = belief.double().cumsum(0)
    target = rng.uniform(word, torch.float64) * cumulative[-1]
    out.fill_(-1)
    drawn = torch.zeros_like(out, dtype=torch.bool)
    for state in range(len(belief)):
        positive = belief[state] > 0
        out[positive & ~drawn] = state  # the last positive state, where rounding leaves the target beyond every sum
        drawn |= positive & (cumulative[state] > target)


def _constants(shape: Tensor) -> tuple[Tensor, Tensor]:
    """Marsaglia and Tsang's d and c, for shape + 1 where the shape is below 1."""
    d = torch.where(shape < 1, shape + 1, shape) - 1 / 3
    return d, 1 / (9 * d).sqrt()


def _accepts(y: Tensor, d: Tensor, u: Tensor) -> Tensor:
    """Marsaglia and Tsang's test: v = 1 + y > 0 and log u < x**2 / 2 + d (1 - v**3 + 3 log v), where y = c x.

    As x**2 / 2 = 9 d y**2 / 2, the right side is 3 d (log(1 + y) - y + y**2 / 2 - y**3 / 3): the parts that cancel are
    taken out by hand, for at a shape of 1e10 rounding would leave nothing else. The rest is a series in y that starts
    with y**4.
    """
    series = torch.zeros_like(y)
    for power in range(SERIES_TERMS + 3, 3, -1):
        series = series * y + (-1.0) ** (power + 1) / power
    direct = y.clamp_min(-1).log1p() - y * (1 - y * (1 / 2 - y / 3))
    rest = torch.where(y.abs() < SERIES_BELOW, series * y**4, direct)
    return (y > -1) & (u.log() < 3 * d * rest)
