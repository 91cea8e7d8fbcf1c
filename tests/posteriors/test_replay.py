"""Batches that are learned from again: what is kept, what is drawn, how much it counts; states that cannot be."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import bayes_prompt as bp
from bayes_prompt.posteriors.replay import Batch, Replay

N, D, M = 20, 3, 2
POOL = torch.randn(N, D, generator=torch.Generator().manual_seed(0))


def batch(step: int, size: int = 3) -> Batch:
    g = torch.Generator().manual_seed(step)
    trials = torch.randint(1, 9, (size,), generator=g)
    successes = (trials * torch.rand(size, generator=g)).long()
    return Batch(step, torch.randperm(N, generator=g)[:size], successes, trials, torch.rand(size, M, 2, generator=g))


def replay(*steps: int, capacity: int = 8) -> Replay:
    made = Replay(capacity, M, torch.device("cpu"), lambda rows: POOL[rows])
    for step in steps:
        made = made.with_newest(batch(step, 2 + step % 3))
    return made


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_oldest_make_room() -> None:
    """One more is kept than is learned from: the oldest of these had a batch before it, too."""
    made = replay(*range(5), capacity=3)
    assert [each.step for each in made.batches] == [1, 2, 3, 4]
    before = made.batches
    assert [each.step for each in made.with_newest(batch(5)).batches] == [2, 3, 4, 5]
    assert made.batches is before and len(before) == 4  # the one it came from stays what it was


@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_a_full_replay_learns_from_the_newest_and_what_came_before_each(capacity: int) -> None:
    made = replay(*range(6), capacity=capacity)
    torch.manual_seed(0)
    drawn = made.draw(40, recency=1.0)
    kept = {batch.step: batch for batch in made.batches}
    steps = [
        next(step for step, kept_ in kept.items() if torch.equal(drawn.record[t, : len(kept_.rows)], kept_.record))
        for t in range(len(drawn.weight))
    ]
    assert set(steps) == set(range(6 - capacity, 6))
    assert float(drawn.weight.sum()) == pytest.approx(capacity)
    for t, step in enumerate(steps):
        embeddings, rates, present = (entry[t] for entry in drawn.before)
        last = batch(step - 1, 2 + (step - 1) % 3)
        assert int(present.sum()) == len(last.rows)
        assert torch.equal(embeddings[: len(last.rows)], POOL[last.rows])
        assert torch.equal(rates[: len(last.rows)], last.successes / last.trials)


def test_a_stack_holds_what_was_observed_and_what_came_before() -> None:
    made = replay(3, 4, 6)  # of 2, 3 and 2 prompts
    torch.manual_seed(0)
    drawn = made.draw(5, recency=0.5)
    assert drawn.present.shape == (6, 3)
    numbers = [2] + [
        next(i for i in (0, 1) if torch.equal(drawn.record[t, :2], made.batches[i].record[:2])) for t in range(1, 6)
    ]
    for t, number in enumerate(numbers):
        kept = made.batches[number]
        size = len(kept.rows)
        assert drawn.present[t].tolist() == [True] * size + [False] * (3 - size)
        assert torch.equal(drawn.embeddings[t, :size], POOL[kept.rows])
        for name in ("successes", "trials", "record"):
            assert torch.equal(getattr(drawn, name)[t, :size], getattr(kept, name).float())
            assert not bool(getattr(drawn, name)[t, size:].any())
        embeddings, rates, present = (entry[t] for entry in drawn.before)
        if number == 0:  # before the first batch there is none
            assert not bool(present.any())
            continue
        last = made.batches[number - 1]
        assert int(present.sum()) == len(last.rows) and bool(present[: len(last.rows)].all())
        assert torch.equal(embeddings[: len(last.rows)], POOL[last.rows])
        assert torch.equal(rates[: len(last.rows)], last.successes / last.trials)
    torch.testing.assert_close(drawn.rates[drawn.present], (drawn.successes / drawn.trials)[drawn.present])


def test_the_last_batch_is_shown_to_the_prior() -> None:
    embeddings, rates, present = replay().last()
    assert embeddings.shape == (1, 1, D) and not bool(present.any()) and not bool(rates.any())
    embeddings, rates, present = replay(3, 4).last()
    kept = batch(4, 3)
    assert torch.equal(embeddings[0], POOL[kept.rows]) and bool(present.all())
    assert torch.equal(rates[0], kept.successes / kept.trials)


@pytest.mark.parametrize("recency", [0.0, 0.3, 0.9, 1.0])
def test_weights_stand_for_all_earlier_batches(recency: float) -> None:
    """Age is in steps, not in batches. The expected weight of batch i over many draws is recency ** age."""
    steps = [0, 1, 4, 5, 7]
    made = replay(*steps)
    total, weight = sum(recency ** (7 - step) for step in steps[:-1]), {step: 0.0 for step in steps}
    torch.manual_seed(0)
    draws = 600
    for _ in range(draws):
        drawn = made.draw(3, recency)
        assert float(drawn.weight[0]) == 1.0
        assert float(drawn.weight[1:].sum()) == pytest.approx(total, abs=1e-6)
        for t in range(1, len(drawn.weight)):
            step = next(each.step for each in made.batches if torch.equal(each.record[:2], drawn.record[t, :2]))
            weight[step] += float(drawn.weight[t]) / draws
    for step in steps[:-1]:
        share = recency ** (7 - step) / total if total else 0.0
        # Each of the 1800 draws hits with probability `share`: five standard deviations of the mean.
        error = 5 * total * (share * (1 - share) / (3 * draws)) ** 0.5
        assert weight[step] == pytest.approx(recency ** (7 - step), abs=error + 1e-9)


def test_the_newest_alone() -> None:
    for made, wanted, recency in ((replay(3), 4, 1.0), (replay(3, 4), 0, 1.0), (replay(3, 4), 4, 0.0)):
        drawn = made.draw(wanted, recency)
        assert drawn.weight.tolist() == [1.0] and len(drawn.embeddings) == 1


def test_a_batch_of_long_ago_is_not_worth_a_number_below_zero() -> None:
    made = replay(0).with_newest(batch(1_000_000))
    drawn = made.draw(2, 0.97)
    assert bool(torch.isfinite(drawn.weight).all()) and bool((drawn.weight >= 0).all())


def test_a_state_brings_all_back() -> None:
    for made in (replay(), replay(1), replay(1, 2, 5)):
        state = copy.deepcopy(made.state())
        other = replay(7, 8)
        other.check(state, N, 6)
        other.restore(state)
        assert same(other.state(), state)
        assert [each.step for each in other.batches] == [each.step for each in made.batches]
        if made.batches:
            torch.manual_seed(1)
            one = made.draw(2, 0.9)
            torch.manual_seed(1)
            for ours, theirs in zip(one, other.draw(2, 0.9), strict=True):
                pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]
                assert all(torch.equal(a, b) for a, b in pairs)


def test_another_default_type_is_no_other_state() -> None:
    for made in (replay(), replay(1, 2)):
        state = made.state()
        torch.set_default_dtype(torch.float64)
        try:
            assert same(made.state(), state) and made.state()["record"].dtype == torch.float32
            made.check(state, N, 6)
        finally:
            torch.set_default_dtype(torch.float32)


def changed(state: dict[str, Any], name: str, entry: int, value: float) -> dict[str, Any]:
    other = copy.deepcopy(state)
    other[name].view(-1)[entry] = value
    return other


def test_states_that_cannot_be_are_refused() -> None:
    made = replay(1, 2, 5)
    state = made.state()
    entries = len(state["rows"])
    for name, entry, value in [
        *(("rows", 0, value) for value in (-1, N)),
        *(("successes", 0, value) for value in (-1, 100)),
        *(("trials", 0, value) for value in (0, -1)),
        *(("size", 0, value) for value in (0, -1, 9)),
        *(("step", entry, value) for entry, value in ((0, -2), (0, 2), (2, 6), (2, 1))),
        ("record", 3, -0.5),
    ]:
        with pytest.raises(bp.CheckpointError, match="replay holds batches that cannot be"):
            made.check(changed(state, name, entry, value), N, 6)
    for value in (torch.nan, torch.inf):
        with pytest.raises(bp.CheckpointError, match=r"replay\.record must be finite; entry 3"):
            made.check(changed(state, "record", 3, value), N, 6)
    for other, message in [
        ({**state, "extra": 1}, "unknown entries .'extra'"),
        ({name: value for name, value in state.items() if name != "rows"}, "missing entries .'rows'"),
        ({**state, "rows": state["rows"].int()}, "replay.rows must be an int64 tensor"),
        ({**state, "trials": state["trials"][:-1]}, "batches that cannot be"),
        (
            {**state, "record": state["record"][:, :1]},
            rf"replay.record must be torch.float32 of shape \({entries}, 2, 2\)",
        ),
        ({**state, "record": state["record"].double()}, "replay.record must be torch.float32"),
        ([], "replay state must be a dictionary"),
    ]:
        with pytest.raises(bp.CheckpointError, match=message):
            made.check(other, N, 6)  # type: ignore[arg-type]
    with pytest.raises(bp.CheckpointError, match="batches that cannot be"):
        replay(capacity=1).check(state, N, 6)
    replay(capacity=2).check(state, N, 6)
    assert same(made.state(), state)
