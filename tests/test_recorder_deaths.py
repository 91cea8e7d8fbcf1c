"""The recorder when the process dies, or the disk is full, at any instant: every byte written is one."""

from __future__ import annotations

import builtins
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import bayes_prompt as bp
from bayes_prompt import history_files, history_log
from bayes_prompt.history import History
from bayes_prompt.recorder import Recorder

N, B = 12, 2


class Death(BaseException):
    """What no handler of errors catches, after which nothing more is written."""


class Disk:
    """Lets a process change files so many times; a byte written is one, and so is a cut, a sync or a new name.

    deadly: afterwards nothing changes any more, as in a process that was killed. Else the disk is full: bytes alone
    count, and cuts and names go on.
    """

    def __init__(self, left: int, deadly: bool) -> None:
        self.left, self.deadly = left, deadly

    def spend(self, wanted: int = 1) -> int:
        done = min(wanted, self.left)
        self.left -= done
        return done

    def fail(self) -> BaseException:
        self.left = 0
        return Death() if self.deadly else OSError(28, "No space left on device")

    def once(self, function: Any) -> Any:
        def changed(*arguments: Any, **options: Any) -> Any:
            if self.deadly and not self.spend():
                raise self.fail()
            return function(*arguments, **options)

        return changed

    def write_parquet(self, path: Path, pieces: Any, notes: Any) -> None:
        WRITE_PARQUET(path, pieces, notes)
        size = path.stat().st_size
        if (done := self.spend(size)) < size:
            os.truncate(path, done)
            raise self.fail()

    def open(self, *arguments: Any, **options: Any) -> Any:
        return Handle(builtins.open(*arguments, **options), self)

    @contextmanager
    def used(self) -> Iterator[Disk]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(history_log, "open", self.open, raising=False)
            patch.setattr(os, "link", self.once(os.link))
            patch.setattr(history_files, "write_parquet", self.write_parquet)
            patch.setattr(os, "fsync", self.once(os.fsync))
            for name in ("replace", "unlink", "touch"):
                patch.setattr(Path, name, self.once(getattr(Path, name)))
            yield self


class Handle:
    """A file on such a disk."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self.file, self.disk = file, disk

    def write(self, data: memoryview) -> int:
        """As much as there is room for, as the system does: the next call then fails."""
        if not (done := self.disk.spend(len(data))):
            raise self.disk.fail()
        return int(self.file.write(data[:done]))

    def truncate(self, size: int) -> int:
        return int(self.disk.once(self.file.truncate)(size))

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


WRITE_PARQUET = history_files.write_parquet
ENDLESS = 10**9


def counts(step: int, run: int) -> tuple[list[int], list[int]]:
    """Prompts and successes of a step, other ones in each run."""
    prompts = [(step + place) % N for place in range(B)]
    return prompts, [(7 * step + 3 * prompt + run) % 5 for prompt in prompts]


def recorded(recorder: Recorder, steps: range, run: int, checkpoint: list[int]) -> None:
    """Steps of a training run; its checkpoint, which covers the steps below it, is written after each."""
    for step in steps:
        recorder.record(step, *counts(step, run), 4)
        checkpoint[0] = step + 1


def lines(*runs: tuple[range, int]) -> bytes:
    """What a file holds in which these steps were recorded by these runs."""
    return "".join(
        history_files.line(prompt, step, right, 4)
        for steps, run in runs
        for step in steps
        for prompt, right in zip(*counts(step, run), strict=True)
    ).encode()


def read(path: Path) -> History:
    """As anybody reads it, who is told of a line that is torn off."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is torn off")
        return History.read(path)


def instants(act: Any) -> int:
    """How many there are in what `act` does."""
    with Disk(ENDLESS, deadly=True).used() as disk:
        act()
    return ENDLESS - disk.left


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of runs die here, and no machine."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


OLD = (range(3), 0), (range(3, 5), 0)  # an earlier run made steps 0 to 4; its checkpoint covers 0 to 2


def earlier(folder: Path, name: str) -> None:
    with Recorder(folder / name) as recorder:
        recorded(recorder, range(5), 0, [0])
    assert recorder.lines.read_bytes() == lines(*OLD)


def go_on(path: Path, checkpoint: list[int]) -> None:
    """The next run, from opening its file to closing it."""
    recorder = Recorder(path, resume=True)
    recorded(recorder, range(checkpoint[0], 5), 1, checkpoint)
    recorder.close()


@pytest.mark.parametrize(("name", "alone"), [("h.jsonl", False), ("h.parquet", False), ("h.parquet", True)])
def test_whenever_the_process_dies_the_run_goes_on_from_its_checkpoint(tmp_path: Path, name: str, alone: bool) -> None:
    """The next run dies, at each of its instants, and another one ends its work. alone: there is Parquet alone."""
    earlier(tmp_path / "old", name)
    path, log = tmp_path / "new" / name, tmp_path / "new" / "h.jsonl"
    if alone:
        (tmp_path / "old" / "h.jsonl").unlink()
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    total = instants(lambda: go_on(path, [3]))
    assert total > len(lines(*OLD))  # all of which is copied or read from Parquet, and then two steps
    deaths = range(total) if path == log else range(0, total, 17)
    for instant in deaths:
        shutil.rmtree(tmp_path / "new")
        shutil.copytree(tmp_path / "old", tmp_path / "new")
        checkpoint = [3]
        with Disk(instant, deadly=True).used(), pytest.raises(Death):
            go_on(path, checkpoint)
        covered = checkpoint[0]
        made = (range(3), 0), (range(3, covered), 1)
        if log.exists() or not alone:
            found, sure = log.read_bytes(), lines(*made)
            rest = found.removeprefix(sure)
            assert found.startswith(sure)
            # What the earlier run did beyond the checkpoint goes when the first of it has been made anew, not before.
            assert found == lines(*OLD) or found.startswith(lines((range(3), 0), (range(3, 4), 1)))
            assert lines((range(covered, 5), int(found != lines(*OLD)))).startswith(rest)
            assert read(log).num_steps >= covered
        if path != log:
            assert read(path).num_steps == 5  # whole: of the run before, or of this one when it was closed
        with Recorder(path, resume=True) as recorder:
            recorded(recorder, range(covered, 6), 2, checkpoint)
        assert log.read_bytes() == lines(*made, (range(covered, 6), 2))
        assert History.read(path).num_steps == 6 and int((History.read(path).trials == 4).sum()) == 6 * B
        assert not [file.name for file in path.parent.iterdir() if file.name.startswith(".")]  # of those who died


def test_whenever_the_disk_is_full_the_step_is_refused_and_may_be_made_again(tmp_path: Path) -> None:
    """At each byte of steps that replace others, that come after, and that are added to."""
    earlier(tmp_path, "old.jsonl")
    before = (tmp_path / "old.jsonl").read_bytes()
    path = tmp_path / "h.jsonl"
    written = {3: lines((range(3), 0), (range(3, 4), 1)), 5: before + lines((range(5, 6), 1))}
    for step, after in written.items():
        room = 0
        while True:
            path.write_bytes(before)
            with Recorder(path, resume=True) as recorder:
                try:
                    with Disk(room, deadly=False).used():
                        recorder.record(step, *counts(step, 1), 4)
                except OSError as error:
                    assert error.errno == 28
                    assert path.read_bytes() == before and recorder.last_step == 4
                    recorder.record(step, *counts(step, 1), 4)
                    room += 1
                else:
                    break
                assert path.read_bytes() == after and recorder.last_step == step
                with Disk(room % 50, deadly=False).used(), pytest.raises(OSError, match="No space left"):
                    recorder.record(step, *counts(7, 1), 4)  # more of it
                assert path.read_bytes() == after
                assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []
        assert room >= len(lines((range(step, step + 1), 1)))


@pytest.mark.parametrize("resumed", [False, True])
def test_a_selector_whose_process_dies(tmp_path: Path, resumed: bool) -> None:
    """It is restored from its last checkpoint; from instant to instant it is another one of the steps that is lost."""

    def selector() -> bp.PromptSelector:
        return bp.recipes.mopps(num_prompts=N, batch_size=B, seed=3)

    def train(chooser: bp.PromptSelector, until: int, run: int, states: list[Any]) -> None:
        while chooser.posterior.step < until:
            step, index = chooser.posterior.step, chooser.select()
            chooser.update(index, successes=[(step + run + row) % 5 for row in index.tolist()], trials=4)
            states.append((step, run, index.tolist(), chooser.state_dict()))

    path, first = tmp_path / "h.jsonl", selector()
    states: list[Any] = []
    with Recorder(path, first):
        train(first, 4, 0, states)
    old, states = path.read_bytes(), states[:2]

    def run(left: int) -> tuple[list[Any], int]:
        path.write_bytes(old)
        mine, disk = list(states), Disk(left, deadly=True)
        chooser = selector()
        with disk.used():
            try:
                recorder = Recorder(path, chooser, resume=True)
                chooser.load_state_dict(mine[-1][-1])
                if resumed:
                    chooser.posterior.advance()  # a step without observations
                train(chooser, 5, 1, mine)
            except Death:
                pass
            else:
                recorder.close()
        return mine, ENDLESS - disk.left

    _, total = run(ENDLESS)
    for instant in range(0, total, 19):
        mine, _ = run(instant)
        again = selector()
        with Recorder(path, again, resume=True) as recorder:
            again.load_state_dict(mine[-1][-1])
            train(again, 6, 2, mine)
            history = recorder.history()
        expected = torch.zeros(6, N, dtype=torch.int64)
        for step, of, index, _ in mine:
            expected[step, index] = torch.tensor([(step + of + row) % 5 for row in index])
        assert history.successes is not None and torch.equal(history.successes, expected)
        assert int((history.trials > 0).sum()) == len(mine) * B == path.read_bytes().count(b"\n")


KILLED = """
import os, signal, sys
from pathlib import Path
from bayes_prompt import history_log
from bayes_prompt.recorder import Recorder

def mortal(left):
    class Handle:
        def __init__(self, file): self.file = file
        def write(self, data):
            nonlocal left
            done = self.file.write(data[:left])
            left -= done
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return done
        def __enter__(self): return self
        def __exit__(self, *error): self.file.close()
        def __iter__(self): return iter(self.file)
        def __getattr__(self, name): return getattr(self.file, name)
    return lambda *arguments, **options: Handle(open(*arguments, **options))

for folder in map(Path, sys.argv[1:]):
    if not (child := os.fork()):
        history_log.open = mortal(int(folder.name))
        with Recorder(folder / "h.jsonl", resume=True) as recorder:
            for step in (3, 4, 5):
                recorder.record(step, [1, 2], [1, 2], 4)
                (folder / "checkpoint").write_text(str(step + 1))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system makes no processes in this way")
def test_processes_that_are_killed(tmp_path: Path) -> None:
    """The same of real processes, and of SIGKILL in the middle of what they write."""
    folders = [tmp_path / str(left) for left in range(1, 3 * 2 * 70 + len(lines(OLD[0])), 35)]
    for folder in folders:
        earlier(folder, "h.jsonl")
        (folder / "checkpoint").write_text("3")
    ended = subprocess.run([sys.executable, "-c", KILLED, *map(str, folders)], capture_output=True, text=True)
    codes = [int(code) for code in ended.stdout.split()]
    assert len(codes) == len(folders), ended.stderr
    assert set(codes) == {-signal.SIGKILL, 0}
    for folder in folders:
        covered = int((folder / "checkpoint").read_text())
        own = [history_files.line(prompt, step, prompt, 4) for step in range(3, covered) for prompt in (1, 2)]
        sure = lines((range(3), 0)) + "".join(own).encode()
        assert (folder / "h.jsonl").read_bytes().startswith(sure)
        with Recorder(folder / "h.jsonl", resume=True) as recorder:
            recorder.record(covered, *counts(covered, 2), 4)
        assert (folder / "h.jsonl").read_bytes() == sure + lines((range(covered, covered + 1), 2))


def test_time_that_passed_without_observations_is_recorded(tmp_path: Path) -> None:
    chooser = bp.recipes.mopps(num_prompts=N, batch_size=B, seed=3)
    with Recorder(tmp_path / "h.parquet", chooser) as recorder:
        chooser.update([1], successes=[1], trials=4, elapsed=0.5)
        chooser.posterior.advance(2.0)
        chooser.posterior.advance()
        chooser.posterior.advance(0.0)
        assert recorder.last_step == 3
    for path in (recorder.lines, recorder.path):
        history = History.read(path, ids=range(N))
        assert history.elapsed is not None and history.elapsed.tolist() == [0.5, 2.0, 1.0, 0.0]
        assert int(history.trials.sum()) == 4
