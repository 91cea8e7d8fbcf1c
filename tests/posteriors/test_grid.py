"""The grid posterior against a dense forward filter in numpy, and against conjugate Betas."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from scipy import stats
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt.models.grid import Points

N, STEPS = 10, 110  # two prompts are never observed; the window of 64 steps is settled twice
EXACT = 1e-10
Step = tuple[list[int], list[int], list[int], float]


class Improving(bp.Drift):
    """A drift of one's own: one point up with probability 0.3, less where little time has passed."""

    def transition(self, points: Points, elapsed: float = 1.0) -> Tensor:
        size = len(points.rate)
        up = 1 - 0.7**elapsed
        moves = (1 - up) * torch.eye(size).double() + up * torch.eye(size).double().roll(1, 1)
        moves[-1] = torch.eye(size)[-1]
        return moves

    def describe(self) -> dict[str, Any]:
        return {"drift": "Improving"}


PRIOR = bp.priors.inflated(bp.priors.logit_normal(-0.3, 1.2), zero=0.1, one=0.05)
UNEVEN = torch.tensor([0.0, 0.02, 0.1, 0.15, 0.3, 0.5, 0.8, 0.97, 1.0], dtype=torch.float64)
WALK = bp.LogitRandomWalk(0.4)
MODELS = {
    "still": bp.SuccessRate(PRIOR, grid=13),
    "decay": bp.SuccessRate(PRIOR, grid=13, decay=0.7),
    "walk": bp.SuccessRate(PRIOR, grid=13, drift=WALK),
    "trend": bp.SuccessRate(PRIOR, grid=UNEVEN, drift=bp.LogitRandomWalk(0.3, 0.1, 0.2)),
    "redraw": bp.SuccessRate(PRIOR, grid=13, drift=bp.Redraw(0.1)),
    "mixture": bp.SuccessRate(PRIOR, grid=9, drift=bp.Mixture(0.4, WALK, thaw=0.05, freeze=0.02)),
    "active": bp.SuccessRate(PRIOR, grid=13, drift=bp.ActivePassive(bp.LogitRandomWalk(0.4, 0.2), bp.Redraw(0.05))),
    "matrix": bp.SuccessRate(
        dist.Uniform(0.0, 1.0),
        grid=5,
        drift=bp.FixedTransition(torch.tensor(np.random.default_rng(3).dirichlet(np.ones(5), 5))),
    ),
    "own": bp.SuccessRate(PRIOR, grid=UNEVEN, drift=Improving()),
}


def history(seed: int, steps: int = STEPS) -> list[Step]:
    """Up to three prompts a step, some of them twice; the first 70 steps take equal times, later ones do not."""
    rng = np.random.default_rng(seed)
    made: list[Step] = []
    for step in range(steps):
        # Prompts 0 and 1 are observed in the first steps and in the last alone.
        seldom = [] if 4 <= step < steps - 2 else [0, 1]
        index = [*seldom, *rng.integers(2, N - 2, rng.integers(0, 4)).tolist()]
        trials = rng.choice([1, 4, 8, 12], len(index)).tolist()
        successes = [int(rng.binomial(t, rng.beta(0.6, 0.8))) for t in trials]
        made.append((index, successes, trials, 1.0 if step < 70 else float(rng.choice([0.0, 1.0, 2.0, 3.0]))))
    return made


class Dense:
    """The forward filter of every prompt, one after the other, without any shortcut."""

    def __init__(self, model: bp.SuccessRate) -> None:
        self.tables, self.decay = model.lower_grid(), float(model.decay)  # type: ignore[arg-type]
        self.prior = self.tables.initial[0].numpy()
        self.belief = np.tile(self.prior, (N, 1))
        self.seen = np.zeros(N, dtype=bool)
        rates = self.tables.points.rate.numpy()
        self.rates = np.tile(rates, self.tables.modes)
        self.log_evidence = 0.0

    def step(self, index: list[int], successes: list[int], trials: list[int], elapsed: float) -> None:
        rest, look = (law(elapsed)[0].numpy() for law in (self.tables.transition, self.tables.after_look))
        for prompt in range(N):
            won = sum(s for i, s in zip(index, successes, strict=True) if i == prompt)
            of = sum(t for i, t in zip(index, trials, strict=True) if i == prompt)
            belief = self.belief[prompt]
            if of:
                chance = stats.binom.pmf(won, of, self.rates)
                self.log_evidence += math.log(belief @ chance)
                decay = self.decay**elapsed
                if self.seen[prompt]:
                    belief = belief**decay * self.prior ** (1 - decay)
                belief = belief * chance
                belief = belief / belief.sum()
                self.seen[prompt] = True
            self.belief[prompt] = belief @ (look if of else rest)
        self.prior = self.prior @ rest

    def by_point(self) -> np.ndarray:
        return self.belief.reshape(N, self.tables.modes, -1).sum(1)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_dense_filter(name: str, backend: str) -> None:
    model = MODELS[name]
    posterior, dense = model.posterior(N, dtype=torch.float64, backend=backend), Dense(model)
    for t, step in enumerate(history(7)):
        posterior.update(*step)
        dense.step(*step)
        if t in (0, 3, 63, 64, 65, 95, 96, 97, STEPS - 1):
            np.testing.assert_allclose(posterior.belief, dense.by_point(), rtol=0, atol=EXACT, err_msg=f"step {t}")
    assert posterior.log_count_evidence == pytest.approx(dense.log_evidence, abs=EXACT)
    assert posterior.log_evidence == posterior.log_count_evidence and posterior.unexpected == 0
    belief, rates = dense.by_point(), dense.tables.points.rate.numpy()
    trials = np.arange(1, N + 1)
    mixed = 1 - rates ** trials[:, None] - (1 - rates) ** trials[:, None]
    wanted = {
        "success_rate": belief @ rates,
        "expected_variance": belief @ (rates * (1 - rates)),
        "entropy": stats.entropy(belief, axis=1),
    }
    rows = torch.tensor([9, 0, 3])
    for question, answer in wanted.items():
        ask = getattr(posterior, question)
        np.testing.assert_allclose(ask(), answer, rtol=0, atol=EXACT, err_msg=question)
        np.testing.assert_allclose(ask(rows), answer[rows], rtol=0, atol=EXACT, err_msg=question)
    each = posterior.informative_probability(torch.from_numpy(trials))
    np.testing.assert_allclose(each, (belief * mixed).sum(1), rtol=0, atol=EXACT)
    np.testing.assert_allclose(posterior.informative_probability(5), belief @ mixed[4], rtol=0, atol=EXACT)


@pytest.mark.parametrize("name", ["mixture", "active"])
def test_triton_is_the_dense_filter(name: str) -> None:
    model = MODELS[name]
    posterior, dense = model.posterior(N, dtype=torch.float64, backend="triton"), Dense(model)
    for step in history(7, 6):
        posterior.update(*step)
        dense.step(*step)
    np.testing.assert_allclose(posterior.belief, dense.by_point(), rtol=0, atol=EXACT)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", MODELS)
def test_float32_is_as_near_as_its_roundings(name: str, backend: str) -> None:
    """In Hilbert's metric positive maps shorten distances, so relative errors of single steps at most add up.

    A look rounds its table, belief and likelihood, adds up as many products as there are states, and stores: a
    relative error of states + 6 roundings in an entry, thus twice that in the metric. Carrying forward rounds no more.
    Forgetting takes logarithms, of which the smallest, 80, magnifies their rounding.
    """
    steps = history(8)
    narrow, wide = (MODELS[name].posterior(N, dtype=d, backend=backend) for d in (torch.float32, torch.float64))
    for step in steps:
        narrow.update(*step)
        wide.update(*step)
    looks = int(wide.visits.max()) + STEPS // 32 + 1
    states = wide._belief.shape[1]
    forgetting = 80 if name == "decay" else 0
    bound = math.expm1(looks * 2 * (states + 6 + forgetting) * 2.0**-24)
    assert bound < 0.01
    reached = wide.belief
    assert bool(((narrow.belief.double() - reached).abs() <= bound * reached + 1e-30).all())


@given(
    alpha=st.floats(0.2, 20.0),
    beta=st.floats(0.2, 20.0),
    size=st.integers(3, 21),
    counts=st.lists(st.tuples(st.integers(1, 8), st.floats(0, 1)), max_size=8),
)
@settings(max_examples=50, deadline=None)
def test_up_to_2k_2_rollouts_are_conjugate(
    alpha: float, beta: float, size: int, counts: list[tuple[int, float]]
) -> None:
    prior = dist.Beta(torch.tensor(alpha).double(), torch.tensor(beta).double())
    exact = bp.SuccessRate(prior).posterior(1, dtype=torch.float64)
    filtered = bp.SuccessRate(prior, grid=size).posterior(1, dtype=torch.float64)
    spent = 0
    for trials, share in counts:
        if spent + trials > 2 * size - 2:
            break
        spent += trials
        for posterior in (exact, filtered):
            posterior.update([0], [round(share * trials)], trials)
        assert float(filtered.success_rate()) == pytest.approx(float(exact.success_rate()), abs=1e-6)
    # The evidence of counts that were surprising is a small number, known to 1e-6 of it.
    assert filtered.log_count_evidence == pytest.approx(exact.log_count_evidence, abs=1e-5)


def test_many_rollouts_are_nearly_conjugate() -> None:
    """As often as training looks at a prompt: 100 looks of 8, at the default size."""
    exact = bp.SuccessRate().posterior(3, dtype=torch.float64)
    filtered = bp.SuccessRate(grid=41).posterior(3, dtype=torch.float64)
    rng = np.random.default_rng(1)
    for _ in range(100):
        won = rng.binomial(8, [0.1, 0.5, 0.8])
        for posterior in (exact, filtered):
            posterior.update([0, 1, 2], won, 8)
    # Points lie up to 0.04 apart and beliefs are 0.02 wide: not more than half a gap.
    torch.testing.assert_close(filtered.success_rate(), exact.success_rate(), rtol=0, atol=0.02)


def test_forgetting_is_that_of_betas() -> None:
    """Counts that stay whole when they are forgotten, so that beliefs stay polynomials of the rate."""
    models = (bp.SuccessRate(decay=0.5), bp.SuccessRate(decay=0.5, grid=21), bp.SuccessRate(decay=bp.DecayBank((0.5,))))
    made = [model.posterior(2, dtype=torch.float64) for model in models]
    for won, elapsed in ((4, 1.0), (3, 2.0), (2, 1.0), (4, 0.0)):
        for posterior in made:
            posterior.update([0], [won], 8, elapsed)
        for posterior in made[1:]:
            torch.testing.assert_close(posterior.success_rate(), made[0].success_rate(), rtol=0, atol=1e-9)
            assert posterior.log_count_evidence == pytest.approx(made[0].log_count_evidence, abs=1e-9)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("bank", [False, True])
def test_what_nobody_expected_is_left_out_of_the_evidence(decay: float, bank: bool) -> None:
    prior = bp.priors.inflated(bp.priors.logit_normal(0.0, 0.3), zero=0.1, one=0.1)
    posterior = bp.SuccessRate(prior, grid=5, decay=bp.DecayBank([decay]) if bank else decay).posterior(2)
    posterior.update([0], [0], 5000)  # certainly never solved
    before = posterior.log_count_evidence
    posterior.update([0], [3], 8)
    assert (posterior.unexpected, posterior.log_count_evidence) == (1, before)
    assert bool(posterior.belief.isfinite().all()) and float(posterior.belief[0, 1:-1].sum()) > 0.99


def test_draws_are_points_of_the_belief() -> None:
    rows = 40_000
    posterior = MODELS["mixture"].posterior(rows, dtype=torch.float64)
    posterior.update(torch.arange(rows), torch.full((rows,), 3), 8)
    drawn = posterior.sample_success_rate(seed=2, step=3)
    where = torch.searchsorted(posterior.grid, drawn)
    assert torch.equal(posterior.grid[where], drawn)
    belief = posterior.belief[0]
    share = torch.bincount(where, minlength=len(belief)).double() / rows
    # Five standard deviations of a share, and a draw or two where next to none are expected.
    assert bool(((share - belief).abs() <= 5 * (belief * (1 - belief) / rows).sqrt() + 2 / rows).all())
    assert torch.equal(drawn, posterior.sample_success_rate(seed=2, step=3))
    assert not torch.equal(drawn, posterior.sample_success_rate(seed=2, step=4))
    part = MODELS["mixture"].posterior(100, first_prompt=17_000, dtype=torch.float64)
    part.update(torch.arange(100), torch.full((100,), 3), 8)
    assert torch.equal(part.sample_success_rate(seed=2, step=3), drawn[17_000:17_100])


def test_when_prompts_were_last_observed() -> None:
    for model in (MODELS["walk"], bp.SuccessRate(), bp.SolvingProgress()):
        posterior = model.posterior(4)
        assert posterior.last_observed.tolist() == [0, 0, 0, 0]
        posterior.update([1, 1, 3], [0, 1, 2], 8)
        posterior.advance()
        posterior.update([3], [2], 8)
        posterior.observe([0], [2], 8)  # which waits
        assert posterior.last_observed.tolist() == [0, 1, 0, 3] and posterior.step == 3
        again = model.posterior(4)
        again.load_state_dict(posterior.state_dict())
        again.advance()
        assert again.last_observed.tolist() == [4, 1, 0, 3]
