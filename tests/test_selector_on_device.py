"""A selector that lives on a device: the same picks as on the host, and nobody waits for the device.

Without a GPU the same code runs on CPU tensors, told that they must not be waited for.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import bayes_prompt as bp
from bayes_prompt.models import checks as model_checks
from bayes_prompt.posteriors import checks, evidence

N, B, G = 60, 8, 4
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ["triton"] if DEVICE == "cuda" else ["cpu", "triton"]
WAITS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique", "equal", "_unique2", "unique_dim")


class NothingWaits(TorchDispatchMode):
    """Fails at an operation whose result, or its shape, the host has to wait for."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        assert name not in WAITS, f"{name} waits for the device"
        return function(*args, **(kwargs or {}))


@contextmanager
def nobody_waits() -> Iterator[None]:
    with NothingWaits():
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")


def make(method: str, backend: str, **options: Any) -> bp.PromptSelector:
    """A selector on the device."""
    settings: dict[str, Any] = dict(num_prompts=N, batch_size=B, seed=5, device=DEVICE, backend=backend, **options)
    selector = getattr(bp.recipes, method)(**settings)
    if DEVICE == "cpu":  # which is to be taken for one
        selector.posterior.on_device = True
        selector.posterior.defers_checks = lambda index: isinstance(index, Tensor)
    return selector


def on_the_host(method: str, backend: str, **options: Any) -> bp.PromptSelector:
    if DEVICE == "cuda":  # where kernels of Triton are compiled, they take tensors of the device alone
        backend = "cpu"
    return getattr(bp.recipes, method)(num_prompts=N, batch_size=B, seed=5, backend=backend, **options)


def rewards_of(index: Tensor, step: int) -> Tensor:
    g = torch.Generator().manual_seed(step)
    rates = torch.linspace(0, 1, N)[index.cpu()]
    return (torch.rand(len(index), G, generator=g) < rates[:, None]).float()


def on_the_device(rows: Tensor, values: Tensor) -> tuple[Any, Any]:
    return rows.to(DEVICE), values.to(DEVICE)


def on_the_host_too(rows: Tensor, values: Tensor) -> tuple[Any, Any]:
    """Lists, of which `make` says that they are checked where they are."""
    return rows.tolist(), values.tolist()


@pytest.mark.parametrize("given", [on_the_device, on_the_host_too, "in turn"])
@pytest.mark.parametrize("allow_in_flight", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["dps", "mopps", "uniform", "history_resampling"])
def test_picks_are_those_of_the_host(method: str, backend: str, allow_in_flight: bool, given: Any) -> None:
    """Asynchronous rollouts: groups come back late, twice, unasked, and sometimes never."""
    here, there = on_the_host(method, backend), make(method, backend)
    ways = itertools.cycle([on_the_device, on_the_host_too] if given == "in turn" else [given])
    for selector in (here, there):
        selector.allow_in_flight = allow_in_flight
    waiting: list[Tensor] = []
    for step in range(12):
        picks = here.select(), there.select()
        assert picks[0].tolist() == picks[1].tolist()
        waiting.append(picks[0])
        if step % 3 == 0:
            back = torch.cat([waiting.pop(0), torch.tensor([step, step])])
            rewards = rewards_of(back, step)
            here.observe(back, rewards)
            there.observe(*next(ways)(back, rewards))
        if step == 7:
            lost = waiting.pop(0)
            lost = lost[torch.isin(lost, here.in_flight)]
            here.release(lost)
            there.release(lost.to(DEVICE))
        if len(waiting) > 4:
            late = waiting.pop(0)
            here.update(late, rewards_of(late, step))
            there.update(*next(ways)(late, rewards_of(late, step)))
        else:
            here.advance()
            there.advance()
        if step % 5 == 4:  # now and then the host asks
            assert here.metrics() == pytest.approx(there.metrics(), rel=1e-6)
            assert here.outings.tolist() == there.outings.tolist()
            assert torch.equal(here._books.in_flight.available, there._books.in_flight.available.cpu())
    assert here.selections == there.selections
    twin = copy.deepcopy(there)
    assert twin.select().tolist() == here.select().tolist()


@pytest.mark.parametrize("method", ["dps", "mopps"])
def test_nothing_in_the_training_loop_waits(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":  # what reads CPU tensors alone to check them
        monkeypatch.setattr(model_checks, "counts", lambda successes, trials: (successes, trials))
        monkeypatch.setattr(checks, "group_sizes", lambda name, trials, size: trials)
        monkeypatch.setattr(evidence, "check_table", lambda *arguments: None)
    selector = make(method, "triton")
    given = [rewards_of(torch.arange(B), step).to(DEVICE) for step in range(6)]
    selector.update(selector.select(), given[0])  # what is done once may wait: tables are moved to the device
    selector.select()
    for rewards in given:
        with nobody_waits():
            index = selector.select()
            selector.observe(index, rewards)
            selector.advance()
    assert selector.metrics()["groups"] == B * 7


EMISSIONS = {
    "published": bp.models.emission.PublishedEmission,
    "beta_binomial": lambda: bp.BetaBinomialEmission(dist.Beta(torch.tensor([1.0, 9.0]), torch.tensor([9.0, 1.0]))),
    "partition": lambda: bp.PartitionEmission([0.0, 0.0, 0.3, 1.0]),
}


@pytest.mark.parametrize("emission", EMISSIONS)
def test_no_emission_waits_for_counts_on_a_device(emission: str) -> None:
    """Of tensors without values nothing can be read."""
    law = EMISSIONS[emission]()
    trials = torch.full((7,), 500, device="meta")
    for table in (law.event_log_likelihood(trials, trials), law.log_likelihood(trials, trials)):
        assert table.shape == (7, law.num_states)
        assert table.device.type == "meta"
    assert law.count_correction(trials, trials).device.type == "meta"
    with pytest.raises(RuntimeError):  # as anything would that reads them
        bool((trials == 500).all())


def test_a_pool_that_may_run_short_is_looked_at() -> None:
    """54 of 60 may be out, so that whether 8 are left is not known before the device is asked."""
    selector = make("dps", BACKENDS[0])
    picks = [selector.select() for _ in range(6)]
    assert len(set(torch.cat(picks).tolist())) == 6 * B
    selector.observe(picks[0], rewards_of(picks[0], 0).to(DEVICE))
    assert len(selector.select()) == B
    with pytest.raises(bp.PromptShortage):
        for _ in range(3):
            selector.select()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["dps", "mopps"])
def test_a_mask_on_the_device_is_not_read(method: str, backend: str) -> None:
    here, there = on_the_host(method, backend), make(method, backend)
    g = torch.Generator().manual_seed(1)
    there.select(torch.ones(N, dtype=torch.bool, device=DEVICE))  # what is done once may wait
    here.select()
    for step in range(5):
        mask = torch.rand(N, generator=g) < 0.8
        there_mask = mask.to(DEVICE)
        with nobody_waits():
            index = there.select(there_mask)
        assert here.select(mask).tolist() == index.tolist()
        for selector in (here, there):
            selector.update(index.tolist(), rewards_of(index, step))
    assert here.outings.tolist() == there.outings.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mask_that_leaves_too_few_is_told_later(backend: str) -> None:
    selector = make("dps", backend)
    few = torch.zeros(N, dtype=torch.bool, device=DEVICE)
    few[[3, 50]] = True
    picked = selector.select(few)
    assert sorted(picked.tolist()) == [-1] * (B - 2) + [3, 50]
    with pytest.raises(bp.PromptShortage, match=f"short of {B - 2} prompts"):
        selector.metrics()
    assert sorted(selector.in_flight.tolist()) == [3, 50]
    twin = make("dps", backend)
    twin.load_state_dict(selector.state_dict(), in_flight="keep")  # a pick that was short spoils no checkpoint
    assert twin.select().tolist() == selector.select().tolist()
    selector.release(selector._books.last_pick.cpu())
    with pytest.raises(ValueError, match=r"a candidates mask must have shape \(60,\); got \(59,\)"):
        selector.select(few[1:])
    selector.observe([3, 50], rewards_of(torch.tensor([3, 50]), 0))
    assert not len(selector.in_flight)
    selector.on_shortage = "reuse"  # which has to know
    with pytest.raises(ValueError, match="batch_size must lie in"):
        selector.select(few)


def test_bad_input_is_told_when_the_host_asks() -> None:
    selector = make("dps", BACKENDS[0])
    index = selector.select()
    rewards = rewards_of(index, 0)
    selector.observe(torch.tensor([1, N], device=DEVICE), rewards[:2].to(DEVICE))
    with pytest.raises(IndexError, match=rf"index\[1\] = {N} of an earlier call"):
        selector.metrics()
    assert selector.outings[:, 1].tolist() == index.tolist()  # nobody has landed
    selector.observe(index, torch.full((B, G), torch.nan, device=DEVICE))
    with pytest.raises(ValueError, match=r"rewards\[0\] of an earlier call"):
        selector.metrics()

    class Broken(bp.acquisition.Uniform):
        def scores(self, posterior: bp.Posterior, seed: int, step: int) -> Tensor:
            return torch.full((N,), torch.nan, device=DEVICE)

    selector.acquisition = Broken()
    index = selector.select()
    selector.update(index.tolist(), successes=[1] * B, trials=G)  # of the host: not the place to tell it
    with pytest.raises(ValueError, match="gave the score NaN"):
        selector.metrics()
    assert selector.metrics()["groups"] == B  # it was learned once


def test_a_loaded_state_is_scored_by_its_own_group_size() -> None:
    there, fresh = make("dps", BACKENDS[0]), make("dps", BACKENDS[0])
    for selector, trials in ((there, 8), (fresh, 1)):
        index = selector.select()
        selector.update(index, successes=torch.ones(B, dtype=torch.int64), trials=trials)
        selector.select()
    state = fresh.state_dict()
    there.load_state_dict(state, in_flight="release")
    fresh.load_state_dict(state, in_flight="release")
    assert there.select().tolist() == fresh.select().tolist()
    kept, _ = there.acquisition.ranking(there.posterior, 0, 0, bp.acquisition.Batch(B))
    assert not bool(kept.any())  # a group of one is never mixed
