"""What prompts of groups, and of the pool, have learned together about how hidden states move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayes_prompt.models.banks import DecayBank, StrengthBank
from bayes_prompt.posteriors.bank_weights import BankWeights

if TYPE_CHECKING:
    from bayes_prompt.models.progress import SolvingProgress

_LEAST = 1e-300
_CHUNK = 1 << 20  # numbers of all members that are worked out at a time


class PooledTransitions:
    """Dirichlet concentrations of R groups' transitions under J decays and S strengths of partial pooling.

    Counted are, by group and decay, the expected transitions so far, each step's worth `decay` of the one's after it.
    With C0 the declared concentrations and M a group's counts, its concentrations are C0 + M + w(O) O, where O is the
    sum of w(M) M of the others, w(X) = s / (s + n) in each row, and n the row's sum. So a group tells of the pool as
    much as s transitions at most, however many it has seen, and the pool of a group likewise: as in a hierarchical
    model of groups that differ as much as the means of s transitions do, where variances 1 / n, of what was counted,
    and 1 / s, of group and pool, add up. Between two groups that is the power prior of Chen and Ibrahim (Bayesian
    Analysis 1(3), 2006), whose power is 1 / (1 + 2 n / s). With s = 0 groups are on their own; with s infinite, or one
    group, they are the pool.

    Decays and strengths are weighted in every group by what each predicted, averaged over the other. What they predict
    of a prompt starts from one belief, the average, and all count the same expected transitions, those under the
    average (generalised pseudo-Bayes of order 1; Bar-Shalom, Li and Kirubarajan, 2001, ch. 11.6): these are the
    average of the members' by their weights after the look, exactly.

    Args:
        model: the declaration. declared: C0, (K, K) float64, [from, to]. groups: R.
    """

    def __init__(self, model: SolvingProgress, declared: Tensor, groups: int) -> None:
        strength = 0.0 if groups == 1 or model.strength is None else model.strength  # one group has no others
        decays = model.decay if isinstance(model.decay, DecayBank) else None
        strengths = strength if isinstance(strength, StrengthBank) else None
        device = declared.device
        self._declared = declared
        self._decays = _column([model.decay] if decays is None else decays.members, device)
        self._strengths = _column([strength] if strengths is None else strengths.members, device)
        self.decays = BankWeights(decays, groups, device)
        self.strengths = BankWeights(strengths, groups, device)
        self.counts = torch.zeros(len(self._decays), groups, *declared.shape, dtype=torch.float64, device=device)
        self.average()

    def average(self) -> None:
        """Work out the averages anew, of what was counted and weighed.

        Afterwards `moves` are the probabilities (R, K, K), and `concentration` (R, K, K) those of Dirichlets with that
        mean, and with as many pseudo-counts as the members have on average.
        """
        parts, weights, everybody = [], self.weights()[:, :, None, None], self._parts(self.counts.shape[1])
        self._told = torch.stack([self._tells(part).sum(0) for part in everybody]).sum(0)  # (J, S, K, K)
        for part in everybody:
            members = self._members(part)
            totals = members.sum(3, keepdim=True)
            self._each = members / totals
            if members.shape[1] == 1:
                parts.append((self._each[:, 0], members[:, 0]))
                continue
            moves = (weights[part] * self._each).sum(1)
            parts.append((moves, moves * (weights[part] * totals).sum(1)))
        self.moves, self.concentration = (torch.cat(each) for each in zip(*parts, strict=True))

    def learn(
        self, groups: Tensor, before: Tensor, likelihood: Tensor, moved: Tensor, tiny: float, elapsed: float
    ) -> Tensor:
        """Count a step's transitions, and weigh who predicted them; gives where they are forbidden, (M,) bool.

        groups: (M,) int64 of what was looked at. before: (M, K) beliefs of the last step. likelihood: (M, K) of this
        one's counts. moved: (M,) bool, whether there was a transition. tiny: what does not exceed it counts as zero.
        """
        seen = before[:, :, None] * likelihood[:, None, :]  # (M, from, to)
        joint = seen * self.moves[groups]
        total = joint.sum((1, 2), keepdim=True)
        forbidden = moved & (total[:, 0, 0] <= tiny)
        counted = (moved & ~forbidden)[:, None, None]
        self._weigh(groups, torch.where(counted, seen, 0.0), elapsed)
        expected = torch.where(counted, joint / total.clamp(min=_LEAST), 0.0)
        step = torch.zeros_like(self.counts[0]).index_add_(0, groups, expected)
        self.counts.mul_((self._decays**elapsed)[:, None, None, None]).add_(step)
        self.average()
        return forbidden

    def of_member(self, member: Tensor) -> Tensor:
        """Concentrations (R, K, K) of one member for each group, (R,) int64 below J * S."""
        parts = []
        for groups in self._parts(len(member)):
            parts.append(self._members(groups)[torch.arange(len(groups), device=member.device), member[groups]])
        return torch.cat(parts)

    def weights(self) -> Tensor:
        """Of the members, (R, J * S), rows that sum to one."""
        return (self.decays.now()[:, :, None] * self.strengths.now()[:, None]).flatten(1)

    def _weigh(self, groups: Tensor, seen: Tensor, elapsed: float) -> None:
        """Evidence of looks (M,); seen: (M, K, K) belief before times likelihood, 0 where there is none."""
        if self._num_members == 1:
            return
        each = self._each if len(self._each) == len(self.moves) else None  # of all groups, unless there are too many
        chances = []
        for rows, part in zip(groups.split(self._at_a_time), seen.split(self._at_a_time), strict=True):
            if each is None:
                members = self._members(rows)
                moves = members / members.sum(3, keepdim=True)
            else:
                moves = each[rows]
            chances.append(moves.flatten(2) @ part.flatten(1)[:, :, None])
        chance = torch.cat(chances).reshape(-1, len(self._decays), len(self._strengths))
        chance = torch.where(seen.sum((1, 2), keepdim=True) > 0, chance, 1.0)
        of_decays, of_strengths = (weights.now()[groups] for weights in (self.decays, self.strengths))
        for weights, told in (
            (self.decays, (chance * of_strengths[:, None]).sum(2)),
            (self.strengths, (chance * of_decays[:, :, None]).sum(1)),
        ):
            weights.learn(told.clamp(min=_LEAST).log().T, groups, elapsed)

    def _tells(self, groups: Tensor) -> Tensor:
        """What groups (M,) tell of the pool, (M, J, S, K, K) under each decay and strength."""
        own = self.counts[:, groups].transpose(0, 1)[:, :, None]
        return own * self._share(own)

    def _members(self, groups: Tensor) -> Tensor:
        """Concentrations (M, J * S, K, K) of groups (M,) under each decay and strength."""
        own = self.counts[:, groups].transpose(0, 1)[:, :, None]
        others = (self._told - own * self._share(own)).clamp(min=0)
        return (self._declared + own + others * self._share(others)).flatten(1, 2)

    def _share(self, counts: Tensor) -> Tensor:
        """What is left of counts (M, J, 1 or S, K, K) where they weigh as much as s at most: (M, J, S, K, 1)."""
        strength = self._strengths[:, None, None]
        number = counts.sum(-1, keepdim=True)
        return torch.where(strength.isinf(), 1.0, strength / (strength + number).clamp(min=_LEAST))

    def _parts(self, groups: int) -> tuple[Tensor, ...]:
        return torch.arange(groups, device=self.counts.device).split(self._at_a_time)

    @property
    def _num_members(self) -> int:
        return len(self._decays) * len(self._strengths)

    @property
    def _at_a_time(self) -> int:
        """Groups, or looks, whose members' concentrations are worked out together."""
        return max(1, _CHUNK // (self._num_members * self._declared.numel()))


def _column(values: Any, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)
