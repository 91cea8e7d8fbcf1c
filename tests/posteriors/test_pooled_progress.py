"""Transitions that prompts learn together: against a loop in numpy, and against DPS where nobody else is there.

Groups are on their own here (strength 0); those that lean on the pool are in test_partial_pooling.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayes_prompt as bp

N = 9
GROUPS = [0, 1, 2] * 3
EMISSIONS = {
    "published": None,
    "beta": bp.BetaBinomialEmission(dist.Beta(torch.tensor([0.5, 3.0, 9.0]), torch.tensor([6.0, 3.0, 0.5]))),
    "partition": bp.PartitionEmission([0.0, 0.2, 0.7, 1.0]),
}
PRIORS = {"uniform": bp.priors.uniform(1.0), "stability": bp.priors.stability(), "local": bp.priors.local()}
Step = tuple[list[int], list[int], float]


def history(seed: int, steps: int = 25, prompts: int = N, share: float = 0.5) -> list[Step]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(steps):
        index = np.flatnonzero(rng.random(prompts) < share)
        won = rng.binomial(8, rng.choice([0.0, 0.3, 0.9, 1.0], len(index)))
        made.append((index.tolist(), won.tolist(), float(rng.choice([0.0, 0.5, 1.0, 2.0]))))
    return made


def told(expected: list[np.ndarray], moves: np.ndarray, before: np.ndarray) -> np.ndarray:
    """What looks tell of transitions out of each state, by the formula that `PooledTransitions` states."""
    found = np.zeros_like(moves)
    for state, p in enumerate(moves):
        number, seen, beyond = 0.0, 0.0, np.zeros_like(p)
        for x in (each[state] for each in expected):
            d = x - x.sum() * p
            number, beyond = number + x.sum(), beyond + d
            seen += (2 * p @ d + d @ d) / max(1 - p @ p, 1e-300)
        seen = min(max(seen, 0.0), number)
        found[state] = seen * p + beyond * (before[state] + seen) / (before[state] + number)
    return found


class Loop:
    """One prompt after the other, one transition after the other."""

    def __init__(self, model: bp.SolvingProgress, groups: list[int]) -> None:
        self.model, self.groups, self.declared = model, groups, model.lower(torch.float64).concentration.numpy()
        self.counts = np.tile(self.declared, (max(groups) + 1, 1, 1))
        initial = model.lower(torch.float64).initial.numpy()
        self.posterior, self.belief = (np.tile(initial, (len(groups), 1)) for _ in range(2))
        self.unexpected = 0
        self.moved = False  # states of the first step are not come by a transition

    def step(self, index: list[int], successes: list[int], elapsed: float) -> None:
        moves = self.counts / self.counts.sum(2, keepdims=True)
        kept = self.model.decay**elapsed
        counts = kept * self.counts + (1 - kept) * self.declared
        expected: list[list[np.ndarray]] = [[] for _ in counts]
        after = self.belief.copy()
        for prompt, won in zip(index, successes, strict=True):
            event = self.model._emission.event_log_likelihood(torch.tensor([won]), torch.tensor([8]))
            chance = event[0].exp().numpy()
            joint = self.posterior[prompt][:, None] * moves[self.groups[prompt]] * chance
            if self.moved and joint.sum() > 0:
                expected[self.groups[prompt]].append(joint / joint.sum())
            seen = self.belief[prompt] * chance
            self.unexpected += seen.sum() == 0
            after[prompt] = seen / seen.sum() if seen.sum() > 0 else chance / chance.sum()
        for group, each in enumerate(expected):
            counts[group] += told(each, moves[group], self.counts[group].sum(1))
        counts = np.maximum(counts, self.declared / 100)
        self.counts, self.posterior, self.moved = counts, after, True
        moves = counts / counts.sum(2, keepdims=True)
        self.belief = np.stack([after[i] @ moves[g] for i, g in enumerate(self.groups)])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("pooling", ["pool", "group"])
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("emission", EMISSIONS)
def test_it_is_the_loop(emission: str, prior: str, pooling: str, backend: str) -> None:
    groups, strength = (GROUPS, 0.0) if pooling == "group" else (None, None)
    model = bp.SolvingProgress(
        PRIORS[prior], decay=0.8, emission=EMISSIONS[emission], pooling=pooling, strength=strength
    )
    posterior = model.posterior(N, dtype=torch.float64, backend=backend, groups=groups)
    loop = Loop(model, groups or [0] * N)
    for index, successes, elapsed in history(1):
        posterior.update(index, successes, 8, elapsed)
        loop.step(index, successes, elapsed)
        # A handful of float64 roundings a step, of numbers up to 100.
        np.testing.assert_allclose(posterior.pooled_concentration, loop.counts, rtol=0, atol=1e-10)
        np.testing.assert_allclose(posterior.belief, loop.belief, rtol=0, atol=1e-10)
        assert posterior.unexpected == loop.unexpected
    np.testing.assert_allclose(posterior.concentration, loop.counts[groups or [0] * N], rtol=0, atol=1e-10)
    partial = posterior._point_worth(8).numpy()
    np.testing.assert_allclose(posterior.informative_probability(8), loop.belief @ partial, rtol=0, atol=1e-10)


@pytest.mark.parametrize("prior", PRIORS)
def test_where_every_state_is_seen_a_pool_of_one_prompt_is_the_published_filter(prior: str) -> None:
    """From the second step on: in the published code a look in the first one counts a transition into it."""
    made = [
        bp.SolvingProgress(PRIORS[prior], decay=0.8, pooling=pooling).posterior(1, dtype=torch.float64)
        for pooling in ("pool", "prompt")
    ]
    for posterior in made:
        posterior.warm_start([0], [3], 8)
    for index, successes, elapsed in history(2, 40, 1, share=1.0):
        for posterior in made:
            posterior.update(index, successes, 8, elapsed)
        torch.testing.assert_close(made[0].belief, made[1].belief, rtol=0, atol=1e-12)
        torch.testing.assert_close(made[0].concentration, made[1].concentration, rtol=0, atol=1e-10)
    assert made[0].log_count_evidence == pytest.approx(made[1].log_count_evidence, abs=1e-10)
    assert made[0].unexpected == made[1].unexpected
    assert made[0].impossible == made[1].impossible


def test_where_every_state_is_seen_groups_of_one_prompt_are_the_published_filter() -> None:
    alone = bp.SolvingProgress().posterior(N, dtype=torch.float64)
    groups = bp.SolvingProgress(pooling="group", strength=0.0).posterior(N, dtype=torch.float64, groups=range(N))
    for posterior in (alone, groups):
        posterior.warm_start(range(N), [3] * N, 8)
    for index, successes, elapsed in history(3, share=1.0):
        alone.update(index, successes, 8, elapsed)
        groups.update(index, successes, 8, elapsed)
    torch.testing.assert_close(alone.belief, groups.belief, rtol=0, atol=1e-12)
    torch.testing.assert_close(alone.concentration, groups.concentration, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prior", PRIORS)
def test_looks_in_the_first_step_are_of_no_transition(prior: str) -> None:
    """Whoever is looked at later has made one, and so have prompts of which a count was known before."""
    model = bp.SolvingProgress(PRIORS[prior], decay=1.0, pooling="pool")
    looked, told = (model.posterior(N, dtype=torch.float64) for _ in range(2))
    declared = looked.pooled_concentration.clone()
    looked.update([0, 3], [8, 2], 8)
    assert torch.equal(looked.pooled_concentration, declared) and looked.impossible == 0
    looked.update([0], [8], 8)
    assert float((looked.pooled_concentration - declared).sum()) == pytest.approx(1.0, abs=1e-12)
    told.warm_start([0, 3], [8, 2], 8)
    told.update([0, 3], [4, 4], 8)
    assert float((told.pooled_concentration - declared).sum()) == pytest.approx(2.0, abs=1e-12)
    looked.update([1], [0], 8)  # whose state in the step before nobody saw
    assert 0 < float((looked.pooled_concentration - declared).sum()) - 1 < 0.9


def test_one_group_is_the_pool() -> None:
    pool = bp.SolvingProgress(pooling="pool").posterior(N)
    group = bp.SolvingProgress(pooling="group").posterior(N, groups=[0] * N)
    for index, successes, elapsed in history(4):
        pool.update(index, successes, 8, elapsed)
        group.update(index, successes, 8, elapsed)
    assert torch.equal(pool.belief, group.belief)
    assert torch.equal(pool.pooled_concentration, group.pooled_concentration)
    assert pool.log_count_evidence == group.log_count_evidence
    assert torch.equal(pool.look_index(8, 9.0), group.look_index(8, 9.0))


def test_prompts_that_nobody_observed_move_as_the_others_taught() -> None:
    posterior = bp.SolvingProgress(pooling="pool", decay=1.0).posterior(50, dtype=torch.float64)
    for _ in range(10):
        posterior.update(range(40), [8] * 40, 8)
    # 400 prompts stayed solved, against a prior that had 3 of 9 pseudo-counts there: once solved, always solved.
    moves = posterior.pooled_concentration[0] / posterior.pooled_concentration[0].sum(1, keepdim=True)
    assert float(moves[2, 2]) > 0.98
    posterior.advance()
    torch.testing.assert_close(posterior.belief[45] @ moves, after(posterior)[45], rtol=0, atol=1e-12)


def after(posterior: bp.Posterior) -> Tensor:
    """The belief one step later, of a copy: transitions do not decay, and nobody is observed."""
    other = bp.SolvingProgress(pooling="pool", decay=1.0).posterior(50, dtype=torch.float64)
    other.load_state_dict(posterior.state_dict())
    other.advance()
    return other.belief


@pytest.mark.parametrize("prior", PRIORS)
def test_scores_that_are_kept_are_those_of_now(prior: str) -> None:
    """A selector asks before every pick, and the answer is worked out in the pass of a step, before it has taught."""
    posterior = bp.SolvingProgress(PRIORS[prior], pooling="group").posterior(N, groups=GROUPS)
    for index, successes, elapsed in history(5):
        scores, _ = posterior.informative_scores(8, 3)
        assert torch.equal(scores, posterior.informative_probability(8))
        posterior.update(index, successes, 8, elapsed)


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_a_resumed_posterior_goes_on_bit_for_bit(groups: list[int] | None) -> None:
    model = bp.SolvingProgress(pooling="pool" if groups is None else "group")
    straight, resumed = (model.posterior(N, groups=groups) for _ in range(2))
    for t, (index, successes, elapsed) in enumerate(history(6)):
        if t in (0, 1, 12):
            saved = resumed.state_dict()
            resumed = model.posterior(N, groups=groups)
            resumed.update([0, 1], [3, 8], 8)
            resumed.informative_scores(8, 2)
            resumed.load_state_dict(saved)
        straight.update(index, successes, 8, elapsed)
        resumed.update(index, successes, 8, elapsed)
    for key, tensor in straight.state_dict()["tensors"].items():
        assert torch.equal(tensor, resumed.state_dict()["tensors"][key]), key
    assert torch.equal(straight.belief, resumed.belief)
    assert torch.equal(straight.informative_scores(8, 2)[0], resumed.informative_scores(8, 2)[0])


def test_what_a_state_must_be() -> None:
    model = bp.SolvingProgress(pooling="group")
    posterior = model.posterior(N, groups=GROUPS)
    posterior.update([0], [3], 8)
    state = posterior.state_dict()
    for other in (
        bp.SolvingProgress(pooling="pool").posterior(N),
        model.posterior(N, groups=GROUPS[::-1]),
        bp.SolvingProgress().posterior(N),
    ):
        with pytest.raises(bp.CheckpointError):
            other.load_state_dict(state)
    state["tensors"]["transitions"][0, 0, 0, 0] = -1.0
    before = posterior.state_dict()
    with pytest.raises(bp.CheckpointError, match="transitions"):
        posterior.load_state_dict(state)
    banks = bp.SolvingProgress(pooling="group", decay=bp.DecayBank()).posterior(N, groups=GROUPS)
    for name in ("transitions", "decay_evidence", "strength_evidence"):
        damaged = banks.state_dict()
        damaged["tensors"][name].view(-1)[0] = 1e300
        with pytest.raises(bp.CheckpointError, match=f"{name} must lie within 1e.30; entry 0 is 1e.300"):
            banks.load_state_dict(damaged)
    with pytest.raises(ValueError):
        posterior.update([0], [9], 8)
    for key, tensor in before["tensors"].items():
        assert torch.equal(tensor, posterior.state_dict()["tensors"][key]), key


def test_drawn_transitions_are_those_of_the_group() -> None:
    posterior = bp.SolvingProgress(bp.priors.local(), pooling="group").posterior(N, groups=GROUPS)
    posterior.update(range(N), [4] * N, 8)
    drawn = posterior.sample_transition(seed=1, step=2)
    assert drawn.shape == (N, 3, 3)
    assert torch.equal(drawn[0], drawn[3]) and not torch.equal(drawn[0], drawn[1])
    torch.testing.assert_close(drawn.sum(2), torch.ones(N, 3), rtol=0, atol=4 * 2.0**-24)
    assert bool((drawn[:, 0, 2] == 0).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bp.SolvingProgress(pooling="all"), "pooling must be one of prompt, pool, group; got 'all'"),
        (lambda: bp.SolvingProgress(pooling="pool", learn=False), "pooling='pool' is of what is learned"),
        (lambda: bp.SolvingProgress(pooling="group").posterior(3), r"takes either groups \(N,\) or .*; got neither"),
        (lambda: bp.SolvingProgress().posterior(3, groups=[0, 0, 1]), 'groups go with pooling="group"'),
        (
            lambda: bp.SolvingProgress(pooling="pool").posterior(2, concentration=torch.ones(2, 3, 3)),
            "concentration is one for each prompt",
        ),
    ],
)
def test_bad_declarations_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_descriptions_tell_poolings_apart() -> None:
    described = [bp.SolvingProgress(pooling=each).describe() for each in ("prompt", "pool", "group")]
    assert described[0] != described[1] != described[2] != described[0]
    assert "strength" not in described[0] and "strength" not in described[1]  # as checkpoints of DPS have it
