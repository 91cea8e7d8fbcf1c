from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from bayes_prompt.bench import report, tables
from bayes_prompt.bench.cases import OURS, PEERS
from bayes_prompt.bench.machine import Machine
from bayes_prompt.bench.plots import _COLOURS
from bayes_prompt.bench.results import Results, load, write

Make = Callable[..., Results]
ROOT = Path(__file__).resolve().parents[2]
GPU = Machine("NVIDIA X", "cuda", 2, 2, 1 << 36, 0.0)


def shown(results: Results, encoding: str = "utf-8", width: int = 140) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    tables.show(results, Console(file=stream, width=width))
    stream.seek(0)
    return stream.read()


def test_units() -> None:
    assert [tables.duration(value) for value in (12.0, 1.5, 0.0123, 4.56e-5, 7.89e-7)] == [
        "12.0 s", "1.50 s", "12.3 ms", "45.6 µs", "789 ns"
    ]  # fmt: skip
    assert [tables.size(value) for value in (4.8e8, 1.25e9, 52_000, 12, 0)] == [
        "480 MB",
        "1.25 GB",
        "52.0 kB",
        "12 B",
        "0 B",
    ]


def test_the_tables_say_what_was_found(made_up: Make) -> None:
    text = shown(made_up())
    assert "A Processor" in text and "commit 0123456789" in text and "100.0 GB/s at best" in text
    assert "2.00 ms" in text and "numpy float64" in text
    assert "left out: step (all visited), N = 10,000, 1,000,000, dict of arrays: too slow" in text
    assert "quartiles" in text and "quartiles" not in shown(made_up(), width=80).split("share of copy: bytes")[0]
    assert max(map(len, shown(made_up(), width=80).splitlines())) <= 80
    shown(made_up(), encoding="ascii").encode("ascii")


def test_the_speed_up_of_the_largest_size(made_up: Make) -> None:
    assert list(tables.speedups(made_up())) == [
        ("step", "all visited", 1_000_000, "numpy float64", pytest.approx(20.0))
    ]


def test_a_failed_check_is_told_and_its_ratios_are_not(made_up: Make) -> None:
    wrong = made_up({OURS: False})
    assert list(tables.speedups(wrong)) == []
    for text in (shown(wrong), "\n".join(tables.markdown(wrong))):
        assert "FAILED: step by bayes_prompt disagrees with the reference (seed 3): all wrong." in " ".join(
            text.split()
        )
        assert "How many times" not in text


def test_docs_are_regenerated(made_up: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, docs = tmp_path / "results", tmp_path / "docs"
    runs.mkdir()
    docs.mkdir()
    write(made_up(date="2025-01-01T00:00:00+00:00", commit=None, budget=77.0), runs)  # an older run, not shown
    write(made_up(), runs)
    page = docs / report.PAGE
    page.write_text(f"# Title\n\n{report.BEGIN}\nold\n{report.END}\n\nWritten by hand.\n")
    assert report.main([str(runs), "--docs", str(docs)]) == 0
    text, plot = page.read_text(), docs / "performance-a-processor-2-threads.png"
    assert text.startswith("# Title\n") and text.endswith("\n\nWritten by hand.\n") and "\nold\n" not in text
    assert report.NO_GPU in text and "77 s" not in text and plot.name in text
    assert report.digest(made_up()).encode() in plot.read_bytes()
    assert report.main([str(runs), "--docs", str(docs)]) == 0
    assert page.read_text() == text
    write(replace(made_up(), machine=GPU), runs)
    report.regenerate(runs, docs)
    assert report.NO_GPU not in page.read_text() and "performance-nvidia-x.png" in page.read_text()
    assert str(page) in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", report.BEGIN, f"{report.END}{report.BEGIN}", f"{report.BEGIN}{report.END}" * 2])
def test_a_page_without_its_markers_is_left_alone(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / report.PAGE).write_text(text)
    assert report.main([str(tmp_path), "--docs", str(tmp_path)]) == 2
    assert (tmp_path / report.PAGE).read_text() == text
    assert "must have these two lines" in capsys.readouterr().err
    assert report.main([str(tmp_path), "--docs", str(tmp_path / "absent")]) == 2


def test_every_peer_has_a_colour_and_a_marker() -> None:
    assert set(PEERS) <= set(_COLOURS)


def test_the_committed_page_is_what_the_committed_results_give() -> None:
    """`make performance` brings it up to date."""
    runs, docs = load(ROOT / "benchmarks" / "results"), ROOT / "docs"
    page = (docs / report.PAGE).read_text()
    assert report.replaced(page, runs) == page
    for run in report.newest(runs):
        plot = docs / report.plot_name(run)
        assert report.digest(run).encode() in plot.read_bytes(), f"{plot.name} shows other figures"
    assert {path.name for path in docs.glob("performance-*.png")} == {
        report.plot_name(run) for run in report.newest(runs)
    }
