"""Rollout histories copied from lines to Parquet and back by their steps, without tables of all steps and prompts."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from bayes_prompt import history_files, history_tables
from bayes_prompt.history_files import COLUMNS, ELAPSED, Name

PIECE = 2**20  # rows of a Parquet file that are written together: as many as pyarrow takes on its own

_Observation: TypeAlias = tuple[int, Name, int, int, float]  # step, prompt, successes, trials, elapsed
_Row: TypeAlias = tuple[int, int, int, int, float]  # the same of a row of the pool, its observations added up


def write_parquet(lines: Path, path: Path, ids: Sequence[Name] | None = None, num_prompts: int | None = None) -> None:
    """Make Parquet of a recorder's lines: what `History.write_parquet` makes of the history that they hold.

    They are read twice. In memory are the names of the prompts, the counts of one step, and a piece of the columns.

    Args:
        lines: the file, whose steps ascend.
        path: of the Parquet file.
        ids: N names, the pool's own; None: prompts are called by their rows, or by the names that occur.
        num_prompts: N, where they are called by their rows.

    Raises:
        ValueError: no records, one that is out of range, steps that do not ascend, two times of one step, a prompt that
            is not of the pool.
        TypeError: prompts are integers and strings. ImportError: pyarrow is not installed. OSError: of the files.
    """
    found: set[Name] = set()
    count, last, timed = 0, 0, False
    for step, prompt, _, _, elapsed in _observations(lines):
        count, last, timed = count + 1, max(last, step), timed or elapsed != 1
        if ids is None and num_prompts is None:
            found.add(prompt)
    if not count:
        raise ValueError("the history has no records")
    if ids is None:
        ids = _sorted(found) if num_prompts is None else range(num_prompts)
    if all(row == name for row, name in enumerate(ids)):
        ids = range(len(ids))
    notes: dict[str, Any] = {"num_steps": last + 1, "num_prompts": len(ids)}
    if not isinstance(ids, range):
        notes["ids"] = list(ids)
    rows = _rows(_placed(islice(_observations(lines), count), ids, last))
    history_files.write_parquet(path, _pieces(rows, ids, timed), notes)


def write_jsonl(parquet: Path, path: Path) -> None:
    """Make lines of a Parquet file: what `History.write_jsonl` makes of the history in it, but steps are never visits.

    In memory are the records of the file. Raises what `History.read` does of what stands in it.
    """
    table, names = history_files.rows_of(history_files.read_parquet(parquet))
    of_prompt, of_step, *_ = table.columns
    columns = {name: history_tables.integers(name, values) for name, values in table.columns.items()}
    prompt, step, successes, trials = (column.numpy() for column in columns.values())
    if "num_steps" not in table.notes and not len(step):
        raise ValueError("the history has no records")
    num_steps, num_prompts = table.notes.get("num_steps") or int(step.max()) + 1, int(table.notes["num_prompts"])
    for name, bound in ((of_step, num_steps), (of_prompt, num_prompts)):
        inside = (columns[name] >= 0) & (columns[name] < bound)
        history_tables.check_entries(name, columns[name], inside, f"must lie in [0, {bound})")
    elapsed = np.ones(len(step)) if table.elapsed is None else history_tables.reals(ELAPSED, table.elapsed)
    order = np.lexsort((prompt, step))
    ordered = (each[order] for each in (step, prompt, successes, trials, elapsed))

    ids = range(num_prompts) if names is None else names
    blank, ends, end = np.ones(num_prompts, bool), False, num_steps - 1
    at, time = -1, 1.0
    with open(path, "w", encoding="utf-8") as file:
        for at, row, right, of, time in _rows(_listed(ordered)):
            file.write(history_files.line(ids[row], at, right, of, elapsed=time))
            blank[row] &= not of
            ends |= at == end and of > 0
        for row in blank.nonzero()[0].tolist() or [0] * (not ends):
            file.write(history_files.line(ids[row], end, 0, 0, elapsed=time if at == end else 1.0))


def _observations(lines: Path) -> Iterator[_Observation]:
    for columns, (prompt, step, successes, trials), elapsed in history_files.records(lines):
        if columns != COLUMNS:
            raise ValueError(f"the history needs a column {COLUMNS[1]!r}; the file has {columns}")
        yield step, prompt, successes, trials, elapsed


def _placed(observations: Iterable[_Observation], ids: Sequence[Name], last: int) -> Iterator[_Row]:
    """The same with rows for the prompts."""
    rows = {} if isinstance(ids, range) else {name: row for row, name in enumerate(ids)}
    for step, prompt, successes, trials, elapsed in observations:
        row = prompt if isinstance(ids, range) and prompt in ids else rows.get(prompt)
        if not isinstance(row, int):
            raise ValueError(f"prompt_id = {prompt!r} of step {step} is none of the {len(ids)} of the pool")
        if not 0 <= step <= last:
            raise ValueError(f"step = {step} must lie in [0, {last}]")
        yield step, row, successes, trials, elapsed


def _rows(observations: Iterable[_Row]) -> Iterator[_Row]:
    """What `History.write_parquet` writes of observations by steps that ascend: one row of each prompt, in order."""
    before = -1
    for step, group in groupby(observations, key=itemgetter(0)):
        if step <= before:
            raise ValueError(f"step = {step} comes after {before}; steps must ascend")
        first = next(group)
        before, time = step, first[-1]
        sums: dict[int, tuple[int, int]] = {}
        for _, row, successes, trials, elapsed in chain([first], group):
            if not 0 <= successes <= trials:
                raise ValueError(f"successes = {successes} of step {step} must lie in [0, trials] = [0, {trials}]")
            if elapsed != time:
                raise ValueError(f"elapsed = {elapsed} must be that of all records of step {step}; another has {time}")
            right, of = sums.get(row, (0, 0))
            sums[row] = right + successes, of + trials
            if of + trials >= 2**63:
                raise ValueError(f"trials = {trials} and others of this prompt and step add up to 2**63 or more")
        told = [(row, *counts) for row, counts in sorted(sums.items()) if counts[1]]
        if not told and time != 1:
            told = [(0, 0, 0)]
        for row, successes, trials in told:
            yield step, row, successes, trials, time


def _pieces(rows: Iterable[_Row], ids: Sequence[Name], timed: bool) -> Iterator[dict[str, Any]]:
    """Columns of a Parquet file, of so many rows at a time; at least one."""
    rows, first = iter(rows), True
    while True:
        columns: list[array[Any]] = [array(kind) for kind in "qqqqd"]
        for row in islice(rows, PIECE):
            for column, value in zip(columns, row, strict=True):
                column.append(value)
        if not columns[0] and not first:
            return
        first = False
        step, prompt, successes, trials, elapsed = map(np.array, columns)
        prompts = prompt if isinstance(ids, range) else [ids[each] for each in prompt.tolist()]
        piece: dict[str, Any] = dict(zip(COLUMNS, (prompts, step, successes, trials), strict=True))
        yield piece | ({ELAPSED: elapsed} if timed else {})


def _listed(columns: Iterable[np.ndarray]) -> Iterator[_Row]:
    """Columns (R,) as Python's own numbers, some at a time."""
    kept = list(columns)
    for start in range(0, len(kept[0]), 2**16):
        yield from zip(*(column[start : start + 2**16].tolist() for column in kept), strict=True)


def _sorted(names: set[Name]) -> tuple[Name, ...]:
    if len({isinstance(name, str) for name in names}) > 1:
        raise TypeError("prompt_id must hold integers alone or strings alone; got both")
    return tuple(sorted(names))
