"""Filters that gradients go through: what posteriors work out online, as functions of the declaration's parameters.

The state of N prompts is a tuple of tensors; a step gives a new one and changes nothing. All in float64 on the CPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeAlias

import torch
from torch import Tensor

from bayes_prompt.fitting.outcomes import Outcomes
from bayes_prompt.models.numerics import log_beta_binomial
from bayes_prompt.models.success_rate import SuccessRate

State: TypeAlias = tuple[Tensor, ...]
TINY = torch.finfo(torch.float64).tiny
"""Sums that are not above it count as zero, as in the posteriors' kernels."""


class Decay(float):
    """A decay as declarations hold it, a plain number, that knows the tensor () which gradients are to reach."""

    tensor: Tensor

    def __new__(cls, tensor: Tensor) -> Decay:
        """The number that `tensor` is."""
        number = super().__new__(cls, float(tensor.detach()))
        number.tensor = tensor.double()
        return number


def decay_of(model: Any) -> float | Tensor:
    """A declaration's decay, as the tensor that it came from, of shape (), where there is one."""
    return model.decay.tensor if isinstance(model.decay, Decay) else float(model.decay)


class CountFilter(ABC):
    """A declaration's online filter. outcomes: the counts that it will be asked about."""

    def __init__(self, outcomes: Outcomes) -> None:
        self.outcomes = outcomes
        self.looked = outcomes.looked

    @abstractmethod
    def start(self, prompts: int) -> State:
        """What is believed of so many prompts before anything was seen."""

    @abstractmethod
    def step(self, state: State, which: Tensor) -> tuple[Tensor, Tensor, State]:
        """One step with an outcome for every prompt, which (N,) int64.

        Returns log P(counts | all before) (N,), 0 where there were none, or where they had probability zero; whether
        they had (N,) bool; and the state after the step.
        """

    def run(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """What `step` tells of all steps, for outcomes (T, N) int64: log chances (T, N), and what was unexpected."""
        state, rows = self.start(which.shape[1]), []
        for seen in which:
            *told, state = self.step(state, seen)
            rows.append(told)
        chances, unexpected = zip(*rows, strict=True)
        return torch.stack(chances), torch.stack(unexpected)

    @abstractmethod
    def chance(self, state: State) -> Tensor:
        """P(outcome | all before) for each of N prompts and U outcomes: of each group size they sum to one. (N, U)."""


class BetaFilter(CountFilter):
    """`SuccessRate` with Beta beliefs: a' = decay * a + (1 - decay) * a0 + successes (MoPPS, arXiv 2507.04632)."""

    def __init__(self, model: SuccessRate, outcomes: Outcomes) -> None:
        super().__init__(outcomes)
        self._prior = (model.prior.concentration1.double(), model.prior.concentration0.double())
        self._decay, self._all_forget = decay_of(model), model.decay_unobserved
        self._won, self._lost = outcomes.successes.double(), (outcomes.trials - outcomes.successes).double()

    def start(self, prompts: int) -> State:
        """See `CountFilter`: alpha and beta, (N,)."""
        return tuple(value.expand(prompts) for value in self._prior)

    def step(self, state: State, which: Tensor) -> tuple[Tensor, Tensor, State]:
        """See `CountFilter`; no count has probability zero."""
        alpha, beta = state
        return self._log_chance(alpha, beta, which), torch.zeros_like(self.looked[which]), self._after(state, which)

    def run(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """See `CountFilter`: the chances of all steps at once."""
        states = [self.start(which.shape[1])]
        for seen in which[:-1]:
            states.append(self._after(states[-1], seen))
        alpha, beta = (torch.stack(values) for values in zip(*states, strict=True))
        return self._log_chance(alpha, beta, which), torch.zeros_like(self.looked[which])

    def _after(self, state: State, which: Tensor) -> State:
        seen, after = self.looked[which], []
        for value, prior, counts in zip(state, self._prior, (self._won, self._lost), strict=True):
            moved = self._decay * value + (1 - self._decay) * prior + counts[which]
            after.append(moved if self._all_forget else torch.where(seen, moved, value))
        return tuple(after)

    def _log_chance(self, alpha: Tensor, beta: Tensor, which: Tensor) -> Tensor:
        log_chance = log_beta_binomial(alpha, beta, self._won[which], self.outcomes.trials[which])
        return torch.where(self.looked[which], log_chance, 0.0)

    def chance(self, state: State) -> Tensor:
        """See `CountFilter`."""
        alpha, beta = (value[:, None] for value in state)
        return log_beta_binomial(alpha, beta, self.outcomes.successes[None], self.outcomes.trials[None]).exp()


class TableFilter(CountFilter):
    """Filters whose hidden states are numbered, where counts come in as a table of likelihoods.

    log_likelihood: log P(outcome | state), (U, states). correction: (U,), what is added to turn it into that of counts.
    """

    def __init__(self, outcomes: Outcomes, log_likelihood: Tensor, correction: Tensor | None = None) -> None:
        super().__init__(outcomes)
        largest = log_likelihood.detach().amax(1)
        self._absurd = ~largest.isfinite()  # counts that no state can produce say nothing
        scale = largest.masked_fill(self._absurd, 0.0)
        self.likelihood = (log_likelihood.masked_fill(self._absurd[:, None], 0.0) - scale[:, None]).exp()
        self.scale = scale if correction is None else scale + correction

    def condition(self, belief: Tensor, likelihood: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bayes for beliefs and likelihoods (N, states).

        Returns the sum over states of their product (N,), 1 where that is zero; whether it is not (N,); and the beliefs
        after it, which are the likelihood's where it is.
        """
        joint = belief * likelihood
        total = joint.sum(1)
        possible = total > TINY
        if bool(possible.all()):
            return total, possible, joint / total[:, None]
        total = torch.where(possible, total, 1.0)
        alone = likelihood / likelihood.sum(1, keepdim=True)
        return total, possible, torch.where(possible[:, None], joint / total[:, None], alone)

    def told(self, total: Tensor, possible: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Log chances (N,) of what was observed, 0 where unexpected or nothing; and whether it was unexpected (N,)."""
        seen = self.looked[which]
        unexpected = seen & (~possible | self._absurd[which])
        return torch.where(seen & ~unexpected, total.log() + self.scale[which], 0.0), unexpected

    def chances(self, belief: Tensor) -> Tensor:
        """P(outcome), (N, U), under beliefs (N, states)."""
        whole = (self.likelihood * self.scale.exp()[:, None]).masked_fill(self._absurd[:, None], 0.0)
        return belief @ whole.T
