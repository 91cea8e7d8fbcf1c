"""The recorder after a restart: what an earlier run wrote, and how much time steps took."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bayes_prompt as bp
from bayes_prompt.history import History
from bayes_prompt.recorder import Recorder

N, B = 12, 3


@pytest.mark.parametrize("name", ["h.jsonl", "h.parquet"])
def test_the_time_that_a_step_took_is_recorded_where_it_is_not_one(tmp_path: Path, name: str) -> None:
    times = [1.0, 0.25, 1.0, 0.0, 3.5]
    chooser = bp.recipes.mopps(num_prompts=N, batch_size=B, seed=3)
    with Recorder(tmp_path / name, chooser) as recorder:
        for step, elapsed in enumerate(times):
            chooser.update([step, step + 1], successes=[1, 2], trials=4, elapsed=elapsed)
        assert [line.count("elapsed") for line in recorder.lines.read_text().splitlines()] == [
            0,
            0,
            1,
            1,
            0,
            0,
            *[1] * 4,
        ]
        for bad in (-1.0, float("nan"), "x"):
            with pytest.raises((ValueError, TypeError), match="elapsed"):
                chooser.posterior.advance(bad)  # type: ignore[arg-type]
        assert recorder.last_step == 4
    found = History.read(tmp_path / name).elapsed
    assert found is not None and found.tolist() == times
    if name.endswith("parquet"):
        (tmp_path / "h.jsonl").unlink()
    with Recorder(tmp_path / name, bp.recipes.mopps(num_prompts=N, batch_size=B, seed=3), resume=True) as recorder:
        recorder.record(5, [1], [1], 2, elapsed=0.5)
        with pytest.raises(ValueError, match=r"elapsed = 2.0 must be 0.5, as before for step 5"):
            recorder.record(5, [2], [1], 2, elapsed=2.0)
        found = recorder.history().elapsed
        assert found is not None and found.tolist() == [*times, 0.5]


@pytest.mark.parametrize("begin", [0, 2])
def test_a_refused_first_step_after_a_restart_keeps_what_an_earlier_run_wrote(tmp_path: Path, begin: int) -> None:
    def chooser() -> bp.PromptSelector:
        still = bp.SuccessRate(grid=9, drift=bp.FixedTransition(torch.eye(9)))
        return bp.PromptSelector(still.posterior(N), bp.acquisition.LookIndex(), B, 3)

    with Recorder(tmp_path / "h.jsonl", chooser()) as recorder:
        assert recorder._posterior is not None
        for step in range(5):
            recorder._posterior.update([step], [1], 4)
    before, again = recorder.path.read_bytes(), chooser()
    for _ in range(begin):
        again.advance()
    with Recorder(tmp_path / "h.jsonl", again, resume=True) as recorder:
        with pytest.raises(ValueError, match="elapsed must be a whole number"):
            again.update([7], successes=[2], trials=4, elapsed=0.5)
        assert recorder.path.read_bytes() == before and recorder.last_step == 4
        again.update([7], successes=[2], trials=4)
        assert recorder.path.read_bytes().count(b"\n") == begin + 1 and recorder.last_step == begin


def test_a_trainer_may_change_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    selector = bp.recipes.dps(num_prompts=N, batch_size=B)
    with Recorder("h.jsonl", selector):
        selector.update([1], successes=[1], trials=4)
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        selector.update([2], successes=[1], trials=4)
    assert (tmp_path / "h.jsonl").read_bytes().count(b"\n") == 2


def test_a_link_to_a_file_elsewhere_stays_one(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    link = tmp_path / "h.jsonl"
    link.symlink_to(tmp_path / "large" / "h.jsonl")
    for successes in (1, 2):
        with Recorder(link, resume=True) as recorder:
            for step in range(3):
                recorder.record(step, [1], [successes], 2)
    found = History.read(tmp_path / "large" / "h.jsonl").successes
    assert link.is_symlink() and found is not None and found.tolist() == [[2]] * 3
