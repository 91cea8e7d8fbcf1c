"""Selectors in data loaders: nothing is drawn twice, nothing is lost, also when loaders read ahead and runs resume."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import bayes_prompt as bp
from bayes_prompt.trainers.torch import PromptBatchSampler, PromptSampler

COUNT, SIZE = 26, 3


class Numbers(Dataset[int]):
    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, row: int) -> int:
        return row


def choose(**options: Any) -> bp.PromptSelector:
    return bp.recipes.mopps(num_prompts=COUNT, batch_size=SIZE, seed=2, **options)


def train(selector: bp.PromptSelector, batches: Iterator[torch.Tensor]) -> list[list[int]]:
    """Rewards depend on the prompt and on when it is trained on, so that every pick depends on all before it."""
    seen = []
    for batch in batches:
        rows = torch.as_tensor(batch)
        step = selector.posterior.step
        selector.update(rows, torch.stack([(rows + step) % 2, (rows * step) % 3 == 0], dim=1).float())
        seen.append(rows.tolist())
    return seen


def stateful(**options: Any) -> Any:
    return pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader(Numbers(), **options)


def plain(**options: Any) -> DataLoader[int]:
    return DataLoader(Numbers(), **options)


def by_batch(selector: bp.PromptSelector) -> tuple[Any, dict[str, Any]]:
    sampler = PromptBatchSampler(selector)
    return sampler, {"batch_sampler": sampler}


def by_row(selector: bp.PromptSelector) -> tuple[Any, dict[str, Any]]:
    sampler = PromptSampler(selector)
    return sampler, {"sampler": sampler, "batch_size": SIZE}


def by_row_in_pieces(selector: bp.PromptSelector) -> tuple[Any, dict[str, Any]]:
    """Batches of two from picks of three: checkpoints cut picks in two."""
    sampler = PromptSampler(selector)
    return sampler, {"sampler": sampler, "batch_size": 2}


WAYS = [by_batch, by_row, by_row_in_pieces]
Way = Callable[[bp.PromptSelector], tuple[Any, dict[str, Any]]]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("workers", "done"), [(0, 1), (0, 5), (2, 3)])
@pytest.mark.parametrize("make", [plain, stateful])
def test_a_resumed_loader_yields_what_the_unbroken_one_yields(
    make: Callable[..., Any], way: Way, workers: int, done: int
) -> None:
    selector = choose()
    sampler, options = way(selector)
    loader = make(num_workers=workers, **options)
    epoch = iter(loader)
    train(selector, itertools.islice(epoch, done))
    file = io.BytesIO()
    state = {"selector": selector.state_dict(), "place": (sampler if make is plain else loader).state_dict()}
    torch.save(state, file)
    out = len(selector.in_flight)
    assert (out > 0) == (workers > 0 or (way is by_row_in_pieces and done * 2 % SIZE > 0))
    expected = train(selector, epoch) + train(selector, itertools.islice(iter(loader), 2))

    resumed = choose()
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed.load_state_dict(state["selector"])
    sampler, options = way(resumed)
    loader = make(num_workers=workers, **options)
    (sampler if make is plain else loader).load_state_dict(state["place"])
    assert train(resumed, iter(loader)) + train(resumed, itertools.islice(iter(loader), 2)) == expected
    assert len(expected) > 2
    if workers == 0:
        mine, theirs = resumed.state_dict(), selector.state_dict()
        assert mine["selections"] == theirs["selections"]
        assert torch.equal(resumed.posterior.success_rate(), selector.posterior.success_rate())


def test_states_kept_in_memory_stay_what_they_were() -> None:
    selector = choose()
    _, options = by_batch(selector)
    loader = stateful(num_workers=2, **options)
    epoch = iter(loader)
    train(selector, itertools.islice(epoch, 2))
    state, place = selector.state_dict(), loader.state_dict()
    expected = train(selector, itertools.islice(epoch, 4))
    del epoch
    selector.load_state_dict(state)
    loader.load_state_dict(place)
    assert train(selector, itertools.islice(iter(loader), 4)) == expected


def test_iterators_have_a_state_too() -> None:
    selector = choose()
    iterator = iter(PromptBatchSampler(selector))
    train(selector, itertools.islice(iterator, 2))
    state, place = selector.state_dict(), iterator.state_dict()
    expected = train(selector, iterator)
    resumed = choose()
    resumed.load_state_dict(state)
    again = iter(PromptBatchSampler(resumed))
    again.load_state_dict(place)
    assert train(resumed, again) == expected


def test_nothing_is_drawn_by_making_loaders_and_reading_states() -> None:
    selector = choose()
    sampler, options = by_batch(selector)
    loader = stateful(**options)
    iter(sampler)
    iter(loader)
    assert loader.state_dict() and sampler.state_dict() == {"yielded": 0}
    assert selector.state_dict()["selections"] == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("workers", [0, 2])
def test_epochs(way: Way, workers: int) -> None:
    selector = choose()
    sampler, options = way(selector)
    loader = plain(num_workers=workers, **options)
    for epoch in range(1, 3):
        rows = [row for batch in train(selector, iter(loader)) for row in batch]
        assert len(rows) == COUNT // SIZE * SIZE == len(sampler) * (SIZE if way is by_batch else 1)
        assert selector.state_dict()["selections"] == epoch * (COUNT // SIZE)
        assert len(selector.in_flight) == 0
    assert sampler.load_state_dict(sampler.state_dict()) is None
    assert len(train(selector, iter(loader))) == len(loader)  # the end of an epoch is the beginning of the next


def test_an_epoch_that_was_left_gives_its_picks_back() -> None:
    selector = choose()
    _, options = by_batch(selector)
    loader = plain(num_workers=2, **options)
    epoch = iter(loader)
    train(selector, itertools.islice(epoch, 1))
    assert len(selector.in_flight) == 4 * SIZE  # read ahead: two a worker
    del epoch
    epoch = iter(loader)
    train(selector, itertools.islice(epoch, 1))
    assert len(selector.in_flight) == 4 * SIZE


def test_an_epoch_that_ended_leaves_its_picks_out() -> None:
    """Asynchronous loops still roll out the last picks of an epoch when the next one begins."""
    selector = choose()
    sampler = PromptBatchSampler(selector, picks_per_epoch=2)
    first = list(sampler)
    second = next(iter(sampler))
    assert set(selector.in_flight.tolist()) == {row for pick in [*first, second] for row in pick}


def test_a_choice_of_on_shortage_is_kept() -> None:
    selector = choose(on_shortage="raise")
    sampler = PromptBatchSampler(selector, picks_per_epoch=9)
    with pytest.raises(bp.PromptShortage):
        list(sampler)
    assert len(list(PromptBatchSampler(choose(), picks_per_epoch=9))) == 9


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="selector must be a PromptSelector; got list"):
        PromptSampler([])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="picks_per_epoch must be at least 1; got 0"):
        PromptSampler(choose(), picks_per_epoch=0)
    with pytest.raises(TypeError, match="picks_per_epoch must be an integer; got float"):
        PromptSampler(choose(), picks_per_epoch=1.5)  # type: ignore[arg-type]
    sampler = PromptSampler(choose())
    for state in ({"yielded": 25}, {"yielded": -1}, {"yielded": 1.0}, {}):
        with pytest.raises(bp.CheckpointError, match=r"yielded must be an integer in \[0, 24\]"):
            sampler.load_state_dict(state)
        with pytest.raises(bp.CheckpointError, match=r"yielded must be an integer in \[0, 24\]"):
            iter(sampler).load_state_dict(state)
