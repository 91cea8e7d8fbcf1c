"""What the commands share: converters of arguments, the files that these name, progress bars, and errors on stderr."""

from __future__ import annotations

import argparse
import json
import math
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console

    from bayes_prompt.history import History


class Tell(Protocol):
    """A function to call as work goes on."""

    def __call__(self, stage: str, done: int, total: int | None, remark: str = "") -> None:
        """The stage, how much of it is done and in all, and what is to be said beside it."""


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A converter for integers in [least, most]."""
    accepted = f"an integer >= {least}" if most is None else f"an integer in [{least}, {most}]"

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"must be {accepted}, got {text!r}")
        return value

    return convert


def positive(what: str, most: float = math.inf) -> Callable[[str], float]:
    """A converter for finite numbers in (0, most], which the error calls `what`."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (0 < value <= most and value < math.inf):
            raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}")
        return value

    return convert


def names(kind: str, known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """A converter for distinct names with commas between them."""

    def convert(text: str) -> tuple[str, ...]:
        found = tuple(name.strip() for name in text.split(","))
        if "" in found:
            raise argparse.ArgumentTypeError(f"{text!r} leaves a name empty; write names with one comma between two")
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not {kind}; choose among {', '.join(known)}")
        if len(set(found)) < len(found):
            raise argparse.ArgumentTypeError(f"{text!r} names {kind} twice")
        return found

    return convert


def folder(text: str) -> Path:
    """A converter for names of folders, which may be there or not."""
    if not text:
        raise argparse.ArgumentTypeError("must be the name of a folder, got ''")
    path = Path(os.path.expanduser(text))
    if os.path.exists(path) and not os.path.isdir(path):  # unlike Path's, these never raise
        raise argparse.ArgumentTypeError(f"{text!r} exists and is not a folder")
    return path


def add_history(parser: argparse.ArgumentParser) -> None:
    """Add the argument HISTORY, which `read_history` reads."""
    parser.add_argument(
        "history",
        metavar="HISTORY",
        help="rollout history, .parquet or .jsonl, with the columns prompt_id, step (or visit), successes, "
        "trials and, where steps took other times than 1, elapsed",
    )


def read_history(path: str) -> History:
    """The history in a file; ValueError, which names the argument, where there is none."""
    from bayes_prompt.history import History

    if not Path(path).is_file():
        raise ValueError(f"argument HISTORY: there is no file {path!r}")
    try:
        return History.read(path)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise ValueError(f"argument HISTORY: {error}") from error


def column_of(file: str, name: str, history: History, argument: str, gaps: bool = False) -> list[Any]:
    """A column of a table of prompts, .parquet or .jsonl with a column prompt_id, in the order of the history's rows.

    gaps: whether a prompt may have no entry there, for which None stands.

    Raises ValueError, which names the argument, where the file cannot be read or lacks a prompt.
    """
    from bayes_prompt.history_files import format_of, pyarrow

    wanted = ("prompt_id", name)
    try:
        if format_of(file) == "parquet":
            _, parquet = pyarrow()
            table = parquet.read_table(file)
            there = table.column_names
            columns = [table[each].to_pylist() for each in wanted if each in there]
        else:
            records = [
                json.loads(line) for line in Path(file).read_text(encoding="utf-8-sig").splitlines() if line.strip()
            ]
            gather = set.union if gaps else set.intersection
            there = sorted(gather(*(set(record) for record in records))) if records else []
            columns = [[record.get(each) for record in records] for each in wanted if each in there]
    except (OSError, ValueError, TypeError, ImportError, RecursionError) as error:
        raise ValueError(f"argument {argument}: {error}") from error
    for each in wanted:
        if each not in there:
            raise ValueError(f"argument {argument}: {file!r} needs a column {each!r}; it has {', '.join(there)}")
    try:
        values = dict(zip(*columns, strict=True))
    except TypeError as error:
        raise ValueError(f"argument {argument}: prompt_id of {file!r}: {error}") from error
    prompts = range(history.num_prompts) if history.ids is None else history.ids
    for prompt in prompts:
        if values.get(prompt) is None and not gaps:
            raise ValueError(f"argument {argument}: {file!r} has no {name} of the prompt {prompt!r}")
    return [values.get(prompt) for prompt in prompts]


def writable(file: str, argument: str, inputs: Mapping[str, str | None]) -> None:
    """ValueError, which names the argument, unless JSON can be written there; its folder is made.

    A file that is there is replaced, but not one that is read-only, of whoever runs this, and nothing that is no file.

    inputs: files that are read, by the argument that names them, which must be others, also by way of links.
    """
    from bayes_prompt.files import writable_file
    from bayes_prompt.history_files import SUFFIXES

    if not file:
        raise ValueError(f"argument {argument}: the name is empty")
    if os.path.isdir(file):
        raise ValueError(f"argument {argument}: {file!r} is a folder")
    if os.path.exists(file):
        mode = os.stat(file).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(f"argument {argument}: {file!r} is there, and is no regular file")
        if not mode & 0o222:
            raise ValueError(f"argument {argument}: {file!r} is read-only; write somewhere else")
    for name, read in inputs.items():
        if read and os.path.exists(read) and os.path.exists(file) and os.path.samefile(read, file):
            raise ValueError(f"argument {argument}: {file!r} is what {name} is read from; write somewhere else")
    if Path(file).suffix.lower() in SUFFIXES:
        raise ValueError(f"argument {argument}: {file!r} is named like a table, and JSON is written; end it in .json")
    writable_file(file, f"argument {argument}: {file!r}")


def console(width: int) -> Console:
    """Of stdout; as wide as the terminal, or `width` where it is none."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width)


def shown(path: Path, console: Console) -> str:
    """The name of a file, which may have characters that this terminal has not."""
    return str(path).encode(console.encoding, "backslashreplace").decode(console.encoding)


def failed(command: str, code: int, error: Exception) -> int:
    """Print an error on stderr; returns the code."""
    print(f"bayes-prompt {command}: error: {error}", file=sys.stderr)
    return code


@contextmanager
def bars(quiet: bool, *, on_terminals_alone: bool = False) -> Iterator[Tell]:
    """A progress bar on stderr for each stage; stages appear when they are first heard of.

    Where stderr is no terminal they are printed once, as they stand at the end, unless on_terminals_alone.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[remark]}"),
    )
    console = Console(stderr=True, quiet=quiet)
    silent = quiet or (on_terminals_alone and not console.is_terminal)
    with Progress(*columns, console=console, disable=silent) as progress:
        stages: dict[str, TaskID] = {}

        def tell(stage: str, done: int, total: int | None, remark: str = "") -> None:
            if stage not in stages:
                stages[stage] = progress.add_task(stage, total=total, remark=remark)
            progress.update(stages[stage], completed=done, total=total, remark=remark)

        yield tell
