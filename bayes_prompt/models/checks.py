"""Checks of what a declaration is made of: messages name the argument, the first offending entry and what works."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from bayes_prompt.errors import CannotLower


def unit_interval(name: str, value: float) -> None:
    """Raise unless `value` is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1]; got {value!r}")


def flag(name: str, value: bool) -> None:
    """Raise unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {value!r}")


def entries(name: str, values: Tensor, good: Tensor, accepted: str) -> None:
    """Raise a ValueError naming the first entry of `values` where `good` is False."""
    if not bool(good.all()):
        where = (~good).nonzero()[0].tolist()
        raise ValueError(f"{name}{where or ''} = {float(values[tuple(where)])!r} {accepted}")


def cast(name: str, values: Tensor, dtype: torch.dtype, what: str = "") -> Tensor:
    """`values` in `dtype`, where every entry other than 0 must stay a normal number.

    Raises:
        TypeError: `dtype` is neither float32 nor float64.
        CannotLower: an entry would overflow, vanish or lose digits; `what` says what the entry is.
    """
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype must be torch.float32 or torch.float64; got {dtype}")
    limits = torch.finfo(dtype)
    bad = ((values < limits.tiny) & (values != 0)) | (values > limits.max)
    if bool(bad.any()):
        where = bad.nonzero()[0].tolist()
        entry = f"{name}{where or ''}" if not what else f"{what} of {name}{where or ''}"
        remedy = "; dtype=torch.float64 may hold it" if dtype == torch.float32 else ""
        raise CannotLower(
            f"{entry} is {float(values[tuple(where)])!r}, which {dtype} cannot hold: numbers other than 0 from "
            f"{limits.tiny:.3g} to {limits.max:.3g} work{remedy}"
        )
    return values.to(dtype)
