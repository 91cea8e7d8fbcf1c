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


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [plain, stateful])
def test_resuming_again_and_again(make: Callable[..., Any], way: Way) -> None:
    """Each time before all that the workers had read ahead was trained on."""

    def start(selector: bp.PromptSelector) -> tuple[Any, Any]:
        sampler, options = way(selector)
        loader = make(num_workers=2, **options)
        return loader, sampler if make is plain else loader

    selector = choose()
    loader, place = start(selector)
    expected = train(selector, iter(loader))
    assert len(expected) == len(loader)
    selector = choose()
    loader, place = start(selector)
    seen = train(selector, itertools.islice(iter(loader), 1))
    while len(seen) < len(expected):
        other = choose()
        other.load_state_dict(selector.state_dict())
        loader, again = start(other)
        again.load_state_dict(place.state_dict())
        selector, place = other, again
        seen += train(selector, itertools.islice(iter(loader), 2))
    assert seen == expected


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
    assert loader.state_dict() and sampler.state_dict() == {"drawn": 0, "selections": 0}
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


class Ahead:
    """An asynchronous run: `ahead` batches are out beyond the one that is trained on, across the ends of epochs."""

    def __init__(self, selector: bp.PromptSelector, sampler: Any, ahead: int) -> None:
        self.selector, self.sampler, self.ahead = selector, sampler, ahead
        self.epoch: Iterator[Any] = iter(())
        self.queue: list[list[int]] = []

    def train(self, count: int) -> list[list[int]]:
        seen = []
        for _ in range(count):
            while len(self.queue) <= self.ahead:
                batch = next(self.epoch, None)
                if batch is None:
                    self.epoch = iter(self.sampler)
                    continue
                self.queue.append(batch)
            rows = self.queue.pop(0)
            self.selector.update(rows, successes=[row % 3 for row in rows], trials=2)
            seen.append(rows)
        return seen


def small(count: int, size: int, picks: int | None = None) -> tuple[bp.PromptSelector, PromptBatchSampler]:
    selector = bp.recipes.dps(num_prompts=count, batch_size=size, seed=0)
    return selector, PromptBatchSampler(selector, picks_per_epoch=picks)


def resumed(selector: bp.PromptSelector, sampler: PromptBatchSampler) -> tuple[bp.PromptSelector, PromptBatchSampler]:
    """A new process, restored from the states of this one."""
    other, again = small(selector.num_prompts, selector.batch_size, sampler.picks_per_epoch)
    other.load_state_dict(selector.state_dict())
    again.load_state_dict(sampler.state_dict())
    return other, again


@pytest.mark.parametrize(("count", "size"), [(4, 3), (4, 4), (5, 3), (30, 3)])
@pytest.mark.parametrize("ahead", [1, 2, 3])
@pytest.mark.parametrize("done", [1, 2, 5, 6, 7])
def test_resuming_reads_ahead_again_however_small_the_pool(count: int, size: int, ahead: int, done: int) -> None:
    """Prompts are out several times, and with an epoch of 6 picks some of those out are of the epoch before."""
    selector, sampler = small(count, size, 6)
    run = Ahead(selector, sampler, ahead)
    run.train(done)
    assert len(selector.outings) == ahead * size
    other, again = resumed(selector, sampler)
    third, last = resumed(other, again)  # before anything is drawn
    expected = run.train(9)
    run = Ahead(other, again, ahead)
    head = run.train(2)
    assert head == expected[:2]
    fourth, newest = resumed(other, again)
    assert head + run.train(7) == expected
    assert Ahead(third, last, ahead).train(9) == expected
    assert head + Ahead(fourth, newest, ahead).train(7) == expected


def test_a_resumed_pass_is_as_long_as_what_was_left() -> None:
    """With picks of the epoch before still out, of which one is observed in part."""
    selector, sampler = small(40, 2, 4)
    first = list(sampler)
    epoch = iter(sampler)
    second = [next(epoch)]
    selector.observe(first[0], successes=[1, 1], trials=2)
    selector.observe(first[2][:1], successes=[1], trials=2)
    _, again = resumed(selector, sampler)
    assert list(again) == [first[1], first[2][1:], first[3], *second, *epoch]
    assert len(list(again)) == len(again) == 4


def test_the_picks_of_others_do_not_count() -> None:
    selector, sampler = small(40, 4, 5)
    foreign = [selector.select(batch_size=3).tolist()]
    epoch = iter(sampler)
    for _ in range(2):
        selector.update(next(epoch), successes=[1] * 4, trials=2)
    ahead = [next(epoch)]
    foreign.append(selector.select(batch_size=3).tolist())
    other, again = resumed(selector, sampler)
    third, last = resumed(selector, sampler)
    rest = list(epoch)
    assert len(rest) == 2
    # Nobody else comes for them, so that they come first and beyond the pass; and one who does gets them.
    assert list(again) == [foreign[0], *ahead, foreign[1], *rest]
    assert third.select(batch_size=3).tolist() == foreign[0]
    assert list(last) == [*ahead, foreign[1], *rest]
    assert torch.equal(other.outings, selector.outings)


def test_others_may_ask_for_their_picks_in_between() -> None:
    selector, sampler = small(40, 3, 4)
    epoch = iter(sampler)
    ahead = [next(epoch)]
    foreign = selector.select(batch_size=2).tolist()
    ahead += [*epoch]
    other, again = resumed(selector, sampler)
    epoch = iter(again)
    assert next(epoch) == ahead[0]
    assert other.select(batch_size=2).tolist() == foreign
    assert list(epoch) == ahead[1:]


@pytest.mark.parametrize("drawn", [1, 4])
def test_picks_that_are_kept_are_not_waited_for(drawn: int) -> None:
    """A caller who still has what was out resumes with in_flight="keep": the pass goes on behind it."""
    selector, sampler = small(40, 3, 4)
    epoch = iter(sampler)
    first = [next(epoch) for _ in range(drawn)]
    selector.observe(first[0][:1], successes=[1], trials=2)
    other, again = small(40, 3, 4)
    other.load_state_dict(selector.state_dict(), in_flight="keep")
    again.load_state_dict(sampler.state_dict())
    assert list(again) == (list(epoch) or list(sampler))


def test_leaving_an_epoch_leaves_the_picks_of_others_out() -> None:
    selector, sampler = small(4, 3, 4)
    selector.select(batch_size=4)
    next(iter(sampler))
    assert len(selector.outings) == 4 + 3
    next(iter(sampler))
    assert len(selector.outings) == 4 + 3


def test_prompts_that_were_observed_are_not_waited_for() -> None:
    """Rewards that come in after a resume, and before their prompts are handed out again."""
    selector, sampler = small(40, 2, 4)
    picks = list(sampler)
    other, again = resumed(selector, sampler)
    epoch = iter(again)
    assert next(epoch) == picks[0]
    other.observe([*picks[1], picks[2][0], *picks[3]], successes=[1] * 5, trials=2)
    assert list(epoch) == [picks[2][1:]]


def test_after_a_shortage_an_epoch_begins_or_resumes() -> None:
    selector = bp.recipes.dps(num_prompts=4, batch_size=2, on_shortage="raise")
    sampler = PromptBatchSampler(selector)
    everything = selector.select(batch_size=4)
    for _ in range(2):
        with pytest.raises(bp.PromptShortage):
            next(iter(sampler))
    selector.release(everything)
    first = next(iter(sampler))
    selector.update(first, successes=[1, 1], trials=2)

    sampler.load_state_dict(sampler.state_dict())
    everything = selector.select(batch_size=4)
    with pytest.raises(bp.PromptShortage):
        for _ in iter(sampler):
            pass
    selector.release(everything)
    assert len(list(sampler)) == 1  # the second of two


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
    for drawn in (25, -1, 1.0, True, None):
        with pytest.raises(bp.CheckpointError, match=r"drawn must be an integer in \[0, 24\]"):
            sampler.load_state_dict({"drawn": drawn, "selections": 0})
        with pytest.raises(bp.CheckpointError, match=r"drawn must be an integer in \[0, 24\]"):
            iter(sampler).load_state_dict({"drawn": drawn, "selections": 0})
    for selections in (-1, 1.0, True, None):
        with pytest.raises(bp.CheckpointError, match="selections must be an integer of at least 0"):
            sampler.load_state_dict({"drawn": 3, "selections": selections})


def test_an_endless_pass_remembers_only_what_is_out() -> None:
    selector = choose()
    epoch = iter(PromptBatchSampler(selector, picks_per_epoch=10**9))
    for _ in range(50):
        rows = next(epoch)
        selector.update(rows, successes=[1] * SIZE, trials=2)
    assert len(epoch.outings) <= 2 * SIZE


def test_a_sampler_that_cannot_be_made_leaves_its_selector_alone() -> None:
    selector = choose()
    with pytest.raises(ValueError, match="picks_per_epoch must be at least 1"):
        PromptSampler(selector, picks_per_epoch=0)
    assert selector.on_shortage is None
