"""What play reports of a selector in a world, and the worlds that have names."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import bayes_prompt as bp
from bayes_prompt import simulate

LEVEL = 1e-6  # of each test of a law: a correct one fails once in a million times
N = 40


def test_play_reports_what_happened(full_world: simulate.World) -> None:
    """Against the same run, stepped through by hand with a second selector of the same seed."""
    methods = [simulate.recipe("mopps", decay=1.0)(full_world, 4) for _ in range(2)]
    figures = simulate.play(full_world, methods[0], seed=9)
    run, seen = full_world.start(9), set()
    for step in range(full_world.steps):
        rates, belief = run.rates().numpy(), methods[1].posterior.informative_probability(8).double().numpy()
        true = 1 - stats.binom.pmf(0, 8, rates) - stats.binom.pmf(8, 8, rates)
        belief = np.clip(belief, 1e-6, 1 - 1e-6)
        loss = -(true * np.log(belief) + (1 - true) * np.log(1 - belief)).mean()
        assert float(figures.log_loss[step]) == pytest.approx(loss, rel=1e-9)
        assert float(figures.mean_rate[step]) == pytest.approx(rates.mean(), rel=1e-12)
        assert float(figures.best_ratio[step]) == pytest.approx(np.sort(true)[-8:].mean(), rel=1e-12)
        index = methods[1].select()
        counts = run.roll_out(index)
        assert float(figures.effective_sample_ratio[step]) == float(((counts > 0) & (counts < 8)).double().mean())
        methods[1].update(index, successes=counts, trials=8)
        run.learn(index, counts)
        seen |= set(index.tolist())
    assert float(figures.mean_rate[-1]) == pytest.approx(float(run.rates().mean()), rel=1e-12)
    assert figures.coverage == len(seen) / N
    summary = figures.summary()
    assert summary["second_half"] == pytest.approx(float(figures.effective_sample_ratio[6:].mean()))
    assert summary["log_loss"] == pytest.approx(float(figures.log_loss[5:].mean()))
    assert (summary["first_rate"], summary["last_rate"]) == (float(figures.mean_rate[0]), float(figures.mean_rate[-1]))


def test_rollouts_until_a_rate_is_reached() -> None:
    world = simulate.World(30, dist.Normal(0.0, 1.0), learning=simulate.Growth(0.3), batch_size=10, steps=20)
    figures = simulate.play(world, simulate.recipe("uniform")(world, 0))
    start = float(figures.mean_rate[0])
    assert figures.rollouts_until(start) == 0
    assert figures.rollouts_until(1.0) is None
    target = float(figures.mean_rate[7])
    first = next(step for step, rate in enumerate(figures.mean_rate.tolist()) if rate >= target)
    assert figures.rollouts_until(target) == first * 10 * 8
    assert bool((figures.mean_rate.diff() >= 0).all())  # nothing is forgotten here


def test_play_of_one_step_and_of_another_batch_size(full_world: simulate.World) -> None:
    selector = bp.recipes.uniform(num_prompts=N, batch_size=3)
    figures = simulate.play(full_world, selector, steps=1)
    assert figures.rollouts.tolist() == [24.0]
    assert figures.summary()["log_loss"] == float(figures.log_loss[0])


def test_play_refuses_what_does_not_fit(full_world: simulate.World) -> None:
    with pytest.raises(ValueError, match="selector has 5 prompts, but the world has 40"):
        simulate.play(full_world, bp.recipes.uniform(num_prompts=5, batch_size=2))
    with pytest.raises(TypeError, match="selector must be a PromptSelector; got str"):
        simulate.play(full_world, "dps")  # type: ignore[arg-type]
    selector = bp.recipes.uniform(num_prompts=N, batch_size=2)
    with pytest.raises(ValueError, match="steps must be at least 1; got 0"):
        simulate.play(full_world, selector, steps=0)
    assert selector.selections == 0
    for name in ("no_such", "_selector", "PromptSelector", "Options", "math"):
        with pytest.raises(ValueError, match="name must be that of a recipe"):
            simulate.recipe(name)
    with pytest.raises(ValueError, match="covariates must be 'groups' or 'embeddings'; got 'texts'"):
        simulate.recipe("gps", "texts")


def test_judging_gives_a_table(full_world: simulate.World) -> None:
    small = {"a": replace(full_world, steps=3), "b": replace(full_world, steps=2)}
    methods = {"uniform": simulate.recipe("uniform"), "dps": simulate.recipe("dps", decay=0.5)}
    results = simulate.judge(methods, small, seeds=2)
    alone = simulate.play(small["b"], bp.recipes.dps(num_prompts=N, batch_size=8, seed=1, decay=0.5), seed=1)
    assert torch.equal(results["b"]["dps"][1].effective_sample_ratio, alone.effective_sample_ratio)
    lines = simulate.table(results).splitlines()
    assert lines[0] == "| effective_sample_ratio | uniform | dps |"
    mean = sum(each.summary()["effective_sample_ratio"] for each in results["a"]["uniform"]) / 2
    assert lines[2].startswith(f"| a | {mean:.3f} | ")
    assert len(lines) == 4
    partial = simulate.table({"c": {"uniform": results["a"]["uniform"]}, **results}, "coverage").splitlines()
    assert partial[2].endswith(" |  |")  # dps did not play there
    assert len(partial) == 5


def test_a_recipe_may_be_told_what_the_world_knows(full_world: simulate.World, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {}

    def informed(**arguments: object) -> str:
        told.update(arguments)
        return "selector"

    informed.__module__ = "bayes_prompt.recipes"
    monkeypatch.setattr(bp.recipes, "gps", informed)
    assert simulate.recipe("gps", "embeddings", "groups", size="base")(full_world, 3) == "selector"
    assert told.pop("embeddings") is full_world.embeddings
    assert told.pop("groups") is full_world.groups
    assert told == {"num_prompts": N, "batch_size": 8, "seed": 3, "size": "base"}


def test_a_recipe_that_asks_is_told_how_long_the_world_is(full_world: simulate.World) -> None:
    told = simulate.recipe("best")(full_world, 0).acquisition
    assert told == bp.recipes.best(num_prompts=N, batch_size=8, num_steps=full_world.steps).acquisition
    assert simulate.recipe("best", num_steps=None)(full_world, 0).acquisition != told


# The named worlds


@cache
def ratio(name: str, method: str, seed: int) -> float:
    """Effective sample ratio of the first 30 steps."""
    world, told = simulate.WORLDS[name], {"uniform": {}, "dps": {"decay": 0.5}}[method]
    figures = simulate.play(world, simulate.recipe(method, **told)(world, seed), steps=30, seed=seed)
    return figures.summary()["effective_sample_ratio"]


def test_the_named_worlds_are_those_that_a_recipe_is_to_be_judged_by() -> None:
    worlds = simulate.WORLDS
    assert set(worlds) == {
        *("fast learning", "forgetting", "mostly unsolved", "mostly solved", "batch 1%", "batch 30%"),
        *("4 rollouts", "16 rollouts", "families", "text"),
    }
    assert (worlds["batch 1%"].batch_size / worlds["batch 1%"].num_prompts) == 0.01
    assert (worlds["batch 30%"].batch_size / worlds["batch 30%"].num_prompts) == 0.3
    assert (worlds["4 rollouts"].trials, worlds["16 rollouts"].trials) == (4, 16)
    assert worlds["families"].groups is not None
    assert worlds["text"].embeddings is not None
    unsolved, solved = (worlds[name].start(0).rates() for name in ("mostly unsolved", "mostly solved"))
    assert float((unsolved < 0.1).double().mean()) > 0.5 < float((solved > 0.9).double().mean())


@pytest.mark.parametrize("name", simulate.WORLDS)
def test_named_worlds_tell_methods_apart(name: str) -> None:
    """Uniform picks waste some rollouts and not all; a method that learns wastes visibly fewer."""
    uniform = ratio(name, "uniform", 0)
    assert 0.1 < uniform < 0.6
    assert ratio(name, "dps", 0) > uniform + 0.05
