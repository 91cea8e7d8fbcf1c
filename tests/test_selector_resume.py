"""Resuming with prompts in flight, and states that nobody else can change."""

from __future__ import annotations

import copy
import pickle
import stat
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import hypothesis.strategies as st
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings

import bayes_prompt as bp


def make(num_prompts: int = 4, batch_size: int = 3, **options: Any) -> bp.PromptSelector:
    return bp.recipes.mopps(num_prompts=num_prompts, batch_size=batch_size, seed=5, **options)


@settings(max_examples=60, deadline=None)
@given(
    ahead=st.integers(1, 4),
    landed=st.integers(0, 3),
    num_prompts=st.integers(3, 9),
    mode=st.sampled_from([{"on_shortage": "reuse"}, {"allow_in_flight": True}]),
)
def test_picks_that_were_out_come_again_as_they_were(
    ahead: int, landed: int, num_prompts: int, mode: dict[str, Any]
) -> None:
    """In a pool too small for what is read ahead, where prompts are out several times."""
    before = make(num_prompts, **mode)
    picks = [before.select() for _ in range(ahead)]
    for pick in picks[:landed]:
        before.observe(pick, successes=torch.ones_like(pick), trials=2)
    resumed = make(num_prompts, **mode)
    resumed.load_state_dict(before.state_dict())
    again = [resumed.select().tolist() for _ in picks[landed:]]
    assert again == [pick.tolist() for pick in picks[landed:]]
    assert resumed.outings.tolist() == before.outings.tolist()
    assert resumed.select().tolist() == before.select().tolist()
    for selector in (before, resumed):
        while selector.in_flight.numel():
            selector.release(selector.in_flight)
    assert resumed.outings.numel() == 0


def test_picks_that_wait_are_held_by_nobody_even_when_kept() -> None:
    selector = make(8)
    out = selector.select()
    waiting = make(8)
    waiting.load_state_dict(selector.state_dict(), in_flight="redraw")
    kept = make(8)
    kept.load_state_dict(waiting.state_dict(), in_flight="keep")
    assert kept.select().tolist() == out.tolist()


@pytest.mark.parametrize("recipe", ["dps", "mopps"])
def test_rollouts_that_come_one_by_one_are_the_same_group(recipe: str) -> None:
    whole, streamed = (getattr(bp.recipes, recipe)(num_prompts=20, batch_size=2, seed=1) for _ in range(2))
    rewards = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    index = whole.select()
    streamed.select()
    whole.update(index, rewards)
    for rollout in rewards.T:
        streamed.observe(index, rollout[:, None])
    streamed.advance()
    assert whole.metrics() == streamed.metrics()
    assert whole.posterior.group_size == streamed.posterior.group_size == 4
    assert whole.select().tolist() == streamed.select().tolist()


def test_ragged_groups_are_expected_each_by_its_size() -> None:
    for selector in (make(300), bp.recipes.dps(num_prompts=300, batch_size=3)):
        trials = torch.arange(1, 301)
        expected = sum(
            float(selector.posterior.informative_probability(int(t), torch.tensor([n]))) for n, t in enumerate(trials)
        )
        selector.update(torch.arange(300), successes=torch.zeros(300, dtype=torch.int64), trials=trials)
        assert selector.metrics()["predicted_effective_sample_ratio"] == pytest.approx(expected / 300, rel=1e-5)


def test_huge_groups_cost_no_more_than_small_ones() -> None:
    for selector in (make(50), bp.recipes.dps(num_prompts=50, batch_size=3)):
        selector.update([0], successes=[10**6], trials=2 * 10**6)
        assert selector.select().numel() == 3
        assert all(np.isfinite(value) for value in selector.metrics().values())


def test_nobody_else_can_change_a_state() -> None:
    selector = make(6)
    selector.observe([1], successes=[1], trials=2)
    state = selector.state_dict()
    saved = copy.deepcopy(state)
    other = make(6)
    other.load_state_dict(state)
    for tensor in (*state["posterior"]["tensors"].values(), *state["posterior"]["pending"].values()):
        tensor.zero_()
    for each in (selector, other):
        assert torch.equal(each.posterior.state_dict()["pending"]["index"], saved["posterior"]["pending"]["index"])
        assert torch.equal(each.posterior.state_dict()["tensors"]["alpha"], saved["posterior"]["tensors"]["alpha"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_own_priors_are_copies(dtype: torch.dtype) -> None:
    old = bp.SuccessRate(dist.Beta(1.0, 1.0), decay=0.5).posterior(3, dtype=dtype)
    new = bp.SuccessRate(dist.Beta(1.0, 1.0), decay=0.5).posterior(3, dtype=dtype, alpha=old.alpha, beta=old.beta)
    old.update([0], [8], 8)
    new.update([0], [0], 8)
    assert float(new.alpha[0]) == 1.0
    first = bp.SolvingProgress().posterior(3, dtype=dtype)
    second = bp.SolvingProgress().posterior(3, dtype=dtype, concentration=first.concentration)
    first.update([0], [8], 8)
    second.advance()
    assert torch.equal(second.concentration, torch.ones(3, 3, 3, dtype=dtype))
    table = torch.ones(3, 3, dtype=torch.float64)
    model = bp.SolvingProgress(table, learn=False)
    posterior, said = model.posterior(2, dtype=dtype), model.describe()
    table[0, 0] = 9.0
    posterior.update([0], [0], 8)
    assert model.describe() == said
    torch.testing.assert_close(posterior.belief[0], torch.full((3,), 1 / 3, dtype=dtype))


def test_own_priors_and_warm_starts_in_checkpoints(tmp_path: Path) -> None:
    own = torch.rand(5, 3, 3, generator=torch.Generator().manual_seed(0)) + 0.1

    def build(concentration: torch.Tensor) -> bp.PromptSelector:
        posterior = bp.SolvingProgress().posterior(5, concentration=concentration)
        return bp.PromptSelector(posterior, bp.acquisition.PartialProbability(), batch_size=2)

    selector = build(own)
    selector.posterior.warm_start([1, 3], [8, 2], 8)
    selector.update([0], successes=[3], trials=8)
    selector.save(tmp_path / "state")
    again = build(own)
    again.load(tmp_path / "state")
    for each in (selector, again):
        each.update([1], successes=[3], trials=8)
    assert torch.equal(selector.posterior.belief, again.posterior.belief)
    assert torch.equal(selector.posterior.concentration, again.posterior.concentration)
    with pytest.raises(bp.CheckpointError, match="own_prior"):
        build(own + 1).load(tmp_path / "state")


def test_copies_and_pickles_go_their_own_way() -> None:
    selector = make(6)
    selector.update(selector.select(), successes=[1, 1, 1], trials=2)
    for twin in (copy.deepcopy(selector), pickle.loads(pickle.dumps(selector))):
        before = twin.posterior.alpha.clone()
        assert twin.select(batch_size=1).tolist() == copy.deepcopy(selector).select(batch_size=1).tolist()
        selector.update([0], successes=[2], trials=2)
        assert torch.equal(twin.posterior.alpha, before)


def test_scores_of_the_wrong_length_change_nothing() -> None:
    class Longer(bp.acquisition.Acquisition):
        def scores(self, posterior: bp.Posterior, seed: int, step: int) -> torch.Tensor:
            return torch.arange(2.0 * posterior.num_prompts)

    selector = bp.PromptSelector(bp.SolvingProgress().posterior(6), Longer(), batch_size=2)
    with pytest.raises(ValueError, match=r"Longer must give scores of shape \(6,\) on cpu; got \(12,\)"):
        selector.select()
    assert selector.outings.numel() == 0 and selector.selections == 0


@pytest.mark.parametrize("recipe", ["uniform", "history_resampling", "mopps", "dps", "gps"])
def test_explain_speaks_for_every_method(recipe: str) -> None:
    shown = {"embeddings": torch.eye(9)} if recipe == "gps" else {}
    selector = getattr(bp.recipes, recipe)(num_prompts=9, batch_size=2, **shown)
    assert "no pick was made yet" in selector.explain(0)["why"]
    index = selector.select()
    told = selector.explain(int(index[0]))
    assert "in flight since selection 0" in told["why"] and told["may_be_picked"] is False
    resumed = getattr(bp.recipes, recipe)(num_prompts=9, batch_size=2, **shown)
    resumed.load_state_dict(selector.state_dict())
    assert "handed out again next" in resumed.explain(int(index[0]))["why"]


def test_numpy_integers_are_integers() -> None:
    selector = bp.recipes.dps(num_prompts=np.int64(9), batch_size=np.int32(2), seed=np.uint8(3))
    assert selector.select(batch_size=np.int64(3)).numel() == 3
    assert selector.posterior.informative_probability(np.int64(8)).shape == (9,)


def test_two_pools_of_uuids_are_told_apart() -> None:
    def build(space: int) -> bp.PromptSelector:
        return make(6, ids=[uuid5(UUID(int=space), str(n)) for n in range(6)])

    state = build(1).state_dict()
    build(1).load_state_dict(state)
    with pytest.raises(bp.CheckpointError, match=r"selector\.ids"):
        build(2).load_state_dict(state)
    texts = [np.array(list("abcdef")), list("abcdef")]  # numpy's strings are equal to Python's
    make(6, ids=texts[0]).load_state_dict(make(6, ids=texts[1]).state_dict())
    make(ids=[0, 1.0, 2.5, -0.5]).load_state_dict(make(ids=[False, True, np.float64(2.5), -0.5]).state_dict())
    with pytest.raises(TypeError, match="ids must be a sequence"):
        make(6, ids="abcdef")


def test_a_checkpoint_is_as_readable_as_any_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    make().save(tmp_path / "state")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "state")]
    assert modes[0] == modes[1]
