"""Named families of declarations: what is free in them, priors of that, and values to start from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from bayes_prompt.models import priors
from bayes_prompt.models.banks import DecayBank
from bayes_prompt.models.drift import LogitRandomWalk, Mixture, Redraw
from bayes_prompt.models.emission import BetaBinomialEmission, PartitionEmission
from bayes_prompt.models.kalman import LogitGaussian
from bayes_prompt.models.progress import SolvingProgress
from bayes_prompt.models.sharing import EmpiricalBayes
from bayes_prompt.models.success_rate import SuccessRate

EDGES = (0.0, 0.05, 0.35, 0.65, 0.95, 1.0)
"""Success rates between which the states of `partition` lie."""


@dataclass(frozen=True, eq=False)
class Family:
    """A family of declarations.

    Attributes:
        about: what it says of prompts.
        build: makes the declaration of parameters by name.
        priors: of every parameter, weakly informative.
        start: values that a research group might use without a fit.
        code: the line of Python that makes the declaration, with the parameters in braces.
    """

    about: str
    build: Callable[..., Any]
    priors: Mapping[str, Any]
    start: Mapping[str, Any]
    code: str = field(repr=False)

    def declare(self, **values: Any) -> Any:
        """The declaration of values that are numbers or lists of them; those that are left out start as they do.

        Raises ValueError or TypeError, which names the parameter, for a value that it cannot have.
        """
        unknown = values.keys() - self.start.keys()
        if unknown:
            raise ValueError(f"{sorted(unknown)[0]} is no parameter; choose among {', '.join(self.start)}")
        return self.make(**{name: self.value(name, value) for name, value in {**self.start, **values}.items()})

    def value(self, name: str, value: Any) -> Any:
        """A parameter's value as `build` takes it: a tensor of its prior's shape, but for the decay, a number.

        Raises TypeError where it is no number, ValueError where it is not finite or of another shape.
        """
        try:
            tensor = torch.as_tensor(value, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} must be a prior or numbers; got {value!r}") from error
        if tensor.shape != self.priors[name].event_shape:
            raise ValueError(f"{name} must have shape {tuple(self.priors[name].event_shape)}; got {value!r}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} must be finite; got {value!r}")
        return value if name == "decay" else tensor

    def make(self, **values: Any) -> Any:
        """What `build` makes of values; where it refuses them, ValueError names the one that its prior rules out."""
        try:
            return self.build(**values)
        except ValueError as error:
            for name, value in values.items():
                support: Any = self.priors[name].support
                numbers = torch.as_tensor(value, dtype=torch.float64).detach()
                if not bool(support.check(numbers).all()):
                    raise ValueError(f"{name} = {numbers.tolist()} must {_accepted(support)}") from error
            raise


def read(path: str | PathLike[str]) -> Any:
    """The declaration that `FitResult.write` wrote, of a family that has a name.

    Raises ValueError, which names the file, where it is something else.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        family = FAMILIES[found["family"]]
        values = {name: summary["mean"] for name, summary in found["parameters"].items()} | found["fixed"]
        if missing := [name for name in family.start if name not in values]:
            raise ValueError(f"it lacks {missing[0]}")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is no fit of one of {', '.join(FAMILIES)}: {error!r}") from error
    try:
        return family.declare(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r}: {error}") from error


def named(name: str) -> Family:
    """The family of that name; ValueError says which there are."""
    if name not in FAMILIES:
        raise ValueError(f"family {name!r} is unknown; choose among {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _accepted(support: Any) -> str:
    """What numbers a prior's support has, after "must"."""
    low, high = (getattr(support, end, None) for end in ("lower_bound", "upper_bound"))
    if low is None:
        return "be probabilities that sum to 1"
    return f"be above {low:g}" if high is None else f"lie in [{low:g}, {high:g}]"


def _moves(move: Tensor, stay: Tensor, states: int) -> Any:
    """Pseudo-counts `move` of every transition, and `stay` more of those that lead back."""
    ones, eye = torch.ones(states, states).double(), torch.eye(states).double()
    return dist.Dirichlet(move * ones + stay * eye)


def _dps(move: Tensor, stay: Tensor, decay: float) -> SolvingProgress:
    return SolvingProgress(_moves(move, stay, 3), decay=decay)


def _states(move: Tensor, stay: Tensor, rare: Tensor, common: Tensor, decay: float) -> SolvingProgress:
    law = dist.Beta(torch.stack([rare, common, common]), torch.stack([common, common, rare]))
    return SolvingProgress(_moves(move, stay, 3), decay=decay, emission=BetaBinomialEmission(law))


def _partition(move: Tensor, stay: Tensor, decay: float) -> SolvingProgress:
    return SolvingProgress(_moves(move, stay, len(EDGES) - 1), decay=decay, emission=PartitionEmission(EDGES))


def _mopps(a: Tensor, b: Tensor, decay: float) -> SuccessRate:
    return SuccessRate(dist.Beta(a, b), decay=decay)


def _static(mean: Tensor, deviation: Tensor) -> SuccessRate:
    return SuccessRate(priors.logit_normal(mean, deviation))


def _inflated(a: Tensor, b: Tensor, weights: Tensor, decay: float) -> SuccessRate:
    return SuccessRate(priors.inflated(dist.Beta(a, b), weights[0], weights[1]), decay=decay)


def _walk(mean: Tensor, deviation: Tensor, scale: Tensor, trend: Tensor) -> SuccessRate:
    return SuccessRate(priors.logit_normal(mean, deviation), drift=LogitRandomWalk(scale, trend))


def _redraw(a: Tensor, b: Tensor, probability: Tensor) -> SuccessRate:
    return SuccessRate(dist.Beta(a, b), drift=Redraw(probability))


def _mixture(mean: Tensor, deviation: Tensor, frozen: Tensor, scale: Tensor, trend: Tensor) -> SuccessRate:
    drift = Mixture(frozen, LogitRandomWalk(scale, trend), thaw=0.01, freeze=0.01)
    return SuccessRate(priors.logit_normal(mean, deviation), drift=drift)


def _kalman(mean: Tensor, deviation: Tensor, scale: Tensor, trend: Tensor) -> LogitGaussian:
    return LogitGaussian(dist.Normal(mean, deviation), drift=float(scale), trend=float(trend))


def _shared(mean: Tensor, deviation: Tensor, scale: Tensor, trend: Tensor, pool: Tensor) -> SuccessRate:
    return replace(_walk(mean, deviation, scale, trend), sharing=EmpiricalBayes(pool=float(pool)))


def _best(mean: Tensor, deviation: Tensor, pool: Tensor) -> SuccessRate:
    law, sharing = priors.logit_normal(mean, deviation), EmpiricalBayes(pool=float(pool))
    return SuccessRate(law, drift=priors.training(), sharing=sharing)


def _pooled(move: Tensor, stay: Tensor, decay: float) -> SolvingProgress:
    return SolvingProgress(_moves(move, stay, 3), decay=decay, pooling="pool")


def _grouped(move: Tensor, stay: Tensor, decay: float) -> SolvingProgress:
    return SolvingProgress(_moves(move, stay, 3), decay=decay, pooling="group")


def _adaptive(move: Tensor, stay: Tensor) -> SolvingProgress:
    return SolvingProgress(_moves(move, stay, 3), decay=DecayBank(), pooling="pool")


_COUNT = dist.LogNormal(0.0, 1.0)  # pseudo-counts
_DECAY = dist.Uniform(0.0, 1.0)
_LOGIT = {"mean": dist.Normal(0.0, 2.0), "deviation": dist.LogNormal(0.3, 0.7)}
_MOVES = {"move": dist.LogNormal(-1.0, 1.5), "stay": _COUNT}
_WALK = {"scale": dist.LogNormal(-1.5, 1.0), "trend": dist.Normal(0.0, 0.2)}
_TRANSITIONS = "dist.Dirichlet({{move:.6g}} * torch.ones({0}, {0}) + {{stay:.6g}} * torch.eye({0}))"

FAMILIES: Mapping[str, Family] = {
    "dps": Family(
        "solving states that move by a matrix of each prompt's own, read off groups (DPS)",
        _dps,
        {**_MOVES, "decay": _DECAY},
        {"move": 1.0, "stay": 0.0001, "decay": 0.7},
        f"bp.SolvingProgress({_TRANSITIONS.format(3)}, decay={{decay:.6g}})",
    ),
    "states": Family(
        "the same, where each state has a law of the success rate",
        _states,
        {**_MOVES, "rare": dist.LogNormal(-1.0, 1.0), "common": dist.LogNormal(1.0, 0.7), "decay": _DECAY},
        {"move": 0.3, "stay": 1.0, "rare": 0.3, "common": 4.0, "decay": 0.9},
        f"bp.SolvingProgress({_TRANSITIONS.format(3)}, decay={{decay:.6g}}, emission=bp.BetaBinomialEmission("
        "dist.Beta(torch.tensor([{rare:.6g}, {common:.6g}, {common:.6g}]), "
        "torch.tensor([{common:.6g}, {common:.6g}, {rare:.6g}]))))",
    ),
    "partition": Family(
        "the same, where the states are five ranges of the success rate",
        _partition,
        {**_MOVES, "decay": _DECAY},
        {"move": 0.3, "stay": 1.0, "decay": 0.9},
        f"bp.SolvingProgress({_TRANSITIONS.format(5)}, decay={{decay:.6g}}, emission=bp.PartitionEmission({EDGES}))",
    ),
    "mopps": Family(
        "a success rate whose counts are forgotten (MoPPS)",
        _mopps,
        {"a": _COUNT, "b": _COUNT, "decay": _DECAY},
        {"a": 1.0, "b": 1.0, "decay": 0.8},
        "bp.SuccessRate(dist.Beta({a:.6g}, {b:.6g}), decay={decay:.6g})",
    ),
    "static": Family(
        "a success rate that never changes",
        _static,
        _LOGIT,
        {"mean": 0.0, "deviation": 1.5},
        "bp.SuccessRate(bp.priors.logit_normal({mean:.6g}, {deviation:.6g}))",
    ),
    "inflated": Family(
        "a success rate whose counts are forgotten, which for some prompts is exactly 0 or 1",
        _inflated,
        {"a": _COUNT, "b": _COUNT, "weights": dist.Dirichlet(torch.tensor([1.0, 1.0, 8.0])), "decay": _DECAY},
        {"a": 1.0, "b": 1.0, "weights": [0.1, 0.1, 0.8], "decay": 0.8},
        "bp.SuccessRate(bp.priors.inflated(dist.Beta({a:.6g}, {b:.6g}), {weights[0]:.6g}, {weights[1]:.6g}), "
        "decay={decay:.6g})",
    ),
    "walk": Family(
        "a success rate whose logit walks at random, with a trend",
        _walk,
        {**_LOGIT, **_WALK},
        {"mean": 0.0, "deviation": 1.5, "scale": 0.3, "trend": 0.0},
        "bp.SuccessRate(bp.priors.logit_normal({mean:.6g}, {deviation:.6g}), "
        "drift=bp.LogitRandomWalk({scale:.6g}, {trend:.6g}))",
    ),
    "redraw": Family(
        "a success rate that stays, until it is drawn anew",
        _redraw,
        {"a": _COUNT, "b": _COUNT, "probability": dist.Beta(1.0, 9.0)},
        {"a": 1.0, "b": 1.0, "probability": 0.05},
        "bp.SuccessRate(dist.Beta({a:.6g}, {b:.6g}), drift=bp.Redraw({probability:.6g}))",
    ),
    "mixture": Family(
        "prompts that are frozen, and prompts that walk",
        _mixture,
        {**_LOGIT, "frozen": dist.Beta(1.0, 1.0), **_WALK},
        {"mean": 0.0, "deviation": 1.5, "frozen": 0.5, "scale": 0.5, "trend": 0.0},
        "bp.SuccessRate(bp.priors.logit_normal({mean:.6g}, {deviation:.6g}), drift=bp.Mixture({frozen:.6g}, "
        "bp.LogitRandomWalk({scale:.6g}, {trend:.6g}), thaw=0.01, freeze=0.01))",
    ),
    "kalman": Family(
        "a Gaussian logit that walks at random, with a trend (KGPS)",
        _kalman,
        {**_LOGIT, **_WALK},
        {"mean": 0.0, "deviation": 1.5, "scale": 0.3, "trend": 0.0},
        "bp.LogitGaussian(dist.Normal({mean:.6g}, {deviation:.6g}), drift={scale:.6g}, trend={trend:.6g})",
    ),
    "shared": Family(
        "walk, where prompts that nobody looked at learn from the first looks at others, in their group above all",
        _shared,
        {**_LOGIT, **_WALK, "pool": dist.LogNormal(2.3, 1.0)},
        {"mean": 0.0, "deviation": 1.5, "scale": 0.3, "trend": 0.0, "pool": 10.0},
        "bp.SuccessRate(bp.priors.logit_normal({mean:.6g}, {deviation:.6g}), "
        "drift=bp.LogitRandomWalk({scale:.6g}, {trend:.6g}), sharing=bp.EmpiricalBayes(pool={pool:.6g}))",
    ),
    "best": Family(
        "the belief of the recipe best: shared, under a bank of twelve drifts that are weighted online",
        _best,
        {**_LOGIT, "pool": dist.LogNormal(2.3, 1.0)},
        {"mean": 0.0, "deviation": 3.0, "pool": 10.0},
        "bp.SuccessRate(bp.priors.logit_normal({mean:.6g}, {deviation:.6g}), drift=bp.priors.training(), "
        "sharing=bp.EmpiricalBayes(pool={pool:.6g}))",
    ),
    "pooled": Family(
        "dps, with one matrix that all prompts learn",
        _pooled,
        {**_MOVES, "decay": _DECAY},
        {"move": 1.0, "stay": 1.0, "decay": 0.99},
        f"bp.SolvingProgress({_TRANSITIONS.format(3)}, decay={{decay:.6g}}, pooling='pool')",
    ),
    "grouped": Family(
        "dps, with a matrix that the prompts of a group learn, which leans on the pool's; it needs groups",
        _grouped,
        {**_MOVES, "decay": _DECAY},
        {"move": 1.0, "stay": 1.0, "decay": 0.99},
        f"bp.SolvingProgress({_TRANSITIONS.format(3)}, decay={{decay:.6g}}, pooling='group')",
    ),
    "adaptive": Family(
        "pooled, with a bank of decays that are weighted online by what each predicts",
        _adaptive,
        _MOVES,
        {"move": 1.0, "stay": 1.0},
        f"bp.SolvingProgress({_TRANSITIONS.format(3)}, decay=bp.DecayBank(), pooling='pool')",
    ),
}
