"""Results of a replay: means and intervals, JSON there and back, tables and plots."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from bayes_prompt.replays import plots, tables
from bayes_prompt.replays.judging import Bin
from bayes_prompt.replays.results import FIGURES, FORMAT, Figure, Method, ReplayResults, Run

BINS = (Bin(30, 0.25, 0.5), Bin(0, math.nan, math.nan), Bin(10, 0.75, 0.5))


def run(seed: int, judged: bool = True) -> Run:
    loss = 0.5 + seed / 100 if judged else math.nan
    bins = BINS if judged else ()
    ratio = (0.0, 0.5, 0.75 + seed / 8)
    return Run(seed, ratio, (1.0, 1.0, 0.5), loss, loss / 2, 0.7 if judged else math.nan, bins, 0.5, 2.5, 3, 1e-3, 2e-3)


RESULTS = ReplayResults(40, 3, 4, 5, (Method("dps:decay=0.5", (run(0), run(1))), Method("mine", (run(2, False),))))


def test_figures_of_a_run() -> None:
    figures = run(0).figures()
    assert figures.keys() == FIGURES.keys()
    assert figures["effective_sample_ratio"] == pytest.approx(1.25 / 3)
    assert figures["second_half"] == pytest.approx(1.25 / 2)  # the second and third of three
    assert figures["regret"] == pytest.approx(2.5 / 3 - 1.25 / 3)
    assert figures["calibration_error"] == pytest.approx(0.25)
    assert figures["longest_absence"] == 3


def test_means_and_intervals() -> None:
    values = [0.3, 0.5, 0.4, 0.8]
    figure = Figure.of(values)
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    assert (figure.mean, figure.error) == pytest.approx((np.mean(values), scipy.stats.sem(values)))
    assert (figure.low, figure.high) == pytest.approx((low, high))
    one = Figure.of([0.3])
    assert one.mean == 0.3 and math.isnan(one.error) and math.isnan(one.low)
    assert math.isnan(Figure.of([0.3, math.nan]).mean)
    assert RESULTS["dps:decay=0.5"].ratio == pytest.approx((0, 0.5, 0.8125))
    assert RESULTS["dps:decay=0.5"].bins[0] == Bin(60, 0.25, 0.5)
    with pytest.raises(KeyError, match=r"'dps' is none of dps:decay=0\.5, mine"):
        RESULTS["dps"]


def test_json_there_and_back(tmp_path: Path) -> None:
    RESULTS.write(tmp_path / "r.json")
    data = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)  # no NaN, which is no JSON
    assert data["format"] == FORMAT
    dps, mine = data["methods"]
    assert dps["figures"]["log_loss"]["mean"] == pytest.approx(0.505)
    assert mine["figures"]["log_loss"] == {"mean": None, "error": None, "low": None, "high": None}
    assert mine["figures"]["effective_sample_ratio"]["error"] is None
    again = ReplayResults.load(tmp_path / "r.json")
    assert repr(again) == repr(RESULTS)  # NaN is not equal to itself, but looks the same
    assert again.to_json() == data
    for wrong in ({**data, "format": "another 1"}, [1]):
        (tmp_path / "w.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"format must be 'bayes-prompt replay 1'; got .*1"):
            ReplayResults.load(tmp_path / "w.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "w.json"]
    (run, *_), more = dps["runs"], {"other": 1}
    lacking = [{key: value for key, value in data.items() if key != left_out} for left_out in ("methods", "visits")]
    lacking += [{**data, "methods": methods} for methods in (3, [3], [{"name": "a"}], [{"name": "a", "runs": [more]}])]
    lacking += [{**data, "methods": [{"name": "a", "runs": [{**run, **more}]}]}]
    for wrong in lacking:
        (tmp_path / "w.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="the results lack something, or have too much"):
            ReplayResults.load(tmp_path / "w.json")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_table(encoding: str) -> None:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding=encoding, write_through=True) as file:
        tables.show(RESULTS, Console(file=file, width=100))
        text = raw.getvalue().decode(encoding)
    between = "±" if encoding == "utf-8" else "+-"
    assert f".438 {between} .021" in text  # of 1.25 / 3 and 1.375 / 3
    assert "40 prompts, 3 visits, 4 picked at each, 2 seeds" in text
    assert f".505 {between} .005" in text and "1.00 / 2.00" in text and "2 / 3" in text
    assert "P(informative) could not be judged, from visit 5 on: mine" in text
    assert "nan" not in text


def test_plots(tmp_path: Path) -> None:
    paths = plots.write(RESULTS, tmp_path / "deeper")
    assert [path.name for path in paths] == ["ratio_by_visit.png", "reliability.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert sorted((tmp_path / "deeper").iterdir()) == sorted(paths)
