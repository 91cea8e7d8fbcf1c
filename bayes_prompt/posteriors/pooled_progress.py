"""The posterior of `SolvingProgress` whose transitions are learned together by all prompts, or by those of a group."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayes_prompt.checkpoint import require_no_less, require_no_more
from bayes_prompt.kernels.progress_filter import IMPOSSIBLE
from bayes_prompt.kernels.tally import Observations
from bayes_prompt.posteriors import checks
from bayes_prompt.posteriors.base import Counts
from bayes_prompt.posteriors.kinship import divided
from bayes_prompt.posteriors.pooled_transitions import PooledTransitions
from bayes_prompt.posteriors.progress import ProgressPosterior

if TYPE_CHECKING:
    from bayes_prompt.models.progress import SolvingProgress

MOST_CLUSTERS = 64
"""Groups that are made of embeddings."""


class PooledProgressPosterior(ProgressPosterior):
    """Beliefs over the hidden states of N prompts that move by R transition matrices between them.

    A step adds what its looks tell of transitions to the counts of the prompts' groups; a group leans on what others
    have counted: see `PooledTransitions`. Where every state is seen that is the transitions, as in DPS (arXiv
    2603.10887), whose matrices are one for each prompt. A look in the first step is of a prompt's first state, to
    which it has not moved, and adds nothing (in DPS it does).

    With banks there are several matrices for each group, and one belief for each prompt: its coming state is expected
    under their average, by weights that follow what each predicted. So a bank costs little more than one member.

    Args:
        model: the declaration, with pooling "pool" or "group".
        num_prompts: N. options: those of `Posterior`, and `initial`, as of `ProgressPosterior`.
        groups: (N,) integers from 0 up, with pooling "group".
        embeddings: (N, D), in their place: clusters of them, by k-means, are the groups, which depend on nothing else.
    """

    def __init__(
        self,
        model: SolvingProgress,
        num_prompts: int,
        *,
        groups: checks.IntegersLike | None = None,
        embeddings: Any = None,
        **options: Any,
    ) -> None:
        # To the kernels transitions are fixed, and change between steps.
        fixed = dataclasses.replace(model, learn=False, pooling="prompt", strength=None, decay=1.0)
        super().__init__(fixed, num_prompts, **options)
        self.model = model
        if embeddings is not None:
            groups = _clusters(checks.embeddings("embeddings", embeddings, num_prompts))
        self._groups, number = checks.groups("groups", groups, num_prompts)
        self._groups = self._groups.to(self.device)
        self._transitions = PooledTransitions(model, self._prior.double(), number)
        self._spread()

    @property
    def groups(self) -> Tensor:
        """The group, or the cluster, of each prompt, (N,) int64."""
        return self._groups

    @property
    def pooled_concentration(self) -> Tensor:
        """Concentrations of the transitions, (R, K, K) as [group, from, to].

        With banks these are of Dirichlets with the mean of the members', and their average number of pseudo-counts.
        """
        return self._transitions.concentration.to(self.dtype)

    def bank_weights(self) -> Tensor:
        """How much each member of a `DecayBank` counts, (R, J) by group, rows that sum to one."""
        return self._transitions.decays.now().to(self.dtype)

    def strength_weights(self) -> Tensor:
        """How much each member of a `StrengthBank` counts, (R, S) by group, rows that sum to one."""
        return self._transitions.strengths.now().to(self.dtype)

    def sample_transition(self, seed: int, step: int) -> Tensor:
        """One draw of every prompt's transition matrix, (N, K, K): prompts of a group have the same one.

        With banks it is drawn which member it comes from. Groups draw apart from one another, whatever their strength.
        """
        thompson, weights = self._kernel("thompson"), self._transitions.weights()
        if weights.shape[1] == 1:
            concentration = self._transitions.concentration
        else:
            member = torch.empty(len(weights), dtype=torch.int64, device=self.device)
            thompson.sample_state(weights.T.to(self.dtype), seed, step, 0, member)
            concentration = self._transitions.of_member(member)
        concentration = concentration.to(self.dtype).permute(1, 2, 0).contiguous()
        out = torch.empty_like(concentration)
        thompson.sample_dirichlet(concentration, seed, step, 0, out)
        return out.permute(2, 0, 1)[self._groups]

    def _apply(self, counts: Counts, elapsed: float) -> Observations:
        rows = counts.index.clamp(max=self.num_prompts - 1)
        before = self._posterior[:, rows].T.double()  # (M, K), negative where there has been no transition yet
        likelihood = self._counted_as.of(counts, unread=self.on_device).likelihood.double()
        seen = super()._apply(counts, elapsed)
        moved = counts.leader & (before >= 0).all(1)
        tiny = torch.finfo(self.dtype).tiny
        forbidden = self._transitions.learn(self._groups[rows], before, likelihood, moved, tiny, elapsed)
        seen.status.bitwise_or_(IMPOSSIBLE * forbidden.int())
        self._spread()
        return seen

    def _kept(self, elapsed: float) -> float:
        return 1.0  # to the kernels, which learn nothing here

    def _spread(self) -> None:
        """Hand the concentrations to the kernels: (K, K), or one for each prompt where groups differ."""
        pooled = self._transitions.concentration.to(self.dtype)
        if len(pooled) == 1:
            self._prior = pooled[0]
        else:
            self._prior = pooled.permute(1, 2, 0)[:, :, self._groups].contiguous()
        super()._forget_answers()  # scores that were made in the step had the transitions before it

    def _forget_answers(self) -> None:
        self._transitions.average()
        self._spread()

    def _describe(self) -> dict[str, Any]:
        groups = None
        if len(self._transitions.moves) > 1:
            groups = hashlib.sha256(self._groups.cpu().numpy().tobytes()).hexdigest()[:16]
        return {**super()._describe(), "groups": groups}

    def _tensors(self) -> dict[str, Tensor]:
        learned = self._transitions
        return {
            **super()._tensors(),
            "transitions": learned.counts,
            "decay_evidence": learned.decays.evidence,
            "strength_evidence": learned.strengths.evidence,
        }

    def _check_belief(self, tensors: Mapping[str, Tensor]) -> None:
        super()._check_belief(tensors)
        counts = tensors["transitions"] - self._transitions.least.to(tensors["transitions"].device)
        require_no_less("posterior.tensors.transitions, beyond the least that they may be,", counts, 0)
        for name in ("transitions", "decay_evidence", "strength_evidence"):
            require_no_more(f"posterior.tensors.{name}", tensors[name])


def _clusters(embeddings: Tensor) -> Tensor:
    """The cluster (N,) int64 of embeddings (N, D): as many as the root of N, and no more than `MOST_CLUSTERS`."""
    rows = embeddings.detach().cpu()
    most = min(MOST_CLUSTERS, math.isqrt(len(rows)))
    return divided(rows, torch.zeros(len(rows), dtype=torch.int64), most)
