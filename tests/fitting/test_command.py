"""`bayes-prompt fit` and `bayes-prompt compare`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from bayes_prompt.fitting import command
from bayes_prompt.fitting.evidence import has_filter
from bayes_prompt.fitting.families import FAMILIES, read
from bayes_prompt.fitting.fit import METHODS
from bayes_prompt.fitting.predictions import predicted, replicate
from bayes_prompt.history import History


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    trials = torch.full((6, 20), 8)
    History(replicate(FAMILIES["mopps"].declare(), trials, 0), trials).write_jsonl(tmp_path / "history.jsonl")
    return tmp_path / "history.jsonl"


def run(name: str, *arguments: str) -> int:
    parser = argparse.ArgumentParser(prog=name)
    {"fit": command.configure_fit, "compare": command.configure_compare}[name](parser)
    act = {"fit": command.act_fit, "compare": command.act_compare}[name]
    return act(parser.parse_args(arguments))


def test_names_are_those_of_the_families_and_methods() -> None:
    assert tuple(FAMILIES) == command.MODELS and METHODS == command.METHODS
    assert tuple(name for name, family in FAMILIES.items() if has_filter(family.declare())) == command.QUICK


def test_fit_prints_what_it_found(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = recorded.parent / "model.json"
    assert run("fit", str(recorded), "--model", "mopps", "--fix", "a=1", "--out", str(out)) == 0
    said = capsys.readouterr().out
    assert "decay" in said and "97.5%" in said and "bp.SuccessRate(dist.Beta(1, " in said
    assert read(out).decay == json.loads(out.read_text())["parameters"]["decay"]["mean"]


def test_fit_prints_json_alone(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", str(recorded), "--model", "mopps", "--method", "map", "--json") == 0
    assert json.loads(capsys.readouterr().out)["family"] == "mopps"


def test_a_parameter_that_the_emission_is_made_of_may_be_fixed(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", str(recorded), "--model", "states", "--method", "map", "--fix", "rare=0.3", "--json") == 0
    assert json.loads(capsys.readouterr().out)["fixed"] == {"rare": 0.3}


@pytest.fixture
def once(tmp_path: Path) -> Path:
    trials = torch.full((1, 8), 8)
    History(replicate(FAMILIES["mopps"].declare(), trials, 0), trials).write_jsonl(tmp_path / "once.jsonl")
    return tmp_path / "once.jsonl"


def test_fit_says_what_to_fix(once: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what it says may be copied."""
    assert run("fit", str(once), "--model", "walk", "--method", "map") == 2
    said = capsys.readouterr().err
    assert "scale, trend: nothing that this history shows depends on them" in said
    advice = said[said.index("--fix") :].split()
    assert advice == ["--fix", "scale=0.3", "--fix", "trend=0"]
    assert run("fit", str(once), "--model", "walk", "--method", "map", *advice) == 0


def test_compare_leaves_what_a_history_says_nothing_of(once: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a single step only the prior is fitted, and of dps nothing."""
    assert run("compare", str(once), "--models", "walk,dps,static", "--fit", "--replicates", "0") == 0
    assert "4 prompts, 4 looks" in capsys.readouterr().out


def test_a_single_draw_is_printed(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nuts = ("fit", str(recorded), "--model", "mopps", "--method", "nuts", "--draws", "1")
    assert run(*nuts) == 0
    assert "effective draws" not in capsys.readouterr().out
    assert run(*nuts, "--json") == 0
    assert set(json.loads(capsys.readouterr().out)["effective_draws"].values()) == {None}


def test_the_import_that_help_names_works(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("fit", "--help")
    said = " ".join(capsys.readouterr().out.split())
    line = "from bayes_prompt.fitting.families import read"
    assert line in said and "bp.fitting" not in said
    exec(line, {})


def test_compare_prints_models_and_checks(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", str(recorded), "--models", "mopps,dps", "--replicates", "3", "--fit") == 0
    said = capsys.readouterr().out
    assert "10 prompts, 60 looks" in said  # every second one
    assert said.index("mopps") < said.index("dps") and "unsolved -> partial" in said and "solved again" in said


def test_compare_takes_files_and_prints_json_alone(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(recorded.parent / "model.json")
    assert run("fit", str(recorded), "--model", "static", "--method", "map", "--out", out) == 0
    capsys.readouterr()
    assert run("compare", str(recorded), "--models", f"{out},walk", "--replicates", "0", "--json") == 0
    assert {score["name"] for score in json.loads(capsys.readouterr().out)["scores"]} == {out, "walk"}


@pytest.fixture
def families(recorded: Path) -> str:
    """A table of the prompts, in another order than the history's; as an argument of --groups."""
    rows = [{"prompt_id": row, "family": "odd" if row % 4 > 1 else "even"} for row in reversed(range(20))]
    (recorded.parent / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"{recorded.parent / 'prompts.jsonl'}:family"


@pytest.mark.parametrize("split", [(), ("--fit",)])
def test_compare_is_told_of_groups(
    split: tuple[str, ...], recorded: Path, families: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ("compare", str(recorded), "--models", "grouped,dps", "--groups", families, "--replicates", "2", "--json")
    assert run(*line, *split) == 0
    scores = {score["name"]: score["log_count_evidence"] for score in json.loads(capsys.readouterr().out)["scores"]}
    if not split:
        groups = [row % 4 // 2 for row in range(20)]
        for name, found in scores.items():
            by_hand = predicted(FAMILIES[name].declare(), History.read(recorded), groups)[0].sum()
            assert found == pytest.approx(float(by_hand), rel=1e-12)


def test_fit_is_told_of_groups(recorded: Path, families: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ("fit", str(recorded), "--model", "grouped", "--method", "map", "--fix", "decay=0.9", "--fix", "stay=1")
    assert run(*line, "--groups", families, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["family"] == "grouped" and set(found["parameters"]) == {"move"}
    assert run(*line) == 2
    assert "groups must be given for a SolvingProgress" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "HISTORY", "--groups", "family"), "argument --groups: must be FILE:COLUMN, got 'family'"),
        (("compare", "HISTORY", "--groups", "HISTORY:family"), "needs a column 'family'; it has prompt_id, step"),
        (("compare", "HISTORY", "--groups", "no.jsonl:family"), "argument --groups: "),
        (("compare", "HISTORY", "--models", "grouped"), "groups must be given for a SolvingProgress"),
        (("fit", "nowhere.parquet"), "argument HISTORY: there is no file 'nowhere.parquet'"),
        (("fit", "HISTORY", "--fix", "x=1"), "x is no parameter of 'walk'"),
        (("fit", "HISTORY", "--out", "."), "argument --out: '.' is a folder"),
        (("fit", "HISTORY", "--model", "mopps", "--fix", "a=-2"), "error: a = -2.0 must be above 0"),
        (("fit", "HISTORY", "--model", "mopps", "--fix", "a=nan"), "error: a must be finite; got nan"),
        (("fit", "HISTORY", "--model", "mopps", "--fix", "decay=2"), "error: decay = 2.0 must lie in [0, 1]"),
        (("fit", "HISTORY", "--model", "dps", "--fix", "move=-1"), "error: move = -1.0 must be above 0"),
        (("fit", "HISTORY", "--model", "redraw", "--fix", "probability=-1"), "probability = -1.0 must lie in [0, 1"),
        (("compare", "nowhere.jsonl"), "argument HISTORY: there is no file"),
    ],
)
def test_what_cannot_be_used_is_named(
    arguments: tuple[str, ...], message: str, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*(each.replace("HISTORY", str(recorded)) for each in arguments)) == 2
    caught = capsys.readouterr()
    assert message in caught.err and caught.out == ""


def test_an_output_that_is_an_input_is_refused(
    recorded: Path, families: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = families.removesuffix(":family")
    for out, named in ((str(recorded), "HISTORY"), (table, "--groups")):
        before = Path(out).read_bytes()
        assert run("fit", str(recorded), "--model", "mopps", "--groups", families, "--out", out) == 2
        assert f"argument --out: {out!r} is what {named} is read from" in capsys.readouterr().err
        assert Path(out).read_bytes() == before


def test_a_fit_is_written_whole_or_not_at_all(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Path, text: str, **_: object) -> int:
        with open(self, "w") as file:
            file.write(text[:10])
        raise OSError(28, "No space left on device")

    out = recorded.parent / "model.json"
    out.write_text("an earlier fit")
    monkeypatch.setattr(Path, "write_text", full)
    assert run("fit", str(recorded), "--model", "mopps", "--method", "map", "--out", str(out)) == 1
    assert "No space left" in capsys.readouterr().err
    assert out.read_text() == "an earlier fit" and len(list(out.parent.iterdir())) == 2


MOPPS = {"family": "mopps", "fixed": {"decay": 0.5}, "parameters": {"a": {"mean": 1}, "b": {"mean": 1}}}
SHARES = {"a": {"mean": 1}, "b": {"mean": 1}, "weights": {"mean": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"family": "dps", "parameters": [], "fixed": {}}, "is no fit of one of dps"),
        ({"family": "dps", "parameters": {"move": 1}, "fixed": {}}, "is no fit of one of dps"),
        ([], "is no fit of one of dps"),
        ({**MOPPS, "fixed": {}}, "it lacks decay"),
        ({**MOPPS, "fixed": {"decay": "x"}}, "model.json': decay must be a prior or numbers; got 'x'"),
        ({**MOPPS, "fixed": {"decay": 2}}, "model.json': decay = 2.0 must lie in [0, 1]"),
        ({**MOPPS, "parameters": {"a": {"mean": -1}, "b": {"mean": 1}}}, "model.json': a = -1.0 must be above 0"),
        ({**MOPPS, "parameters": {"a": {"mean": "x"}, "b": {"mean": 1}}}, "model.json': a must be a prior or numbers"),
        ({**MOPPS, "parameters": {"a": {"mean": [1]}, "b": {"mean": 1}}}, "model.json': a must have shape (); got [1]"),
        ({**MOPPS, "family": "inflated", "parameters": SHARES}, "model.json': weights must have shape (3,); got 1"),
        ({**MOPPS, "family": "inflated", "parameters": SHARES | {"weights": {"mean": [0.9, 0.9, 0]}}}, "model.json': "),
        ("[" * 100_000, "is no fit of one of dps"),
        ("not json", "is no fit of one of dps"),
    ],
)
def test_files_that_are_no_model_are_named(
    text: object, message: str, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = recorded.parent / "model.json"
    out.write_text(text if isinstance(text, str) else json.dumps(text))
    assert run("compare", str(recorded), "--models", str(out)) == 2
    caught = capsys.readouterr()
    assert message in caught.err and str(out) in caught.err and caught.out == ""


def test_models_and_tables_may_begin_with_a_byte_order_mark(recorded: Path, families: str) -> None:
    out, table = recorded.parent / "model.json", Path(families.removesuffix(":family"))
    out.write_text(json.dumps(MOPPS), encoding="utf-8-sig")
    table.write_text(table.read_text(), encoding="utf-8-sig")
    assert run("compare", str(recorded), "--models", f"{out}", "--groups", families, "--replicates", "0") == 0


@pytest.mark.parametrize("arguments", [("--models", "nothing"), ("--models", "dps,dps"), ("--replicates", "-1")])
def test_bad_options_are_refused(arguments: tuple[str, ...], recorded: Path) -> None:
    with pytest.raises(SystemExit):
        run("compare", str(recorded), *arguments)
    with pytest.raises(SystemExit):
        run("fit", str(recorded), "--fix", "decay")
