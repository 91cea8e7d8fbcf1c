"""What a look tells of transitions, where the states before and after it are guessed."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt.posteriors.pooled_transitions import PooledTransitions

K = 3
BETA = bp.BetaBinomialEmission(dist.Beta(torch.tensor([0.5, 3.0, 9.0]), torch.tensor([6.0, 3.0, 0.5])))
WHOLE = st.lists(st.integers(1, 50), min_size=K, max_size=K)


def learned(declared: Tensor, before: Tensor, likelihood: Tensor) -> Tensor:
    """What looks (M, K) with likelihoods (M, K) add to declared concentrations (K, K)."""
    model = bp.SolvingProgress(declared, decay=1.0, pooling="pool")
    transitions = PooledTransitions(model, declared, 1)
    looks = len(before)
    assert not bool(
        transitions.learn(
            torch.zeros(looks).long(), before, likelihood, torch.ones(looks, dtype=torch.bool), 1e-300, 1.0
        ).any()
    )
    return transitions.counts[0, 0]


def variances(mean: list[Fraction], second: list[Fraction]) -> Fraction:
    return sum((b - a * a for a, b in zip(mean, second, strict=True)), Fraction(0))


def narrowed(counts: list[Fraction], moved: list[Fraction]) -> float:
    """By how many pseudo-counts a Dirichlet grows that has the mean and the summed variance of the exact mixture.

    moved: how likely the look makes each transition out of this state; the rest is that there was none.
    """
    mean, second = [Fraction(0)] * K, [Fraction(0)] * K
    for k, weight in enumerate([*moved, 1 - sum(moved)]):
        part = [count + (i == k) for i, count in enumerate(counts)]
        total = sum(part)
        for i, count in enumerate(part):
            mean[i] += weight * count / total
            second[i] += weight * count * (count + 1) / total / (total + 1)
    return float((1 - sum(m * m for m in mean)) / variances(mean, second) - 1 - sum(counts))


@settings(max_examples=60, deadline=None)
@given(moves=st.lists(WHOLE, min_size=K, max_size=K), before=WHOLE, likelihood=WHOLE)
def test_a_look_is_worth_what_it_narrows(moves: list[list[int]], before: list[int], likelihood: list[int]) -> None:
    """Against the exact mixture over what may have happened, in fractions, of 10**6 pseudo-counts a row.

    The formula is the limit of many: what it leaves out is of the order of 1 / n.
    """
    many = 10**6
    p = [[Fraction(m, sum(row)) for m in row] for row in moves]
    b = [Fraction(x, sum(before)) for x in before]
    joint = [[b[j] * p[j][i] * likelihood[i] for i in range(K)] for j in range(K)]
    total = sum(map(sum, joint))
    declared = torch.tensor([[float(many * x) for x in row] for row in p], dtype=torch.float64)
    told = learned(declared, *(torch.tensor([[float(x) for x in each]]).double() for each in (b, likelihood)))
    for j in range(K):
        exact = narrowed([many * x for x in p[j]], [x / total for x in joint[j]])
        # Roundings are of 10**6.
        assert float(told[j].sum()) == pytest.approx(max(exact, 0.0), abs=1e-3)


def test_a_look_that_says_nothing_teaches_nothing() -> None:
    before, same = torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.1, 0.0]]).double(), torch.ones(2, K).double()
    assert float(learned(bp.priors.progress().concentration, before, same).abs().max()) < 1e-15


def test_a_transition_that_is_seen_counts_once() -> None:
    states = torch.eye(K).double()
    found = learned(bp.priors.progress().concentration, states[[0, 0, 2]], states[[1, 1, 0]])
    seen = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]).double()
    torch.testing.assert_close(found, seen, rtol=0, atol=1e-14)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    decay=st.sampled_from([0.0, 0.3, 1.0, bp.DecayBank((0.0, 0.5, 1.0))]),
    strength=st.sampled_from([0.0, 5.0, float("inf"), None]),
    elapsed=st.sampled_from([0.0, 0.5, 3.0]),
)
def test_whatever_is_seen_concentrations_stay_positive(
    seed: int, decay: object, strength: object, elapsed: float
) -> None:
    rng, prompts, steps = np.random.default_rng(seed), 40, 8
    model = bp.SolvingProgress(
        0.2 + 5 * torch.eye(K).double(), decay=decay, pooling="group", strength=strength, emission=BETA
    )  # type: ignore[arg-type]
    posterior = model.posterior(prompts, groups=np.arange(prompts) % 4, dtype=torch.float64)
    declared, looks = posterior.pooled_concentration.clone(), 0
    for _ in range(steps):
        rows = np.flatnonzero(rng.random(prompts) < 0.7)
        posterior.update(rows, rng.choice([0, 4, 8], len(rows)), 8, elapsed)
        looks += len(rows)
        found = posterior.pooled_concentration
        assert bool((found >= 0.0099 * declared).all())
        assert float((found - declared).sum(2).max()) <= looks * (1 + 1e-12)
        torch.testing.assert_close(posterior.belief.sum(1), torch.ones(prompts).double(), rtol=0, atol=1e-12)


def test_a_prompt_that_is_named_more_than_once_moved_once() -> None:
    posterior = bp.SolvingProgress(bp.priors.progress(), decay=1.0, pooling="pool").posterior(5, dtype=torch.float64)
    posterior.update(range(5), [0, 8, 4, 0, 8], 8)
    posterior.update([0, 0, 0, 1], [4, 3, 5, 8], 8)
    moved = posterior._transitions.counts[0, 0]
    assert moved.nonzero().tolist() == [[0, 1], [2, 2]]  # unsolved to partly solved, and solved still
    assert moved[moved > 0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("declared", [bp.priors.stability().concentration, 0.2 + 5 * torch.eye(K)])
@pytest.mark.parametrize("groups", [2, 3])
def test_groups_that_lean_on_the_pool_without_end_are_the_pool(declared: Tensor, groups: int) -> None:
    """All that was counted, in every group, whatever speaks against what was declared."""
    model = bp.SolvingProgress(declared.double(), decay=1.0, pooling="group", strength=math.inf, emission=BETA)
    posterior = model.posterior(20, groups=torch.arange(20) % groups, dtype=torch.float64)
    rng = np.random.default_rng(1)
    for _ in range(8):
        index = np.flatnonzero(rng.random(20) < 0.7)
        posterior.update(index, rng.choice([0, 4, 8], len(index), p=[0.1, 0.8, 0.1]), 8)
        told = posterior._transitions
        wanted = (declared + told.counts[0].sum(0)).expand_as(told.concentration)
        torch.testing.assert_close(told.concentration, wanted, rtol=1e-12, atol=1e-12)
    assert bool((told.counts < 0).any())  # which is where something could be lost
