from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import bayes_prompt as bp
from bayes_prompt.bench.memory import Held, available, peak_over_rest, storages


class Slotted:
    __slots__ = ("flags", "unset")

    def __init__(self) -> None:
        self.flags = torch.zeros(7, dtype=torch.bool)


@dataclass
class Holder:
    weight: torch.Tensor
    view: torch.Tensor
    inside: list[object]
    lock: object


def test_each_storage_counts_once_wherever_it_is() -> None:
    weight, array = torch.zeros(100), np.zeros((4, 3))
    holder = Holder(
        weight, weight[:2].view(2, 1), [{"deep": (Slotted(), array, array[1:])}, {array.size}], threading.Lock()
    )
    holder.inside.append(holder)  # a cycle
    assert Held.by(holder) == Held(state=400 + 96, bookkeeping=7)
    assert sum("deep" in path for path, _, _ in storages(holder)) == 2


def test_a_view_holds_all_of_its_storage() -> None:
    assert Held.by(torch.zeros(1000, dtype=torch.int32)[:1]) == Held(0, 4000)
    assert Held.by(torch.zeros(1).expand(1000)) == Held(4, 0)
    assert Held.by(None) == Held.by("text") == Held.by(torch.zeros(0)) == Held(0, 0)


def test_what_a_selector_holds_grows_with_its_prompts() -> None:
    """The 12 numbers that DPS needs, and a score once it is asked for; visits, solved visits, a flag."""
    small, large = (Held.by(bp.recipes.dps(num_prompts=n, batch_size=8)) for n in (1000, 11_000))
    assert (large.state - small.state) / 10_000 == 12 * 4
    assert (large.bookkeeping - small.bookkeeping) / 10_000 == 9


def test_the_peak_is_what_a_call_needs_for_a_while() -> None:
    kept: list[torch.Tensor] = []
    peak = peak_over_rest(lambda: kept.append(torch.ones(10_000_000).sum()), "cpu")
    if peak is None:
        pytest.skip("the system does not tell")
    assert 35e6 < peak < 80e6
    again = peak_over_rest(lambda: None, "cpu")
    assert again is not None and again < 20e6  # the mark was set back


def test_there_is_memory() -> None:
    assert available("cpu") > 1e6
