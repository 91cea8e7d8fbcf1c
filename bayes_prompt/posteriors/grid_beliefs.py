"""Beliefs on a grid of success rates as they are stored, and what may be asked of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayes_prompt.kernels.grid_filter import outcome_tables
from bayes_prompt.models.moves import Moves
from bayes_prompt.models.sharing import EmpiricalBayes
from bayes_prompt.posteriors import checks, looks
from bayes_prompt.posteriors.bank_weights import BankWeights
from bayes_prompt.posteriors.base import Posterior
from bayes_prompt.posteriors.count_law import CountLaw
from bayes_prompt.posteriors.kinship import Kinship
from bayes_prompt.posteriors.propagators import Propagators
from bayes_prompt.posteriors.unseen import Unseen

if TYPE_CHECKING:
    from bayes_prompt.models.success_rate import SuccessRate

MOST_GROUPS = 64
"""That a bank weighs its members for, each with tables of its own; where there are more, all of them have the same."""


class GridBeliefs(Posterior):
    """Probabilities of K success rates for each of N prompts, as they are stored, and all that is asked of them.

    What is stored is a prompt's belief right after its last observation, and when that was; what has drifted since then
    is in one matrix for all prompts observed in the same step (`Propagators`). Prompts that were never observed share
    the belief of their group. So a step costs the observed rows, and a question one pass over N x K numbers.

    Args:
        model: the declaration, which has a grid.
        num_prompts: N. The other keywords are those of `Posterior`.
        groups: (N,) integers from 0 up, the group of each prompt (a data set, a task), or None for one.
        embeddings: (N, D), for a model with sharing: prompts with like embeddings learn from each other's first looks.
    """

    def __init__(
        self,
        model: SuccessRate,
        num_prompts: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: str = "auto",
        first_prompt: int = 0,
        groups: checks.IntegersLike | None = None,
        embeddings: Any = None,
    ) -> None:
        super().__init__(num_prompts, device=device, dtype=dtype, backend=backend, first_prompt=first_prompt)
        self.model = model
        tables = model.lower_grid()
        self._modes = tables.modes
        self._law = CountLaw(tables.points, self.device)
        self._rate = self._law.rate  # (K,) float64, as all tables are
        self._initial = tables.initial.detach().to(self.device)  # (members, states)
        states = self._initial.shape[1]
        labels, number = checks.groups("groups", groups, num_prompts)
        self._labels = labels = labels.to(self.device)
        if embeddings is not None:
            if model.sharing is None:
                raise ValueError("embeddings tell which prompts are alike, for a model with sharing; this one has none")
            embeddings = checks.embeddings("embeddings", embeddings, num_prompts).to(self.device)
        sharing = model.sharing or EmpiricalBayes()
        self._kin = Kinship(labels, embeddings, sharing.widths)
        if number > MOST_GROUPS:  # a bank then has the same weights for all
            labels, number = torch.zeros_like(labels), 1
        self._groups, self._num_groups = labels.int(), number
        self._group_of = labels.new_zeros(self._kin.number)  # each cluster, which lies within a group
        self._group_of[self._kin.cluster.long()] = labels
        self._weights = BankWeights(model.bank, self._num_groups, self.device)
        self._drifts = len(self._initial)
        # Groups that weigh drifts differently have a table each for every step.
        self._tables = self._num_groups if self._drifts > 1 else 1
        self._propagators = Propagators(Moves(model.drift, tables.points), len(self._initial), states, self.device)
        self._unseen = Unseen(self._initial, self._kin, model.sharing)
        self._belief = torch.zeros(num_prompts, states, dtype=dtype, device=self.device)
        self._slot = -1 - self._kin.cluster  # see kernels.grid_filter
        self._answer: tuple[Tensor, Tensor] | None = None
        self._answer_as_stored: tuple[Tensor, Tensor] | None = None

    @property
    def grid(self) -> Tensor:
        """The success rates (K,), ascending."""
        return self._rate.to(self.dtype)

    @property
    def belief(self) -> Tensor:
        """P(success rate at the coming rollout | everything seen), (N, K); worked out when asked for."""
        return torch.cat([self._by_point(self._predicted(part)) for part in self._chunks()])

    @property
    def groups(self) -> Tensor:
        """The group of each prompt, (N,) int64."""
        return self._labels

    def bank_weights(self) -> Tensor:
        """How much each member of a `DriftBank` or `DecayBank` counts, (R, J) by group, rows that sum to one."""
        return self._weights.now().to(self.dtype)

    # What an acquisition may ask

    def success_rate(self, index: Tensor | None = None) -> Tensor:
        """Expected success rate of one rollout, (N,), or (B,) for the rows `index`."""
        return self._worth(self._rate, index)

    def informative_probability(self, trials: int | Tensor, index: Tensor | None = None) -> Tensor:
        """P(0 < successes < trials), (N,), or (B,) for the rows `index`."""
        if not isinstance(trials, Tensor):
            return self._worth(self._law.mixed(checks.group_size("trials", trials)), index)
        size = self.num_prompts if index is None else index.numel()
        each = checks.group_sizes("trials", trials, size).to(self.device)
        out = torch.empty(size, dtype=self.dtype, device=self.device)
        rows = torch.arange(size, device=self.device) if index is None else self._checked(index)
        for trial in each.unique().tolist():
            here = each == trial
            out[here] = self._worth(self._law.mixed(trial), rows[here])
        return out

    def expected_variance(self, index: Tensor | None = None) -> Tensor:
        """E[p (1 - p)], (N,), or (B,) for the rows `index`."""
        return self._worth(self._rate * (1 - self._rate), index)

    def entropy(self, index: Tensor | None = None) -> Tensor:
        """Shannon entropy of the belief over the grid's points in nats, (N,) or (B,), between 0 and log K."""
        parts = self._chunks() if index is None else [self._checked(index)]
        beliefs = [self._by_point(self._predicted(part)) for part in parts]
        return torch.cat([-torch.special.xlogy(belief, belief).sum(1) for belief in beliefs])

    def sample_success_rate(self, seed: int, step: int) -> Tensor:
        """One draw from every prompt's belief, (N,): points of the grid."""
        out = torch.empty(self.num_prompts, dtype=torch.int64, device=self.device)
        for part in self._chunks():
            belief = self._by_point(self._predicted(part)).T.contiguous()
            first = self.first_prompt + int(part[0])
            self._kernel("thompson").sample_state(belief, seed, step, first, out[int(part[0]) : int(part[-1]) + 1])
        return self.grid[out]

    # What an explorer may ask, answered as the base does, but in one pass over the beliefs as they are stored

    def look_index(self, trials: int, horizon: float, new: float | None = None) -> Tensor:
        """P(0 < successes < trials), and what a look would be worth, as a price (N,): `Posterior.look_index`."""
        horizon = looks.horizon("horizon", horizon)
        new = horizon if new is None else looks.horizon("new", new)
        seen, (now, chance, worth) = self._outcomes(trials)
        shared, out = self._cast(looks.index(now, chance, worth, new)), self._belief.new_empty(self.num_prompts)
        self._kernel("grid_filter").look_index(self._belief, self._slot, *map(self._cast, seen), shared, horizon, out)
        return out

    def look_gain(self, trials: int, threshold: float) -> Tensor:
        """What a look adds to the better of the prompt and one of worth `threshold`, (N,): `Posterior.look_gain`."""
        checks.number("threshold", threshold)
        if not math.isfinite(threshold):
            raise ValueError(f"threshold must be finite; got {threshold}")
        level = min(max(float(threshold), 0.0), 1.0)  # beyond what probabilities can be there is no choice either
        (_, chances, worths), (_, chance, worth) = self._outcomes(trials)
        kernels, state = self._kernel("grid_filter"), (self._belief, self._slot)
        told, kept = self._belief.new_empty(2, self.num_prompts)
        shared = self._cast(torch.maximum(worth, level * chance).sum(1))
        kernels.look(*state, self._cast(chances), self._cast(worths), shared, level, told)
        kernels.score(*state, self._cast(worths.sum(1)), self._cast(worth.sum(1)), kept)
        return told.sub_(kept.clamp_(min=level)).clamp_(min=0)

    def _outcomes(self, trials: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """`outcome_tables`: of slots, and of clusters that nobody saw; each group weighs in its way what is to come."""
        trials = checks.group_size("trials", trials)
        worth, chance = self._point_worth(trials), self._point_chance(min(trials, looks.MOST_ROLLOUTS))
        later = self._propagators.transitions(1.0)[1] @ worth
        if self._drifts > 1:
            later = self._weights.now() @ later
        by_slot, shared = self._carried()
        seen = outcome_tables(by_slot, worth, chance, later)
        of_clusters = later.expand(self._num_groups, -1)[self._group_of]
        unseen = outcome_tables(shared[:, None], worth, chance, of_clusters)
        return seen, tuple(each[..., 0] for each in unseen)

    def _forget_answers(self) -> None:
        self._answer = self._answer_as_stored = None

    # Inner workings

    def _carried(self) -> tuple[Tensor, Tensor]:
        """Transitions since each slot (slots, states, states), and beliefs of prompts that nobody saw (R, states)."""
        if self._answer is None:
            by_slot, unseen, states = self._propagators.by_slot(), self._unseen.beliefs(), self._belief.shape[1]
            unseen = unseen.expand(-1, self._kin.number, -1)
            if self._drifts == 1:
                self._answer = by_slot[0], unseen[0]
            else:
                weights = self._weights.now()
                mixed = (weights @ by_slot.flatten(2).transpose(0, 1)).view(-1, states, states)
                # Clusters are the groups, unless their beliefs are the same under all drifts.
                of_clusters = weights if len(weights) == self._kin.number else weights[:1]
                self._answer = mixed, torch.einsum("rj,jrk->rk", of_clusters.expand(self._kin.number, -1), unseen)
        return self._answer

    def _carried_as_stored(self) -> tuple[Tensor, Tensor]:
        """The same in the type of the beliefs."""
        if self._answer_as_stored is None:
            by_slot, unseen = self._carried()
            self._answer_as_stored = self._cast(by_slot), self._cast(unseen)
        return self._answer_as_stored

    def _worth(self, utility: Tensor, index: Tensor | None) -> Tensor:
        """A figure of each point (K,) averaged over the belief, (N,), or (B,) for the rows `index`."""
        rows = slice(None) if index is None else self._checked(index)
        belief, slot = self._belief[rows], self._slot[rows]
        by_slot, unseen = self._carried()
        tiled = self._tiled(utility)
        out = torch.empty(len(slot), dtype=self.dtype, device=self.device)
        tables = self._cast(by_slot @ tiled), self._cast(unseen @ tiled)
        self._kernel("grid_filter").score(belief, slot, *tables, out)
        return out

    def _predicted(self, index: Tensor) -> Tensor:
        """Beliefs now (B, states) of rows on this device."""
        out = torch.empty(len(index), self._belief.shape[1], dtype=self.dtype, device=self.device)
        self._kernel("grid_filter").predict(self._belief, self._slot, *self._carried_as_stored(), index, out)
        return out

    def _of_rows(self, unseen: Tensor, rows: Tensor) -> Tensor:
        """Beliefs (J, M, states) of the clusters of rows (M,), of those (J, R or 1, states) of all."""
        return unseen[:, self._kin.cluster[rows].long()] if unseen.shape[1] > 1 else unseen

    def _point_mass(self, index: Tensor) -> Tensor:
        return self._predicted(index).double()

    def _point_worth(self, trials: int) -> Tensor:
        return self._tiled(self._law.mixed(trials))

    def _point_later(self, trials: int, index: Tensor) -> Tensor:
        later = self._propagators.transitions(1.0)[1] @ self._point_worth(trials)  # (drifts, states)
        return later[0] if self._drifts == 1 else self._weights.now()[self._groups[index].long()] @ later

    def _point_chance(self, trials: int) -> Tensor:
        successes = torch.arange(trials + 1, device=self.device)
        return self._tiled(self._law.log_chance(successes, torch.full_like(successes, trials)).exp())

    def _by_point(self, states: Tensor) -> Tensor:
        """Beliefs over points (B, K), of those over modes and points."""
        return states.unflatten(1, (self._modes, -1)).sum(1)

    def _tiled(self, values: Tensor) -> Tensor:
        """Values of points (..., K) as values of modes and points."""
        return values.repeat(*[1] * (values.ndim - 1), self._modes)

    def _cast(self, table: Tensor) -> Tensor:
        return table.to(self.dtype).contiguous()
