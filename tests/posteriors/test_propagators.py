"""Products of transitions by slot: against products written out, whatever times steps take; and what a step costs."""

from __future__ import annotations

from functools import cache

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from bayes_prompt.posteriors.propagators import CAPACITY, Propagators

J, K = 2, 3
MOVES = torch.tensor(
    [[[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.0, 0.3, 0.7]], [[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.4, 0.1, 0.5]]],
    dtype=torch.float64,
)


@cache
def resting(elapsed: float) -> Tensor:
    return torch.matrix_exp(elapsed * (MOVES - torch.eye(K)))


def looked(elapsed: float) -> Tensor:
    return resting(3 * elapsed)


def both(elapsed: float) -> tuple[Tensor, Tensor]:
    return resting(elapsed), looked(elapsed)


def made() -> Propagators:
    return Propagators(both, J, K, torch.device("cpu"))


def written_out(rests: list[float], resting_for: int) -> list[Tensor]:
    """By slot, of steps of these times; slot 0 is of beliefs that have rested for the last few of them."""
    products = []
    for slot in range(len(rests) + 2):
        product = torch.eye(K, dtype=torch.float64).expand(J, K, K)
        for step, elapsed in enumerate(rests):
            if (step >= len(rests) - resting_for) if slot == 0 else step > slot - 1:
                product = product @ resting(elapsed)
            elif slot and step == slot - 1:
                product = product @ looked(elapsed)
        products.append(product)
    return products


@given(times=st.lists(st.tuples(st.sampled_from([0.0, 0.3, 1.0, 2.0]), st.integers(1, 20)), max_size=8))
@settings(max_examples=60, deadline=None)
def test_products_written_out(times: list[tuple[float, int]]) -> None:
    """Runs of steps that take the same time, and the older half of the window written forward when it is full."""
    propagators, past, first, settled = made(), [], 0, 0
    for elapsed, run in times:
        for _ in range(run):
            if propagators.full:
                propagators.forget(CAPACITY // 2)
                first, settled = first + CAPACITY // 2, len(past)
            propagators.step(elapsed)
            past.append(elapsed)
    assert propagators.now == len(past) - first
    wanted = torch.stack(written_out(past[first:], len(past) - settled), 1)
    torch.testing.assert_close(propagators.by_slot(), wanted, rtol=0, atol=1e-13)  # 64 products of rounded numbers
    run_now = next((k for k, each in enumerate(reversed(past)) if each != past[-1]), len(past))
    assert int(propagators.window[2]) == min(run_now, propagators.now)


def test_one_other_step_makes_no_later_step_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product for each slot is needed once; of later steps, for those before it alone, and after 64 for none."""
    propagators, made_products = made(), []
    product = Tensor.__matmul__

    def counted(left: Tensor, right: Tensor) -> Tensor:
        made_products.append(left.shape[1] // K)
        return product(left, right)

    def step(elapsed: float) -> int:
        if propagators.full:
            propagators.forget(CAPACITY // 2)
        made_products.clear()
        propagators.step(elapsed)
        return sum(made_products) - 1  # that of slot 0 is always needed

    monkeypatch.setattr(Tensor, "__matmul__", counted)
    assert [step(0.7) for _ in range(40)] == [0] + [1] * 39
    assert step(0.3) == 40
    assert [step(0.7) for _ in range(23)] == [41] + [42] * 22
    # 64 steps are in the window: the older half of them goes, and of the others the ninth is the one that differs.
    assert [step(0.7) for _ in range(32)] == [10] * 32
    assert [step(0.7) for _ in range(40)] == [1] * 40


def test_a_time_that_is_asked_for_again_and_again_is_kept() -> None:
    """As that of one step to come is before every pick, while steps take another time each."""
    asked: list[float] = []

    def told(elapsed: float) -> tuple[Tensor, Tensor]:
        asked.append(elapsed)
        return both(elapsed)

    propagators = Propagators(told, J, K, torch.device("cpu"))
    for step in range(30):
        propagators.transitions(1.0)
        propagators.step(step / 100)
    assert asked == [1.0, *(step / 100 for step in range(30))]
    assert len(propagators._known) == 8
