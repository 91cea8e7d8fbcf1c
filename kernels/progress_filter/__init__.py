"""The solving-progress filter for N prompts (DPS, arXiv 2603.10887, its predict and update equations).

    advance   one step of time for all prompts in one pass: condition, learn, predict, and score the coming belief
    score     the same scores without a step
    predict   the belief itself

The three backends share names and signatures; `reference.py` is the definition.

What is stored are K * K + K numbers a prompt, of which a step reads all and writes K:

- `learned`: the concentrations are prior + scale * learned. All of them decay by the same factor, so one number decays
  for all, `scale`, and only rows that were observed are written. Before it gets too small for the numbers' range it is
  multiplied into `learned`, once in 60 / log2(1 / decay) steps, 117 for a decay of 0.7.
- `posterior`: P(state at the last step). The belief about the coming one follows from it and the concentrations. A row
  that has not made a step yet holds its initial belief with a minus sign, for there the belief is that itself.

Both may be stored in bfloat16, for pools that would be too large otherwise. All else is float32 then.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayes_prompt.kernels.arguments import FLOATS, check_layout
from bayes_prompt.kernels.shortlist import Shortlist, check_shortlist

UNEXPECTED = 1
"""Status bit: the likelihood excludes every state that the belief allows; the state restarts from the likelihood."""

IMPOSSIBLE = 2
"""Status bit: the learned transitions exclude what was seen; nothing is learned from it."""

SMALLEST_SCALE = 2.0**-60
"""Below it `scale` is multiplied into `learned`: learned numbers grow to 1 / SMALLEST_SCALE, far within float32."""


@dataclass(frozen=True)
class Scoring:
    """What `advance` and `score` work out about the coming belief, beside the step itself.

    utility: (K,) worth of each state, in the dtype of the beliefs. scores: (N,) out: belief @ utility.
    shortlist: notes the rows whose score reaches its threshold.
    """

    utility: Tensor
    scores: Tensor
    shortlist: Shortlist | None = None


def check_state(learned: Tensor | None, posterior: Tensor, scale: Tensor, prior: Tensor) -> None:
    """Check shapes, dtypes, devices and contiguity, not what tensors hold: that would cost a pass over memory.

    Raises TypeError or ValueError that names the argument.
    """
    if posterior.ndim != 2:
        raise ValueError(f"posterior must have shape (states, prompts), got {tuple(posterior.shape)}")
    if posterior.dtype not in (*FLOATS, torch.bfloat16):
        raise TypeError(f"posterior must be float32, float64 or bfloat16, got {posterior.dtype}")
    states, prompts = posterior.shape
    stored = str(posterior.dtype).removeprefix("torch.")
    check_layout("posterior", posterior, (states, prompts), posterior, stored)
    if learned is not None:
        check_layout("learned", learned, (states, states, prompts), posterior, stored)
    check_layout("scale", scale, (1,), posterior, "float64")
    own = (prompts,) if prior.ndim == 3 else ()
    check_layout("prior", prior, (states, states, *own), posterior, computed(posterior))


def computed(posterior: Tensor) -> str:
    """The type of everything but what is stored, by name: a state in bfloat16 is computed with in float32."""
    return "float64" if posterior.dtype == torch.float64 else "float32"


def check_scoring(scoring: Scoring, posterior: Tensor) -> None:
    """Raises TypeError or ValueError unless `scoring` fits the posterior (K, N)."""
    states, prompts = posterior.shape
    check_layout("scoring.utility", scoring.utility, (states,), posterior, computed(posterior))
    check_layout("scoring.scores", scoring.scores, (prompts,), posterior, computed(posterior))
    if scoring.shortlist is not None:
        check_shortlist(scoring.shortlist, scoring.scores)


def check_step(
    posterior: Tensor,
    index: Tensor,
    likelihood: Tensor,
    decay: float,
    expected: Tensor,
    evidence: Tensor,
    status: Tensor,
) -> None:
    """Raises TypeError or ValueError unless the observations of a step have the layout that `advance` asks for.

    That `index` ascends is the caller's responsibility.
    """
    if likelihood.ndim != 2:
        raise ValueError(f"likelihood must have shape (observations, states), got {tuple(likelihood.shape)}")
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"decay must lie in [0, 1], got {decay}")
    observations = likelihood.shape[0]
    check_layout("likelihood", likelihood, (observations, posterior.shape[0]), posterior, computed(posterior))
    check_layout("index", index, (observations,), posterior, "int64")
    check_layout("expected", expected, (observations, posterior.shape[0]), posterior, computed(posterior))
    check_layout("evidence", evidence, (observations,), posterior, computed(posterior))
    check_layout("status", status, (observations,), posterior, "int32")
