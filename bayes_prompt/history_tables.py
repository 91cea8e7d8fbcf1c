"""Records of a rollout history, one for each observation, as tables of steps and prompts."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

# A step or prompt number that is no running number would ask for tables beyond any memory. Two of this size: 16 GiB.
_MOST_CELLS = 2**30


def tables_of(
    records: dict[str, ArrayLike],
    num_prompts: int | None,
    num_steps: int | None,
    least_trials: int = 1,
    noted: bool = False,
) -> tuple[Tensor, Tensor]:
    """Successes and trials (T, N) of the records, whose columns (R,) come in the order step, prompt, successes, trials.

    Their names are those that errors call them by. A size of None: up to the last that occurs. noted: nobody asked for
    these sizes, a file says so.
    """
    columns = {name: integers(name, values) for name, values in records.items()}
    counts = {name: len(column) for name, column in columns.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"{', '.join(columns)} must have the same number of records; got {counts}")
    (of_step, step), (of_prompt, prompt), (of_successes, successes), (of_trials, trials) = columns.items()
    guessed = noted or num_steps is None or num_prompts is None
    num_steps = size("num_steps", _reach(step) if num_steps is None else num_steps)
    num_prompts = size("num_prompts", _reach(prompt) if num_prompts is None else num_prompts)
    if guessed and num_steps * num_prompts > _MOST_CELLS:
        raise ValueError(
            f"{of_step} and {of_prompt} span a table of ({num_steps}, {num_prompts}); number both from 0 and "
            f"without gaps, or give num_steps and num_prompts, for more than {_MOST_CELLS} cells"
        )
    for name, column, bound in ((of_step, step, num_steps), (of_prompt, prompt, num_prompts)):
        check_entries(name, column, (column >= 0) & (column < bound), f"must lie in [0, {bound})")
    check_entries(of_trials, trials, trials >= least_trials, f"must be at least {least_trials}")
    check_entries(of_successes, successes, (successes >= 0) & (successes <= trials), f"must lie in [0, {of_trials}]")
    tables = torch.zeros(2, num_steps, num_prompts, dtype=torch.int64)
    _check_sums(of_trials, step * num_prompts + prompt, trials)
    for table, counted in zip(tables, (successes, trials), strict=True):
        table.index_put_((step, prompt), counted, accumulate=True)
    return tables[0], tables[1]


def _check_sums(name: str, cell: Tensor, counts: Tensor) -> None:
    """ValueError where the counts (R,) of records of one cell (R,) do not add up within 64 bits."""
    if not len(counts) or int(counts.max()) < 2**63 // len(counts):
        return
    cells, place = torch.unique(cell, return_inverse=True)
    high, low = torch.zeros(2, len(cells), dtype=torch.int64)
    high.index_put_((place,), counts >> 32, accumulate=True)
    low.index_put_((place,), counts & (2**32 - 1), accumulate=True)
    over = (high + (low >> 32)) >= 2**31
    if bool(over.any()):
        row = int(over[place].nonzero()[0])
        raise ValueError(
            f"{name}[{row}] = {int(counts[row])} and others of this prompt and step add up to 2**63 or more"
        )


def times_of(name: str, step: Tensor, elapsed: np.ndarray, trials: Tensor) -> Tensor:
    """Elapsed times (T,) of the steps, which records (R,) tell; 1 of those without any."""
    times, found = torch.from_numpy(reals("elapsed", elapsed)), torch.ones(len(trials), dtype=torch.float64)
    found[step] = times
    other = (found[step] != times).nonzero()[:, 0].tolist()
    if other:
        row = other[0]
        raise ValueError(
            f"elapsed[{row}] = {float(times[row])} must be that of all records of {name} {int(step[row])}; "
            f"another has {float(found[step[row]])}"
        )
    return found


def reals(name: str, values: np.ndarray) -> np.ndarray:
    """Numbers (R,) as float64; TypeError or ValueError, which calls them `name`, where one is none."""
    if values.dtype.kind not in "iuf":
        raise TypeError(f"{name} must hold numbers; got {values.dtype}")
    found = values.astype(np.float64)
    for row in np.isnan(found).nonzero()[0][:1].tolist():
        raise ValueError(f"{name}[{row}] = nan must be finite and at least 0")
    return found


def _reach(numbers: Tensor) -> int:
    """How many there are when they are counted from 0 to the largest; negative ones are for others to refuse."""
    return max(0, int(numbers.max())) + 1 if len(numbers) else 0


def size(name: str, value: int) -> int:
    """A number of steps or prompts; TypeError or ValueError unless it is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer; got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")
    return int(value)


def integers(name: str, values: ArrayLike) -> Tensor:
    """Integers (R,) as int64; TypeError or ValueError, which calls them `name`, for anything else."""
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape (R,); got {array.shape}")
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name} must hold integers; got {array.dtype}")
    if array.dtype == np.uint64 and (over := array > np.iinfo(np.int64).max).any():
        raise ValueError(f"{name}[{over.argmax()}] = {array[over][0]} must be below 2**63")
    return torch.from_numpy(array.astype(np.int64))


def check_entries(name: str, values: Tensor, good: Tensor, accepted: str) -> None:
    """ValueError naming the first entry of `values` where `good` is False."""
    if not bool(good.all()):
        where = (~good).nonzero()[0].tolist()
        raise ValueError(f"{name}{where} = {int(values[tuple(where)])} {accepted}")
