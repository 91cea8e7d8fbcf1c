"""The definition of the grid filter: float64 torch, one line per equation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bayes_prompt.kernels.grid_filter import (
    check_advance,
    check_look,
    check_look_index,
    check_predict,
    check_score,
    check_settle,
)
from bayes_prompt.kernels.progress_filter import UNEXPECTED


def predict(
    belief: Tensor, slot: Tensor, propagators: Tensor, shared: Tensor, index: Tensor | None, out: Tensor
) -> None:
    """Write P(state now | everything seen) of prompts into `out`: belief @ propagators[slot], or the shared belief.

    belief: (N, K) right after the last observation; rows whose slot is negative may hold anything.
    slot: (N,) int32, the propagator that carries the row to now; -1 - r for row r of `shared`.
    propagators: (S, K, K) [from, to], rows sum to 1.
    shared: (R, K) beliefs of prompts that have never been observed.
    index: (B,) int64 prompts, in any order, or None for all of them; outside [0, N) beliefs are zeros.
    out: (B, K) or (N, K), apart from `belief`.

    Float tensors are all float32 or all float64; arithmetic is float64 throughout. Raises TypeError or ValueError for a
    wrong dtype, shape, device or layout.
    """
    check_predict(belief, slot, propagators, shared, index, out)
    if index is None:
        out.copy_(_now(belief, slot, propagators, shared))
        return
    inside = (index >= 0) & (index < len(belief))
    rows = index[inside]
    found = torch.zeros(out.shape, dtype=torch.float64, device=out.device)
    found[inside] = _now(belief[rows], slot[rows], propagators, shared)
    out.copy_(found)


def score(belief: Tensor, slot: Tensor, vectors: Tensor, shared_scores: Tensor, out: Tensor) -> None:
    """Write belief . vectors[slot] into `out` (N,), or shared_scores[r] where the slot is -1 - r.

    vectors: (S, K) propagators @ utility, so that this is the expected utility now. shared_scores: (R,).
    State and errors are those of `predict`.
    """
    check_score(belief, slot, vectors, shared_scores, out)
    seen = slot >= 0
    found = torch.empty(out.shape, dtype=torch.float64, device=out.device)
    found[seen] = (belief[seen].double() * vectors.double()[slot[seen].long()]).sum(1)
    found[~seen] = shared_scores.double()[-1 - slot[~seen].long()]
    out.copy_(found)


def look(
    belief: Tensor,
    slot: Tensor,
    chances: Tensor,
    worths: Tensor,
    shared_values: Tensor,
    threshold: float | Tensor,
    out: Tensor,
) -> None:
    """Write what a look at each prompt is worth into `out` (N,): the knowledge gradient, but for what one has now.

    A prompt is rolled out, and then either it is kept or something of worth `threshold` is taken instead:

        out = sum over outcomes o of max(belief . worths[slot, o], threshold * (belief . chances[slot, o]))

    chances: (S, O, K) P(outcome | state), pulled back through the propagators. worths: (S, O, K), that times the worth
        of the state after the outcome, likewise.
    shared_values: (R,) the answer where the slot is -1 - r.
    threshold: a number, or a tensor () of one where the device must not be waited for.
    State and errors are those of `predict` (Frazier, Powell and Dayanik, "A knowledge-gradient policy", 2008).
    """
    check_look(belief, slot, chances, worths, shared_values, threshold, out)
    level = threshold.double() if isinstance(threshold, Tensor) else threshold
    found = shared_values.double()[-1 - slot.long().clamp(max=-1)] if len(shared_values) else out.double()
    for s, rows in _by_slot(slot):
        b = belief[rows].double()
        kept, left = b @ worths[s].double().T, level * (b @ chances[s].double().T)
        found[rows] = torch.maximum(kept, left).sum(1)
    out.copy_(found)


def look_index(
    belief: Tensor,
    slot: Tensor,
    vectors: Tensor,
    chances: Tensor,
    worths: Tensor,
    shared_values: Tensor,
    horizon: float,
    out: Tensor,
) -> None:
    """Write the price at which each prompt breaks even into `out` (N,): a Gittins index with one look ahead.

    A prompt that is rolled out brings belief . vectors[slot] now, and for `horizon` further steps what it is worth
    after the outcome, if that is more than the price, or else the price. With P_o = horizon * belief . chances[slot, o]
    and Q_o = horizon * belief . worths[slot, o], the price at which it neither gains nor loses is

        out = max over sets of outcomes of (now + sum of Q_o) / (1 + sum of P_o)

    which Dinkelbach's iteration finds: each round goes on after the outcomes of which Q_o > price * P_o.

    vectors: (S, K) the worth of each state now, pulled back through the propagators. chances, worths: (S, O, K) as of
        `look`, none negative.
    shared_values: (R,) the answer where the slot is -1 - r.
    horizon: finite, at least 0; with 0 this is `score`.
    State and errors are those of `predict` (Gittins, "Bandit processes and dynamic allocation indices", 1979, cut off
    after one look; Dinkelbach, "On nonlinear fractional programming", 1967).
    """
    check_look_index(belief, slot, vectors, chances, worths, shared_values, horizon, out)
    found = shared_values.double()[-1 - slot.long().clamp(max=-1)] if len(shared_values) else out.double()
    for s, rows in _by_slot(slot):
        b = belief[rows].double()
        P, Q = (horizon * (b @ table[s].double().T) for table in (chances, worths))
        found[rows] = _break_even(b @ vectors[s].double(), P, Q)
    out.copy_(found)


def advance(
    belief: Tensor,
    slot: Tensor,
    propagators: Tensor,
    shared: Tensor,
    index: Tensor,
    likelihood: Tensor,
    now: int,
    expected: Tensor | None,
    chance: Tensor,
    status: Tensor,
    decay: float = 1.0,
    prior: Tensor | None = None,
) -> None:
    """Condition the prompts that were observed, in place: belief ∝ belief now * likelihood, slot = now (Bayes).

    index: (M,) int64, ascending: the prompts that were observed. Entries after the first of a prompt, and those outside
        [0, N), are passed over.
    likelihood: (M, K) P(observation | state) up to a factor per row, row maximum 1; M may be 0.
    now: the number of the propagator that will carry these beliefs on.
    expected: (M, K) out: the belief before the observation, 0 in entries that are passed over; None if not asked for.
    chance: (M,) out: sum_k expected_k likelihood_k, 0 where unexpected and in entries that are passed over.
    status: (M,) int32 out: UNEXPECTED if the chance vanishes, that is if it is not above the smallest normal number of
        `likelihood`; there the belief restarts from the likelihood.
    decay: in [0, 1], what an observed prompt remembers: before the observation its belief is replaced by
        belief^decay * prior^(1 - decay), normalised, which on Beta densities is MoPPS's forgetting (arXiv 2507.04632).
        Beliefs that share no state with the prior are kept. 1 forgets nothing.
    prior: (K,), or (M, K), each entry its own; needed where decay < 1.

    State and errors are those of `predict`; a decay outside [0, 1] or a slot that cannot be one raises ValueError.
    """
    check_advance(belief, slot, propagators, shared, index, likelihood, now, expected, chance, status, decay, prior)
    counted = (index >= 0) & (index < len(belief))
    counted[1:] &= index[1:] != index[:-1]
    entries = counted.nonzero().squeeze(1)
    rows = index[entries]
    b = _now(belief[rows], slot[rows], propagators, shared)
    if decay < 1.0 and prior is not None:
        b = _forget(b, decay, prior.double().expand(likelihood.shape)[entries])
    L = likelihood.double()[entries]
    total = (b * L).sum(1)
    possible = total > torch.finfo(likelihood.dtype).tiny
    q = torch.where(possible[:, None], b * L / total[:, None], L / L.sum(1, keepdim=True))
    belief[rows] = q.to(belief.dtype)
    slot[rows] = now
    chance.zero_()
    status.zero_()
    chance[entries] = torch.where(possible, total, 0.0).to(chance.dtype)
    status[entries] = UNEXPECTED * (~possible).int()
    if expected is not None:
        expected.zero_()
        expected[entries] = b.to(expected.dtype)


def settle(belief: Tensor, slot: Tensor, propagators: Tensor, first: int, last: int, now: int) -> None:
    """Carry the beliefs whose slot lies in [first, last) to now, in place: belief @ propagators[slot], slot = now.

    State and errors are those of `predict`; slots that cannot be ones raise ValueError.
    """
    check_settle(belief, slot, propagators, first, last, now)
    behind = ((slot >= first) & (slot < last)).nonzero().squeeze(1)
    belief[behind] = _now(belief[behind], slot[behind], propagators, None).to(belief.dtype)
    slot[behind] = now


def _now(belief: Tensor, slot: Tensor, propagators: Tensor, shared: Tensor | None) -> Tensor:
    """(B, K) float64 from as many rows."""
    found = torch.zeros(belief.shape, dtype=torch.float64, device=belief.device)
    if shared is not None:
        unseen = slot < 0
        found[unseen] = shared.double()[-1 - slot[unseen].long()]
    for s, rows in _by_slot(slot):
        found[rows] = belief[rows].double() @ propagators[s].double()
    return found


def _by_slot(slot: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The tables in use, and the rows of each."""
    for s in slot.unique().tolist():
        if s >= 0:
            yield s, (slot == s).nonzero().squeeze(1)


def _forget(b: Tensor, decay: float, prior: Tensor) -> Tensor:
    """The normalised geometric mean of beliefs (M, K) and priors."""
    if decay == 0.0:
        return prior / prior.sum(1, keepdim=True)
    logs = decay * b.log() + (1.0 - decay) * prior.log()
    highest = logs.max(1, keepdim=True).values
    meet = highest > -torch.inf
    mixed = (logs - torch.where(meet, highest, 0.0)).exp()
    return torch.where(meet, mixed, b) / torch.where(meet, mixed.sum(1, keepdim=True), 1.0)


def _break_even(now: Tensor, P: Tensor, Q: Tensor) -> Tensor:
    """The largest (now + sum of Q) / (1 + sum of P) over sets of outcomes, (B,), of now (B,), P and Q (B, O)."""
    nu = now
    for _ in range(P.shape[1] + 1):  # sets shrink
        goes_on = ~(nu[:, None] * P >= Q)  # nan is kept
        better = (now + (Q * goes_on).sum(1)) / (1 + (P * goes_on).sum(1))
        if bool((better <= nu).all()):
            break
        nu = torch.where(better <= nu, nu, better)
    return nu
