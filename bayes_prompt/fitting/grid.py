"""The filter of `SuccessRate` on a grid, which gradients go through."""

from __future__ import annotations

import torch
from torch import Tensor

from bayes_prompt.fitting.filters import State, TableFilter, decay_of
from bayes_prompt.fitting.outcomes import Outcomes
from bayes_prompt.fitting.quadrature import differentiable_points
from bayes_prompt.models.banks import DecayBank, DriftBank
from bayes_prompt.models.drift import Drift
from bayes_prompt.models.grid import Points
from bayes_prompt.models.success_rate import SuccessRate

_NEVER = 1e4  # stands for the infinity of log 0


class GridFilter(TableFilter):
    """State: beliefs under each of J drifts (J, N, states), and the remembered evidence of the members of a bank (J,).

    A bank of drifts averages their beliefs at each look; one of decays averages what they leave of one belief.
    """

    def __init__(self, model: SuccessRate, outcomes: Outcomes) -> None:
        points, drift = differentiable_points(model), model.drift
        law = _log_chance(points, outcomes)
        self._transition: Tensor | None = None  # (J, states, states)
        self._after_look: Tensor | None = None  # of prompts that were looked at, where theirs are others
        if drift is None:
            self._initial = points.mass[None]
        else:
            law = law.repeat(1, drift.modes)
            members = drift.members if isinstance(drift, DriftBank) else [drift]
            self._initial = torch.stack([member.initial(points.mass) for member in members])
            self._transition = torch.stack([member.transition(points) for member in members])
            if any(type(member).after_look is not Drift.after_look for member in members):
                self._after_look = torch.stack([member.after_look(points) for member in members])
        super().__init__(outcomes, law)
        self._bank = model.bank
        if isinstance(model.decay, DecayBank):
            self._decays = torch.tensor(model.decay.members, dtype=torch.float64)
        else:
            self._decays = torch.as_tensor(decay_of(model), dtype=torch.float64).reshape(1)
        self._forgets = bool((self._decays < 1).any())

    def start(self, prompts: int) -> State:
        """See `CountFilter`."""
        size = 1 if self._bank is None else len(self._bank.members)
        return self._initial[:, None].expand(-1, prompts, -1), torch.zeros(size, dtype=torch.float64)

    def step(self, state: State, which: Tensor) -> tuple[Tensor, Tensor, State]:
        """See `CountFilter`. What is forgotten is forgotten after the prediction, and a bank learns last of all."""
        members, evidence = state
        seen, likelihood = self.looked[which], self.likelihood[which]
        predicted = self._belief(members, evidence)
        belief = predicted
        if len(members) > 1:
            evidence = self._learned(evidence, members * likelihood, seen)
        elif self._forgets:
            kept = self._forgotten(belief)
            belief = torch.einsum("j,jns->ns", self._weights(evidence), kept)
            if len(kept) > 1:
                evidence = self._learned(evidence, kept * likelihood, seen)
        total, possible, after = self.condition(belief, likelihood)
        if belief is not predicted:
            total = (predicted * likelihood).sum(1)
            possible = possible & (total > 0)
            total = torch.where(possible, total, 1.0)
        members = after[None] if bool(seen.all()) else torch.where(seen[:, None], after, members)
        if self._transition is not None:
            rested = members @ self._transition
            moved = rested if self._after_look is None else members @ self._after_look
            members = rested if moved is rested else torch.where(seen[:, None], moved, rested)
        return *self.told(total, possible, which), (members, evidence)

    def chance(self, state: State) -> Tensor:
        """See `CountFilter`."""
        return self.chances(self._belief(*state))

    def _belief(self, members: Tensor, evidence: Tensor) -> Tensor:
        """(N, states), averaged over drifts."""
        return members[0] if len(members) == 1 else torch.einsum("j,jns->ns", self._weights(evidence), members)

    def _weights(self, evidence: Tensor) -> Tensor:
        """Of the bank's members (J,)."""
        floor = 0.0 if self._bank is None else self._bank.floor
        return (1 - floor) * torch.softmax(evidence, 0) + floor / len(evidence)

    def _learned(self, evidence: Tensor, joint: Tensor, seen: Tensor) -> Tensor:
        """The bank's evidence (J,) after a step, given belief times likelihood of each member (J, N, states)."""
        assert self._bank is not None
        each = joint.sum(2).clamp(min=1e-300).log()
        return self._bank.memory * evidence + torch.where(seen, each, 0.0).sum(1)

    def _forgotten(self, belief: Tensor) -> Tensor:
        """belief ** decay * prior ** (1 - decay), normalised, (J, N, states); what shares no point with it is kept."""
        prior, decay = self._initial[0], self._decays[:, None, None]
        # Logarithms of numbers that are not zero, so that no gradient is 0 / 0; zeros count where their power is not 0.
        log_belief, log_prior = (torch.where(mass > 0, mass, 1.0).log() for mass in (belief, prior))
        logs = decay * log_belief + (1 - decay) * log_prior
        here = ((belief > 0) | (decay == 0)) & ((prior > 0) | (decay == 1))
        meet = here.any(2, keepdim=True)
        mixed = torch.softmax(torch.where(meet, logs.masked_fill(~here, -torch.inf), 0.0), 2)
        return torch.where(meet, mixed, belief)


def _log_chance(points: Points, outcomes: Outcomes) -> Tensor:
    """log P(outcome | rate), (U, K)."""
    won, lost = (values.double()[:, None] for values in (outcomes.successes, outcomes.trials - outcomes.successes))
    ways = torch.lgamma(won + lost + 1) - torch.lgamma(won + 1) - torch.lgamma(lost + 1)
    # At atoms a logarithm is infinite, and counts as such also where it is multiplied by 0.
    log_rate, log_failure = (values.clamp(min=-_NEVER) for values in (points.log_rate, points.log_failure))
    return ways + won * log_rate + lost * log_failure
