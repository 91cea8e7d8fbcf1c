"""Beliefs about prompts that nobody has looked at: against pseudo-counts in numpy, and what they must never do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import bayes_prompt as bp
from bayes_prompt.posteriors.kinship import Kinship
from bayes_prompt.posteriors.unseen import Unseen

N = 12
GROUPS = np.array([0, 1, 2] * 4)
EMBEDDINGS = np.random.default_rng(0).normal(size=(N, 2)).round(2)
KINDS = {"pool": (False, False), "groups": (True, False), "embeddings": (False, True), "both": (True, True)}
PRIOR = bp.priors.inflated(bp.priors.logit_normal(-0.3, 1.2), zero=0.1, one=0.05)
WALK = bp.LogitRandomWalk(0.4, 0.1)
DRIFTS: dict[str, Any] = {
    "still": None,
    "walk": WALK,
    "mixture": bp.Mixture(0.3, WALK, thaw=0.05),
    # Members that do not even agree about the prior.
    "bank": bp.DriftBank([bp.Mixture(0.3, WALK), bp.Mixture(0.6, bp.Redraw(0.1))], memory=0.9),
}
# Prompts of a step, successes of 8, and elapsed time; several first looks at a time, and later looks among them.
STEPS = [
    ([0, 3, 4], [8, 7, 0], 1.0),
    ([], [], 2.0),
    ([0, 5, 6, 9], [8, 1, 8, 6], 1.0),
    ([1, 3], [2, 8], 0.5),
    ([0, 1], [3, 3], 1.0),
]


def likenesses(kind: str, widths: tuple[float, ...]) -> list[np.ndarray]:
    """How alike prompts are (N, N), for each way: near ones, those of the group, and near ones in the group."""
    grouped, embedded = KINDS[kind]
    same = (GROUPS[:, None] == GROUPS).astype(float)
    apart = ((EMBEDDINGS[:, None] - EMBEDDINGS) ** 2).sum(2)
    median = np.sort(apart[apart > 0])[(N * (N - 1) - 1) // 2]
    near = [np.minimum(1, np.exp(-(apart / median - 0.3) / (2 * width))) for width in widths if embedded]
    return near + ([same, *(same * each for each in near)] if grouped else [])


class Counts:
    """Pseudo-counts of first looks, one prompt after the other, for every prompt and way."""

    def __init__(self, prior: np.ndarray, sharing: bp.EmpiricalBayes, alike: list[np.ndarray]) -> None:
        self.prior, self.sharing, self.alike = prior, sharing, alike
        self.of_pool = np.zeros(len(prior))
        self.of_like = np.zeros((len(alike), N, len(prior)))
        self.log = np.zeros((len(alike), len(sharing.strengths)))

    def each(self) -> np.ndarray:
        """Beliefs (ways, strengths, N, states)."""
        pool = self.sharing.pool * self.prior + self.of_pool
        own = np.array(self.sharing.strengths)[:, None, None] * pool / pool.sum() + self.of_like[:, None]
        return own / own.sum(3, keepdims=True)

    def beliefs(self) -> np.ndarray:
        """(N, states)"""
        if not self.alike:
            pool = self.sharing.pool * self.prior + self.of_pool
            return np.tile(pool / pool.sum(), (N, 1))
        weights = np.exp(self.log - self.log.max())
        return np.einsum("ws,wsnk->nk", weights / weights.sum(), self.each())

    def learn(self, looks: list[tuple[int, np.ndarray]]) -> None:
        """First looks of one step, at prompts with likelihoods (states,): none of them tells about another."""
        each, beliefs = self.each() if self.alike else None, self.beliefs()
        if looks:
            self.log *= self.sharing.memory
        for prompt, chance in looks:
            met = beliefs[prompt] * chance / (beliefs[prompt] @ chance)
            self.of_pool = self.of_pool + met
            for way, alike in enumerate(self.alike):
                self.of_like[way] += alike[:, prompt, None] * met
                self.log[way] += np.log(each[way, :, prompt] @ chance)  # type: ignore[index]

    def move(self, transition: np.ndarray) -> None:
        """One step of (states, states)."""
        self.prior, self.of_pool, self.of_like = (m @ transition for m in (self.prior, self.of_pool, self.of_like))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drift", DRIFTS)
def test_first_looks_are_learned_from(drift: str, kind: str) -> None:
    sharing = bp.EmpiricalBayes(pool=2.0, strengths=(1.0, 4.0), widths=(0.1, 0.4), memory=0.8)
    model = bp.SuccessRate(PRIOR, grid=9, drift=DRIFTS[drift], sharing=sharing)
    grouped, embedded = KINDS[kind]
    posterior = model.posterior(
        N,
        dtype=torch.float64,
        groups=GROUPS if grouped else None,
        embeddings=EMBEDDINGS if embedded else None,
    )
    tables = model.lower_grid()
    rates = np.tile(tables.points.rate.numpy(), tables.modes)
    counts, seen = Counts(tables.initial.numpy().mean(0), sharing, likenesses(kind, sharing.widths)), set()
    for index, successes, elapsed in STEPS:
        looks = [(i, stats.binom.pmf(won, 8, rates)) for i, won in zip(index, successes, strict=True) if i not in seen]
        counts.learn(looks)
        seen |= set(index)
        posterior.update(index, successes, 8, elapsed)
        counts.move(np.einsum("j,jkl->kl", posterior.bank_weights().mean(0), tables.transition(elapsed)))
        unseen = [row for row in range(N) if row not in seen]
        beliefs = counts.beliefs().reshape(N, tables.modes, -1).sum(1)
        np.testing.assert_allclose(posterior.belief[unseen], beliefs[unseen], rtol=0, atol=1e-10)
    assert float(posterior._unseen.of_pool.sum()) == pytest.approx(len(seen), abs=1e-10)  # none is forgotten


@pytest.mark.parametrize("groups", [None, [0, 0, 0, 1, 1]])
def test_first_looks_of_a_step_do_not_tell_of_each_other(groups: list[int] | None) -> None:
    model = bp.SuccessRate(PRIOR, grid=9, sharing=bp.EmpiricalBayes(pool=2.0))
    posterior = model.posterior(5, dtype=torch.float64, groups=groups)
    posterior.update([3], [6], 8)
    start, rates = posterior.belief.numpy().copy(), posterior.grid.numpy()
    posterior.update([0, 1, 2], [8, 7, 8], 8)
    for row, won in ((0, 8), (1, 7), (2, 8)):
        after = start[row] * stats.binom.pmf(won, 8, rates)
        np.testing.assert_allclose(posterior.belief[row], after / after.sum(), rtol=0, atol=1e-10)
    assert float(posterior.success_rate()[4]) > float(start[4] @ rates)


def test_without_sharing_nobody_learns_from_others() -> None:
    for model in (bp.SuccessRate(PRIOR, grid=9), bp.SuccessRate(PRIOR, grid=9, drift=bp.LogitRandomWalk(0.4))):
        busy, idle = (model.posterior(N, dtype=torch.float64) for _ in range(2))
        for index, successes, elapsed in STEPS:
            busy.update(index, successes, 8, elapsed)
            idle.advance(elapsed)
        rest = [2, 7, 8, 10, 11]
        assert torch.equal(busy.belief[rest], idle.belief[rest])


def test_first_looks_that_are_shared_say_nothing_about_drifts() -> None:
    """Others' rates changed what was expected of them; without sharing the drifts alone foretold them."""
    bank = bp.DriftBank([bp.LogitRandomWalk(0.1), bp.LogitRandomWalk(0.5, 0.8)], floor=0.0)
    for sharing in (None, bp.EmpiricalBayes()):
        posterior = bp.SuccessRate(PRIOR, grid=9, drift=bank, sharing=sharing).posterior(N, dtype=torch.float64)
        posterior.advance(5.0)
        posterior.update([0, 1], [8, 8], 8)
        even = torch.equal(posterior.bank_weights(), torch.full((1, 2), 0.5).double())
        assert even == (sharing is not None)
        posterior.update([0, 2], [1, 8], 8)
        assert not torch.equal(posterior.bank_weights(), torch.full((1, 2), 0.5).double())


@pytest.mark.parametrize("kind", ["groups", "embeddings", "both"])
def test_heavy_priors_are_hardly_moved(kind: str) -> None:
    """In the limit the declared prior of the pool, and the pool's of prompts that are alike."""
    grouped, embedded = KINDS[kind]
    options: dict[str, Any] = {
        "dtype": torch.float64,
        "groups": GROUPS if grouped else None,
        "embeddings": EMBEDDINGS if embedded else None,
    }
    unseen = [1, 2, 6]
    found = {}
    for name, sharing in (
        ("pool", bp.EmpiricalBayes(pool=1e12, widths=(0.3,))),
        ("strengths", bp.EmpiricalBayes(pool=2.0, strengths=(1e13, 1e12))),
        ("alone", bp.EmpiricalBayes(pool=2.0)),
    ):
        model = bp.SuccessRate(PRIOR, grid=9, sharing=sharing)
        posterior = model.posterior(N, **({"dtype": torch.float64} if name == "alone" else options))
        declared = posterior.belief[0].clone()
        posterior.update([0, 3], [8, 8], 8)  # both of group 0, as is 6
        found[name] = posterior.belief[unseen]
    torch.testing.assert_close(found["strengths"], found["alone"], rtol=0, atol=1e-10)
    apart = (found["pool"] - declared).abs().amax(1)
    assert float(apart.max()) > 0.01  # looks at those that are alike count
    if not embedded:
        assert float(apart[:2].max()) < 1e-10
    assert float((found["alone"] - declared).abs().max()) > 0.01


@pytest.mark.parametrize("drift", ["walk", "bank"])
def test_the_order_of_groups_and_of_prompts_does_not_matter(drift: str) -> None:
    model = bp.SuccessRate(PRIOR, grid=9, drift=DRIFTS[drift], sharing=bp.EmpiricalBayes())
    order = np.random.default_rng(1).permutation(N)
    place = np.argsort(order)  # of a prompt in the other pool
    for embedded in (False, True):
        one = model.posterior(N, dtype=torch.float64, groups=GROUPS, embeddings=EMBEDDINGS if embedded else None)
        other = model.posterior(
            N,
            dtype=torch.float64,
            groups=(GROUPS[order] + 1) % 3,
            embeddings=EMBEDDINGS[order] if embedded else None,
        )
        for index, successes, elapsed in STEPS:
            one.update(index, successes, 8, elapsed)
            other.update(place[index].astype(int), successes, 8, elapsed)
        torch.testing.assert_close(one.belief, other.belief[place], rtol=0, atol=1e-12)


def test_where_embeddings_lie_does_not_matter() -> None:
    """Shifted, turned and stretched they tell the same: what counts is how far apart they are, relatively."""
    turn = np.array([[0.6, 0.8], [-0.8, 0.6]])
    model = bp.SuccessRate(PRIOR, grid=9, drift=WALK, sharing=bp.EmpiricalBayes())
    beliefs = []
    for embeddings in (EMBEDDINGS, EMBEDDINGS + 100.0, EMBEDDINGS @ turn, 1e3 * EMBEDDINGS, 1e-3 * EMBEDDINGS):
        posterior = model.posterior(N, dtype=torch.float64, embeddings=embeddings)
        for index, successes, elapsed in STEPS:
            posterior.update(index, successes, 8, elapsed)
        beliefs.append(posterior.belief)
    for belief in beliefs[1:]:  # squared distances are known to about 1e-12 of the median one after the shift
        torch.testing.assert_close(belief, beliefs[0], rtol=0, atol=1e-9)


def test_beliefs_are_learned_towards_the_truth() -> None:
    """Fifty first looks at prompts of which three in four are never solved, and the others always."""
    prior = bp.priors.inflated(dist.Beta(1.0, 1.0), zero=0.1, one=0.1)
    posterior = bp.SuccessRate(prior, grid=9, sharing=bp.EmpiricalBayes(pool=2.0)).posterior(60, dtype=torch.float64)
    for start in range(0, 50, 5):
        rows = range(start, start + 5)
        posterior.update(rows, [8 if row % 4 == 0 else 0 for row in rows], 8)
    belief = posterior.belief[55]
    # 13 of 50 solved; two pseudo-counts of the prior, and small rates that look like zero, are spread elsewhere.
    assert float(posterior.success_rate()[55]) == pytest.approx(0.26, abs=0.05)
    assert float(belief[0] + belief[-1]) > 0.6
    assert float(posterior.informative_probability(8)[55]) < 0.2


@pytest.mark.parametrize("told_by", ["nothing", "groups", "embeddings"])
def test_what_tells_prompts_apart_is_found(told_by: str) -> None:
    """Half of the pool is never solved. Which half, the group tells, or the embedding, or neither."""
    rows, rng = 120, np.random.default_rng(2)
    solved = np.arange(rows) % 2
    shuffled = rng.permutation(solved)
    groups = solved if told_by == "groups" else shuffled
    place = solved if told_by == "embeddings" else rng.permutation(solved)
    embeddings = 3.0 * place[:, None] + 0.3 * rng.normal(size=(rows, 2))
    model = bp.SuccessRate(PRIOR, grid=9, sharing=bp.EmpiricalBayes(strengths=(1.0, 100.0), widths=(0.06,)))
    posterior = model.posterior(rows, dtype=torch.float64, groups=groups, embeddings=embeddings)
    for start in range(0, 100, 10):
        index = np.arange(start, start + 10)
        posterior.update(index, 8 * solved[index], 8)
    evidence = dict(zip(("like", "group", "like in the group"), posterior._unseen.evidence.view(3, 2), strict=True))
    assert posterior._kin.ways == list(evidence)
    rate, rest = posterior.success_rate(), np.arange(100, rows)
    wrong = float((rate[rest] - torch.from_numpy(solved[rest])).abs().max())
    if told_by == "nothing":
        # Of 25 prompts with the same label and embedding about half are solved: give or take three times 0.1.
        assert float((rate[rest] - 0.5).abs().max()) < 0.3
    else:
        way = "group" if told_by == "groups" else "like"
        assert float(evidence[way][0]) > float(evidence[way][1])
        assert float(evidence[way][0]) == pytest.approx(float(posterior._unseen.evidence.max()), abs=1.0)
        assert wrong < 0.1


def test_labels_of_a_large_pool_are_not_dropped_for_embeddings() -> None:
    """70 labels, of which every other one is never solved, and embeddings that tell nothing."""
    rows = 2_100
    groups = np.arange(rows) % 70
    embeddings = np.random.default_rng(3).normal(size=(rows, 4))
    model = bp.SuccessRate(PRIOR, grid=9, sharing=bp.EmpiricalBayes())
    posterior = model.posterior(rows, dtype=torch.float64, groups=groups, embeddings=embeddings)
    for index in np.split(np.arange(1_050), 10):
        posterior.update(index, 4 * (groups[index] % 2), 8)
    rate, rest = posterior.success_rate().numpy()[1_050:], groups[1_050:]
    # 15 first looks at each, beside a prior that weighs as much as 3 to 30 of the pool's.
    assert rate[rest % 2 == 1].mean() > 0.35 and rate[rest % 2 == 0].mean() < 0.1


def test_it_is_changed_in_place() -> None:
    """A checkpoint copies what was loaded into the tensors of the state: they stay the same ones."""
    kin = Kinship(torch.tensor([0, 1]), None, (0.1,))
    unseen = Unseen(torch.full((1, 4), 0.25).double(), kin, bp.EmpiricalBayes())
    names = ("prior", "of_pool", "of_like", "evidence")
    before = {name: getattr(unseen, name) for name in names}
    unseen.learn(torch.tensor([1]), torch.rand(1, 4).double(), torch.full((1, 4), 0.25).double())
    unseen.move(torch.eye(4).double().roll(1, 0)[None], torch.eye(4).double().roll(1, 0))
    assert all(getattr(unseen, name) is before[name] for name in names)
    assert float(unseen.of_like[0, 0].sum()) == 0.0 and float(unseen.of_like[0, 1].sum()) == 1.0
    assert bool((unseen.evidence != 0).all()) and float(unseen.of_pool.sum()) == 1.0
