from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import rich.console as console
import torch

from bayes_prompt.history import History
from bayes_prompt.testbed import report
from bayes_prompt.testbed.experiment import RunResult
from bayes_prompt.testbed.tasks import make_tasks

TRAIN = make_tasks(4, seed=0)


def result(method: str, seconds: float) -> RunResult:
    trials = torch.tensor([[8, 8, 0, 0], [0, 0, 8, 8]])
    successes = torch.tensor([[3, 8, 0, 0], [0, 0, 0, 1]])
    return RunResult(
        method=method,
        seed=7,
        steps=2,
        rollouts=32,
        effective_sample_ratio=[0.25, 0.5],
        reward=[0.25, 0.75],
        pool_success_rate=[0.5, 0.25],
        held_out=[(0, [0.0, 0.5, 1.0, 0.5]), (2, [0.5, 0.5, 1.0, 1.0])],
        coverage=1.0,
        seconds_selecting=seconds,
        seconds=12.0,
        history=History(successes, trials),
    )


RESULTS = [result("uniform", 0.125), result("dps", 0.25)]


def test_mean_and_error() -> None:
    mean, error = report.mean_and_error([0.0, 0.5, 1.0, 0.5])
    # Sum of squares 0.5 over n - 1 = 3, over n = 4.
    assert (mean, error) == (0.5, pytest.approx(math.sqrt(0.5 / 12)))
    assert math.isnan(report.mean_and_error([1.0])[1])


def test_summary_has_what_was_measured() -> None:
    figures = report.summary(RESULTS[0])
    assert (figures["method"], figures["seed"], figures["steps"], figures["rollouts"]) == ("uniform", 7, 2, 32)
    assert figures["effective_sample_ratio"] == 0.375
    assert figures["held_out"]["before"]["mean"] == 0.5
    assert figures["held_out"]["after"]["mean"] == 0.75
    # Differences .5, 0, 0, .5: mean .25, sum of squares .25 over 3, over 4.
    assert figures["held_out"]["gain"] == {"mean": 0.25, "error": pytest.approx(math.sqrt(0.25 / 12))}
    assert figures["curves"]["reward"] == [0.25, 0.75]
    assert [step for step, _, _ in figures["curves"]["held_out"]] == [0, 2]
    assert json.loads(json.dumps(figures)) == figures


def test_table_shows_every_method() -> None:
    text = io.StringIO()
    console.Console(file=text, width=80).print(report.table(RESULTS))
    lines = text.getvalue().splitlines()
    (uniform,) = [line for line in lines if "uniform" in line]
    (dps,) = [line for line in lines if "dps" in line]
    for line, seconds in ((uniform, "0.12"), (dps, "0.25")):
        for shown in (" 2 ", " 32 ", "0.375", "0.500±.204", "0.750±.144", "0.250±.144", seconds):
            assert shown in line, (shown, line)


def test_files(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    paths = report.write(RESULTS, TRAIN, out)
    assert sorted(paths) == sorted(out.iterdir())
    assert {path.name for path in paths} == {
        "results.json",
        "curves.png",
        "prompts.parquet",
        "history_uniform.parquet",
        "history_dps.parquet",
    }
    assert (out / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert json.loads((out / "results.json").read_text()) == [report.summary(each) for each in RESULTS]
    prompts = parquet.read_table(out / "prompts.parquet").to_pylist()
    assert [row["prompt_id"] for row in prompts] == [0, 1, 2, 3]
    for row, task in zip(prompts, TRAIN, strict=True):
        assert (row["text"], row["family"], row["level"]) == (task.text, task.family, task.level)
    rows = parquet.read_table(out / "history_dps.parquet")
    assert rows.column_names == ["prompt_id", "step", "successes", "trials"]
    kept = History.read_parquet(out / "history_dps.parquet")
    assert torch.equal(kept.trials, RESULTS[1].history.trials)
    assert kept.successes is not None and torch.equal(kept.successes, torch.tensor([[3, 8, 0, 0], [0, 0, 0, 1]]))
