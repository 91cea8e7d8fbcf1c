"""The beliefs of prompts that were never observed, which those of a cluster share."""

from __future__ import annotations

import torch
from torch import Tensor

from bayes_prompt.models.sharing import EmpiricalBayes
from bayes_prompt.posteriors.kinship import Kinship

_LEAST = 1e-300
_CHUNK = 1 << 12


class Unseen:
    """Beliefs about R clusters of unobserved prompts, under each of J drifts.

    Without sharing they are the declared prior, which drifts. With it, what was met at first looks is added to it, and
    all drifts as the bank does on average: a first look says then nothing about drifts.

    Args:
        initial: (J, states) float64, the declared prior. kin: which prompts are alike. sharing: None leaves it at that.
    """

    def __init__(self, initial: Tensor, kin: Kinship, sharing: EmpiricalBayes | None) -> None:
        self.kin, self.sharing = kin, sharing
        self.prior = initial.clone()
        states, device = initial.shape[1], initial.device
        ways = 0 if sharing is None else len(kin.ways) * len(sharing.strengths)
        #: Pseudo-counts of the first looks: of the pool (states,), and as each way of sharing has them.
        self.of_pool = torch.zeros(states, dtype=torch.float64, device=device)
        likes = 0 if sharing is None else len(kin.ways)
        self.of_like = torch.zeros(likes, kin.number, states, dtype=torch.float64, device=device)
        self.evidence = torch.zeros(ways, dtype=torch.float64, device=device)

    def beliefs(self) -> Tensor:
        """(J, R, states), or (J, 1, states) where all clusters are alike; rows that sum to one."""
        if self.sharing is None:
            return self.prior[:, None]
        each = self._each()
        shared = torch.einsum("w,wrk->rk", torch.softmax(self.evidence, 0), each) if len(each) else self._pool()[None]
        return shared.expand(len(self.prior), -1, -1)

    def learn(self, cluster: Tensor, likelihood: Tensor, met: Tensor) -> None:
        """First looks at M prompts of clusters (M,) int64: likelihoods and posteriors (M, states)."""
        if self.sharing is None or not len(cluster):
            return
        if len(self.evidence):
            each = self._each()
            self.evidence.mul_(self.sharing.memory)
            for rows, chances in zip(cluster.split(_CHUNK), likelihood.split(_CHUNK), strict=True):
                chance = (each[:, rows] * chances).sum(2)
                self.evidence.add_(chance.clamp(min=_LEAST).log().sum(1))
            self.of_like.add_(self.kin.spread(cluster, met))
        self.of_pool.add_(met.sum(0))

    def move(self, transition: Tensor, mean: Tensor) -> None:
        """One step: transitions (J, states, states), and their average (states, states)."""
        if self.sharing is None:
            self.prior.copy_((self.prior[:, None] @ transition)[:, 0])
            return
        for masses in (self.prior, self.of_pool, self.of_like):
            masses.copy_(masses @ mean)

    def _pool(self) -> Tensor:
        """The prior of the pool (states,)."""
        assert self.sharing is not None
        whole = self.sharing.pool + self.of_pool.sum()
        # Before any look the share is one, and this the prior to the last bit.
        masses = self.sharing.pool / whole * self.prior.mean(0) + self.of_pool / whole
        return masses / masses.sum()

    def _each(self) -> Tensor:
        """Beliefs (W, R, states) of each way of sharing."""
        assert self.sharing is not None
        strengths = torch.tensor(self.sharing.strengths, dtype=torch.float64, device=self.prior.device)
        strengths = strengths.repeat(len(self.kin.ways))[:, None, None]
        masses = strengths * self._pool() + self.of_like.repeat_interleave(len(self.sharing.strengths), 0)
        return masses / masses.sum(2, keepdim=True)
