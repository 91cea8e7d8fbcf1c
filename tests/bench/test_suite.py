"""Tiny real runs of everything that is measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bayes_prompt.bench import memory, suite
from bayes_prompt.bench.cases import COPY, OURS, PEERS, Case, Ready, cases
from bayes_prompt.bench.workloads import (
    BATCH,
    BATCHES,
    BYTES_COPIED,
    BYTES_OF_OURS,
    OPERATIONS,
    SETTINGS,
    Problem,
    Workload,
)

COMPILED = ("torch.compile", "torch.compile fused")
QUICK = [name for name in PEERS if name not in COMPILED]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_small_run(three_rounds: float, operation: str) -> None:
    heard: list[str] = []
    results = suite.run(
        [operation], [2000], peers=QUICK, budget=three_rounds, progress=lambda stage, *_: heard.append(stage)
    )
    assert results.failures == []
    expected = {case.implementation for case in cases(operation, "cpu")} - set(COMPILED)
    measured = {(each.setting, each.implementation) for each in results.measurements}
    assert measured == {(setting, name) for setting in SETTINGS[operation] for name in expected}
    for each in results.measurements:
        assert each.seconds.rounds == 3 and each.seconds.fastest > 0
        ours = each.implementation == OURS
        assert each.bytes_moved == 2000 * (BYTES_OF_OURS if ours else BYTES_COPIED)[operation]
        assert (each.share_of_copy is not None) == (each.implementation in (OURS, COPY))
        assert each.times_copy and each.times_ours
        assert each.held.state > 0
        assert (each.times_ours == 1) == (each.implementation == OURS)
    assert set(heard) == {"copy bandwidth", "checks", operation}
    assert results.left_out == () and results.backend == "cpu"


@pytest.mark.slow
def test_a_small_run_of_what_is_compiled(three_rounds: float) -> None:
    results = suite.run(["step"], [2000], peers=COMPILED, budget=three_rounds)
    assert results.failures == [] and results.left_out == ()
    assert {each.implementation for each in results.measurements} == {OURS, COPY, *COMPILED}


def test_what_memory_cannot_hold_is_left_out(three_rounds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 1_000_000)
    results = suite.run(["select"], [2000, 200_000], peers=["numpy.argpartition"], budget=three_rounds)
    left = {(each.prompts, each.implementation) for each in results.left_out}
    assert left == {(200_000, OURS), (200_000, COPY), (200_000, "numpy.argpartition")}
    assert "GB" in results.left_out[0].reason
    assert {each.prompts for each in results.measurements} == {2000}


def test_what_takes_too_long_is_left_out() -> None:
    chosen = [
        case for case in cases("filter", "cpu") if case.implementation in (OURS, "dict of arrays", "numpy float64")
    ]
    measured, left = suite.measure(Problem("filter", "all visited", 2000), chosen, 1e-6)
    assert {each.implementation for each in measured} == {OURS} and measured[0].seconds.rounds == 3
    reasons = {each.implementation: each.reason for each in left}
    assert reasons["dict of arrays"].startswith("one call would take about")
    assert reasons["numpy float64"].startswith("one call takes")


def failing(error: Exception) -> Any:
    def prepare(work: Workload) -> Ready:
        raise error

    return prepare


def test_a_peer_that_fails_is_left_out_and_ours_is_not() -> None:
    problem = Problem("select", "distinct", 2000)
    peer = Case("select", "torch.topk", failing(RuntimeError("no compiler\nmore")), 1)
    measured, (left,) = suite.measure(problem, [peer], 1.0)
    assert (measured, left.reason) == ([], "RuntimeError: no compiler")
    with pytest.raises(RuntimeError, match="broken"):
        suite.measure(problem, [Case("select", OURS, failing(RuntimeError("broken")), 1)], 1.0)
    _, (left,) = suite.measure(problem, [Case("select", OURS, failing(MemoryError("full")), 1)], 1.0)
    assert left.reason == "MemoryError: full"


@pytest.mark.parametrize("prompts", [600, 2000, 30_011])
def test_visits_are_those_that_are_said(prompts: int) -> None:
    everyone = Workload(Problem("step", "all visited", prompts)).posterior
    assert everyone is not None and bool((everyone.visits == 3).all())
    some = Workload(Problem("filter", "1% visited", prompts))
    assert some.posterior is not None
    visited = some.posterior.visits > 0
    assert max(BATCH, prompts // 100) <= int(visited.sum()) <= max(3 * BATCH, prompts // 100 + 1)
    assert len(some.batches) == BATCHES
    for index, successes in some.batches:
        assert index.shape == successes.shape == (BATCH,) and index.unique().numel() == BATCH
        assert bool(visited[index].all()) and 0 <= int(successes.min()) <= int(successes.max()) <= 8


def test_thompson_has_shapes_below_one_in_its_harder_setting() -> None:
    easy, hard = (Workload(Problem("thompson", setting, 5000)).posterior for setting in SETTINGS["thompson"])
    assert float(easy.alpha.min()) >= 1 and float((easy.alpha + easy.beta > 2).double().mean()) == pytest.approx(0.1)  # type: ignore[union-attr]
    assert float((hard.alpha < 1).double().mean()) > 0.9  # type: ignore[union-attr]


def test_a_workload_is_the_same_each_time() -> None:
    first, second = (Workload(Problem("select", "tied", 5000)).scores for _ in range(2))
    assert first is not None and second is not None and torch.equal(first, second) and first.unique().numel() == 16
