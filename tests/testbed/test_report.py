from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import rich.console as console
import torch

from bayes_prompt.history import History
from bayes_prompt.testbed import report
from bayes_prompt.testbed.plots import plot
from bayes_prompt.testbed.results import Evaluation, RunResult, mean_and_error
from bayes_prompt.testbed.tasks import make_tasks

TRAIN, HELD_OUT = make_tasks(4, seed=0), make_tasks(4, seed=1)


def result(method: str, seconds: float, after: list[int]) -> RunResult:
    """Of the four prompts one gives a mixed group (3 solved of 8) in both steps, another one in the second alone."""
    trials = torch.tensor([[8, 8, 0, 0], [8, 0, 8, 8]])
    successes = torch.tensor([[3, 8, 0, 0], [3, 0, 0, 1]])
    return RunResult(
        method=method,
        seed=7,
        steps=2,
        rollouts=40,
        reward=[0.25, 0.75],
        pool_success_rate=[0.5, 0.25],
        held_out=[Evaluation(0, [0, 4, 8, 4], 8), Evaluation(1, [1, 2, 4, 2], 4), Evaluation(2, after, 8)],
        coverage=1.0,
        seconds_selecting=seconds,
        seconds=12.0,
        history=History(successes, trials),
    )


RESULTS = [result("uniform", 0.125, [4, 4, 8, 8]), result("dps", 0.25, [4, 8, 8, 8])]
# What stands in the table beside a method; rates before, after (.5 .5 1 1 and .5 1 1 1) and their differences.
CELLS = {
    "uniform": ("2", "40", "0.583", "2", "0.500±.204", "0.750±.144", "0.250±.144", "0.12"),
    "dps": ("2", "40", "0.583", "2", "0.500±.204", "0.875±.125", "0.375±.125", "0.25"),
}


def shown(results: list[RunResult], width: int) -> str:
    text = io.StringIO()
    report.show(results, console.Console(file=text, width=width))
    return text.getvalue()


def test_mean_and_error() -> None:
    mean, error = mean_and_error([0.0, 0.5, 1.0, 0.5])
    # Sum of squares 0.5 over n - 1 = 3, over n = 4.
    assert (mean, error) == (0.5, pytest.approx(math.sqrt(0.5 / 12)))
    assert math.isnan(mean_and_error([1.0])[1])


def test_summary_has_what_was_measured() -> None:
    figures = report.summary(RESULTS[0])
    assert (figures["method"], figures["seed"], figures["steps"], figures["rollouts"]) == ("uniform", 7, 2, 40)
    assert figures["effective_sample_ratio"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert figures["useful_prompts"] == 2
    assert figures["held_out"]["before"]["mean"] == 0.5
    assert figures["held_out"]["after"]["mean"] == 0.75
    # Differences .5, 0, 0, .5: mean .25, sum of squares .25 over 3, over 4.
    assert figures["held_out"]["gain"] == {"mean": 0.25, "error": pytest.approx(math.sqrt(0.25 / 12))}
    assert figures["curves"]["reward"] == [0.25, 0.75]
    assert figures["curves"]["useful_prompts"] == [1, 2]
    assert figures["curves"]["pool_success_rate"] == [0.5, 0.25]
    assert [step for step, _, _ in figures["curves"]["held_out"]] == [0, 1, 2]
    assert json.loads(json.dumps(figures)) == figures


def test_gains_are_compared_prompt_by_prompt() -> None:
    uniform, dps, mopps = report.summaries([*RESULTS, replace(RESULTS[0], method="mopps")])
    assert uniform["gain_over"] == {}
    # Gains .5 .5 0 .5 less .5 0 0 .5: 0 .5 0 0, whose squares about the mean add up to 3/16.
    assert dps["gain_over"] == {"uniform": {"mean": 0.125, "error": pytest.approx(math.sqrt(3 / 16 / 12))}}
    assert mopps["gain_over"] == {"uniform": {"mean": 0.0, "error": 0.0}}
    assert report.comparison(RESULTS) == "gain over that of uniform, prompt by prompt: dps +0.125±.125"
    assert report.comparison(RESULTS[:1]) == ""


def test_the_table_fits_a_terminal_of_80() -> None:
    worse = replace(RESULTS[1], rollouts=20480, steps=40, seconds_selecting=99.99)
    worse = replace(worse, held_out=list(reversed(worse.held_out)))  # a sign more in front of the gain
    lines = shown([RESULTS[0], worse], 80).splitlines()
    assert max(map(len, lines)) <= 80
    (uniform,) = [line for line in lines if line.startswith("uniform")]
    (dps,) = [line for line in lines if line.startswith("dps")]
    assert uniform.split() == ["uniform", *CELLS["uniform"]]
    assert dps.split()[1:3] == ["40", "20480"] and dps.split()[-2:] == ["-0.375±.125", "99.99"]
    assert report.comparison([RESULTS[0], worse]) in lines


@pytest.mark.parametrize("width", [100, 80, 60, 40])
@pytest.mark.parametrize("long", ["dps", "history_resampling"])
def test_names_and_numbers_are_there_at_any_width(width: int, long: str) -> None:
    lines = shown([RESULTS[0], replace(RESULTS[1], method=long)], width).splitlines()
    assert max(map(len, lines)) <= width
    for method, cells in zip(("uniform", long), CELLS.values(), strict=True):
        start = next(number for number, line in enumerate(lines) if line.strip().split(" ")[0] == method)
        if lines[start].strip() == method:  # upright: the name above, the numbers below, one on a line
            assert tuple(line.split()[-1] for line in lines[start + 1 : start + 1 + len(cells)]) == cells
        else:
            assert lines[start].split() == [method, *cells]


@pytest.mark.parametrize("width", [100, 40])
def test_a_terminal_that_has_only_ascii(width: int) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    report.show(RESULTS, console.Console(file=stream, width=width))
    stream.seek(0)
    text = stream.read()
    for cells in CELLS.values():
        for cell in cells:
            assert cell.replace("±", "+-") in text


def test_files(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    paths = report.write(RESULTS, TRAIN, HELD_OUT, out)
    assert sorted(paths) == sorted(out.iterdir())
    assert {path.name for path in paths} == {
        "results.json",
        "curves.png",
        "prompts.parquet",
        "held_out.parquet",
        "history_uniform.parquet",
        "history_dps.parquet",
    }
    assert (out / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert json.loads((out / "results.json").read_text()) == report.summaries(RESULTS)
    prompts = parquet.read_table(out / "prompts.parquet").to_pylist()
    assert [row["prompt_id"] for row in prompts] == [0, 1, 2, 3]
    for row, task in zip(prompts, TRAIN, strict=True):
        assert (row["text"], row["family"], row["level"]) == (task.text, task.family, task.level)
    rows = parquet.read_table(out / "history_dps.parquet")
    assert rows.column_names == ["prompt_id", "step", "successes", "trials"]
    kept = History.read_parquet(out / "history_dps.parquet")
    assert torch.equal(kept.trials, RESULTS[1].history.trials)
    assert kept.successes is not None and torch.equal(kept.successes, torch.tensor([[3, 8, 0, 0], [3, 0, 0, 1]]))
    evaluated = parquet.read_table(out / "held_out.parquet").to_pylist()
    assert len(evaluated) == 2 * 3 * 4
    keys = [(row["method"], row["step"], row["prompt_id"]) for row in evaluated]
    assert keys == [(method, step, task) for method in ("uniform", "dps") for step in (0, 1, 2) for task in range(4)]
    for row in evaluated:
        assert (row["text"], row["level"]) == (HELD_OUT[row["prompt_id"]].text, HELD_OUT[row["prompt_id"]].level)
    counts = [(row["successes"], row["samples"]) for row in evaluated if row["method"] == "dps" and row["step"] > 0]
    assert counts == [(1, 4), (2, 4), (4, 4), (2, 4), (4, 8), (8, 8), (8, 8), (8, 8)]


@pytest.mark.parametrize("fails", ["plot", "_write_parquet"])
def test_a_failure_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    paths = report.write(RESULTS, TRAIN, HELD_OUT, tmp_path)
    before = {path: path.read_bytes() for path in paths}

    def stop(content: Any, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr(report, fails, stop)
    with pytest.raises(OSError, match="no space left"):
        report.write(RESULTS, TRAIN, HELD_OUT, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_every_method_has_its_curve_in_every_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig

    def noting(self: Figure, *args: Any, **kwargs: Any) -> None:
        drawn.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", noting)
    plot(RESULTS, tmp_path / "curves.png")
    (figure,) = drawn
    for panel in figure.axes:
        lines = {str(line.get_label()): line for line in panel.lines if str(line.get_label()) in CELLS}
        assert set(lines) == set(CELLS)
        assert lines["uniform"].get_linestyle() != lines["dps"].get_linestyle()
    useful = figure.axes[2].lines[0]
    assert list(useful.get_ydata()) == [1, 2]
