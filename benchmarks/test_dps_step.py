"""One whole step of DPS (update with 256 groups of 8, then select 256) at 40,000 prompts, three ways in one run.

make bench
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from peers import DictOfArrays, Ints, Vectorised

import bayes_prompt as bp

N, B, G, DECAY = 40_000, 256, 8, 0.7
RATES = np.random.default_rng(0).beta(0.5, 0.5, N)


def rollouts(index: Ints, step: int) -> Ints:
    return np.random.default_rng([step, 1]).binomial(G, RATES[index])


class Ours:
    """The selector as a trainer calls it."""

    def __init__(self, num_prompts: int, decay: float, **options: Any) -> None:
        self.selector = bp.recipes.dps(num_prompts=num_prompts, batch_size=B, decay=decay, **options)

    def update(self, index: Ints, successes: Ints, trials: int) -> None:
        self.selector.update(index, successes=successes, trials=trials)

    def select(self, batch_size: int, rng: np.random.Generator) -> Ints:
        return self.selector.select().numpy()

    def beliefs(self) -> np.ndarray:
        return self.selector.posterior.belief.double().numpy()


WAYS: dict[str, Callable[[], Any]] = {
    "bayes_prompt": lambda: Ours(N, DECAY),
    "numpy float64": lambda: Vectorised(N, DECAY),
    "dict of arrays": lambda: DictOfArrays(N, DECAY),
}


def test_the_three_ways_agree() -> None:
    """A time is worth nothing unless the beliefs are the same: float32 against float64 over three steps."""
    made = {name: make() for name, make in WAYS.items()}
    for step in range(3):
        index = np.random.default_rng(step).choice(N, B, replace=False)
        for way in made.values():
            way.update(index, rollouts(index, step), G)
    exact = made["dict of arrays"].beliefs()
    np.testing.assert_allclose(made["numpy float64"].beliefs(), exact, atol=1e-14)
    np.testing.assert_allclose(made["bayes_prompt"].beliefs(), exact, atol=5e-6)


@pytest.mark.benchmark(group=f"one DPS step, {N} prompts, {B} x {G} rollouts")
@pytest.mark.parametrize("name", WAYS)
def test_step(benchmark: Any, name: str) -> None:
    way, rng, steps = WAYS[name](), np.random.default_rng(0), iter(range(1_000_000))
    picked = way.select(B, rng)

    def step() -> None:
        nonlocal picked
        way.update(picked, rollouts(picked, next(steps)), G)
        picked = way.select(B, rng)

    quick = name != "dict of arrays"
    benchmark.extra_info["torch_threads"] = torch.get_num_threads()
    benchmark.pedantic(step, rounds=50 if quick else 5, iterations=1, warmup_rounds=3 if quick else 1)
