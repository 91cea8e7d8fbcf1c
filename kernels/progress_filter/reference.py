"""The definition of the solving-progress filter: float64 torch, one line per equation."""

from __future__ import annotations

import torch
from torch import Tensor

from bayes_prompt.kernels import shortlist
from bayes_prompt.kernels.progress_filter import (
    IMPOSSIBLE,
    SMALLEST_SCALE,
    UNEXPECTED,
    Scoring,
    check_scoring,
    check_state,
    check_step,
)


def advance(
    learned: Tensor | None,
    posterior: Tensor,
    scale: Tensor,
    prior: Tensor,
    index: Tensor,
    likelihood: Tensor,
    decay: float,
    expected: Tensor,
    evidence: Tensor,
    status: Tensor,
    scoring: Scoring | None = None,
) -> None:
    """Advance the filter of N prompts by one step, in place (DPS, arXiv 2603.10887, generalised to any likelihood).

    learned: (K, K, N) [from, to, prompt], updated: the Dirichlet concentrations are prior + scale * learned. None fixes
        the transitions at the mean of the prior.
    posterior: (K, N) P(state at the last step | everything seen up to it), updated; minus the initial belief in rows
        that have not made a step.
    scale: (1,) float64 in (0, 1], updated.
    prior: (K, K) concentrations shared by all prompts, or (K, K, N).
    index: (M,) int64, ascending: the prompts that were observed. Entries after the first of a prompt, and those outside
        [0, N), are passed over.
    likelihood: (M, K) P(observation | state) up to a factor per row, row maximum 1; M may be 0.
    decay: what remains of the learned part of the concentrations, in [0, 1].
    expected: (M, K) out: the belief in each state before the observation, 0 in entries that are passed over.
    evidence: (M,) out: sum_k belief_k likelihood_k, 0 where unexpected and in entries that are passed over.
    status: (M,) int32 out: UNEXPECTED if the evidence vanishes, plus IMPOSSIBLE if the expected transition does.
    scoring: what to work out about the belief after the step.

    Float tensors are all float32 or all float64, or learned and posterior are bfloat16 and the others float32;
    arithmetic is float64 throughout. A sum vanishes when it is not above the smallest normal number of `likelihood`.
    Raises TypeError or ValueError for a wrong dtype, shape, device or layout, and for a decay outside [0, 1].
    """
    check_state(learned, posterior, scale, prior)
    check_step(posterior, index, likelihood, decay, expected, evidence, status)
    if scoring is not None:
        check_scoring(scoring, posterior)
    tiny = torch.finfo(likelihood.dtype).tiny
    prompts = posterior.shape[1]
    counted = (index >= 0) & (index < prompts)
    counted[1:] &= index[1:] != index[:-1]
    entries = counted.nonzero().squeeze(1)
    rows = index[entries]

    p = posterior.double().abs()
    b = _belief(learned, posterior, scale, prior)
    L = likelihood.double()[entries].T
    before = b[:, rows]
    total = (before * L).sum(0)
    possible = total > tiny
    q = b
    q[:, rows] = torch.where(possible, before * L / total, L / L.sum(0))
    impossible = torch.zeros_like(possible)
    if learned is not None:
        C = _concentration(learned, scale, prior, prompts)[:, :, rows]
        joint = p[:, None, rows] * (C / C.sum(1, keepdim=True)) * L[None]
        x = joint.sum((0, 1))
        impossible = ~(x > tiny)
        xi = torch.where(impossible, 0.0, joint / x)
        after, cells = scale * decay, learned.double()
        if after < SMALLEST_SCALE:
            cells = after * cells
            cells[cells < tiny / SMALLEST_SCALE] = 0.0  # no subnormals next time
            after = torch.ones_like(scale)
        cells[:, :, rows] += xi / after
        learned.copy_(cells)
        scale.copy_(after)
    posterior.copy_(q)
    for out in (expected, evidence, status):
        out.zero_()
    expected[entries] = before.T.to(expected.dtype)
    evidence[entries] = torch.where(possible, total, 0.0).to(evidence.dtype)
    status[entries] = (UNEXPECTED * ~possible + IMPOSSIBLE * impossible).to(torch.int32)
    if scoring is not None:
        score(learned, posterior, scale, prior, scoring)


def score(learned: Tensor | None, posterior: Tensor, scale: Tensor, prior: Tensor, scoring: Scoring) -> None:
    """Write belief @ utility into `scoring.scores` (N,), and note who reaches the shortlist's threshold.

    The state and its errors are those of `advance`; it is not changed.
    """
    check_state(learned, posterior, scale, prior)
    check_scoring(scoring, posterior)
    scoring.scores.copy_(scoring.utility.double() @ _belief(learned, posterior, scale, prior))
    if scoring.shortlist is not None:
        shortlist.note(scoring.shortlist, scoring.scores)


def predict(learned: Tensor | None, posterior: Tensor, scale: Tensor, prior: Tensor, belief: Tensor) -> None:
    """Write P(state at the coming step | everything seen) into `belief` (K, N), in the dtype of the prior.

    The state and its errors are those of `advance`; it is not changed.
    """
    check_state(learned, posterior, scale, prior)
    belief.copy_(_belief(learned, posterior, scale, prior))


def _concentration(learned: Tensor | None, scale: Tensor, prior: Tensor, prompts: int) -> Tensor:
    """(K, K, N) float64."""
    base = prior.double().reshape(*prior.shape[:2], -1)
    return (base if learned is None else base + scale * learned.double()).expand(-1, -1, prompts)


def _belief(learned: Tensor | None, posterior: Tensor, scale: Tensor, prior: Tensor) -> Tensor:
    """(K, N) float64."""
    p = posterior.double()
    C = _concentration(learned, scale, prior, p.shape[1])
    predicted = (p[:, None] * (C / C.sum(1, keepdim=True))).sum(0)
    total = predicted.sum(0)
    return torch.where(total < 0, p, predicted) / total
