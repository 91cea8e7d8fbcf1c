"""The recorder: what a selector learned is in the file, whatever happens to the run."""

from __future__ import annotations

import copy
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch

import bayes_prompt as bp
from bayes_prompt.history import History
from bayes_prompt.recorder import Recorder

N, B = 12, 3


def selector(**options: Any) -> bp.PromptSelector:
    return bp.recipes.mopps(num_prompts=N, batch_size=B, seed=3, **options)


def train(chooser: bp.PromptSelector, steps: int, salt: int = 0) -> list[tuple[int, list[int], list[int]]]:
    """Steps of training whose outcomes are a function of step, prompt and salt; what was observed in each."""
    seen = []
    for _ in range(steps):
        step, index = chooser.posterior.step, chooser.select()
        successes = [(7 * step + 3 * row + salt) % 5 for row in index.tolist()]
        chooser.update(index, successes=successes, trials=4)
        seen.append((step, index.tolist(), successes))
    return seen


def table(seen: list[tuple[int, list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    steps = 1 + max(step for step, *_ in seen)
    successes, trials = torch.zeros(2, steps, N, dtype=torch.int64)
    for step, rows, right in seen:
        successes[step, rows] = torch.tensor(right)
        trials[step, rows] = 4
    return successes, trials


def assert_recorded(history: History, seen: list[tuple[int, list[int], list[int]]]) -> None:
    successes, trials = table(seen)
    assert history.successes is not None
    assert torch.equal(history.trials, trials) and torch.equal(history.successes, successes)


@pytest.mark.parametrize("name", ["h.jsonl", "deeper/h.parquet"])
def test_what_a_selector_learns_is_recorded(tmp_path: Path, name: str) -> None:
    chooser = selector()
    with Recorder(tmp_path / name, chooser) as recorder:
        seen = train(chooser, 4)
        assert recorder.last_step == 3
        # Each step is in the file when it is over.
        assert_recorded(History.read_jsonl(recorder.lines, num_prompts=N), seen)
    history = History.read(tmp_path / name, ids=range(N) if name.endswith("jsonl") else None)
    assert_recorded(history, seen)
    train(chooser, 1)  # no longer recorded
    assert_recorded(recorder.history(), seen)


def test_recording_changes_no_pick(tmp_path: Path) -> None:
    plain, recorded = selector(), selector()
    with Recorder(tmp_path / "h.jsonl", recorded):
        assert train(recorded, 5) == train(plain, 5)


def test_observations_in_pieces_and_apart_from_picks(tmp_path: Path) -> None:
    chooser = selector()
    with Recorder(tmp_path / "h.jsonl", chooser) as recorder:
        chooser.observe([1], successes=[2], trials=4)
        chooser.observe([1, 5], successes=[1, 0], trials=[2, 3])
        chooser.advance()
        chooser.advance()  # nothing came in
        chooser.posterior.update([0], [1], 1)
        history = recorder.history()
    assert history.trials.tolist() == [[0, 6, 0, 0, 0, 3, *[0] * 6], [0] * 12, [1, *[0] * 11]]
    assert history.successes is not None and history.successes[0, 1] == 3


def test_names_of_prompts_are_recorded(tmp_path: Path) -> None:
    names = [f"p{N - row}" for row in range(N)]
    chooser = selector(ids=names)
    with Recorder(tmp_path / "h.parquet", chooser):
        seen = train(chooser, 3)
    history = History.read(tmp_path / "h.parquet")
    assert history.ids == tuple(names)
    assert_recorded(history, seen)
    with pytest.raises(TypeError, match=r"ids of the selector\[0\] = \(0,\) must be an integer or a string"):
        Recorder(tmp_path / "g.jsonl", selector(ids=[(row,) for row in range(N)]))
    assert not (tmp_path / "g.jsonl").exists()


@pytest.mark.parametrize("name", ["h.jsonl", "h.parquet"])
@pytest.mark.parametrize("torn", ["", '{"prompt_id": 3, "st'])
def test_a_run_that_goes_on_from_its_checkpoint_has_no_step_twice(
    tmp_path: Path, name: str, torn: str, caplog: pytest.LogCaptureFixture
) -> None:
    chooser = selector()
    recorder = Recorder(tmp_path / name, chooser)
    seen = train(chooser, 3)
    state = chooser.state_dict()
    train(chooser, 4, salt=1)  # what these gave is lost with the process, but for the file
    if name.endswith("parquet"):
        recorder.close()
    with open(recorder.lines, "a") as file:
        file.write(torn)

    later = selector()
    with caplog.at_level(logging.WARNING):
        resumed = Recorder(tmp_path / name, later, resume=True)
        assert ("torn off" in caplog.text) == bool(torn)
        assert resumed.last_step == 6
        later.load_state_dict(state)
        seen += train(later, 2, salt=2)
    assert "steps 3 to 6 are recorded anew" in caplog.text
    resumed.close()
    assert_recorded(resumed.history(), seen)
    assert_recorded(History.read(tmp_path / name, ids=range(N) if name == "h.jsonl" else None), seen)


def test_going_back_within_a_run(tmp_path: Path) -> None:
    chooser = selector()
    with Recorder(tmp_path / "h.jsonl", chooser) as recorder:
        seen = train(chooser, 2)
        state = chooser.state_dict()
        train(chooser, 2)
        chooser.load_state_dict(state)
        seen += train(chooser, 1, salt=4)
        assert_recorded(recorder.history(), seen)


def test_a_parquet_file_alone_is_gone_on_with(tmp_path: Path) -> None:
    chooser = selector()
    with Recorder(tmp_path / "h.parquet", chooser) as recorder:
        seen = train(chooser, 2)
    recorder.lines.unlink()
    with Recorder(tmp_path / "h.parquet", chooser, resume=True):
        seen += train(chooser, 2)
    assert_recorded(History.read(tmp_path / "h.parquet"), seen)


def test_a_last_line_without_its_end_is_whole(tmp_path: Path) -> None:
    with Recorder(tmp_path / "h.jsonl") as recorder:
        recorder.record(0, [1], [1], 2)
    recorder.path.write_bytes(recorder.path.read_bytes().rstrip())
    with Recorder(tmp_path / "h.jsonl", resume=True) as recorder:
        recorder.record(1, [1], [2], 2)
        assert recorder.history().trials.tolist() == [[2], [2]]


def test_a_step_that_is_refused_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chooser = selector()
    with Recorder(tmp_path / "h.jsonl", chooser) as recorder:
        seen = train(chooser, 2)
        with pytest.raises(ValueError, match="successes"):
            chooser.update([0], successes=[9], trials=4)

        def fail(*_: Any) -> None:
            raise RuntimeError("no step")

        with monkeypatch.context() as broken:
            broken.setattr(type(chooser.posterior), "_apply", fail)
            with pytest.raises(RuntimeError, match="no step"):
                chooser.update([0], successes=[2], trials=4)
        assert_recorded(recorder.history(), seen)
        chooser.update([0], successes=[2], trials=4)
        assert_recorded(recorder.history(), [*seen, (2, [0], [2])])


def test_a_full_disk_refuses_the_step_and_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    chooser = selector()
    recorder = Recorder(tmp_path / "h.jsonl", chooser)
    seen = train(chooser, 1)
    before, posterior = recorder.path.read_bytes(), chooser.posterior.state_dict()
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            train(chooser, 1)
    assert recorder.path.read_bytes() == before
    assert chooser.posterior.step == posterior["step"] and not len(chooser.posterior.pending()[0])
    seen += train(chooser, 1)
    assert_recorded(recorder.history(), seen)
    recorder.close()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_of_a_selector_are_not_recorded(tmp_path: Path, duplicate: Any) -> None:
    chooser = selector()
    with Recorder(tmp_path / "h.jsonl", chooser) as recorder:
        seen = train(chooser, 2)
        twin = duplicate(chooser)
        assert train(twin, 2) == train(duplicate(chooser), 2)
        assert twin.posterior.step == 4 and chooser.posterior.step == 2
        assert_recorded(recorder.history(), seen)


def test_recording_by_hand(tmp_path: Path) -> None:
    with Recorder(tmp_path / "h.jsonl") as recorder:
        recorder.record(2, ["b", "a"], [1, 0], 4)
        recorder.record(2, ["b"], torch.tensor([3]), [3])  # more of the same step
        recorder.record(5, [], [], 4)
        recorder.record(7, ["c"], [0], 1)
        with pytest.raises(ValueError, match="step = 5 lies before 7, which is being recorded"):
            recorder.record(5, ["c"], [0], 1)
        recorder.rewind(7)
        recorder.record(6, ["c"], [1], 1)
    history = History.read(tmp_path / "h.jsonl")
    assert history.ids == ("a", "b", "c")
    assert history.trials[[2, 6]].tolist() == [[4, 7, 0], [0, 0, 1]]
    assert history.successes is not None and history.successes[2].tolist() == [0, 4, 0]
    assert history.num_steps == 7


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1, [0], [0], 1), ValueError, "step must lie in"),
        ((0, [0], [2], 1), ValueError, r"successes\[0\] = 2 must lie in \[0, trials\]"),
        ((0, [0], [0], 0), ValueError, r"trials\[0\] = 0 must be at least 1"),
        ((0, [0, 1], [0], 1), ValueError, "successes must have 2 entries"),
        ((0, [0.5], [0], 1), TypeError, r"prompts\[0\] = 0.5 must be an integer or a string"),
        ((0, "a", [0], 1), TypeError, "prompts must be a sequence"),
        ((0, torch.tensor([[0]]), [0], 1), ValueError, r"prompts must have shape \(B,\); got \(1, 1\)"),
    ],
)
def test_bad_records_are_named_and_not_written(
    tmp_path: Path, arguments: Any, error: type[Exception], message: str
) -> None:
    with Recorder(tmp_path / "h.jsonl") as recorder:
        with pytest.raises(error, match=message):
            recorder.record(*arguments)
        assert recorder.path.read_bytes() == b"" and recorder.last_step is None
        with pytest.raises(ValueError, match="has no observations yet"):
            recorder.history()
    with pytest.raises(ValueError, match="is closed"):
        recorder.record(0, [0], [0], 1)
    recorder.close()


ONE = '{"prompt_id": 0, "step": 0, "successes": 0, "trials": 1}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"loss": 0.5}\n', "line 1 of .* is no observation of these prompts"),
        ('{"loss": 0.5}', "line 1 of .* is no observation of these prompts"),
        ("[1, 2]\n", "line 1 of .* is no observation of these prompts"),
        ("not of ours", "line 1 of .* is no observation"),
        (ONE + ONE[:20] + "\n", "line 2 of .* is no observation"),
        (ONE + "\n" + ONE.replace("trials", "of"), "line 3 of .* is no observation .*'trials'"),
        (ONE.replace('"successes": 0', '"successes": 2'), r"line 1 of .*: successes = 2 must lie in \[0, trials\]"),
        (ONE.replace('"trials": 1', '"trials": 1.0'), "line 1 of .* must be integers of at least 0"),
        (ONE.replace('"step": 0', '"step": -1'), "line 1 of .* must be integers of at least 0"),
        (ONE + ONE.replace("0", '"a"', 1), r"line 2 of .*'a' must be an integer like the others"),
        (ONE.replace("0", str(2**70), 1), "line 1 of .* must be an integer of 64 bits"),
        (ONE + ONE.replace("0", str(N), 1), f"line 2 of .* = {N} is no prompt of the selector"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_before_it_is_touched(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "h.jsonl").write_text(text)
    chooser = selector()
    for name in ("h.jsonl", "h.parquet"):
        with pytest.raises(ValueError, match=message):
            Recorder(tmp_path / name, chooser, resume=True)
    assert (tmp_path / "h.jsonl").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["h.jsonl"]
    with Recorder(tmp_path / "g.jsonl", chooser):  # which is free for another
        train(chooser, 1)


def test_names_and_rows_are_not_mixed_on_resuming(tmp_path: Path) -> None:
    (tmp_path / "h.jsonl").write_text(ONE)
    with pytest.raises(ValueError, match=r"line 1 of .* = 0 must be a string like the others"):
        Recorder(tmp_path / "h.jsonl", selector(ids=[f"p{row}" for row in range(N)]), resume=True)
    with pytest.raises(ValueError, match=r"line 1 of .* = 0 is no prompt of the selector"):
        Recorder(tmp_path / "h.jsonl", selector(ids=range(1, N + 1)), resume=True)
    assert (tmp_path / "h.jsonl").read_text() == ONE


def test_blank_lines_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "h.jsonl").write_text("\n" + ONE + "\n  \n" + ONE.replace('"step": 0', '"step": 1') + "\n ")
    with Recorder(tmp_path / "h.jsonl", resume=True) as recorder:
        assert recorder.last_step == 1
        recorder.record(1, [0], [1], 3)
        recorder.record(2, [0], [2], 2)
        assert recorder.history().trials.tolist() == [[1], [3], [2]]


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ([1, "a"], TypeError, r"prompts\[1\] = 'a' must be an integer like the others"),
        (["a"], TypeError, r"prompts\[0\] = 'a' must be an integer like the others"),
        ([2**70], ValueError, r"prompts\[0\] = 1180591620717411303424 must be an integer of 64 bits"),
        ([0, N], ValueError, rf"prompts\[1\] = {N} is no prompt of the selector"),
        ([-1], ValueError, r"prompts\[0\] = -1 is no prompt of the selector"),
    ],
)
@pytest.mark.parametrize("before", [0, 1])
def test_what_would_make_the_file_unreadable_is_not_written(
    tmp_path: Path, prompts: Any, error: type[Exception], message: str, before: int
) -> None:
    with Recorder(tmp_path / "h.jsonl", selector()) as recorder:
        recorder.record(0, [3], [1], 1)
        recorder.record(1, [4], [1], 1)
        written = recorder.path.read_bytes()
        with pytest.raises(error, match=message):
            recorder.record(1 + before, prompts, [0] * len(prompts), 1)
        assert recorder.path.read_bytes() == written and recorder.last_step == 1
    alone = Recorder(tmp_path / "alone.jsonl")
    alone.record(0, ["b"], [0], 1)
    with pytest.raises(TypeError, match=r"prompts\[0\] = 3 must be a string like the others"):
        alone.record(0, [3], [0], 1)
    alone.close()
    assert History.read(alone.path).ids == ("b",)
    with Recorder(alone.path, resume=True) as alone, pytest.raises(TypeError, match="must be a string like the others"):
        alone.record(1, [3], [0], 1)


def test_ids_of_a_selector_that_no_file_can_have(tmp_path: Path) -> None:
    for ids, error, message in (
        ([2**70, *range(1, N)], ValueError, r"ids of the selector\[0\] = .* must be an integer of 64 bits"),
        (["a", *range(1, N)], TypeError, r"ids of the selector\[1\] = 1 must be a string like the others"),
    ):
        with pytest.raises(error, match=message):
            Recorder(tmp_path / "h.jsonl", selector(ids=ids))
    assert not any(tmp_path.iterdir())


def test_a_parquet_file_of_somebody_else_keeps_its_names(tmp_path: Path) -> None:
    names = [7, 10**12, -5]
    trials = torch.tensor([[2, 2, 2]])
    History(torch.tensor([[0, 1, 2]]), trials, tuple(names)).write_parquet(tmp_path / "h.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "h.parquet").replace_schema_metadata(None)
    pyarrow.parquet.write_table(table, tmp_path / "h.parquet")
    with pytest.raises(ValueError, match=r"line 1 of '.*h\.parquet' .* is no prompt of the selector"):
        Recorder(tmp_path / "h.parquet", selector(), resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["h.parquet"]
    with Recorder(tmp_path / "h.parquet", resume=True) as recorder:
        recorder.record(1, [10**12], [1], 1)
    history = History.read(tmp_path / "h.parquet")
    assert history.ids == (-5, 7, 10**12)
    assert history.trials.tolist() == [[2, 2, 2], [0, 0, 1]]
    assert history.successes is not None and history.successes.tolist() == [[2, 0, 1], [0, 0, 1]]


def test_what_cannot_be_recorded_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "h.jsonl").write_text("{}\n{}\n")
    for name in ("h.jsonl", "h.parquet"):
        with pytest.raises(ValueError, match="is there already; pass resume=True"):
            Recorder(tmp_path / name)
    with pytest.raises(ValueError, match=r"line 1 of .* is no observation"):
        Recorder(tmp_path / "h.jsonl", resume=True)
    backwards = '{"prompt_id": 0, "step": 1, "successes": 0, "trials": 1}\n'
    (tmp_path / "b.jsonl").write_text(backwards + backwards.replace("1,", "0,", 1))
    with pytest.raises(ValueError, match=r"line 2 of .*: step = 0 must be an integer of at least 1"):
        Recorder(tmp_path / "b.jsonl", resume=True)
    with pytest.raises(ValueError, match=r"must end in \.parquet"):
        Recorder(tmp_path / "h.csv")
    with pytest.raises(TypeError, match="selector must be a PromptSelector; got int"):
        Recorder(tmp_path / "x.jsonl", 3)  # type: ignore[arg-type]
    chooser = selector()
    with Recorder(tmp_path / "y.jsonl", chooser), pytest.raises(ValueError, match="selector is recorded already"):
        Recorder(tmp_path / "z.jsonl", chooser)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.jsonl", "h.jsonl", "y.jsonl"]
