"""That a check finds what is wrong: a kernel that was broken on purpose has no ratios afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import bayes_prompt as bp
from bayes_prompt.bench import suite
from bayes_prompt.bench.cases import COPY, OURS, cases
from bayes_prompt.bench.verify import verify
from bayes_prompt.bench.workloads import OPERATIONS
from bayes_prompt.posteriors.base import Posterior

COMPILED = ("torch.compile", "torch.compile fused")  # seconds of compiling, so they have a test of their own
CHECKED = [
    (operation, case.implementation)
    for operation in OPERATIONS
    for case in cases(operation, "cpu")
    if case.implementation not in (COPY, *COMPILED)
]


@pytest.mark.parametrize(("operation", "implementation"), CHECKED)
def test_everyone_agrees(operation: str, implementation: str) -> None:
    verdict = verify(operation, implementation, "cpu")
    assert verdict.passed, verdict


@pytest.mark.slow
@pytest.mark.parametrize("implementation", COMPILED)
def test_the_compiled_agree(implementation: str) -> None:
    verdict = verify("step", implementation, "cpu")
    assert verdict.passed, verdict


def test_a_seed_repeats_the_check() -> None:
    assert verify("filter", OURS, "cpu", seed=5) == verify("filter", OURS, "cpu", seed=5)
    assert verify("select", OURS, "cpu").seed != verify("select", OURS, "cpu").seed


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operation of ours goes wrong, but for the reference."""
    top_b, advance = bp.acquisition.top_b, Posterior.advance

    def pick(scores: torch.Tensor, *rest: Any, backend: str = "auto", **options: Any) -> torch.Tensor:
        picked = top_b(scores, *rest, backend=backend, **options)
        return picked if backend == "reference" else picked.flip(0)

    def forget(self: Posterior, elapsed: float = 1.0) -> None:
        if self.backend != "reference":
            elapsed *= 1.001
        advance(self, elapsed)

    monkeypatch.setattr(bp.acquisition, "top_b", pick)
    monkeypatch.setattr(Posterior, "advance", forget)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_broken_kernel_is_found(broken: None, operation: str) -> None:
    verdict = verify(operation, OURS, "cpu")
    assert not verdict.passed and "differ" in verdict.detail


def test_no_speed_up_is_reported_of_a_broken_kernel(broken: None, three_rounds: float) -> None:
    results = suite.run(["select"], [2000], budget=three_rounds)
    assert [(each.operation, each.implementation) for each in results.failures] == [("select", OURS)]
    assert {each.implementation for each in results.measurements} == {
        case.implementation for case in cases("select", "cpu")
    }
    assert [each.times_ours for each in results.measurements if each.times_ours is not None] == []
    assert [each.times_copy for each in results.measurements if each.implementation == OURS] == [None, None]


def test_a_peer_that_raises_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    from bayes_prompt.bench import cases as known

    def fails(scores: Any, size: int) -> Any:
        raise RuntimeError("no compiler\nand much more")

    monkeypatch.setitem(known.SELECT_PEERS, "torch.topk", fails)
    verdict = verify("select", "torch.topk", "cpu")
    assert (verdict.passed, verdict.detail) == (False, "RuntimeError: no compiler")
