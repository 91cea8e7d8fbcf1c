"""What a posterior keeps of its prompts: who is on record, and how many looks there were, whatever the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings

import bayes_prompt as bp
from bayes_prompt import acquisition as acq

N = 12
WALK = bp.LogitRandomWalk(0.3)
POSTERIORS: dict[str, Callable[[], bp.Posterior]] = {
    "progress": lambda: bp.SolvingProgress().posterior(N),
    "pooled progress": lambda: bp.SolvingProgress(pooling="pool").posterior(N),
    "beta": lambda: bp.SuccessRate(dist.Beta(2.0, 1.0)).posterior(N),
    "grid": lambda: bp.SuccessRate(drift=WALK, grid=9).posterior(N),
    "shared grid": lambda: bp.SuccessRate(drift=WALK, grid=9, sharing=bp.EmpiricalBayes()).posterior(N),
    "bank": lambda: bp.SuccessRate(drift=bp.DriftBank([WALK, bp.Redraw()]), grid=9).posterior(N, groups=[0, 1] * 6),
    "kalman": lambda: bp.LogitGaussian().posterior(N),
    "difficulty": lambda: bp.GenerativeDifficulty(gradient_steps=1).posterior(embeddings=torch.eye(N)),
}
every_posterior = pytest.mark.parametrize("name", POSTERIORS)


def unseen(posterior: bp.Posterior) -> list[int]:
    return posterior.unseen.nonzero()[:, 0].tolist()


@every_posterior
def test_who_was_told_of_or_observed_is_on_record(name: str) -> None:
    posterior = POSTERIORS[name]()
    assert unseen(posterior) == list(range(N)) and posterior.unseen.dtype == torch.bool
    posterior.warm_start([3, 5, 3], [1, 4, 0], 4)
    posterior.warm_start([7], [2], 4)
    posterior.warm_start([], [], 4)
    assert unseen(posterior) == [0, 1, 2, 4, 6, 8, 9, 10, 11]
    assert not bool(posterior.visits.any()) and posterior.looks == 0
    posterior.update([0, 3], [0, 4], 4)
    posterior.observe([11], [1], 4)
    assert unseen(posterior) == [1, 2, 4, 6, 8, 9, 10, 11]  # what waits for the next step is not on record yet
    posterior.advance()
    assert unseen(posterior) == [1, 2, 4, 6, 8, 9, 10]


@every_posterior
def test_a_warm_start_that_is_refused_leaves_no_record(name: str) -> None:
    posterior = POSTERIORS[name]()
    for index, successes in (([1, N], [1, 1]), ([1, 2], [1, 9])):
        with pytest.raises((IndexError, ValueError)):
            posterior.warm_start(index, successes, 4)
    posterior.update([2], [1], 4)
    with pytest.raises(ValueError, match="warm_start must come before"):
        posterior.warm_start([1], [1], 4)
    assert unseen(posterior) == [row for row in range(N) if row != 2]


@every_posterior
@pytest.mark.parametrize("told", [False, True])
def test_checkpoints_know_who_is_on_record(name: str, told: bool, tmp_path: Path) -> None:
    """Into a posterior that knows less or more, and back into one that was told nothing."""
    first, second = POSTERIORS[name](), POSTERIORS[name]()
    if told:
        first.warm_start([3, 5], [1, 4], 4)
    second.warm_start([0, 8], [1, 4], 4)
    first.update([2], [1], 4)
    bp.checkpoint.write(tmp_path / "file", first.state_dict(), kind="Posterior")
    second.load_state_dict(bp.checkpoint.read(tmp_path / "file", kind="Posterior"))
    assert unseen(second) == unseen(first) == [row for row in range(N) if row not in ([2, 3, 5] if told else [2])]
    second.update([0], [1], 4)
    first.load_state_dict(second.state_dict())
    assert unseen(first) == unseen(second) and 0 not in unseen(first)
    assert first.state_dict()["tensors"].keys() == second.state_dict()["tensors"].keys()


def test_records_that_cannot_be_are_refused() -> None:
    posterior = POSTERIORS["beta"]()
    posterior.warm_start([3], [1], 4)
    state = posterior.state_dict()
    known = state["tensors"]["known_before"]
    for spoilt in (known.int(), known[:-1], "all"):
        with pytest.raises(bp.CheckpointError, match=r"posterior\.tensors\.known_before must be"):
            posterior.load_state_dict({**state, "tensors": {**state["tensors"], "known_before": spoilt}})
    with pytest.raises(bp.CheckpointError, match=r"posterior\.version must be 6; got 5"):
        posterior.load_state_dict({**state, "version": 5})
    assert unseen(posterior) == [row for row in range(N) if row != 3]


@every_posterior
def test_explorers_take_a_told_prompt_for_a_known_one(name: str) -> None:
    """Of a pool that was told of nobody is new; of one half of which was, the others are, and are surveyed."""
    told, half = POSTERIORS[name](), POSTERIORS[name]()
    told.warm_start(range(N), [4] * N, 8)
    half.warm_start(range(6), [4] * 6, 8)
    short, long = told.look_index(8, 2.0), told.look_index(8, 50.0)
    torch.testing.assert_close(told.look_index(8, 2.0, new=50.0), short)
    if name in ("beta", "grid", "kalman"):  # others tell nothing by a look that all of the pool had
        assert float((long - short).min()) > 1e-4
    mixed = half.look_index(8, 2.0, new=50.0)
    torch.testing.assert_close(mixed[:6], half.look_index(8, 2.0)[:6])
    torch.testing.assert_close(mixed[6:], half.look_index(8, 50.0)[6:])
    selector = bp.PromptSelector(half, acq.Survey(acq.InformativeProbability(), 2.0), 3)
    assert {*selector.select().tolist(), *selector.select().tolist()} == {6, 7, 8, 9, 10, 11}


@given(
    st.lists(
        st.one_of(
            st.none(),  # a step
            st.lists(st.tuples(st.integers(0, N - 1), st.integers(0, 4)), max_size=6),  # prompts and their successes
        ),
        max_size=12,
    )
)
@settings(max_examples=50, deadline=None)
def test_looks_are_visits_and_those_to_come(calls: list[list[tuple[int, int]] | None]) -> None:
    posterior = POSTERIORS["beta"]()
    looks, waiting = 0, set[int]()
    for call in calls:
        if call is None:
            posterior.advance()
            looks, waiting = looks + len(waiting), set()
        else:
            posterior.observe([row for row, _ in call], [won for _, won in call], 4)
            waiting |= {row for row, _ in call}
        assert posterior.looks == looks + len(waiting)
        assert int(posterior.visits.sum()) == looks
    for known in (POSTERIORS["beta"](), posterior):  # who is asked for the first time, and who has kept count
        known.load_state_dict(state := posterior.state_dict())
        assert known.looks == looks + len(waiting)
        known.advance()
        assert known.looks == looks + len(waiting) == int(known.visits.sum())
        posterior.load_state_dict(state)


def test_nothing_is_kept_for_a_pool_that_was_not_told_of() -> None:
    assert "known_before" not in POSTERIORS["beta"]().state_dict()["tensors"]
