from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from bayes_prompt import cli


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stand in for the experiment: note what it is called with, and give two made-up results."""
    pytest.importorskip("trl")
    pytest.importorskip("rich")
    import torch

    from bayes_prompt.history import History
    from bayes_prompt.testbed import experiment

    noted: list[dict[str, Any]] = []

    def run(methods: tuple[str, ...], **options: Any) -> list[experiment.RunResult]:
        noted.append({"methods": methods, **options})
        print("a library prints something")
        for done in (1, 2):
            options["progress"]("some stage", done, 2, "a remark")
        history = History(torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.int64))
        return [
            experiment.RunResult(
                method, 0, 1, 4, [0.25], [0.5], [0.5], [(0, [0.0, 1.0]), (1, [1.0, 1.0])], 1.0, 0.1, 2.0, history
            )
            for method in methods
        ]

    monkeypatch.setattr(experiment, "run", run)
    return noted


def test_defaults(calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo"]) == 0
    (options,) = calls
    assert options.pop("progress")
    assert options == {
        "methods": ("uniform", "dps"),
        "steps": 40,
        "prompts": 512,
        "seed": 0,
        "out": Path("bayes-prompt-demo"),
        "cache": None,
        "use_cache": True,
    }
    printed = capsys.readouterr()
    assert "uniform" in printed.out and "dps" in printed.out and "bayes-prompt-demo" in printed.out
    assert "a library prints something" not in printed.out


def test_defaults_are_those_of_the_experiment() -> None:
    experiment = pytest.importorskip("bayes_prompt.testbed.experiment")
    options = cli.build_parser().parse_args(["demo"])
    settings = {field.name: field.default for field in fields(experiment.Settings)}
    assert (options.steps, options.prompts) == (settings["steps"], settings["prompts"])
    assert cli._METHODS == experiment.METHODS
    assert experiment.Settings(prompts=cli._LEAST_PROMPTS).prompts == cli._LEAST_PROMPTS
    with pytest.raises(ValueError):
        experiment.Settings(prompts=cli._LEAST_PROMPTS - 1)


def test_every_option_arrives(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    line = (
        f"demo --methods mopps,uniform --steps 3 --prompts 300 --seed 9 --out {tmp_path} --cache {tmp_path}/c --quiet"
    )
    assert cli.main(line.split()) == 0
    (options,) = calls
    assert options["methods"] == ("mopps", "uniform")
    assert [options[name] for name in ("steps", "prompts", "seed")] == [3, 300, 9]
    assert (options["out"], options["cache"]) == (tmp_path, tmp_path / "c")
    assert cli.main(["demo", "--no-cache"]) == 0
    assert calls[1]["use_cache"] is False


def test_json_is_all_there_is_on_stdout(calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--json", "--methods", "dps"]) == 0
    printed = capsys.readouterr()
    (figures,) = json.loads(printed.out)
    assert (figures["method"], figures["effective_sample_ratio"]) == ("dps", 0.25)
    assert figures["held_out"]["gain"]["mean"] == 0.5
    assert "some stage" in printed.err


def test_quiet(calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--quiet"]) == 0
    assert "some stage" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--steps 0", "argument --steps: must be an integer >= 1, got 0"),
        ("--steps many", "argument --steps: must be an integer >= 1, got 'many'"),
        ("--prompts 10", "argument --prompts: must be an integer >= 256, got 10"),
        ("--seed -1", "argument --seed: must be an integer in [0, 4294967295], got -1"),
        ("--seed 4294967296", "argument --seed: must be an integer in [0, 4294967295], got 4294967296"),
        ("--methods uniform,best", "argument --methods: 'best' is not a method; choose among uniform, dps"),
        ("--methods uniform,uniform", "argument --methods: 'uniform,uniform' names a method twice"),
        ("--methods ,", "argument --methods: '' is not a method"),
        ("--cache here --no-cache", "not allowed with argument --cache"),
        (f"--out {__file__}", "exists and is not a folder"),
    ],
)
def test_bad_values(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["demo", *line.split()])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("line", [[], ["dem"]])
def test_no_such_command(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(line)
    assert stopped.value.code == 2
    assert "usage: bayes-prompt" in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = importlib.util.find_spec
    absent = {"trl", "rich"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in absent else found(name, *rest))
    assert cli.main(["demo"]) == 2
    printed = capsys.readouterr()
    assert 'pip install "bayes-prompt[demo]"' in printed.err
    assert "trl, rich" in printed.err
    assert printed.out == ""


def test_interrupted(calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    from bayes_prompt.testbed import experiment

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "run", stop)
    assert cli.main(["demo", "--quiet"]) == 130


def test_help_loads_nothing_heavy() -> None:
    """The parser works without torch, and so quickly; in a fresh process, for here torch is loaded already."""
    code = (
        "import sys; from bayes_prompt import cli; cli.build_parser().format_help();"
        "sys.exit(bool({'torch', 'transformers', 'trl', 'matplotlib', 'rich', 'pyro'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
