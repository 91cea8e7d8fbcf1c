"""The picks of an epoch, and rewards turned into counts. No trainer is needed for these."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch

import bayes_prompt as bp
from bayes_prompt.trainers.picks import (
    Picks,
    RepeatedPicks,
    count_groups,
    draw,
    give_back,
    learn,
    reuse_on_shortage,
)

NAN = math.nan


def choose(count: int = 11, size: int = 3, seed: int = 5) -> bp.PromptSelector:
    return bp.recipes.mopps(num_prompts=count, batch_size=size, seed=seed)


def rewarded(pick: torch.Tensor) -> torch.Tensor:
    """Two rollouts a prompt, whose rewards depend on its number alone."""
    return torch.stack([pick % 2, pick % 3 == 0], dim=1).float()


def test_groups_are_spelled_out() -> None:
    sampler = RepeatedPicks(Picks(choose()), group=2, repeats=3)
    rows = torch.tensor(list(sampler)).reshape(3, 3, 3, 2)  # pick, repeat, place, completion
    assert len(sampler) == rows.numel()
    assert (rows == rows[:, :1, :, :1]).all()
    assert all(len(set(pick.tolist())) == 3 for pick in rows[:, 0, :, 0])


def test_picks_are_drawn_when_they_are_needed() -> None:
    picks = Picks(choose())
    assert len(picks.selector.in_flight) == 0
    epoch = picks.epoch()
    first = next(epoch)
    assert picks.selector.in_flight.tolist() == first.tolist()


def test_a_resumed_epoch_repeats_its_picks_and_goes_on() -> None:
    def train(picks: Picks, epoch, count: int) -> list[list[int]]:  # type: ignore[no-untyped-def]
        seen = []
        for pick in itertools.islice(epoch, count):
            picks.selector.update(pick, rewarded(pick))
            seen.append(pick.tolist())
        return seen

    whole = Picks(choose(count=30))
    epoch = whole.epoch()
    train(whole, epoch, 2)
    ahead = [next(epoch), next(epoch)]  # two picks are read ahead of what is trained on
    saved, selector = whole.state_dict(), whole.selector.state_dict()
    for pick in ahead:
        whole.selector.update(pick, rewarded(pick))
    rest = train(whole, epoch, 100)

    resumed = Picks(choose(count=30))
    resumed.selector.load_state_dict(copy.deepcopy(selector), in_flight="keep")
    resumed.load_state_dict(copy.deepcopy(saved))
    again = resumed.epoch()
    assert [next(again).tolist() for _ in range(2)] == saved["picks"][:2].tolist()  # a trainer skips these
    assert torch.equal(resumed.selector.in_flight, torch.cat(ahead))
    assert train(resumed, again, 2) == [pick.tolist() for pick in ahead]
    assert train(resumed, again, 100) == rest
    assert len(rest) == 10 - 4
    assert resumed.digest == whole.digest

    # The epoch after it is a new one for both.
    assert next(resumed.epoch()).tolist() == next(whole.epoch()).tolist()


def test_picks_that_cannot_be() -> None:
    picks = Picks(choose())
    state = picks.state_dict()["picks"]
    for bad in (torch.zeros(2, 4, dtype=torch.int64), torch.zeros(4, 3, dtype=torch.int64), torch.zeros(1, 3)):
        with pytest.raises(bp.CheckpointError, match=r"picks must be int64 of shape \(at most 3, 3\)"):
            picks.load_state_dict({"picks": bad})
    with pytest.raises(bp.CheckpointError, match=r"picks must lie in \[0, 11\); they reach from 0 to 11"):
        picks.load_state_dict({"picks": torch.tensor([[0, 1, 11]])})
    good = torch.tensor([[0, 1, 2]])
    for numbers in (None, good[0], good.double()):
        with pytest.raises(bp.CheckpointError, match=r"selections must be int64 of the shape of picks, \(1, 3\)"):
            picks.load_state_dict({"picks": good, "selections": numbers})
    assert torch.equal(picks.state_dict()["picks"], state)


def test_ranks_that_drift_apart_have_other_digests() -> None:
    one, two, three = Picks(choose()), Picks(choose()), Picks(choose(seed=6))
    for picks in (one, two, three):
        list(picks.epoch())
    assert one.digest == two.digest != three.digest


def test_prompts_that_are_out_twice_are_given_back_twice() -> None:
    selector = choose(count=3)
    reuse_on_shortage(selector)
    picked = torch.cat([draw(selector), draw(selector)])
    assert picked[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    give_back(selector, picked[[0, 1, 3, 4, 5]])
    assert selector.in_flight.tolist() == [picked[2, 1]]
    assert len(selector.outings) == 1
    give_back(selector, picked)
    assert len(selector.in_flight) == 0


def test_what_others_hold_stays_out() -> None:
    """A foreign pick of the whole pool, so that an own pick consists of prompts that are out for both."""
    selector = choose(count=4)
    picks = Picks(selector)
    reuse_on_shortage(selector)
    selector.select(batch_size=4)
    next(picks.epoch())
    assert len(selector.outings) == 4 + 3
    next(picks.epoch())  # the first epoch was dropped: its pick is given back, and nothing else
    assert len(selector.outings) == 4 + 3
    assert selector.in_flight.sort().values.tolist() == [0, 1, 2, 3]


def test_a_resumed_epoch_gives_back_what_was_drawn_before() -> None:
    whole = Picks(choose(count=30))
    foreign = whole.selector.select()
    epoch = whole.epoch()
    next(epoch), next(epoch)
    resumed = Picks(choose(count=30))
    resumed.selector.load_state_dict(whole.selector.state_dict(), in_flight="keep")
    resumed.load_state_dict(whole.state_dict())
    next(resumed.epoch())
    new = next(resumed.epoch())
    assert torch.equal(resumed.selector.outings[:, 1], torch.cat([foreign, new]))


def test_a_pick_drawn_again_keeps_its_number() -> None:
    selector = choose(count=4)
    reuse_on_shortage(selector)
    before = [draw(selector), draw(selector)]
    selector.load_state_dict(selector.state_dict())
    first = draw(selector)
    second = draw(selector, waiting=[(number, prompt) for number, prompt in before[1].tolist()])
    assert torch.equal(torch.stack([first, second]), torch.stack(before))
    assert draw(selector)[:, 0].tolist() == [2, 2, 2]


def test_completions_become_counts() -> None:
    rows = torch.tensor([7, 3, 7, 3, 5, 5])
    counts = count_groups(rows, torch.tensor([1.0, NAN, 0.5, 1.0, NAN, NAN]), group=2, threshold=1.0)
    assert counts.index.tolist() == [3, 5, 7]
    assert counts.successes.tolist() == [1, 0, 1]
    assert counts.trials.tolist() == [1, 0, 2]
    assert counts.unscorable == 3


def test_a_threshold_is_compared_in_the_precision_of_the_rewards() -> None:
    """float32(0.9) is less than 0.9 in float64: a reward of exactly the threshold must be a success nevertheless."""
    rewards = torch.tensor([0.9, 0.8], dtype=torch.float32)
    assert count_groups(torch.tensor([0, 0]), rewards, group=2, threshold=0.9).successes.tolist() == [1]


def test_torn_groups_are_found() -> None:
    with pytest.raises(RuntimeError, match="prompt 4 has 1 completions, not a multiple of the group of 2: the ranks"):
        count_groups(torch.tensor([2, 2, 4]), torch.zeros(3), group=2, threshold=1.0)


def test_prompts_without_a_reward_are_let_go() -> None:
    selector = choose()
    pick = selector.select()
    rows, rewards = pick.repeat_interleave(2), torch.tensor([1.0, 0.0, NAN, NAN, 1.0, NAN])
    learn(selector, count_groups(rows, rewards, group=2, threshold=1.0))
    assert len(selector.in_flight) == 0
    assert selector.posterior.visits[pick].tolist() == [1, 0, 1]
    assert selector.metrics()["rollouts"] == 3
    # Prompts that were never picked may be seen, or fail to be, too.
    learn(selector, count_groups(torch.tensor([10, 10]), torch.tensor([NAN, NAN]), group=2, threshold=1.0))
    assert selector.posterior.step == 2
