"""The definition of the solving-progress filter: float64 torch, one line per equation."""

from __future__ import annotations

import torch
from torch import Tensor

from bayes_prompt.kernels.progress_filter import IMPOSSIBLE, UNEXPECTED, check_arguments


def advance(
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
    """Advance the filter of N prompts by one step, in place (DPS, arXiv 2603.10887, generalised to any likelihood).

    concentration: (K, K, N) Dirichlet concentrations [from, to, prompt], updated; may be None unless `learn`.
    posterior: (K, N) P(state at the last step | everything seen up to it), updated.
    belief: (K, N) P(state at this step | everything seen before it), becomes the same of the next step.
    prior: (K, K) concentrations shared by all prompts, or (K, K, N).
    slot: (N,) int32, -1 where the prompt was not observed, else its row of `likelihood`. No two prompts share a row.
    likelihood: (M, K) P(observation | state) up to a factor per row, row maximum 1; M may be 0.
    decay: what remains of the learned part of the concentrations, in [0, 1].
    learn: False fixes the transitions at the mean of the prior.
    evidence: (M,) out: sum_k belief_k likelihood_k, 0 where unexpected and in rows that no slot points at.
    status: (M,) int32 out: UNEXPECTED if the evidence vanishes, plus IMPOSSIBLE if the expected transition does.

    Float tensors are all float32 or all float64; arithmetic is float64 throughout. A sum vanishes when it is not above
    the smallest normal number of the tensors' dtype. Raises TypeError or ValueError for a wrong dtype, shape, device or
    layout, and for a decay outside [0, 1].
    """
    check_arguments(concentration, posterior, belief, prior, slot, likelihood, decay, learn, evidence, status)
    tiny = torch.finfo(belief.dtype).tiny
    states, prompts = belief.shape
    b, p = belief.double(), posterior.double()
    base = prior.double().reshape(states, states, -1)

    rows = (slot >= 0).nonzero().squeeze(1)
    entries = slot[rows].long()
    observed = slot >= 0
    L = torch.ones(states, prompts, dtype=torch.float64, device=belief.device)
    L[:, rows] = likelihood.double()[entries].T

    total = (b * L).sum(0)
    expected = total > tiny
    q = torch.where(observed, torch.where(expected, b * L / total, L / L.sum(0)), b)
    impossible = torch.zeros_like(observed)
    if learn:
        assert concentration is not None  # checked above
        C = concentration.double()
        transition = C / C.sum(1, keepdim=True)
        joint = p[:, None] * transition * L[None]
        x = joint.sum((0, 1))
        impossible = ~(x > tiny)
        xi = torch.where(observed & ~impossible, joint / x, 0.0)
        C = decay * C + (1.0 - decay) * base + xi
        concentration.copy_(C)
    else:
        C = base
    predicted = (q[:, None] * C / C.sum(1, keepdim=True)).sum(0)

    posterior.copy_(q)
    belief.copy_(predicted / predicted.sum(0))
    evidence.zero_()
    status.zero_()
    evidence[entries] = torch.where(expected, total, 0.0)[rows].to(evidence.dtype)
    status[entries] = (UNEXPECTED * ~expected + IMPOSSIBLE * impossible)[rows].to(torch.int32)
