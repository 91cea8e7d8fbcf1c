"""How success rates move between steps: transition matrices over a grid's points, which all prompts share."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayes_prompt.models import checks
from bayes_prompt.models.grid import Points
from bayes_prompt.models.markov import exponential, generator, switching


class Drift(ABC):
    """What a step does to a success rate. For a drift of your own derive from it: `transition`, `describe` are enough.

    A drift may give prompts modes, such as frozen and moving, which nobody sees: states are then (mode, point), the
    modes one after the other.
    """

    @property
    def modes(self) -> int:
        """How many modes there are."""
        return 1

    @property
    def reach(self) -> float:
        """The logit that a grid has to reach, as rates leave the prior's neighbourhood; 0 where they do not."""
        return 6.0

    def initial(self, mass: Tensor) -> Tensor:
        """Probabilities (modes * K,) of the first state, given those of the points (K,)."""
        return mass

    @abstractmethod
    def transition(self, points: Points, elapsed: float = 1.0) -> Tensor:
        """(S, S) float64 [from, to], over S = modes * K states, of a step of `elapsed` time; rows sum to one."""

    def after_look(self, points: Points, elapsed: float = 1.0) -> Tensor:
        """The same (S, S) for the step in which a prompt was rolled out, and trained on; by default no different."""
        return self.transition(points, elapsed)

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The drift as JSON-able numbers and strings: equal for those that move alike."""


@dataclass(frozen=True, eq=False)
class LogitRandomWalk(Drift):
    """The logit of the success rate makes a random walk: by the time t it has moved by Normal(trend t, scale**2 t).

    With `repulsion`, rates are driven from the middle to the ends, as training does where one right answer brings more
    of them: the mean move is trend + repulsion * tanh(logit / 2) = trend + repulsion * (2 rate - 1).

    On a grid: jumps to the neighbours at such rates that the mean is this, and the variance, too, where the trend is
    small beside scale**2 over the distance of two points (else it is more); ends reflect, atoms at 0 and 1 stay.
    Source: KGPS (arXiv 2607.27610), whose process noise follows the policy's change: tell `elapsed`.

    Args:
        scale: standard deviation after one unit of time, at least 0; a number or a tensor of shape (), which gradients
            reach.
        trend: mean after one unit of time; likewise.
        repulsion: what is added to it at a rate of 1, and taken from it at a rate of 0; likewise.

    Raises ValueError or TypeError for a number out of range.
    """

    scale: float | Tensor = 0.3
    trend: float | Tensor = 0.0
    repulsion: float | Tensor = 0.0

    def __post_init__(self) -> None:
        """Check all of them."""
        scale = checks.scalar("scale", self.scale)
        checks.entries("scale", scale, scale.isfinite() & (scale >= 0), "must be finite and at least 0")
        for name in ("trend", "repulsion"):
            value = checks.scalar(name, getattr(self, name))
            checks.entries(name, value, value.isfinite(), "must be finite")

    def generator(self, points: Points) -> Tensor:
        """Rates of jumps (K, K) float64 [from, to] in a unit of time, of which `transition` is the exponential."""
        variance = (checks.scalar("scale", self.scale) ** 2).clamp(min=1e-12)  # a trend alone has rates as well
        logit = points.logit[points.inner]
        gaps, between = logit.diff(), (logit[1:] + logit[:-1]) / 2
        pull = checks.scalar("repulsion", self.repulsion) * torch.tanh(between / 2)
        trend = checks.scalar("trend", self.trend) + pull
        outer = torch.cat([gaps[:1], gaps, gaps[-1:]])
        widths = (outer[1:] + outer[:-1]) / 2  # of the points' cells
        # Scharfetter and Gummel (1969): rates stay positive whatever the trend.
        diffusion, x = variance / 2, 2 * trend * gaps / variance
        up = diffusion / gaps / widths[:-1] * _bernoulli(-x)
        down = diffusion / gaps / widths[1:] * _bernoulli(x)
        rates = torch.zeros(len(points.logit), len(points.logit), dtype=torch.float64)
        rates[points.inner, points.inner] = generator(up, down)
        return rates

    def transition(self, points: Points, elapsed: float = 1.0) -> Tensor:
        """See `Drift`."""
        return exponential(self.generator(points), elapsed)

    def describe(self) -> dict[str, Any]:
        """See `Drift`."""
        numbers = {name: _number(getattr(self, name)) for name in ("scale", "trend", "repulsion")}
        return {"drift": "LogitRandomWalk", **numbers}


@dataclass(frozen=True, eq=False)
class Redraw(Drift):
    """Sticky rates: mostly a rate stays, and now and then a new one is drawn from the prior.

    Args:
        probability: of a new rate within one unit of time, in [0, 1); a number or a tensor of shape (), which gradients
            reach.

    Raises ValueError or TypeError for a number out of range.
    """

    probability: float | Tensor = 0.05

    def __post_init__(self) -> None:
        """Check it."""
        value = checks.scalar("probability", self.probability)
        checks.entries("probability", value, (value >= 0) & (value < 1), "must lie in [0, 1)")

    @property
    def reach(self) -> float:
        """None: a new rate is one of the prior's."""
        return 0.0

    def transition(self, points: Points, elapsed: float = 1.0) -> Tensor:
        """See `Drift`."""
        stays = (1 - checks.scalar("probability", self.probability)) ** elapsed
        here = torch.eye(len(points.logit), dtype=torch.float64)
        return stays * here + (1 - stays) * points.mass

    def describe(self) -> dict[str, Any]:
        """See `Drift`."""
        return {"drift": "Redraw", "probability": _number(self.probability)}


@dataclass(frozen=True, eq=False)
class Mixture(Drift):
    """Some prompts are frozen and others move, and which is which is learned; a prompt may thaw, or freeze.

    Args:
        frozen: share of prompts that are frozen at the start, in (0, 1).
        moving: how the others move; a drift of one mode.
        thaw, freeze: probabilities of changing over within one unit of time, in [0, 1/2).

    Raises ValueError or TypeError for a number out of range.
    """

    frozen: float | Tensor
    moving: Drift
    thaw: float = 0.0
    freeze: float = 0.0

    def __post_init__(self) -> None:
        """Check every field."""
        share = checks.scalar("frozen", self.frozen)
        checks.entries("frozen", share, (share > 0) & (share < 1), "must lie in (0, 1)")
        if not isinstance(self.moving, Drift) or self.moving.modes != 1:
            raise TypeError(f"moving must be a Drift of one mode; got {self.moving!r}")
        for name in ("thaw", "freeze"):
            value = getattr(self, name)
            checks.number(name, value)
            if not 0 <= value < 0.5:
                raise ValueError(f"{name} must lie in [0, 1/2); got {value}")

    @property
    def modes(self) -> int:
        """Frozen and moving."""
        return 2

    @property
    def reach(self) -> float:
        """That of the moving ones."""
        return self.moving.reach

    def initial(self, mass: Tensor) -> Tensor:
        """See `Drift`."""
        share = checks.scalar("frozen", self.frozen)
        return torch.cat([share * mass, (1 - share) * mass])

    def transition(self, points: Points, elapsed: float = 1.0) -> Tensor:
        """See `Drift`. A prompt changes over first, and then moves or stays for the whole step."""
        return self._switched(self.moving.transition(points, elapsed), elapsed)

    def after_look(self, points: Points, elapsed: float = 1.0) -> Tensor:
        """See `Drift`."""
        return self._switched(self.moving.after_look(points, elapsed), elapsed)

    def _switched(self, moves: Tensor, elapsed: float) -> Tensor:
        return switched(switches([self], elapsed), moves[None])[0]

    def describe(self) -> dict[str, Any]:
        """See `Drift`."""
        numbers = {"frozen": _number(self.frozen), "thaw": float(self.thaw), "freeze": float(self.freeze)}
        return {"drift": "Mixture", "moving": self.moving.describe(), **numbers}


@dataclass(frozen=True, eq=False)
class ActivePassive(Drift):
    """Rates move in one way in the step in which a prompt is rolled out and trained on, and in another while it rests.

    In the terms of restless bandits: the arm that is pulled has dynamics of its own. Where practice helps and rest
    forgets, the two trends have opposite signs.

    Args:
        active: the drift of the step after a look. passive: that of all other steps; both of the same number of modes.

    Raises TypeError or ValueError for what is no such thing.
    """

    active: Drift
    passive: Drift

    def __post_init__(self) -> None:
        """Check both."""
        for name in ("active", "passive"):
            if not isinstance(getattr(self, name), Drift):
                raise TypeError(f"{name} must be a Drift; got {type(getattr(self, name)).__name__}")
        if self.active.modes != self.passive.modes:
            raise ValueError(
                f"active and passive must have as many modes; got {self.active.modes}, {self.passive.modes}"
            )

    @property
    def modes(self) -> int:
        """Of either."""
        return self.passive.modes

    @property
    def reach(self) -> float:
        """The farther one."""
        return max(self.active.reach, self.passive.reach)

    def initial(self, mass: Tensor) -> Tensor:
        """See `Drift`."""
        return self.passive.initial(mass)

    def transition(self, points: Points, elapsed: float = 1.0) -> Tensor:
        """See `Drift`."""
        return self.passive.transition(points, elapsed)

    def after_look(self, points: Points, elapsed: float = 1.0) -> Tensor:
        """See `Drift`."""
        return self.active.transition(points, elapsed)

    def describe(self) -> dict[str, Any]:
        """See `Drift`."""
        return {"drift": "ActivePassive", "active": self.active.describe(), "passive": self.passive.describe()}


class FixedTransition(Drift):
    """A transition matrix over the states of a grid that you bring.

    Args:
        matrix: (K, K) [from, to] float, entries of at least 0, rows that sum to one within 1e-6; copied. With
            `elapsed` it is raised to a power, which has to be whole: a fractional one need not be a transition.
    """

    def __init__(self, matrix: Tensor) -> None:
        values = checks.real("matrix", matrix).double()
        if values.ndim != 2 or values.shape[0] != values.shape[1]:
            raise ValueError(f"matrix must have shape (K, K); got {tuple(values.shape)}")
        checks.entries("matrix", values, values.isfinite() & (values >= 0), "must be finite and at least 0")
        total = values.sum(1)
        checks.entries("the sum of matrix", total, (total - 1).abs() <= 1e-6, "must be 1 within 1e-6")
        self.matrix = (values / total[:, None]).clone()

    @property
    def reach(self) -> float:
        """None: the matrix says nothing of how far rates go."""
        return 0.0

    def transition(self, points: Points, elapsed: float = 1.0) -> Tensor:
        """See `Drift`."""
        if len(self.matrix) != len(points.logit):
            raise ValueError(f"matrix must have shape (K, K) for a grid of K = {len(points.logit)} points")
        if elapsed != int(elapsed) or elapsed >= 2**31:
            raise ValueError(f"elapsed must be a whole number below 2**31 for a FixedTransition; got {elapsed}")
        return torch.linalg.matrix_power(self.matrix, int(elapsed))

    def describe(self) -> dict[str, Any]:
        """See `Drift`."""
        return {"drift": "FixedTransition", "matrix": checks.summary(self.matrix.reshape(-1))}


def switches(mixtures: Sequence[Mixture], elapsed: float) -> Tensor:
    """Probabilities (M, 2, 2) [from, to] of the modes of mixtures, frozen and moving, within this time."""
    if elapsed == 1.0:
        chances = [[[1 - each.thaw, each.thaw], [each.freeze, 1 - each.freeze]] for each in mixtures]
        return torch.tensor(chances, dtype=torch.float64)
    return exponential(torch.stack([switching(each.thaw, each.freeze) for each in mixtures]), elapsed)


def switched(switch: Tensor, moves: Tensor) -> Tensor:
    """Transitions (M, 2 K, 2 K) of M mixtures, given those of modes (M, 2, 2), and of rates that move (M, K, K)."""
    stays = torch.eye(moves.shape[-1], dtype=torch.float64).expand_as(moves)
    by_mode = torch.stack([stays, moves], 2)  # (M, K, 2, K): after the change, rates go the way of the mode
    return (switch[:, :, None, :, None] * by_mode[:, None]).flatten(3).flatten(1, 2)


def own(drift: Drift) -> Drift:
    """A copy whose tensors nobody else can change; gradients reach those that they were copied from."""
    new = copy.copy(drift)
    for name, value in vars(new).items():
        if isinstance(value, Tensor | Drift):
            object.__setattr__(new, name, value.clone() if isinstance(value, Tensor) else own(value))
    return new


def _number(value: float | Tensor) -> float:
    return float(value.detach() if isinstance(value, Tensor) else value)


def _bernoulli(x: Tensor) -> Tensor:
    """x / (exp(x) - 1), and its value 1 at 0."""
    small = x.abs() < 1e-5
    safe = torch.where(small, 1.0, x)
    return torch.where(small, 1 - x / 2, safe / torch.expm1(safe.clamp(max=300.0)))  # whose gradients stay numbers


def check_transition(moves: Tensor, states: int, elapsed: float, drifts: tuple[int, ...] = ()) -> None:
    """ValueError or TypeError unless these are transitions, of shape (*drifts, S, S), over as many states."""
    if not isinstance(moves, Tensor) or moves.dtype != torch.float64:
        got = moves.dtype if isinstance(moves, Tensor) else type(moves).__name__
        raise TypeError(f"transition must give float64; a drift's gave {got}")
    if moves.shape != (*drifts, states, states):
        raise ValueError(f"transition must give shape {(*drifts, states, states)}; a drift's gave {tuple(moves.shape)}")
    off = (moves.sum(-1) - 1).abs()
    if not bool((moves >= 0).all() & (off <= 1e-6).all()):
        raise ValueError(
            f"transition must have rows of at least 0 that sum to 1; a drift's do not, for elapsed = {elapsed}"
        )
