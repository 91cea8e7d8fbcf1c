"""Rollout histories: how many rollouts of every prompt succeeded at every step, in memory and as Parquet."""

from __future__ import annotations

import json
from dataclasses import dataclass
from os import PathLike
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

COLUMNS = ("prompt_id", "step", "successes", "trials")
_SHAPE_KEY = b"bayes_prompt.history"
# A step or prompt number that is no running number would ask for tables beyond any memory. Two of this size: 16 GiB.
_MOST_CELLS = 2**30


@dataclass(frozen=True, eq=False)
class History:
    """Counts of a pool of N prompts over T steps.

    Args:
        successes: (T, N) int64, 0 <= successes <= trials; None where they are to be sampled from a model.
        trials: (T, N) int64; 0 where the prompt was not observed in that step.

    Raises:
        TypeError: a field is not a tensor of integers.
        ValueError: a shape, or an entry out of range; the message names the entry [step, prompt].
    """

    successes: Tensor | None
    trials: Tensor

    def __post_init__(self) -> None:
        """Check every field, and keep the counts as int64."""
        trials = _integers("trials", self.trials)
        if trials.ndim != 2 or 0 in trials.shape:
            raise ValueError(f"trials must have shape (T, N) with T, N >= 1; got {tuple(trials.shape)}")
        _check("trials", trials, trials >= 0, "must be at least 0")
        object.__setattr__(self, "trials", trials)
        if self.successes is not None:
            successes = _integers("successes", self.successes)
            if successes.shape != trials.shape:
                expected, got = tuple(trials.shape), tuple(successes.shape)
                raise ValueError(f"successes must have shape {expected} like trials; got {got}")
            if successes.device != trials.device:
                raise ValueError(
                    f"successes and trials must share a device; got {successes.device} and {trials.device}"
                )
            _check("successes", successes, (successes >= 0) & (successes <= trials), "must lie in [0, trials]")
            object.__setattr__(self, "successes", successes)

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""
        return int(self.trials.shape[0])

    @property
    def num_prompts(self) -> int:
        """N, the number of prompts."""
        return int(self.trials.shape[1])

    @classmethod
    def from_records(
        cls,
        step: ArrayLike,
        prompt: ArrayLike,
        successes: ArrayLike,
        trials: ArrayLike,
        num_prompts: int,
        num_steps: int | None = None,
    ) -> History:
        """A history from one record for each observation; records of one prompt in one step are added up.

        Args:
            step: (R,) integers in [0, T).
            prompt: (R,) integers in [0, N): row numbers of the pool.
            successes: (R,) integers in [0, trials].
            trials: (R,) integers, at least 1.
            num_prompts: N.
            num_steps: T; None: up to the last step that occurs.

        Raises:
            TypeError: an argument is not an integer, or does not hold integers.
            ValueError: a shape, a record out of range (the message names the record), or more than 2**30 cells where T
                is to be found.
        """
        records = {"step": step, "prompt": prompt, "successes": successes, "trials": trials}
        return cls(*_tables(records, _size("num_prompts", num_prompts), num_steps))

    def write_parquet(self, path: str | PathLike[str]) -> None:
        """Write one row for each observation: columns prompt_id, step, successes, trials (int64), by step, then prompt.

        What was not observed is not written; T and N stand in the file's metadata.

        Raises:
            ValueError: the successes are None.
            ImportError: pyarrow is not installed.
        """
        if self.successes is None:
            raise ValueError("successes is None: a history without counts cannot be written")
        arrow, parquet = _pyarrow()
        step, prompt = self.trials.nonzero(as_tuple=True)
        values = (prompt, step, self.successes[step, prompt], self.trials[step, prompt])
        table = arrow.table({name: value.cpu().numpy() for name, value in zip(COLUMNS, values, strict=True)})
        shape = json.dumps({"num_steps": self.num_steps, "num_prompts": self.num_prompts}).encode()
        parquet.write_table(table.replace_schema_metadata({_SHAPE_KEY: shape}), path)

    @classmethod
    def read_parquet(
        cls, path: str | PathLike[str], num_prompts: int | None = None, num_steps: int | None = None
    ) -> History:
        """Read a file with the columns prompt_id, step, successes, trials; others are ignored.

        Args:
            path: the file.
            num_prompts: N; None: what `write_parquet` noted, else up to the last prompt that occurs.
            num_steps: T; None: likewise.

        Raises:
            ValueError: a column is missing, has gaps, or holds what `from_records` refuses; the message
                names the column. Or the file's own note of N and T cannot be read.
            TypeError: a column does not hold integers.
            ImportError: pyarrow is not installed.
        """
        _, parquet = _pyarrow()
        table = parquet.read_table(path)
        for name in COLUMNS:
            if name not in table.column_names:
                raise ValueError(f"the history needs a column {name!r}; the file has {table.column_names}")
            if table[name].null_count:
                raise ValueError(f"column {name!r} has {table[name].null_count} missing values; every record needs one")
        noted = _noted_sizes((table.schema.metadata or {}).get(_SHAPE_KEY))
        if num_prompts is None:
            num_prompts = noted.get("num_prompts")
        if num_steps is None:
            num_steps = noted.get("num_steps")
        records = {name: table[name].to_numpy() for name in ("step", "prompt_id", "successes", "trials")}
        return cls(*_tables(records, num_prompts, num_steps))


def _tables(records: dict[str, ArrayLike], num_prompts: int | None, num_steps: int | None) -> tuple[Tensor, Tensor]:
    """Successes and trials (T, N) of the records, whose columns (R,) come in the order step, prompt, successes, trials.

    Their names are those that errors call them by. A size of None: up to the last that occurs.
    """
    columns = {name: _column(name, values) for name, values in records.items()}
    counts = {name: len(column) for name, column in columns.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"{', '.join(columns)} must have the same number of records; got {counts}")
    (of_step, step), (of_prompt, prompt), (of_successes, successes), (of_trials, trials) = columns.items()
    guessed = num_steps is None or num_prompts is None
    num_steps = _size("num_steps", _reach(step) if num_steps is None else num_steps)
    num_prompts = _size("num_prompts", _reach(prompt) if num_prompts is None else num_prompts)
    if guessed and num_steps * num_prompts > _MOST_CELLS:
        raise ValueError(
            f"{of_step} and {of_prompt} span a table of ({num_steps}, {num_prompts}); number both from 0 and "
            f"without gaps, or give num_steps and num_prompts, for more than {_MOST_CELLS} cells"
        )
    for name, column, bound in ((of_step, step, num_steps), (of_prompt, prompt, num_prompts)):
        _check(name, column, (column >= 0) & (column < bound), f"must lie in [0, {bound})")
    _check(of_trials, trials, trials >= 1, "must be at least 1")
    _check(of_successes, successes, (successes >= 0) & (successes <= trials), f"must lie in [0, {of_trials}]")
    tables = torch.zeros(2, num_steps, num_prompts, dtype=torch.int64)
    for table, counted in zip(tables, (successes, trials), strict=True):
        table.index_put_((step, prompt), counted, accumulate=True)
    return tables[0], tables[1]


def _reach(numbers: Tensor) -> int:
    """How many there are when they are counted from 0 to the largest; negative ones are for others to refuse."""
    return max(0, int(numbers.max())) + 1 if len(numbers) else 0


def _integers(name: str, values: Tensor) -> Tensor:
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(values).__name__}")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers; got {values.dtype}")
    return values.to(torch.int64)


def _size(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer; got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")
    return int(value)


def _noted_sizes(note: bytes | None) -> dict[str, int]:
    """What `write_parquet` noted of T and N; nothing in a file of somebody else's."""
    if note is None:
        return {}
    try:
        sizes = json.loads(note)
        return {name: _size(name, sizes[name]) for name in ("num_steps", "num_prompts")}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"the file's metadata {_SHAPE_KEY.decode()!r} must be a JSON object with the integers num_steps and "
            f"num_prompts; got {note[:100]!r}"
        ) from error


def _column(name: str, values: ArrayLike) -> Tensor:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape (R,); got {array.shape}")
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name} must hold integers; got {array.dtype}")
    if array.dtype == np.uint64 and (over := array > np.iinfo(np.int64).max).any():
        raise ValueError(f"{name}[{over.argmax()}] = {array[over][0]} must be below 2**63")
    return torch.from_numpy(array.astype(np.int64))


def _check(name: str, values: Tensor, good: Tensor, accepted: str) -> None:
    if not bool(good.all()):
        where = (~good).nonzero()[0].tolist()
        raise ValueError(f"{name}{where} = {int(values[tuple(where)])} {accepted}")


def _pyarrow() -> tuple[ModuleType, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("reading and writing histories needs pyarrow: pip install 'bayes-prompt[history]'") from error
    return pyarrow, pyarrow.parquet
