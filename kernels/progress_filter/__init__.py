"""One step of the solving-progress filter for N prompts (DPS, arXiv 2603.10887, its predict and update equations).

`advance` conditions the observed prompts on their likelihood, learns their transitions, lets the concentrations decay
towards the prior and predicts the next state, all in one pass over memory. The three backends share name and signature;
`reference.py` is the definition.
"""

from __future__ import annotations

from torch import Tensor

from bayes_prompt.kernels.arguments import check_layout

UNEXPECTED = 1
"""Status bit: the likelihood excludes every state that the belief allows; the state restarts from the likelihood."""

IMPOSSIBLE = 2
"""Status bit: the learned transitions exclude what was seen; nothing is learned from it."""


def check_arguments(
    concentration: Tensor | None,
    posterior: Tensor,
    belief: Tensor,
    prior: Tensor,
    slot: Tensor,
    likelihood: Tensor,
    decay: float,
    learn: bool,
    evidence: Tensor,
    status: Tensor,
) -> None:
    """Check shapes, dtypes, devices, contiguity and decay, not what tensors hold: that would cost a pass over memory.

    Raises TypeError or ValueError that names the argument. The contents of `slot` are the caller's responsibility.
    """
    if belief.ndim != 2:
        raise ValueError(f"belief must have shape (states, prompts), got {tuple(belief.shape)}")
    if likelihood.ndim != 2:
        raise ValueError(f"likelihood must have shape (observations, states), got {tuple(likelihood.shape)}")
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay must lie in [0, 1], got {decay}")
    states, prompts = belief.shape
    observations = likelihood.shape[0]
    per_prompt = (prompts,) if prior.ndim == 3 else ()
    check_layout("belief", belief, (states, prompts), belief)
    if learn:
        if concentration is None:
            raise ValueError("concentration is needed when learn is True, got None")
        check_layout("concentration", concentration, (states, states, prompts), belief)
    check_layout("posterior", posterior, (states, prompts), belief)
    check_layout("prior", prior, (states, states, *per_prompt), belief)
    check_layout("slot", slot, (prompts,), belief, "int32")
    check_layout("likelihood", likelihood, (observations, states), belief)
    check_layout("evidence", evidence, (observations,), belief)
    check_layout("status", status, (observations,), belief, "int32")
