"""Chains in continuous time: transitions against closed forms and eighty digits, for times of any size."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from bayes_prompt.models import markov

ODD = [0.0, 5e-324, 1e-300, 1e-8, 0.37, 1.0, 1e4, 1e300]


def many_digits(rates: Tensor, elapsed: float) -> np.ndarray:
    """Halved until next to nothing happens, four terms of the series, and squared, with as many digits to spare."""
    size = len(rates)
    with mpmath.workdps(80):
        moves = mpmath.matrix(rates.tolist())
        for k in range(size):  # rows of the rates sum to zero but for rounding
            moves[k, k] = -sum(moves[k, j] for j in range(size) if j != k)
        halvings = 60 + max(0, int(mpmath.ceil(mpmath.log(1 + mpmath.mnorm(moves, 1) * elapsed, 2))))
        short = moves * mpmath.mpf(elapsed) / mpmath.mpf(2) ** halvings
        found = mpmath.eye(size) + short + short**2 / 2 + short**3 / 6 + short**4 / 24
        for _ in range(halvings):
            found = found * found
        return np.array(found.tolist(), dtype=float)


@st.composite
def chains(draw: st.DrawFn) -> Tensor:
    """Generators (J, K, K), of rates from none to a thousand a unit of time."""
    size, number = draw(st.integers(2, 6)), draw(st.integers(1, 3))
    rate = st.one_of(st.just(0.0), st.floats(1e-12, 1e3))
    drawn = draw(st.lists(rate, min_size=2 * number * (size - 1), max_size=2 * number * (size - 1)))
    both = torch.tensor(drawn, dtype=torch.float64).view(number, 2, size - 1)
    return torch.stack([markov.generator(up, down) for up, down in both])


times = st.one_of(st.sampled_from(ODD), st.floats(0, 1e300), st.floats(0, 100))


def test_a_generator_by_hand() -> None:
    found = markov.generator(*torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64))
    assert found.tolist() == [[-1, 1, 0], [3, -5, 2], [0, 4, -4]]
    assert markov.generator(torch.zeros(0).double(), torch.zeros(0).double()).tolist() == [[0.0]]


@pytest.mark.parametrize("elapsed", ODD)
@pytest.mark.parametrize(("thaw", "freeze"), [(0.1, 0.3), (1e-9, 0.2), (0.0, 0.4), (0.0, 0.0)])
def test_two_states_have_a_closed_form(thaw: float, freeze: float, elapsed: float) -> None:
    total = thaw + freeze
    apart = math.exp(math.log1p(-total) * elapsed)  # what is left of the difference of the two
    left = -math.expm1(math.log1p(-total) * elapsed)
    share = thaw / total if total else 0.5
    moves = markov.exponential(markov.switching(thaw, freeze), elapsed)
    wanted = [[1 - share * left, share * left], [(1 - share) * left, share + (1 - share) * apart]]
    # Some roundings of the exponential and of the closed form itself, relative to each entry; times at the edge of
    # what numbers can be have few digits of their own.
    np.testing.assert_allclose(moves, wanted, rtol=1e-14, atol=5e-324)


@given(rates=chains(), elapsed=st.one_of(st.sampled_from([1e-300, 1e-8, 0.37, 1.0, 1e4, 1e12]), st.floats(0, 100)))
@settings(max_examples=40, deadline=None)
def test_many_digits(rates: Tensor, elapsed: float) -> None:
    """Every entry has its digits: what happens once in a million years, and what comes of it in as many."""
    found = markov.exponential(rates, elapsed).numpy()
    wanted = [many_digits(chain, elapsed) for chain in rates]
    # A hundred roundings of the series and some of each of fifty squarings, as if rates were wrong by so much of
    # themselves; and exp(-x) is wrong by x times that, where x = 700 is the farthest that numbers reach.
    np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-300)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("elapsed", [1e-8, 0.37, 1.0, 20.0])
def test_many_digits_of_a_grid(elapsed: float) -> None:
    up, down = np.random.default_rng(2).exponential([[3.0], [2.0]], (2, 24))
    rates = markov.generator(torch.from_numpy(up), torch.from_numpy(down))
    found, wanted = markov.exponential(rates, elapsed).numpy(), many_digits(rates, elapsed)
    near = abs(np.subtract.outer(np.arange(25), np.arange(25))) < 3  # of d jumps, 1 / (20 - d)! is left out
    np.testing.assert_allclose(found[near], wanted[near], rtol=1e-14 + 2 / math.factorial(18))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-14)


@given(rates=chains(), elapsed=times)
@settings(max_examples=150, deadline=None)
def test_rows_sum_to_one(rates: Tensor, elapsed: float) -> None:
    moves = markov.exponential(rates, elapsed)
    assert bool((moves >= 0).all())
    torch.testing.assert_close(moves.sum(-1), torch.ones(rates.shape[:2]).double(), rtol=0, atol=1e-15)
    unmoved = rates.diagonal(dim1=1, dim2=2) == 0
    assert bool((moves.diagonal(dim1=1, dim2=2)[unmoved] == 1).all())


@given(rates=chains(), first=times, second=times)
@settings(max_examples=150, deadline=None)
def test_two_times_are_one_of_both(rates: Tensor, first: float, second: float) -> None:
    whole = markov.exponential(rates, first + second)
    # What rounding takes from the sum is 1e-16 of it: it moves r t exp(-r t), which is below one, by so much.
    torch.testing.assert_close(
        markov.exponential(rates, first) @ markov.exponential(rates, second), whole, rtol=0, atol=1e-13
    )


@given(rates=chains(), elapsed=times)
@settings(max_examples=100, deadline=None)
def test_chains_do_not_disturb_each_other(rates: Tensor, elapsed: float) -> None:
    together = markov.exponential(rates, elapsed)
    alone = torch.stack([markov.exponential(chain, elapsed) for chain in rates])
    # Products may be added up in another order, where there are several: some roundings of each squaring.
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-13)


def test_a_chain_that_hardly_moves_beside_a_fast_one() -> None:
    slow, fast = (markov.generator(*torch.full((2, 4), rate, dtype=torch.float64)) for rate in (1e-11, 500.0))
    together = markov.exponential(torch.stack([slow, fast]), 1e10)
    np.testing.assert_allclose(together[0], many_digits(slow, 1e10), rtol=0, atol=1e-15)
    torch.testing.assert_close(together[1], torch.full((5, 5), 0.2, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [3, 23, 41])
def test_it_ends_when_nothing_moves_but_rounding(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Squares of matrices with equal rows differ by roundings for ever; a thousand of them are not worth the time."""
    count, plain = [0], markov._stochastic

    def counted(matrix: Tensor) -> Tensor:
        count[0] += 1
        return plain(matrix)

    monkeypatch.setattr(markov, "_stochastic", counted)
    rng = np.random.default_rng(size)
    up, down = torch.from_numpy(rng.exponential(1.0, (2, size - 1)))
    moves = markov.exponential(markov.generator(up, down), 1e300)
    balance = torch.cat([torch.ones(1).double(), (up / down).cumprod(0)])
    torch.testing.assert_close(moves, (balance / balance.sum()).expand(size, size), rtol=1e-12, atol=0)
    assert count[0] < 40


@pytest.mark.parametrize("elapsed", [0.37, 3.0, 1e4])
def test_gradients_are_those_of_the_exponential(elapsed: float) -> None:
    """Of several chains at once, of which one alone is squared: against differences."""
    scale = torch.tensor([0.01, 1.0, 300.0], dtype=torch.float64)
    shape = markov.generator(*torch.tensor([[1.0, 0.5, 0.2], [0.3, 0.7, 0.4]], dtype=torch.float64))

    def asked(values: Tensor) -> Tensor:
        return markov.exponential(values[:, None, None] * shape, elapsed)[:, 0] @ torch.tensor([0.0, 1, 4, 9]).double()

    leaf = scale.clone().requires_grad_()
    asked(leaf).sum().backward()
    assert leaf.grad is not None
    step = 1e-6 * scale
    slope = (asked(scale + step) - asked(scale - step)) / (2 * step)
    # Rounding of answers of about 9 over the step, and the third derivative, of order 9 / scale**3 at most.
    torch.testing.assert_close(leaf.grad, slope, rtol=1e-8, atol=float(1e-14 / step.min()))
