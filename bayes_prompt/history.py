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
            ValueError: a shape, or a record out of range; the message names the record.
        """
        values = {"step": step, "prompt": prompt, "successes": successes, "trials": trials}
        columns = {name: _column(name, value) for name, value in values.items()}
        sizes = {name: len(column) for name, column in columns.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"step, prompt, successes and trials must have the same number of records; got {sizes}")
        if num_steps is None:
            num_steps = int(columns["step"].max()) + 1 if sizes["step"] else 0
        num_prompts, num_steps = _size("num_prompts", num_prompts), _size("num_steps", num_steps)
        for name, bound in (("step", num_steps), ("prompt", num_prompts)):
            _check(name, columns[name], (columns[name] >= 0) & (columns[name] < bound), f"must lie in [0, {bound})")
        _check("trials", columns["trials"], columns["trials"] >= 1, "must be at least 1")
        within = (columns["successes"] >= 0) & (columns["successes"] <= columns["trials"])
        _check("successes", columns["successes"], within, "must lie in [0, trials]")
        cell = (columns["step"], columns["prompt"])
        tables = [torch.zeros(num_steps, num_prompts, dtype=torch.int64) for _ in range(2)]
        for table, name in zip(tables, ("successes", "trials"), strict=True):
            table.index_put_(cell, columns[name], accumulate=True)
        return cls(*tables)

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
            ValueError: a column is missing, has gaps, or holds what `from_records` refuses.
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
        noted = json.loads((table.schema.metadata or {}).get(_SHAPE_KEY, b"{}"))
        prompt, step, successes, trials = (table[name].to_numpy() for name in COLUMNS)
        if num_prompts is None:
            num_prompts = noted.get("num_prompts", int(prompt.max()) + 1 if len(prompt) else 0)
        if num_steps is None:
            num_steps = noted.get("num_steps")
        return cls.from_records(step, prompt, successes, trials, num_prompts, num_steps)


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


def _column(name: str, values: ArrayLike) -> Tensor:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape (R,); got {array.shape}")
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name} must hold integers; got {array.dtype}")
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
