"""PromptSelector: picking, what is in flight, threads, ids, metrics, checkpoints."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

import bayes_prompt as bp

RECIPES = ["uniform", "history_resampling", "mopps", "dps", "gps"]


def make(name: str = "dps", num_prompts: int = 40, batch_size: int = 6, **options: Any) -> bp.PromptSelector:
    if name == "gps":
        options.setdefault("embeddings", torch.linspace(-1, 1, num_prompts)[:, None] ** torch.arange(1.0, 4.0))
    return getattr(bp.recipes, name)(num_prompts=num_prompts, batch_size=batch_size, **options)


def outcome(index: torch.Tensor, step: int) -> torch.Tensor:
    """Rewards (B, 8) that are a function of prompt and step alone: prompt n succeeds in about n/40 of its rollouts."""
    generator = torch.Generator().manual_seed(step)
    return (torch.rand(40, 8, generator=generator)[index] < index[:, None] / 40).float()


def run(selector: bp.PromptSelector, steps: range) -> list[list[int]]:
    picks = []
    for step in steps:
        index = selector.select()
        picks.append(index.tolist())
        selector.update(index, outcome(index, step))
    return picks


def test_dps_finds_the_informative_prompts() -> None:
    """Against uniform picks on the same seeds: the variance p (1 - p) of a reward, in the last ten of thirty steps."""

    def gain(seed: int) -> float:
        found = {}
        for name in ("dps", "uniform"):
            rates = torch.tensor(run(make(name, seed=seed), range(30))[20:]) / 40
            found[name] = float((rates * (1 - rates)).mean())
        return found["dps"] - found["uniform"]

    gains = torch.tensor([gain(seed) for seed in range(8)])
    # Uniform picks have 1/6 on average, the best 1/4. The mean gain lies four of its standard errors above nothing.
    assert float(gains.mean()) > 4 * float(gains.std()) / 8**0.5


@pytest.mark.parametrize("recipe", RECIPES)
def test_picks_are_distinct_and_reproducible(recipe: str) -> None:
    first, again, other = (run(make(recipe, seed=seed), range(8)) for seed in (3, 3, 4))
    assert first == again != other
    assert all(len(set(pick)) == 6 for pick in first)


def test_prompts_in_flight_are_not_picked_again() -> None:
    selector = make()
    picked = [selector.select() for _ in range(6)]
    assert len(set(torch.cat(picked).tolist())) == 36
    assert selector.in_flight.tolist() == torch.cat(picked).tolist()
    with pytest.raises(bp.PromptShortage, match="6 prompts are wanted and 4 are free: 36 are in flight"):
        selector.select()
    assert selector.select(batch_size=4).numel() == 4
    selector.observe(picked[1], outcome(picked[1], 0))
    selector.release(picked[0])
    assert set(selector.select(batch_size=12).tolist()) == set(picked[0].tolist()) | set(picked[1].tolist())


def test_reuse_takes_the_longest_out_first(caplog: pytest.LogCaptureFixture) -> None:
    selector = make(on_shortage="reuse")
    picked = torch.cat([selector.select() for _ in range(6)])
    free = set(range(40)) - set(picked.tolist())
    seventh = selector.select()
    assert set(seventh[:4].tolist()) == free
    assert seventh[4:].tolist() == picked[:2].tolist()
    told = selector.explain(int(picked[0]))
    assert told["in_last_pick"] and "picked again only where too few others are left" in told["why"]
    assert "still in flight" in caplog.text and selector.metrics()["reused"] == 2
    twice = picked[:1]
    selector.observe(twice, outcome(twice, 0))
    assert int(twice) in selector.in_flight.tolist()  # its second outing
    selector.observe(twice, outcome(twice, 1))
    assert int(twice) not in selector.in_flight.tolist()


def test_shortage_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    selector = make(on_shortage="reuse")
    for _ in range(9):
        selector.select()
    assert sum(record.levelname == "WARNING" for record in caplog.records) == 1
    assert selector.metrics()["reused"] == 9 * 6 - 40


def test_allow_in_flight() -> None:
    selector = make(batch_size=40, allow_in_flight=True)
    assert sorted(selector.select().tolist()) == sorted(selector.select().tolist()) == list(range(40))


def test_candidates_narrow_the_pool() -> None:
    selector = make()
    index = selector.select(candidates=torch.arange(10, 17))
    assert set(index.tolist()) <= set(range(10, 17))
    mask = torch.zeros(40, dtype=torch.bool)
    mask[20:26] = True
    assert set(selector.select(candidates=mask).tolist()) == set(range(20, 26))
    with pytest.raises(ValueError, match=r"batch_size must lie in \[1, 5\], the size of the candidates given; got 6"):
        selector.select(candidates=[1, 2, 3, 4, 5, 5])
    with pytest.raises(bp.PromptShortage):
        selector.select(candidates=mask)


def test_prompts_that_were_not_picked_may_be_observed() -> None:
    selector = make()
    selector.update(torch.tensor([5, 7]), successes=[3, 8], trials=8)
    assert selector.posterior.visits[[5, 7]].tolist() == [1, 1]


def test_rewards_become_counts_at_the_threshold() -> None:
    selector = make(success_threshold=0.5)
    selector.update([0, 1], [[0.0, 0.49, 0.5, 1.0], [0.0, 0.1, 0.2, 0.3]])
    assert selector.metrics()["success_rate"] == 2 / 8
    assert selector.metrics()["effective_sample_ratio"] == 1 / 2
    picky = make(success_threshold=0.9)
    for dtype in (torch.float16, torch.float32, torch.float64):  # none of them holds 0.9, each its own neighbour of it
        picky.update([0], torch.tensor([[0.9, 0.8]], dtype=dtype))
        assert picky.metrics()["success_rate"] == 1 / 2
    picky.update([0], torch.tensor([[True, False]]))
    assert picky.metrics()["success_rate"] == 1 / 2


def test_ids_beside_rows() -> None:
    names = [("set", n) for n in range(40)]
    selector = make(ids=names)
    index = selector.select()
    assert selector.ids_of(index) == [names[n] for n in index]
    assert torch.equal(selector.rows_of(selector.ids_of(index)), index)
    selector.update(ids=selector.ids_of(index), rewards=outcome(index, 0))
    assert selector.in_flight.numel() == 0
    assert selector.explain(id=("set", 3))["prompt"] == 3
    with pytest.raises(IndexError, match=r"ids\[0\] = 'nobody' names no prompt"):
        selector.update(ids=["nobody"], rewards=[[1.0]])
    with pytest.raises(ValueError, match=r"ids\[1\] = 'a' is also ids\[0\]"):
        make(num_prompts=2, batch_size=1, ids=["a", "a"])
    dates = np.array(["2026-01-01", "2026-01-02"], "datetime64[ns]")
    assert make(num_prompts=2, batch_size=1, ids=dates).rows_of([dates[1]]).tolist() == [1]
    for unordered in ({"a", "b"}, iter("ab"), "ab", {"a": 0, "b": 1}, 2):
        with pytest.raises(TypeError, match="ids must be a sequence"):
            make(num_prompts=2, batch_size=1, ids=unordered)
    numbered = make(num_prompts=2, batch_size=1, ids=torch.tensor([7, 5]))
    assert numbered.rows_of([5]).tolist() == numbered.rows_of(torch.tensor([5])).tolist() == [1]
    with pytest.raises(ValueError, match=r"ids\[1\] = 7 is also ids\[0\]"):
        make(num_prompts=2, batch_size=1, ids=torch.tensor([7, 7]))


def test_explain_says_why() -> None:
    selector = make()
    index = selector.select()
    assert "in flight since selection 0" in selector.explain(int(index[0]))["why"]
    selector.update(index, outcome(index, 0))
    told = selector.explain(int(index[0]))
    assert told["in_last_pick"] and told["visits"] == 1 and told["in_flight_since"] is None
    other = next(n for n in range(40) if n not in index.tolist())
    assert "not in the last pick, whose lowest score was" in selector.explain(other)["why"]
    assert 1 <= told["rank"] <= 40
    with pytest.raises(IndexError, match=r"prompt = 40 must lie in \[0, 40\)"):
        selector.explain(40)
    with pytest.raises(TypeError, match="prompt must be an integer; got float"):
        selector.explain(1.5)


def test_metrics_are_flat_floats() -> None:
    selector = make()
    before = selector.metrics()
    assert "effective_sample_ratio" not in before and before["coverage"] == 0
    index = selector.select()
    expected = selector.posterior.informative_probability(8, index).mean()
    rewards = outcome(index, 0)
    selector.update(index, rewards)
    figures = selector.metrics()
    assert all(type(value) is float for value in figures.values())
    successes = rewards.sum(1)
    assert figures["effective_sample_ratio"] == pytest.approx(float(((successes > 0) & (successes < 8)).float().mean()))
    assert figures["predicted_effective_sample_ratio"] == pytest.approx(float(expected))
    assert figures["coverage"] == pytest.approx(6 / 40)
    assert (figures["visits_min"], figures["visits_median"], figures["visits_max"]) == (0, 0, 1)
    assert figures["pool_success_rate"] == pytest.approx(float(selector.posterior.success_rate().mean()))
    assert (figures["groups"], figures["rollouts"], figures["step"]) == (6, 48, 1)
    selector.advance()
    assert selector.metrics()["effective_sample_ratio"] == figures["effective_sample_ratio"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_resumed_selector_continues_bit_for_bit(recipe: str, tmp_path: Path) -> None:
    unbroken, broken = make(recipe, seed=9), make(recipe, seed=9)
    run(unbroken, range(5))
    run(broken, range(5))
    unbroken.observe([1, 2], successes=[3, 8], trials=8)  # buffered counts are part of the state
    broken.observe([1, 2], successes=[3, 8], trials=8)
    broken.save(tmp_path / "selector.safetensors")
    resumed = make(recipe, seed=9)
    resumed.load(tmp_path / "selector.safetensors")
    assert run(unbroken, range(5, 12)) == run(resumed, range(5, 12))
    assert same(unbroken.state_dict(), resumed.state_dict())
    assert unbroken.metrics() == resumed.metrics()


def test_picks_that_were_out_are_redrawn_identically(tmp_path: Path) -> None:
    path = tmp_path / "selector.safetensors"
    selector = make()
    run(selector, range(3))
    out = [selector.select(), selector.select()]
    selector.observe(out[0][:2], outcome(out[0][:2], 3))
    selector.save(path)
    after = selector.select()
    redrawn = make()
    redrawn.load(path)
    waiting = out[0][2:].tolist() + out[1].tolist()
    assert redrawn.select().tolist() == waiting[:6]
    assert redrawn.select(batch_size=4).tolist() == waiting[6:]
    assert redrawn.select().tolist() == after.tolist()
    released = make()
    released.load(path, in_flight="release")
    assert released.in_flight.numel() == 0
    kept = make()
    kept.load(path, in_flight="keep")
    assert kept.in_flight.tolist() == waiting
    assert kept.select().tolist() == after.tolist()
    arrived = make()
    arrived.load(path)
    arrived.observe(out[1], outcome(out[1], 4))  # whoever comes back by itself is not redrawn
    assert arrived.select(batch_size=4).tolist() == out[0][2:].tolist()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(["select", "observe", "advance", "release"]), max_size=12), st.integers(0, 11))
def test_resuming_anywhere_changes_nothing(calls: list[str], cut: int) -> None:
    unbroken = resumed = make(on_shortage="reuse")
    for position, call in enumerate(calls):
        if position == cut:
            resumed = make(on_shortage="reuse")
            resumed.load_state_dict(unbroken.state_dict(), in_flight="keep")
        for selector in {id(unbroken): unbroken, id(resumed): resumed}.values():
            out = selector.in_flight[:6]
            if call == "select":
                selector.select()
            elif call == "observe" and out.numel():
                selector.observe(out, outcome(out, position))
            elif call == "release" and out.numel():
                selector.release(out)
            elif call == "advance":
                selector.advance()
    assert same(unbroken.state_dict(), resumed.state_dict())


def test_one_thread_prefetches_while_another_observes() -> None:
    selector = make("mopps", num_prompts=400, batch_size=8)
    picked: list[torch.Tensor] = []
    ready, failures = threading.Semaphore(0), []

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def body() -> None:
            try:
                work()
            except Exception as error:
                failures.append(error)

        return body

    def prefetch() -> None:
        for _ in range(40):
            picked.append(selector.select())
            ready.release()

    def observe() -> None:
        for step in range(40):
            assert ready.acquire(timeout=60)
            selector.update(picked[step], torch.zeros(8, 4))

    threads = [threading.Thread(target=guarded(work)) for work in (prefetch, observe)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not failures
    assert selector.in_flight.numel() == 0
    assert selector.metrics()["groups"] == 320 and selector.posterior.step == 40


@pytest.mark.parametrize("method", ["dps", "mopps"])
def test_a_first_pick_under_inference_mode_does_no_harm(method: str) -> None:
    selector, twin = (getattr(bp.recipes, method)(num_prompts=60, batch_size=8) for _ in range(2))
    with torch.inference_mode():
        picked = selector.select()
    assert picked.tolist() == twin.select().tolist()
    for each in (selector, twin):
        each.update(picked.tolist(), successes=[1] * 8, trials=8)
    assert selector.select().tolist() == twin.select().tolist()


def test_an_acquisition_of_ones_own_that_changes_scores_is_heard() -> None:
    class Easy(bp.acquisition.PartialProbability):
        def scores(self, posterior: bp.Posterior, seed: int, step: int) -> torch.Tensor:
            scores = super().scores(posterior, seed, step).clone()
            scores[:50] = -1
            return scores

    class Near(bp.acquisition.TargetSuccessRate):
        def scores(self, posterior: bp.Posterior, seed: int, step: int) -> torch.Tensor:
            scores = super().scores(posterior, seed, step).clone()
            scores[:50] = -1
            return scores

    for method, acquisition in (("dps", Easy()), ("mopps", Near())):
        posterior = getattr(bp.recipes, method)(num_prompts=60, batch_size=8).posterior
        selector = bp.PromptSelector(posterior, acquisition, 8)
        assert min(selector.select().tolist()) >= 50


def test_group_sizes_that_change_from_step_to_step_change_the_scores() -> None:
    """What is kept for the next pick is of the group size that the next pick will have."""
    emission = bp.PartitionEmission([0.0, 0.3, 0.7, 1.0])
    selector = bp.PromptSelector(
        bp.SolvingProgress(emission=emission).posterior(50), bp.acquisition.PartialProbability(), 4, seed=1
    )
    for step, trials in enumerate([8, 2, 2, 5, 8, 8]):
        picked = selector.select()
        selector.update(picked, successes=[step % 2] * 4, trials=trials)
        kept, _ = selector.acquisition.ranking(selector.posterior, 0, 0, bp.acquisition.Batch(4))
        assert torch.equal(kept, selector.posterior.informative_probability(trials))
