"""Files that are whole or not there, whatever their names are, and what killed writers leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bayes_prompt import files
from bayes_prompt.files import remove_leftovers, spare, whole, writable_file

needs_locks = pytest.mark.skipif(files.fcntl is None, reason="the system has no locks")

WRITER = """
import sys
from pathlib import Path
from contextlib import nullcontext
from bayes_prompt.files import spare, whole

path = Path(sys.argv[1])
with spare(path) if sys.argv[2] == "True" else nullcontext(), whole(path) as scratch:
    scratch.write_text("half of")
    print("written", flush=True)
    input()
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Writer:
    """A process that is writing the file."""

    def __init__(self, path: Path, spare: bool) -> None:
        arguments: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(spare)], **arguments)
        assert self.process.stdout is not None and self.process.stdout.readline() == "written\n"

    def end(self, kill: bool) -> None:
        if kill:
            self.process.kill()
        self.process.communicate("\n")
        assert self.process.returncode == (-signal.SIGKILL if kill else 0)


@needs_locks
def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    path, other = tmp_path / "a.json", tmp_path / "b.json"
    path.write_text("old")
    other.write_text("of somebody else")
    killed, living, elsewhere = Writer(path, True), Writer(path, False), Writer(other, True)
    assert len(names(tmp_path)) == 2 + 2 + 1 + 2
    killed.end(kill=True)
    elsewhere.end(kill=True)
    with whole(path) as scratch:
        assert len(names(tmp_path)) == 2 + 1 + 2 + 1
        scratch.write_text("new")
    assert path.read_text() == "new"
    living.end(kill=False)
    assert path.read_text() == "half of"  # the living one could end its work
    assert len(names(tmp_path)) == 2 + 2  # those of the other file are for its next writer
    writable_file(path, "out")
    with whole(other) as scratch:
        scratch.write_text("its")
    assert names(tmp_path) == ["a.json", "b.json"]


@needs_locks
def test_what_comes_from_another_machine_stays_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    with monkeypatch.context() as there:
        there.setattr(files.platform, "node", lambda: "another")
        left = files._beside(path)
    left.write_text("half of")
    remove_leftovers(path)
    assert left.exists()
    os.utime(left, times=(time.time() - 90_000,) * 2)
    remove_leftovers(path)
    assert not left.exists()


@needs_locks
def test_what_writers_of_earlier_versions_left_goes_after_a_day(tmp_path: Path) -> None:
    """They did not lock what they wrote."""
    path, other = tmp_path / "a.json", ".writing-12-140735-b.json"
    named = [".writing-12-140735-a.json", ".writing-12-a.json"]
    for name in (*named, other, ".writing-x-3-a.json"):
        (tmp_path / name).write_text("half of")
    remove_leftovers(path)
    assert len(names(tmp_path)) == 4
    for file in tmp_path.iterdir():
        os.utime(file, times=(time.time() - 90_000,) * 2)
    remove_leftovers(path)
    assert names(tmp_path) == [other, ".writing-x-3-a.json"]


def test_names_are_hashed_once_whatever_lies_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed, sha256 = [], files.hashlib.sha256
    monkeypatch.setattr(files.hashlib, "sha256", lambda data: hashed.append(data) or sha256(data))
    counted = []
    for _ in range(2):
        remove_leftovers(tmp_path / "a.json")
        counted.append(len(hashed))
        hashed.clear()
        for row in range(50):
            (tmp_path / f"{row}.json").touch()
    assert counted[0] == counted[1]


@needs_locks
def test_a_system_that_refuses_every_lock_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def refuse(file: Any) -> bool:
        tried.append(file.name)
        if len(tried) > 1000:
            pytest.fail("without end")
        return False

    monkeypatch.setattr(files, "_lock", refuse)
    with pytest.raises(OSError, match="could not be locked"), whole(tmp_path / "a.json"):
        pytest.fail("it is not locked")
    assert len(tried) > 1 and names(tmp_path) == []


@pytest.mark.parametrize("locks", ["none", "refused"])
def test_where_nobody_knows_of_locks_all_of_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: str
) -> None:
    path = tmp_path / "a.json"
    left = files._beside(path)
    left.write_text("half of")
    if locks == "none":
        monkeypatch.setattr(files, "fcntl", None)
    else:

        def refuse(*_: Any) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(files.fcntl, "flock", refuse)
    with whole(path) as scratch:
        scratch.write_text("new")
    with spare(path) as old, whole(path) as scratch:
        scratch.write_text("newer")
        assert old.name.read_text() == "new"
    assert path.read_text() == "newer" and names(tmp_path) == sorted(["a.json", left.name])


@needs_locks
def test_a_file_that_is_taken_for_a_leftover_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock, taken = tmp_path / "a.json", files._lock, []

    def late(file: Any) -> bool | None:
        if len(taken) < 2:  # another process removes it, or is about to
            taken.append(file.name)
            with open(file.name, "r+b") as again:
                assert lock(again)
                if len(taken) == 1:
                    os.unlink(file.name)
                    again.close()
                return lock(file)
        return lock(file)

    monkeypatch.setattr(files, "_lock", late)
    with whole(path) as scratch:
        assert str(scratch) not in map(str, taken) and len(taken) == 2
        scratch.write_text("new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("length", [240, 255])
@pytest.mark.parametrize("letter", ["a", "ä"])
def test_the_longest_names_can_be_written(tmp_path: Path, length: int, letter: str) -> None:
    ending = ".parquet"
    stem = letter * ((length - len(ending)) // len(letter.encode()))
    path = tmp_path / (stem + "b" * (length - len((stem + ending).encode())) + ending)
    for text in ("first", "second"):
        writable_file(path, "out")
        with whole(path) as scratch:
            assert scratch.suffix == ending and len(scratch.name) < 80
            scratch.write_text(text)
    assert path.read_text() == "second" and names(tmp_path) == [path.name]
    dotted = tmp_path / ("." + "b" * (length - 3) + "." + "c")
    odd = tmp_path / ("a." + "b" * (length - 2))
    for path in (dotted, odd):
        with whole(path) as scratch:
            scratch.write_text(text)
        assert path.read_text() == text


def test_a_name_that_is_too_long_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long"), whole(tmp_path / ("a" * 256)):
        pytest.fail("nobody can write there")
    with pytest.raises(ValueError, match=r"out cannot be written .*too long"):
        writable_file(tmp_path / ("a" * 256), "out")
    assert names(tmp_path) == []


def test_a_spare_puts_the_file_back_without_any_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    for links in (True, False):
        path.write_text("old")
        with monkeypatch.context() as patch:
            if not links:
                patch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no links here")))
            with spare(path) as old:
                assert os.path.samefile(old.name, path) == links
                with whole(path) as scratch:
                    scratch.write_text("new")
                assert path.read_text() == "new"
                old.put_back()
        assert path.read_text() == "old" and names(tmp_path) == ["a.json"]


def test_a_block_that_fails_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole(path) as scratch:
        scratch.write_text("half of")
        raise RuntimeError
    assert path.read_text() == "old" and names(tmp_path) == ["a.json"]
