"""How far a long job is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

Progress: TypeAlias = bool | Callable[[int, int], None]


@contextmanager
def told(progress: Progress, what: str) -> Iterator[Callable[[int, int], None]]:
    """A function of (done, total) to call as work goes on.

    Args:
        progress: False says nothing, True shows a bar, a function is called with these numbers.
        what: stands before the bar.

    Raises:
        ImportError: a bar is asked for and rich is not installed.
        TypeError: `progress` is something else.
    """
    if progress is True:
        try:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars
        except ImportError as error:
            raise ImportError("a progress bar needs rich: pip install 'bayes-prompt[embedding]'") from error
        with Bars(TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bars:
            task = bars.add_task(what, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)
    elif progress is False or progress is None:
        yield lambda done, total: None
    elif callable(progress):
        yield progress
    else:
        raise TypeError(f"progress must be a bool or a function of (done, total); got {type(progress).__name__}")
