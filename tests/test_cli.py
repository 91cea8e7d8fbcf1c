from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from bayes_prompt import cli
from bayes_prompt.bench import command as bench_command
from bayes_prompt.testbed import command as testbed_command


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Stand in for the experiment: note what it is called with, and give made-up results. In an empty folder."""
    pytest.importorskip("trl")
    pytest.importorskip("rich")
    import torch

    from bayes_prompt.history import History
    from bayes_prompt.testbed import experiment
    from bayes_prompt.testbed.results import Evaluation, RunResult

    noted: list[dict[str, Any]] = []

    def run(methods: tuple[str, ...], **options: Any) -> list[RunResult]:
        noted.append({"methods": methods, **options})
        print("a library prints something")
        for done in (1, 2):
            options["progress"]("some stage", done, 2, "a remark")
        history = History(torch.tensor([[1, 0, 0, 0]]), torch.full((1, 4), 2))
        evaluations = [Evaluation(0, [0, 2], 2), Evaluation(1, [2, 2], 2)]
        return [RunResult(method, 0, 1, 8, [0.5], [0.5], evaluations, 1.0, 0.1, 2.0, history) for method in methods]

    monkeypatch.setattr(experiment, "run", run)
    monkeypatch.chdir(tmp_path)
    return noted


def test_defaults(calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo"]) == 0
    (options,) = calls
    assert options.pop("progress")
    assert options == {
        "methods": ("uniform", "dps"),
        "steps": 80,
        "prompts": 256,
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
    assert testbed_command.METHODS == experiment.METHODS
    assert experiment.Settings(prompts=testbed_command.LEAST_PROMPTS).prompts == testbed_command.LEAST_PROMPTS
    with pytest.raises(ValueError):
        experiment.Settings(prompts=testbed_command.LEAST_PROMPTS - 1)


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
    assert (figures["useful_prompts"], figures["gain_over"]) == (1, {})
    assert figures["held_out"]["gain"]["mean"] == 0.5
    assert "some stage" in printed.err


def test_quiet(calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--quiet"]) == 0
    assert "some stage" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--steps 0", "argument --steps: must be an integer >= 1, got '0'"),
        ("--steps many", "argument --steps: must be an integer >= 1, got 'many'"),
        ("--prompts 10", "argument --prompts: must be an integer >= 256, got '10'"),
        ("--seed -1", "argument --seed: must be an integer in [0, 4294967295], got '-1'"),
        ("--seed 4294967296", "argument --seed: must be an integer in [0, 4294967295], got '4294967296'"),
        ("--methods uniform,fastest", "argument --methods: 'fastest' is not a method; choose among uniform, best"),
        ("--methods uniform,uniform", "argument --methods: 'uniform,uniform' names a method twice"),
        ("--methods ,", "argument --methods: ',' leaves a name empty; write names with one comma between two"),
        ("--methods uniform,dps,", "argument --methods: 'uniform,dps,' leaves a name empty"),
        ("--cache here --no-cache", "not allowed with argument --cache"),
        (f"--out {__file__}", "exists and is not a folder"),
        ("--out=", "argument --out: must be the name of a folder, got ''"),
        ("--cache=", "argument --cache: must be the name of a folder, got ''"),
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


@pytest.mark.parametrize("much", [True, False])
def test_whoever_reads_the_output_may_leave(much: bool) -> None:
    program = (
        "import sys, dataclasses; from bayes_prompt import cli\n"
        f"def act(options): print('x' * 100_000 if {much} else 'x'); return 0\n"
        "cli.COMMANDS = (dataclasses.replace(cli.COMMANDS[0], act=act, needs=(), configure=lambda parser: None),)\n"
        "sys.exit(cli.main(['fit']))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 1
    process.stderr.close()


def test_interrupted(calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    from bayes_prompt.testbed import experiment

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "run", stop)
    assert cli.main(["demo", "--quiet"]) == 130


@pytest.mark.parametrize("out", ["afile/sub", "afile/sub/deeper", "/proc/x", "a" * 300])
def test_a_folder_that_cannot_be_written_to_is_noticed_at_once(
    calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    (tmp_path / "afile").write_text("")
    assert cli.main(["demo", "--out", out]) == 2
    printed = capsys.readouterr()
    assert not calls and printed.out == ""
    (line,) = printed.err.splitlines()
    assert f"argument --out must be a folder in which files can be written; got '{out}'" in line


def test_results_are_printed_though_they_cannot_be_written(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bayes_prompt.testbed import experiment
    from bayes_prompt.testbed.results import NotWritten

    run = experiment.run

    def full(*arguments: Any, **options: Any) -> None:
        raise NotWritten("no space left", run(*arguments, **options))

    monkeypatch.setattr(experiment, "run", full)
    assert cli.main(["demo", "--quiet"]) == 1
    printed = capsys.readouterr()
    assert "uniform" in printed.out and "dps" in printed.out and "curves" not in printed.out
    assert "no space left" in printed.err
    assert cli.main(["demo", "--quiet", "--json"]) == 1
    assert [part["method"] for part in json.loads(capsys.readouterr().out)] == ["uniform", "dps"]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Stand in for the benchmarks: note what is asked for, and give made-up results. In an empty folder."""
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    from bayes_prompt.bench import suite
    from bayes_prompt.bench.machine import CopyBandwidth, Machine
    from bayes_prompt.bench.measure import Seconds
    from bayes_prompt.bench.memory import Held
    from bayes_prompt.bench.results import Measurement, Results
    from bayes_prompt.bench.verify import Verdict

    noted: list[dict[str, Any]] = []

    def run(operations: tuple[str, ...], sizes: tuple[int, ...], **options: Any) -> Results:
        noted.append({"operations": operations, "sizes": sizes, **options})
        print("a library prints something")
        options["progress"]("some stage", 1, 1, "")
        seconds = Seconds.of([0.0123])
        row = Measurement("step", "all visited", 2000, "bayes_prompt", seconds, 192_000, None, Held(1, 2))
        machine, copy = Machine("A Processor", "cpu", 2, 2, 1 << 34, 0.1), CopyBandwidth(8, 2, 9e9, 1e10)
        right = Verdict("step", "bayes_prompt", True, 3)
        return Results(machine, copy, "cpu", 1.0, verdicts=(right,), measurements=(row,))

    monkeypatch.setattr(suite, "run", run)
    monkeypatch.chdir(tmp_path)
    return noted


def test_bench_defaults(runs: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    assert cli.main(["bench"]) == 0
    (options,) = runs
    assert options.pop("progress")
    assert options == {
        "operations": bench_command.OPERATIONS,
        "sizes": (10_000, 100_000, 1_000_000),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "backend": "auto",
        "peers": bench_command.PEERS,
        "budget": 0.5,
    }
    printed = capsys.readouterr()
    assert "12.3 ms" in printed.out and "bayes-prompt-bench" in printed.out
    assert "a library prints something" not in printed.out and "some stage" in printed.err
    assert sorted(path.suffix for path in Path("bayes-prompt-bench").iterdir()) == [".json", ".png"]


def test_bench_options_arrive(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    line = "bench --operations step,filter --sizes 1e6,2000,2e3 --device cpu --backend cpu --budget 2.5 --quiet --out"
    assert cli.main([*line.split(), str(tmp_path / "deep" / "er"), "--peers", "torch.compile, dict of arrays"]) == 0
    assert cli.main(["bench", "--peers", "none", "--quiet"]) == 0
    first, second = runs
    assert (first["operations"], first["sizes"]) == (("step", "filter"), (2000, 1_000_000))
    assert (first["device"], first["backend"], first["budget"]) == ("cpu", "cpu", 2.5)
    assert (first["peers"], second["peers"]) == (("torch.compile", "dict of arrays"), ())
    assert len(list((tmp_path / "deep" / "er").glob("*.json"))) == 1


def test_bench_json_is_all_there_is_on_stdout(runs: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    from bayes_prompt.bench.results import Results, load

    assert cli.main(["bench", "--json", "--quiet"]) == 0
    printed = capsys.readouterr()
    results = Results.from_json(json.loads(printed.out))
    assert load(Path("bayes-prompt-bench")) == [results]
    assert "some stage" not in printed.err


def test_bench_knows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    cases = pytest.importorskip("bayes_prompt.bench.cases")
    from bayes_prompt.bench.workloads import OPERATIONS
    from bayes_prompt.kernels.backend import BACKENDS

    assert (tuple(OPERATIONS), cases.PEERS, BACKENDS) == (
        bench_command.OPERATIONS,
        bench_command.PEERS,
        bench_command.BACKENDS,
    )
    pytest.importorskip("rich")
    assert cli.main(["bench", "--list"]) == 0
    out = capsys.readouterr().out
    assert [name for name in (*OPERATIONS, *cases.PEERS, "bayes_prompt", "copy") if name not in out] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--operations step,sort", "argument --operations: 'sort' is not an operation; choose among filter, select"),
        ("--operations step,step", "argument --operations: 'step,step' names an operation twice"),
        ("--sizes 1e4,many", "argument --sizes: must be integers such as 40000 or 1e6, got 'many'"),
        ("--sizes 1e4,,1e5", "argument --sizes: must be integers such as 40000 or 1e6, got ''"),
        ("--sizes 100", "argument --sizes: must be integers in [512, 10000000000], got '100'"),
        ("--sizes 1000.5", "argument --sizes: must be integers in [512, 10000000000], got '1000.5'"),
        ("--sizes 1e99", "argument --sizes: must be integers in [512, 10000000000], got '1e99'"),
        ("--sizes inf", "argument --sizes: must be integers such as 40000 or 1e6, got 'inf'"),
        ("--sizes nan", "argument --sizes: must be integers such as 40000 or 1e6, got 'nan'"),
        ("--peers none,numpy", "argument --peers: 'none' is not a peer; choose among dict of arrays, numpy float64"),
        ("--budget 0", "argument --budget: must be a number of seconds greater than 0, got '0'"),
        ("--budget nan", "argument --budget: must be a number of seconds greater than 0, got 'nan'"),
        ("--budget soon", "argument --budget: must be a number of seconds greater than 0, got 'soon'"),
        ("--device tpu", "argument --device: invalid choice: 'tpu'"),
        ("--backend fast", "argument --backend: invalid choice: 'fast'"),
        (f"--out {__file__}", "exists and is not a folder"),
    ],
)
def test_bench_bad_values(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", *line.split()])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_bench_without_a_gpu(
    runs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", "--quiet", "--device", "cuda"]) == 2
    assert not runs
    assert capsys.readouterr().err == "bayes-prompt bench: error: argument --device: torch finds no CUDA device\n"


def test_bench_with_a_backend_that_cannot_be_had(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    from bayes_prompt.kernels import backend

    line = f"bench --quiet --device cpu --backend triton --sizes 2000 --out {tmp_path}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "_obstacle", lambda name, device: "it is not there")
        assert cli.main(line.split()) == 2
    printed = capsys.readouterr()
    assert "argument --backend: backend 'triton' cannot run on device 'cpu': it is not there" in printed.err
    assert printed.out == ""


def test_bench_tells_of_what_is_wrong(
    runs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from bayes_prompt.bench import suite
    from bayes_prompt.bench.verify import Verdict

    run = suite.run
    wrong = (Verdict("step", "bayes_prompt", False, 3, "all of it"),)
    monkeypatch.setattr(suite, "run", lambda *given, **options: replace(run(*given, **options), verdicts=wrong))
    assert cli.main(["bench", "--quiet"]) == 1
    printed = capsys.readouterr()
    assert "step by bayes_prompt disagrees with the reference: all of it" in printed.err
    assert "FAILED: step by bayes_prompt" in printed.out


def test_bench_results_are_printed_though_they_cannot_be_written(
    runs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bayes_prompt.bench import results

    def full(*_: Any) -> Path:
        raise OSError("no space left")

    monkeypatch.setattr(results, "write", full)
    assert cli.main(["bench", "--quiet"]) == 1
    printed = capsys.readouterr()
    assert "12.3 ms" in printed.out and "bayes-prompt-bench" not in printed.out
    assert printed.err.endswith("\nbayes-prompt bench: error: no space left\n")


def test_a_terminal_that_has_only_ascii(calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    assert cli.main(["demo", "--quiet", "--out", "ergebnisse-für-später"]) == 0
    stdout.seek(0)
    printed = stdout.read()
    assert "0.500+-.500" in printed and "ergebnisse-f\\xfcr-sp\\xe4ter" in printed


def test_help_loads_nothing_heavy() -> None:
    """The parser works without torch, and so quickly; in a fresh process, for here torch is loaded already."""
    code = (
        "import sys; from bayes_prompt import cli; cli.build_parser().format_help();"
        "sys.exit(bool({'torch', 'transformers', 'trl', 'matplotlib', 'rich', 'pyro'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
