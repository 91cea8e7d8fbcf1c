"""Runs: what their randomness depends on, and what moves them."""

from __future__ import annotations

import math
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from scipy import stats
from torch import Tensor

from bayes_prompt import simulate
from bayes_prompt.simulate.run import binomial_quantile

LEVEL = 1e-6  # of each test of a law: a correct one fails once in a million times
N = 40


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def picks(seed: int, step: int, size: int = 8) -> Tensor:
    return torch.randperm(N, generator=torch.Generator().manual_seed(1_000 * seed + step))[:size]


@given(st.lists(st.integers(0, 1_000), min_size=2, max_size=8), st.floats(1e-9, 1 - 1e-9), st.integers(1, 40))
def test_quantiles_are_the_binomials(thousandths: list[int], level: float, trials: int) -> None:
    rates = [each / 1_000 for each in thousandths]  # so far apart that rounding cannot order them
    found = binomial_quantile(doubles(*[level] * len(rates)), doubles(*rates), trials)
    below, reached = (stats.binom.cdf(found.numpy() - lower, trials, rates) for lower in (1, 0))
    # Sums of 41 rounded terms, each of which is the exponential of a number of at most 1e3 or so.
    assert bool(np.all((below < level + 1e-11) & (reached > level - 1e-11)))
    ordered = binomial_quantile(doubles(*[level] * len(rates)), doubles(*sorted(rates)), trials)
    assert torch.equal(ordered, ordered.sort().values)


def test_certain_prompts_are_certain() -> None:
    levels = doubles(1e-10, 0.5, 1 - 1e-10)
    assert binomial_quantile(levels, doubles(0, 0, 0), 8).tolist() == [0, 0, 0]
    assert binomial_quantile(levels, doubles(1, 1, 1), 8).tolist() == [8, 8, 8]


def test_counts_depend_on_seed_step_and_prompt_alone(full_world: simulate.World) -> None:
    run = full_world.start(7)
    whole = run.roll_out(range(N))
    index = picks(0, 0, 20)
    assert torch.equal(run.roll_out(index), whole[index])
    assert torch.equal(run.roll_out(index.flip(0)), whole[index].flip(0))
    assert torch.equal(full_world.start(7).roll_out(range(N)), whole)
    assert not torch.equal(full_world.start(8).roll_out(range(N)), whole)


def test_noise_does_not_depend_on_what_was_learned_nor_touch_the_global_generator(full_world: simulate.World) -> None:
    runs = [full_world.start(1), full_world.start(1)]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for step in range(3):
        for run, size in zip(runs, (3, 9), strict=True):
            run.learn(picks(size, step, size), [4] * size)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(runs[0].learner.walk, runs[1].learner.walk)
    assert not torch.equal(runs[0].learner.skill, runs[1].learner.skill)
    steps = full_world.start(1).learner.walk
    assert torch.equal(steps, torch.zeros(N, dtype=torch.float64))


def test_the_walk_has_the_noise_that_was_declared() -> None:
    world = simulate.World(500, noise=dist.StudentT(4.0, 0.0, 0.3), batch_size=1)
    run, steps = world.start(0), []
    for _ in range(10):
        before = run.learner.walk
        run.learn([], [])
        steps.append((run.learner.walk - before).numpy())
    assert stats.kstest(np.concatenate(steps) / 0.3, stats.t(4).cdf).pvalue > LEVEL


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**63 - 1))
def test_who_learns_faster_never_does_worse(full_world: simulate.World, seed: int) -> None:
    """Luck is shared: under the same picks, a faster learner has at least the successes at every prompt."""
    quiet = replace(full_world, forgetting=None, learning=simulate.Growth(0.1))
    slow, fast = quiet.start(seed), replace(quiet, learning=simulate.Growth(0.4)).start(seed)
    for step in range(3):
        index = picks(0, step)
        lessons = slow.roll_out(index)  # the same for both, since more successes may teach less
        assert bool((fast.roll_out(range(N)) >= slow.roll_out(range(N))).all())
        slow.learn(index, lessons)
        fast.learn(index, lessons)
    assert bool((fast.rates() >= slow.rates()).all())


def test_only_informative_groups_teach(full_world: simulate.World) -> None:
    world = replace(full_world, noise=None, forgetting=None)
    run = world.start(0)
    before = run.rates()
    run.learn([0, 1, 2], [0, 8, 0])
    assert torch.equal(run.rates(), before)
    run.learn([0, 1, 2], [0, 4, 0])
    gained = run.learner.skill
    assert float(gained[1]) > float(gained[5]) > float(gained[0]) > 0  # itself, its kin, everyone


def test_history_is_what_was_learned(full_world: simulate.World) -> None:
    run = full_world.start(0)
    with pytest.raises(ValueError, match="nothing was learned from yet"):
        run.history()
    run.learn([3, 1], [2, 8])
    run.learn([3], [5], trials=6)
    history = run.history()
    assert history.trials[:, [1, 3]].tolist() == [[8, 8], [0, 6]]
    assert history.successes is not None
    assert history.successes[:, [1, 3]].tolist() == [[8, 2], [0, 5]]
    assert (int(history.trials.sum()), run.step) == (22, 2)


def test_what_a_run_refuses_changes_nothing(full_world: simulate.World) -> None:
    run = full_world.start(0)
    learner = run.learner
    for index, successes, error, message in (
        ([0, N], [1, 1], IndexError, rf"index\[1\] = {N} must lie in \[0, {N}\)"),
        ([0, 1], [1, 9], ValueError, r"successes\[1\] = 9 must lie in"),
        ([4, 5, 4], [1, 1, 1], ValueError, r"index\[2\] = 4 occurs twice"),
        ([4.0], [1], TypeError, "index must hold integers"),
    ):
        with pytest.raises(error, match=message):
            run.learn(index, successes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"trials\[0\] = 0 must be at least 1"):
        run.learn([0], [0], trials=0)
    with pytest.raises(IndexError, match=r"index\[0\] = -1"):
        run.roll_out([-1])
    assert run.step == 0
    assert run.learner is learner
    for seed in (-1, 2**63):
        with pytest.raises(ValueError, match="seed must"):
            full_world.start(seed)


def test_any_function_may_be_a_part(full_world: simulate.World) -> None:
    world = replace(
        full_world,
        learning=lambda skill, felt: skill + felt.sqrt(),
        transfer=lambda taught, groups, texts: 4 * taught,
        forgetting=lambda skill, taught: 0 * skill,
    )
    run = world.start(0)
    for _ in range(2):
        run.learn([2], [4])
    assert run.learner.skill.nonzero().tolist() == [[2]]
    assert float(run.learner.skill[2]) == pytest.approx(math.sqrt(8.0))
