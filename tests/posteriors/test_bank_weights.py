"""Banks of drifts and of decays: exact Bayes factors, the filter with one belief a prompt written out, and limits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import bayes_prompt as bp

N = 10
EXACT = 1e-10
Step = tuple[list[int], list[int], list[int], float]
PRIOR = bp.priors.inflated(bp.priors.logit_normal(-0.3, 1.2), zero=0.1, one=0.05)
WALK = bp.LogitRandomWalk(0.4)
SHARED = bp.EmpiricalBayes(pool=2.0, strengths=(1.0, 3.0), memory=0.9)
GROUPS = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]


def history(seed: int, steps: int) -> list[Step]:
    """Up to four prompts a step, some of them twice, and steps that take different times."""
    rng = np.random.default_rng(seed)
    made: list[Step] = []
    for _ in range(steps):
        index = rng.integers(0, N - 2, rng.integers(0, 5)).tolist()
        trials = rng.choice([1, 4, 8, 12], len(index)).tolist()
        successes = [int(rng.binomial(t, rng.beta(0.6, 0.8))) for t in trials]
        made.append((index, successes, trials, float(rng.choice([0.0, 1.0, 1.0, 2.0]))))
    return made


@pytest.mark.parametrize("share", [None, SHARED])
def test_a_bank_of_one_drift_is_that_drift(share: bp.EmpiricalBayes | None) -> None:
    alone = bp.SuccessRate(PRIOR, grid=9, drift=WALK, sharing=share).posterior(N, groups=GROUPS)
    bank = bp.SuccessRate(PRIOR, grid=9, drift=bp.DriftBank([WALK]), sharing=share).posterior(N, groups=GROUPS)
    for step in history(12, 80):
        alone.update(*step)
        bank.update(*step)
    assert torch.equal(alone.belief, bank.belief)
    assert alone.log_count_evidence == bank.log_count_evidence
    assert bank.bank_weights().tolist() == [[1.0]] * 3


@pytest.mark.parametrize("share", [None, SHARED])
@pytest.mark.parametrize("decay", [0.0, 0.6, 1.0])
def test_a_bank_of_one_decay_is_that_decay(decay: float, share: bp.EmpiricalBayes | None) -> None:
    options: dict[str, Any] = {"dtype": torch.float64, "groups": GROUPS}
    alone = bp.SuccessRate(PRIOR, grid=9, decay=decay, sharing=share).posterior(N, **options)
    bank = bp.SuccessRate(PRIOR, grid=9, decay=bp.DecayBank([decay]), sharing=share).posterior(N, **options)
    for step in history(13, 80):
        alone.update(*step)
        bank.update(*step)
    torch.testing.assert_close(alone.belief, bank.belief, rtol=0, atol=EXACT)
    assert alone.log_count_evidence == pytest.approx(bank.log_count_evidence, abs=EXACT)


def softmax(values: np.ndarray) -> np.ndarray:
    """Of the last axis."""
    each = np.exp(values - values.max(-1, keepdims=True))
    return each / each.sum(-1, keepdims=True)


def weights_of(log: np.ndarray, floor: float, pooling: float) -> np.ndarray:
    """Weights (R, J) by the evidence (R, J) of groups: the pool's have a floor, and are tempered in a group's."""
    of_pool = (1 - floor) * softmax(log.sum(0)) + floor / log.shape[1]
    return of_pool[None] if len(log) == 1 else softmax(pooling * np.log(of_pool) + log)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("pooling", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_weights_of_drifts_are_bayes_factors(floor: float, pooling: float, grouped: bool) -> None:
    """One look a prompt, and nothing forgotten: the chances of the counts under each drift, multiplied up."""
    members = (bp.LogitRandomWalk(0.1), bp.LogitRandomWalk(0.5, 0.3), bp.LogitRandomWalk(0.2, -0.2))
    bank = bp.DriftBank(members, memory=1.0, floor=floor, pooling=pooling)
    model = bp.SuccessRate(PRIOR, grid=15, drift=bank)
    groups = [0, 1 if grouped else 0] * 5
    posterior = model.posterior(N, dtype=torch.float64, groups=groups)
    points = model.points()
    log = np.zeros((1 + grouped, 3))
    for t, won in enumerate([3, 8, 0, 5, 7, 8, 1, 8]):
        posterior.update([t], [won], 8)
        for j, member in enumerate(members):
            law = points.mass.numpy() @ np.linalg.matrix_power(member.transition(points).numpy(), t)
            log[groups[t], j] += math.log(law @ stats.binom.pmf(won, 8, points.rate))
    if grouped or floor:
        np.testing.assert_allclose(posterior.bank_weights(), weights_of(log, floor, pooling), rtol=0, atol=EXACT)
    else:
        factors = np.exp(log[0] - log[0, 0])  # to the first of them
        np.testing.assert_allclose(posterior.bank_weights()[0], factors / factors.sum(), rtol=0, atol=EXACT)


def test_one_prompt_under_a_bank_is_exact_at_its_first_look() -> None:
    """Its belief is the average of the members' by what each made of the look, which counts once."""
    members = (bp.LogitRandomWalk(0.1), bp.LogitRandomWalk(0.5, 0.5))
    model = bp.SuccessRate(PRIOR, grid=15, drift=bp.DriftBank(members, memory=1.0, floor=0.0))
    posterior, points = model.posterior(1, dtype=torch.float64), model.points()
    for _ in range(5):
        posterior.advance()
    posterior.update([0], [7], 8, elapsed=0.0)
    joint = sum(
        points.mass.numpy() @ np.linalg.matrix_power(member.transition(points).numpy(), 5) for member in members
    ) * stats.binom.pmf(7, 8, points.rate)
    np.testing.assert_allclose(posterior.belief[0], joint / joint.sum(), rtol=0, atol=EXACT)


@pytest.mark.parametrize("memory", [1.0, 0.8])
def test_a_bank_of_drifts_written_out(memory: float) -> None:
    """The filter with one belief a prompt, densely: 60 steps, so that nothing is settled."""
    members, floor, pooling = (WALK, bp.ActivePassive(bp.LogitRandomWalk(0.3, 0.3), bp.Redraw(0.1))), 0.1, 0.4
    bank = bp.DriftBank(members, memory=memory, floor=floor, pooling=pooling)
    model = bp.SuccessRate(PRIOR, grid=9, drift=bank)
    groups = np.array([0, 1] * 5)
    posterior, points = model.posterior(N, dtype=torch.float64, groups=groups), model.points()
    rates = points.rate.numpy()
    carried = np.tile(points.mass.numpy(), (2, N, 1))  # of each member, from the last common belief
    log = np.zeros((2, 2))
    for index, successes, trials, elapsed in history(14, 60):
        seen, now, new = sorted(set(index)), weights_of(log, floor, pooling), np.zeros((2, 2))
        for prompt in seen:
            won = sum(s for i, s in zip(index, successes, strict=True) if i == prompt)
            of = sum(t for i, t in zip(index, trials, strict=True) if i == prompt)
            chance, r = stats.binom.pmf(won, of, rates), groups[prompt]
            new[r] += np.log(carried[:, prompt] @ chance)
            after = now[r] @ carried[:, prompt] * chance
            carried[:, prompt] = after / after.sum()
        log = memory**elapsed * log + new
        for j, member in enumerate(members):
            for prompt in range(N):
                law = member.after_look if prompt in seen else member.transition
                carried[j, prompt] = carried[j, prompt] @ law(points, elapsed).numpy()
        posterior.update(index, successes, trials, elapsed)
    weights = weights_of(log, floor, pooling)
    np.testing.assert_allclose(posterior.bank_weights(), weights, rtol=0, atol=EXACT)
    belief = np.einsum("nj,jnk->nk", weights[groups], carried)
    np.testing.assert_allclose(posterior.belief, belief, rtol=0, atol=EXACT)


def test_a_bank_of_decays_written_out() -> None:
    decays, memory, floor = np.array([0.3, 0.8, 1.0]), 0.9, 0.1
    model = bp.SuccessRate(PRIOR, grid=9, decay=bp.DecayBank(decays, memory=memory, floor=floor))
    posterior, points = model.posterior(N, dtype=torch.float64), model.points()
    rates, prior = points.rate.numpy(), points.mass.numpy()
    belief, log = np.tile(prior, (N, 1)), np.zeros(3)
    for index, successes, trials, elapsed in history(15, 90):
        weights, new = weights_of(log[None], floor, 0.0)[0], np.zeros(3)
        for prompt in sorted(set(index)):
            won = sum(s for i, s in zip(index, successes, strict=True) if i == prompt)
            of = sum(t for i, t in zip(index, trials, strict=True) if i == prompt)
            kept = (decays**elapsed)[:, None]
            each = belief[prompt] ** kept * prior ** (1 - kept)
            joint = each / each.sum(1, keepdims=True) * stats.binom.pmf(won, of, rates)
            new += np.log(joint.sum(1))
            belief[prompt] = weights @ joint / (weights @ joint).sum()
        log = memory**elapsed * log + new
        posterior.update(index, successes, trials, elapsed)
    np.testing.assert_allclose(posterior.belief, belief, rtol=0, atol=EXACT)
    np.testing.assert_allclose(posterior.bank_weights(), weights_of(log[None], floor, 0.0), rtol=0, atol=EXACT)


def test_a_bank_finds_the_drift_that_made_the_counts() -> None:
    pyro.set_rng_seed(11)
    true = bp.SuccessRate(dist.Beta(2.0, 2.0), grid=21, drift=bp.LogitRandomWalk(0.5))
    trials = torch.full((40, 30), 8)
    counts = true.pyro_model(bp.History(None, trials))
    bank = bp.DriftBank([bp.LogitRandomWalk(s) for s in (0.05, 0.5, 2.0)], memory=1.0, floor=0.0)
    posterior = bp.SuccessRate(dist.Beta(2.0, 2.0), grid=21, drift=bank).posterior(30)
    for won in counts:
        posterior.update(range(30), won, 8)
    # 1,200 looks, of each of which the wrong scales lose a hundredth of a nat at the least: twelve in all.
    assert float(posterior.bank_weights()[0, 1]) > 0.99


def test_each_group_finds_the_drift_of_its_own() -> None:
    """Rates of one group stand still, those of the other are drawn anew in every step, a third is hardly looked at.

    Without pooling it knows next to nothing; with it, what the pool found.
    """
    rng, rows = np.random.default_rng(5), 60
    groups = np.repeat([0, 1, 2], 20)
    looks = [
        np.concatenate([rng.choice(20, 10, replace=False), 20 + rng.choice(20, 10, replace=False)]) for _ in "x" * 20
    ]
    found = []
    for pooling in (0.0, 1.0):
        bank = bp.DriftBank([bp.LogitRandomWalk(0.01), bp.Redraw(0.99)], memory=1.0, floor=0.0, pooling=pooling)
        posterior = bp.SuccessRate(dist.Beta(1.0, 1.0), grid=15, drift=bank).posterior(rows, groups=groups)
        still = rng.beta(1, 1, rows)
        for index in looks:
            rate = np.where(groups == 0, still, rng.beta(1, 1, rows))
            posterior.update(index, rng.binomial(8, rate[index]), 8)
        found.append(posterior.bank_weights())
        if not pooling:
            assert found[0][2].tolist() == [0.5, 0.5]
            # Of 180 looks at prompts known before, either drift loses several tenths of a nat each.
            assert float(found[0][0, 0]) > 0.99 and float(found[0][1, 1]) > 0.99
    assert abs(float(found[1][2, 0]) - 0.5) > 0.4


@pytest.mark.parametrize("floor", [0.0, 0.05])
@pytest.mark.parametrize("pooling", [0.0, 0.3])
def test_evidence_that_is_beyond_all_numbers(floor: float, pooling: float) -> None:
    """Where a weight is too small for a number it is 0, or the floor's: never NaN."""
    bank = bp.DriftBank([bp.LogitRandomWalk(0.01), bp.Redraw(0.99)], memory=1.0, floor=floor, pooling=pooling)
    for groups in (None, [0, 1]):
        posterior = bp.SuccessRate(dist.Beta(1.0, 1.0), grid=15, drift=bank).posterior(2, groups=groups)
        for _ in range(40):
            posterior.update([0], [0], 5_000)
            posterior.update([0], [5_000], 5_000)
        weights = posterior.bank_weights()
        assert bool(weights.isfinite().all()) and bool(posterior.belief.isfinite().all())
        assert float(weights[0, 0]) == pytest.approx(floor / 2 if groups is None else 0.0, abs=1e-6)


def test_weights_turn_when_the_world_does() -> None:
    """With a memory, and a floor: what was right for long is given up within a few steps."""
    rng = np.random.default_rng(6)
    bank = bp.DriftBank([bp.LogitRandomWalk(0.01), bp.Redraw(0.99)])
    posterior = bp.SuccessRate(dist.Beta(1.0, 1.0), grid=15, drift=bank).posterior(20)
    rate = rng.beta(1, 1, 20)
    for step in range(60):
        if step > 40:
            rate = rng.beta(1, 1, 20)
        posterior.update(range(20), rng.binomial(8, rate), 8)
        if step == 40:
            assert float(posterior.bank_weights()[0, 0]) > 0.95
            assert float(posterior.bank_weights()[0, 1]) >= 0.025 - 1e-6
    assert float(posterior.bank_weights()[0, 1]) > 0.95
