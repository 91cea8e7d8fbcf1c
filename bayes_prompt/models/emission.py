"""Emissions: what a prompt's hidden state says about the number of successes among its rollouts.

A state k has a law of the success rate; given the rate the rollouts are independent. Everything the filter needs of an
emission is the likelihood vector L over states (DPS, arXiv 2603.10887, eq. of the posterior of the state: q ∝ b * L).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro.distributions import BetaBinomial, TorchDistribution
from torch import Tensor
from torch.distributions import Beta

from bayes_prompt.errors import CannotLower
from bayes_prompt.models import checks
from bayes_prompt.models.count_distribution import CountDistribution
from bayes_prompt.models.numerics import RULE, log_beta_binomial, log_mean_power

__all__ = [
    "BetaBinomialEmission",
    "CountDistribution",
    "Emission",
    "PartitionEmission",
    "PublishedEmission",
    "RateTables",
    "check_table",
]

# Groups up to this size have the chance to be mixed added up count by count.
_ADDED_UP = 256
# (row, state) pairs whose integrals are taken at once: 64 nodes of each make 8 MiB.
_INTEGRALS = 1 << 14


class RateTables(NamedTuple):
    """The law of the success rate in every state: low + (high - low) * Beta(alpha, beta). Four (K,) float64 tensors."""

    low: Tensor
    high: Tensor
    alpha: Tensor
    beta: Tensor


class Emission(ABC):
    """The law of the number of successes among a prompt's rollouts, given its state.

    Counts are integers with 0 <= successes <= trials. One that no state can produce (-inf for each) is unexpected and
    says nothing about the state, as does a row without trials, whose log likelihoods are 0. Results are float64, on the
    device of the counts, and functions of the counts alone: they may be worked out once and kept.
    """

    @property
    @abstractmethod
    def num_states(self) -> int:
        """K, the number of states, ordered from unsolved to solved."""

    @abstractmethod
    def rates(self) -> RateTables:
        """The law of the success rate in every state, as four (K,) float64 tensors on the CPU."""

    @abstractmethod
    def log_likelihood(self, successes: Tensor, trials: Tensor) -> Tensor:
        """log P(successes | state, trials), binomial coefficient included.

        Args:
            successes: (M,) integers.
            trials: (M,) integers.

        Returns:
            (M, K) float64; -inf where a state cannot produce the count.

        Raises:
            ValueError: a shape, a dtype, or a row outside 0 <= successes <= trials.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The emission as JSON-able numbers and strings; equal exactly for equal emissions."""

    def event_log_likelihood(self, successes: Tensor, trials: Tensor) -> Tensor:
        """log P(event | state), (M, K) float64, of what the filter conditions on: by default the count itself.

        Arguments, result and errors as in `log_likelihood`, which is this plus `count_correction`.
        """
        return self.log_likelihood(successes, trials)

    def count_correction(self, successes: Tensor, trials: Tensor) -> Tensor:
        """log P(successes | event, trials): (M,) float64, zeros where the event is the count itself."""
        successes, _ = checks.counts(successes, trials)
        return torch.zeros(successes.shape, dtype=torch.float64, device=successes.device)

    def informative(self, trials: int) -> Tensor:
        """P(0 < successes < trials | state): the chance that a group of `trials` rollouts is mixed.

        A sum of the count's law, whose terms are all positive: nothing cancels where the chance is tiny. For more than
        256 rollouts, 1 - P(0) - P(trials), which is known to rounding relative to 1.

        Args:
            trials: rollouts in the group, at least 1.

        Returns:
            (K,) float64 on the CPU; zeros when trials = 1.

        Raises:
            TypeError, ValueError: `trials` is not an integer, or below 1.
        """
        trials = checks.whole("trials", trials)
        if trials > _ADDED_UP:
            ends = self.log_likelihood(torch.tensor([0, trials]), torch.tensor([trials, trials]))
            return (-torch.expm1(ends.amax(0)) - ends.amin(0).exp()).clamp(0.0, 1.0)
        successes = torch.arange(1, trials)
        return self.log_likelihood(successes, torch.full_like(successes, trials)).exp().sum(0).clamp(max=1.0)

    def mean_rate(self) -> Tensor:
        """E[rate | state], (K,) float64."""
        low, high, alpha, beta = self.rates()
        return low + (high - low) * (alpha / (alpha + beta))

    def reward_variance(self) -> Tensor:
        """E[rate * (1 - rate) | state], (K,) float64: the expected variance of one reward."""
        low, high, alpha, beta = self.rates()
        total, width = alpha + beta, high - low
        # rate = low + width X and 1 - rate = (1 - high) + width (1 - X), multiplied out: four terms, none negative.
        linear = width * (low * (beta / total) + (1.0 - high) * (alpha / total))
        quadratic = width.square() * (alpha / total) * (beta / (total + 1.0))
        return low * (1.0 - high) + linear + quadratic

    def distribution(self, state: Tensor, trials: Tensor) -> TorchDistribution:
        """The Pyro distribution of successes, for a Pyro program.

        Args:
            state: integers in [0, K - 1], of a shape that broadcasts with `trials`; enumerated dimensions are welcome.
            trials: rollouts; 0 where the row is missing.

        Returns:
            A distribution over counts; its batch shape is that of state and trials together.
        """
        return CountDistribution(self, state, trials)

    def sample(self, state: Tensor, trials: Tensor) -> Tensor:
        """Draws a rate from each state's law, then the number of successes, from torch's global generator.

        Args:
            state: integers in [0, K - 1].
            trials: rollouts, of the same shape.

        Returns:
            Successes as float64 (Pyro's convention for counts), of the same shape.
        """
        low, high, alpha, beta = (table.to(state.device)[state] for table in self.rates())
        rate = low + (high - low) * Beta(alpha, beta).sample()
        return torch.binomial(trials.to(torch.float64), rate)


@dataclass(frozen=True, eq=False)
class PublishedEmission(Emission):
    """Three states read off the group itself: unsolved if nothing succeeds, solved if everything does, else partial.

    Source: DPS (arXiv 2603.10887). The event is the state; as a law of counts, partial spreads uniformly over
    1..trials-1, so that models can be compared on counts. A single trial is never partial. The states have the success
    rates 0, 1/2 and 1.
    """

    @property
    def num_states(self) -> int:
        """Three: unsolved, partial, solved."""
        return 3

    def rates(self) -> RateTables:
        """Point masses at 0, 1/2 and 1."""
        rate, one = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        return RateTables(rate, rate.clone(), one, one.clone())

    def log_likelihood(self, successes: Tensor, trials: Tensor) -> Tensor:
        """log P(count | state): the event's, and uniform over 1..trials-1 within partial. (M, K) float64."""
        return self.event_log_likelihood(successes, trials) + self.count_correction(successes, trials)[:, None]

    def event_log_likelihood(self, successes: Tensor, trials: Tensor) -> Tensor:
        """(M, 3) float64: 0 for the state that the group shows, -inf for the others; 0 where there are no trials."""
        successes, trials = checks.counts(successes, trials)
        shown = torch.where(successes == 0, 0, torch.where(successes == trials, 2, 1))
        table = torch.eye(3, dtype=torch.float64, device=successes.device).log()[shown]
        return table.masked_fill_((trials == 0)[:, None], 0.0)

    def count_correction(self, successes: Tensor, trials: Tensor) -> Tensor:
        """-log(trials - 1) where the group is partial, else 0. (M,) float64."""
        successes, trials = checks.counts(successes, trials)
        partial = (successes > 0) & (successes < trials)
        return torch.where(partial, -(trials - 1).clamp(min=1).to(torch.float64).log(), 0.0)

    def informative(self, trials: int) -> Tensor:
        """(0, 1, 0), and zeros when trials = 1."""
        trials = checks.whole("trials", trials)
        return torch.tensor([0.0, float(trials > 1), 0.0], dtype=torch.float64)

    def sample(self, state: Tensor, trials: Tensor) -> Tensor:
        """0, uniform over 1..trials-1, or trials.

        Raises:
            ValueError: a row is partial and has a single trial, for which there is no such count.
        """
        lonely = (state == 1) & (trials == 1)
        if bool(lonely.any()):
            row = int(lonely.flatten().nonzero()[0])
            raise ValueError(
                f"trials must be at least 2 to sample a partial group; row {row} has 1. Larger groups work, and so "
                "does an emission whose states have a law of the success rate"
            )
        span = (trials - 1).clamp(min=1).to(torch.float64)
        partial = 1 + (torch.rand(state.shape, dtype=torch.float64, device=state.device) * span).floor().clamp(
            max=span - 1
        )
        successes = torch.where(state == 1, partial, torch.where(state == 2, trials, 0).to(torch.float64))
        return successes.masked_fill(trials == 0, 0.0)

    def describe(self) -> dict[str, Any]:
        """`{"emission": "published"}`."""
        return {"emission": "published"}


class BetaBinomialEmission(Emission):
    """Every state has a Beta law of the success rate, drawn anew for every group: counts are Beta-Binomial.

    Args:
        rates: Beta with batch shape (K,), K >= 2; kept as the attribute `law`.

    Raises:
        CannotLower: `rates` is another distribution, or of another shape.
        ValueError: a concentration, or the sum of a state's two, is not positive and finite.
    """

    def __init__(self, rates: Beta) -> None:
        what_works = "a Beta with batch shape (K,), K >= 2, works: dist.Beta(a, b) with a and b of shape (K,)"
        if not isinstance(rates, Beta):
            raise CannotLower(f"rates is a {type(rates).__name__}; {what_works}")
        if len(rates.batch_shape) != 1 or rates.batch_shape[0] < 2:
            raise CannotLower(f"rates has batch shape {tuple(rates.batch_shape)}; {what_works}")
        alpha, beta = rates.concentration1.double(), rates.concentration0.double()
        for name, values in (("alpha", alpha), ("beta", beta), ("(alpha + beta)", alpha + beta)):
            for row, value in enumerate(values.tolist()):
                if not 0.0 < value < float("inf"):
                    raise ValueError(f"rates: {name}[{row}] must be positive and finite; got {value!r}")
        self.law = rates
        self._tables: dict[torch.device, list[Tensor]] = {}

    @property
    def num_states(self) -> int:
        """K, the batch size of the Beta."""
        return int(self.law.batch_shape[0])

    def rates(self) -> RateTables:
        """low = 0, high = 1, and the parameters of the Beta."""
        both = (self.law.concentration1, self.law.concentration0)
        alpha, beta = (values.detach().to("cpu", torch.float64, copy=True) for values in both)
        return RateTables(torch.zeros_like(alpha), torch.ones_like(alpha), alpha, beta)

    def log_likelihood(self, successes: Tensor, trials: Tensor) -> Tensor:
        """The Beta-Binomial law, (M, K) float64: log C(t, s) + log B(a + s, b + t - s) - log B(a, b)."""
        successes, trials = checks.counts(successes, trials)
        if successes.device not in self._tables:  # once a device, which else would be waited for
            self._tables[successes.device] = [table.to(successes.device) for table in self.rates()[2:]]
        alpha, beta = self._tables[successes.device]
        return log_beta_binomial(alpha, beta, successes[:, None], trials[:, None])

    def distribution(self, state: Tensor, trials: Tensor) -> TorchDistribution:
        """Pyro's own BetaBinomial, differentiable in the parameters of the Beta."""
        alpha, beta = (c.to(state.device, torch.float64) for c in (self.law.concentration1, self.law.concentration0))
        return BetaBinomial(alpha[state], beta[state], trials.to(torch.float64))

    def describe(self) -> dict[str, Any]:
        """The parameters of the Beta, as lists of K floats."""
        _, _, alpha, beta = self.rates()
        return {"emission": "beta_binomial", "alpha": alpha.tolist(), "beta": beta.tolist()}


class PartitionEmission(Emission):
    """The states partition the success rate: uniform on [edges[k], edges[k + 1]] in state k, anew for every group.

    A bin of zero width is a point mass: edges (0, 0, 0.5, 1, 1) are never, below half, above half, and always. The
    likelihood is the mean of the Binomial law over the bin, [I_high(s + 1, t - s + 1) - I_low(s + 1, t - s + 1)] /
    ((t + 1) width) with I the regularised incomplete beta function, computed without that difference.

    Args:
        edges: K + 1 >= 3 nondecreasing numbers from 0 to 1, a tensor or a sequence; kept as a float64 tensor.

    Raises:
        ValueError: the edges are too few, not finite, decrease, or do not run from 0 to 1.
    """

    def __init__(self, edges: Tensor | Sequence[float]) -> None:
        edges = torch.as_tensor(edges, dtype=torch.float64, device="cpu").detach().clone()
        if edges.ndim != 1 or len(edges) < 3:
            raise ValueError(f"edges must have shape (K + 1,) with K >= 2; got shape {tuple(edges.shape)}")
        values = edges.tolist()
        for row, value in enumerate(values):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"edges must lie in [0, 1]; edges[{row}] is {value!r}")
            if row and value < values[row - 1]:
                raise ValueError(f"edges must not decrease; edges[{row}] is {value!r} after {values[row - 1]!r}")
        if values[0] != 0.0 or values[-1] != 1.0:
            raise ValueError(f"edges must run from 0 to 1; got {values[0]!r} to {values[-1]!r}")
        self._edges = edges
        self._tables: dict[torch.device, list[Tensor]] = {}

    @property
    def edges(self) -> Tensor:
        """The ends of the bins, (K + 1,) float64. They cannot be assigned: other edges are another emission."""
        return self._edges

    @property
    def num_states(self) -> int:
        """K, the number of bins."""
        return len(self.edges) - 1

    def rates(self) -> RateTables:
        """low and high are the ends of the bins; alpha = beta = 1, the uniform law."""
        one = torch.ones(self.num_states, dtype=torch.float64)
        return RateTables(self.edges[:-1].clone(), self.edges[1:].clone(), one, one.clone())

    def log_likelihood(self, successes: Tensor, trials: Tensor) -> Tensor:
        """log of the mean over the bin of C(t, s) r^s (1 - r)^(t - s), (M, K) float64."""
        successes, trials = checks.counts(successes, trials)
        row = None
        if successes.device.type == "cpu":  # most are equal; on a device, whoever asks how many are must wait
            pairs, row = torch.unique(torch.stack((successes, trials), dim=1), dim=0, return_inverse=True)
            successes, trials = pairs.unbind(1)
        if successes.device not in self._tables:  # once a device, which else would be waited for
            self._tables[successes.device] = [table.to(successes.device) for table in (self.edges, RULE)]
        s, t = successes.double()[:, None], trials.double()[:, None]
        rows = max(1, _INTEGRALS // self.num_states)
        means = [
            log_mean_power(some, every - some, *self._tables[s.device])
            for some, every in zip(s.split(rows), t.split(rows), strict=True)
        ]
        coefficient = torch.lgamma(t + 1) - torch.lgamma(s + 1) - torch.lgamma(t - s + 1)
        table = (coefficient + torch.cat(means)).masked_fill(t == 0, 0.0)
        return table if row is None else table[row]

    def describe(self) -> dict[str, Any]:
        """The edges, as a list of K + 1 floats."""
        return {"emission": "partition", "edges": self.edges.tolist()}


def check_table(emission: Emission, table: Tensor, successes: Tensor, trials: Tensor) -> None:
    """Raise unless `table`, one of the emission's two likelihoods, is made of log likelihoods.

    A row of nothing but -inf is one: a count that no state can produce. On an accelerator only the shape is checked.

    Args:
        emission: named in the message.
        table: (M, K), what `event_log_likelihood` or `log_likelihood` gave for the counts.
        successes: (M,) integers.
        trials: (M,) integers.

    Raises:
        ValueError: the table has another shape, a NaN or +inf.
    """
    name, shape = type(emission).__name__, (len(successes), emission.num_states)
    if tuple(table.shape) != shape:
        raise ValueError(f"emission {name} must give log likelihoods of shape {shape}; got {tuple(table.shape)}")
    bad = ~(table < torch.inf).all(1)  # NaN is bad too
    if table.device.type == "cpu" and bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"emission {name} must give finite log likelihoods, or -inf; {int(successes[row])} of "
            f"{int(trials[row])} (row {row}) has {table[row].tolist()}"
        )
