"""What a look is worth: against brute force over prices, direct sums and sorting, for every kind of belief."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from scipy import integrate, special, stats

import bayes_prompt as bp
from bayes_prompt.posteriors import looks

PRIOR = bp.priors.inflated(bp.priors.logit_normal(-0.3, 1.2), zero=0.1, one=0.05)
WALKS = bp.DriftBank([bp.LogitRandomWalk(0.1, 0.2), bp.LogitRandomWalk(0.6, -0.3)], memory=1.0, pooling=0.0)
ACTIVE = bp.ActivePassive(bp.LogitRandomWalk(0.2, 0.4), bp.LogitRandomWalk(0.2, -0.4))
POSTERIORS = {
    "still": lambda: bp.SuccessRate(PRIOR, grid=9).posterior(6, dtype=torch.float64),
    "walk": lambda: bp.SuccessRate(PRIOR, grid=9, drift=ACTIVE).posterior(6, dtype=torch.float64),
    "bank": lambda: bp.SuccessRate(PRIOR, grid=9, drift=WALKS).posterior(6, dtype=torch.float64, groups=[0, 1] * 3),
    "progress": lambda: bp.SolvingProgress(decay=1.0).posterior(6, dtype=torch.float64),
    "pooled": lambda: bp.SolvingProgress(pooling="pool").posterior(6, dtype=torch.float64),
    "fixed": lambda: bp.SolvingProgress(learn=False, emission=bp.PartitionEmission([0.0, 0.2, 0.7, 1.0])).posterior(
        6, dtype=torch.float64
    ),
}


def trained(name: str) -> Any:
    posterior = POSTERIORS[name]()
    posterior.update([0, 1, 2], [0, 3, 4], 4)
    posterior.update([1, 3], [4, 2], 4)
    posterior.advance()
    return posterior


def outcomes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Chances of outcomes, and the worth after each, both with zeros now and then."""
    size = draw(st.integers(1, 9))
    weight = np.array(draw(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]), min_size=size, max_size=size)))
    weight[0] += 0.1
    after = np.array(draw(st.lists(st.floats(0, 1), min_size=size, max_size=size)))
    return weight / weight.sum(), after


looked = st.composite(outcomes)()


def index_of(chance: np.ndarray, after: np.ndarray, horizon: float, now: float | None = None) -> float:
    rows = [torch.from_numpy(each)[None] for each in (chance, chance * after)]
    first = torch.tensor([chance @ after if now is None else now], dtype=torch.float64)
    return float(looks.index(first, *rows, horizon))


@given(case=looked, horizon=st.floats(0, 100), now=st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_the_index_is_the_root_of_its_equation(case: tuple[np.ndarray, np.ndarray], horizon: float, now: float) -> None:
    """now - nu + horizon * E[(m - nu)+] falls in nu: bisection to the last bit finds where it is 0."""
    chance, after = case
    low, high = 0.0, 1.0
    for _ in range(60):
        nu = (low + high) / 2
        gains = now - nu + horizon * (chance * np.maximum(after - nu, 0)).sum()
        low, high = (nu, high) if gains >= 0 else (low, nu)
    # The left side has a slope of -1 or steeper, and rounds by a few times 2**-53 of the horizon.
    assert index_of(chance, after, horizon, now) == pytest.approx(low, abs=1e-15 * (8 + 8 * horizon))


@given(case=looked, horizons=st.tuples(st.floats(0, 100), st.floats(0, 100)))
@settings(max_examples=80, deadline=None)
def test_the_index_grows_with_the_horizon_up_to_the_best_outcome(
    case: tuple[np.ndarray, np.ndarray], horizons: tuple[float, float]
) -> None:
    chance, after = case
    found = [index_of(chance, after, h) for h in (0.0, *sorted(horizons), 1e12)]
    assert found[0] == pytest.approx(chance @ after, abs=1e-15)
    assert all(b >= a - 1e-14 for a, b in pairwise(found))
    assert found[-1] == pytest.approx(after[chance > 0].max(), abs=1e-9)  # known for ever, so it is worth finding out


@given(case=looked, threshold=st.floats(-0.5, 1.5))
@settings(max_examples=80, deadline=None)
def test_the_gain_is_what_the_better_choice_adds(case: tuple[np.ndarray, np.ndarray], threshold: float) -> None:
    chance, after = case
    expected = (chance * np.maximum(after, threshold)).sum() - max(chance @ after, threshold)
    found = float(looks.gain(*(torch.from_numpy(each)[None] for each in (chance, chance * after)), threshold))
    assert found == pytest.approx(expected, abs=1e-14) and found >= 0
    if threshold <= after.min() or threshold >= after.max():
        assert found == pytest.approx(0.0, abs=1e-14)


@given(
    mass=st.lists(st.floats(0.01, 1), min_size=1, max_size=12),
    level=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=80, deadline=None)
def test_the_quantile_is_that_of_sorted_points(mass: list[float], level: float, seed: int) -> None:
    worth = np.random.default_rng(seed).choice([0.0, 0.1, 0.2, 0.5, 0.9], len(mass))
    found = float(looks.quantile(torch.tensor([mass]).double(), torch.from_numpy(worth), level))
    weights = np.array(mass, dtype=np.float32).astype(np.float64)
    at_most, below = ((weights * kept).sum() / weights.sum() for kept in (worth <= found, worth < found))
    assert found in worth and at_most >= level - 1e-12 and below <= level + 1e-12


def brute_force(posterior: Any, name: str, trials: int, row: int) -> tuple[float, np.ndarray, np.ndarray]:
    """P(informative) now, chances of all counts, and P(informative) a step after each was observed, all one by one."""
    state, chance, after = posterior.state_dict(), [], []
    now = float(posterior.informative_probability(trials)[row])
    for won in range(trials + 1):
        other = POSTERIORS[name]()
        other.load_state_dict(state)
        before = other.log_count_evidence
        if isinstance(other.model, bp.SolvingProgress) and other.model.learn:
            other.model = bp.SolvingProgress(learn=False)  # an asker does not learn from an answer that was not given
        other.update([row], [won], trials)
        chance.append(math.exp(other.log_count_evidence - before))
        after.append(float(other.informative_probability(trials)[row]))
    return now, np.array(chance), np.array(after)


@pytest.mark.parametrize("name", ["still", "walk", "fixed"])
def test_looks_of_a_posterior_are_what_it_would_say_after_them(name: str) -> None:
    posterior, trials = trained(name), 4
    for row in range(6):
        now, chance, after = brute_force(posterior, name, trials, row)
        assert chance.sum() == pytest.approx(1.0, abs=1e-10)
        for horizon in (0.0, 1.0, 25.0):
            found = float(posterior.look_index(trials, horizon)[row])
            assert found == pytest.approx(index_of(chance, after, horizon, now), abs=1e-9)
        for threshold in (0.1, 0.4, 0.6):
            told = (chance * np.maximum(after, threshold)).sum() - max(chance @ after, threshold)
            assert float(posterior.look_gain(trials, threshold)[row]) == pytest.approx(told, abs=1e-10)


def test_looks_under_a_bank_take_the_weights_of_the_group() -> None:
    """With a memory that holds everything and groups on their own, a look moves weights only by what it says itself."""
    posterior, trials = trained("bank"), 4
    for won in (4, 4, 4):
        posterior.update([0, 1], [won, 0], trials)  # the groups part
    weights = posterior.bank_weights()
    assert float((weights[0] - weights[1]).abs().max()) > 0.05
    points = posterior.model.points()
    mixed = (1 - points.rate**trials - (1 - points.rate) ** trials).numpy()
    moves = np.stack([each.transition(points).numpy() for each in WALKS.members])
    for row in (2, 3):
        belief = posterior.belief[row].numpy()
        later = np.einsum("j,jkl,l->k", weights[row % 2].numpy(), moves, mixed)
        chances = stats.binom.pmf(np.arange(trials + 1)[:, None], trials, points.rate.numpy())
        chance = chances @ belief
        after = chances @ (belief * later) / chance
        found = float(posterior.look_index(trials, 10.0)[row])
        assert found == pytest.approx(index_of(chance, after, 10.0, belief @ mixed), abs=1e-10)


@pytest.mark.parametrize("name", ["progress", "pooled"])
def test_looks_of_solving_states(name: str) -> None:
    """Three states, of which the counts tell all: the belief after a look is a row of the transition matrix."""
    posterior = trained(name)
    concentration = posterior.concentration.numpy()
    moves = concentration / concentration.sum(2, keepdims=True)
    belief = posterior.belief.numpy()
    for row in range(6):
        after = moves[row, :, 1]  # P(partial) a step after the state was seen
        found = float(posterior.look_index(8, 12.0)[row])
        assert found == pytest.approx(index_of(belief[row], after, 12.0, belief[row, 1]), abs=1e-10)
        told = (belief[row] * np.maximum(after, 0.3)).sum() - max(belief[row] @ after, 0.3)
        assert float(posterior.look_gain(8, 0.3)[row]) == pytest.approx(told, abs=1e-10)


@pytest.mark.parametrize("name", POSTERIORS)
def test_questions_about_looks_agree_with_each_other(name: str) -> None:
    posterior = trained(name)
    now = posterior.informative_probability(4)
    torch.testing.assert_close(posterior.look_index(4, 0.0), now, rtol=0, atol=1e-12)
    previous = now
    for horizon in (1.0, 5.0, 50.0):
        index = posterior.look_index(4, horizon)
        assert bool((index >= previous - 1e-12).all()) and bool((index <= 1).all())
        previous = index
    assert bool((posterior.look_gain(4, 0.5) >= 0).all())
    torch.testing.assert_close(posterior.look_gain(4, 2.0), torch.zeros(6).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(posterior.look_gain(4, -1.0), torch.zeros(6).double(), rtol=0, atol=1e-12)
    quantiles = torch.stack([posterior.informative_quantile(4, level) for level in (0.1, 0.5, 0.9)])
    assert bool((quantiles.diff(dim=0) >= 0).all())


def test_quantiles_of_a_grid_are_those_of_its_points() -> None:
    posterior = trained("walk")
    rate = posterior.grid.numpy()
    mixed = 1 - rate**4 - (1 - rate) ** 4
    order = np.argsort(mixed)
    for level in (0.05, 0.5, 0.75, 0.95):
        for row in range(6):
            below = posterior.belief[row].numpy()[order].cumsum()
            expected = mixed[order][np.searchsorted(below, level)]
            assert float(posterior.informative_quantile(4, level)[row]) == pytest.approx(expected, abs=1e-12)


BETAS = [(1.0, 1.0), (1.5, 4.0), (0.5, 0.5), (9.0, 2.0), (30.0, 50.0)]


@pytest.mark.parametrize(("alpha", "beta"), BETAS)
def test_looks_of_a_beta_against_beta_binomial_sums(alpha: float, beta: float) -> None:
    """Points even in the angle are the midpoint rule for a function of period pi, exact but for corners at its ends.

    There the density is 2 / B(alpha, beta) * angle^(2 a - 1), smooth where that power is even; else the rule errs
    by zeta(1 - 2 a, 1/2) * gap^(2 a) times that factor (Euler and Maclaurin), where the zeta is at most 1/24 if a >= 1.
    """
    gap = math.pi / 2 / looks.POINTS
    corners = sum(gap ** (2 * a) / 12 / special.beta(alpha, beta) for a in (alpha, beta) if (2 * a) % 2 != 1)
    prior = dist.Beta(torch.tensor(alpha).double(), torch.tensor(beta).double())
    posterior, trials = bp.SuccessRate(prior).posterior(2, dtype=torch.float64), 8
    won = np.arange(trials + 1)
    chance = stats.betabinom.pmf(won, trials, alpha, beta)
    after = np.array([1 - stats.betabinom.pmf([0, trials], trials, alpha + s, beta + trials - s).sum() for s in won])
    now = 1 - chance[[0, -1]].sum()
    for horizon in (0.0, 1.0, 30.0):
        expected = index_of(chance, after, horizon, now)
        assert float(posterior.look_index(trials, horizon)[0]) == pytest.approx(expected, abs=2 * corners + 1e-9)
    for threshold in (0.3, 0.6, 0.9):
        told = (chance * np.maximum(after, threshold)).sum() - max(chance @ after, threshold)
        assert float(posterior.look_gain(trials, threshold)[0]) == pytest.approx(told, abs=2 * corners + 1e-9)


@pytest.mark.parametrize(("alpha", "beta"), [(0.2, 1.0), (0.7, 2.3), (0.1, 0.1)])
def test_looks_of_hollow_betas_are_near(alpha: float, beta: float) -> None:
    """The rule's error where the density ends in a corner: (gap / 2)^(2 a) of an end's mass, more or less."""
    prior = dist.Beta(torch.tensor(alpha).double(), torch.tensor(beta).double())
    posterior = bp.SuccessRate(prior).posterior(1, dtype=torch.float64)
    wrong = abs(float(posterior.look_index(8, 0.0)) - float(posterior.informative_probability(8)))
    gap = math.pi / 2 / looks.POINTS
    assert wrong < sum((gap / 2) ** (2 * each) for each in (alpha, beta))


@pytest.mark.parametrize("level", [0.25, 0.75, 0.9])
@pytest.mark.parametrize(("alpha", "beta"), BETAS)
def test_quantiles_of_a_beta(alpha: float, beta: float, level: float) -> None:
    """Right to the worth of neighbouring points, which are pi / 192 apart in the angle.

    The worth changes by at most trials * |dp|, with dp = sin(2 angle) d angle: 8 / 60 of it, at its steepest 0.035.
    """
    prior = dist.Beta(torch.tensor(alpha).double(), torch.tensor(beta).double())
    found = float(bp.SuccessRate(prior).posterior(1, dtype=torch.float64).informative_quantile(8, level))
    rate = np.linspace(0, 1, 200_001)[1:-1]
    worth = 1 - rate**8 - (1 - rate) ** 8
    mass = np.diff(stats.beta(alpha, beta).cdf(np.linspace(0, 1, 200_000)))
    order = np.argsort(worth)
    expected = worth[order][np.searchsorted(mass[order].cumsum(), level)]
    steepest = np.abs(np.gradient(worth, rate) * np.sin(2 * np.arcsin(np.sqrt(rate)))).max()
    assert abs(found - expected) < 1.5 * steepest * math.pi / 2 / looks.POINTS


def test_points_and_counts_add_up() -> None:
    rate = looks.rates(torch.device("cpu"))
    chances = looks.binomial(rate, 11)
    np.testing.assert_allclose(chances, stats.binom.pmf(np.arange(12)[:, None], 11, rate.numpy()), rtol=1e-11)
    torch.testing.assert_close(chances.sum(0), torch.ones(looks.POINTS).double(), rtol=0, atol=1e-12)
    whole, _ = integrate.quad(lambda p: p**3 / math.pi / math.sqrt(p * (1 - p)), 0, 1)
    assert float((rate**3).mean()) == pytest.approx(whole, abs=1e-8)  # even in the angle is the arcsine law


def test_a_look_of_many_rollouts_is_taken_for_one_of_64() -> None:
    posterior = trained("walk")
    index = posterior.look_index(1000, 10.0)
    assert index.shape == (6,) and bool(index.isfinite().all())
    torch.testing.assert_close(posterior.look_index(1000, 0.0), posterior.informative_probability(1000))


def test_large_pools_are_looked_at_in_parts() -> None:
    rows = (1 << 14) + 3
    posterior = bp.SuccessRate(PRIOR, grid=5, drift=ACTIVE).posterior(rows, dtype=torch.float64)
    posterior.update([0, rows - 1], [3, 3], 4)
    index = posterior.look_index(4, 9.0)
    assert float(index[1]) != float(index[0])
    for answer in (index, posterior.look_gain(4, 0.4), posterior.informative_quantile(4, 0.8)):
        assert answer.shape == (rows,)
        assert float(answer[0]) == pytest.approx(float(answer[-1]), abs=1e-14)
        rest = answer[1:-1]
        torch.testing.assert_close(rest, rest[:1].expand(len(rest)), rtol=0, atol=1e-14)
