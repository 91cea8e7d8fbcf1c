"""The lines of a rollout history that is being written, step by step: a file that a dying process leaves readable."""

from __future__ import annotations

import json
import logging
import os
import shutil
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bayes_prompt.files import sync_folder, whole

logger = logging.getLogger(__name__)
_BEGIN = b'{"prompt_id": '  # of every line


class StepLog:
    """Lines of JSON in ascending order of their steps, of which the last ones may be replaced.

    The process may die at any instant, by kill -9 say, or find the disk full:

    - Lines are appended, and synced to the disk before whoever handed them over goes on. Death on the way leaves some
      of them, perhaps a torn last one: only a line without its end can be torn, and whoever opens the file drops it.
    - Lines that others replace stay where they are until those are on the disk: a copy gets the new lines in their
      place, is synced, and renamed.
    - A cut is one truncation, at the beginning of a line.
    - Where somebody else has made the file longer or shorter, nothing is written.

    So the file is at every instant some whole steps, and after them at most a part of one that was never reported as
    written. What a checkpoint covers was written before it, and lines of later steps go when the first of them is
    written anew: a run that goes on from its last checkpoint leaves each step there once, and none out.

    Args:
        path: made where it is missing; its folder must be there.
        step_of: gives the step of what stands in a line, or raises ValueError, TypeError or KeyError.

    Raises:
        ValueError: a line is none of ours, or steps do not ascend; the file is as it was.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, step_of: Callable[[Any], int]) -> None:
        self.path = path.resolve()  # a trainer may change its folder, and a link stays one
        self._steps: list[int] = []
        self._starts: list[int] = []  # where each of the steps begins
        self._end, unfinished = 0, False
        if self.path.exists():
            self._steps, self._starts, self._end, unfinished = scan(self.path, step_of)
        else:
            self.path.touch()
            sync_folder(self.path.parent)
        self._size = os.stat(self.path).st_size
        self._put(self._end, b"\n" if unfinished else b"")

    @property
    def last_step(self) -> int | None:
        """The last step that has lines; None before the first."""
        return self._steps[-1] if self._steps else None

    @contextmanager
    def written(self, step: int, lines: bytes, more: bool = False) -> Iterator[None]:
        """The lines of a step are there, in place of what was there of it and of later ones, while the block runs.

        Where it fails, the file is as it was; and where it cannot be written, OSError. more: what was there stays.
        """
        self._check_owned()
        place = len(self._steps) if more else bisect_left(self._steps, step)
        start = self._starts[place] if place < len(self._starts) else self._end
        steps, starts, later = self._steps[place:], self._starts[place:], self._read(start, self._end)
        if steps:
            logger.warning("%s: steps %d to %d are recorded anew", self.path, steps[0], steps[-1])
        try:
            self._put(start, lines)
            del self._steps[place:], self._starts[place:]
            if lines and step not in self._steps[-1:]:
                self._steps.append(step)
                self._starts.append(start)
            yield
        except BaseException:
            self._steps[place:], self._starts[place:] = steps, starts
            try:
                if self._read(start) != later:
                    self._put(start, later)
            finally:
                self._size = os.stat(self.path).st_size
            raise

    def _check_owned(self) -> None:
        """OSError where the file is not as this log left it: whoever else writes there would be written over."""
        size = os.stat(self.path).st_size
        if size != self._size:
            raise OSError(
                f"{str(self.path)!r} has {size} bytes, not {self._size} as when it was last written here; somebody "
                "else changed it, a run that goes on beside this one, say"
            )

    def _read(self, start: int, end: int | None = None) -> bytes:
        """What stands there; end: None for that of the file."""
        if start == end:
            return b""
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(-1 if end is None else end - start)

    def _put(self, start: int, lines: bytes) -> None:
        """Make the file its first `start` bytes and these lines; failing may leave a part of them there."""
        if lines and start < self._end:
            with whole(self.path) as scratch:
                shutil.copy(self.path, scratch)
                _end_with(scratch, start, lines)
            sync_folder(self.path.parent)
        else:
            _end_with(self.path, start, lines)
        self._end = self._size = start + len(lines)


def scan(path: Path, step_of: Callable[[Any], int], told: Path | None = None) -> tuple[list[int], list[int], int, bool]:
    """The steps, where each begins, where the last whole line ends, and whether it lacks its end of line.

    Raises ValueError, which names the line, where the file was not written by a log, whose steps ascend; or `step_of`
    refuses one. Only a last line without its end may be torn. told: what errors call the file.
    """
    steps: list[int] = []
    starts: list[int] = []
    end, unfinished = 0, False
    with open(path, "rb") as lines:
        for number, text in enumerate(lines, start=1):
            where, whole_line = f"line {number} of {str(told or path)!r}", text.endswith(b"\n")
            if not text.isspace():
                try:
                    step = step_of(json.loads(text))
                except json.JSONDecodeError as error:
                    torn = not whole_line and text.startswith(_BEGIN[: len(text)]) and error.msg != "Extra data"
                    if not torn:
                        raise ValueError(f"{where} is no observation; got {text[:100]!r}") from None
                    logger.warning("%s: line %d, the last one, is torn off; it is dropped", path, number)
                    break
                except (ValueError, TypeError, KeyError, RecursionError) as error:
                    raise ValueError(
                        f"{where} is no observation of these prompts; got {text[:100]!r}: {error}"
                    ) from None
                last = steps[-1] if steps else -1
                if step < last:
                    raise ValueError(f"{where}: step = {step!r} must be an integer of at least {last}")
                if step > last:
                    steps.append(step)
                    starts.append(end)
            end, unfinished = end + len(text), not whole_line
    return steps, starts, end, unfinished


def sync(path: Path) -> None:
    """What was written to a file reaches the disk."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _end_with(path: Path, start: int, lines: bytes) -> None:
    """Put these lines behind the first `start` bytes of a file, on the disk."""
    with open(path, "r+b", buffering=0) as file:
        file.truncate(start)
        file.seek(start)
        left = memoryview(lines)
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())
