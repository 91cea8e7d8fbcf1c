"""One posterior draw a prompt, from Beta beliefs or from beliefs over states; `reference` is the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from bayes_prompt.kernels import rng
from bayes_prompt.kernels.arguments import FLOATS, check_layout

MAX_ATTEMPTS = 64  # a shape of at least 1 is accepted with probability above 0.95, so that 64 refusals never happen
MIN_SHAPE = 1e-30  # smaller parameters would overflow log(u) / a, and a Beta this narrow is a coin already
SERIES_TERMS = 8  # of the accept test's series in y, used in float64 for y up to
SERIES_BELOW = 1 / 64  # where they leave a relative (1/64)**8 ~ 4e-15; beyond, rounding costs 3 d 2**-53 < 1e-11


def check_beta(
    alpha: Tensor, beta: Tensor, seed: int, step: int, first_prompt: int, out: Tensor
) -> tuple[int, int, int]:
    """Seed, step and first prompt as Python's own integers.

    Raises TypeError or ValueError unless the arguments of `sample_beta` have its types, shapes and ranges.
    """
    numbers = rng.check(seed, step, first_prompt)
    check_layout("alpha", alpha, (alpha.numel(),), alpha)
    check_layout("beta", beta, (alpha.numel(),), alpha)
    check_layout("out", out, (alpha.numel(),), alpha)
    return numbers


def check_state(belief: Tensor, seed: int, step: int, first_prompt: int, out: Tensor) -> tuple[int, int, int]:
    """Seed, step and first prompt as Python's own integers.

    Raises TypeError or ValueError unless the arguments of `sample_state` have its types, shapes and ranges. Any strides
    are fine for belief, so that columns of a larger pool can be drawn from where they are.
    """
    numbers = rng.check(seed, step, first_prompt)
    if belief.dtype not in FLOATS:
        raise TypeError(f"belief must be float32 or float64, got {belief.dtype}")
    if belief.ndim != 2 or belief.shape[0] == 0:
        raise ValueError(f"belief must have shape (K, N) with K >= 1, got {tuple(belief.shape)}")
    check_layout("out", out, (belief.shape[1],), belief, dtype="int64")
    return numbers


def prompt_numbers(first_prompt: int, rows: int, like: Tensor) -> Tensor:
    """The prompt numbers of `rows` consecutive rows, (rows,) int64 on the device of `like`."""
    return torch.arange(first_prompt, first_prompt + rows, device=like.device)
