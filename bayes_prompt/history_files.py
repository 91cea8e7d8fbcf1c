"""The columns of a rollout history in files: Parquet, and JSON lines with an object for each observation."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

COLUMNS = ("prompt_id", "step", "successes", "trials")
CLOCKS = ("step", "visit")  # what the column of steps is called: visit in files where every prompt counts its own
ELAPSED = "elapsed"  # a column that need not be there
MOST_TIME = float(np.finfo(np.float64).max)
SUFFIXES = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
SHAPE_KEY = b"bayes_prompt.history"
Name: TypeAlias = int | str


@dataclass(frozen=True)
class Table:
    """What stands in a file of R records.

    columns: by their names in the file, in the order of `COLUMNS`, each (R,); prompts are integers or strings.
    notes: num_steps, num_prompts and ids where whoever wrote the file noted them.
    elapsed: (R,) how much time each record's step took, where the file says so.
    """

    columns: dict[str, np.ndarray]
    notes: dict[str, Any] = field(default_factory=dict)
    elapsed: np.ndarray | None = None


def format_of(path: str | os.PathLike[str]) -> str:
    """Either "parquet" or "jsonl", by the ending of the name; ValueError for another one."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"a history's name must end in {', '.join(SUFFIXES)}; got {os.fspath(path)!r}")
    return SUFFIXES[suffix]


def read(path: str | os.PathLike[str]) -> Table:
    """A file of either format, by the ending of its name; errors of `read_parquet` and `read_jsonl`."""
    return read_parquet(path) if format_of(path) == "parquet" else read_jsonl(path)


def read_parquet(path: str | os.PathLike[str]) -> Table:
    """The columns of a Parquet file; others are ignored.

    Raises ValueError where a column is missing or has gaps, or the notes cannot be read; ImportError without pyarrow.
    """
    arrow, parquet = pyarrow()
    table = parquet.read_table(path)
    found: dict[str, np.ndarray] = {}
    for name in (*_found(table.column_names), *({ELAPSED} & set(table.column_names))):
        column = table[name]
        if column.null_count:
            raise ValueError(f"column {name!r} has {column.null_count} missing values; every record needs one")
        if arrow.types.is_dictionary(column.type):  # how categories of pandas are written
            column = column.cast(column.type.value_type)
        found[name] = column.to_numpy()
    elapsed = found.pop(ELAPSED, None)
    return Table(found, _notes((table.schema.metadata or {}).get(SHAPE_KEY)), elapsed)


def write_parquet(path: str | os.PathLike[str], columns: dict[str, Any], notes: dict[str, Any]) -> None:
    """Write the columns, each (R,), and the notes."""
    arrow, parquet = pyarrow()
    table = arrow.table(columns)
    parquet.write_table(table.replace_schema_metadata({SHAPE_KEY: json.dumps(notes).encode()}), path)


def read_jsonl(path: str | os.PathLike[str]) -> Table:
    """The columns of a file with a JSON object in every line; other keys are ignored.

    A last line that was torn off, by a crash say, is told in a warning and skipped. ValueError names any other line
    that is not such an object, and what is wrong with it.
    """
    names: tuple[str, ...] | None = None
    found: list[tuple[Any, ...]] = []
    times: list[float] = []
    for number, record in _objects(path):
        names = names or _found(record)
        try:
            values = tuple(record[name] for name in names)
        except KeyError as error:
            raise ValueError(f"line {number} of the history needs a key {error.args[0]!r}; got {record}") from None
        for name, value in zip(names[1:], values[1:], strict=True):
            if type(value) is not int or not -(2**63) <= value < 2**63:
                raise ValueError(f"line {number}: {name} = {value!r} must be an integer of 64 bits")
        if not is_name(values[0]):
            raise ValueError(f"line {number}: {names[0]} = {values[0]!r} must be a string or an integer of 64 bits")
        try:
            times.append(elapsed_of(record))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        found.append(values)
    if names is None:
        return Table({name: np.zeros(0, np.int64) for name in COLUMNS})
    prompts, *counts = zip(*found, strict=True)
    columns = {names[0]: _array(prompts)}
    columns |= {name: np.array(values, np.int64) for name, values in zip(names[1:], counts, strict=True)}
    return Table(columns, elapsed=np.array(times))


def line(prompt: Name, step: int, successes: int, trials: int, *, clock: str = CLOCKS[0], elapsed: float = 1.0) -> str:
    """One observation as a line of JSON, with its end of line."""
    time = "" if elapsed == 1 else f', "{ELAPSED}": {elapsed!r}'
    counts = f'"{clock}": {step}, "successes": {successes}, "trials": {trials}'
    return f'{{"prompt_id": {json.dumps(prompt)}, {counts}{time}}}\n'


def elapsed_of(record: dict[str, Any]) -> float:
    """How much time the step of a line took, 1 where it does not say; ValueError where that is no such number."""
    value = record.get(ELAPSED, 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_TIME:
        raise ValueError(f"{ELAPSED} = {value!r} must be a number, finite and at least 0")
    return float(value)


def is_name(name: Any) -> bool:
    """Whether a prompt may be called so: a string, which UTF-8 can write, or an integer of 64 bits."""
    if isinstance(name, int) and not isinstance(name, bool):
        return -(2**63) <= name < 2**63
    if not isinstance(name, str):
        return False
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def numbered(name: str, prompts: np.ndarray, ids: tuple[Name, ...] | None) -> tuple[np.ndarray, tuple[Name, ...]]:
    """Row numbers (R,) of the prompts (R,), and the names (N,) of the rows: `ids`, or those that occur, sorted.

    Raises TypeError where they are neither integers nor strings, ValueError for an integer of more than 64 bits, or one
    that `ids` lacks; `name` is what they are called.
    """
    if prompts.dtype.kind in "OU":
        kinds = {str if isinstance(prompt, str) else type(prompt) for prompt in prompts.tolist()}
        if kinds - {str}:
            one = next(kind.__name__ for kind in kinds if kind is not str)
            raise TypeError(f"{name} must hold integers alone or strings alone; got {one}")
    elif prompts.dtype.kind not in "iu" and len(prompts):
        raise TypeError(f"{name} must hold integers or strings; got {prompts.dtype}")
    elif prompts.dtype.kind == "u" and (over := prompts > np.uint64(2**63 - 1)).any():
        raise ValueError(f"{name}[{over.argmax()}] = {prompts[over][0]} must be an integer of 64 bits, below 2**63")
    if ids is None:
        names, rows = np.unique(prompts, return_inverse=True)
        return rows.reshape(-1), tuple(names.tolist())
    place = {each: row for row, each in enumerate(ids)}
    found = [place.get(prompt, -1) for prompt in prompts.tolist()]
    if -1 in found:
        at = found.index(-1)
        raise ValueError(f"{name}[{at}] = {prompts.tolist()[at]!r} is none of the {len(ids)} ids of the pool")
    return np.array(found, np.int64), ids


def pyarrow() -> tuple[ModuleType, Any]:
    """pyarrow and its part for Parquet; an ImportError that names the extra where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("reading and writing histories needs pyarrow: pip install 'bayes-prompt[history]'") from error
    return pyarrow, pyarrow.parquet


def _found(names: Iterable[str]) -> tuple[str, ...]:
    """What the columns are called among `names`: the steps may be visits."""
    names = list(names)
    step, visit = CLOCKS
    clock = visit if visit in names and step not in names else step
    wanted = tuple(clock if name == step else name for name in COLUMNS)
    for name in wanted:
        if name not in names:
            raise ValueError(f"the history needs a column {name!r}; the file has {names}")
    return wanted


def _objects(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, object) of every line that is not blank."""
    torn: tuple[int, str] | None = None  # a line that cannot be read is a torn one if no other comes after it
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, text in enumerate(lines, start=1):
            if not text.strip():
                continue
            if torn is not None:
                raise ValueError(f"line {torn[0]} of the history must be a JSON object; got {torn[1][:100]!r}")
            try:
                record = json.loads(text)
            except (ValueError, RecursionError):
                torn = number, text
                continue
            if not isinstance(record, dict):
                raise ValueError(f"line {number} of the history must be a JSON object; got {text.strip()[:100]!r}")
            yield number, record
    if torn is not None:
        warnings.warn(f"{os.fspath(path)}: line {torn[0]}, the last one, is torn off; it is skipped", stacklevel=5)


def _array(prompts: tuple[Any, ...]) -> np.ndarray:
    """Integers as such, and whatever has strings as objects, so that numpy does not turn numbers into strings."""
    if all(type(prompt) is int for prompt in prompts):
        return np.array(prompts, np.int64)
    found = np.empty(len(prompts), object)
    found[:] = prompts
    return found


def _notes(note: bytes | None) -> dict[str, Any]:
    """What was noted beside the columns; nothing in a file of somebody else's."""
    if note is None:
        return {}
    try:
        notes = json.loads(note)
        for name in ("num_steps", "num_prompts"):
            if type(notes[name]) is not int or notes[name] < 1:
                raise ValueError(name)
        ids = notes.get("ids")
        if ids is not None and (not isinstance(ids, list) or len(ids) != notes["num_prompts"]):
            raise ValueError("ids")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"the file's metadata {SHAPE_KEY.decode()!r} must be a JSON object with the integers num_steps and "
            f"num_prompts, and ids for every prompt or none; got {note[:100]!r}"
        ) from error
    return dict(notes)
