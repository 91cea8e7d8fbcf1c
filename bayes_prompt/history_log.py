"""The lines of a rollout history that is being written, step by step: a file that a dying process leaves readable."""

from __future__ import annotations

import json
import logging
import os
import shutil
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from bayes_prompt.files import remove_leftovers, spare, sync, sync_folder, whole

logger = logging.getLogger(__name__)
_TAIL = 4096  # bytes at the end of the file that are known
_BEGIN = b'{"prompt_id": '  # of every line


class StepLog:
    """Lines of JSON in ascending order of their steps, of which the last ones may be replaced.

    The process may die at any instant, by kill -9 say, or find the disk full:

    - Lines are appended, and synced to the disk before whoever handed them over goes on. Death on the way leaves some
      of them, perhaps a torn last one: only a line without its end can be torn, and whoever opens the file drops it.
      They are taken back by a truncation.
    - Lines that others replace, or that are dropped, stay where they are until those are on the disk: a copy of what
      stays gets the new lines, is synced, and renamed. The file as it was is kept under another name meanwhile, and
      renamed back where a step is refused. Neither way back needs room on the disk.
    - Where somebody else has changed the length or the end of the file, nothing is written, nor taken back; and what
      is there after a write must be what was written. Two that write at the same instant are found out in this way, and
      not kept apart.

    So the file is at every instant some whole steps, and after them at most a part of one that was never reported as
    written. What a checkpoint covers was written before it, and lines of later steps go when the first of them is
    written anew: a run that goes on from its last checkpoint leaves each step there once, and none out.

    Args:
        path: made where it is missing; its folder must be there.
        step_of: gives the step of what stands in a line, or raises ValueError, TypeError or KeyError.

    Raises:
        ValueError: a line is none of ours, or steps do not ascend; the file is as it was.
        OSError: it cannot be written, or somebody else is writing to it.
    """

    def __init__(self, path: Path, step_of: Callable[[Any], int]) -> None:
        self.path = path.resolve()  # a trainer may change its folder, and a link stays one
        if not self.path.exists():
            self.path.touch()
        self._left_as = self._mark()
        self._steps, self._starts, self._end, unfinished = scan(self.path, step_of)
        sync_folder(self.path.parent)  # its name may be as new as the file
        remove_leftovers(self.path)
        self.check_owned()  # what looks torn may be a line that somebody is writing
        if unfinished or self._end < self._left_as[0]:
            self._put(self._end, b"\n" if unfinished else b"")
            self.check_owned()
        else:
            sync(self.path)

    @property
    def last_step(self) -> int | None:
        """The last step that has lines; None before the first."""
        return self._steps[-1] if self._steps else None

    @contextmanager
    def written(
        self, step: int, lines: bytes, more: bool = False, stays: Callable[[], bool] = lambda: False
    ) -> Iterator[None]:
        """The lines of a step are there, in place of what was there of it and of later ones, while the block runs.

        Where it fails, the file is as it was; and where it cannot be written, OSError. Should the disk refuse the way
        back too, what then stands in place of `step` and later ones goes with the next write.

        Where somebody else has changed it meanwhile, it stays as that one left it, and OSError says so.

        more: what was there stays. stays: whether the lines stay although the block failed, by an interrupt, say, that
        came when all was done.
        """
        self.check_owned()
        place, start = self._from(step, more)
        steps, starts, end, left_as = self._steps[place:], self._starts[place:], self._end, self._left_as
        if steps:
            logger.warning("%s: steps %d to %d are recorded anew", self.path, steps[0], steps[-1])
        with spare(self.path) if start < end else nullcontext() as old:
            put = False
            try:
                self._put(start, lines)
                put = True
                del self._steps[place:], self._starts[place:]
                if lines and step not in self._steps[-1:]:
                    self._steps.append(step)
                    self._starts.append(start)
                self.check_owned()
                yield
            except BaseException:
                if stays():
                    raise
                del self._steps[place:], self._starts[place:]
                self._end = start
                if put:
                    self.check_owned()
                try:
                    if old is None:
                        _end_with(self.path, start, b"")
                    else:
                        old.put_back()
                        sync_folder(self.path.parent)
                finally:
                    found = self._mark()
                    if found == left_as or found[0] == end < left_as[0]:  # without what a failed way back left there
                        self._steps[place:], self._starts[place:], self._end = steps, starts, end
                    if found[0] >= start:  # else somebody else cut it
                        self._left_as = found
                raise

    def cut(self, step: int) -> None:
        """Drop the lines of this step and of later ones, which needs no room. OSError where that fails."""
        self.check_owned()
        place, start = self._from(step)
        if place < len(self._steps):
            logger.warning("%s: steps %d to %d are dropped", self.path, self._steps[place], self._steps[-1])
        try:
            _end_with(self.path, start, b"")
        finally:
            found = self._mark()
            if found[0] == start:
                del self._steps[place:], self._starts[place:]
                self._end, self._left_as = start, found
        self.check_owned()

    def check_owned(self) -> None:
        """OSError where the file is not as this log left it: whoever else writes there would be written over."""
        found = self._mark()
        if found != self._left_as:
            size, expected = found[0], self._left_as[0]
            differs = "ends otherwise than" if size == expected else f"has {size} bytes, not {expected} as"
            raise OSError(
                f"{str(self.path)!r} {differs} when it was last seen here; somebody else changed it, a run that "
                "goes on beside this one, say"
            )

    def _from(self, step: int, more: bool = False) -> tuple[int, int]:
        """How many steps come before this one, and where the lines of others begin; more: it has some, which stay."""
        place = len(self._steps) if more else bisect_left(self._steps, step)
        return place, self._starts[place] if place < len(self._starts) else self._end

    def _mark(self) -> tuple[int, bytes]:
        """How long the file is, and how it ends."""
        with open(self.path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            return size, file.read()

    def _put(self, start: int, lines: bytes) -> None:
        """Make the file its first `start` bytes and these lines; failing may leave a part of them behind its end.

        What it then is remains to be checked: somebody else may have changed it while it reached the disk.
        """
        if start < self._end:
            with whole(self.path) as scratch:
                _copy(self.path, scratch, start)
                _end_with(scratch, start, lines)
            sync_folder(self.path.parent)
        else:
            _end_with(self.path, start, lines)
        self._end, last = start + len(lines), lines[-_TAIL:]
        _, tail = self._mark()
        self._left_as = self._end, tail if tail.endswith(last) else last


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
            if not whole_line and _torn(text):
                logger.warning("%s: line %d, the last one, is torn off; it is dropped", path, number)
                break
            if not text.isspace():
                try:
                    step = step_of(json.loads(text))
                except json.JSONDecodeError:
                    raise ValueError(f"{where} is no observation; got {text[:100]!r}") from None
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


def _torn(text: bytes) -> bool:
    """Whether this is the beginning of a line of ours, perhaps with zeros where the rest did not reach the disk."""
    part = text.rstrip(b"\0")
    if part.isspace() or not part.startswith(_BEGIN[: len(part)]):
        return False
    try:
        json.loads(part)
    except json.JSONDecodeError as error:
        return error.msg != "Extra data"
    except (ValueError, RecursionError):
        return False
    return part != text


def _copy(path: Path, target: Path, size: int) -> None:
    """Write the first `size` bytes of a file to another one, which may then be read and written by the same people."""
    with open(path, "rb") as source, open(target, "wb", buffering=0) as file:
        while piece := source.read(min(size, 2**20)):
            _write(file, piece)
            size -= len(piece)
    shutil.copymode(path, target)


def _end_with(path: Path, start: int, lines: bytes) -> None:
    """Put these lines behind the first `start` bytes of a file, on the disk. OSError where it is shorter than that."""
    with open(path, "r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size < start:
            raise OSError(f"{str(path)!r} has {size} bytes, not {start} or more; somebody else changed it")
        file.truncate(start)
        file.seek(start)
        _write(file, lines)
        os.fsync(file.fileno())


def _write(file: BinaryIO, lines: bytes) -> None:
    """All of the lines, to a file without a buffer, which may take a part of them at a time."""
    left = memoryview(lines)
    while left:
        left = left[file.write(left) :]
