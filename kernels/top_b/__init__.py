"""The exact pick of the B best of N scores, ties broken by random keys; `reference` is the definition."""

from __future__ import annotations

from torch import Tensor

from bayes_prompt.kernels import rng
from bayes_prompt.kernels.arguments import check_layout
from bayes_prompt.kernels.shortlist import Shortlist, check_shortlist


def check_arguments(
    scores: Tensor,
    allowed: Tensor | None,
    batch: int,
    seed: int | Tensor,
    step: int | Tensor,
    first_prompt: int,
    shortlist: Shortlist | None,
) -> tuple[int | Tensor, int | Tensor, int]:
    """Seed, step and first prompt as Python's own integers; seed and step may stay (1,) int64 tensors.

    Raises TypeError or ValueError unless the arguments of `top_b` have its types, shapes and ranges.
    """
    numbers = rng.check(seed, step, first_prompt)
    check_layout("scores", scores, (scores.numel(),), scores)
    if allowed is not None:
        check_layout("allowed", allowed, (scores.numel(),), scores, dtype="bool")
    if batch < 0:
        raise ValueError(f"batch must not be negative, got {batch}")
    if shortlist is not None:
        check_shortlist(shortlist, scores)
    return numbers
