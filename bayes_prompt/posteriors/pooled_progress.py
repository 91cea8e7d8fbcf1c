"""The posterior of `SolvingProgress` whose transitions are learned together by all prompts, or by those of a group."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayes_prompt.checkpoint import require_no_less
from bayes_prompt.kernels.progress_filter import IMPOSSIBLE
from bayes_prompt.kernels.tally import Observations
from bayes_prompt.posteriors import checks
from bayes_prompt.posteriors.base import Counts
from bayes_prompt.posteriors.progress import ProgressPosterior

if TYPE_CHECKING:
    from bayes_prompt.models.progress import SolvingProgress


class PooledProgressPosterior(ProgressPosterior):
    """Beliefs over the hidden states of N prompts that move by R transition matrices between them.

    A step adds the expected transitions of all observed prompts of a group to its concentrations:
    C' = decay * C + (1 - decay) * C0 + sum of xi, with xi as in DPS (arXiv 2603.10887), whose matrices are one for each
    prompt. A look in the first step is of a prompt's first state, to which it has not moved, and adds nothing (in DPS
    it does).

    Args:
        model: the declaration, with pooling "pool" or "group".
        num_prompts: N. options: those of `Posterior`, and `initial`, as of `ProgressPosterior`.
        groups: (N,) integers from 0 up, with pooling "group".
    """

    def __init__(
        self, model: SolvingProgress, num_prompts: int, *, groups: checks.IntegersLike | None = None, **options: Any
    ) -> None:
        # To the kernels transitions are fixed, and change between steps.
        super().__init__(dataclasses.replace(model, learn=False, pooling="prompt"), num_prompts, **options)
        self.model = model
        self._groups, number = checks.groups("groups", groups, num_prompts)
        self._groups = self._groups.to(self.device)
        self._declared = self._prior.double()  # (K, K)
        self._pooled = self._declared.expand(number, -1, -1).clone()
        self._spread()

    @property
    def pooled_concentration(self) -> Tensor:
        """Concentrations of the transitions, (R, K, K) as [group, from, to]."""
        return self._pooled.to(self.dtype)

    def sample_transition(self, seed: int, step: int) -> Tensor:
        """One draw of every prompt's transition matrix, (N, K, K): prompts of a group have the same one."""
        concentration = self._pooled.to(self.dtype).permute(1, 2, 0).contiguous()
        out = torch.empty_like(concentration)
        self._kernel("thompson").sample_dirichlet(concentration, seed, step, 0, out)
        return out.permute(2, 0, 1)[self._groups]

    def _apply(self, counts: Counts, elapsed: float) -> Observations:
        rows = counts.index.clamp(max=self.num_prompts - 1)
        before = self._posterior[:, rows].double()  # (K, M), negative where there has been no transition yet
        likelihood = self._counted_as.of(counts, unread=self.on_device).likelihood.double()
        moves = self._pooled / self._pooled.sum(2, keepdim=True)
        joint = before.T[:, :, None] * moves[self._groups[rows]] * likelihood[:, None, :]  # (M, from, to)
        total = joint.sum((1, 2), keepdim=True)
        moved = counts.leader & (before >= 0).all(0)
        forbidden = moved[:, None, None] & (total <= torch.finfo(self.dtype).tiny)
        counted = moved[:, None, None] & ~forbidden
        expected = torch.where(counted, joint / total.clamp(min=1e-300), 0.0)
        seen = super()._apply(counts, elapsed)
        seen.status.bitwise_or_(IMPOSSIBLE * forbidden[:, 0, 0].int())
        kept = self.model.decay**elapsed
        self._pooled.mul_(kept).add_((1 - kept) * self._declared).index_add_(0, self._groups[rows], expected)
        self._spread()
        return seen

    def _spread(self) -> None:
        """Hand the concentrations to the kernels: (K, K), or one for each prompt where groups differ."""
        if len(self._pooled) == 1:
            self._prior = self._pooled[0].to(self.dtype)
        else:
            self._prior = self._pooled.to(self.dtype).permute(1, 2, 0)[:, :, self._groups].contiguous()
        super()._forget_answers()  # scores that were made in the step had the transitions before it

    def _forget_answers(self) -> None:
        self._spread()

    def _describe(self) -> dict[str, Any]:
        groups = None
        if len(self._pooled) > 1:
            groups = hashlib.sha256(self._groups.cpu().numpy().tobytes()).hexdigest()[:16]
        return {**super()._describe(), "groups": groups}

    def _tensors(self) -> dict[str, Tensor]:
        return {**super()._tensors(), "pooled": self._pooled}

    def _check_belief(self, tensors: Mapping[str, Tensor]) -> None:
        super()._check_belief(tensors)
        require_no_less("posterior.tensors.pooled", tensors["pooled"], 0)
