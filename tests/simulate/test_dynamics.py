"""What lessons teach, and how skill grows, spreads and decays: each part against its definition."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from bayes_prompt import simulate

N, TEXTS = 40, torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(st.lists(st.booleans(), min_size=1, max_size=16))
def test_lessons_are_squared_deviations_of_rewards(rewards: list[bool]) -> None:
    taught = simulate.lessons(torch.tensor([sum(rewards)]), torch.tensor([len(rewards)]))
    deviations = np.array(rewards, dtype=float) - np.mean(rewards)
    assert float(taught[0]) == pytest.approx((deviations**2).sum(), rel=1e-12, abs=1e-12)
    assert bool(taught[0] > 0) == (0 < sum(rewards) < len(rewards))


def test_nothing_is_taught_without_rollouts() -> None:
    assert simulate.lessons(torch.zeros(2, dtype=torch.int64), torch.tensor([0, 8])).tolist() == [0.0, 0.0]


@given(st.floats(0, 4), st.floats(0, 50), st.floats(0, 50), st.floats(0.1, 10))
def test_growth_is_the_same_in_one_step_and_in_two(start: float, one: float, two: float, saturation: float) -> None:
    """It solves its differential equation, so that how lessons are cut into steps is of no matter."""
    growth = simulate.Growth(0.3, saturation)
    skill = doubles(min(start, saturation))
    whole = growth(skill, doubles(one + two))
    assert float(whole) == pytest.approx(float(growth(growth(skill, doubles(one)), doubles(two))), rel=1e-12)
    assert float(skill) <= float(whole) <= saturation * (1 + 1e-15)


def test_growth_starts_at_its_rate_and_is_linear_without_saturation() -> None:
    felt = doubles(0.0, 1e-6, 2.0)
    assert simulate.Growth(0.5)(doubles(1.0, 1.0, 1.0), felt).tolist() == [1.0, 1.0 + 5e-7, 2.0]
    gained = simulate.Growth(0.5, 4.0)(doubles(1.0, 1.0, 1.0), felt) - 1
    # rate * felt * (1 - 1/4), but for a relative error of half the gain: 5e-7 / 4 / 2.
    assert float(gained[1]) == pytest.approx(5e-7 * 0.75, rel=1e-7 + 1e-9)
    assert gained[0] == 0
    assert float(gained[2]) == pytest.approx(3 * (1 - math.exp(-0.25)), rel=1e-12)


def test_forgetting_spares_what_was_taught() -> None:
    left = simulate.Forgetting(0.25)(doubles(2.0, 2.0, 0.0), doubles(0.0, 0.1, 0.0))
    assert left.tolist() == pytest.approx([2 * math.exp(-0.25), 2.0, 0.0])
    assert torch.equal(simulate.Forgetting(0.0)(doubles(2.0), doubles(0.0)), doubles(2.0))


@given(st.lists(st.floats(0, 4), min_size=6, max_size=6), st.floats(0, 2), st.floats(0, 2), st.floats(0, 2))
def test_transfer_adds_up_prompt_by_prompt(taught: list[float], own: float, kin: float, everyone: float) -> None:
    groups = [0, 2, 0, 2, 5, 0]
    felt = simulate.Transfer(own, kin, everyone)(doubles(*taught), torch.tensor(groups), None)
    for n in range(6):
        expected = own * taught[n] + everyone * sum(taught)
        expected += kin * sum(taught[m] for m in range(6) if groups[m] == groups[n])
        assert float(felt[n]) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_similar_transfer_is_a_gaussian_kernel() -> None:
    taught = torch.zeros(N, dtype=torch.float64)
    taught[[3, 7, 30]] = doubles(0.5, 2.0, 1.0)
    felt = simulate.SimilarTransfer(0.7, 0.3, length=1.5)(taught, None, TEXTS)
    for n in range(N):
        kernel = [math.exp(-float((TEXTS[n] - TEXTS[m]).square().sum()) / 4.5) for m in range(N)]
        expected = 0.7 * float(taught[n]) + 0.3 * sum(k * float(t) for k, t in zip(kernel, taught, strict=True))
        assert float(felt[n]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: simulate.Growth(-1.0), "rate must be finite and at least 0; got -1.0"),
        (lambda: simulate.Growth(1.0, 0.0), "saturation must be greater than 0"),
        (lambda: simulate.Growth(1.0, math.nan), "saturation must be greater than 0"),
        (lambda: simulate.Forgetting(math.inf), "rate must be finite"),
        (lambda: simulate.Transfer(kin=math.nan), "kin must be finite"),
        (lambda: simulate.SimilarTransfer(length=0.0), "length must be finite and greater than 0"),
    ],
)
def test_parts_name_what_is_wrong(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
