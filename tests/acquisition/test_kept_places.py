"""Places that are kept are for prompts that may be picked, and are not lost in sums."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

import bayes_prompt as bp
from bayes_prompt.acquisition import (
    Batch,
    Diverse,
    EntropyBonus,
    InformativeProbability,
    KnowledgeGradient,
    LookIndex,
    RevisitFloor,
    Survey,
)

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
    made.posterior.warm_start(seen, torch.full((30,), 4), 8)  # these are known to be worth it
    first = made.select()
    made.observe(first, successes=torch.full((B,), 4), trials=8)
    assert int((first >= 30).sum()) == 3
    out = selector(Survey(InformativeProbability(), batches=0.5))
    away = out.select()
    new = out.select()
    assert not set(new.tolist()) & set(away.tolist())


def picked_in_parts(made: bp.PromptSelector, parts: list[int]) -> torch.Tensor:
    return torch.cat([made.select(batch_size=size) for size in parts])


PARTS = [[20], [1] * 20, [5] * 4, [3, 9, 8], [19, 1]]


@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_a_floor_keeps_as_many_places_of_a_batch_in_parts(parts: list[int]) -> None:
    """Half of 400 prompts are due from the tenth step on: 2 of 20 places are theirs, the first ones, whoever draws."""
    posterior = bp.SuccessRate().posterior(400)
    _ = posterior.last_observed
    for _ in range(10):
        posterior.update(range(200), [4] * 200, 8)
    made = bp.PromptSelector(posterior, RevisitFloor(InformativeProbability(), absence=10, share=0.1), 20)
    for _ in range(3):
        index = picked_in_parts(made, parts)
        assert len(index.unique()) == 20
        assert (index >= 200).nonzero()[:, 0].tolist() == [0, 1]


@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_a_survey_in_parts_is_that_of_whole_batches(parts: list[int]) -> None:
    """After 20 prompts of another kind 2.5 batches are left: 50 are new, the others better ones that are known."""
    made = bp.PromptSelector(bp.SuccessRate().posterior(400), Survey(InformativeProbability(), 3.5), 20)
    made.update(range(20), successes=[4] * 20, trials=8)
    new = []
    for _ in range(4):
        index = picked_in_parts(made, parts)
        new.append(int((made.posterior.visits[index] == 0).sum()))
        made.update(index, successes=[4] * 20, trials=8)
    assert new == [20, 20, 10, 0]


@dataclass(frozen=True)
class Told(bp.acquisition.Acquisition):
    """Scores from outside, no two alike."""

    values: tuple[float, ...]

    def scores(self, posterior: bp.Posterior, seed: int, step: int) -> torch.Tensor:
        """Scores (N,)."""
        return torch.tensor(self.values, dtype=posterior.dtype)


@given(
    seed=st.integers(0, 2**31),
    share=st.sampled_from([0.0, 0.1, 0.3, 1.0]),
    new=st.sampled_from([0.0, 0.5, 1.25, 3.0]),
    parts=st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=8), min_size=1, max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_a_batch_in_parts_is_the_batch_of_one_pick(seed: int, share: float, new: float, parts: list[list[int]]) -> None:
    """In its order, too, as long as scores stay the same; whatever is lost between the batches."""
    rng = np.random.default_rng(seed)
    told = Told(tuple(rng.permutation(N).astype(float).tolist()))
    acquisition = Survey(RevisitFloor(told, absence=2, share=share), new)
    whole, split = (bp.PromptSelector(bp.SuccessRate().posterior(N), acquisition, 8) for _ in range(2))
    for sizes in parts:
        index, left, found = whole.select(), 8, []
        for size in sizes:
            if size < left:
                found.append(split.select(batch_size=size))
                left -= size
                twin = bp.PromptSelector(bp.SuccessRate().posterior(N), acquisition, 8)
                twin.load_state_dict(split.state_dict(), in_flight="keep")
                split = twin
        assert torch.cat([*found, split.select(batch_size=left)]).tolist() == index.tolist()
        back = index[rng.permutation(8)[:6]]
        for made in (whole, split):
            made.release(index[~torch.isin(index, back)])
            made.update(back, successes=back % 5, trials=4)


def test_parts_that_are_handed_out_again_are_of_their_batch() -> None:
    """A process that ends in the middle of a batch goes on with it: no place is kept twice."""
    acquisition = Survey(Told(tuple(float(row) for row in range(N))), 2.0)
    straight, resumed = (bp.PromptSelector(bp.SuccessRate().posterior(N), acquisition, 20) for _ in range(2))
    straight.update(range(30, N), successes=[1] * 30, trials=2)
    parts = [straight.select(batch_size=7) for _ in range(2)]
    resumed.load_state_dict(straight.state_dict())
    assert [resumed.select(batch_size=7).tolist() for _ in range(2)] == [part.tolist() for part in parts]
    rest = straight.select(batch_size=6)
    assert resumed.select(batch_size=6).tolist() == rest.tolist()
    picked = torch.cat([*parts, rest])
    assert (picked < 30).nonzero()[:, 0].tolist() == list(range(10))


def test_a_smaller_batch_has_its_share_and_a_larger_one_too() -> None:
    """Who picks five of twenty at a step has two places in four steps; who picks a hundred has ten."""
    posterior = bp.SuccessRate().posterior(400)
    posterior.update(range(200), [4] * 200, 8)
    made = bp.PromptSelector(posterior, RevisitFloor(InformativeProbability(), absence=1, share=0.1), 20)
    _ = posterior.last_observed
    due = []
    for size in [5] * 8 + [100]:
        absent = posterior.step - posterior.last_observed
        index = made.select(batch_size=size)
        due.append(int((absent[index] >= absent.amax()).sum()))
        made.update(index, successes=[4] * size, trials=8)
    assert due[:8] == [2, 0, 0, 0] * 2 and due[8] == 10


@pytest.mark.parametrize("ahead", [0, 1, 5, 10])
def test_a_survey_does_not_last_longer_where_batches_are_out(ahead: int) -> None:
    made = bp.PromptSelector(bp.SuccessRate().posterior(600), Survey(InformativeProbability(), 5.5), 20)
    out, new = [], []
    for _ in range(16):
        index = made.select()
        new.append(int((made.posterior.visits[index] == 0).sum()))
        out.append(index)
        if len(out) > ahead:
            back = out.pop(0)
            made.update(back, successes=[4] * 20, trials=8)
            twin = bp.PromptSelector(bp.SuccessRate().posterior(600), made.acquisition, 20)
            twin.load_state_dict(made.state_dict(), in_flight="keep")
            made = twin
    assert new[:6] == [20] * 5 + [max(10, new[5])]
    if ahead < 5:  # somebody has come back by the sixth batch, and is better than who is not known
        assert new[5:7] == [10, 0]


def test_a_pool_that_was_trained_on_is_not_surveyed_again() -> None:
    """The state of its posterior alone goes to another selector."""
    made = bp.PromptSelector(bp.SuccessRate().posterior(200), InformativeProbability(), 10)
    for _ in range(6):
        made.update(made.select(), successes=[4] * 10, trials=8)
    other = bp.PromptSelector(bp.SuccessRate().posterior(200), Survey(InformativeProbability(), 5.5), 10)
    other.posterior.load_state_dict(made.state_dict()["posterior"])
    assert bool((other.posterior.visits[other.select()] > 0).all())


@pytest.mark.parametrize("familiar", [False, True])
def test_who_is_known_from_before_training_is_new_where_that_is_wished(familiar: bool) -> None:
    def made(*known: Any) -> bp.PromptSelector:
        selector = bp.recipes.best(num_prompts=20, batch_size=4)
        acquisition = replace(selector.acquisition, familiar=familiar)
        selector.posterior.warm_start(*known, 8)
        return bp.PromptSelector(selector.posterior, acquisition, 4)

    some = made(range(10), [4] * 10)  # which is as good as can be
    for _ in range(2):
        assert bool(((some.select() < 10) == familiar).all())
    assert bool((made(range(20), [4] * 10 + [0] * 10).select() < 10).all())


def test_once_seen_the_familiar_are_no_longer_new() -> None:
    made = bp.recipes.best(num_prompts=40, batch_size=4, prior_rates=[0.5] * 40)
    seen: set[int] = set()
    for _ in range(5):
        index = made.select()
        assert not seen & set(index.tolist())
        seen |= set(index.tolist())
        made.update(index, successes=[4] * 4, trials=8)  # as good as can be, and not due again yet
    half = made.select()
    assert len(seen & set(half.tolist())) >= 2  # two of its places are for those that were not seen


def test_familiar_is_a_yes_or_a_no() -> None:
    with pytest.raises(TypeError, match="familiar must be True or False; got 1"):
        Survey(InformativeProbability(), familiar=1)  # type: ignore[arg-type]


def gradient_of(rows: range) -> bp.PromptSelector:
    """Prompts 0..9 come out mixed, 10..19 do now and then, and of 20..29 nothing is known."""
    posterior = bp.SuccessRate(grid=41).posterior(len(rows), dtype=torch.float64)
    for step in range(8):
        for place, row in enumerate(rows):
            if row < 20:
                posterior.observe([place], [4 if row < 10 or step % 8 == 0 else 8], 8)
        posterior.advance()
    return bp.PromptSelector(posterior, KnowledgeGradient(10.0), 10)


@pytest.mark.parametrize("within", [lambda a: a, lambda a: RevisitFloor(a, 50, 0.1), lambda a: Survey(a, 0.0)])
def test_the_price_of_a_place_is_that_of_those_who_may_be_picked(
    within: Callable[..., bp.acquisition.Acquisition],
) -> None:
    """Whether others are no candidates, or out, or not in the pool at all."""
    alone, chosen, out = gradient_of(range(10, 30)), gradient_of(range(30)), gradient_of(range(30))
    for made in (alone, chosen, out):
        made.acquisition = within(made.acquisition)
    out.select(candidates=torch.arange(10))
    wanted = alone._picking().scores()
    mask = torch.arange(30) >= 10
    told, _ = chosen._picking().ranking(mask, chosen._books.recent.batch(10), 10)
    torch.testing.assert_close(told[10:], wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(out._picking().scores()[10:], wanted, rtol=0, atol=1e-12)
    picks = {frozenset((alone.select() + 10).tolist())}
    picks |= {frozenset(chosen.select(candidates=mask).tolist()), frozenset(out.select().tolist())}
    assert len(picks) == 1


def test_the_price_is_that_of_a_whole_batch_in_parts() -> None:
    """With four of ten places gone to the best, the price of the last is that of the sixth best of the others."""
    made = gradient_of(range(30))
    price = float(made.posterior.informative_probability(8).sort(descending=True).values[9])
    gone = made.posterior.informative_probability(8).topk(4).indices
    allowed = torch.ones(30, dtype=torch.bool).index_fill(0, gone, False)
    scores, _ = made.acquisition.ranking(made.posterior, 0, 0, Batch(10, allowed, gone))
    wanted = made.posterior.informative_probability(8) + 10.0 * made.posterior.look_gain(8, price)
    assert torch.equal(scores, wanted)
    nobody, _ = made.acquisition.ranking(made.posterior, 0, 0, Batch(10, torch.zeros(30).bool()))
    assert bool(nobody.isfinite().all())


@pytest.mark.parametrize("part", [50, 20, 1])
def test_a_gradient_in_parts_is_that_of_one_pick(part: int) -> None:
    """Who was picked before, often from below the price, still counts for the price."""
    generator = torch.Generator().manual_seed(0)
    trials = torch.randint(1, 30, (400,), generator=generator)
    successes = (torch.rand(400, generator=generator) * (trials + 1)).long()
    posterior = bp.SuccessRate(grid=41).posterior(400, dtype=torch.float64)
    posterior.update(torch.arange(400), successes, trials)
    picks = []
    for parts in (100 // part, 1):
        made = bp.PromptSelector(posterior, KnowledgeGradient(10.0, trials=8), 100)
        picks.append({row for _ in range(parts) for row in made.select(batch_size=100 // parts).tolist()})
    scores = made._picking().ranking(None, made._books.recent.batch(100), 100)[0]
    apart = [float(scores[sorted(rows)].min()) for rows in (picks[0] - picks[1], picks[1] - picks[0]) if rows]
    assert len(picks[0]) == len(picks[1]) == 100 and len(set(apart)) <= 1  # but for ties
    assert len(picks[0] & picks[1]) >= 95


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


@pytest.mark.parametrize(
    "acquisition", [Survey(InformativeProbability(), 4.0), Survey(InformativeProbability(), 4.0, True)]
)
@pytest.mark.parametrize("told", [False, True])
def test_who_has_come_back_in_this_step_is_not_surveyed_again(acquisition: Survey, told: bool) -> None:
    """Rewards come in one by one while others are picked, and time moves once in a batch."""
    posterior = bp.SuccessRate().posterior(200)
    if told:
        posterior.warm_start(range(100), [4] * 100, 8)
    made, seen = bp.PromptSelector(posterior, acquisition, 10), []
    out = made.select().tolist()
    for turn in range(30):
        seen.append(out.pop(0))
        made.observe([seen[-1]], successes=[4], trials=8)
        out += made.select(batch_size=1).tolist()
        if turn % 10 == 9:
            made.advance()
    assert len(set(seen + out)) == 40


def test_who_has_come_back_in_this_step_is_not_overdue() -> None:
    made = selector(RevisitFloor(InformativeProbability(), absence=3, share=1.0))
    for _ in range(4):
        made.posterior.advance()
    first = made.select()
    made.observe(first, successes=[4] * B, trials=8)
    assert not set(first.tolist()) & set(made.select().tolist())


def test_a_call_that_was_refused_on_a_device_waits_for_nobody() -> None:
    """Its rows are N, which is nobody."""
    posterior = bp.SuccessRate().posterior(20)
    posterior.observe([3], [4], 8)
    posterior._pending.append((torch.tensor([20]), torch.tensor([0]), torch.tensor([1])))
    assert sorted(bp.PromptSelector(posterior, Survey(InformativeProbability()), 19).select().tolist()) == [
        row for row in range(20) if row != 3
    ]
