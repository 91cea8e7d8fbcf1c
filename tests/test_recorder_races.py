"""The recorder when somebody else opens, cuts or writes its file while it is at work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import bayes_prompt as bp
from bayes_prompt import history_files, history_log
from bayes_prompt.history import History

LINE = history_files.line(1, 0, 1, 8)
SYNC = os.fsync


@contextmanager
def at_the_next_sync(act: Callable[[], Any]) -> Iterator[None]:
    """Somebody else does this when the next lines have reached the disk, before whoever wrote them goes on."""
    with pytest.MonkeyPatch.context() as patch:

        def fsync(handle: int) -> None:
            SYNC(handle)
            patch.undo()
            act()

        patch.setattr(os, "fsync", fsync)
        yield


@contextmanager
def at_the_end_of_the_scan(act: Callable[[], Any]) -> Iterator[None]:
    """Somebody else does this when a log that is opened has read its file."""
    with pytest.MonkeyPatch.context() as patch:
        scan = history_log.scan

        def scanned(*arguments: Any) -> Any:
            found = scan(*arguments)
            act()
            return found

        patch.setattr(history_log, "scan", scanned)
        yield


def append(path: Path, text: str) -> None:
    with open(path, "a") as file:
        file.write(text)


@pytest.mark.parametrize("torn", ["", LINE[:30], LINE.rstrip()])
def test_opening_cuts_nothing_that_is_being_written(tmp_path: Path, torn: str) -> None:
    """What it read may be the beginning of a line that a living run is just writing."""
    path = tmp_path / "h.jsonl"
    path.write_text(LINE + torn)
    rest = (LINE if torn else history_files.line(1, 1, 1, 8)).removeprefix(torn)
    with at_the_end_of_the_scan(lambda: append(path, rest)), pytest.raises(OSError, match="somebody else changed it"):
        bp.Recorder(path, resume=True)
    assert path.read_text() == LINE + torn + rest
    assert bp.Recorder(path, resume=True).last_step == (0 if torn else 1)


@pytest.mark.parametrize("text", ["", LINE, LINE + "\n", LINE * 100])
def test_opening_a_whole_file_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "h.jsonl").write_text(text)
    monkeypatch.setattr(history_log, "_end_with", lambda *_: pytest.fail("it was written to"))
    bp.Recorder(tmp_path / "h.jsonl", resume=True)
    assert (tmp_path / "h.jsonl").read_text() == text


@pytest.mark.parametrize("step", [3, 1])
@pytest.mark.parametrize("harm", ["cut", "emptied", "longer", "otherwise"])
def test_a_change_right_after_a_write_is_not_taken_for_ones_own(tmp_path: Path, step: int, harm: str) -> None:
    """A step that is appended, and one that replaces others."""
    path = tmp_path / "h.jsonl"
    recorder = bp.Recorder(path)
    for each in range(3):
        recorder.record(each, [1], [1], 8)
    recorder.close()
    recorder = bp.Recorder(path, resume=True)
    before = path.read_bytes()[: len(LINE) * step]
    made = before + history_files.line(2, step, 1, 8).encode()
    changed = {"cut": before, "emptied": b"", "longer": made + LINE[:30].encode(), "otherwise": made[:-9] + b"\n" * 9}
    if step < 3:  # as after a restart; the lines are synced before they get the name of the file
        replace = Path.replace

        def renamed(self: Path, target: Path) -> Path:
            found = replace(self, target)
            if target == path:
                path.write_bytes(changed[harm])
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "replace", renamed)
            with pytest.raises(OSError, match="somebody else changed it"):
                recorder.record(step, [2], [1], 8)
    else:
        with (
            at_the_next_sync(lambda: path.write_bytes(changed[harm])),
            pytest.raises(OSError, match="somebody else changed it"),
        ):
            recorder.record(step, [2], [1], 8)
    assert path.read_bytes() == changed[harm] and recorder.last_step == step - 1
    for again in (step, 4):
        with pytest.raises(OSError, match="somebody else changed it"):
            recorder.record(again, [3], [1], 8)
    assert path.read_bytes() == changed[harm]


class Refused(Exception):
    """What a posterior may say to a step."""


@pytest.mark.parametrize("step", [3, 1])
def test_a_refused_step_is_not_taken_back_from_under_somebody_else(tmp_path: Path, step: int) -> None:
    path = tmp_path / "h.jsonl"
    recorder = bp.Recorder(path)
    for each in range(3):
        recorder.record(each, [1], [1], 8)
    line = history_files.line(2, step, 1, 8)
    with (
        pytest.raises(OSError, match="somebody else changed it") as told,
        recorder._log.written(step, line.encode()),
    ):
        append(path, history_files.line(3, 7, 1, 8))
        raise Refused
    assert isinstance(told.value.__context__, Refused)
    assert path.read_text().endswith(line + history_files.line(3, 7, 1, 8))
    with pytest.raises(OSError, match="somebody else changed it"):
        recorder.record(3, [1], [1], 8)


def test_lines_are_never_put_behind_a_gap(tmp_path: Path) -> None:
    """Whoever cuts the file just before the write finds no zeros there."""
    path = tmp_path / "h.jsonl"
    recorder = bp.Recorder(path)
    recorder.record(0, [1], [1], 8)
    log, put = recorder._log, recorder._log._put

    def late(start: int, lines: bytes) -> None:
        os.truncate(path, 9)
        put(start, lines)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="somebody else"):
        patch.setattr(log, "_put", late)
        recorder.record(1, [1], [1], 8)
    with pytest.raises(OSError, match="somebody else changed it"):
        recorder.record(1, [1], [1], 8)
    assert path.read_bytes() == LINE[:9].encode()


@pytest.mark.parametrize("name", ["h.parquet", "h.jsonl"])
def test_no_table_is_made_of_lines_that_somebody_else_changed(tmp_path: Path, name: str) -> None:
    with bp.Recorder(tmp_path / name) as recorder:
        for step in range(5):
            recorder.record(step, [1], [1], 8)
    table = (tmp_path / name).read_bytes()
    recorder = bp.Recorder(tmp_path / name, resume=True)
    recorder.record(5, [1], [1], 8)
    os.truncate(recorder.lines, len(LINE) * 2)
    if name == "h.jsonl":
        return recorder.close()  # there is nothing to make
    with pytest.raises(OSError, match="somebody else changed it"):
        recorder.close()
    assert (tmp_path / name).read_bytes() == table
    with pytest.raises(ValueError, match="is closed"):
        recorder.record(6, [1], [1], 8)
    append(recorder.lines, "".join(history_files.line(1, step, 1, 8) for step in range(2, 6)))
    recorder.close()
    assert History.read(tmp_path / name).num_steps == 6


def test_a_change_right_after_a_cut_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    recorder = bp.Recorder(path)
    for step in range(3):
        recorder.record(step, [1], [1], 8)
    with at_the_next_sync(lambda: append(path, LINE[:20])), pytest.raises(OSError, match="somebody else changed it"):
        recorder.rewind(1)
    with pytest.raises(OSError, match="somebody else changed it"):
        recorder.record(4, [1], [1], 8)
    assert path.stat().st_size == len(LINE) + 20
