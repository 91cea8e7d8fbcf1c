"""The definition of the decayed Beta filter, in float64 torch."""

from __future__ import annotations

import torch
from torch import Tensor

from bayes_prompt.kernels.beta_filter import check_arguments


def advance(
    alpha: Tensor,
    beta: Tensor,
    prior_alpha: Tensor,
    prior_beta: Tensor,
    index: Tensor,
    successes: Tensor,
    trials: Tensor,
    decay: float,
    decay_unobserved: bool,
) -> None:
    """Advance N Beta beliefs about a success rate by one step, in place (MoPPS, arXiv 2507.04632).

    alpha, beta: (N,) parameters, updated: a' = decay * a + (1 - decay) * a0 + successes, b' likewise with the failures.
    prior_alpha, prior_beta: (1,) or (N,) parameters a0, b0 that the decay returns to.
    index: (M,) int64 prompts, ascending. Passed over are entries after the first of a prompt, and those outside [0, N).
    successes, trials: (M,) int64 counts.
    decay: in [0, 1]; 1 forgets nothing.
    decay_unobserved: whether unobserved prompts return to the prior too, or keep their parameters.

    Float tensors are all float32 or all float64; arithmetic is float64 throughout. Raises TypeError or ValueError for a
    wrong dtype, shape, device or layout, and for a decay outside [0, 1].
    """
    check_arguments(alpha, beta, prior_alpha, prior_beta, index, successes, trials, decay)
    counted = (index >= 0) & (index < len(alpha))
    counted[1:] &= index[1:] != index[:-1]
    entries = counted.nonzero().squeeze(1)
    rows = index[entries]
    moved = torch.full_like(alpha, decay_unobserved, dtype=torch.bool)
    moved[rows] = True
    for parameter, prior, counts in ((alpha, prior_alpha, successes), (beta, prior_beta, trials - successes)):
        decayed = decay * parameter.double() + (1.0 - decay) * prior.double()
        decayed[rows] += counts[entries]
        parameter.copy_(torch.where(moved, decayed, parameter.double()))
