"""Checks of what a declaration is made of: messages name the argument, the first offending entry and what works."""

from __future__ import annotations

import hashlib
import operator
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from bayes_prompt.errors import CannotLower


def number(name: str, value: float) -> None:
    """Raise a TypeError unless `value` is a real number; booleans are none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")


def whole(name: str, value: int, least: int | None = 1) -> int:
    """`value` as an int of at least `least`, if given; any integer type is welcome, numpy's too, but booleans are none.

    Raises:
        TypeError: `value` is not an integer.
        ValueError: `value` is below `least`.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        result = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer; got {type(value).__name__}") from None
    if least is not None and result < least:
        raise ValueError(f"{name} must be at least {least}; got {result}")
    return result


def unit_interval(name: str, value: float) -> None:
    """Raise unless `value` is a number in [0, 1]."""
    number(name, value)
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1]; got {value!r}")


def flag(name: str, value: bool) -> None:
    """Raise unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {value!r}")


def real(name: str, values: Any) -> Tensor:
    """`values` as a tensor of integers or floats; a TypeError for booleans, complex numbers and what is no number."""
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a tensor of real numbers; got a {type(values).__name__}") from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers; got {tensor.dtype}")
    return tensor


def scalar(name: str, value: float | Tensor) -> Tensor:
    """A number or a tensor of one, as a tensor () in float64; gradients reach the tensor."""
    if not isinstance(value, Tensor):
        number(name, value)
        return torch.tensor(float(value), dtype=torch.float64)
    if value.numel() != 1:
        raise ValueError(f"{name} must be a single number; got shape {tuple(value.shape)}")
    return real(name, value).double().reshape(())


def entries(name: str, values: Tensor, good: Tensor, accepted: str) -> None:
    """Raise a ValueError naming the first entry of `values` where `good` is False."""
    if not bool(good.all()):
        where = (~good).nonzero()[0].tolist()
        raise ValueError(f"{name}{where or ''} = {float(values[tuple(where)])!r} {accepted}")


def counts(successes: Tensor, trials: Tensor) -> tuple[Tensor, Tensor]:
    """The two as (M,) int64, or a ValueError that names the first row that is wrong.

    On an accelerator the values are the caller's business: reading them back would stall it.
    """
    for name, values in (("successes", successes), ("trials", trials)):
        if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
            raise ValueError(f"{name} must be integers; got {values.dtype}")
        if values.ndim != 1 or values.shape != successes.shape:
            raise ValueError(f"{name} must have shape (M,) like successes; got {tuple(values.shape)}")
    wrong = (successes < 0) | (successes > trials)
    if successes.device.type == "cpu" and bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"successes must lie in [0, trials]; row {row} has {int(successes[row])} of {int(trials[row])}"
        )
    return successes.long(), trials.long()


def cast(name: str, values: Tensor, dtype: torch.dtype, what: str = "") -> Tensor:
    """A copy of `values` in `dtype`, where every entry other than 0 must stay a normal number.

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
    return values.to(dtype, copy=True)


def summary(values: Tensor) -> Any:
    """`values` for a description: a single number, or a list of one, as it is, and more of them by their digest.

    A digest is {"sha256": of the float64 bytes, "shape": [N]}: a pool of a million prompts must not swell a checkpoint.
    """
    if values.numel() == 1:
        return values.tolist()
    wide = values.detach().to("cpu", torch.float64).contiguous()
    return {"sha256": hashlib.sha256(wide.numpy().tobytes()).hexdigest(), "shape": list(values.shape)}
