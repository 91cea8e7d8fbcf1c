"""Groups whose transitions lean on the pool's, and banks of strengths and decays: a loop in numpy, limits, a world."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import bayes_prompt as bp
from bayes_prompt.models.banks import StrengthBank
from bayes_prompt.posteriors import pooled_transitions

N = 9
GROUPS = [0, 1, 2, 2, 2, 1, 2, 0, 2]
BETA = bp.BetaBinomialEmission(dist.Beta(torch.tensor([0.5, 3.0, 9.0]), torch.tensor([6.0, 3.0, 0.5])))
EMISSIONS = {"published": None, "beta": BETA, "partition": bp.PartitionEmission([0.0, 0.2, 0.7, 1.0])}
PRIORS = {"uniform": bp.priors.uniform(1.0), "local": bp.priors.local()}
DECAYS = bp.DecayBank((0.3, 0.8, 1.0), memory=0.9, floor=0.1, pooling=0.5)
STRENGTHS = StrengthBank((0.0, 4.0, math.inf), memory=0.95, floor=0.05, pooling=0.7)
CASES: dict[str, dict[str, Any]] = {
    "pool, bank of decays": {"decay": DECAYS, "pooling": "pool"},
    "a strength": {"decay": 0.8, "pooling": "group", "strength": 4.0},
    "infinite": {"decay": 0.8, "pooling": "group", "strength": math.inf},
    "bank of strengths": {"decay": 0.8, "pooling": "group", "strength": STRENGTHS},
    "bank of decays": {"decay": DECAYS, "pooling": "group", "strength": 4.0},
    "both": {"decay": DECAYS, "pooling": "group", "strength": STRENGTHS},
}
Step = tuple[list[int], list[int], float]


def history(seed: int, steps: int = 20, prompts: int = N) -> list[Step]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(steps):
        index = np.flatnonzero(rng.random(prompts) < 0.4)
        won = rng.binomial(8, rng.choice([0.0, 0.3, 0.9, 1.0], len(index)))
        made.append((index.tolist(), won.tolist(), float(rng.choice([0.0, 1.0, 1.0, 2.0]))))
    return made


def fed(model: bp.SolvingProgress, steps: list[Step], groups: Any = None, prompts: int = N, **options: Any) -> Any:
    options = {"dtype": torch.float64, **options}
    posterior = model.posterior(prompts, groups=groups if model.pooling == "group" else None, **options)
    for index, successes, elapsed in steps:
        posterior.update(index, successes, 8, elapsed)
    return posterior


def at_most(counts: np.ndarray, strength: float) -> np.ndarray:
    """Counts whose weight n becomes that of a sum of variances, 1 / (1 / n + 1 / strength)."""
    number = counts.sum()
    if number == 0 or strength == 0:
        return np.zeros_like(counts)
    return counts / number / (1 / number + 1 / strength)


class Loop:
    """One prompt, one decay and one strength after the other."""

    def __init__(self, model: bp.SolvingProgress, groups: list[int]) -> None:
        tables = model.lower(torch.float64)
        self.model, self.groups, self.declared = model, groups, tables.concentration.numpy()
        self.R = max(groups) + 1
        self.decays = model.decay.members if isinstance(model.decay, bp.DecayBank) else (model.decay,)
        strength = model.strength if model.pooling == "group" else 0.0
        self.strengths = strength.members if isinstance(strength, StrengthBank) else (strength,)
        self.banks = [b if isinstance(b, bp.DecayBank | StrengthBank) else None for b in (model.decay, strength)]
        self.evidence = [np.zeros((self.R, len(each))) for each in (self.decays, self.strengths)]
        self.counts = np.zeros((len(self.decays), self.R, *self.declared.shape))
        self.posterior, self.belief = (np.tile(tables.initial.numpy(), (len(groups), 1)) for _ in range(2))
        self.moved, self.log_evidence = False, 0.0

    def concentration(self, decay: int, strength: int, group: int) -> np.ndarray:
        own = self.counts[decay, group]
        found, s = self.declared + own, self.strengths[strength]
        for row in range(len(own)):
            told = np.zeros(len(own))
            for other in range(self.R):
                if other != group:
                    told += at_most(self.counts[decay, other, row], s)
            found[row] += at_most(told, s)
        return np.maximum(found, self.declared / 100)

    def transition(self, decay: int, strength: int, group: int) -> np.ndarray:
        found = self.concentration(decay, strength, group)
        return found / found.sum(1, keepdims=True)

    def weights(self, which: int, group: int) -> np.ndarray:
        bank, evidence = self.banks[which], self.evidence[which]
        if bank is None:
            return np.ones(1)
        pool = np.exp(evidence.sum(0) - evidence.sum(0).max())
        pool = bank.floor / len(pool) + (1 - bank.floor) * pool / pool.sum()
        mine = pool if self.R == 1 else pool**bank.pooling * np.exp(evidence[group] - evidence[group].max())
        return mine / mine.sum()

    def average(self, group: int) -> np.ndarray:
        return self.averaged(self.transition, group)

    def averaged(self, member: Any, group: int) -> np.ndarray:
        w, v = self.weights(0, group), self.weights(1, group)
        return sum(w[j] * v[s] * member(j, s, group) for j in range(len(w)) for s in range(len(v)))  # type: ignore[return-value]

    def told(self, expected: list[np.ndarray], group: int) -> np.ndarray:
        """What looks tell of transitions out of each state, by the formula that `PooledTransitions` states."""
        moves = self.average(group)
        before = self.averaged(lambda *member: self.concentration(*member).sum(1), group)
        found = np.zeros_like(moves)
        for state, p in enumerate(moves):
            x = np.array([each[state] for each in expected]).reshape(-1, len(p))
            d = x - x.sum(1, keepdims=True) * p
            seen = (2 * (d @ p).sum() + (d**2).sum()) / max(1 - p @ p, 1e-300)
            seen = min(max(seen, 0.0), x.sum())
            found[state] = seen * p + d.sum(0) * (before[state] + seen) / (before[state] + x.sum())
        return found

    def step(self, index: list[int], successes: list[int], elapsed: float) -> None:
        after, expected = self.belief.copy(), [[] for _ in range(self.R)]  # type: ignore[var-annotated]
        learned = [np.zeros_like(each) for each in self.evidence]
        for prompt, won in zip(index, successes, strict=True):
            group = self.groups[prompt]
            event = self.model._emission.event_log_likelihood(torch.tensor([won]), torch.tensor([8]))
            likelihood, before = event[0].exp().numpy(), self.posterior[prompt]
            joint = before[:, None] * self.average(group) * likelihood
            if self.moved and joint.sum() > 0:
                expected[group].append(joint / joint.sum())
                w, v = self.weights(0, group), self.weights(1, group)
                chance = np.array(
                    [[before @ self.transition(j, s, group) @ likelihood for s in range(len(v))] for j in range(len(w))]
                )
                learned[0][group] += np.log(np.maximum(chance @ v / likelihood.max(), 1e-300))
                learned[1][group] += np.log(np.maximum(w @ chance / likelihood.max(), 1e-300))
            seen = self.belief[prompt] * likelihood
            if seen.sum() > 0:
                self.log_evidence += math.log(seen.sum())
            after[prompt] = seen / seen.sum() if seen.sum() > 0 else likelihood / likelihood.sum()
        counted = np.stack([self.told(each, group) for group, each in enumerate(expected)])
        for which, bank in enumerate(self.banks):
            if bank is not None:
                self.evidence[which] = bank.memory**elapsed * self.evidence[which] + learned[which]
                self.evidence[which] -= self.evidence[which].max(1, keepdims=True)
        kept = np.array(self.decays)[:, None, None, None] ** elapsed
        self.counts = np.maximum(kept * self.counts + counted, self.declared / 100 - self.declared)
        self.posterior, self.moved = after, True
        self.belief = np.stack([after[i] @ self.average(g) for i, g in enumerate(self.groups)])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("emission", EMISSIONS)
def test_it_is_the_loop(emission: str, prior: str, case: str, backend: str) -> None:
    model = bp.SolvingProgress(PRIORS[prior], emission=EMISSIONS[emission], **CASES[case])
    posterior = fed(model, [], GROUPS, backend=backend)
    loop = Loop(model, GROUPS if model.pooling == "group" else [0] * N)
    for step in history(1):
        posterior.update(step[0], step[1], 8, step[2])
        loop.step(*step)
        # Some ten float64 roundings a step, of numbers up to 100; weights are as sensitive as evidence is large.
        np.testing.assert_allclose(posterior.belief, loop.belief, rtol=0, atol=1e-10)
        moves = np.stack([loop.average(group) for group in range(loop.R)])
        mean = posterior.pooled_concentration / posterior.pooled_concentration.sum(2, keepdim=True)
        np.testing.assert_allclose(mean, moves, rtol=0, atol=1e-10)
        for found, which in ((posterior.bank_weights(), 0), (posterior.strength_weights(), 1)):
            np.testing.assert_allclose(
                found, [loop.weights(which, group) for group in range(loop.R)], rtol=0, atol=1e-10
            )
    assert posterior.log_evidence == pytest.approx(loop.log_evidence, abs=1e-9)


def test_many_groups_and_looks_are_worked_out_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bp.SolvingProgress(**CASES["both"])
    whole = fed(model, history(2), GROUPS)
    monkeypatch.setattr(pooled_transitions, "_CHUNK", 2 * 9 * 9)  # of two groups, or two looks
    parts = fed(model, history(2), GROUPS)
    for name, tensor in whole._tensors().items():
        torch.testing.assert_close(parts._tensors()[name], tensor, rtol=1e-12, atol=1e-12)


# Limits


@pytest.mark.parametrize("strength", [None, 0.0, 5.0, math.inf])
@pytest.mark.parametrize("decay", [0.7, DECAYS])
def test_one_group_is_the_pool(decay: Any, strength: float | None) -> None:
    pool = fed(bp.SolvingProgress(decay=decay, pooling="pool"), history(3))
    group = fed(bp.SolvingProgress(decay=decay, pooling="group", strength=strength), history(3), [0] * N)
    assert torch.equal(pool.belief, group.belief)
    assert torch.equal(pool.pooled_concentration, group.pooled_concentration)
    assert torch.equal(pool.sample_transition(1, 2), group.sample_transition(1, 2))
    assert pool.log_count_evidence == group.log_count_evidence


@pytest.mark.parametrize("prior", PRIORS)
def test_no_strength_leaves_groups_alone_and_infinity_makes_one_pool(prior: str) -> None:
    def grouped(strength: float) -> Any:
        return fed(bp.SolvingProgress(PRIORS[prior], pooling="group", strength=strength), history(4), GROUPS)

    pool = bp.SolvingProgress(PRIORS[prior], pooling="pool")
    alone, labels = grouped(0.0), torch.tensor(GROUPS)
    for group in range(3):
        rows = (labels == group).nonzero()[:, 0].tolist()
        steps = [
            ([rows.index(i) for i in index if i in rows], [w for i, w in zip(index, won, strict=True) if i in rows], t)
            for index, won, t in history(4)
        ]
        own = fed(pool, steps, prompts=len(rows))
        torch.testing.assert_close(alone.belief[rows], own.belief, rtol=0, atol=1e-12)
        torch.testing.assert_close(alone.concentration[rows], own.concentration, rtol=0, atol=1e-12)
    # Every state is seen: else a group's step goes by its own looks, and the pool's by everybody's.
    steps = [(list(range(N)), (won * N)[:N], t) for _, won, t in history(4) if won]
    together, infinite = (
        fed(pool, steps),
        fed(bp.SolvingProgress(PRIORS[prior], pooling="group", strength=math.inf), steps, GROUPS),
    )
    torch.testing.assert_close(infinite.belief, together.belief, rtol=0, atol=1e-12)
    torch.testing.assert_close(infinite.concentration, together.concentration, rtol=0, atol=1e-12)
    # Shares s / (s + n) of at most 200 transitions: within n / s of 1; with a small s at most s transitions are left.
    torch.testing.assert_close(grouped(1e12).belief, grouped(math.inf).belief, rtol=0, atol=1e-9)
    torch.testing.assert_close(grouped(1e-12).belief, alone.belief, rtol=0, atol=1e-9)


@pytest.mark.parametrize("pooling", ["pool", "group"])
def test_banks_of_one_member_are_that_member(pooling: str) -> None:
    leans = (5.0, StrengthBank((5.0,))) if pooling == "group" else (None, None)
    plain = fed(bp.SolvingProgress(decay=0.8, pooling=pooling, strength=leans[0]), history(5), GROUPS)
    bank = bp.SolvingProgress(decay=bp.DecayBank((0.8,)), pooling=pooling, strength=leans[1])
    one = fed(bank, history(5), GROUPS)
    assert torch.equal(plain.belief, one.belief) and torch.equal(plain.concentration, one.concentration)
    assert torch.equal(plain.sample_transition(0, 0), one.sample_transition(0, 0))
    assert plain.log_count_evidence == one.log_count_evidence
    assert torch.equal(plain.look_index(8, 9.0), one.look_index(8, 9.0))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16), order=st.permutations(range(3)), strength=st.sampled_from([2.0, math.inf, STRENGTHS])
)
def test_what_groups_are_called_does_not_matter(seed: int, order: list[int], strength: Any) -> None:
    model = bp.SolvingProgress(decay=DECAYS, pooling="group", strength=strength)
    one = fed(model, history(seed, 8), GROUPS)
    other = fed(model, history(seed, 8), [order[group] for group in GROUPS])
    torch.testing.assert_close(one.belief, other.belief, rtol=0, atol=1e-11)
    torch.testing.assert_close(one.belief.sum(1), torch.ones(N).double(), rtol=0, atol=1e-12)
    assert bool((one.pooled_concentration >= 0).all())


def test_groups_nobody_looked_at_move_as_the_pool_does_where_they_lean_on_it() -> None:
    steps = [([0, 1, 2], [8, 8, 8], 1.0)] * 200
    beliefs = {}
    for strength in (0.0, 30.0, math.inf):
        posterior = fed(
            bp.SolvingProgress(decay=1.0, pooling="group", strength=strength), steps, [0, 0, 0, 1], prompts=4
        )
        beliefs[strength] = posterior.pooled_concentration[1]
    # 597 transitions from solved to solved, on top of the declared ones; 1 / (1 / 597 + 2 / 30) of them count.
    torch.testing.assert_close(beliefs[0.0], torch.ones(3, 3).double())
    assert float(beliefs[30.0][2, 2]) == pytest.approx(1 + 1 / (1 / 597 + 2 / 30), abs=1e-9)
    assert float(beliefs[math.inf][2, 2]) == pytest.approx(1 + 597, abs=1e-9)


# Draws, and checkpoints


def test_drawn_transitions_are_of_the_members() -> None:
    posterior = fed(bp.SolvingProgress(decay=DECAYS, pooling="group", strength=STRENGTHS), history(6), GROUPS)
    drawn = torch.stack([posterior.sample_transition(7, step)[[0, 1, 2]] for step in range(2000)])
    mean = posterior.pooled_concentration / posterior.pooled_concentration.sum(2, keepdim=True)
    # 27 means of 2,000 numbers in [0, 1], whose standard deviation is at most 1/2: five standard errors.
    assert float((drawn.mean(0) - mean).abs().max()) < 5 * 0.5 / math.sqrt(2000)
    assert torch.equal(drawn[3], posterior.sample_transition(7, 3)[[0, 1, 2]])


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_posterior_goes_on_bit_for_bit(case: str) -> None:
    model = bp.SolvingProgress(**CASES[case])
    straight, resumed = (fed(model, [], GROUPS, dtype=torch.float32) for _ in range(2))
    for t, (index, successes, elapsed) in enumerate(history(7)):
        if t in (0, 1, 12):
            saved, resumed = resumed.state_dict(), fed(model, history(8, 3), GROUPS, dtype=torch.float32)
            resumed.informative_scores(8, 2)
            resumed.load_state_dict(saved)
            assert torch.equal(straight.belief, resumed.belief)
        straight.update(index, successes, 8, elapsed)
        resumed.update(index, successes, 8, elapsed)
    for key, tensor in straight.state_dict()["tensors"].items():
        assert torch.equal(tensor, resumed.state_dict()["tensors"][key]), key
    assert torch.equal(straight.informative_probability(8), resumed.informative_probability(8))


def test_states_of_others_are_refused() -> None:
    model = bp.SolvingProgress(**CASES["both"])
    state = fed(model, history(9, 3), GROUPS).state_dict()
    for other in (
        fed(model, [], GROUPS[::-1]),
        fed(bp.SolvingProgress(**{**CASES["both"], "strength": 4.0}), [], GROUPS),
        fed(bp.SolvingProgress(**{**CASES["both"], "decay": bp.DecayBank((0.3, 0.8, 0.9))}), [], GROUPS),
        fed(bp.SolvingProgress(decay=DECAYS, pooling="pool"), []),
    ):
        before = other.state_dict()["tensors"]
        with pytest.raises(bp.CheckpointError):
            other.load_state_dict(state)
        for key, tensor in before.items():
            assert torch.equal(tensor, other.state_dict()["tensors"][key]), key


def test_a_refused_step_changes_nothing() -> None:
    posterior = fed(bp.SolvingProgress(**CASES["both"]), history(10, 4), GROUPS)
    before = posterior.state_dict()["tensors"]
    with pytest.raises(ValueError):
        posterior.update([0], [9], 8)
    for key, tensor in before.items():
        assert torch.equal(tensor, posterior.state_dict()["tensors"][key]), key


class NothingWaits(TorchDispatchMode):
    """Fails at an operation whose result, or its shape, the host has to wait for on a device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal"), name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", CASES)
def test_what_is_learned_waits_for_no_device(case: str) -> None:
    posterior = fed(bp.SolvingProgress(**CASES[case]), history(11, 3), GROUPS)
    groups = posterior.groups[:4]
    before, likelihood = torch.rand(2, 4, 3, dtype=torch.float64)
    with NothingWaits():
        posterior._transitions.learn(groups, before, likelihood, torch.ones(4).bool(), 1e-300, 1.0)
        posterior._spread()


@pytest.mark.parametrize("case", CASES)
def test_steps_in_inference_mode_are_steps(case: str) -> None:
    """A trainer may hold it on for some steps and not for others, and keep half the bits."""
    plain = fed(bp.SolvingProgress(**CASES[case]), history(12), GROUPS, dtype=torch.float32)
    mixed = fed(bp.SolvingProgress(**CASES[case]), [], GROUPS, dtype=torch.float32)
    half = fed(bp.SolvingProgress(**CASES[case]), history(12), GROUPS, dtype=torch.bfloat16, backend="reference")
    for t, (index, successes, elapsed) in enumerate(history(12)):
        with torch.inference_mode(t % 3 == 0):
            mixed.update(index, successes, 8, elapsed)
            mixed.informative_scores(8, 2)
    assert torch.equal(plain.belief, mixed.belief)
    # Posteriors of 8 bits are off by 2 ** -9 of themselves, and evidence of 20 steps by as much of each step's.
    torch.testing.assert_close(half.belief, plain.belief, rtol=0, atol=0.05)
