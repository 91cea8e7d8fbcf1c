from __future__ import annotations

import json
import math
import random
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("trl")
pytest.importorskip("pyarrow")
pytest.importorskip("matplotlib")

from transformers import LlamaForCausalLM
from transformers.utils import logging

from bayes_prompt import recipes
from bayes_prompt.history import History
from bayes_prompt.testbed import experiment, report
from bayes_prompt.testbed.experiment import METHODS, WARM_START, RunResult, Settings, run
from bayes_prompt.testbed.model import ModelSize, MuonAndAdamW, build_tokenizer, never_sampled
from bayes_prompt.testbed.results import NotWritten
from bayes_prompt.testbed.warm_start import WarmStart

TINY = Settings(
    steps=3,
    prompts=32,
    batch_size=4,
    group_size=4,
    held_out=6,
    held_out_samples=2,
    evaluate_every=2,
    warm_start=WarmStart(
        size=ModelSize(hidden=32, layers=1, heads=2, feed_forward=32),
        target=0.9,
        max_steps=60,
        batch_size=16,
        warm_up=5,
        check_every=30,
        check_prompts=8,
        check_samples=1,
    ),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experiment")


@pytest.fixture(scope="module")
def told() -> list[tuple[str, int, int | None, str]]:
    return []


@pytest.fixture(scope="module")
def results(folder: Path, told: list[tuple[str, int, int | None, str]]) -> list[RunResult]:
    return run(
        ("uniform", "dps"),
        seed=1,
        settings=TINY,
        out=folder / "out",
        cache=folder / "cache",
        progress=lambda *what: told.append(what),
    )


def test_both_methods_get_the_same(results: list[RunResult]) -> None:
    assert [result.method for result in results] == ["uniform", "dps"]
    for result in results:
        assert (result.steps, result.rollouts) == (3, 3 * 4 * 4)
        assert [len(curve) for curve in (result.effective_sample_ratio, result.reward, result.pool_success_rate)] == [
            3
        ] * 3
        assert [evaluation.step for evaluation in result.held_out] == [0, 2, 3]
        for evaluation in result.held_out:
            assert len(evaluation.rates) == 6 and min(evaluation.rates) >= 0 and max(evaluation.rates) <= 1
        assert 0 < result.seconds_selecting < result.seconds
        assert [evaluation.samples for evaluation in result.held_out] == [4, 2, 4]
    assert results[0].held_out[0] == results[1].held_out[0]


def test_the_history_is_what_was_rolled_out(results: list[RunResult]) -> None:
    for result in results:
        history = result.history
        assert history.successes is not None
        assert history.trials.shape == (3, 32)
        # Four distinct prompts a step, each rolled out four times.
        assert torch.equal((history.trials == 4).sum(1), torch.full((3,), 4))
        assert int(history.trials.sum()) == result.rollouts
        assert result.reward == pytest.approx((history.successes.sum(1) / 16).tolist())
        mixed = ((history.successes > 0) & (history.successes < history.trials)).sum(1) / 4
        assert result.effective_sample_ratio == mixed.tolist()
        useful: set[int] = set()
        for step, count in enumerate(result.useful_prompts):
            partly = (history.successes[step] > 0) & (history.successes[step] < history.trials[step])
            useful |= set(partly.nonzero().flatten().tolist())
            assert count == len(useful)
        assert result.coverage == float((history.trials > 0).any(0).double().mean())


def test_the_selector_saw_the_same_counts(results: list[RunResult]) -> None:
    """Its estimate of the pool is what a fresh selector says that is told the recorded history."""
    for result in results:
        selector = getattr(recipes, result.method)(num_prompts=32, batch_size=4, seed=1)
        history = result.history
        assert history.successes is not None
        for step in range(3):
            index = history.trials[step].nonzero().flatten()
            selector.update(index, successes=history.successes[step, index], trials=history.trials[step, index])
            # The same arithmetic on the same counts, in float32.
            assert selector.metrics()["pool_success_rate"] == pytest.approx(result.pool_success_rate[step], abs=1e-6)


def test_files_and_progress(
    results: list[RunResult], folder: Path, told: list[tuple[str, int, int | None, str]]
) -> None:
    figures = json.loads((folder / "out" / "results.json").read_text())
    assert [part["method"] for part in figures] == ["uniform", "dps"]
    kept = History.read_parquet(folder / "out" / "history_dps.parquet")
    assert torch.equal(kept.trials, results[1].history.trials)
    assert list(dict.fromkeys(stage for stage, *_ in told)) == [WARM_START, "uniform", "dps"]
    for method in ("uniform", "dps"):
        assert [done for stage, done, *_ in told if stage == method] == [1, 2, 3]


def test_a_function_of_the_seed(results: list[RunResult], folder: Path) -> None:
    """Again, with the cached start and the other method left out: the same prompts, rollouts and rewards."""
    (again,) = run(("dps",), seed=1, settings=TINY, cache=folder / "cache")
    assert again.history.successes is not None and results[1].history.successes is not None
    assert torch.equal(again.history.trials, results[1].history.trials)
    assert torch.equal(again.history.successes, results[1].history.successes)
    assert again.held_out == results[1].held_out


SHORT = replace(TINY, steps=1, warm_start=replace(TINY.warm_start, max_steps=1))


@pytest.mark.parametrize("bars", [True, False])
def test_library_settings_are_left_alone(monkeypatch: pytest.MonkeyPatch, bars: bool) -> None:
    monkeypatch.setattr(logging, "_tqdm_active", bars)

    def state() -> tuple[Any, ...]:
        generators = (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())
        return torch.get_num_threads(), logging.get_verbosity(), logging.is_progress_bar_enabled(), generators

    before = state()
    run(("uniform",), seed=1, settings=SHORT, use_cache=False)
    assert state() == before


def test_the_learning_rate_rises_from_the_first_step_on(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    rates: list[list[float]] = []
    step = MuonAndAdamW.step

    def noting(self: MuonAndAdamW, closure: Any = None) -> None:
        rates.append([group["lr"] for part in self.parts for group in part.param_groups])
        step(self, closure)

    monkeypatch.setattr(MuonAndAdamW, "step", noting)
    settings = replace(TINY, warm_up=2, warm_start=replace(TINY.warm_start, max_steps=1))
    run(("uniform",), seed=1, settings=settings, use_cache=False)
    full = settings.learning_rate
    assert rates[-3:] == [[full / 2] * 2, [full] * 2, [full] * 2]


def test_what_decoding_skips_is_never_rolled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even by a model that would say hardly anything else."""
    tokenizer = build_tokenizer()
    never, end = never_sampled(tokenizer), tokenizer.eos_token_id
    forward, generate = LlamaForCausalLM.forward, LlamaForCausalLM.generate
    rollouts: list[list[int]] = []

    def favouring(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        if "labels" not in kwargs:
            output.logits[..., never] += 100
        return output

    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        tokens = generate(self, *args, **kwargs)
        if "generation_config" in kwargs:  # the trainer's own; ours names its options
            width = kwargs["input_ids"].shape[1]
            rollouts.extend(tokens[:, width:].tolist())
        return tokens

    monkeypatch.setattr(LlamaForCausalLM, "forward", favouring)
    monkeypatch.setattr(LlamaForCausalLM, "generate", noting)
    run(("uniform",), seed=1, settings=SHORT, use_cache=False)
    assert len(rollouts) == 16
    for tokens in rollouts:
        said = tokens[: tokens.index(end)] if end in tokens else tokens
        assert not set(said) & set(never), tokens


def test_kernels_are_compiled_before_the_clock_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    recipe = recipes.dps

    def noting(**options: Any) -> Any:
        made.append(recipe(**options))
        return made[-1]

    monkeypatch.setattr(recipes, "dps", noting)
    compiled: list[Any] = []
    rehearse = experiment._compile

    def watched(*arguments: Any) -> None:
        rehearse(*arguments)
        compiled.extend(signatures())

    def signatures() -> list[Any]:
        """Of every compiled kernel: what it was compiled for."""
        modules = [module for name, module in sys.modules.items() if name.startswith("bayes_prompt.kernels.")]
        kernels = {id(k): k for module in modules for k in vars(module).values() if hasattr(k, "signatures")}
        return [(id(kernel), signature) for kernel in kernels.values() for signature in kernel.signatures]

    monkeypatch.setattr(experiment, "_compile", watched)
    (result,) = run(("dps",), seed=1, settings=replace(SHORT, steps=3), use_cache=False)
    rehearsal, used = made
    assert rehearsal.metrics()["step"] == 2
    assert int(result.history.trials.sum()) == 48 and used.metrics()["step"] == 3
    assert compiled and signatures() == compiled  # the run itself compiled nothing


def test_bad_folders_are_noticed_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "warm_start", lambda *_, **__: pytest.fail("the work has begun"))
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below", "", "a\0b"):
        with pytest.raises(ValueError, match="out must be a folder in which files can be written; got"):
            run(("uniform",), settings=SHORT, out=out)


def test_an_interrupted_run_keeps_the_methods_that_ended(
    tmp_path: Path, results: list[RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def finetune(method: str, *_: Any) -> RunResult:
        if method == "dps":
            raise KeyboardInterrupt
        return results[0]

    monkeypatch.setattr(experiment, "_finetune", finetune)
    with pytest.raises(KeyboardInterrupt):
        run(("uniform", "dps"), seed=1, settings=SHORT, out=tmp_path, use_cache=False)
    kept = History.read_parquet(tmp_path / "history_uniform.parquet")
    assert torch.equal(kept.trials, results[0].history.trials)
    assert [part["method"] for part in json.loads((tmp_path / "results.json").read_text())] == ["uniform"]


def test_results_survive_a_failure_to_write(
    tmp_path: Path, results: list[RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = iter(results)
    monkeypatch.setattr(experiment, "_finetune", lambda *_: next(finished))

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(report, "write", full)
    with pytest.raises(NotWritten, match="no space left") as failed:
        run(("uniform", "dps"), seed=1, settings=SHORT, out=tmp_path, use_cache=False)
    assert failed.value.results == results


def test_every_method_is_a_recipe() -> None:
    for method in METHODS:
        settings = Settings(prompts=256, batch_size=2)
        selector = experiment._selector(method, settings, 0, [f"{number}+1=" for number in range(256)])
        assert (selector.num_prompts, selector.batch_size) == (256, 2)
        assert hasattr(recipes, method)


@pytest.mark.parametrize(
    "methods", [("uniform", "fastest"), (), ("dps", "dps"), "dps", (name for name in ("fastest",))]
)
def test_bad_methods(methods: Any) -> None:
    with pytest.raises(ValueError, match=r"methods must be .*one or more of uniform, best, dps"):
        run(methods)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"steps": True}, "steps must be an integer; got bool"),
        ({"prompts": 100}, "prompts must be at least 256; got 100"),
        ({"prompts": 300, "batch_size": 301}, "prompts must be at least 301; got 300"),
        ({"group_size": 2.5}, "group_size must be an integer; got float"),
        ({"group_size": 1}, "group_size must be at least 2; got 1"),
        ({"batch_size": "8"}, "batch_size must be an integer; got str"),
        ({"held_out": 1}, "held_out must be at least 2; got 1"),
        ({"warm_up": -1}, "warm_up must be at least 0; got -1"),
        ({"learning_rate": -1.0}, "learning_rate must be a finite number > 0; got -1.0"),
        ({"learning_rate": math.inf}, "learning_rate must be a finite number > 0; got inf"),
        ({"temperature": 0.0}, "temperature must be a finite number > 0; got 0.0"),
        ({"temperature": math.nan}, "temperature must be a finite number > 0; got nan"),
    ],
)
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        Settings(**options)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, None])
def test_bad_seeds(seed: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"seed must (lie in \[0, 4294967295\]|be an integer); got"):
        run(seed=seed)
