"""A survey counts what was rolled out or still is, in prompts; what was given back does not count."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

import bayes_prompt as bp
from bayes_prompt.acquisition import Acquisition, Diverse, InformativeProbability, RevisitFloor, Survey
from bayes_prompt.trainers.picks import GroupCounts, give_back, learn

N, B = 400, 20
FAMILIAR = 100  # prompts that are known from before training, and score best


@dataclass(frozen=True)
class Told(Acquisition):
    """Scores from outside."""

    values: tuple[float, ...]

    def scores(self, posterior: bp.Posterior, seed: int, step: int) -> torch.Tensor:
        """Scores (N,)."""
        return torch.tensor(self.values, dtype=posterior.dtype)


def surveying(batches: float, prompts: int = N, batch_size: int = B) -> bp.PromptSelector:
    """Of these, prompts from `FAMILIAR` on are new, and picked for a survey alone."""
    posterior = bp.SuccessRate().posterior(prompts)
    posterior.warm_start(range(FAMILIAR), [4] * FAMILIAR, 8)
    acquisition = Survey(Told(tuple(-float(row) for row in range(prompts))), batches)
    return bp.PromptSelector(posterior, acquisition, batch_size)


def again(made: bp.PromptSelector) -> bp.PromptSelector:
    """Another process that goes on with it."""
    twin = bp.PromptSelector(bp.SuccessRate().posterior(made.num_prompts), made.acquisition, made.batch_size)
    twin.load_state_dict(made.state_dict(), in_flight="keep")
    return twin


def new(index: torch.Tensor) -> int:
    return int((index >= FAMILIAR).sum())


def trained(made: bp.PromptSelector, index: torch.Tensor) -> None:
    made.update(index, successes=[4] * len(index), trials=8)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_batch_that_was_given_back_does_not_count(resumed: bool) -> None:
    made = surveying(2.5)
    picked = []
    for turn in range(7):
        index = made.select()
        picked.append(new(index))
        if turn % 2:
            trained(made, index)
        else:
            made.release(index)
            made.advance()  # a step that nothing was learned in
        made = again(made) if resumed else made
    assert picked == [20, 20, 20, 20, 10, 10, 0]


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("kept", [5, 15])
def test_a_batch_that_came_back_in_part_counts_for_that_part(kept: int, resumed: bool) -> None:
    """Whether the rest is given back before or after; what is still out counts as if it had come back."""
    made, batches = surveying(3.0), []
    for turn in range(3):
        index = made.select()
        assert new(index) == 20
        if turn < 2:
            made.observe(index[:kept], successes=[4] * kept, trials=8)
            made.release(index[kept:])
            made = again(made) if resumed else made
            made.advance()
    left = 3 * B - 2 * kept - B  # the third batch is out
    for _ in range(6):
        made = again(made) if resumed else made
        index = made.select()
        batches.append(new(index))
        trained(made, index)
    wanted = []
    while len(wanted) < 6:
        wanted.append(min(B, max(0, left)))
        left -= B
    assert batches == wanted


@pytest.mark.parametrize("resumed", [False, True])
def test_what_is_given_back_in_the_middle_of_a_batch_leaves_its_places(resumed: bool) -> None:
    """A batch in parts, some of which are too long: it is full when 20 are out, and half of them are new."""
    made, out = surveying(0.5), []
    useless = {FAMILIAR, FAMILIAR + 3, FAMILIAR + 4}
    candidates = torch.ones(N, dtype=torch.bool)
    while len(out) < B:
        index = made.select(candidates, batch_size=1)
        made = again(made) if resumed else made
        if int(index) in useless:
            made.release(index)
            candidates[index] = False
        else:
            out.append(int(index))
    assert [row >= FAMILIAR for row in out] == [True] * 10 + [False] * 10
    assert not useless & set(out)
    assert new(made.select(candidates)) == 0


def test_picks_that_are_released_at_a_resume_do_not_count() -> None:
    made = surveying(1.0)
    made.select(batch_size=15)
    freed, kept, redrawn = (surveying(1.0), surveying(1.0), surveying(1.0))
    for each, policy in ((freed, "release"), (kept, "keep"), (redrawn, "redraw")):
        state = made.state_dict()
        each.load_state_dict(state, in_flight=policy)
    assert new(kept.select()) == 5
    assert new(freed.select()) == 20
    assert new(redrawn.select()) == 20  # 15 of an earlier process, and five more
    assert new(redrawn.select()) == 0


def test_steps_and_prompts_of_others_count_by_their_prompts() -> None:
    for steps, each in ((1, 40), (8, 5), (4, 0)):
        made = surveying(2.5)
        for _ in range(steps):
            made.posterior.update(range(each), [4] * each, 8)
        assert new(made.select()) == (20 if each == 0 else 10)


def test_a_small_step_counts_for_what_it_is() -> None:
    """Five of twenty prompts are trained on at a time."""
    made, picked = surveying(2.5), []
    for _ in range(14):
        index = made.select(batch_size=5)
        picked.append(new(index))
        trained(made, index)
    assert picked == [5] * 10 + [0] * 4


def test_an_adapter_that_could_score_nothing_goes_on_surveying() -> None:
    made, nothing = surveying(1.5), torch.zeros(B, dtype=torch.int64)
    for _ in range(3):
        index = made.select()
        assert new(index) == 20
        learn(made, GroupCounts(index.sort().values, nothing, nothing, 8 * B))
    made.select()
    give_back(made, made.outings)
    picked = []
    for _ in range(3):
        picked.append(new(index := made.select()))
        trained(made, index)
    assert picked == [20, 10, 0]


@given(
    seed=st.integers(0, 2**31),
    batches=st.sampled_from([0.5, 1.0, 2.25, 4.0]),
    turns=st.lists(st.tuples(st.sampled_from(["select", "back", "lost", "advance", "resume"]), st.integers(1, 8))),
)
@settings(max_examples=60, deadline=None)
def test_a_survey_hands_out_as_many_as_it_may(seed: int, batches: float, turns: list[tuple[str, int]]) -> None:
    """Whatever comes back or is lost in which order: places are for new prompts until enough are out or known.

    Looks, those to come and the picks of the batch that is begun are counted by hand.
    """
    rng, size = np.random.default_rng(seed), 8
    made = surveying(batches, 3 * N, size)
    out: list[int] = []
    looks, begun = 0, 0  # visits so far; of the batch that is begun, prompts that were not given back
    waiting: set[int] = set()
    current: Counter[int] = Counter()
    for what, number in turns:
        if what == "select":
            if number > size - begun:
                begun, current = 0, Counter()
            before = looks + len(waiting) + len(out) - begun
            places = round(min(1.0, batches - before / size) * size) - begun
            index = made.select(batch_size=number)
            assert new(index) == min(number, max(0, places))
            out += index.tolist()
            begun += number
            current.update(index.tolist())
            if begun >= size:
                begun, current = 0, Counter()
        elif what in ("back", "lost") and out:
            rows = [out.pop(int(rng.integers(len(out)))) for _ in range(min(number, len(out)))]
            if what == "back":
                made.observe(rows, successes=[1] * len(rows), trials=4)
                waiting |= set(rows)
            else:
                made.release(rows)
                for row in rows:
                    begun -= current[row] > 0
                    current[row] -= current[row] > 0
        elif what == "advance":
            made.advance()
            looks, waiting = looks + len(waiting), set()
        elif what == "resume":
            made = again(made)


@pytest.mark.parametrize(("policy", "places"), [(None, 1), ("keep", 1), ("redraw", 2), ("release", 2)])
def test_a_floor_keeps_the_places_of_those_that_were_given_back(policy: str | None, places: int) -> None:
    """Two places of twenty: who gave one back gets it again, and both where the other was released at a resume."""
    posterior = bp.SuccessRate().posterior(N)
    _ = posterior.last_observed
    for _ in range(10):
        posterior.update(range(200), [4] * 200, 8)
    made = bp.PromptSelector(posterior, RevisitFloor(InformativeProbability(), absence=10, share=0.1), B)
    first = made.select(batch_size=2)
    assert bool((first >= 200).all())
    made.release(first[:1])
    if policy:
        made.load_state_dict(made.state_dict(), in_flight=policy)
    rest = made.select(batch_size=B if policy == "redraw" else B - 1)
    assert (rest >= 200).nonzero()[:, 0].tolist() == list(range(places))


def test_a_diverse_batch_keeps_no_distance_from_who_was_given_back() -> None:
    embeddings = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    scores = Told(tuple(float(row) / 40 for row in range(40)))
    made, other = (
        bp.PromptSelector(bp.SuccessRate().posterior(40), Diverse(scores, embeddings, weight=1.0), 6) for _ in range(2)
    )
    lost = made.select(batch_size=1)
    made.release(lost)
    mask = torch.ones(40, dtype=torch.bool).index_fill(0, lost, False)
    assert made.select(mask, batch_size=5).tolist() == other.select(mask, batch_size=5).tolist()
    assert made.select(mask, batch_size=1).tolist() == other.select(mask, batch_size=1).tolist()
