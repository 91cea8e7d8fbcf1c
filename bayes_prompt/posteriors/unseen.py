"""The beliefs of prompts that were never observed, which those of a group share."""

from __future__ import annotations

import torch
from torch import Tensor

from bayes_prompt.models.sharing import EmpiricalBayes


class Unseen:
    """Beliefs about R groups of unobserved prompts, under each of J drifts.

    Args:
        initial: (J, states) float64, the declared prior. groups: R. sharing: None leaves it at that.
    """

    def __init__(self, initial: Tensor, groups: int, sharing: EmpiricalBayes | None) -> None:
        self.sharing, self.groups = sharing, groups
        self.prior = initial.clone()
        #: (J, R, states) pseudo-counts of first looks.
        self.looks = torch.zeros(len(initial), groups, initial.shape[1], dtype=torch.float64, device=initial.device)

    def beliefs(self, looks: Tensor | None = None) -> Tensor:
        """(J, R, states), rows that sum to one."""
        if self.sharing is None:
            return self.prior[:, None].expand(-1, self.groups, -1)
        looks = self.looks if looks is None else looks
        pool, group = self.sharing.pool, self.sharing.group
        of_pool = (pool * self.prior + looks.sum(1)) / (pool + looks.sum((1, 2))[:, None])
        of_pool = of_pool / of_pool.sum(1, keepdim=True)
        if self.groups == 1:
            return of_pool[:, None]
        return (group * of_pool[:, None] + looks) / (group + looks.sum(2, keepdim=True))

    def learn(self, groups: Tensor, likelihood: Tensor) -> None:
        """First looks at M prompts of groups (M,) int64, with likelihoods (M, states)."""
        if self.sharing is None or not len(groups):
            return
        before = self.looks.clone()
        for _ in range(self.sharing.passes):
            met = self.beliefs()[:, groups] * likelihood
            met = met / met.sum(2, keepdim=True).clamp(min=1e-300)
            self.looks.copy_(before.index_add(1, groups, met))

    def move(self, transition: Tensor, elapsed: float) -> None:
        """One step: transition (J, states, states)."""
        self.prior.copy_((self.prior[:, None] @ transition)[:, 0])
        if self.sharing is not None:
            self.looks.copy_(self.sharing.memory**elapsed * (self.looks @ transition))
