"""One step of the decayed Beta filter for N success rates (MoPPS, arXiv 2507.04632, its posterior update).

`advance` adds the counts of the observed prompts to their decayed parameters. The three backends share name and
signature; `reference.py` is the definition.
"""

from __future__ import annotations

from torch import Tensor

from bayes_prompt.kernels.arguments import check_layout


def check_arguments(
    alpha: Tensor,
    beta: Tensor,
    prior_alpha: Tensor,
    prior_beta: Tensor,
    index: Tensor,
    successes: Tensor,
    trials: Tensor,
    decay: float,
) -> None:
    """Check shapes, dtypes, devices, contiguity and decay. Raises TypeError or ValueError that names the argument.

    That `index` ascends is the caller's responsibility.
    """
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay must lie in [0, 1], got {decay}")
    prompts, entries = (alpha.numel(),), (index.numel(),)
    check_layout("alpha", alpha, prompts, alpha)
    check_layout("beta", beta, prompts, alpha)
    check_layout("prior_alpha", prior_alpha, (1,) if prior_alpha.numel() == 1 else prompts, alpha)
    check_layout("prior_beta", prior_beta, tuple(prior_alpha.shape), alpha)
    check_layout("index", index, entries, alpha, "int64")
    check_layout("successes", successes, entries, alpha, "int64")
    check_layout("trials", trials, entries, alpha, "int64")
