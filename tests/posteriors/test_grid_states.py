"""States of the grid posterior: resumed bit for bit, refused where they cannot be; what is foretold before a look."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
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
MODELS = {
    "still": bp.SuccessRate(PRIOR, grid=13),
    "decay": bp.SuccessRate(PRIOR, grid=13, decay=0.7),
    "walk": bp.SuccessRate(PRIOR, grid=9, drift=WALK),
    "redraw": bp.SuccessRate(PRIOR, grid=9, drift=bp.Redraw(0.1)),
    "mixture": bp.SuccessRate(PRIOR, grid=9, drift=bp.Mixture(0.4, WALK, thaw=0.05, freeze=0.02)),
    "active": bp.SuccessRate(PRIOR, grid=9, drift=bp.ActivePassive(bp.LogitRandomWalk(0.4, 0.2), bp.Redraw(0.05))),
    "matrix": bp.SuccessRate(
        PRIOR, grid=5, drift=bp.FixedTransition(0.9 * torch.eye(5) + 0.1 * torch.eye(5).roll(1, 1))
    ),
    "drifts": bp.SuccessRate(PRIOR, grid=9, drift=bp.DriftBank([WALK, bp.Redraw(0.05)], memory=0.9, pooling=0.5)),
    "decays": bp.SuccessRate(PRIOR, grid=9, decay=bp.DecayBank((0.4, 0.8, 1.0), memory=0.9, pooling=0.5)),
    "sharing": bp.SuccessRate(PRIOR, grid=9, drift=WALK, sharing=SHARED),
    "all": bp.SuccessRate(
        PRIOR, grid=9, drift=bp.DriftBank([bp.Mixture(0.3, WALK), bp.Mixture(0.6, bp.Redraw(0.1))]), sharing=SHARED
    ),
    "decays that share": bp.SuccessRate(PRIOR, grid=9, decay=bp.DecayBank((0.4, 1.0)), sharing=SHARED),
}
GROUPS = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
EMBEDDINGS = np.random.default_rng(4).normal(size=(N, 3))


def history(seed: int, steps: int) -> list[Step]:
    """Up to three prompts a step, some of them twice; the first 50 steps take equal times, later ones do not."""
    rng = np.random.default_rng(seed)
    made: list[Step] = []
    for step in range(steps):
        # Prompts 0 and 1 are observed in the first steps and in the last alone.
        seldom = [] if 4 <= step < steps - 2 else [0, 1]
        index = [*seldom, *rng.integers(2, N - 2, rng.integers(0, 4)).tolist()]
        trials = rng.choice([1, 4, 8, 12], len(index)).tolist()
        successes = [int(rng.binomial(t, rng.beta(0.6, 0.8))) for t in trials]
        made.append((index, successes, trials, 1.0 if step < 50 else float(rng.choice([0.0, 1.0, 2.0, 3.0]))))
    return made


@pytest.mark.parametrize("name", MODELS)
def test_a_warm_start_is_an_observation_that_counts_as_none(name: str) -> None:
    model = MODELS[name]
    posterior = model.posterior(N, dtype=torch.float64)
    before = posterior.belief
    posterior.warm_start([3, 5], [1, 4], 4)
    posterior.warm_start([3], [2], 4)
    rates = posterior.grid.numpy()
    for row, won, of in ((3, 3, 8), (5, 4, 4)):
        expected = before[row].numpy() * stats.binom.pmf(won, of, rates)
        np.testing.assert_allclose(posterior.belief[row], expected / expected.sum(), rtol=0, atol=EXACT)
    rest = [row for row in range(N) if row not in (3, 5)]
    assert posterior.unseen.nonzero()[:, 0].tolist() == rest
    if model.sharing is None:
        assert torch.equal(posterior.belief[rest], before[rest])
    else:  # a record is a first look, of which others learn as in a step that takes no time
        stepped = model.posterior(N, dtype=torch.float64)
        stepped.update([3, 5], [1, 4], 4, elapsed=0.0)
        stepped.update([3], [2], 4, elapsed=0.0)
        torch.testing.assert_close(posterior.belief[rest], stepped.belief[rest], rtol=0, atol=EXACT)
        assert not torch.equal(posterior.belief[rest], before[rest])
    assert (posterior.log_count_evidence, int(posterior.visits.sum()), posterior.step) == (0.0, 0, 0)
    posterior.advance()
    assert posterior.belief.sum(1).numpy() == pytest.approx(np.ones(N), abs=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_evidence_is_of_what_was_foretold(name: str) -> None:
    """What a step shows never helps to foretell that step, whatever is learned from it."""
    embeddings = None if MODELS[name].sharing is None else EMBEDDINGS
    posterior = MODELS[name].posterior(N, dtype=torch.float64, groups=GROUPS, embeddings=embeddings)
    rates, expected = posterior.grid.numpy(), 0.0
    for index, successes, trials, elapsed in history(9, 40):
        belief = posterior.belief.numpy().copy()
        posterior.update(index, successes, trials, elapsed)
        for prompt in set(index):
            won = sum(s for i, s in zip(index, successes, strict=True) if i == prompt)
            of = sum(t for i, t in zip(index, trials, strict=True) if i == prompt)
            expected += math.log(belief[prompt] @ stats.binom.pmf(won, of, rates))
    assert posterior.log_count_evidence == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("name", MODELS)
def test_a_resumed_posterior_goes_on_bit_for_bit(name: str) -> None:
    model, steps = MODELS[name], history(10, 100)
    options: dict[str, Any] = {"groups": GROUPS, "embeddings": None if model.sharing is None else EMBEDDINGS}
    straight = model.posterior(N, **options)
    resumed = model.posterior(N, **options)
    for t, (index, successes, trials, elapsed) in enumerate(steps):
        if t in (0, 1, 40, 64, 65, 97):
            saved = resumed.state_dict()
            resumed = model.posterior(N, **options)
            for step in steps[:70:10]:
                resumed.update(*step)  # of another life, of which nothing may be left
            resumed.load_state_dict(saved)
        for posterior in (straight, resumed):
            posterior.observe(index, successes, trials)
        if t == 50:
            saved = resumed.state_dict()  # with counts that wait
            resumed = model.posterior(N, **options)
            resumed.load_state_dict(saved)
        for posterior in (straight, resumed):
            posterior.advance(elapsed)
    mine, theirs = straight.state_dict(), resumed.state_dict()
    for key, tensor in mine["tensors"].items():
        assert torch.equal(tensor, theirs["tensors"][key]), key
    assert torch.equal(straight.belief, resumed.belief)
    assert torch.equal(straight.look_index(8, 20.0), resumed.look_index(8, 20.0))


@pytest.mark.parametrize("name", ["walk", "matrix", "drifts", "decays", "all"])
def test_a_refused_call_changes_nothing(name: str) -> None:
    posterior = MODELS[name].posterior(N, dtype=torch.float64, groups=GROUPS)
    for step in history(11, 64):  # the window is full, and the next step settles
        posterior.update(*step)
    before = posterior.state_dict()
    calls: list[tuple[type[Exception], Any]] = [
        (IndexError, lambda: posterior.update([N], [0], 8)),
        (ValueError, lambda: posterior.update([0], [9], 8)),
        (ValueError, lambda: posterior.update([0], [0], 0)),
        (TypeError, lambda: posterior.update([0.5], [0], 8)),
        (ValueError, lambda: posterior.update([0], [1], 8, -1.0)),
        (ValueError, lambda: posterior.update([0], [1], 8, math.nan)),
        (ValueError, lambda: posterior.warm_start([0], [1], 8)),
        (IndexError, lambda: posterior.success_rate(torch.tensor([N]))),
        (ValueError, lambda: posterior.informative_probability(0)),
        (ValueError, lambda: posterior.look_index(8, -1.0)),
        (ValueError, lambda: posterior.look_gain(8, math.nan)),
        (ValueError, lambda: posterior.informative_quantile(8, 1.0)),
        (ValueError, lambda: posterior.informative_quantile(0, 0.5)),
    ]
    if name == "matrix":
        calls.append((ValueError, lambda: posterior.update([0], [1], 8, 0.5)))
    for error, call in calls:
        with pytest.raises(error):
            call()
        after = posterior.state_dict()
        for key, tensor in before["tensors"].items():
            assert torch.equal(tensor, after["tensors"][key]), key
        assert (after["step"], len(after["pending"]["index"])) == (64, 0)


def test_states_that_cannot_be_are_refused() -> None:
    posterior = MODELS["walk"].posterior(N, groups=GROUPS)
    posterior.update([1, 4], [2, 3], 8)
    assert posterior.last_observed[1] == 1  # from now on it is kept
    good = posterior.state_dict()

    def spoil(name: str, change: Any) -> dict[str, Any]:
        tensors = {key: tensor.clone() for key, tensor in good["tensors"].items()}
        change(tensors[name])
        return {**good, "tensors": tensors}

    bad = {
        "belief of prompt 4 sums to": spoil("belief", lambda x: x[4].mul_(2)),
        "must be at least 0|no less|belief": spoil("belief", lambda x: x[4, 0].sub_(1)),
        "slot names a step or a group": spoil("slot", lambda x: x[4].fill_(9)),
        "slot names a step or a group .*": spoil("slot", lambda x: x[5].fill_(-1)),
        "window must start with a number of steps": spoil("window", lambda x: x[0].fill_(65)),
        "window must start with a number of steps.*": spoil("window", lambda x: x[0].fill_(0.5)),
        "window has 1.0 steps, 2.0 of them": spoil("window", lambda x: x[2].fill_(2)),
        "window has 1.0 steps, 1.0 of them of -3.0": spoil("window", lambda x: x[1].fill_(-3)),
        "propagators of row 0 sums to 7": spoil("propagators", lambda x: x.mul_(7)),
        "propagators of row 0 sums to 0": spoil("propagators", lambda x: x.zero_()),
        "propagators of row 18 sums to 2": spoil("propagators", lambda x: x[:, -1].mul_(2)),
        "unseen_prior of member 0 sums to 0": spoil("unseen_prior", lambda x: x.zero_()),
        "unseen_prior of member 0 sums to (3|2.99)": spoil("unseen_prior", lambda x: x.mul_(3)),
        "first_looks must lie within 1e.30": spoil("first_looks", lambda x: x.fill_(1e300)),
        "bank_evidence must lie within 1e.30": spoil("bank_evidence", lambda x: x.fill_(-1e300)),
        "last_observed": spoil("last_observed", lambda x: x[0].fill_(7)),
    }
    for message, state in bad.items():
        with pytest.raises(bp.CheckpointError, match=message):
            posterior.load_state_dict(state)
    with pytest.raises(bp.CheckpointError):
        MODELS["redraw"].posterior(N, groups=GROUPS).load_state_dict(good)
    with pytest.raises(bp.CheckpointError):
        MODELS["walk"].posterior(N, groups=[0] * 9 + [1]).load_state_dict(good)
    shared = MODELS["all"].posterior(N, groups=GROUPS, embeddings=EMBEDDINGS)
    with pytest.raises(bp.CheckpointError):
        MODELS["all"].posterior(N, groups=GROUPS, embeddings=EMBEDDINGS + 1.5 * EMBEDDINGS**2).load_state_dict(
            shared.state_dict()
        )
    posterior.load_state_dict(good)
