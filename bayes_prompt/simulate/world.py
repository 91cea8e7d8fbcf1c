"""World: how hard prompts are and how a policy learns, declared; its Pyro program."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import Distribution

from bayes_prompt.models import checks
from bayes_prompt.posteriors import checks as pool_checks
from bayes_prompt.simulate.dynamics import Growth, Transfer, lessons

if TYPE_CHECKING:
    from bayes_prompt.history import History
    from bayes_prompt.simulate.run import Run

Spread: TypeAlias = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
"""A transfer: lessons (N,), groups (N,) or None, embeddings (N, D) or None, to what each prompt felt of them (N,)."""
Change: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Learning or forgetting: skill (N,), and what was felt or taught (N,), to the new skill (N,)."""

NEVER, ORDINARY, ALWAYS = 0, 1, 2  # the kinds of prompts


@dataclass(frozen=True, eq=False)
class Learner:
    """What is true of the policy at one moment. Tensors are float64."""

    difficulty: Tensor  # (N,) logits
    kind: Tensor | None  # (N,) NEVER, ORDINARY or ALWAYS; None: all are ordinary
    skill: Tensor  # (N,) logits, 0 at the start
    walk: Tensor  # (N,) logits, the sum of the noise so far

    def rates(self) -> Tensor:
        """The true success rate of every prompt, (N,)."""
        rates = torch.sigmoid(self.skill + self.walk - self.difficulty)
        if self.kind is None:
            return rates
        return torch.where(self.kind == NEVER, 0.0, torch.where(self.kind == ALWAYS, 1.0, rates))


@dataclass(frozen=True, eq=False)
class World:
    """A pool of N prompts and a policy that learns from the groups it is trained on.

    The success rate of a prompt is sigmoid(skill + walk - difficulty). A step rolls out a batch, each prompt `trials`
    times; what its groups teach (`lessons`) spreads by `transfer` and adds to the skill by `learning`; what was not
    taught is lost by `forgetting`; then every prompt's walk makes a step of `noise`. Every law is a univariate Pyro
    distribution of logits, for all prompts, or with batch shape (N,); it is kept in float64.

    Args:
        num_prompts: N.
        difficulty: what is a prompt's own of its difficulty.
        family: the part that its group shares, one draw for each; it needs groups.
        slope: the part that its text tells: embeddings @ slope, one draw for each of D entries; it needs embeddings.
        never, always: shares of prompts that are never solved, and always, whatever is learnt; at most 1 in all.
        learning: from skill (N,) and what was felt (N,) to skill (N,).
        transfer: from lessons (N,), groups and embeddings to what each prompt felt (N,).
        forgetting: from skill (N,) and lessons (N,) to skill (N,); None: nothing is forgotten.
        noise: a step of a prompt's walk; None: there is none.
        groups: (N,) integers of at least 0, the family of each prompt.
        embeddings: (N, D) numbers, the text of each prompt.
        trials: rollouts of each prompt of a batch.
        batch_size, steps: how many prompts a step and how many steps `play` gives a selector to be judged by.

    Raises:
        TypeError, ValueError: a field that is not that; the message names it and says what works.
    """

    num_prompts: int
    difficulty: Distribution = field(default_factory=lambda: dist.Normal(0.0, 2.0))
    family: Distribution | None = None
    slope: Distribution | None = None
    never: float = 0.0
    always: float = 0.0
    learning: Change = field(default_factory=Growth)
    transfer: Spread = field(default_factory=Transfer)
    forgetting: Change | None = None
    noise: Distribution | None = None
    groups: Tensor | None = None
    embeddings: Tensor | None = None
    trials: int = 8
    batch_size: int = 64
    steps: int = 80

    def __post_init__(self) -> None:
        """Check every field, and try the parts on a step that teaches nothing."""
        prompts = checks.whole("num_prompts", self.num_prompts)
        checks.whole("steps", self.steps)
        pool_checks.group_size("trials", self.trials)
        pool_checks.integer("batch_size", self.batch_size, 1, prompts)
        for name in ("never", "always"):
            checks.unit_interval(name, getattr(self, name))
        if self.never + self.always > 1:
            raise ValueError(f"never + always must be at most 1; got {self.never + self.always}")
        for name, size in (("difficulty", prompts), ("family", None), ("slope", None), ("noise", prompts)):
            if getattr(self, name) is not None or name == "difficulty":
                _check_law(name, getattr(self, name), size)
                object.__setattr__(self, name, _widened(getattr(self, name)))
        if self.groups is not None:
            groups = pool_checks.integers("groups", self.groups)
            if len(groups) != prompts:
                raise ValueError(f"groups must have {prompts} entries, one for each prompt; got {len(groups)}")
            checks.entries("groups", groups, groups >= 0, "must be at least 0")
            object.__setattr__(self, "groups", groups.cpu())
        if self.embeddings is not None:
            embeddings = pool_checks.embeddings("embeddings", self.embeddings, prompts)
            object.__setattr__(self, "embeddings", embeddings.to("cpu", torch.float64))
        for part, needed in (("family", "groups"), ("slope", "embeddings")):
            if getattr(self, part) is not None and getattr(self, needed) is None:
                raise ValueError(f"{part} needs {needed}; give one of each prompt")
        for part in ("transfer", "learning", "forgetting"):
            given = getattr(self, part)
            if not callable(given) and (given is not None or part != "forgetting"):
                raise TypeError(f"{part} must be a function; got {type(given).__name__}")
        nothing = torch.zeros(prompts, dtype=torch.float64)
        _check_values("transfer", self.transfer(nothing, self.groups, self.embeddings), prompts)
        _check_values("learning", self.learning(nothing, nothing), prompts)
        if self.forgetting is not None:
            _check_values("forgetting", self.forgetting(nothing, nothing), prompts)

    def start(self, seed: int) -> Run:
        """A run of this world: its pool and all that happens are functions of `seed`, in [0, 2**63), and the picks."""
        from bayes_prompt.simulate.run import Run

        return Run(self, seed)

    def pyro_model(self, history: History) -> Tensor:
        """The world as a Pyro program, given who was rolled out when; in float64, with max_plate_nesting=1.

        Sites: `family` (K,) and `slope` (D,), where there are such parts; in the plate `prompts` (dim -1) `difficulty`
        (N,), `kind` (N,), where some are never or always solved (it can be enumerated), and for each step t
        `successes_t` (N,), Binomial given the rates, masked where the history has no trials, observed where
        `history.successes` is given and else sampled; and from t = 1 on `noise_t` (N,). `rates_t` (N,) are
        deterministic.

        A `Run` draws its pool and moves by the same program; `Run.history` is what to condition it on.

        Args:
            history: counts (T, N), or trials alone to sample from the prior predictive.

        Returns:
            Successes (T, N) int64, 0 where the history has no trials.

        Raises:
            ValueError: the history has another number of prompts.
        """
        if history.num_prompts != self.num_prompts:
            raise ValueError(f"the world has {self.num_prompts} prompts, but history has {history.num_prompts}")
        prompts = pyro.plate("prompts", self.num_prompts, dim=-1)  # one plate, entered again and again
        learner = self.begin(prompts)
        counts: list[Tensor] = []
        for step, trials in enumerate(history.trials.cpu()):
            if step:
                learner = self.move(learner, counts[-1], history.trials[step - 1].cpu(), step, prompts)
            rates = pyro.deterministic(f"rates_{step}", learner.rates())
            seen = None if history.successes is None else history.successes[step].cpu().to(torch.float64)
            with prompts:
                law = dist.Binomial(trials.to(torch.float64), rates).mask(trials > 0)
                counts.append(pyro.sample(f"successes_{step}", law, obs=seen).long())
        return torch.stack(counts)

    def begin(self, prompts: Any = None) -> Learner:
        """The policy before training, tensors (N,): sites `family`, `slope`, `difficulty` and `kind` of the program.

        prompts: the plate of a larger program; None: one of its own.
        """
        shared = torch.zeros(self.num_prompts, dtype=torch.float64)
        if self.slope is not None and self.embeddings is not None:
            law = self.slope.expand([self.embeddings.shape[1]]).to_event(1)
            shared = shared + self.embeddings @ pyro.sample("slope", law)
        if self.family is not None and self.groups is not None:
            families = int(self.groups.max()) + 1
            with pyro.plate("families", families, dim=-1):
                means = pyro.sample("family", self.family.expand([families]))
            shared = shared + means[self.groups]
        kind = None
        with self._plate(prompts):
            own = pyro.sample("difficulty", self.difficulty.expand([self.num_prompts]))
            if self.never or self.always:
                shares = torch.tensor([self.never, 1 - self.never - self.always, self.always], dtype=torch.float64)
                kind = pyro.sample("kind", dist.Categorical(shares.clamp(min=0)))
        nothing = torch.zeros(self.num_prompts, dtype=torch.float64)
        return Learner(shared + own, kind, skill=nothing, walk=nothing)

    def move(self, learner: Learner, successes: Tensor, trials: Tensor, step: int, prompts: Any = None) -> Learner:
        """The policy at `step`, one after counts (N,) were learned from: the site `noise_{step}` of the program.

        prompts: the plate of a larger program; None: one of its own.
        """
        taught = lessons(successes, trials)
        skill = learner.skill if self.forgetting is None else self.forgetting(learner.skill, taught)
        skill = self.learning(skill, self.transfer(taught, self.groups, self.embeddings))
        _check_values(f"learning of step {step}", skill, self.num_prompts)
        walk = learner.walk
        if self.noise is not None:
            with self._plate(prompts):
                walk = walk + pyro.sample(f"noise_{step}", self.noise.expand([self.num_prompts]))
        return replace(learner, skill=skill, walk=walk)

    def _plate(self, prompts: Any) -> Any:
        return pyro.plate("prompts", self.num_prompts, dim=-1) if prompts is None else prompts


def _check_law(name: str, law: Any, size: int | None) -> None:
    what_works = "a univariate Pyro distribution works: dist.Normal(0.0, 1.0)"
    if not isinstance(law, TorchDistributionMixin):
        raise TypeError(f"{name} is a {type(law).__name__}; {what_works}")
    batches = ((), (1,), (size,)) if size else ((), (1,))
    if tuple(law.batch_shape) not in batches or len(law.event_shape):
        shapes = f"batch shape {tuple(law.batch_shape)} and event shape {tuple(law.event_shape)}"
        raise ValueError(f"{name} has {shapes}; {what_works}")


def _widened(law: Distribution) -> Distribution:
    """The same law with the parameters of it and of what it is made of in float64, as all else in the program is."""
    wide = copy.copy(law)
    for name, value in vars(law).items():
        if isinstance(value, Tensor) and value.is_floating_point():
            vars(wide)[name] = value.double()
        elif isinstance(value, Distribution):
            vars(wide)[name] = _widened(value)
    return wide


def _check_values(name: str, values: Any, size: int) -> None:
    if not isinstance(values, Tensor) or values.shape != (size,):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{name} must give a tensor of shape ({size},); got {got}")
    if not bool(values.isfinite().all()):
        row = int((~values.isfinite()).nonzero()[0])
        raise ValueError(f"{name} must give finite numbers; got {float(values[row])} for prompt {row}")
