"""What partial pooling, clusters and banks of decays are worth, in worlds whose transitions are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import bayes_prompt as bp
from bayes_prompt.models.banks import StrengthBank
from bayes_prompt.posteriors.pooled_transitions import PooledTransitions

BASE = np.array([[0.85, 0.10, 0.05], [0.10, 0.75, 0.15], [0.05, 0.10, 0.85]])
SIZES = [3] * 20 + [300] * 2
Step = tuple[np.ndarray, np.ndarray]


def matrices(number: int, strength: float, seed: int) -> np.ndarray:
    """Of so many groups: rows are Dirichlet with mean BASE and `strength` pseudo-counts, or uniform with 0."""
    rng = np.random.default_rng(seed)
    if math.isinf(strength):
        return np.tile(BASE, (number, 1, 1))
    prior = strength * BASE if strength else np.ones((3, 3))
    return np.stack([[rng.dirichlet(row) for row in prior] for _ in range(number)])


def looks(moves: np.ndarray, steps: int, seed: int, share: float = 1.0) -> list[Step]:
    """Counts of 8, from which states can be read, of a share of the prompts; moves: (N, 3, 3), or (T, N, 3, 3)."""
    rng = np.random.default_rng(seed)
    prompts = moves.shape[-3]
    state, made = rng.integers(0, 3, prompts), []
    for t in range(steps):
        seen = np.flatnonzero(rng.random(prompts) < share)
        counts = np.where(state == 1, rng.integers(1, 8, prompts), 4 * state)
        made.append((seen, counts[seen]))
        now = moves if moves.ndim == 3 else moves[t]
        rows = now[np.arange(prompts), state].cumsum(1)
        state = (rows < rng.random(prompts)[:, None]).sum(1).clip(0, 2)
    return made


def fed(steps: list[Step], groups: Any, prompts: int, **fields: Any) -> Any:
    told = {"groups": groups} if fields.get("pooling") == "group" else {}
    posterior = bp.SolvingProgress(**fields).posterior(prompts, dtype=torch.float64, **told)
    for index, successes in steps:
        posterior.update(index, successes, 8)
    return posterior


def evidence(steps: list[Step], groups: np.ndarray, strength: Any) -> float:
    return fed(steps, groups, len(groups), decay=1.0, pooling="group", strength=strength).log_count_evidence


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_leaning_on_the_pool_predicts_better_than_either_extreme(share: float) -> None:
    """Groups of 3 prompts and of 300 that differ as 40 transitions do: each seed tells, by dozens of nats."""
    groups = np.repeat(np.arange(len(SIZES)), SIZES)
    for seed in range(3):
        steps = looks(matrices(len(SIZES), 40.0, seed)[groups], 30, seed, share)
        alone, pool, leaning = (evidence(steps, groups, strength) for strength in (0.0, math.inf, None))
        assert leaning > max(alone, pool)


@pytest.mark.parametrize(("strength", "right", "wrong"), [(0.0, 0.0, math.inf), (math.inf, math.inf, 0.0)])
def test_where_an_extreme_is_right_little_is_lost(strength: float, right: float, wrong: float) -> None:
    """A tenth at most of what the wrong extreme loses."""
    groups = np.repeat(np.arange(len(SIZES)), SIZES)
    for seed in range(2):
        steps = looks(matrices(len(SIZES), strength, seed)[groups], 30, seed)
        best, worst, leaning = (evidence(steps, groups, each) for each in (right, wrong, None))
        assert worst < best and leaning > best - (best - worst) / 10


@pytest.mark.parametrize("strength", [0.0, 30.0, math.inf])
def test_a_bank_loses_no_more_than_a_mixture_may(strength: float) -> None:
    """One prompt in each of R groups, looked at in every step, under one of S members each.

    Without memory's end, a floor, or the pool's say, weights are the members' posterior probabilities in each group,
    and every state is seen: the evidence of a group is exactly that of the mixture, at least 1 / S of its best
    member's. So log evidence is at least that of the best strength for all, less R log S.
    """
    bank = StrengthBank((0.0, 10.0, math.inf), memory=1.0, floor=0.0, pooling=0.0)
    groups = np.arange(12)
    steps = looks(matrices(12, strength, 5), 60, 5)
    best = max(evidence(steps, groups, member) for member in bank.members)
    mixed = evidence(steps, groups, bank)
    assert mixed >= best - 12 * math.log(3) - 1e-6
    # And no more than what the best member of every group would have had, all told: the mixture is an average.
    assert mixed <= sum(np.max([by_group(steps, groups, member) for member in bank.members], 0))


def by_group(steps: list[Step], groups: np.ndarray, strength: float) -> np.ndarray:
    """Log count evidence of each group of one prompt, in the whole pool's company, read off the beliefs."""
    posterior, total = (
        fed([], groups, len(groups), decay=1.0, pooling="group", strength=strength),
        np.zeros(len(groups)),
    )
    for index, counts in steps:
        belief, state = posterior.belief.numpy(), np.where(counts == 8, 2, np.minimum(counts, 1))
        total += np.log(belief[index, state]) - math.log(7) * (state == 1)
        posterior.update(index, counts, 8)
    return total


@pytest.mark.parametrize(("share", "gain"), [(0.5, 0.003), (0.1, 0.008)])
def test_guessed_transitions_that_count_as_seen_predict_worse(
    share: float, gain: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fewer prompts are looked at in a step, the less a look says of how they move.

    The gain in nats a look was 0.0057 to 0.0070, and 0.016 to 0.018, in three seeds: at least half of it is asked for.
    """
    for seed in range(2):
        steps = looks(np.tile(BASE, (600, 1, 1)), 40, seed, share)
        told = fed(steps, None, 600, decay=1.0, pooling="pool").log_count_evidence
        with monkeypatch.context() as patch:
            patch.setattr(PooledTransitions, "_told_by", as_seen)
            counted = fed(steps, None, 600, decay=1.0, pooling="pool").log_count_evidence
        assert told - counted > gain * sum(len(index) for index, _ in steps)


def as_seen(
    transitions: PooledTransitions, groups: torch.Tensor, moves: torch.Tensor, expected: torch.Tensor
) -> torch.Tensor:
    return torch.zeros_like(transitions.moves).index_add_(0, groups, expected)


def test_strengths_follow_the_evidence() -> None:
    groups = np.repeat(np.arange(10), 30)
    for strength, least, most in ((0.0, 0.0, 0.0), (math.inf, 100.0, math.inf)):
        steps = looks(matrices(10, strength, 3)[groups], 12, 3)
        posterior = fed(steps, groups, 300, decay=1.0, pooling="group")
        members = torch.tensor(posterior.model.strength.members)
        heaviest = members[posterior.strength_weights().mean(0).argmax()]
        assert least <= float(heaviest) <= most


# Banks of decays


@pytest.mark.parametrize("pooling", ["pool", "group"])
def test_decays_follow_the_evidence(pooling: str) -> None:
    """Transitions that stay the same are best remembered for ever; those that change every few steps are not."""
    groups = np.arange(400) % 4
    bank = bp.DecayBank((0.5, 1.0), memory=1.0)
    lasting = np.tile(BASE, (400, 1, 1))
    changing = np.stack([np.tile(np.roll(BASE, t // 8, axis=1), (400, 1, 1)) for t in range(48)])
    for moves, heavier in ((lasting, 1), (changing, 0)):
        steps = looks(moves, 48, 1)
        found = fed(steps, groups, 400, decay=bank, pooling=pooling)
        assert found.bank_weights().shape == (1 if pooling == "pool" else 4, 2)
        assert bool((found.bank_weights()[:, heavier] > 0.9).all())
        single = [fed(steps, groups, 400, decay=each, pooling=pooling).log_count_evidence for each in bank.members]
        assert single[heavier] > single[1 - heavier]
        # Nearer to the right decay than to the wrong one.
        assert found.log_count_evidence > sum(single) / 2


def test_groups_may_forget_differently() -> None:
    groups = np.repeat([0, 1], 200)
    moves = np.tile(BASE, (48, 400, 1, 1))
    for t in range(48):
        moves[t, :200] = np.roll(BASE, t // 8, axis=1)
    posterior = fed(
        looks(moves, 48, 2), groups, 400, decay=bp.DecayBank((0.5, 1.0), memory=1.0), pooling="group", strength=0.0
    )
    weights = posterior.bank_weights()
    assert float(weights[0, 0]) > 0.9 and float(weights[1, 1]) > 0.9


# Clusters of embeddings


def blobs(number: int, each: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Embeddings of blobs that are a hundred times farther apart than they are wide, shuffled; and which is whose."""
    rng = np.random.default_rng(seed)
    which = rng.permutation(np.repeat(np.arange(number), each))
    return torch.from_numpy(100 * rng.normal(size=(number, 6))[which] + rng.normal(size=(len(which), 6))), which


def clustered(embeddings: Any, **fields: Any) -> Any:
    return bp.SolvingProgress(pooling="group", **fields).posterior(len(embeddings), embeddings=embeddings)


@pytest.mark.parametrize(("number", "each", "most"), [(4, 100, 20), (3, 3, 3), (2, 3000, 64)])
def test_clusters_are_of_like_embeddings(number: int, each: int, most: int) -> None:
    embeddings, which = blobs(number, each, 1)
    groups = clustered(embeddings).groups.numpy()
    assert groups.min() == 0 and groups.max() + 1 == len(np.unique(groups)) <= most
    if number < most:
        for cluster in np.unique(groups):
            assert len(np.unique(which[groups == cluster])) == 1
    assert np.array_equal(clustered(embeddings.numpy()).groups, groups)  # the same again, and from numpy


def test_clusters_are_groups() -> None:
    embeddings, which = blobs(4, 25, 2)
    of_embeddings = clustered(embeddings)
    steps = looks(matrices(4, 5.0, 2)[which], 8, 2, 0.5)
    of_groups = bp.SolvingProgress(pooling="group").posterior(100, groups=of_embeddings.groups)
    for index, successes in steps:
        for posterior in (of_embeddings, of_groups):
            posterior.update(index, successes, 8)
    assert torch.equal(of_embeddings.belief, of_groups.belief)
    again = clustered(embeddings)
    again.load_state_dict(of_embeddings.state_dict())
    assert torch.equal(again.belief, of_embeddings.belief)
    with pytest.raises(bp.CheckpointError, match="groups"):
        clustered(embeddings.flip(0)).load_state_dict(of_embeddings.state_dict())


def test_copies_are_in_one_cluster() -> None:
    assert clustered(torch.ones(50, 3)).groups.unique().tolist() == [0]
    assert clustered(torch.randn(3, 2)).groups.unique().tolist() == [0]  # the root of three


@pytest.mark.parametrize(
    ("fields", "told", "error", "message"),
    [
        ({"pooling": "group"}, {}, ValueError, r"either groups \(N,\) or embeddings \(N, D\); got neither"),
        (
            {"pooling": "group"},
            {"groups": [0, 1, 1], "embeddings": torch.eye(3)},
            ValueError,
            r"either groups \(N,\) or embeddings \(N, D\); got both",
        ),
        ({}, {"embeddings": torch.eye(3)}, ValueError, "embeddings go with pooling=\"group\"; pooling is 'prompt'"),
        (
            {"pooling": "pool"},
            {"groups": [0, 1, 1], "embeddings": torch.eye(3)},
            ValueError,
            "groups and embeddings go with",
        ),
        ({"pooling": "group"}, {"embeddings": torch.eye(4)}, ValueError, r"embeddings must have shape \(3, D\)"),
        ({"pooling": "group"}, {"embeddings": torch.eye(3) / 0}, ValueError, r"embeddings\[0, 0\] = .* must be finite"),
        ({"pooling": "group"}, {"embeddings": "abc"}, TypeError, "embeddings must be an array of numbers"),
    ],
)
def test_what_groups_are_made_of_is_checked(
    fields: dict[str, Any], told: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        bp.SolvingProgress(**fields).posterior(3, **told)
