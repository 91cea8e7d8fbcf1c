"""Posterior of `SolvingProgress`: a hidden Markov model of every prompt, filtered online (DPS, arXiv 2603.10887)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bayes_prompt.checkpoint import require_no_less
from bayes_prompt.errors import CheckpointError
from bayes_prompt.kernels.progress_filter import SMALLEST_SCALE, UNEXPECTED, Scoring
from bayes_prompt.kernels.shortlist import Shortlist
from bayes_prompt.kernels.tally import Observations
from bayes_prompt.models import checks as model_checks
from bayes_prompt.models.banks import DecayBank
from bayes_prompt.posteriors import checks
from bayes_prompt.posteriors.base import Counts, Posterior
from bayes_prompt.posteriors.evidence import CountTables

if TYPE_CHECKING:
    from bayes_prompt.models.progress import SolvingProgress


LISTED_FROM = 1 << 18  # prompts; on the CPU, a search of fewer takes no longer than keeping a shortlist does


@dataclass
class _Standing:
    """The question that is asked before every pick, with its answer as long as that holds."""

    trials: int | None  # None: the coming group size, which is known on the device alone; 0: not asked yet
    batch: int
    scoring: Scoring
    answered: bool = False


class ProgressPosterior(Posterior):
    """Belief over K states, and Dirichlet concentrations of their transitions, of N prompts.

    Stored as struct of arrays: K * K + K numbers a prompt, what was learned about its transitions (K, K, N) and the
    posterior of its last step (K, N), from which concentrations and belief follow; see `kernels.progress_filter`, which
    steps all prompts in one pass, in place. The same pass answers the question that a selector asks before every pick.

    Args:
        model: the declaration; its tables are lowered to `dtype` on `device`.
        num_prompts: N. The other keywords are those of `Posterior`.
        concentration: (N, K, K) concentrations [prompt, from, to], one prior for each prompt, in place of the model's.
        initial: (N, K) initial beliefs, in place of the model's.

    With dtype=torch.bfloat16 the state takes half the memory of float32's. After 1,000 steps beliefs were wrong by up
    to 0.0004 with decay up to 0.9, by up to 0.011 without forgetting, where bfloat16's 8 bits end the learning of a
    transition that was seen hundreds of times (docs/performance.md). Arithmetic and answers are float32.
    """

    DTYPES = (torch.float32, torch.float64, torch.bfloat16)

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
        tables = model.lower(self.dtype, self.device)
        self._emission = tables.emission
        self._counted_as = CountTables(tables.emission, self.device, self.dtype)
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
        stored = self.stored_dtype
        self._posterior = -belief.to(stored).clone(
            memory_format=torch.contiguous_format
        )  # minus: no row has made a step
        self._scale = torch.ones(1, dtype=torch.float64, device=self.device)
        self._learned: Tensor | None = None
        if model.learn:
            self._learned = torch.zeros(states, states, num_prompts, dtype=stored, device=self.device)
        self._standing: _Standing | None = None
        rates = self._emission.rates()
        self._rate_tables = {
            name: getattr(rates, name).to(self.device, self.dtype) for name in ("low", "high", "alpha", "beta")
        }
        self._has_points = torch.equal(rates.low, rates.high)  # every state is one success rate
        self._mean_rate = self._emission.mean_rate().to(self.device, self.dtype)
        self._reward_variance = self._emission.reward_variance().to(self.device, self.dtype)

    @property
    def belief(self) -> Tensor:
        """P(state at the coming rollout | everything seen), (N, K); worked out when asked for."""
        return self._belief().T

    @property
    def concentration(self) -> Tensor:
        """Concentrations of the transitions, (N, K, K) as [prompt, from, to]; the prior's when learn=False."""
        prior = self._prior if self._prior.ndim == 3 else self._prior[:, :, None]
        if self._learned is None:
            return prior.expand(-1, -1, self.num_prompts).permute(2, 0, 1)
        return torch.addcmul(prior, self._learned.to(self.dtype), self._scale.to(self.dtype)).permute(2, 0, 1)

    def success_rate(self, index: Tensor | None = None) -> Tensor:
        """Expected success rate of one rollout, (N,), or (B,) for the rows `index`."""
        return self._worth(self._mean_rate, index)

    def informative_probability(self, trials: int | Tensor, index: Tensor | None = None) -> Tensor:
        """P(0 < successes < trials), (N,) or (B,). Under the published emission belief[:, 1], and 0 for one trial."""
        if isinstance(trials, Tensor):
            belief = self._rows(index)
            trials = checks.group_sizes("trials", trials, belief.shape[1]).to(self.device)
            return (self._counted_as.mixed_each(trials).T * belief).sum(0)
        return self._worth(self._counted_as.mixed(checks.group_size("trials", trials)), index)

    def informative_scores(self, trials: int | Tensor, batch: int) -> tuple[Tensor, Shortlist | None]:
        """See `Posterior`. Once asked, the question is answered in the pass of every step."""
        if type(self).informative_probability is not ProgressPosterior.informative_probability:
            return super().informative_scores(trials, batch)
        known = None if isinstance(trials, Tensor) else checks.group_size("trials", trials)
        standing = self._standing
        if standing is None or standing.batch != batch:
            with torch.inference_mode(False):  # kept beyond this call, and written to
                scores = torch.empty(self.num_prompts, dtype=self.dtype, device=self.device)
                listed = self.on_device or self.num_prompts >= LISTED_FROM
                best = Shortlist.empty(batch, scores) if listed else None
                scoring = Scoring(torch.empty_like(self._mean_rate), scores, best)
            standing = self._standing = _Standing(0, batch, scoring)
        if standing.trials != known or (known is None and not standing.answered):
            counted = self._counted_as
            utility = counted.mixed_each(trials)[0] if isinstance(trials, Tensor) else counted.mixed(trials)
            same = not self.on_device and torch.equal(utility, standing.scoring.utility)
            standing.answered &= same
            standing.trials = known
            standing.scoring.utility.copy_(utility)
        if not standing.answered:
            self._kernel("progress_filter").score(*self._state(), standing.scoring)
            standing.answered = True
        return standing.scoring.scores, standing.scoring.shortlist

    def expected_variance(self, index: Tensor | None = None) -> Tensor:
        """E[p (1 - p)], (N,), or (B,) for the rows `index`."""
        return self._worth(self._reward_variance, index)

    def entropy(self, index: Tensor | None = None) -> Tensor:
        """Shannon entropy of the belief over states in nats, (N,) or (B,), between 0 and log K."""
        belief = self._rows(index)
        return -torch.special.xlogy(belief, belief).sum(0)

    def sample_success_rate(self, seed: int, step: int) -> Tensor:
        """A state drawn from the belief, then a success rate drawn from that state, (N,)."""
        thompson = self._kernel("thompson")
        state = torch.empty(self.num_prompts, dtype=torch.int64, device=self.device)
        thompson.sample_state(self._belief(), seed, step, self.first_prompt, state)
        low, high, alpha, beta = (self._rate_tables[name] for name in ("low", "high", "alpha", "beta"))
        if self._has_points:
            return low[state]
        within = torch.empty(self.num_prompts, dtype=self.dtype, device=self.device)
        thompson.sample_beta(alpha[state], beta[state], seed, step, self.first_prompt, within)
        return low[state] + (high - low)[state] * within

    def sample_transition(self, seed: int, step: int) -> Tensor:
        """One draw of every transition matrix, (N, K, K) as [prompt, from, to]: a function of (seed, step, prompt).

        Each row is drawn from the Dirichlet that `concentration` has there; learn=False fixes it at the prior's mean.
        """
        concentration = self.concentration.permute(1, 2, 0)
        if self._learned is None:
            return (concentration / concentration.sum(1, keepdim=True)).permute(2, 0, 1)
        out = torch.empty_like(concentration, memory_format=torch.contiguous_format)
        thompson = self._kernel("thompson")
        thompson.sample_dirichlet(concentration.contiguous(), seed, step, self.first_prompt, out)
        return out.permute(2, 0, 1)

    def _point_mass(self, index: Tensor) -> Tensor:
        return self._belief(index).T.double()

    def _point_worth(self, trials: int) -> Tensor:
        return self._counted_as.mixed(trials).double()

    def _point_later(self, trials: int, index: Tensor) -> Tensor:
        learned, _, scale, prior = self._state(index)
        counts = prior.double().reshape(*prior.shape[:2], -1)  # [from, to, prompt]
        if learned is not None:
            counts = counts + scale * learned.double()
        moves = counts / counts.sum(1, keepdim=True)
        return (moves * self._point_worth(trials)[:, None]).sum(1).T

    def _point_chance(self, trials: int) -> Tensor:
        successes = torch.arange(trials + 1, device=self.device)
        return self._emission.log_likelihood(successes, torch.full_like(successes, trials)).exp().double()

    def _state(self, index: Tensor | None = None) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        """The state as the kernels take it, of all rows or of rows (B,) on this device."""
        if index is None:
            return self._learned, self._posterior, self._scale, self._prior
        learned = None if self._learned is None else self._learned.index_select(2, index)
        prior = self._prior if self._prior.ndim == 2 else self._prior.index_select(2, index)
        return learned, self._posterior.index_select(1, index), self._scale, prior

    def _belief(self, index: Tensor | None = None) -> Tensor:
        """(K, N), or (K, B) for rows on this device."""
        state = self._state(index)
        belief = torch.empty_like(state[1], dtype=self.dtype)
        self._kernel("progress_filter").predict(*state, belief)
        return belief

    def _rows(self, index: Tensor | None) -> Tensor:
        return self._belief(None if index is None else self._checked(index))

    def _worth(self, utility: Tensor, index: Tensor | None) -> Tensor:
        """A figure of each state (K,) averaged over the belief, (N,), or (B,) for the rows `index`."""
        state = self._state(None if index is None else self._checked(index))
        scores = torch.empty(state[1].shape[1], dtype=self.dtype, device=self.device)
        self._kernel("progress_filter").score(*state, Scoring(utility, scores))
        return scores

    def _describe(self) -> dict[str, Any]:
        return {
            "model": self.model.describe(),
            "own_prior": self._own_prior,
            "num_prompts": self.num_prompts,
            "first_prompt": self.first_prompt,
            "dtype": str(self.stored_dtype),
        }

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"posterior": self._posterior, "scale": self._scale}
        if self._learned is not None:
            tensors["learned"] = self._learned
        return tensors

    def _check_belief(self, tensors: Mapping[str, Tensor]) -> None:
        total = tensors["posterior"].double().abs().sum(0)
        mixed = (tensors["posterior"] < 0).any(0) & (tensors["posterior"] > 0).any(0)
        bad = mixed | ((total - 1).abs() > (1e-2 if self.stored_dtype == torch.bfloat16 else 1e-3))
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            wrong = "has both signs" if bool(mixed[row]) else f"sums to {float(total[row])}, not to 1"
            raise CheckpointError(f"posterior.tensors.posterior of prompt {row} {wrong}")
        if not SMALLEST_SCALE <= float(tensors["scale"]) <= 1:
            raise CheckpointError(f"posterior.tensors.scale must lie in [2**-60, 1]; got {float(tensors['scale'])}")
        if "learned" in tensors:
            require_no_less("posterior.tensors.learned", tensors["learned"], 0)

    def _forget_answers(self) -> None:
        if self._standing is not None:
            self._standing.answered = False

    def _apply(self, counts: Counts, elapsed: float) -> Observations:
        # An emission may fail, so this comes before anything changes.
        evidence = self._counted_as.of(counts, unread=self.on_device)
        if self._standing is not None and self._standing.trials is None:
            size = torch.where(counts.largest > 0, counts.largest, self._counters["group_size"])
            self._standing.scoring.utility.copy_(self._counted_as.mixed_each(self._known_group_size(size))[0])
        self._aim(elapsed)
        belief = torch.empty_like(evidence.likelihood)
        chance = torch.empty(counts.index.numel(), dtype=self.dtype, device=self.device)
        status = torch.empty(counts.index.numel(), dtype=torch.int32, device=self.device)
        self._kernel("progress_filter").advance(
            *self._state(),
            counts.index,
            evidence.likelihood,
            self._kept(elapsed),
            belief,
            chance,
            status,
            None if self._standing is None else self._standing.scoring,
        )
        if self._standing is not None:
            self._standing.answered = True
        status.bitwise_or_(evidence.absurd * UNEXPECTED)
        # No matrix products, which autocast rounds.
        expected = (belief * evidence.mixed).sum(1), (belief * self._mean_rate).sum(1)
        event = chance.double().log() + evidence.scale
        counted = (counts.index, counts.successes, counts.trials)
        return Observations(*counted, event, evidence.correction, status, *expected)

    def _kept(self, elapsed: float) -> float:
        """What is left of learned pseudo-counts after so much time."""
        assert not isinstance(self.model.decay, DecayBank)  # which only transitions have that are pooled
        return float(self.model.decay**elapsed)

    def _aim(self, elapsed: float) -> None:
        """Move the threshold of the shortlist to what its guide will score after the step, if nobody observes it.

        Prompts that rest all drift alike, those with the same past by the same amount.
        """
        standing = self._standing
        best = None if standing is None else standing.scoring.shortlist
        if standing is None or best is None or not (self.on_device or bool(best.threshold.isfinite())):
            return
        learned, posterior, scale, prior = self._state(best.guide)
        coming = Scoring(standing.scoring.utility, torch.empty_like(best.threshold))
        nobody, none = best.guide[:0], coming.scores[:0]
        no_states = none.reshape(0, len(posterior))
        observed = (nobody, no_states, self._kept(elapsed), no_states, none, nobody.int())
        self._kernel("progress_filter").advance(learned, posterior, scale.clone(), prior, *observed, coming)
        best.move(standing.scoring.scores[best.guide], coming.scores)

    def _warm_start(self, counts: Counts) -> None:
        rows, keep = counts.index[counts.leader], counts.leader
        likelihood = self._counted_as.log_likelihood(counts.successes[keep], counts.trials[keep])
        largest = likelihood.amax(1, keepdim=True)
        likelihood = torch.where(torch.isfinite(largest), likelihood - largest, 0).exp().T
        weight = self._belief(rows).double() * likelihood
        total = weight.sum(0)
        state = torch.where(total > 0, weight / torch.where(total > 0, total, 1), likelihood / likelihood.sum(0))
        self._posterior[:, rows] = state.to(self.stored_dtype)  # without a minus: the belief is one transition further
        self._forget_answers()

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
