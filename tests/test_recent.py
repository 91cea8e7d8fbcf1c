"""What was picked lately: batches that are picked in parts, and how much of the past is kept."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

import bayes_prompt as bp
from bayes_prompt.recent import OpenBatch, RecentPicks


def pick(recent: RecentPicks, *rows: int) -> None:
    recent.add(torch.tensor(rows, dtype=torch.int64), recent.batch(len(rows)))


def standing(batch: OpenBatch) -> tuple[int, list[int], int]:
    return batch.number, batch.rows.tolist(), batch.begun


def test_parts_of_a_batch_share_it_and_its_number_until_it_is_full() -> None:
    recent = RecentPicks(batch_size=4, batches=1)
    assert standing(recent.batch(4)) == (0, [], 0)
    pick(recent, 1)
    assert standing(recent.batch(3)) == (0, [1], 1)
    assert standing(recent.batch(4)) == (1, [1], 0)  # no room
    pick(recent, 2, 3, 4)
    assert standing(recent.batch(1)) == (1, [1, 2, 3, 4], 0)  # full: the next one begins another
    pick(recent, 5, 6)
    assert standing(recent.batch(2)) == (1, [1, 2, 3, 4, 5, 6], 2)
    pick(recent, 7, 8, 9)
    assert standing(recent.batch(1)) == (2, [3, 4, 5, 6, 7, 8, 9], 3)


def test_prompts_that_come_again_are_the_first_of_their_batch() -> None:
    recent = RecentPicks(batch_size=4, batches=2)
    pick(recent, 1, 2, 3, 4)
    pick(recent, 5, 6)
    assert standing(recent.batch(2, [5, 6])) == (1, [1, 2, 3, 4, 5, 6], 2)  # as if nothing had come between
    assert standing(recent.batch(1, [6])) == (1, [1, 2, 3, 4, 5, 6], 2)
    assert standing(recent.batch(3, [6])) == (2, [1, 2, 3, 4, 5, 6], 1)  # no room for all
    assert standing(recent.batch(1, [2, 4, 5])) == (2, [1, 3, 6, 2, 4, 5], 3)  # of two batches
    recent.add(torch.tensor([8]), recent.batch(1, [2, 4, 9]))
    assert (recent.rows.tolist(), recent.begun, recent.started) == ([1, 3, 5, 6, 2, 4, 9, 8], 0, 3)


@pytest.mark.parametrize("batch_size", [3, 4, 6])
def test_a_full_batch_stays_full_for_whoever_has_larger_ones(batch_size: int) -> None:
    recent, other = RecentPicks(4, 2), RecentPicks(batch_size, 2)
    pick(recent, 1, 2, 3, 4)
    other.restore(recent.state())
    assert standing(other.batch(1)) == (1, [1, 2, 3, 4], 0)


def test_who_is_given_back_is_forgotten() -> None:
    recent = RecentPicks(batch_size=4, batches=2)
    pick(recent, 1, 2, 3, 4)
    pick(recent, 5, 2)
    recent.give_back(2, 1)  # the last pick of it, of the batch that is begun
    assert standing(recent.batch(3)) == (1, [1, 2, 3, 4, 5], 1)
    recent.give_back(5, 2)  # an earlier one, which is kept no more
    recent.give_back(3, 1)
    assert standing(recent.batch(3)) == (1, [1, 2, 4, 5], 1)
    pick(recent, 2, 6)
    recent.give_back(2, 2)  # it is out twice, and the first of the two is over
    assert (recent.rows.tolist(), recent.batch(1).mates.tolist()) == ([1, 4, 5, 2, 6], [5, 2, 6])
    for prompt in (5, 2, 6):
        recent.give_back(prompt, 1)
    assert standing(recent.batch(1)) == (2, [1, 4], 0)  # nobody is left of it: the next pick begins another
    recent.give_back(9, 1)
    assert recent.rows.tolist() == [1, 4]


def test_nobody_is_not_remembered() -> None:
    recent = RecentPicks(batch_size=4, batches=1)
    pick(recent, 3, -1, 5, -1)
    assert recent.rows.tolist() == [3, 5] and recent.begun == 2


@given(
    batch_size=st.integers(1, 5),
    batches=st.integers(0, 3),
    picks=st.lists(st.lists(st.integers(-1, 9), max_size=7), max_size=12),
)
def test_the_last_picks_are_kept_and_no_more(batch_size: int, batches: int, picks: list[list[int]]) -> None:
    recent = RecentPicks(batch_size, batches)
    every: list[int] = []
    begun = started = 0
    for rows in picks:
        begun = begun if begun + len(rows) <= batch_size else 0
        started += begun == 0
        batch = recent.batch(len(rows))
        assert (batch.begun, batch.number) == (begun, started - 1)
        pick(recent, *rows)
        somebody = [row for row in rows if row >= 0]
        every += somebody
        begun = begun + len(somebody) if begun + len(somebody) < batch_size else 0
        keep = min(len(every), batch_size * batches + begun)
        assert recent.begun == begun and recent.rows.tolist() == every[len(every) - keep :]
    other = RecentPicks(batch_size + 1, batches)
    state = recent.state()
    RecentPicks.check(state, 10)
    other.restore(state)
    assert other.rows.tolist() == recent.rows.tolist() and other.begun == recent.begun
    assert other.started == recent.started == started
    pick(recent, 1)
    assert state["index"].tolist() == other.rows.tolist()  # copies


def test_states_that_cannot_be_are_refused() -> None:
    recent = RecentPicks(4, 1)
    pick(recent, 3, 4)
    state = recent.state()
    for spoilt, message in [
        ([], "selector.recent state must be a dictionary"),
        ({"index": state["index"]}, "missing entries .'begun', 'started'"),
        ({**state, "other": 1}, "unknown entries"),
        ({**state, "index": [3, 4]}, "selector.recent.index must be an int64 tensor"),
        ({**state, "index": state["index"].float()}, "selector.recent.index must be an int64 tensor"),
        ({**state, "begun": 3}, r"selector.recent.begun must be an integer in \[0, 2\]; got 3"),
        ({**state, "begun": -1}, "selector.recent.begun must be"),
        ({**state, "begun": True}, "selector.recent.begun must be"),
        ({**state, "started": 0}, r"selector.recent.started must be an integer in \[1, "),
        ({**state, "started": 2**32}, "selector.recent.started must be"),
        ({**state, "index": torch.tensor([3, 5])}, r"selector.recent.index holds 5, which must lie in \[0, 5\)"),
        ({**state, "index": torch.tensor([-1, 3])}, "selector.recent.index holds -1"),
    ]:
        with pytest.raises(bp.CheckpointError, match=message):
            RecentPicks.check(spoilt, 5)  # type: ignore[arg-type]
