"""A selector in a world, and what came of it."""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from bayes_prompt import recipes
from bayes_prompt.posteriors import checks
from bayes_prompt.selector import PromptSelector
from bayes_prompt.simulate.world import World

Method: TypeAlias = Callable[[World, int], PromptSelector]
"""Makes the selector that is to play a world under a seed."""

FIRST_JUDGED = 5  # the step from which on beliefs are judged: before, nobody can know
SURE = 1e-6  # a belief in P(informative) is taken to be no nearer to 0 or 1


@dataclass(frozen=True, eq=False)
class Figures:
    """What a selector did in T steps of a world. Tensors are float64."""

    effective_sample_ratio: Tensor  # (T,) share of the batch with 0 < successes < trials
    best_ratio: Tensor  # (T,) what the best pick of the same size could expect, given the true rates of that moment
    mean_rate: Tensor  # (T + 1,) mean true success rate of the pool: before every step, and at the end
    log_loss: Tensor  # (T,) of the belief in P(informative) over the pool, in expectation under the true rates
    rollouts: Tensor  # (T,) spent in each step
    coverage: float  # share of the pool that was ever picked

    def rollouts_until(self, rate: float) -> int | None:
        """Rollouts spent until the mean true success rate was at least `rate`; None where it never was."""
        (reached,) = (self.mean_rate >= rate).nonzero(as_tuple=True)
        return int(self.rollouts[: reached[0]].sum()) if len(reached) else None

    def summary(self) -> dict[str, float]:
        """The figures as one number each: means over steps, log loss from step 5 on, and the rate at the end."""
        ratio = self.effective_sample_ratio
        judged = self.log_loss[min(FIRST_JUDGED, len(ratio) - 1) :]
        return {
            "effective_sample_ratio": float(ratio.mean()),
            "second_half": float(ratio[len(ratio) // 2 :].mean()),
            "best_ratio": float(self.best_ratio.mean()),
            "log_loss": float(judged.mean()),
            "first_rate": float(self.mean_rate[0]),
            "last_rate": float(self.mean_rate[-1]),
            "coverage": self.coverage,
        }


def play(world: World, selector: PromptSelector, steps: int | None = None, seed: int = 0) -> Figures:
    """Let a selector choose what a policy is trained on for so many steps (None: the world's).

    The pool, the noise and the luck of prompts are functions of `seed`, whatever the selector's own. The selector is
    changed, as training would change it.

    Raises:
        TypeError, ValueError: the selector is none, or has another number of prompts; steps or seed are out of range.
    """
    if not isinstance(selector, PromptSelector):
        raise TypeError(f"selector must be a PromptSelector; got {type(selector).__name__}")
    if selector.num_prompts != world.num_prompts:
        raise ValueError(f"selector has {selector.num_prompts} prompts, but the world has {world.num_prompts}")
    run = world.start(seed)
    records: list[tuple[float, float, float, float, int]] = []
    picked = torch.zeros(world.num_prompts, dtype=torch.bool)
    for _ in range(checks.integer("steps", world.steps if steps is None else steps, 1)):
        truth = run.informative_probability()
        loss = _log_loss(selector.posterior.informative_probability(world.trials), truth)
        rate = float(run.rates().mean())
        index = selector.select().cpu()
        successes = run.roll_out(index)
        selector.update(index, successes=successes, trials=world.trials)
        run.learn(index, successes)
        picked[index] = True
        informative = (successes > 0) & (successes < world.trials)
        attainable = float(truth.topk(len(index)).values.mean())
        records.append((float(informative.double().mean()), attainable, rate, loss, len(index) * world.trials))
    ratio, best_ratio, rates, losses, rollouts = (
        torch.tensor(c, dtype=torch.float64) for c in zip(*records, strict=True)
    )
    rates = torch.cat([rates, run.rates().mean()[None]])
    return Figures(ratio, best_ratio, rates, losses, rollouts, float(picked.double().mean()))


def recipe(name: str, *covariates: str, **options: Any) -> Method:
    """A recipe by name as a method: recipe("dps", decay=0.5), recipe("gps", "embeddings").

    covariates: those of "groups" and "embeddings" that the recipe is to be told, as the world has them.

    Raises:
        ValueError: there is no such recipe or covariate.
    """
    make: Any = getattr(recipes, name, None)
    if name.startswith("_") or getattr(make, "__module__", None) != recipes.__name__ or isinstance(make, type):
        raise ValueError(f"name must be that of a recipe, such as 'dps'; got {name!r}")
    for each in covariates:
        if each not in ("groups", "embeddings"):
            raise ValueError(f"covariates must be 'groups' or 'embeddings'; got {each!r}")

    def method(world: World, seed: int) -> PromptSelector:
        told = {each: getattr(world, each) for each in covariates}
        if "num_steps" in inspect.signature(make).parameters:
            told["num_steps"] = world.steps  # as a trainer knows it
        sizes = {"num_prompts": world.num_prompts, "batch_size": world.batch_size}
        made: PromptSelector = make(**sizes, seed=seed, **told | options)
        return made

    return method


def judge(
    methods: Mapping[str, Method], worlds: Mapping[str, World] | None = None, seeds: int = 5
) -> dict[str, dict[str, list[Figures]]]:
    """Play every method in every world (None: `WORLDS`) under seeds 0, 1, ...: figures by world, method and seed."""
    if worlds is None:
        from bayes_prompt.simulate.worlds import WORLDS

        worlds = WORLDS
    numbers = range(checks.integer("seeds", seeds, 1))
    return {
        place: {
            name: [play(world, method(world, seed), seed=seed) for seed in numbers] for name, method in methods.items()
        }
        for place, world in worlds.items()
    }


def table(results: Mapping[str, Mapping[str, Sequence[Figures]]], figure: str = "effective_sample_ratio") -> str:
    """One of the figures of `Figures.summary`, the mean over seeds, as a table in Markdown: worlds by methods."""
    methods = list(dict.fromkeys(name for row in results.values() for name in row))
    lines = [f"| {figure} | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    for place, row in results.items():
        means = [
            f"{statistics.fmean(each.summary()[figure] for each in row[name]):.3f}" if name in row else ""
            for name in methods
        ]
        lines.append(f"| {place} | {' | '.join(means)} |")
    return "\n".join(lines)


def _log_loss(belief: Tensor, truth: Tensor) -> float:
    """Mean of -log of what the belief (N,) gave to what came, over what may come under the true probabilities (N,)."""
    belief = belief.cpu().double().clamp(SURE, 1 - SURE)
    return float(-(truth * belief.log() + (1 - truth) * torch.log1p(-belief)).mean())
