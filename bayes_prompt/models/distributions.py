"""Distributions and flows that a user hands in: what must be true of them, their parts, and their names in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import ComposeTransform, Distribution, IndependentTransform, Transform

from bayes_prompt.errors import CannotLower
from bayes_prompt.models import checks


def check(name: str, law: Any, events: int, what_works: str) -> None:
    """CannotLower unless `law` has `events` dimensions of its own and a log density at any number it is asked about."""
    if not isinstance(law, Distribution):
        raise CannotLower(f"{name} is a {type(law).__name__}; {what_works}")
    if len(law.batch_shape) or len(law.event_shape) != events:
        shapes = f"batch shape {tuple(law.batch_shape)} and event shape {tuple(law.event_shape)}"
        raise CannotLower(f"{name} has {shapes}; {what_works}")
    for number in (-10.25, 0.0, 10.25):  # which the law has not drawn itself: a flow must find the way back
        try:
            with torch.no_grad():  # a flow remembers what it was asked, and is copied afterwards
                density = law.log_prob(torch.full(law.event_shape, number))
        except Exception as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise CannotLower(
                f"{name} has no log density at {number}, which it has not drawn: {reason}; {what_works}"
            ) from error
        if not bool(torch.isfinite(density)):
            raise CannotLower(f"{name} has the log density {float(density)} at {number}; {what_works}")


def laws(law: Distribution) -> Iterator[Distribution]:
    """A distribution, and those that it is made of."""
    yield law
    for inner in _inside(law).values():
        yield from laws(inner)


def parts(law: Distribution) -> Iterator[Transform]:
    """The transforms that make a flow of z, one by one."""
    waiting = [part for each in laws(law) for part in getattr(each, "transforms", [])]
    while waiting:
        part = waiting.pop(0)
        if isinstance(part, ComposeTransform):
            waiting = [*part.parts, *waiting]
            continue
        if isinstance(part, IndependentTransform):
            waiting = [part.base_transform, *waiting]
        yield part


def forget_graphs(law: Distribution) -> None:
    """Flows remember what they were asked last, graph and all, which cannot be copied: they keep the numbers alone."""
    for keeper in (keeper for part in parts(law) for keeper in _within(part).values()):
        for entry, value in vars(keeper).items():
            if entry.startswith("_") and isinstance(value, Tensor | tuple):
                vars(keeper)[entry] = tuple(map(_detached, value)) if isinstance(value, tuple) else _detached(value)


def name(law: Distribution) -> str:
    """A distribution in words: equal for those that draw alike, a flow's with where its parameters start."""
    if isinstance(law, dist.MaskedDistribution):
        return f"{name(law.base_dist)}.mask({checks.summary(torch.as_tensor(law._mask))})"
    if isinstance(law, torch.distributions.Independent):
        return f"{name(law.base_dist)}.to_event({law.reinterpreted_batch_ndims})"
    if isinstance(law, torch.distributions.TransformedDistribution):
        through = ", ".join(map(_transform, parts(law)))
        return f"{name(law.base_dist)} through {through}"
    parameters = {name: getattr(law, name, None) for name in law.arg_constraints}
    shown = {name: checks.summary(value) for name, value in parameters.items() if isinstance(value, Tensor)}
    made_of = {entry: name(inner) for entry, inner in _inside(law).items()}
    return f"{type(law).__name__} {shown}" + (f" of {made_of}" if made_of else "")


def _transform(part: Transform) -> str:
    """A transform with what it is made of; of a learned one, where its parameters start."""
    learned = part.state_dict() if isinstance(part, nn.Module) else {}
    plain = {
        f"{path}.{entry}" if path else entry: value
        for path, owner in _within(part).items()
        for entry, value in vars(owner).items()
        if not entry.startswith("_") and entry != "training"
    }
    shown = {
        name: checks.summary(torch.as_tensor(value))
        for name, value in {**learned, **plain}.items()
        if isinstance(value, Tensor | float | int)
    }
    return f"{type(part).__name__} {shown}"


def _inside(law: Distribution) -> dict[str, Distribution]:
    """The distributions that one is made of, by its own names for them."""
    return {entry: value for entry, value in vars(law).items() if isinstance(value, Distribution)}


def _within(part: Transform) -> dict[str, Any]:
    """A transform and, by their paths, the modules that it is made of."""
    return dict(part.named_modules()) if isinstance(part, nn.Module) else {"": part}


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
