"""The filter of `SolvingProgress`, which gradients go through (DPS, arXiv 2603.10887)."""

from __future__ import annotations

import torch
from torch import Tensor

from bayes_prompt.fitting.filters import TINY, State, TableFilter, decay_of
from bayes_prompt.fitting.outcomes import Outcomes
from bayes_prompt.models.emission import BetaBinomialEmission, Emission
from bayes_prompt.models.numerics import log_beta_binomial
from bayes_prompt.models.progress import SolvingProgress


class ProgressFilter(TableFilter):
    """State: belief (N, K), last posterior (N, K), learned pseudo-counts (N, K, K), and P (N, K, K) that follows."""

    def __init__(self, model: SolvingProgress, outcomes: Outcomes) -> None:
        assert isinstance(model.emission, Emission)  # as every declaration fills it in
        counts = outcomes.successes, outcomes.trials
        super().__init__(outcomes, _log_likelihood(model.emission, outcomes), model.emission.count_correction(*counts))
        initial = model._initial_mean()
        self._initial = initial / initial.sum()
        self._prior = model._concentration()
        self._learn, self._decay = model.learn, decay_of(model)

    def start(self, prompts: int) -> State:
        """See `CountFilter`."""
        belief = self._initial.expand(prompts, -1)
        learned = torch.zeros(prompts, *self._prior.shape, dtype=torch.float64)
        return belief, belief, learned, self._transition(learned)

    def step(self, state: State, which: Tensor) -> tuple[Tensor, Tensor, State]:
        """See `CountFilter`; design: q ∝ b L; xi[j, i] ∝ p[j] P[j, i] L[i]; C' = decay C + (1 - decay) C0 + xi."""
        belief, before, learned, transition = state
        likelihood = self.likelihood[which]
        total, possible, after = self.condition(belief, likelihood)
        if self._learn:
            joint = before[:, :, None] * transition * likelihood[:, None]
            sums = joint.sum((1, 2), keepdim=True)
            counted = (sums > TINY) & self.looked[which][:, None, None]
            learned = self._decay * learned + torch.where(counted, joint / torch.where(counted, sums, 1.0), 0.0)
            transition = self._transition(learned)
        coming = (after[:, :, None] * transition).sum(1)
        coming = coming / coming.sum(1, keepdim=True)
        return *self.told(total, possible, which), (coming, after, learned, transition)

    def chance(self, state: State) -> Tensor:
        """See `CountFilter`."""
        return self.chances(state[0])

    def _transition(self, learned: Tensor) -> Tensor:
        concentration = self._prior + learned
        return concentration / concentration.sum(-1, keepdim=True)


def _log_likelihood(emission: Emission, outcomes: Outcomes) -> Tensor:
    """log P(event | state), (U, K); gradients reach the Betas of a `BetaBinomialEmission`."""
    if isinstance(emission, BetaBinomialEmission):
        alpha, beta = emission.law.concentration1, emission.law.concentration0
        return log_beta_binomial(alpha, beta, outcomes.successes[:, None], outcomes.trials[:, None])
    return emission.event_log_likelihood(outcomes.successes, outcomes.trials)
