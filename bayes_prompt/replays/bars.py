"""How far a replay is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

Tell: TypeAlias = Callable[[str, int, int], None]
Progress: TypeAlias = bool | Tell


@contextmanager
def told(progress: Progress) -> Iterator[Tell]:
    """A function of (method, visits done, visits in all) to call as work goes on.

    Args:
        progress: False says nothing; True shows a bar for each method on stderr where that is a terminal; a function is
            called with these.

    Raises:
        ImportError: bars are asked for and rich is not installed. TypeError: `progress` is something else.
    """
    if callable(progress):
        yield progress
    elif progress is False:
        yield lambda method, done, total: None
    elif progress is True:
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bars
        except ImportError as error:
            raise ImportError("progress bars need rich: pip install 'bayes-prompt[replay]'") from error
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
            tasks: dict[str, TaskID] = {}

            def tell(method: str, done: int, total: int) -> None:
                if method not in tasks:
                    tasks[method] = bars.add_task(method, total=total)
                bars.update(tasks[method], completed=done)

            yield tell
    else:
        raise TypeError(f"progress must be a bool or a function; got {type(progress).__name__}")
