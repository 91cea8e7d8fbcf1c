"""Posterior draws: rates from Beta beliefs (or scores of them), states from beliefs over states, Dirichlet rows.

`reference` is the definition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bayes_prompt.kernels import rng
from bayes_prompt.kernels.arguments import FLOATS, check_layout
from bayes_prompt.kernels.rng import Number
from bayes_prompt.kernels.shortlist import Shortlist, check_shortlist

MAX_ATTEMPTS = 64  # a shape of at least 1 is accepted with probability above 0.95, so that 64 refusals never happen
MIN_SHAPE = 1e-30  # smaller parameters would overflow log(u) / a, and a Beta this narrow is a coin already
SERIES_TERMS = 8  # of the accept test's series in y, used in float64 for y up to
SERIES_BELOW = 1 / 64  # where they leave a relative (1/64)**8 ~ 4e-15; beyond, rounding costs 3 d 2**-53 < 1e-11


def check_beta(
    alpha: Tensor, beta: Tensor, seed: Number, step: Number, first_prompt: int, out: Tensor, name: str = "out"
) -> tuple[Number, Number, int]:
    """Seed, step and first prompt as `rng.check` gives them.

    Raises TypeError or ValueError unless the arguments of `sample_beta` have its types, shapes and ranges; `name` is
    what the caller calls `out`.
    """
    numbers = _check_numbers(seed, step, first_prompt, alpha)
    check_layout("alpha", alpha, (alpha.numel(),), alpha)
    check_layout("beta", beta, (alpha.numel(),), alpha)
    check_layout(name, out, (alpha.numel(),), alpha)
    return numbers


def check_score(
    alpha: Tensor,
    beta: Tensor,
    seed: Number,
    step: Number,
    first_prompt: int,
    low: float,
    high: float,
    scores: Tensor,
    shortlist: Shortlist | None,
) -> tuple[Number, Number, int]:
    """Seed, step and first prompt as `rng.check` gives them.

    Raises TypeError or ValueError unless the arguments of `score_beta` have its types, shapes and ranges.
    """
    numbers = check_beta(alpha, beta, seed, step, first_prompt, scores, "scores")
    if not 0 <= low <= high <= 1:
        raise ValueError(f"low and high must satisfy 0 <= low <= high <= 1, got {low} and {high}")
    if shortlist is not None:
        check_shortlist(shortlist, scores)
    return numbers


def check_state(
    belief: Tensor, seed: Number, step: Number, first_prompt: int, out: Tensor
) -> tuple[Number, Number, int]:
    """Seed, step and first prompt as `rng.check` gives them.

    Raises TypeError or ValueError unless the arguments of `sample_state` have its types, shapes and ranges. Any strides
    are fine for belief, so that columns of a larger pool can be drawn from where they are.
    """
    numbers = _check_numbers(seed, step, first_prompt, belief)
    if belief.dtype not in FLOATS:
        raise TypeError(f"belief must be float32 or float64, got {belief.dtype}")
    if belief.ndim != 2 or belief.shape[0] == 0:
        raise ValueError(f"belief must have shape (K, N) with K >= 1, got {tuple(belief.shape)}")
    check_layout("out", out, (belief.shape[1],), belief, dtype="int64")
    return numbers


def check_dirichlet(
    concentration: Tensor, seed: Number, step: Number, first_prompt: int, out: Tensor
) -> tuple[Number, Number, int]:
    """Seed, step and first prompt as `rng.check` gives them.

    Raises TypeError or ValueError unless the arguments of `sample_dirichlet` have its types, shapes and ranges.
    """
    numbers = _check_numbers(seed, step, first_prompt, concentration)
    shape = tuple(concentration.shape)
    if len(shape) != 3 or not all(1 <= size <= rng.GAMMA_LIMIT for size in shape[:2]):
        raise ValueError(f"concentration must have shape (R, K, N) with R and K in [1, {rng.GAMMA_LIMIT}], got {shape}")
    check_layout("concentration", concentration, shape, concentration)
    check_layout("out", out, shape, concentration)
    return numbers


def _check_numbers(seed: Number, step: Number, first_prompt: int, like: Tensor) -> tuple[Number, Number, int]:
    for name, number in (("seed", seed), ("step", step)):
        if isinstance(number, Tensor):
            check_layout(name, number, (1,), like, dtype="int64")
    return rng.check(seed, step, first_prompt)


def prompt_numbers(first_prompt: int, rows: int, like: Tensor) -> Tensor:
    """The prompt numbers of `rows` consecutive rows, (rows,) int64 on the device of `like`."""
    return torch.arange(first_prompt, first_prompt + rows, device=like.device)
