"""Checks of what users pass in. Nothing is changed before every check has passed."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Mapping, Sequence, Set
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

MAX_TRIALS = 2**31 - 1  # of one entry, so that no sum of a step overflows
BAD_REWARDS = -(2**62)  # stands for the successes of a row of rewards that a check on the device found bad

IntegersLike: TypeAlias = Tensor | np.ndarray | Sequence[int]

# What a device-side check found, as (code, entry, value); code 0 is "nothing".
_DEFERRED = {
    1: "index[{row}] = {value} of an earlier call is outside [0, {num_prompts})",
    2: "trials[{row}] = {value} of an earlier call must lie in [1, 2**31)",
    3: "successes[{row}] = {value} of an earlier call must lie in [0, trials]",
    4: "rewards[{row}] of an earlier call must be finite and lie in [0, 1]",
}


def whole(name: str, value: int) -> int:
    """A single integer (numpy's too, booleans not), as Python's own; TypeError otherwise."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be an integer; got {type(value).__name__}")
    try:
        return operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be an integer; got {type(value).__name__}") from error


def integer(name: str, value: int, low: int, high: int | None = None) -> int:
    """A single integer in [low, high]; TypeError or ValueError otherwise."""
    number = whole(name, value)
    if number < low or (high is not None and number > high):
        accepted = f"be at least {low}" if high is None else f"lie in [{low}, {high}]"
        raise ValueError(f"{name} must {accepted}; got {number}")
    return number


def groups(name: str, values: IntegersLike | None, size: int) -> tuple[Tensor, int]:
    """The groups (N,) int64 of N = `size` prompts, on the CPU, and R, one more than the largest; None is one group."""
    if values is None:
        return torch.zeros(size, dtype=torch.int64), 1
    given = integers(name, values, size).cpu()
    if bool((given < 0).any()):
        row = int((given < 0).nonzero()[0])
        raise ValueError(f"{name}[{row}] = {int(given[row])} must be at least 0")
    number = int(given.max()) + 1
    if number > size:
        raise ValueError(f"{name} must be numbered below {size}, the number of prompts; got {number - 1}")
    return given, number


def integers(
    name: str,
    values: IntegersLike | int,
    size: int | None = None,
    single: bool = False,
    device: torch.device | str = "cpu",
) -> Tensor:
    """`values` as an int64 tensor of shape (B,), on the device where it is.

    `single` lets one int fill `size` entries, on `device`.

    Raises TypeError for floats and booleans, ValueError for a wrong shape.
    """
    if isinstance(values, int | np.integer) and not isinstance(values, bool):
        if size is None or not single:
            raise TypeError(f"{name} must be a one-dimensional array of integers; got the single number {values}")
        _refuse_wide(name, int(values), int(values))
        return torch.full((size,), int(values), dtype=torch.int64, device=device)
    try:
        tensor = values if isinstance(values, Tensor) else _from_numpy(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name} must be a one-dimensional array of integers; got {type(values).__name__}") from error
    if tensor.numel() == 0 and not isinstance(values, Tensor | np.ndarray):
        tensor = tensor.to(torch.int64)  # an empty list has no type of its own
    if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
        raise TypeError(f"{name} must hold integers; got {tensor.dtype}")
    if tensor.dtype == torch.uint64 and tensor.numel():
        array = tensor.cpu().numpy()
        _refuse_wide(name, int(array.min()), int(array.max()))
    if tensor.ndim == 0 and size is not None and single:
        tensor = tensor.expand(size)
    if tensor.ndim != 1:
        raise ValueError(f"{name} must have one dimension; got shape {tuple(tensor.shape)}")
    if size is not None and tensor.numel() != size:
        raise ValueError(f"{name} must have {size} entries, one for each of index; got {tensor.numel()}")
    return tensor.to(torch.int64)


def rows(name: str, index: IntegersLike, num_prompts: int) -> Tensor:
    """Row numbers (B,) as an int64 CPU tensor; IndexError names the first one outside [0, num_prompts)."""
    tensor = integers(name, index).cpu()
    _refuse_outside(tensor, 0, num_prompts - 1, IndexError, name, f"must lie in [0, {num_prompts})")
    return tensor


def mask(name: str, index: IntegersLike, num_prompts: int) -> Tensor:
    """Rows (M,), or a (N,) bool mask of them, as a mask that is True somewhere."""
    if isinstance(index, Tensor | np.ndarray) and index.dtype in (torch.bool, np.bool_):
        mask_shape(name, index, num_prompts)
        chosen = torch.as_tensor(index)
    else:
        chosen = torch.zeros(num_prompts, dtype=torch.bool)
        chosen[rows(name, index, num_prompts)] = True
    if not bool(chosen.any()):
        raise ValueError(f"{name} must name at least one prompt; got none")
    return chosen


def mask_shape(name: str, mask: Tensor | np.ndarray, num_prompts: int) -> None:
    """ValueError unless a mask has shape (num_prompts,)."""
    if tuple(mask.shape) != (num_prompts,):
        raise ValueError(f"a {name} mask must have shape ({num_prompts},); got {tuple(mask.shape)}")


def counts(
    index: IntegersLike, successes: IntegersLike, trials: IntegersLike | int, num_prompts: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Observed counts, each (B,) int64 on the CPU, or the error that names the first bad row."""
    index_ = rows("index", index, num_prompts)
    successes_ = integers("successes", successes, index_.numel()).cpu()
    trials_ = integers("trials", trials, index_.numel(), single=True).cpu()
    _refuse_outside(trials_, 1, MAX_TRIALS, ValueError, "trials", "must be at least 1 and at most 2**31 - 1")
    bad = (successes_ < 0) | (successes_ > trials_)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"successes[{row}] = {int(successes_[row])} must lie in [0, trials] = [0, {int(trials_[row])}]"
        )
    return index_, successes_, trials_


def deferred_counts(
    index: Tensor, successes: Tensor, trials: Tensor, num_prompts: int, found: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same check without reading anything back from the device.

    A call with a bad row is turned into one that observes nothing (index = num_prompts, a row that no prompt has), and
    `found` (3,) int64 keeps the first such row as (code, entry, value) until `raise_deferred` reads it.
    """
    code = torch.zeros_like(index)
    code = torch.where((successes < 0) | (successes > trials), 3, code)
    code = torch.where(successes == BAD_REWARDS, 4, code)
    code = torch.where((trials < 1) | (trials > MAX_TRIALS), 2, code)
    code = torch.where((index < 0) | (index >= num_prompts), 1, code)
    if index.numel() == 0:
        return index, successes, trials
    first = (code > 0).to(torch.int8).argmax(0, keepdim=True)
    none = torch.zeros_like(index)
    value = torch.stack([none, index, trials, successes, none]).gather(0, code[None])[0]
    report = torch.cat([code.gather(0, first), first, value.gather(0, first)])
    bad = report[0] > 0
    found.copy_(torch.where((found[0] == 0) & bad, report, found))
    return (
        torch.where(bad, num_prompts, index),
        torch.where(bad, 0, successes),
        torch.where(bad, 1, trials),
    )


def raise_deferred(found: Tensor, num_prompts: int) -> None:
    """Raise the error that `deferred_counts` kept, once; the bad call itself changed nothing."""
    code, row, value = found.tolist()
    if not code:
        return
    found.zero_()
    message = _DEFERRED[code].format(row=row, value=value, num_prompts=num_prompts) + "; that call was left out"
    raise IndexError(message) if code == 1 else ValueError(message)


def number(name: str, value: float) -> None:
    """TypeError unless `value` is a real number (numpy's too); booleans are none."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")


def group_size(name: str, trials: int) -> int:
    """A number of rollouts of one prompt: an integer in [1, 2**31)."""
    return integer(name, trials, 1, MAX_TRIALS)


def group_sizes(name: str, trials: Tensor, size: int) -> Tensor:
    """Rollouts of each of `size` prompts, as (size,) int64; values on an accelerator are the caller's business."""
    tensor = integers(name, trials)
    if tensor.numel() != size:
        raise ValueError(f"{name} must have {size} entries, one for each prompt asked about; got {tensor.numel()}")
    if tensor.device.type == "cpu":
        _refuse_outside(tensor, 1, MAX_TRIALS, ValueError, name, "must be at least 1 and at most 2**31 - 1")
    return tensor


def usable_device(name: str, device: torch.device | str) -> torch.device:
    """The device, or a ValueError that says why torch has none of that name here."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{name} must be one that torch can use here; got {device!r}: {reason}") from error


def elapsed_time(elapsed: float) -> float:
    """Time that passes in one `advance`: finite and not negative."""
    number("elapsed", elapsed)
    try:
        time = float(elapsed)
    except OverflowError:
        time = math.inf
    if not math.isfinite(time) or time < 0:
        raise ValueError(f"elapsed must be finite and at least 0; got {time}")
    return time


def counts_from_rewards(
    rewards: Tensor | np.ndarray | Sequence[Sequence[float]], threshold: float, size: int, unread: bool = False
) -> tuple[Tensor, int]:
    """Rewards (B, G) in [0, 1] as successes (B,) int64 and trials G; a reward >= threshold is a success.

    unread: a bad row on a device is not read; its successes are BAD_REWARDS, which the check of counts there refuses.
    """
    try:
        tensor = rewards if isinstance(rewards, Tensor) else _from_numpy(rewards)
    except (TypeError, ValueError) as error:
        raise TypeError("rewards must be numbers in [0, 1] of shape (B, G), every row of the same length") from error
    if tensor.is_complex():
        raise TypeError(f"rewards must be real numbers; got {tensor.dtype}")
    if tensor.ndim != 2 or tensor.shape[1] < 1:
        raise ValueError(f"rewards must have shape (B, G) with G >= 1; got {tuple(tensor.shape)}")
    if tensor.shape[0] != size:
        raise ValueError(f"rewards must have {size} rows, one for each prompt named; got {tensor.shape[0]}")
    values = tensor.to(torch.float64)
    bad = ~((values >= 0) & (values <= 1))  # written so that NaN is bad too
    if unread:
        return torch.where(bad.any(1), BAD_REWARDS, (tensor >= threshold).sum(1)), tensor.shape[1]
    if bad.any():
        row, column = (int(i) for i in bad.nonzero()[0])
        raise ValueError(f"rewards[{row}, {column}] = {float(values[row, column])} must be finite and lie in [0, 1]")
    # Compared in the rewards' own precision: float32(0.9) is below the float64 0.9.
    return (tensor >= threshold).sum(1), tensor.shape[1]


def _refuse_wide(name: str, least: int, most: int) -> None:
    if least < -(2**63) or most >= 2**63:
        wide = least if least < -(2**63) else most
        raise ValueError(f"{name} must hold integers of 64 bits, in [-2**63, 2**63); got {wide}")


def _refuse_outside(values: Tensor, low: int, high: int, kind: type[Exception], name: str, accepted: str) -> None:
    """Raise an error that names the first of `values` outside [low, high]."""
    if not values.numel():
        return
    least, most = (int(end) for end in values.aminmax())
    if least < low or most > high:
        row = int(((values < low) | (values > high)).nonzero()[0])
        raise kind(f"{name}[{row}] = {int(values[row])} {accepted}")


def _from_numpy(values: Any) -> Tensor:
    """A tensor of an array's memory; of a copy where that has negative strides or a foreign byte order."""
    array = np.asarray(values)
    if min(array.strides, default=0) < 0 or not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    return torch.as_tensor(array)


def embeddings(name: str, values: Tensor | np.ndarray, num_prompts: int | None = None) -> Tensor:
    """`values` as a tensor (N, D) of finite real numbers, N >= 1 and D >= 1, where it is.

    Raises TypeError where it is no such array, ValueError for a wrong shape, or an entry that is not finite.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable")  # a file mapped for reading: nobody writes
            tensor = values.detach() if isinstance(values, Tensor) else _from_numpy(values)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of numbers (N, D); got {type(values).__name__}") from error
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense array; got layout {tensor.layout}")
    if tensor.dtype == torch.bool or tensor.is_complex():
        raise TypeError(f"{name} must hold real numbers; got {tensor.dtype}")
    if tensor.ndim != 2 or 0 in tensor.shape or (num_prompts is not None and len(tensor) != num_prompts):
        rows = "N" if num_prompts is None else num_prompts
        raise ValueError(f"{name} must have shape ({rows}, D) with D >= 1; got {tuple(tensor.shape)}")
    for start in range(0, len(tensor), 1 << 16):
        bad = ~torch.isfinite(tensor[start : start + (1 << 16)])
        if bool(bad.any()):
            row, column = bad.nonzero()[0].tolist()
            value = float(tensor[start + row, column])
            raise ValueError(f"{name}[{start + row}, {column}] = {value} must be finite")
    return tensor


def _missing(value: Any) -> bool:
    return value is None or value is np.ma.masked or type(value).__name__ == "NAType"


def rates(name: str, values: Sequence[float | None] | Tensor | np.ndarray, size: int) -> Tensor:
    """Success rates (N,) float64 on the host, NaN where there is none: None, masked, or pandas' NA in a sequence."""
    if isinstance(values, Tensor):
        found = values.detach().cpu().to_dense()
    else:
        unordered = isinstance(values, str | bytes | bytearray | Mapping | Set)
        if unordered or not hasattr(values, "__len__") or getattr(values, "ndim", 1) == 0:
            raise TypeError(f"{name} must be a sequence, a tensor or an array; got {type(values).__name__}")
        if any(isinstance(value, bool | np.bool_) for value in values):
            raise TypeError(f"{name} must be numbers, or None where there is none; got True or False")
        try:
            found = torch.from_numpy(np.array([np.nan if _missing(value) else value for value in values]))
        except (TypeError, ValueError):
            raise TypeError(f"{name} must be numbers, or None where there is none; got {values!r:.60}") from None
    if found.dtype == torch.bool or found.is_complex():
        raise TypeError(f"{name} must be numbers, or None where there is none; got {found.dtype}")
    if found.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), one for each prompt; got {tuple(found.shape)}")
    found = found.double()
    outside = ((found < 0) | (found > 1)).nonzero()
    if len(outside):
        row = int(outside[0])
        raise ValueError(f"{name} must lie in [0, 1]; got {float(found[row])} at {row}")
    return found
