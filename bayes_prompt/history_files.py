"""The columns of a rollout history in files: Parquet, and JSON lines with an object for each observation."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

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


def write_parquet(path: str | os.PathLike[str], pieces: Iterable[dict[str, Any]], notes: dict[str, Any]) -> None:
    """Write the columns, each (R,), which come in one or more pieces, and the notes."""
    arrow, parquet = pyarrow()
    tables = (arrow.table(columns) for columns in pieces)
    first = next(tables)
    with parquet.ParquetWriter(path, first.schema.with_metadata({SHAPE_KEY: json.dumps(notes).encode()})) as writer:
        for table in chain([first], tables):
            writer.write_table(table)


def read_jsonl(path: str | os.PathLike[str]) -> Table:
    """The columns of a file with a JSON object in every line; other keys are ignored.

    A last line that was torn off, by a crash say, is told in a warning and skipped. ValueError names any other line
    that is not such an object, and what is wrong with it.
    """
    names: tuple[str, ...] = COLUMNS
    found: list[tuple[Name, int, int, int]] = []
    times: list[float] = []
    for record in records(path):
        names = record.columns
        found.append(record.values)
        times.append(record.elapsed)
    if not found:
        return Table({name: np.zeros(0, np.int64) for name in names})
    prompts, *counts = zip(*found, strict=True)
    columns = {names[0]: _array(prompts)}
    columns |= {name: np.array(values, np.int64) for name, values in zip(names[1:], counts, strict=True)}
    return Table(columns, elapsed=np.array(times))


class Record(NamedTuple):
    """What stands in a line, in the order of the columns, whose names are those of the first line."""

    columns: tuple[str, ...]
    values: tuple[Name, int, int, int]
    elapsed: float


def records(path: str | os.PathLike[str]) -> Iterator[Record]:
    """One line after the other; as in `read_jsonl`."""
    names: tuple[str, ...] | None = None
    for number, record in _objects(path):
        names = names or _found(record)
        try:
            prompt, *counts = (record[name] for name in names)
        except KeyError as error:
            raise ValueError(f"line {number} of the history needs a key {error.args[0]!r}; got {record}") from None
        for name, value in zip(names[1:], counts, strict=True):
            if type(value) is not int or not -(2**63) <= value < 2**63:
                raise ValueError(f"line {number}: {name} = {value!r} must be an integer of 64 bits")
        if not is_name(prompt):
            raise ValueError(f"line {number}: {names[0]} = {prompt!r} must be a string or an integer of 64 bits")
        try:
            elapsed = elapsed_of(record)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        yield Record(names, (prompt, *counts), elapsed)


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


def distinct(ids: Sequence[Name], num_prompts: int) -> tuple[Name, ...]:
    """Names as Python's own strings or integers; TypeError or ValueError names the first that is bad."""
    if isinstance(ids, str | bytes) or not hasattr(ids, "__len__") or not hasattr(ids, "__getitem__"):
        raise TypeError(f"ids must be a sequence with one name for each prompt; got a {type(ids).__name__}")
    listed: list[Any] = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    names = [int(each) if isinstance(each, np.integer) else each for each in listed]
    if len(names) != num_prompts:
        raise ValueError(f"ids must have {num_prompts} entries, one for each prompt; got {len(names)}")
    kind = str if names and isinstance(names[0], str) else int
    rows: dict[Name, int] = {}
    for row, name in enumerate(names):
        if not isinstance(name, kind) or isinstance(name, bool):
            raise TypeError(f"ids[{row}] = {name!r} must be a string or an integer, and all of them alike")
        if not is_name(name):
            raise ValueError(f"ids[{row}] = {name!r} must be an integer of 64 bits, in [-2**63, 2**63)")
        if (earlier := rows.setdefault(name, row)) != row:
            raise ValueError(f"ids[{row}] = {name!r} is also ids[{earlier}]; ids must be distinct")
    return tuple(names)


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


def rows_of(table: Table, ids: Sequence[Name] | None = None) -> tuple[Table, tuple[Name, ...] | None]:
    """The records with rows of the pool for its prompts, which are noted to be so many, and the names of the rows.

    Those are `ids`, else those that the file notes, else those that occur, sorted; None where the file notes no more
    than how many there are: its prompts are rows. Errors of `distinct` and `numbered`.
    """
    given = table.notes.get("ids") if ids is None else ids
    if given is None and "num_prompts" in table.notes:
        return table, None
    (name, prompts), *_ = table.columns.items()
    rows, names = numbered(name, prompts, None if given is None else distinct(given, len(given)))
    columns, notes = table.columns | {name: rows}, table.notes | {"num_prompts": len(names)}
    return replace(table, columns=columns, notes=notes), names


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
        warnings.warn(f"{os.fspath(path)}: line {torn[0]}, the last one, is torn off; it is skipped", stacklevel=6)


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
