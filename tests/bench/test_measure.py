from __future__ import annotations

import gc
from itertools import pairwise

import pytest

from bayes_prompt.bench.measure import Seconds, alternate, rounds_within, seconds_of, turns


def test_statistics() -> None:
    assert Seconds.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Seconds(3.0, 2.0, 4.0, 1.0, 5.0, 3.0, 5)
    assert Seconds.of([7.0]) == Seconds(7.0, 7.0, 7.0, 7.0, 7.0, 7.0, 1)
    with pytest.raises(ValueError, match="at least one"):
        Seconds.of([])


def test_rounds_fit_the_budget() -> None:
    assert rounds_within(1.0, 0.1) == 10
    assert rounds_within(1.0, 10.0) == 3
    assert rounds_within(1.0, 0.0) == 30


def test_turns_are_spread_evenly() -> None:
    order = turns({"fast": 40, "slow": 4})
    assert (order.count("fast"), order.count("slow")) == (40, 4)
    places = [place for place, name in enumerate(order) if name == "slow"]
    assert all(9 <= b - a <= 13 for a, b in pairwise(places)) and 3 <= places[0] <= 7
    assert turns({"a": 2, "b": 2}) == ["a", "b", "a", "b"]


def test_everyone_gets_the_rounds_and_calls_asked_for() -> None:
    calls: list[str] = []

    def note(name: str) -> None:
        assert not gc.isenabled()
        calls.append(name)

    runs = {"a": lambda: note("a"), "b": lambda: note("b")}
    times = alternate(runs, {"a": 5, "b": 3}, "cpu", {"a": 1, "b": 10})
    assert calls.count("a") in range(5, 11) and calls.count("b") in range(30, 61)  # short ones are made twice
    assert (times["a"].rounds, times["b"].rounds) == (5, 3)
    assert gc.isenabled()


def test_the_mean_of_several_calls() -> None:
    counted: list[int] = []
    assert seconds_of(lambda: counted.append(1), "cpu", 4) > 0
    assert len(counted) == 4
