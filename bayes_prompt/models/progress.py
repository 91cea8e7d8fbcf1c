"""SolvingProgress: a hidden Markov model of how a prompt's solving state evolves while the policy trains (DPS)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor
from torch.distributions import Dirichlet

from bayes_prompt.errors import CannotLower
from bayes_prompt.models import banks, checks, priors
from bayes_prompt.models.banks import DecayBank, StrengthBank
from bayes_prompt.models.emission import Emission, PublishedEmission
from bayes_prompt.models.transitions import log, sample_of_groups, sample_transition

if TYPE_CHECKING:
    from bayes_prompt.history import History
    from bayes_prompt.posteriors.progress import ProgressPosterior

POOLINGS = ("prompt", "pool", "group")


@dataclass(frozen=True, eq=False)
class ProgressTables:
    """A lowered `SolvingProgress`: the numbers the kernels need.

    Attributes:
        concentration: (K, K) pseudo-counts of transitions [from, to]; zeros are forbidden moves.
        initial: (K,) probabilities of the first state.
        decay: what is left of learned pseudo-counts after a step, in [0, 1]; of a bank all of them.
        learn: whether transitions are learned, or stay at the mean of the prior.
        num_states: K.
        emission: the law of counts given the state.
    """

    concentration: Tensor
    initial: Tensor
    decay: float | tuple[float, ...]
    learn: bool
    num_states: int
    emission: Emission


class Simulation(NamedTuple):
    """What one execution of the Pyro program produced.

    Attributes:
        successes: (T, N) int64; 0 where the history has no trials.
        states: (T, N) int64, 0 (unsolved) to K - 1 (solved). While Pyro enumerates the states, its dimensions of
            enumeration stand in between.
    """

    successes: Tensor
    states: Tensor


@dataclass(frozen=True, eq=False)
class SolvingProgress:
    """Every prompt has a hidden solving state that moves by a transition matrix of its own, which is not known.

    Source: DPS, Dynamics-Predictive Sampling (arXiv 2603.10887). States run from unsolved to solved; matrices are
    [from, to] with rows that sum to one.

    Args:
        transition: the prior of every row of the transition matrix: a Dirichlet with concentration (K, K), or that
            concentration as a tensor. Zeros in the tensor are forbidden moves; every row needs a positive entry.
        initial: the first state: probabilities (K,), or a Dirichlet over them, lowered to its mean, which is exact as
            only the first state depends on them. None: uniform over the K states.
        decay: in [0, 1]; with every step the pseudo-counts C become decay * C + (1 - decay) * C0; 1 never forgets.
            Published settings: 0.7 (MATH), 0.5 (Countdown, Geometry3k). Where transitions are pooled a `DecayBank` may
            take its place.
        learn: learn transitions from what is observed; False fixes them at the prior's mean.
        emission: the law of counts given the state. None: `PublishedEmission()`, for K = 3.
        pooling: who learns a transition matrix together: "prompt", each its own as published; "pool", all prompts; or
            "group", those of a group, which `posterior(groups=...)` tells, or of a cluster of embeddings. Where states
            are guessed, groups count what a look tells (`PooledTransitions`): after 8 steps with half of the looks
            missing ranks of transitions depart from uniform by 1%, after 30 by 10%; groups that lean on the pool by 11
            to 17%.
        strength: with pooling "group", how much a group's transitions lean on the pool's: how many of the pool's these
            weigh as at most, in [0, infinity]; 0 leaves groups on their own, infinity makes one pool of them. None: a
            `StrengthBank()`, weighted online by evidence.

    Raises:
        CannotLower: a field is something that has no table for the kernels; the message says what would work.
        ValueError, TypeError: a number is out of range, or the fields disagree about K; the message names the entry.
    """

    transition: Dirichlet | Tensor = field(default_factory=priors.uniform)
    initial: Dirichlet | Tensor | None = None
    decay: float | DecayBank = 0.7
    learn: bool = True
    emission: Emission | None = None
    pooling: str = "prompt"
    strength: float | StrengthBank | None = None

    def __post_init__(self) -> None:
        """Fill in what is None, take copies of the caller's tensors, and check every field."""
        for name in ("transition", "initial"):
            object.__setattr__(self, name, _own(getattr(self, name)))
        concentration = self._concentration()
        if concentration.ndim != 2 or concentration.shape[0] != concentration.shape[1] or concentration.shape[0] < 2:
            shape = tuple(concentration.shape)
            raise ValueError(f"transition must have concentration of shape (K, K), K >= 2; got {shape}")
        _check_nonnegative("transition", concentration)
        total = concentration.sum(-1)
        checks.entries("the sum of transition", total, total > 0, "must be positive: every row needs a positive entry")
        if self.initial is None:
            object.__setattr__(self, "initial", priors.uniform_initial(self.num_states))
        initial = self._initial_mean()
        if initial.shape != (self.num_states,):
            raise ValueError(
                f"initial must have shape ({self.num_states},) like transition; got {tuple(initial.shape)}"
            )
        _check_nonnegative("initial", initial)
        checks.entries("the sum of initial", initial.sum(), (initial.sum() - 1).abs() <= 1e-6, "must be 1 within 1e-6")
        checks.flag("learn", self.learn)
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}; got {self.pooling!r}")
        self._check_pooled()
        if self.pooling != "prompt" and not self.learn:
            raise ValueError(f"pooling={self.pooling!r} is of what is learned; learn is False")
        if self.emission is None:
            object.__setattr__(self, "emission", PublishedEmission())
        if self._emission.num_states != self.num_states:
            got = f"{type(self._emission).__name__} has {self._emission.num_states}"
            raise ValueError(f"emission must have K = {self.num_states} states like transition; {got}")

    def _check_pooled(self) -> None:
        """Check `decay`, and fill in and check `strength`, which depend on the pooling."""
        if not isinstance(self.decay, DecayBank):
            checks.unit_interval("decay", self.decay)
        elif self.pooling == "prompt":
            raise ValueError(
                'decay must be a number in [0, 1] with pooling="prompt"; a DecayBank works with pooling="pool" or '
                '"group", where transitions are shared'
            )
        if self.pooling != "group":
            if self.strength is not None:
                raise ValueError(f'strength goes with pooling="group"; pooling is {self.pooling!r}')
        elif self.strength is None:
            object.__setattr__(self, "strength", StrengthBank())
        elif not isinstance(self.strength, StrengthBank):
            banks.strength("strength", self.strength)

    @property
    def num_states(self) -> int:
        """K, the number of states."""
        return int(self._concentration().shape[-1])

    def lower(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> ProgressTables:
        """The numbers the kernels need, evaluated in float64, then cast to `dtype` (float32 or float64) on `device`.

        Raises:
            CannotLower: a positive number of the declaration, a row's sum, a mean probability or a parameter of the
                emission's rates is not a normal number in `dtype`.
            TypeError: `dtype` is another one.
        """
        concentration = self._concentration().detach().cpu()
        total = concentration.sum(-1, keepdim=True)
        initial = self._initial_mean().detach().cpu()
        table = checks.cast("transition", concentration, dtype)
        rates = self._emission.rates()
        for name, values in (("alpha", rates.alpha), ("beta", rates.beta), ("alpha + beta", rates.alpha + rates.beta)):
            checks.cast("emission", values, dtype, name)
        checks.cast("transition", total[:, 0], dtype, "the sum")
        checks.cast("transition", concentration / total, dtype, "the mean probability")
        return ProgressTables(
            concentration=table.to(device),
            initial=checks.cast("initial", initial / initial.sum(), dtype).to(device),
            decay=tuple(self.decay.members) if isinstance(self.decay, DecayBank) else float(self.decay),
            learn=self.learn,
            num_states=self.num_states,
            emission=self._emission,
        )

    def describe(self) -> dict[str, Any]:
        """The model as JSON-able numbers, strings and nested lists: equal exactly for models that filter alike."""
        described = {
            "model": "SolvingProgress",
            "transition": self._concentration().tolist(),
            "initial": self._initial_mean().tolist(),
            "decay": self.decay.describe() if isinstance(self.decay, DecayBank) else float(self.decay),
            "learn": self.learn,
            "emission": self._emission.describe(),
            "pooling": self.pooling,
        }
        if self.strength is None:
            return described
        leans = self.strength.describe() if isinstance(self.strength, StrengthBank) else banks.described(self.strength)
        return {**described, "strength": leans}

    def posterior(
        self,
        num_prompts: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: str = "auto",
        first_prompt: int = 0,
        concentration: Tensor | None = None,
        initial: Tensor | None = None,
        groups: Any = None,
        embeddings: Any = None,
    ) -> ProgressPosterior:
        """The online state of `num_prompts` prompts under this model.

        Args:
            num_prompts: N.
            device: where the state lives.
            dtype: float32 or float64.
            backend: "auto", "reference", "cpu" or "triton".
            first_prompt: the number of row 0 within a larger pool; random draws depend on it, not on the chunking.
            concentration: (N, K, K) priors [prompt, from, to], one for each prompt, in place of `transition`.
            initial: (N, K) initial beliefs, one for each prompt, in place of `initial`.
            groups: (N,) integers from 0 up, with pooling "group", which needs them or `embeddings`.
            embeddings: (N, D) numbers, in place of groups: these are then clusters of like embeddings, as many as the
                root of N and no more than 64.

        Raises:
            CannotLower: as in `lower`.
            ValueError, TypeError: a shape or value of the per-prompt priors, of groups or of embeddings; both of these
                or neither; or a backend that cannot be had.
        """
        told = [name for name, given in (("groups", groups), ("embeddings", embeddings)) if given is not None]
        if self.pooling != "group" and told:
            raise ValueError(f'{" and ".join(told)} go with pooling="group"; pooling is {self.pooling!r}')
        if self.pooling == "group" and len(told) != 1:
            got = "both" if told else "neither"
            raise ValueError(f'pooling="group" takes either groups (N,) or embeddings (N, D); got {got}')
        options: dict[str, Any] = {"device": device, "dtype": dtype, "backend": backend, "first_prompt": first_prompt}
        if self.pooling != "prompt":
            from bayes_prompt.posteriors.pooled_progress import PooledProgressPosterior

            if concentration is not None:
                raise ValueError(
                    f'concentration is one for each prompt, and goes with pooling="prompt"; got {self.pooling!r}'
                )
            return PooledProgressPosterior(
                self, num_prompts, groups=groups, embeddings=embeddings, initial=initial, **options
            )
        from bayes_prompt.posteriors.progress import ProgressPosterior

        return ProgressPosterior(self, num_prompts, concentration=concentration, initial=initial, **options)

    def pyro_model(self, history: History, groups: Tensor | None = None) -> Simulation:
        """The generative model as a Pyro program over (steps x prompts), in float64.

        Graph of one prompt, T steps::

            transition ---+--------+-------- ...          initial -> state_0
                          |        |
            state_0 -> state_1 -> state_2 -> ...          count_t missing where history has no trials
               |          |          |
            count_0    count_1    count_2

        Sites: `transition` (N, K, K), or where the prior has zeros one smaller Dirichlet `transition_j` for each row j
        with more than one possible move, or none where learn=False; `initial` (N, K) where that field is a Dirichlet;
        `state_t`, enumerated in parallel; `successes_t`, observed where `history.successes` is given and else sampled.
        Use `max_plate_nesting=1`.

        `decay` has no generative counterpart: forgetting is a device of the online filter, and this program is the
        model whose transitions never change. With learn=False the filter is exact inference in it.

        With pooling "pool" there is one matrix, `transition` (K, K). With "group" there are R, `transition` (R, K, K)
        in a plate `groups`, with a hierarchical prior: the pool's matrix `pool` (K, K) has the declared Dirichlet's
        concentration C0, and those of the groups have C0 + strength * pool. With strength 0 there is no `pool`, with
        infinity nothing else; of a `StrengthBank` the member is drawn evenly, at the site `strength` (), which is not
        enumerated. The filter is exact inference of one group, or with strength 0 or infinity, where every state is
        seen; else it has the pool's transitions in place of that matrix.

        Args:
            history: counts (T, N), or trials alone to sample from the prior predictive.
            groups: (N,) int64, with pooling "group".

        Raises:
            ValueError: a partial group of a single trial would have to be sampled from `PublishedEmission`.
        """
        device = history.trials.device
        concentration = self._concentration().to(device)
        allowed = concentration.detach() > 0
        counts: list[Tensor] = []
        states: list[Tensor] = []
        shared = None if self.pooling == "prompt" else self._shared(concentration, allowed, groups)
        with pyro.plate("prompts", history.num_prompts, dim=-1):
            if shared is not None:
                transition = shared
            elif self.learn:
                transition = sample_transition("transition", concentration, allowed)
            else:
                transition = concentration / concentration.sum(-1, keepdim=True)
            logits = log(self._sample_initial(device))
            log_transition = log(transition, allowed)
            for t in pyro.markov(range(history.num_steps)):
                if t > 0:
                    logits = Vindex(log_transition)[..., states[-1], :]
                state = pyro.sample(f"state_{t}", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
                trials = history.trials[t]
                seen = None if history.successes is None else history.successes[t].to(torch.float64)
                law = self._emission.distribution(state, trials).mask(trials > 0)
                counts.append(pyro.sample(f"successes_{t}", law, obs=seen))
                states.append(state)
        return Simulation(torch.stack(counts).long(), torch.stack(torch.broadcast_tensors(*states)))

    def _shared(self, concentration: Tensor, allowed: Tensor, groups: Tensor | None) -> Tensor:
        """(K, K), or (N, K, K) of the prompts' groups."""
        if (groups is not None) != (self.pooling == "group"):
            raise ValueError(f'groups go with pooling="group"; pooling is {self.pooling!r}')
        if groups is None:
            return sample_transition("transition", concentration, allowed)
        assert self.strength is not None
        return sample_of_groups(concentration, allowed, self.strength, groups)

    @property
    def _emission(self) -> Emission:
        if isinstance(self.emission, Emission):
            return self.emission
        raise CannotLower(
            f"emission is a {type(self.emission).__name__}; None, PublishedEmission(), PartitionEmission(edges) and "
            "BetaBinomialEmission(dist.Beta(a, b)) with a and b of shape (K,) work"
        )

    def _concentration(self) -> Tensor:
        """(K, K) float64; gradients reach the declaration."""
        value = self.transition.concentration if isinstance(self.transition, Dirichlet) else self.transition
        if isinstance(value, Tensor):
            return checks.real("transition", value).to(torch.float64)
        raise CannotLower(
            f"transition is a {type(value).__name__}; a Dirichlet with concentration (K, K), or that concentration as "
            "a tensor, works"
        )

    def _initial_mean(self) -> Tensor:
        """(K,) float64 probabilities of the first state."""
        value = self.initial
        if isinstance(value, Dirichlet):
            _check_nonnegative("initial", value.concentration)
            return value.concentration.to(torch.float64) / value.concentration.to(torch.float64).sum(-1, keepdim=True)
        if isinstance(value, Tensor):
            return checks.real("initial", value).to(torch.float64)
        raise CannotLower(
            f"initial is a {type(value).__name__}; None, probabilities as a tensor (K,), or a Dirichlet with "
            "concentration (K,) work"
        )

    def _sample_initial(self, device: torch.device) -> Tensor:
        if isinstance(self.initial, Dirichlet):
            concentration = self.initial.concentration.to(device, torch.float64)
            return pyro.sample("initial", dist.Dirichlet(concentration))
        return self._initial_mean().to(device)


def _own(value: Any) -> Any:
    """`value` with a tensor of its own, which nobody else can change; gradients reach the one it was copied from."""
    if isinstance(value, Dirichlet):
        own = copy.copy(value)
        own.concentration = value.concentration.clone()
        return own
    return value.clone() if isinstance(value, Tensor) else value


def _check_nonnegative(name: str, values: Tensor) -> None:
    checks.entries(name, values, torch.isfinite(values) & (values >= 0), "must be finite and at least 0")
