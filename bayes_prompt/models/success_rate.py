"""SuccessRate: an unknown success rate for every prompt, with forgetting (MoPPS)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor
from torch.distributions import Beta, Distribution

from bayes_prompt.errors import CannotLower
from bayes_prompt.models import checks, grid
from bayes_prompt.models.banks import Bank, DecayBank, DriftBank
from bayes_prompt.models.drift import Drift, check_transition, own
from bayes_prompt.models.grid import Points
from bayes_prompt.models.sharing import EmpiricalBayes

if TYPE_CHECKING:
    from bayes_prompt.history import History
    from bayes_prompt.posteriors.beta import BetaPosterior
    from bayes_prompt.posteriors.grid import GridPosterior

DEFAULT_GRID = 41


@dataclass(frozen=True, eq=False)
class BetaTables:
    """A lowered `SuccessRate`: the numbers the kernels need.

    Attributes:
        alpha: (1,) or (N,) prior pseudo-counts of successes.
        beta: (1,) or (N,) prior pseudo-counts of failures.
        decay: what is left of observed counts after a step, in [0, 1].
        decay_unobserved: whether prompts that were not observed forget too.
    """

    alpha: Tensor
    beta: Tensor
    decay: float
    decay_unobserved: bool


@dataclass(frozen=True, eq=False)
class GridTables:
    """A lowered `SuccessRate` on a grid of K points: the numbers the kernels need, in float64.

    Attributes:
        points: success rates and the prior's probabilities of them.
        modes: what a drift distinguishes beside the rate; there are modes * K states.
        initial: (J, states) probabilities of the first state, for each of J drifts.
        transition: gives (J, states, states) [from, to] of a step of some elapsed time, for prompts that rest.
        after_look: the same for prompts that were observed in the step.
    """

    points: Points
    modes: int
    initial: Tensor
    transition: Callable[[float], Tensor]
    after_look: Callable[[float], Tensor]


@dataclass(frozen=True, eq=False)
class SuccessRate:
    """Every prompt has an unknown success rate; its rollouts are independent given the rate.

    With a Beta prior, and nothing else, beliefs are Beta (MoPPS, arXiv 2507.04632): an observation turns Beta(a, b)
    into decay * a + (1 - decay) * a0 + successes, and likewise b with failures. Any other prior, and any drift, is
    filtered on a grid of success rates, exactly.

    Args:
        prior: over the success rate of every prompt: a Beta, whose batch shape may be (N,), one for each prompt, or
            any other distribution over [0, 1] with a density (`priors.logit_normal`, `priors.inflated` with atoms at 0
            and 1, `priors.histogram`, mixtures).
        decay: in [0, 1]; 1 never forgets and is exact Bayes, the published settings are 0.5 to 1. On a grid the belief
            becomes belief ** decay * prior ** (1 - decay) before an observation, which is the same; not with a drift.
            A `DecayBank` asks for a grid, and weights several decays online.
        decay_unobserved: let prompts forget also in the steps in which they were not observed; Beta beliefs only.
        drift: how rates move between steps: a `Drift`, or a `DriftBank` of several, weighted online.
        grid: K, the number of points, or the success rates themselves, (K,) ascending; None: a Beta belief where that
            is exact, else 41 points. Without a drift, counts of up to 2 K - 2 rollouts are filtered
            exactly, if the prior has a smooth density.
        sharing: on a grid, learn the prior of unobserved prompts from the others, by group; None leaves it as declared.

    Raises:
        CannotLower: `prior` has no density, or another shape; the message says what would work.
        ValueError, TypeError: a number is out of range; the message names field and entry.
    """

    prior: Any = field(default_factory=lambda: dist.Beta(1.0, 1.0))
    decay: float | DecayBank = 1.0
    decay_unobserved: bool = False
    drift: Drift | DriftBank | None = None
    grid: int | Tensor | None = None
    sharing: EmpiricalBayes | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        if not isinstance(self.decay, DecayBank):
            checks.unit_interval("decay", self.decay)
        checks.flag("decay_unobserved", self.decay_unobserved)
        if not isinstance(self.drift, Drift | DriftBank | None):
            raise TypeError(f"drift must be a Drift, a DriftBank or None; got {type(self.drift).__name__}")
        if not isinstance(self.sharing, EmpiricalBayes | None):
            raise TypeError(f"sharing must be an EmpiricalBayes or None; got {type(self.sharing).__name__}")
        if not isinstance(self.prior, Distribution):
            raise CannotLower(f"prior is a {type(self.prior).__name__}; {grid.WHAT_WORKS}")
        if self.on_grid:
            if isinstance(self.drift, Drift):
                object.__setattr__(self, "drift", own(self.drift))
            if isinstance(self.grid, Tensor):
                object.__setattr__(self, "grid", self.grid.clone())
            if self.decay_unobserved:
                raise ValueError(
                    "decay_unobserved=True needs a Beta prior, no drift and no grid; a drift does the like"
                )
            if self.drift is not None and self.decay != 1.0:
                raise ValueError(f"decay must be 1 with a drift, which forgets already; got {self.decay}")
            tables = self.lower_grid()
            for law in (tables.transition, tables.after_look):
                check_transition(law(1.0), tables.initial.shape[1], 1.0, tables.initial.shape[:1])
            return
        what_works = "a Beta with batch shape () or (N,) works: dist.Beta(1.0, 1.0)"
        if len(self.prior.batch_shape) > 1:
            raise CannotLower(f"prior has batch shape {tuple(self.prior.batch_shape)}; {what_works}")
        for name, values in zip(("alpha", "beta"), self._parameters(), strict=True):
            good = torch.isfinite(values) & (values > 0)
            checks.entries(f"prior: {name}", values, good, "must be positive and finite")

    @property
    def on_grid(self) -> bool:
        """Whether beliefs are histograms on a grid, rather than Beta."""
        asked = any(value is not None for value in (self.drift, self.grid, self.sharing))
        return asked or isinstance(self.decay, DecayBank) or not isinstance(self.prior, Beta)

    @property
    def single_decay(self) -> float:
        """The decay, where it is no bank of them."""
        assert not isinstance(self.decay, DecayBank)
        return float(self.decay)

    @property
    def bank(self) -> Bank | None:
        """The bank of drifts or decays that is weighted online, if there is one."""
        return next((each for each in (self.drift, self.decay) if isinstance(each, Bank)), None)

    def lower(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> BetaTables:
        """The numbers the kernels need, evaluated in float64, then cast to `dtype` (float32 or float64) on `device`.

        Raises:
            CannotLower: a parameter of the prior, or the sum of the two, is not a normal number in `dtype`; or beliefs
                lie on a grid, see `lower_grid`.
            TypeError: `dtype` is another one.
        """
        if self.on_grid:
            raise CannotLower("prior, drift or grid ask for a grid; lower_grid() gives its tables")
        alpha, beta = (values.detach().cpu().reshape(-1) for values in self._parameters())
        checks.cast("prior", alpha + beta, dtype, "alpha + beta")
        return BetaTables(
            alpha=checks.cast("prior: alpha", alpha, dtype).to(device),
            beta=checks.cast("prior: beta", beta, dtype).to(device),
            decay=self.single_decay,
            decay_unobserved=self.decay_unobserved,
        )

    def lower_grid(self) -> GridTables:
        """The tables of a grid, in float64 on the CPU. Gradients reach the prior's and the drift's parameters.

        Raises CannotLower, ValueError or TypeError as the constructor does.
        """
        points = self.points()
        if self.drift is None:
            still = partial(_still, len(points.mass))
            return GridTables(points, 1, points.mass[None], still, still)
        members = self.drift.members if isinstance(self.drift, DriftBank) else [self.drift]
        return GridTables(
            points,
            self.drift.modes,
            torch.stack([member.initial(points.mass) for member in members]),
            partial(_moves, "transition", members, points),
            partial(_moves, "after_look", members, points),
        )

    def points(self) -> Points:
        """The grid's success rates and the prior's probabilities of them."""
        size = DEFAULT_GRID if self.grid is None else self.grid
        return grid.lower(self.prior, size, 0.0 if self.drift is None else self.drift.reach)

    def describe(self) -> dict[str, Any]:
        """The model as JSON-able numbers and strings: equal exactly for models that filter alike.

        A prior that has an entry for each prompt or point is described by a digest of them.
        """
        if self.on_grid:
            points = self.points()
            return {
                "model": "SuccessRate",
                "rates": checks.summary(points.rate),
                "mass": checks.summary(points.mass),
                "decay": self.decay.describe() if isinstance(self.decay, DecayBank) else float(self.decay),
                "drift": None if self.drift is None else self.drift.describe(),
                "sharing": None if self.sharing is None else self.sharing.describe(),
            }
        alpha, beta = self._parameters()
        return {
            "model": "SuccessRate",
            "alpha": checks.summary(alpha),
            "beta": checks.summary(beta),
            "decay": self.single_decay,
            "decay_unobserved": self.decay_unobserved,
        }

    def posterior(
        self,
        num_prompts: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: str = "auto",
        first_prompt: int = 0,
        alpha: Tensor | None = None,
        beta: Tensor | None = None,
        groups: Any = None,
        embeddings: Any = None,
    ) -> BetaPosterior | GridPosterior:
        """The online state of `num_prompts` prompts under this model.

        Args:
            num_prompts: N; it must agree with a prior that has one entry for each prompt.
            device: where the state lives.
            dtype: float32 or float64.
            backend: "auto", "reference", "cpu" or "triton".
            first_prompt: the number of row 0 within a larger pool; random draws depend on it, not on the chunking.
            alpha: (N,) prior pseudo-counts of successes, one for each prompt, in place of the prior's; with `beta`.
            beta: (N,) prior pseudo-counts of failures, likewise.
            groups: (N,) integers from 0 up, on a grid: prompts that were never observed share what is known of their
                group, and a bank is weighted in each.
            embeddings: (N, D) numbers, with `sharing`: prompts that are alike learn from each other's first looks.

        Raises:
            CannotLower: as in `lower`.
            ValueError, TypeError: a shape or value of the per-prompt priors, or a backend that cannot be had.
        """
        options: dict[str, Any] = {"device": device, "dtype": dtype, "backend": backend, "first_prompt": first_prompt}
        if self.on_grid:
            from bayes_prompt.posteriors.grid import GridPosterior

            if alpha is not None or beta is not None:
                raise ValueError("alpha and beta are priors of Beta beliefs; this model's lie on a grid")
            return GridPosterior(self, num_prompts, groups=groups, embeddings=embeddings, **options)
        from bayes_prompt.posteriors.beta import BetaPosterior

        if groups is not None or embeddings is not None:
            raise ValueError("groups and embeddings need a grid: SuccessRate(prior, grid=41)")
        return BetaPosterior(self, num_prompts, alpha=alpha, beta=beta, **options)

    def pyro_model(self, history: History) -> Tensor:
        """The generative model as a Pyro program over (steps x prompts), in float64.

        Sites: `rate` (N,), one for each prompt; `successes` (T, N), Binomial given the rate, masked where the history
        has no trials, observed where `history.successes` is given and else sampled. Plates: `prompts` (dim -1) and
        `steps` (dim -2). Use `max_plate_nesting=2`.

        With a drift the rate is a Markov chain over the states of the grid: sites `state_t` (N,), enumerated in
        parallel, and `successes_t`; with a `DriftBank` also `drift` (), which member moves the pool, enumerated. Use
        `max_plate_nesting=1`.

        `decay` has no generative counterpart: forgetting is a device of the online filter. With decay = 1 the filter is
        exact inference in this program.

        Args:
            history: counts (T, N), or trials alone to sample from the prior predictive.

        Returns:
            Successes (T, N) int64, 0 where the history has no trials.

        Raises:
            ValueError: the prior has one entry for each of a number of prompts that the history does not have.
        """
        if self.drift is not None:
            return self._drifting_model(history)
        trials = history.trials
        prior: Any = self.prior
        if not self.on_grid:
            alpha, beta = self._parameters()
            prior = dist.Beta(alpha.to(trials.device), beta.to(trials.device))
        if prior.batch_shape and prior.batch_shape not in ((1,), (history.num_prompts,)):
            raise ValueError(f"prior has {prior.batch_shape[0]} entries, but history has {history.num_prompts} prompts")
        seen = None if history.successes is None else history.successes.to(torch.float64)
        with pyro.plate("prompts", history.num_prompts, dim=-1):
            rate = pyro.sample("rate", prior)
            with pyro.plate("steps", history.num_steps, dim=-2):
                law = dist.Binomial(trials.to(torch.float64), rate).mask(trials > 0)
                return pyro.sample("successes", law, obs=seen).long()

    def _drifting_model(self, history: History) -> Tensor:
        tables, device = self.lower_grid(), history.trials.device
        initial = tables.initial.to(device)
        moves = torch.stack([tables.transition(1.0), tables.after_look(1.0)]).to(device)  # (2, J, states, states)
        rate = tables.points.rate.repeat(tables.modes).to(device)
        member = torch.tensor(0, device=device)
        if len(initial) > 1:
            even = torch.ones(len(initial), dtype=torch.float64, device=device)
            member = pyro.sample("drift", dist.Categorical(even), infer={"enumerate": "parallel"})
        counts: list[Tensor] = []
        with pyro.plate("prompts", history.num_prompts, dim=-1):
            law = Vindex(initial)[member]
            for t in pyro.markov(range(history.num_steps)):
                state = pyro.sample(f"state_{t}", dist.Categorical(law), infer={"enumerate": "parallel"})
                trials = history.trials[t]
                looked, to = (trials > 0).long(), torch.arange(len(rate), device=device)
                law = Vindex(moves)[looked[..., None], member[..., None], state[..., None], to]
                seen = None if history.successes is None else history.successes[t].to(torch.float64)
                chance = dist.Binomial(trials.to(torch.float64), rate[state]).mask(trials > 0)
                counts.append(pyro.sample(f"successes_{t}", chance, obs=seen))
        return torch.stack(torch.broadcast_tensors(*counts)).long()

    def _parameters(self) -> tuple[Tensor, Tensor]:
        """Alpha and beta of the prior, () or (N,), float64; gradients reach the declaration."""
        return self.prior.concentration1.to(torch.float64), self.prior.concentration0.to(torch.float64)


def _still(states: int, elapsed: float) -> Tensor:
    return torch.eye(states, dtype=torch.float64)[None]


def _moves(when: str, members: Sequence[Drift], points: Points, elapsed: float) -> Tensor:
    moves = [getattr(member, when)(points, elapsed) for member in members]
    for member, matrix in zip(members, moves, strict=True):
        check_transition(matrix, member.modes * len(points.logit), elapsed)
    return torch.stack(moves)
