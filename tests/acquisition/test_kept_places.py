"""Places that are kept are for prompts that may be picked, and are not lost in sums."""

from __future__ import annotations

import pickle

import pytest
import torch

import bayes_prompt as bp
from bayes_prompt.acquisition import Diverse, EntropyBonus, InformativeProbability, LookIndex, RevisitFloor, Survey

N, B = 60, 6


def selector(acquisition: bp.acquisition.Acquisition) -> bp.PromptSelector:
    posterior = bp.SuccessRate(grid=15, drift=bp.LogitRandomWalk(0.2)).posterior(N)
    return bp.PromptSelector(posterior, acquisition, B, seed=0)


def absences(made: bp.PromptSelector) -> torch.Tensor:
    return made.posterior.step - made.posterior.last_observed


def test_a_lost_pick_does_not_hold_the_places_of_a_floor() -> None:
    """Ten places, one a batch: each prompt that is due comes round, though five others never come back."""
    made = selector(RevisitFloor(InformativeProbability(), absence=5, share=0.1))
    lost = made.select()
    for _ in range(150):
        index = made.select()
        made.update(index, successes=torch.where(index % 2 == 0, 4, 0), trials=8)
    rest = torch.ones(N, dtype=torch.bool)
    rest[lost] = False
    assert bool((made.posterior.visits[rest] > 0).all())


def test_places_are_kept_for_candidates() -> None:
    made = selector(RevisitFloor(InformativeProbability(), absence=5, share=0.2))
    candidates = torch.arange(N // 2, N)
    for _ in range(100):
        index = made.select(candidates=candidates)
        made.update(index, successes=torch.where(index % 2 == 0, 4, 0), trials=8)
    assert bool((made.posterior.visits[candidates] > 0).all())


def test_half_a_survey_asks_for_prompts_that_are_free() -> None:
    """A batch is out, and half of the next one's places are for new prompts: none of them is one that is out."""
    made = selector(Survey(InformativeProbability(), batches=0.5))
    seen = torch.arange(30)
    made.posterior.observe(seen, torch.full((30,), 4), 8)  # these are known to be worth it
    first = made.select()
    made.observe(first, successes=torch.full((B,), 4), trials=8)
    assert int((first >= 30).sum()) >= 3
    out = selector(Survey(InformativeProbability(), batches=0.5))
    away = out.select()
    new = out.select()
    assert not set(new.tolist()) & set(away.tolist())


@pytest.mark.parametrize("keeps", [Survey(InformativeProbability()), RevisitFloor(InformativeProbability())])
def test_they_are_not_added_to_others(keeps: bp.acquisition.Acquisition) -> None:
    for make in (lambda: keeps + EntropyBonus(0.1), lambda: EntropyBonus(0.1) + keeps):
        with pytest.raises(TypeError, match="would lose kept places"):
            make()
    with pytest.raises(TypeError, match="utility must not keep places"):
        Diverse(keeps, torch.eye(4))


def test_explained_as_the_next_pick_goes() -> None:
    made = selector(Survey(LookIndex(16.0), batches=50.0))
    index = made.select()
    made.update(index, successes=torch.full((B,), 4), trials=8)
    new = [prompt for prompt in range(N) if prompt not in set(index.tolist())]
    ranks = {prompt: made.explain(prompt)["rank"] for prompt in range(N)}
    assert max(ranks[prompt] for prompt in new) <= len(new)
    assert min(ranks[prompt] for prompt in index.tolist()) > len(new)


def test_a_selector_on_a_grid_can_be_pickled() -> None:
    made = bp.recipes.best(num_prompts=N, batch_size=B, groups=["a", "b"] * (N // 2))
    for elapsed in [1.0] * 40 + [0.5, 2.0] * 15:
        made.observe(index := made.select(), successes=index % 9, trials=8)
        made.advance(elapsed)
    other = pickle.loads(pickle.dumps(made))
    for _ in range(5):
        index = made.select()
        assert torch.equal(index, other.select())
        for each in (made, other):
            each.update(index, successes=index % 9, trials=8)


def test_single_rollouts_tell_no_prompt_from_another() -> None:
    """P(0 < successes < 1) is 0, not what rounding leaves of it."""
    posterior = bp.SuccessRate(grid=41, drift=bp.LogitRandomWalk(0.2)).posterior(20)
    posterior.update([0, 1, 2], [1, 0, 1], 1)
    assert posterior.informative_probability(1).tolist() == [0.0] * 20
    assert posterior.look_index(1, 16.0).tolist() == [0.0] * 20
