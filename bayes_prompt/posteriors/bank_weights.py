"""How much each member of a bank counts, by its evidence: of the pool, and of every group."""

from __future__ import annotations

import torch
from torch import Tensor

from bayes_prompt.models.banks import Bank

_TINY = 1e-300


class BankWeights:
    """Weights of J members for R groups, proportional to the exponential of their remembered evidence.

    A group's evidence is its own, and of what the pool's exceeds it by a share that shrinks as the group is looked at:
    partial pooling. Without a bank there is one member, of weight one.
    """

    def __init__(self, bank: Bank | None, groups: int, device: torch.device) -> None:
        self.bank = bank
        self.members = 1 if self.bank is None else len(self.bank.members)
        self.evidence = torch.zeros(groups, self.members, dtype=torch.float64, device=device)
        self.looks = torch.zeros(groups, dtype=torch.float64, device=device)

    def now(self) -> Tensor:
        """Weights (R, J) float64, rows that sum to one."""
        if self.bank is None:
            return torch.ones_like(self.evidence)
        share = self.bank.pooling / (self.bank.pooling + self.looks).clamp(min=_TINY)
        others = self.evidence.sum(0) - self.evidence
        return torch.softmax(self.evidence + share[:, None] * others, 1)

    def learn(self, log_chance: Tensor, groups: Tensor, elapsed: float) -> None:
        """Add a step's evidence: log_chance (J, M) of its M looks, at prompts of groups (M,) int64."""
        if self.bank is None:
            return
        kept = self.bank.memory**elapsed
        self.evidence.mul_(kept).index_add_(0, groups, log_chance.T.contiguous())
        self.looks.mul_(kept).index_add_(0, groups, torch.ones_like(groups, dtype=torch.float64))
        self.evidence.sub_(self.evidence.amax(1, keepdim=True))  # only differences count
