"""The posterior of `SuccessRate` on a grid: any prior, any drift, exact Bayes, evaluated lazily."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayes_prompt.checkpoint import require_no_less, require_no_more
from bayes_prompt.errors import CheckpointError
from bayes_prompt.kernels.progress_filter import UNEXPECTED
from bayes_prompt.kernels.tally import Observations
from bayes_prompt.models.banks import DecayBank
from bayes_prompt.posteriors.base import Counts
from bayes_prompt.posteriors.forgetting import forgotten
from bayes_prompt.posteriors.grid_beliefs import MOST_GROUPS, GridBeliefs
from bayes_prompt.posteriors.propagators import CAPACITY, check_products, require_ones

__all__ = ["MOST_GROUPS", "GridPosterior"]

_LEAST_CHANCE = 1e-300
_CHUNK = 1 << 13  # prompts whose chances under all drifts are worked out at a time


class GridPosterior(GridBeliefs):
    """`GridBeliefs` of N prompts that learn from counts, step after step; made by `SuccessRate.posterior`."""

    def _describe(self) -> dict[str, Any]:
        return {
            "model": self.model.describe(),
            "kin": self._kin.digest(),
            "num_prompts": self.num_prompts,
            "first_prompt": self.first_prompt,
            "dtype": str(self.dtype),
        }

    def _tensors(self) -> dict[str, Tensor]:
        return {
            "belief": self._belief,
            "slot": self._slot,
            "unseen_prior": self._unseen.prior,
            "first_looks": self._unseen.of_pool,
            "first_looks_alike": self._unseen.of_like,
            "sharing_evidence": self._unseen.evidence,
            "bank_evidence": self._weights.evidence,
            "propagators": self._propagators.products,
            "window": self._propagators.window,
        }

    def _check_belief(self, tensors: Mapping[str, Tensor]) -> None:
        now = check_products(tensors["window"], tensors["propagators"])
        slot = tensors["slot"]
        seen = slot >= 0
        if not bool(torch.where(seen, slot < (now + 2) * self._tables, slot == -1 - self._kin.cluster).all()):
            raise CheckpointError("posterior.tensors.slot names a step or a group that there is not")
        for name in ("belief", "unseen_prior", "first_looks", "first_looks_alike"):
            require_no_less(f"posterior.tensors.{name}", tensors[name], 0)
        for name in ("first_looks", "first_looks_alike", "sharing_evidence", "bank_evidence"):
            require_no_more(f"posterior.tensors.{name}", tensors[name])
        require_ones("belief of prompt", tensors["belief"], seen)
        # Each step may leave transitions' rows a millionth off, and there may have been many.
        require_ones("unseen_prior of member", tensors["unseen_prior"], within=0.5)

    def _apply(self, counts: Counts, elapsed: float) -> Observations:
        moves, _ = self._propagators.transitions(elapsed)  # may refuse, so it comes before anything changes
        if self._propagators.full:
            self._settle()
        likelihood, largest = self._likelihood(counts)
        predicted = self._predicted(counts.index).double()
        learned = self._drifts > 1 or self.model.sharing is not None
        if learned:
            rows, known = counts.index[counts.leader], likelihood[counts.leader]
            groups, first = self._groups[rows].long(), self._slot[rows] < 0
            evidence = self._member_evidence(rows, known) if self._drifts > 1 else None
        if isinstance(self.model.decay, DecayBank):
            status = self._condition_by_bank(self.model.decay, counts, predicted, likelihood, elapsed)
        else:
            decay = float(self.model.decay) ** elapsed
            status = self._condition(counts, likelihood, self._propagators.slot, decay)
        if learned:  # after the step's own beliefs, which have been told already
            if evidence is not None:
                told = ~first if self.model.sharing is not None else torch.ones_like(first)
                self._weights.learn(evidence[:, told], groups[told], elapsed)
            self._learn_first_looks(rows[first], known[first])
        chance = (predicted * likelihood).sum(1)
        status.bitwise_or_(UNEXPECTED * (counts.leader & (chance <= 0)).int())
        self._propagators.step(elapsed)
        weights = (
            self._weights.now().mean(0) if self._drifts > 1 else torch.ones(1, dtype=moves.dtype, device=self.device)
        )
        self._unseen.move(moves, torch.einsum("j,jkl->kl", weights, moves))
        self._forget_answers()
        by_point = self._by_point(predicted)
        return Observations(
            counts.index,
            counts.successes,
            counts.trials,
            chance.log() + largest,
            torch.zeros_like(largest),
            status,
            (by_point * self._law.mixed(counts.trials)).sum(1),
            by_point @ self._rate,
        )

    def _likelihood(self, counts: Counts) -> tuple[Tensor, Tensor]:
        """P(counts | state) (M, states), divided by the largest of each row, whose logarithms (M,) come with it."""
        log = self._law.log_chance(counts.successes, counts.trials)
        largest = log.amax(1) if len(log) else log.sum(1)
        return self._tiled((log - largest[:, None]).exp()), largest

    def _condition(self, counts: Counts, likelihood: Tensor, slot: int, decay: float) -> Tensor:
        """Condition the observed rows, whose slot is then this one; gives their status (M,)."""
        cast, now = self._cast(likelihood), slot * self._tables
        status = torch.empty_like(counts.index, dtype=torch.int32)
        chance = torch.empty(len(cast), dtype=self.dtype, device=self.device)
        prior = None if decay == 1 else self._cast(self._unseen.prior[0])
        by_slot, unseen = self._carried_as_stored()
        self._kernel("grid_filter").advance(
            self._belief, self._slot, by_slot, unseen, counts.index, cast, now, None, chance, status, decay, prior
        )
        if self._tables > 1:
            rows = counts.index[counts.leader]
            self._slot[rows] = now + self._groups[rows]
        return status

    def _condition_by_bank(
        self, bank: DecayBank, counts: Counts, predicted: Tensor, likelihood: Tensor, elapsed: float
    ) -> Tensor:
        """The same with beliefs that are averaged over how much each decay forgets."""
        rows, met = counts.index[counts.leader], likelihood[counts.leader]
        groups = self._groups[rows].long()
        decays = torch.tensor(bank.members, dtype=torch.float64, device=self.device) ** elapsed
        prior = self._unseen.prior[0]
        joint = forgotten(predicted[counts.leader], prior, decays) * met  # (J, M, states)
        chances = joint.sum(2)
        averaged = torch.einsum("mj,jms->ms", self._weights.now()[groups], joint)
        total = averaged.sum(1, keepdim=True)
        possible = total > torch.finfo(self.dtype).tiny
        after = torch.where(possible, averaged / total, met / met.sum(1, keepdim=True))
        self._weights.learn(chances.clamp(min=_LEAST_CHANCE).log(), groups, elapsed)
        self._belief[rows], self._slot[rows] = after.to(self.dtype), self._propagators.slot
        status = torch.zeros_like(counts.index, dtype=torch.int32)
        status[counts.leader] = UNEXPECTED * (~possible[:, 0]).int()
        return status

    def _member_evidence(self, rows: Tensor, likelihood: Tensor) -> Tensor:
        """Log chances (J, M) of what was observed at distinct rows (M,), under each drift; likelihood: (M, states)."""
        slot = self._slot[rows].long()
        outcome, which = likelihood.unique(dim=0, return_inverse=True)
        step = (slot // self._tables).clamp(min=0)
        by_slot, shared = self._propagators.by_slot(), self._unseen.beliefs()
        pulled = by_slot.flatten(1, 2) @ outcome.T.expand(len(by_slot), -1, -1)  # as one product for each drift
        pulled = pulled.unflatten(1, by_slot.shape[1:3]).transpose(2, 3)  # (J, slots, outcomes, states)
        chances = []
        for part in torch.arange(len(rows), device=self.device).split(_CHUNK):
            seen = (pulled[:, step[part], which[part]] * self._belief[rows[part]].double()).sum(2)
            unseen = (self._of_rows(shared, rows[part]) * likelihood[part]).sum(2)
            chances.append(torch.where(slot[part] >= 0, seen, unseen))
        return torch.cat(chances, 1).clamp(min=_LEAST_CHANCE).log()

    def _learn_first_looks(self, rows: Tensor, likelihood: Tensor) -> None:
        """What rows (M,) showed, that have their beliefs now, for those that nobody saw; likelihood: (M, states)."""
        self._unseen.learn(self._kin.cluster[rows].long(), likelihood, self._belief[rows].double())

    def _settle(self) -> None:
        """Write the beliefs of the older half of the steps forward, and count the steps anew."""
        tables, half = self._tables, CAPACITY // 2
        by_slot, _ = self._carried_as_stored()
        self._kernel("grid_filter").settle(self._belief, self._slot, by_slot, 0, (1 + half) * tables, 0)
        if tables > 1:
            self._slot += torch.where(self._slot == 0, self._groups, 0)
        self._slot -= torch.where(self._slot >= tables, half * tables, 0).int()
        self._propagators.forget(half)
        self._forget_answers()

    def _warm_start(self, counts: Counts) -> None:
        rows, likelihood = counts.index[counts.leader], self._likelihood(counts)[0]
        first = self._slot[rows] < 0
        self._condition(counts, likelihood, 0, 1.0)
        self._learn_first_looks(rows[first], likelihood[counts.leader][first])
        self._forget_answers()
