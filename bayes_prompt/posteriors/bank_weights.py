"""How much each member of a bank counts, by its evidence: of the pool, and of every group."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayes_prompt.models.banks import Bank


class BankWeights:
    """Weights of J members for R groups, by their remembered evidence; without a bank one member, of weight one.

    The pool's weights are a share `floor` of even ones and the rest by the evidence of all. A group's are these to the
    power `pooling`, times the exponential of its own evidence: partial pooling.
    """

    def __init__(self, bank: Bank | None, groups: int, device: torch.device) -> None:
        self.bank = bank
        self.members = 1 if bank is None else len(bank.members)
        self.evidence = torch.zeros(groups, self.members, dtype=torch.float64, device=device)

    def now(self) -> Tensor:
        """Weights (R, J) float64, rows that sum to one."""
        if self.bank is None:
            return torch.ones_like(self.evidence)
        # In logarithms: without a floor, weights may be too small for numbers, and still count in a group's.
        of_pool, floor = torch.log_softmax(self.evidence.sum(0), 0), self.bank.floor
        if floor:
            even = torch.full_like(of_pool, math.log(floor / self.members))
            of_pool = torch.logaddexp(of_pool + math.log1p(-floor), even)
        if len(self.evidence) == 1:
            return torch.softmax(of_pool, 0)[None]
        return torch.softmax(self.bank.pooling * of_pool + self.evidence, 1)

    def learn(self, log_chance: Tensor, groups: Tensor, elapsed: float) -> None:
        """Add a step's evidence: log_chance (J, M) of its M looks, at prompts of groups (M,) int64."""
        if self.bank is None:
            return
        self.evidence.mul_(self.bank.memory**elapsed).index_add_(0, groups, log_chance.T.contiguous())
        self.evidence.sub_(self.evidence.amax(1, keepdim=True))  # only differences count
