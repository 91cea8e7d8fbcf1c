"""Distributions and flows that a user hands in: what must be true of them, their parts, and their names in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import ComposeTransform, Distribution, Transform

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
    if isinstance(inner := getattr(law, "base_dist", None), Distribution):
        yield from laws(inner)


def parts(law: Distribution) -> Iterator[Transform]:
    """The transforms that make a flow of z, one by one."""
    waiting = [part for each in laws(law) for part in getattr(each, "transforms", [])]
    while waiting:
        part = waiting.pop(0)
        if isinstance(part, ComposeTransform):
            waiting = [*part.parts, *waiting]
        else:
            yield part


def name(law: Distribution) -> str:
    """A distribution in words: equal for those that draw alike, a flow's with where its parameters start."""
    if isinstance(law, torch.distributions.Independent):
        return f"{name(law.base_dist)}.to_event({law.reinterpreted_batch_ndims})"
    if isinstance(law, torch.distributions.TransformedDistribution):
        through = ", ".join(map(_transform, parts(law)))
        return f"{name(law.base_dist)} through {through}"
    parameters = {name: getattr(law, name, None) for name in law.arg_constraints}
    shown = {name: checks.summary(value) for name, value in parameters.items() if isinstance(value, Tensor)}
    return f"{type(law).__name__} {shown}"


def _transform(part: Transform) -> str:
    """A transform with what it is made of; of a learned one, where its parameters start."""
    entries = part.state_dict() if isinstance(part, nn.Module) else vars(part)
    shown = {
        name: checks.summary(torch.as_tensor(value))
        for name, value in entries.items()
        if isinstance(value, Tensor | float | int) and not name.startswith("_")
    }
    return f"{type(part).__name__} {shown}"
