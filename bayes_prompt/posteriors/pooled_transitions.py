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
_REMAINS = 1e-2  # of a declared pseudo-count, whatever speaks against it


class PooledTransitions:
    """Dirichlet concentrations of R groups' transitions under J decays and S strengths of partial pooling.

    Counted are, by group and decay, the transitions so far, each step's worth `decay` of the one's after it. Where the
    last state is guessed, or this one, a look shows no transition. DPS (arXiv 2603.10887) counts the expected ones, x,
    as if they had been seen: of a prompt that rested for long as many as of any other. Beliefs are then far too sure,
    and slow to learn. Here counts grow by what a look tells. Of the moves out of one state, whose probabilities are p,
    it expects |x| in all, and d = x - |x| p beyond what was expected without it. That is worth

        seen = (2 p.d + d.d) / (1 - p.p)

    transitions that are seen: the variance of p, summed over where moves lead, shrinks as by so many, in the limit of
    many counts (the moments of the exact mixture over what may have happened). It is |x| where states are seen, and 0
    of a look that says nothing. With sums over a group's looks in a step, and n its pseudo-counts before, counts grow
    by seen p + d (n + seen) / (n + |x|): by as much as was seen, and the mean by a step of expectation maximisation.
    Entries may become negative, but with what was declared they stay positive. All that is good where declared rows
    weigh 1 or more; of rows of .3 and less the first looks move the mean too far, about as far as counts as in DPS do.

    With C0 the declared concentrations and M a group's counts, its concentrations are C0 + M + w(O) O, where O is the
    sum of w(M) M of the others, w(X) = s / (s + n) in each row, and n the row's sum. So a group tells of the pool as
    much as s transitions at most, however many it has seen, and the pool of a group likewise: as in a hierarchical
    model of groups that differ as much as the means of s transitions do, where variances 1 / n, of what was counted,
    and 1 / s, of group and pool, add up. Between two groups that is the power prior of Chen and Ibrahim (Bayesian
    Analysis 1(3), 2006), whose power is 1 / (1 + 2 n / s). With s = 0 groups are on their own; with s infinite, or one
    group, they are the pool (whose steps are shorter than those of its parts, where looks are soft).

    Decays and strengths are weighted in every group by what each predicted, averaged over the other. What they predict
    of a prompt starts from one belief, the average, and all count the same, under the average (generalised pseudo-Bayes
    of order 1; Bar-Shalom, Li and Kirubarajan, 2001, ch. 11.6): expected transitions are then the average of the
    members' by their weights after the look, exactly.

    Args:
        model: the declaration. declared: C0, (K, K) float64, [from, to]. groups: R.
    """

    def __init__(self, model: SolvingProgress, declared: Tensor, groups: int) -> None:
        strength = 0.0 if groups == 1 or model.strength is None else model.strength  # one group has no others
        decays = model.decay if isinstance(model.decay, DecayBank) else None
        strengths = strength if isinstance(strength, StrengthBank) else None
        device = declared.device
        self._declared = declared
        self.least = (_REMAINS - 1) * declared  # that a count may be
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
        moves = self.moves[groups]
        joint = seen * moves
        total = joint.sum((1, 2), keepdim=True)
        forbidden = moved & (total[:, 0, 0] <= tiny)
        counted = (moved & ~forbidden)[:, None, None]
        self._weigh(groups, torch.where(counted, seen, 0.0), elapsed)
        expected = torch.where(counted, joint / total.clamp(min=_LEAST), 0.0)
        told = self._told_by(groups, moves, expected)
        self.counts.mul_((self._decays**elapsed)[:, None, None, None]).add_(told)
        torch.maximum(self.counts, self.least, out=self.counts)
        self.average()
        return forbidden

    def _told_by(self, groups: Tensor, moves: Tensor, expected: Tensor) -> Tensor:
        """What a step tells every group, (R, K, K), by looks at prompts of groups (M,).

        moves: of each look's group. expected: transitions in each look; both (M, K, K).
        """
        sums, squares = torch.zeros_like(self.moves), torch.zeros_like(self.moves)
        beyond = torch.addcmul(expected, expected.sum(2, keepdim=True), moves, value=-1)
        squares = squares.index_add_(0, groups, beyond.square_()).sum(2, keepdim=True)
        sums.index_add_(0, groups, expected)
        number = sums.sum(2, keepdim=True)
        beyond = sums - number * self.moves
        uncertain = (1 - self.moves.square().sum(2, keepdim=True)).clamp(min=_LEAST)
        seen = (2 * (self.moves * beyond).sum(2, keepdim=True) + squares) / uncertain
        seen = seen.clamp(min=0).minimum(number)  # which it exceeds by rounding alone
        before = self.concentration.sum(2, keepdim=True)
        return seen * self.moves + beyond * (before + seen) / (before + number)

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
        others = self._told - own * self._share(own)
        found = self._declared + own + others * self._share(others)
        return torch.maximum(found, _REMAINS * self._declared).flatten(1, 2)

    def _share(self, counts: Tensor) -> Tensor:
        """What is left of counts (M, J, 1 or S, K, K) where they weigh as much as s at most: (M, J, S, K, 1)."""
        strength = self._strengths[:, None, None]
        number = counts.sum(-1, keepdim=True).clamp(min=0)  # below 0 by rounding alone
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
