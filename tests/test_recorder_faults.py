"""The recorder when something goes wrong: steps that are refused, files that others change, lines that are not ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import bayes_prompt as bp
from bayes_prompt import files, history_copies, history_files, history_log
from bayes_prompt.history import History

OPEN = open
LINE = '{"prompt_id": 1, "step": 0, "successes": 1, "trials": 8}'


def test_a_file_that_somebody_else_writes_to_is_left_alone(tmp_path: Path) -> None:
    """Two runs of one checkpoint go on beside one another: the second one's lines are not written over."""
    path = tmp_path / "h.jsonl"
    first = bp.Recorder(path)
    first.record(0, [1, 2], [3, 4], 8)
    second = bp.Recorder(path, resume=True)
    second.record(1, [1], [5], 8)
    before = path.read_bytes()
    for turn in (1, 2):
        with pytest.raises(OSError, match=r"bytes, not .* as when it was last seen here; somebody else changed it"):
            first.record(turn, [2], [6], 8)
    with pytest.raises(OSError, match="somebody else"):
        first.rewind(0)
    assert path.read_bytes() == before
    second.record(2, [2], [6], 8)
    assert History.read(path).num_steps == 3


def test_a_selector_whose_file_was_changed_makes_no_step(tmp_path: Path) -> None:
    selector = bp.recipes.uniform(num_prompts=6, batch_size=2)
    recorder = bp.Recorder(tmp_path / "h.jsonl", selector)
    selector.update([0, 1], successes=[1, 2], trials=8)
    os.truncate(tmp_path / "h.jsonl", 30)
    with pytest.raises(OSError, match="somebody else"):
        selector.update([2, 3], successes=[1, 2], trials=8)
    assert selector.posterior.step == 1 and (tmp_path / "h.jsonl").stat().st_size == 30
    assert recorder.last_step == 0


def test_lines_of_a_step_that_was_made_stay_whatever_comes_then(tmp_path: Path) -> None:
    selector = bp.recipes.uniform(num_prompts=6, batch_size=2)
    plain = type(selector.posterior).advance

    class Interrupted(type(selector.posterior)):  # type: ignore[misc]
        def advance(self, elapsed: float = 1.0) -> None:
            plain(self, elapsed)
            raise KeyboardInterrupt

    bp.Recorder(tmp_path / "h.jsonl", selector)
    selector.posterior.__class__ = Interrupted
    selector.posterior.observe([3], [4], 8)
    with pytest.raises(KeyboardInterrupt):
        selector.posterior.advance()
    assert selector.posterior.step == 1
    assert History.read(tmp_path / "h.jsonl").successes.tolist() == [[4]]  # type: ignore[union-attr]


def test_lines_that_end_otherwise_are_no_torn_ones(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    line = '{"prompt_id": 1, "step": 0, "successes": 1, "trials": 8}'
    for text in (f"{line}\r{line}\r", f"{line} {line}"):
        path.write_bytes(text.encode())
        with pytest.raises(ValueError, match=r"line 1 of .* is no observation"):
            bp.Recorder(path, resume=True)
        assert path.read_bytes() == text.encode()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_forked_copies_are_not_recorded(tmp_path: Path) -> None:
    selector = bp.recipes.uniform(num_prompts=6, batch_size=2)
    recorder = bp.Recorder(tmp_path / "h.jsonl", selector)
    recorder._process += 1  # as a child sees it
    selector.update([0, 1], successes=[1, 2], trials=8)
    assert selector.posterior.step == 1 and (tmp_path / "h.jsonl").stat().st_size == 0


def test_a_table_that_could_not_be_made_is_made_when_it_is_closed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = bp.Recorder(tmp_path / "h.parquet")
    recorder.record(0, [1], [3], 8)
    with monkeypatch.context() as broken:
        broken.setattr(history_copies, "write_parquet", lambda *_: (_ for _ in ()).throw(OSError("no room")))
        with pytest.raises(OSError, match="no room"):
            recorder.close()
    with pytest.raises(ValueError, match="is closed"):
        recorder.record(1, [1], [3], 8)
    recorder.close()
    recorder.close()
    assert History.read(tmp_path / "h.parquet").num_steps == 1


@pytest.mark.parametrize(
    ("prompts", "elapsed", "kind", "message"),
    [
        ([], 3.0, ValueError, "prompts must be one or more where elapsed is not 1"),
        ({1}, 1.0, TypeError, "prompts must be a sequence of rows or names; got set"),
        (["\ud800"], 1.0, ValueError, "prompts.0. = .* must be"),
    ],
)
def test_what_could_not_be_written_is_refused(
    prompts: Any, elapsed: float, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        bp.Recorder(tmp_path / "h.jsonl").record(1, prompts, [1] * len(prompts), 2, elapsed)


def recorded(path: Path, steps: int, successes: int = 1) -> bytes:
    """Steps of two prompts each; what the file then holds."""
    with bp.Recorder(path, resume=True) as recorder:
        for step in range(steps):
            recorder.record(step, [1, 2], [successes, successes], 8)
    return path.read_bytes()


class Refused(Exception):
    """What a posterior may say to a step."""


def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on there is no room on the disk; cuts and names need none."""

    class File:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.file = OPEN(*arguments, **options)

        def write(self, _: Any) -> None:
            raise OSError(28, "No space left on device")

        def __enter__(self) -> File:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    monkeypatch.setattr(history_log, "open", File, raising=False)


@pytest.mark.parametrize("step", [0, 2, 4, 5])
@pytest.mark.parametrize("empty", [False, True])
def test_a_refused_step_is_taken_back_on_a_disk_that_has_become_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, empty: bool
) -> None:
    """Whether its lines were appended or came in place of others, or others were dropped."""
    before = recorded(tmp_path / "h.jsonl", 5)
    with bp.Recorder(tmp_path / "h.jsonl", resume=True) as recorder:
        line = b"" if empty else LINE.replace('"step": 0', f'"step": {step}').encode() + b"\n"
        with monkeypatch.context() as patch, pytest.raises(Refused), recorder._log.written(step, line):
            full(patch)
            assert recorder.path.read_bytes() == b"".join(before.splitlines(True)[: 2 * step]) + line
            raise Refused
        assert recorder.path.read_bytes() == before and recorder.last_step == 4
        recorder.record(5, [3], [3], 8)
    assert recorder.path.read_bytes() == before + history_files.line(3, 5, 3, 8).encode()
    assert [file.name for file in tmp_path.iterdir()] == ["h.jsonl"]


def test_a_log_whose_way_back_fails_knows_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of steps that are gone were looked for where they had been: zeros filled the gap."""
    recorded(tmp_path / "h.jsonl", 5)
    with bp.Recorder(tmp_path / "h.jsonl", resume=True) as recorder:
        written = recorder._log.written(1, LINE.replace('"step": 0', '"step": 1').encode() + b"\n")
        with monkeypatch.context() as patch, pytest.raises(OSError, match="no way back"), written:
            patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(5, "no way back")))
            raise Refused
        assert recorder.last_step == 0
        recorder.record(4, [3], [3], 8)
        assert recorder.last_step == 4
    found = [history_files.line(row, 0, 1, 8) for row in (1, 2)] + [history_files.line(3, 4, 3, 8)]
    assert recorder.path.read_text() == "".join(found)


@pytest.mark.parametrize("renames", [True, False])
def test_what_cannot_be_put_back_is_kept_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: bool
) -> None:
    before, path = recorded(tmp_path / "h.jsonl", 5), tmp_path / "h.jsonl"

    def refuse(*_: Any) -> None:
        raise OSError(5, "no way back")

    with bp.Recorder(path, resume=True) as recorder:
        written = recorder._log.written(1, LINE.replace('"step": 0', '"step": 1').encode() + b"\n")
        with (
            monkeypatch.context() as patch,
            pytest.raises(OSError, match=r"no way back.* as it was is .*") as told,
            written,
        ):
            patch.setattr(Path, "replace", refuse)
            if not renames:
                patch.setattr(os, "rename", refuse)
            raise Refused
        (kept,) = (file for file in tmp_path.iterdir() if file != path)
        assert kept.read_bytes() == before and repr(str(kept)) in str(told.value) and told.value.errno == 5
        recorder.record(4, [3], [3], 8)
    bp.Recorder(path, resume=True)
    assert kept.exists() == renames  # else it looks like what a killed run left


@pytest.mark.parametrize("step", [0, 2, 4, 5, 9])
def test_going_back_needs_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    before = recorded(tmp_path / "h.jsonl", 5)
    recorder = bp.Recorder(tmp_path / "h.jsonl", resume=True)
    with monkeypatch.context() as patch:
        full(patch)
        patch.setattr(os, "link", lambda *_: pytest.fail("nothing is to be kept"))
        recorder.rewind(step)
    left = min(step, 5)
    assert recorder.path.read_bytes() == b"".join(before.splitlines(True)[: 2 * left])
    assert recorder.last_step == (left - 1 if left else None)
    recorder.record(step, [3], [3], 8)
    assert recorder.last_step == step


@pytest.mark.parametrize("cut", [True, False])
def test_a_failed_cut_knows_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: bool) -> None:
    before = recorded(tmp_path / "h.jsonl", 5)
    recorder, end = bp.Recorder(tmp_path / "h.jsonl", resume=True), history_log._end_with

    def fail(path: Path, start: int, lines: bytes) -> None:
        if cut:
            end(path, start, lines)
        raise OSError(5, "not synced")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="not synced"):
        patch.setattr(history_log, "_end_with", fail)
        recorder.rewind(2)
    assert recorder.last_step == (1 if cut else 4)
    recorder.record(5, [3], [3], 8)
    kept = b"".join(before.splitlines(True)[: 4 if cut else 10])
    assert recorder.path.read_bytes() == kept + history_files.line(3, 5, 3, 8).encode()


def test_a_table_of_steps_that_were_all_dropped_goes(tmp_path: Path) -> None:
    for name in ("h.parquet", "g.parquet"):
        with bp.Recorder(tmp_path / name) as recorder:
            recorder.record(0, [1], [3], 8)
    recorder = bp.Recorder(tmp_path / "h.parquet", resume=True)
    recorder.rewind(0)
    assert recorder.path.exists()
    recorder.close()
    recorder.close()
    assert not recorder.path.exists() and recorder.lines.read_bytes() == b""
    (tmp_path / "g.jsonl").write_bytes(b"")  # by somebody else: nothing was dropped here
    bp.Recorder(tmp_path / "g.parquet", resume=True).close()
    assert History.read(tmp_path / "g.parquet").num_steps == 1


def test_others_may_change_a_file_and_not_its_length(tmp_path: Path) -> None:
    """The second of two runs of one checkpoint writes as many bytes as the first, in place of the first one's."""
    path = tmp_path / "h.jsonl"
    recorded(path, 3)
    first = bp.Recorder(path, resume=True)
    before = recorded(path, 3, successes=2)
    with pytest.raises(OSError, match=r"ends otherwise than when it was last seen here; somebody else changed it"):
        first.record(3, [1], [1], 8)
    assert path.read_bytes() == before


@pytest.mark.parametrize("part", ["", LINE[:9], LINE[:40], LINE])
def test_zeros_where_the_last_line_did_not_reach_the_disk_are_dropped(tmp_path: Path, part: str) -> None:
    before = recorded(tmp_path / "h.jsonl", 2)
    (tmp_path / "h.jsonl").write_bytes(before + part.encode() + bytes(100))
    with bp.Recorder(tmp_path / "h.jsonl", resume=True) as recorder:
        assert recorder.path.read_bytes() == before and recorder.last_step == 1
    for odd in (b"[1]" + bytes(9), bytes(9) + b"\n", b" " + bytes(9)):
        (tmp_path / "h.jsonl").write_bytes(before + odd)
        with pytest.raises(ValueError, match=r"line 5 of .* is no observation"):
            bp.Recorder(tmp_path / "h.jsonl", resume=True)
        assert (tmp_path / "h.jsonl").read_bytes() == before + odd


@pytest.mark.parametrize(
    "times", [("", ', "elapsed": 2.0'), (', "elapsed": 2.0', ""), (', "elapsed": 0', ', "elapsed": 3')]
)
def test_two_times_of_one_step_are_refused(tmp_path: Path, times: tuple[str, str]) -> None:
    path = tmp_path / "h.jsonl"
    same, *two = (LINE.replace("}", f"{time}}}") for time in (times[0], *times))
    text = "\n".join([same, *two, ""])
    path.write_text(text)
    with pytest.raises(ValueError, match=r"line 3 of .*: elapsed = .* must be .*, as in an earlier line of step 0"):
        bp.Recorder(path, resume=True)
    assert path.read_text() == text
    with pytest.raises(ValueError, match=r"elapsed\[.\] = .* must be that of all records of step 0"):
        History.read(path)
    path.write_text("\n".join([same, same, two[1].replace('"step": 0', '"step": 1'), ""]))
    assert bp.Recorder(path, resume=True).last_step == 1


@pytest.mark.parametrize("name", ["a" * 249 + ".jsonl", "a" * 247 + ".parquet"])
def test_the_longest_names_are_recorded_under(tmp_path: Path, name: str) -> None:
    for successes in (1, 2):
        with bp.Recorder(tmp_path / name, resume=True) as recorder:
            for step in range(2):
                recorder.record(step, [1], [successes], 8)
    found = History.read(tmp_path / name).successes
    assert found is not None and found.tolist() == [[2], [2]]


def test_what_a_killed_run_left_goes_when_the_file_is_opened(tmp_path: Path) -> None:
    """It may be as large as the file, and the next run may have nothing to replace."""
    recorded(tmp_path / "h.jsonl", 2)
    left = files._beside(tmp_path / "h.jsonl")
    left.write_text("half of")
    bp.Recorder(tmp_path / "h.jsonl", resume=True)
    assert not left.exists()
