"""The grid posterior where steps take times of any size, one after the other."""

from __future__ import annotations

import math
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy import stats

import bayes_prompt as bp

PRIOR = bp.priors.inflated(bp.priors.logit_normal(0.0, 1.5), zero=0.1, one=0.05)
WALK = bp.LogitRandomWalk(0.4, 0.02, 0.05)
MODELS = {
    "walk": bp.SuccessRate(PRIOR, grid=11, drift=WALK),
    "redraw": bp.SuccessRate(PRIOR, grid=11, drift=bp.Redraw(0.1)),
    "mixture": bp.SuccessRate(PRIOR, grid=11, drift=bp.Mixture(0.4, WALK, thaw=0.05, freeze=0.02)),
    "frozen": bp.SuccessRate(PRIOR, grid=11, drift=bp.Mixture(0.4, WALK)),
    "active": bp.SuccessRate(PRIOR, grid=11, drift=bp.ActivePassive(bp.LogitRandomWalk(0.4, 0.2), bp.Redraw(0.05))),
    "bank": bp.SuccessRate(PRIOR, grid=11, drift=bp.priors.training(), sharing=bp.EmpiricalBayes()),
}
EXTREME = [0.0, 5e-324, 1e-300, 1e-8, 0.37, 1.0, 1e4, 1e300, sys.float_info.max]
times = st.one_of(st.sampled_from(EXTREME), st.floats(0.0, 20.0))


def check(posterior: bp.Posterior) -> None:
    """Beliefs are probabilities, and figures are figures."""
    belief = posterior.belief
    assert bool((belief >= 0).all())
    # A row is rounded, and so is what carries it, a factor or two for each step since.
    assert float((belief.double().sum(1) - 1).abs().max()) < 1e-5
    for answer in (posterior.success_rate(), posterior.informative_probability(8), posterior.look_index(8, 16.0)):
        assert bool(answer.isfinite().all()) and float(answer.min()) >= 0
    assert math.isfinite(posterior.log_count_evidence)


@given(steps=st.lists(times, min_size=1, max_size=12), name=st.sampled_from(sorted(MODELS)), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_beliefs_stay_probabilities(steps: list[float], name: str, seed: int) -> None:
    posterior, rng = MODELS[name].posterior(5), np.random.default_rng(seed)
    for elapsed in steps:
        index = rng.permutation(4)[:2]
        posterior.update(index, rng.integers(0, 9, 2), 8, elapsed)
        check(posterior)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pair", [(1e-300, 1e300), (0.0, 1e4), (1e-8, 1e-8), (5e-324, sys.float_info.max)])
def test_tiny_and_huge_in_turn_for_longer_than_the_window(name: str, pair: tuple[float, float]) -> None:
    posterior = MODELS[name].posterior(6)
    for step in range(80):
        posterior.update([step % 5], [step % 9], 8, pair[step % 2])
    check(posterior)


# Not of mixtures in which prompts change over: they do so first, and then move or stay for the whole step.
@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"mixture"}))
@given(rests=st.lists(times, min_size=1, max_size=5))
@settings(max_examples=8, deadline=None)
def test_resting_twice_is_resting_for_both_times(name: str, rests: list[float]) -> None:
    whole = math.fsum(rests) if sum(rests) < math.inf else sys.float_info.max
    apart, at_once = (MODELS[name].posterior(3, dtype=torch.float64) for _ in range(2))
    for posterior in (apart, at_once):
        posterior.update([0, 1], [1, 7], 8, 0.7)
    for elapsed in rests:
        apart.advance(elapsed)
    at_once.advance(whole)
    if name != "bank":
        torch.testing.assert_close(apart.belief, at_once.belief, rtol=0, atol=1e-13)
        return
    # Beliefs of prompts that nobody saw are shared, and move by the average drift: a bank's evidence fades meanwhile.
    torch.testing.assert_close(apart.bank_weights(), at_once.bank_weights(), rtol=0, atol=1e-12)
    torch.testing.assert_close(apart.belief[:2], at_once.belief[:2], rtol=0, atol=1e-12)


@given(steps=st.lists(st.floats(0.0, 30.0), min_size=1, max_size=70), seed=st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_another_time_each_step_is_the_dense_filter(steps: list[float], seed: int) -> None:
    """Every prompt carried forward by itself, step after step, by each drift that was told to."""
    model, rng = MODELS["active"], np.random.default_rng(seed)
    tables, posterior = model.lower_grid(), model.posterior(4, dtype=torch.float64)
    belief, rates = np.tile(tables.initial[0].numpy(), (4, 1)), tables.points.rate.numpy()
    for elapsed in steps:
        prompt, won = int(rng.integers(0, 3)), int(rng.integers(0, 9))
        posterior.update([prompt], [won], 8, elapsed)
        belief[prompt] *= stats.binom.pmf(won, 8, rates)
        belief[prompt] /= belief[prompt].sum()
        rest, look = (law(elapsed)[0].numpy() for law in (tables.transition, tables.after_look))
        belief = np.stack([row @ (look if k == prompt else rest) for k, row in enumerate(belief)])
        np.testing.assert_allclose(posterior.belief, belief, rtol=0, atol=1e-10)
