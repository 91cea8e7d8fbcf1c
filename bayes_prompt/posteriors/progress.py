"""Posterior of `SolvingProgress`: a hidden Markov model of every prompt, filtered online (DPS, arXiv 2603.10887)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayes_prompt.errors import CheckpointError
from bayes_prompt.kernels.progress_filter import IMPOSSIBLE, UNEXPECTED
from bayes_prompt.models import checks as model_checks
from bayes_prompt.models.emission import check_table
from bayes_prompt.posteriors import checks
from bayes_prompt.posteriors.base import Counts, Posterior

if TYPE_CHECKING:
    from bayes_prompt.models.progress import SolvingProgress


class ProgressPosterior(Posterior):
    """Belief over K states, and Dirichlet concentrations of their transitions, of N prompts.

    Stored as struct of arrays: concentration (K, K, N) as [from, to, prompt], the posterior of the last step (K, N) and
    the belief (K, N). The kernel `progress_filter` steps all prompts in one pass, in place.

    Args:
        model: the declaration; its tables are lowered to `dtype` on `device`.
        num_prompts: N. The other keywords are those of `Posterior`.
        concentration: (N, K, K) concentrations [prompt, from, to], one prior for each prompt, in place of the model's.
        initial: (N, K) initial beliefs, in place of the model's.
    """

    def __init__(
        self,
        model: SolvingProgress,
        num_prompts: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: str = "auto",
        first_prompt: int = 0,
        concentration: Tensor | None = None,
        initial: Tensor | None = None,
    ) -> None:
        super().__init__(num_prompts, device=device, dtype=dtype, backend=backend, first_prompt=first_prompt)
        self.model = model
        tables = model.lower(dtype, self.device)
        self._emission = tables.emission
        states = tables.num_states
        if concentration is None:
            self._prior = tables.concentration
        else:
            self._prior = self._per_prompt("concentration", concentration, (num_prompts, states, states))
        belief = tables.initial[:, None].expand(states, num_prompts)
        if initial is not None:
            belief = self._per_prompt("initial", initial, (num_prompts, states))
        self._own_prior = {
            name: _fingerprint(values)
            for name, values in (("concentration", concentration), ("initial", initial))
            if values is not None
        }
        self._belief = belief.clone(memory_format=torch.contiguous_format)
        self._posterior = self._belief.clone()
        self._concentration: Tensor | None = None
        if model.learn:
            prior = self._prior if self._prior.ndim == 3 else self._prior[:, :, None]
            self._concentration = prior.expand(states, states, num_prompts).clone(memory_format=torch.contiguous_format)
        rates = self._emission.rates()
        self._rate_tables = {
            name: getattr(rates, name).to(self.device, dtype) for name in ("low", "high", "alpha", "beta")
        }
        self._has_points = torch.equal(rates.low, rates.high)  # every state is one success rate
        self._informative: dict[int, Tensor] = {}  # by group size: the same few are asked for at every step
        self._mean_rate = self._emission.mean_rate().to(self.device, dtype)
        self._reward_variance = self._emission.reward_variance().to(self.device, dtype)

    @property
    def belief(self) -> Tensor:
        """P(state at the coming rollout | everything seen), (N, K)."""
        return self._belief.T

    @property
    def concentration(self) -> Tensor:
        """Concentrations of the transitions, (N, K, K) as [prompt, from, to]; the prior's when learn=False."""
        if self._concentration is not None:
            return self._concentration.permute(2, 0, 1)
        prior = self._prior if self._prior.ndim == 3 else self._prior[:, :, None].expand(-1, -1, self.num_prompts)
        return prior.permute(2, 0, 1)

    def success_rate(self, index: Tensor | None = None) -> Tensor:
        """Expected success rate of one rollout, (N,), or (B,) for the rows `index`."""
        return self._average(self._mean_rate, self._rows(index))

    def informative_probability(self, trials: int | Tensor, index: Tensor | None = None) -> Tensor:
        """P(0 < successes < trials), (N,) or (B,). Under the published emission belief[:, 1], and 0 for one trial."""
        if isinstance(trials, Tensor):
            belief = self._rows(index)
            return (self._informative_each(checks.group_sizes("trials", trials, belief.shape[1])) * belief).sum(0)
        trials = checks.group_size("trials", trials)
        if trials not in self._informative:
            self._informative[trials] = self._emission.informative(trials).to(self.device, self.dtype)
        return self._average(self._informative[trials], self._rows(index))

    def expected_variance(self, index: Tensor | None = None) -> Tensor:
        """E[p (1 - p)], (N,), or (B,) for the rows `index`."""
        return self._average(self._reward_variance, self._rows(index))

    def entropy(self, index: Tensor | None = None) -> Tensor:
        """Shannon entropy of the belief over states in nats, (N,) or (B,), between 0 and log K."""
        belief = self._rows(index)
        return -torch.special.xlogy(belief, belief).sum(0)

    def sample_success_rate(self, seed: int, step: int) -> Tensor:
        """A state drawn from the belief, then a success rate drawn from that state, (N,)."""
        thompson = self._kernel("thompson")
        state = torch.empty(self.num_prompts, dtype=torch.int64, device=self.device)
        thompson.sample_state(self._belief, seed, step, self.first_prompt, state)
        low, high, alpha, beta = (self._rate_tables[name] for name in ("low", "high", "alpha", "beta"))
        if self._has_points:
            return low[state]
        within = torch.empty(self.num_prompts, dtype=self.dtype, device=self.device)
        thompson.sample_beta(alpha[state], beta[state], seed, step, self.first_prompt, within)
        return low[state] + (high - low)[state] * within

    def _rows(self, index: Tensor | None) -> Tensor:
        return self._belief if index is None else self._belief[:, self._checked(index)]

    def _informative_each(self, trials: Tensor) -> Tensor:
        """P(0 < successes < trials | state) for trials (M,), as (K, M)."""
        trials = trials.to(self.device)
        ends = [self._emission.log_likelihood(end, trials).exp() for end in (torch.zeros_like(trials), trials)]
        mixed = (1 - ends[0] - ends[1]).clamp(min=0).masked_fill((trials == 1)[:, None], 0)
        return mixed.T.to(self.dtype)

    def _describe(self) -> dict[str, Any]:
        return {
            "model": self.model.describe(),
            "own_prior": self._own_prior,
            "num_prompts": self.num_prompts,
            "first_prompt": self.first_prompt,
            "dtype": str(self.dtype),
        }

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"belief": self._belief, "posterior": self._posterior}
        if self._concentration is not None:
            tensors["concentration"] = self._concentration
        return tensors

    def _check_belief(self, tensors: Mapping[str, Tensor]) -> None:
        for name in ("belief", "posterior"):
            total = tensors[name].double().sum(0)
            if bool(((total - 1).abs() > 1e-3).any()):
                row = int(((total - 1).abs() > 1e-3).nonzero()[0])
                raise CheckpointError(f"posterior.tensors.{name} of prompt {row} sums to {float(total[row])}, not to 1")
        if "concentration" in tensors and bool((tensors["concentration"].sum(1) <= 0).any()):
            raise CheckpointError("posterior.tensors.concentration has a row without a positive entry")

    def _apply(self, counts: Counts, slot: Tensor, elapsed: float) -> None:
        log_likelihood = self._event_log_likelihood(counts.successes, counts.trials)
        # A row's largest likelihood becomes 1, so that many trials cannot underflow; the evidence takes it back.
        scale = log_likelihood.amax(1)
        # A count that no state can produce says nothing about the state, and was not expected.
        absurd = ~torch.isfinite(scale)
        log_likelihood, scale = log_likelihood.masked_fill(absurd[:, None], 0), scale.masked_fill(absurd, 0)
        likelihood = (log_likelihood - scale[:, None]).exp().to(self.dtype)
        correction = self._emission.count_correction(counts.successes, counts.trials)  # here, before anything changes
        evidence = torch.empty(counts.index.numel(), dtype=self.dtype, device=self.device)
        status = torch.empty(counts.index.numel(), dtype=torch.int32, device=self.device)
        self._kernel("progress_filter").advance(
            self._concentration,
            self._posterior,
            self._belief,
            self._prior,
            slot,
            likelihood,
            self.model.decay**elapsed,
            self.model.learn,
            evidence,
            status,
        )
        unexpected = counts.leader & (absurd | ((status & UNEXPECTED) != 0))
        impossible = counts.leader & ((status & IMPOSSIBLE) != 0)
        expected = counts.leader & ~unexpected
        event = torch.where(expected, evidence, 1).double().log() + torch.where(expected, scale, 0.0)
        count = torch.where(expected, correction, 0.0)
        self._counters["log_evidence"] += event.sum()
        self._counters["log_count_evidence"] += (event + count).sum()
        self._counters["unexpected"] += unexpected.sum()
        self._counters["impossible"] += impossible.sum()

    def _warm_start(self, counts: Counts) -> None:
        rows, keep = counts.index[counts.leader], counts.leader
        likelihood = self._event_log_likelihood(counts.successes[keep], counts.trials[keep])
        largest = likelihood.amax(1, keepdim=True)
        likelihood = torch.where(torch.isfinite(largest), likelihood - largest, 0).exp().T
        weight = self._belief[:, rows].double() * likelihood
        total = weight.sum(0)
        state = torch.where(total > 0, weight / torch.where(total > 0, total, 1), likelihood / likelihood.sum(0))
        prior = self._prior[:, :, rows].double() if self._prior.ndim == 3 else self._prior[:, :, None].double()
        transition = prior / prior.sum(1, keepdim=True)
        self._posterior[:, rows] = state.to(self.dtype)
        self._belief[:, rows] = (state[:, None] * transition).sum(0).to(self.dtype)

    def _event_log_likelihood(self, successes: Tensor, trials: Tensor) -> Tensor:
        """(M, K) float64 of the emission, which may be a user's own and wrong; on a device nothing is read back."""
        table = self._emission.event_log_likelihood(successes, trials)
        check_table(self._emission, table, successes, trials)
        return table

    def _per_prompt(self, name: str, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A prior for each prompt, checked, in the kernels' order: the prompts last."""
        values = model_checks.real(name, values).detach()
        if tuple(values.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}; got {tuple(values.shape)}")
        wide = values.to(torch.float64)
        bad = ~(torch.isfinite(wide) & (wide >= 0))
        if bad.any():
            where = bad.nonzero()[0].tolist()
            raise ValueError(f"{name}{where} = {float(wide[tuple(where)])} must be finite and at least 0")
        total = wide.sum(-1)
        empty = total <= 0 if name == "concentration" else (total - 1).abs() > 1e-6
        if empty.any():
            where = empty.nonzero()[0].tolist()
            accepted = "must not be 0" if name == "concentration" else "must be 1"
            raise ValueError(f"the sum of {name}{where} is {float(total[tuple(where)])}; it {accepted}")
        if name == "initial":
            wide = wide / total[..., None]
        cast = model_checks.cast(name, wide, self.dtype)
        if name == "concentration":
            model_checks.cast(name, total, self.dtype, "the sum")
            model_checks.cast(name, wide / total[..., None], self.dtype, "the mean probability")
        return cast.to(self.device).movedim(0, -1).clone(memory_format=torch.contiguous_format)


def _fingerprint(values: Tensor) -> str:
    contiguous = torch.as_tensor(values).detach().cpu().to(torch.float64).contiguous()
    return hashlib.sha256(contiguous.numpy().tobytes()).hexdigest()[:16]
