"""`bayes-prompt replay` from the arguments to the files."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch

import bayes_prompt as bp
from bayes_prompt.history import History
from bayes_prompt.replays import command
from bayes_prompt.replays.results import ReplayResults

NAMES = ["c", "a", "b", "d"]


def replay(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return command.act(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def history(tmp_path: Path) -> Path:
    g = torch.Generator().manual_seed(0)
    trials = torch.full((7, 4), 8)
    History(torch.randint(0, 9, trials.shape, generator=g), trials, tuple(NAMES)).write_jsonl(tmp_path / "h.jsonl")
    return tmp_path / "h.jsonl"


def test_from_a_history_to_every_output(history: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, pictures = tmp_path / "deeper" / "out.json", tmp_path / "pictures"
    options = ["--methods", "uniform,dps:decay=0.5", "--batch-size", "2", "--seeds", "2", "--first-visit", "3"]
    assert replay(history, *options, "--json", out, "--plots", pictures) == 0
    printed = capsys.readouterr()
    assert "dps:decay=0.5" in printed.out and "4 prompts, 7 visits, 2 picked at each, 2 seeds" in printed.out
    assert printed.err == ""  # no bars, for it is no terminal
    found = ReplayResults.load(out)
    assert [method.name for method in found.methods] == ["uniform", "dps:decay=0.5"]
    assert (found.first_visit, found.batch_size) == (3, 2)
    again = bp_replay(history)
    assert [run.ratio for run in found.methods[1].runs] == [run.ratio for run in again.methods[0].runs]
    assert len(list(pictures.iterdir())) == 2


def bp_replay(history: Path) -> ReplayResults:
    from bayes_prompt.replays.protocol import replay

    return replay(History.read(history), "dps:decay=0.5", batch_size=2, seeds=2)


def test_json_to_stdout_alone(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(history, "--batch-fraction", "0.5", "--visits", "6", "--json", "-") == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["batch_size"], data["visits"], len(data["methods"])) == (2, 6, 3)
    assert len(data["methods"][0]["runs"]) == 5


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_texts_and_groups_are_found_by_name(
    history: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[Any] = []

    def recipe(*, num_prompts: int, batch_size: int, seed: int, texts: Any = None, groups: Any = None, **_: Any) -> Any:
        noted.append((texts, groups))
        return bp.recipes.uniform(num_prompts=num_prompts, batch_size=batch_size, seed=seed)

    monkeypatch.setattr(bp.recipes, "some_recipe", recipe, raising=False)
    ids = ["z", *NAMES]  # one more than the history has
    columns = {"prompt_id": ids, "said": [f"text {name}" for name in ids], "family": [ord(name) for name in ids]}
    file = tmp_path / f"prompts.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
    else:
        file.write_text(
            "\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True))
        )
    texts, groups = [f"text {name}" for name in "abcd"], [97, 98, 99, 100]
    options = ["--methods", "some_recipe", "--seeds", "1"]
    assert replay(history, *options, "--texts", file, "--text-column", "said", "--groups", "family") == 0
    assert replay(history, *options, "--groups", f"{file}:family") == 0
    assert replay(history, *options, "--texts", file, "--text-column", "said") == 0
    assert noted == [(texts, groups), (None, groups), (texts, None)]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_known_rates_may_have_gaps(history: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[Any] = []

    def recipe(*, num_prompts: int, batch_size: int, seed: int, prior_rates: Any = None) -> Any:
        noted.append(prior_rates)
        return bp.recipes.uniform(num_prompts=num_prompts, batch_size=batch_size, seed=seed)

    monkeypatch.setattr(bp.recipes, "some_recipe", recipe, raising=False)
    file = tmp_path / f"prompts.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"prompt_id": ["b", "a"], "rate": [None, 0.25]}), file)
    else:
        file.write_text('{"prompt_id": "b"}\n{"prompt_id": "a", "rate": 0.25}\n')
    assert replay(history, "--methods", "some_recipe,uniform", "--seeds", "1", "--prior-rates", f"{file}:rate") == 0
    (rates,) = noted
    assert rates.isnan().tolist() == [False, True, True, True] and float(rates[0]) == 0.25


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nowhere.jsonl", "argument HISTORY: there is no file 'nowhere.jsonl'"),
        ("{folder}/bad.jsonl", "argument HISTORY: the history needs a column 'prompt_id'"),
        ("{history} --methods dsp", "method 'dsp' is no recipe"),
        ("{history} --methods dps:decay=9", "method 'dps:decay=9': decay must lie in [0, 1]"),
        ("{history} --methods gps", "method 'gps': give texts or embeddings"),
        ("{history} --min-visits 8", "min_visits = 8 keeps no prompt"),
        ("{history} --batch-size 5", "batch_size must lie in [1, 4]"),
        ("{history} --texts {folder}/prompts.jsonl", "needs a column 'text'; it has prompt_id, said"),
        ("{history} --texts {folder}/prompts.jsonl --text-column said", "has no said of the prompt 'b'"),
        ("{history} --texts {folder}/prompts.csv", "argument --texts: a history's name must end in"),
        ("{history} --groups family", "argument --groups: name its file, FILE:COLUMN, or give --texts FILE"),
        ("{history} --prior-rates r", "argument --prior-rates: name its file, FILE:COLUMN, or give --texts FILE"),
        ("{history} --prior-rates {folder}/prompts.jsonl:r", "needs a column 'r'; it has prompt_id, said"),
        ("{history} --prior-rates {folder}/prompts.jsonl:said", "prior_rates must be numbers, or None"),
        ("{history} --json {folder}", "argument --json: "),
        ("{history} --json {history}/x.json", "argument --json: "),
        (
            "{history} --prior-rates {folder}/others.jsonl:rate",
            "others.jsonl' has no rate of any prompt of the history",
        ),
        ("{history} --json {folder}/" + "x" * 400, "cannot be written (File name too long)"),
        ("{history} --json=", "argument --json: the name is empty"),
        ("{history} --json {folder}/a\0b", "cannot be written (embedded null byte)"),
        ("{history} --json {folder}/prompts.jsonl", "is named like a table, and JSON is written; end it in .json"),
        ("{history} --json {folder}/new.PARQUET", "is named like a table"),
        ("{history} --json {folder}/kept.json", "kept.json' is read-only; write somewhere else"),
        ("{history} --json {folder}/pipe.json", "pipe.json' is there, and is no regular file"),
        ("{history} --plots {history}", "argument --plots"),
    ],
)
def test_what_cannot_be_used_is_named(
    history: Path, tmp_path: Path, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "prompts.jsonl").write_text('{"prompt_id": "a", "said": "x"}\n')
    (tmp_path / "prompts.csv").write_text("prompt_id,text\n")
    (tmp_path / "others.jsonl").write_text('{"prompt_id": "z", "rate": 0.5}\n')
    (tmp_path / "kept.json").touch(0o444)
    os.mkfifo(tmp_path / "pipe.json")
    arguments = [part.format(history=history, folder=tmp_path) for part in line.split()]
    assert replay(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("bayes-prompt replay: error: ") and message in printed.err
    assert printed.out == "" and "Traceback" not in printed.err


def test_what_a_link_leads_to_is_written(history: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    link, out = tmp_path / "out.json", tmp_path / "deep" / "out.json"
    link.symlink_to(out)
    assert replay(history, "--methods", "uniform", "--json", link) == 0
    assert link.is_symlink() and json.loads(out.read_text())["methods"]


@pytest.mark.parametrize("link", [None, Path.symlink_to, Path.hardlink_to])
@pytest.mark.parametrize("which", ["history", "texts", "groups", "prior-rates"])
def test_an_output_that_is_an_input_is_refused(
    history: Path, tmp_path: Path, which: str, link: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"history": history, "texts": tmp_path / "texts.jsonl", "groups": tmp_path / "groups.jsonl"}
    files["prior-rates"] = tmp_path / "rates.jsonl"
    for name in ("texts", "groups", "prior-rates"):
        files[name].write_text("".join(json.dumps({"prompt_id": each, "text": each}) + "\n" for each in NAMES))
    out, before = files[which], files[which].read_bytes()
    if link is not None:
        out = tmp_path / "other"
        link(out, files[which])
    options = ["--texts", files["texts"], "--groups", f"{files['groups']}:text", "--methods", "uniform"]
    options += ["--prior-rates", f"{files['prior-rates']}:text"]
    assert replay(history, *options, "--json", out) == 2
    named = "HISTORY" if which == "history" else f"--{which}"
    assert f"argument --json: {str(out)!r} is what {named} is read from" in capsys.readouterr().err
    assert files[which].read_bytes() == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("h --seeds 0", "argument --seeds: must be an integer >= 1, got '0'"),
        ("h --batch-fraction 1.5", "argument --batch-fraction: must be a number in (0, 1], got '1.5'"),
        ("h --batch-fraction nan", "argument --batch-fraction: must be a number in (0, 1], got 'nan'"),
        ("h --batch-fraction .1 --batch-size 3", "not allowed with argument"),
        ("h --visits many", "argument --visits: must be an integer >= 1, got 'many'"),
    ],
)
def test_bad_values(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        replay(*line.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_results_that_cannot_be_written(
    history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ReplayResults, "write", full)
    assert replay(history, "--methods", "uniform", "--seeds", "1", "--json", tmp_path / "o.json") == 1
    printed = capsys.readouterr()
    assert "No space left on device" in printed.err and "uniform" in printed.out  # not all is lost


def test_missing_matplotlib_is_told_before_the_work(
    history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert replay(history, "--plots", tmp_path / "p") == 2
    assert "matplotlib" in capsys.readouterr().err
