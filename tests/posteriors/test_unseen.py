"""Beliefs about prompts that nobody has looked at: against EM written out in numpy, and what they must never do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import bayes_prompt as bp
from bayes_prompt.posteriors.unseen import Unseen

N = 12
GROUPS = np.array([0, 1, 2] * 4)
PRIOR = bp.priors.inflated(bp.priors.logit_normal(-0.3, 1.2), zero=0.1, one=0.05)
DRIFTS: dict[str, Any] = {
    "still": None,
    "walk": bp.LogitRandomWalk(0.4, 0.1),
    "mixture": bp.Mixture(0.3, bp.LogitRandomWalk(0.4), thaw=0.05),
}
# Prompts of a step, successes of 8, and elapsed time; several first looks at a time, and later looks among them.
STEPS = [
    ([0, 3, 4], [8, 7, 0], 1.0),
    ([], [], 2.0),
    ([0, 5, 6, 9], [8, 1, 8, 6], 1.0),
    ([1, 3], [2, 8], 0.5),
    ([0, 1], [3, 3], 1.0),
]


def em(
    prior: np.ndarray, looks: np.ndarray, met: list[tuple[int, np.ndarray]], sharing: bp.EmpiricalBayes, groups: int
) -> np.ndarray:
    """Pseudo-counts (R, S) of first looks after a step has brought some more, each of a group and a likelihood."""
    earlier = looks.copy()
    for _ in range(sharing.passes):
        beliefs = mean_beliefs(prior, looks, sharing, groups)
        looks = earlier.copy()
        for group, chance in met:
            responsible = beliefs[group] * chance
            looks[group] += responsible / responsible.sum()
    return looks


def mean_beliefs(prior: np.ndarray, looks: np.ndarray, sharing: bp.EmpiricalBayes, groups: int) -> np.ndarray:
    pool = sharing.pool * prior + looks.sum(0)
    pool = pool / pool.sum()
    if groups == 1:
        return pool[None]
    own = sharing.group * pool + looks
    return own / own.sum(1, keepdims=True)


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("drift", DRIFTS)
def test_first_looks_are_learned_from_as_em_does(drift: str, passes: int, grouped: bool) -> None:
    sharing = bp.EmpiricalBayes(pool=2.0, group=3.0, memory=0.8, passes=passes)
    model = bp.SuccessRate(PRIOR, grid=9, drift=DRIFTS[drift], sharing=sharing)
    groups = GROUPS if grouped else np.zeros(N, dtype=int)
    posterior = model.posterior(N, dtype=torch.float64, groups=groups)
    tables, count = model.lower_grid(), int(groups.max()) + 1
    rates = np.tile(tables.points.rate.numpy(), tables.modes)
    prior, seen = tables.initial[0].numpy(), set()
    looks = np.zeros((count, len(prior)))
    for index, successes, elapsed in STEPS:
        met = [
            (int(groups[prompt]), stats.binom.pmf(won, 8, rates))
            for prompt, won in zip(index, successes, strict=True)
            if prompt not in seen
        ]
        looks = em(prior, looks, met, sharing, count)
        seen |= set(index)
        moves = tables.transition(elapsed)[0].numpy()
        prior, looks = prior @ moves, 0.8**elapsed * (looks @ moves)
        posterior.update(index, successes, 8, elapsed)
        beliefs = mean_beliefs(prior, looks, sharing, count).reshape(count, tables.modes, -1).sum(1)
        unseen = [row for row in range(N) if row not in seen]
        np.testing.assert_allclose(posterior.belief[unseen], beliefs[groups[unseen]], rtol=0, atol=1e-10)


def test_a_first_look_starts_from_what_the_others_of_its_step_showed() -> None:
    sharing = bp.EmpiricalBayes(pool=2.0, memory=1.0)
    model = bp.SuccessRate(PRIOR, grid=9, sharing=sharing)
    posterior, points = model.posterior(5, dtype=torch.float64), model.points()
    chances = [stats.binom.pmf(won, 8, points.rate.numpy()) for won in (8, 7, 8)]
    looks = em(points.mass.numpy(), np.zeros((1, 9)), [(0, chance) for chance in chances], sharing, 1)
    start = mean_beliefs(points.mass.numpy(), looks, sharing, 1)[0]
    posterior.update([0, 1, 2], [8, 7, 8], 8)
    for row, chance in enumerate(chances):
        np.testing.assert_allclose(posterior.belief[row], start * chance / (start @ chance), rtol=0, atol=1e-10)


def test_without_sharing_nobody_learns_from_others() -> None:
    for model in (bp.SuccessRate(PRIOR, grid=9), bp.SuccessRate(PRIOR, grid=9, drift=bp.LogitRandomWalk(0.4))):
        busy, idle = (model.posterior(N, dtype=torch.float64) for _ in range(2))
        for index, successes, elapsed in STEPS:
            busy.update(index, successes, 8, elapsed)
            idle.advance(elapsed)
        rest = [2, 7, 8, 10, 11]
        assert torch.equal(busy.belief[rest], idle.belief[rest])


@pytest.mark.parametrize("name", ["pool", "group"])
def test_heavy_priors_are_hardly_moved(name: str) -> None:
    """In the limit the declared prior of the pool, and the pool's of a group."""
    sharing = bp.EmpiricalBayes(**{name: 1e12})
    posterior = bp.SuccessRate(PRIOR, grid=9, sharing=sharing).posterior(N, dtype=torch.float64, groups=GROUPS)
    declared = posterior.belief[0].clone()
    posterior.update([0, 3], [8, 8], 8)  # both of group 0
    belief = posterior.belief[[6, 1, 2]]  # nobody has seen these, of groups 0, 1 and 2
    torch.testing.assert_close(belief[1], belief[2], rtol=0, atol=1e-12)
    if name == "group":
        torch.testing.assert_close(belief[0], belief[1], rtol=0, atol=1e-10)
        assert float((belief[1] - declared).abs().max()) > 0.01
    else:
        torch.testing.assert_close(belief[1], declared, rtol=0, atol=1e-10)
        assert float((belief[0] - declared).abs().max()) > 0.01  # its own looks count


def test_the_order_of_groups_does_not_matter() -> None:
    sharing = bp.EmpiricalBayes()
    model = bp.SuccessRate(PRIOR, grid=9, drift=bp.LogitRandomWalk(0.3), sharing=sharing)
    one, other = (model.posterior(N, dtype=torch.float64, groups=g) for g in (GROUPS, (GROUPS + 1) % 3))
    for index, successes, elapsed in STEPS:
        one.update(index, successes, 8, elapsed)
        other.update(index, successes, 8, elapsed)
    torch.testing.assert_close(one.belief, other.belief, rtol=0, atol=1e-13)


def test_beliefs_are_learned_towards_the_truth() -> None:
    """Fifty first looks at prompts of which three in four are never solved, and the others always."""
    prior = bp.priors.inflated(dist.Beta(1.0, 1.0), zero=0.1, one=0.1)
    sharing = bp.EmpiricalBayes(pool=2.0, memory=1.0)
    posterior = bp.SuccessRate(prior, grid=9, sharing=sharing).posterior(60, dtype=torch.float64)
    posterior.update(range(50), [8 if row % 4 == 0 else 0 for row in range(50)], 8)
    belief = posterior.belief[55]
    # 13 of 50 solved; two pseudo-counts of the prior, and small rates that look like zero, are spread elsewhere.
    assert float(posterior.success_rate()[55]) == pytest.approx(0.26, abs=0.05)
    assert float(belief[0] + belief[-1]) > 0.6
    assert float(posterior.informative_probability(8)[55]) < 0.2


def test_it_is_changed_in_place() -> None:
    """A checkpoint copies what was loaded into the tensors of the state: they stay the same ones."""
    unseen = Unseen(torch.full((1, 4), 0.25).double(), 2, bp.EmpiricalBayes())
    prior, looks = unseen.prior, unseen.looks
    unseen.learn(torch.tensor([1]), torch.rand(1, 4).double())
    unseen.move(torch.eye(4).double().roll(1, 0)[None], 1.0)
    assert unseen.prior is prior and unseen.looks is looks
    assert float(looks[0, 0].sum()) == 0.0 and float(looks[0, 1].sum()) == pytest.approx(0.95)
