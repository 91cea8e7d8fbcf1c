"""Rollout histories: how many rollouts of every prompt succeeded at every step, in memory and in files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bayes_prompt import history_files
from bayes_prompt.history_files import CLOCKS, COLUMNS, ELAPSED, Name, Table
from bayes_prompt.history_tables import check_entries, size, tables_of, times_of

__all__ = ["COLUMNS", "History"]


@dataclass(frozen=True, eq=False)
class History:
    """Counts of a pool of N prompts over T steps.

    Args:
        successes: (T, N) int64, 0 <= successes <= trials; None where they are to be sampled from a model.
        trials: (T, N) int64; 0 where the prompt was not observed in that step.
        ids: N distinct names of the prompts, all strings or all integers of 64 bits; None where they are called by
            their rows.
        clock: "step" where the T steps are those of training, which all prompts share; "visit" where every prompt
            counts its own.
        elapsed: (T,) how much time each step took, as it was told to `advance`: such as a KL divergence, finite and at
            least 0; kept as float64. None: 1 each, as the Pyro programs of declarations take it anyway.

    Raises:
        TypeError: a count is not a tensor of integers, ids are neither strings nor integers, or elapsed is no tensor of
            numbers.
        ValueError: a shape, or an entry out of range; the message names the entry [step, prompt]. Or ids that are not
            distinct, or another clock.
    """

    successes: Tensor | None
    trials: Tensor
    ids: tuple[Name, ...] | None = None
    clock: str = CLOCKS[0]
    elapsed: Tensor | None = None

    def __post_init__(self) -> None:
        """Check every field, and keep the counts as int64."""
        trials = _integers("trials", self.trials)
        if trials.ndim != 2 or 0 in trials.shape:
            raise ValueError(f"trials must have shape (T, N) with T, N >= 1; got {tuple(trials.shape)}")
        check_entries("trials", trials, trials >= 0, "must be at least 0")
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
            check_entries("successes", successes, (successes >= 0) & (successes <= trials), "must lie in [0, trials]")
            object.__setattr__(self, "successes", successes)
        if self.ids is not None:
            object.__setattr__(self, "ids", history_files.distinct(self.ids, self.num_prompts))
        if self.clock not in CLOCKS:
            raise ValueError(f"clock must be one of {', '.join(map(repr, CLOCKS))}; got {self.clock!r}")
        if self.elapsed is not None:
            object.__setattr__(self, "elapsed", _times(self.elapsed, self.num_steps))

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
        return cls(*tables_of(records, size("num_prompts", num_prompts), num_steps))

    def write_parquet(self, path: str | PathLike[str]) -> None:
        """Write one row for each observation: columns prompt_id, step, successes, trials, by step, then prompt.

        The step is called what `clock` says, and `elapsed` is a column of its own where there is one. What was not
        observed is not written, but for a row with 0 trials of a step that has nothing else to tell its time. T, N and
        the ids stand in the file's metadata. Where the prompts have no ids, prompt_id is their row.

        Raises:
            ValueError: the successes are None.
            ImportError: pyarrow is not installed.
        """
        step, prompt, successes, trials = self._records()
        notes = {"num_steps": self.num_steps, "num_prompts": self.num_prompts}
        names = prompt if self.ids is None else [self.ids[row] for row in prompt.tolist()]
        noted = {} if self.ids is None else {"ids": self.ids}
        columns = {"prompt_id": names, self.clock: step, "successes": successes, "trials": trials}
        if self.elapsed is not None:
            columns[ELAPSED] = self.elapsed.numpy()[step]
        history_files.write_parquet(path, [columns], notes | noted)

    def write_jsonl(self, path: str | PathLike[str]) -> None:
        """Write the same as JSON lines, an object for each observation.

        Such a file has no metadata. So that reading finds the same N and T, prompts that were never observed, and a
        last step without observations, have a line with 0 trials. (Ids come back in sorted order: see `read`.)

        Raises:
            ValueError: the successes are None.
        """
        with open(path, "w", encoding="utf-8") as file:
            for name, step, successes, trials in self._lines():
                elapsed = 1.0 if self.elapsed is None else float(self.elapsed[step])
                file.write(history_files.line(name, step, successes, trials, clock=self.clock, elapsed=elapsed))

    @classmethod
    def read(
        cls, path: str | PathLike[str], ids: Sequence[Name] | None = None, num_steps: int | None = None
    ) -> History:
        """Read anybody's history: .parquet, .jsonl or .ndjson, with the columns prompt_id, step, successes, trials.

        The column of steps may be called visit, which the history's `clock` then is. A column elapsed, the same
        number in all records of a step, need not be there; other columns are ignored. A prompt_id is a string or an
        integer of 64 bits, in [-2**63, 2**63), with gaps or without. The prompts that occur become the rows, in sorted
        order of their ids, and the history's `ids` say which they are: None where they are 0 to N-1. A file that notes
        its prompts (see `write_parquet`) gets those rows. Records with 0 trials say that there are such a prompt and
        step.

        Args:
            path: the file.
            ids: N names, the pool's own, in the order of its rows: prompts get these rows.
            num_steps: T; None: what the file notes, else up to the last step that occurs.

        Raises:
            ValueError: the ending of the name, a missing column, a record out of range, a line that is no JSON object,
                a prompt that `ids` lacks, or more than 2**30 cells where num_steps is not given.
            TypeError: a column does not hold integers, or prompts are integers and strings.
            ImportError: Parquet without pyarrow.
        """
        table, names = history_files.rows_of(history_files.read(path), ids)
        return cls._of(table, None, num_steps, names)

    @classmethod
    def read_parquet(
        cls, path: str | PathLike[str], num_prompts: int | None = None, num_steps: int | None = None
    ) -> History:
        """Read what `write_parquet` wrote, or a file like it; as `read`, but integers are taken for row numbers.

        Args:
            path: the file.
            num_prompts: N; None: what `write_parquet` noted, else up to the last prompt that occurs.
            num_steps: T; None: likewise.

        Raises:
            ValueError: a column is missing, has gaps, or holds what `from_records` refuses; the message
                names the column. Or the file's own note of N and T cannot be read, or says more than 2**30 cells and
                num_steps is not given.
            TypeError: a column does not hold integers.
            ImportError: pyarrow is not installed.
        """
        return cls._rows_of(history_files.read_parquet(path), num_prompts, num_steps)

    @classmethod
    def read_jsonl(
        cls, path: str | PathLike[str], num_prompts: int | None = None, num_steps: int | None = None
    ) -> History:
        """Read what `write_jsonl` wrote, or a file like it; arguments as in `read_parquet`.

        A last line that was torn off, by a crash say, is told in a warning and skipped.

        Raises:
            ValueError: a line that is no JSON object with these keys, or holds what `from_records` refuses.
        """
        return cls._rows_of(history_files.read_jsonl(path), num_prompts, num_steps)

    @classmethod
    def _rows_of(cls, table: Table, num_prompts: int | None, num_steps: int | None) -> History:
        """Integers are row numbers unless the file notes ids; strings are names."""
        (name, prompts), *_ = table.columns.items()
        noted = table.notes.get("ids")
        if noted is None and prompts.dtype.kind not in "OU":
            return cls._of(table, num_prompts, num_steps)
        given = None if noted is None else history_files.distinct(noted, len(noted))
        rows, names = history_files.numbered(name, prompts, given)
        if num_prompts is not None and num_prompts != len(names):
            raise ValueError(f"num_prompts must be {len(names)}, the number of ids in the file; got {num_prompts}")
        return cls._of(replace(table, columns={**table.columns, name: rows}), len(names), num_steps, names)

    @classmethod
    def _of(
        cls, table: Table, num_prompts: int | None, num_steps: int | None, names: tuple[Name, ...] | None = None
    ) -> History:
        """A history of the records, whose prompts are rows by now; sizes of None are those that the file notes."""
        prompt, step, successes, trials = table.columns
        records: dict[str, ArrayLike] = {name: table.columns[name] for name in (step, prompt, successes, trials)}
        noted = num_steps is None
        num_prompts = table.notes.get("num_prompts") if num_prompts is None else num_prompts
        num_steps = table.notes.get("num_steps") if num_steps is None else num_steps
        if num_steps is None and not len(table.columns[step]):
            raise ValueError("the history has no records")
        plain = names is None or names == tuple(range(len(names)))
        successes_, trials_ = tables_of(records, num_prompts, num_steps, least_trials=0, noted=noted)
        elapsed = None
        if table.elapsed is not None:
            elapsed = times_of(step, torch.from_numpy(table.columns[step].astype(np.int64)), table.elapsed, trials_)
        return cls(successes_, trials_, None if plain else names, step, elapsed)

    def _records(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Step, row, successes and trials of every observation, each (R,), by step, then row; and a row without trials
        for steps that have no other and took another time than 1.
        """
        if self.successes is None:
            raise ValueError("successes is None: a history without counts cannot be written")
        told = self.trials > 0
        if self.elapsed is not None:
            told[:, 0] |= (~told.any(1)) & (self.elapsed != 1).to(told.device)
        step, prompt = told.nonzero(as_tuple=True)
        values = (step, prompt, self.successes[step, prompt], self.trials[step, prompt])
        step_, prompt_, successes, trials = (value.cpu().numpy() for value in values)
        return step_, prompt_, successes, trials

    def _lines(self) -> Iterator[tuple[Name, int, int, int]]:
        """Prompt, step, successes and trials of every observation, and what says that there is more than these."""
        names = range(self.num_prompts) if self.ids is None else self.ids
        last = self.num_steps - 1
        for step, row, successes, trials in zip(*(each.tolist() for each in self._records()), strict=True):
            yield names[row], step, successes, trials
        blank = (self.trials == 0).all(0).nonzero()[:, 0].tolist()
        if not blank and not bool((self.trials[last] > 0).any()):
            blank = [0]
        for row in blank:
            yield names[row], last, 0, 0


def _integers(name: str, values: Tensor) -> Tensor:
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(values).__name__}")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers; got {values.dtype}")
    return values.to(torch.int64)


def _times(elapsed: Tensor, num_steps: int) -> Tensor | None:
    """Elapsed times (T,) as float64 on the CPU; None where all are 1."""
    if not isinstance(elapsed, Tensor) or elapsed.is_complex() or elapsed.dtype == torch.bool:
        got = elapsed.dtype if isinstance(elapsed, Tensor) else type(elapsed).__name__
        raise TypeError(f"elapsed must be a tensor of numbers; got {got}")
    times = elapsed.detach().to("cpu", torch.float64)
    if times.shape != (num_steps,):
        raise ValueError(f"elapsed must have shape ({num_steps},), a number for each step; got {tuple(times.shape)}")
    bad = ~(times.isfinite() & (times >= 0))
    if bool(bad.any()):
        step = int(bad.nonzero()[0])
        raise ValueError(f"elapsed[{step}] = {float(times[step])} must be finite and at least 0")
    return None if bool((times == 1).all()) else times
