from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl")
pytest.importorskip("pyarrow")
pytest.importorskip("matplotlib")

from bayes_prompt import recipes
from bayes_prompt.history import History
from bayes_prompt.testbed.experiment import METHODS, WARM_START, RunResult, Settings, run
from bayes_prompt.testbed.model import ModelSize
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
        assert [step for step, _ in result.held_out] == [0, 2, 3]
        assert all(len(rates) == 6 and min(rates) >= 0 and max(rates) <= 1 for _, rates in result.held_out)
        assert 0 < result.seconds_selecting < result.seconds
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


def test_library_settings_are_left_alone(results: list[RunResult]) -> None:
    import transformers

    threads, verbosity = torch.get_num_threads(), transformers.logging.get_verbosity()
    run(
        ("uniform",),
        seed=1,
        settings=replace(TINY, steps=1, warm_start=replace(TINY.warm_start, max_steps=1)),
        use_cache=False,
    )
    assert (torch.get_num_threads(), transformers.logging.get_verbosity()) == (threads, verbosity)


def test_every_method_is_a_recipe() -> None:
    for method in METHODS:
        assert getattr(recipes, method)(num_prompts=8, batch_size=2).num_prompts == 8


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (("uniform", "best"), "got 'best'"),
        ((), "at least one"),
        (("dps", "dps"), "each once"),
    ],
)
def test_bad_methods(methods: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(methods)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"steps": 0}, "steps must be at least 1; got 0"), ({"prompts": 100}, "prompts must be at least 256; got 100")],
)
def test_bad_settings(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**options)
