"""How `recipes.best` is chosen: by cross-validation over the prompts of recorded histories.

    python benchmarks/recipe.py --data ../shared/data [--splits 4] [--seeds 3]

In every split the prompts are halved at random. Every variant is replayed on one half (half the pool, half the batch),
the one with the best effective sample ratio, mean over the histories, is chosen, and replayed on the other half; then
the halves change places. What was chosen so is told beside the fixed recipe, on the same halves.
"""

from __future__ import annotations

import argparse
from collections import Counter
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch

import bayes_prompt as bp
from bayes_prompt.acquisition import LookIndex, Survey

#: Drifts: of a trend of all, and a leap of those that are trained on, for each of four walks (`priors.training`).
SLOPES = {
    "8 drifts": ((0.03, 0.0), (0.0, 0.3)),
    "12 drifts": ((0.03, 0.0), (0.0, 0.3), (0.0, 0.0)),
    "16 drifts": ((0.03, 0.0), (0.0, 0.3), (0.0, 0.0), (0.1, 0.3)),
    "12 slower drifts": ((0.015, 0.0), (0.0, 0.15), (0.0, 0.0)),
}
HORIZONS = (12.0, 16.0, 24.0)
LONGER = (1.0, 2.0)  # the horizon of new prompts, in units of that of others, where nothing tells of them
VARIANTS = tuple(product(SLOPES, HORIZONS, LONGER))
FIXED = ("12 drifts", 16.0, 2.0)
FIGURES = ("effective_sample_ratio", "second_half", "log_loss")


def bank(slopes: tuple[tuple[float, float], ...]) -> bp.DriftBank:
    """`priors.training` with other slopes."""
    walks = [(0.12, 0.01), (0.12, 0.05), (0.6, 0.06), (0.6, 0.12)]
    walk = bp.LogitRandomWalk
    return bp.DriftBank(
        [
            bp.ActivePassive(active=walk(scale, trend + leap, away), passive=walk(scale, trend, away))
            for scale, away in walks
            for trend, leap in slopes
        ]
    )


def selector(
    variant: tuple[str, float, float], groups: Any, steps: int, num_prompts: int, batch_size: int, seed: int
) -> bp.PromptSelector:
    """A variant of `recipes.best`, which is the one that is `FIXED`."""
    drifts, horizon, longer = variant
    model = bp.SuccessRate(bp.priors.logit_normal(0.0, 3.0), drift=bank(SLOPES[drifts]), sharing=bp.EmpiricalBayes())
    told = {} if groups is None else {"groups": groups}
    new = horizon * longer if groups is None else None
    index = LookIndex(horizon, new=new, num_steps=steps)
    acquisition = Survey(index, familiar=True, num_steps=steps)
    return bp.PromptSelector(model.posterior(num_prompts, **told), acquisition, batch_size, seed)


def recorded(data: Path) -> dict[str, tuple[bp.History, int, torch.Tensor | None]]:
    """Histories by name: their prompts that are kept, how many are picked, and labels, if any."""
    one = bp.History.read(data / "one_shot_rlvr_histories.parquet")
    kept = (one.trials > 0).sum(0) >= 50
    one = part(one, kept.nonzero()[:, 0], 50)
    small = bp.History.read(data / "small_grpo_histories.parquet")
    families = pyarrow.parquet.read_table(data / "small_grpo_prompts.parquet")["family"].to_pylist()
    labels = torch.from_numpy(np.unique(families, return_inverse=True)[1])
    return {
        "one_shot_rlvr": (one, round(0.1 * one.num_prompts), None),
        "small_grpo": (small, 64, None),
        "small_grpo by families": (small, 64, labels),
    }


def part(history: bp.History, prompts: torch.Tensor, steps: int | None = None) -> bp.History:
    """Some prompts (M,) of a history, and the first steps of it."""
    assert history.successes is not None
    return bp.History(history.successes[:steps, prompts], history.trials[:steps, prompts], clock=history.clock)


def figures(history: bp.History, variant: tuple[str, float, float], groups: Any, batch: int, seeds: int) -> np.ndarray:
    """Means over seeds of `FIGURES`, (3,)."""
    steps = history.num_steps
    method = partial(selector, variant, groups, steps)
    found = bp.replay(history, {"it": method}, batch_size=batch, seeds=seeds, visits=steps, min_visits=1)
    return np.array([found["it"].figures[name].mean for name in FIGURES])


def main() -> None:
    """Print what was chosen, and what it reaches on the prompts that did not choose it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the recorded histories")
    parser.add_argument("--splits", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    histories = recorded(options.data)
    chosen: Counter[tuple[str, float, float]] = Counter()
    reached: dict[str, list[list[np.ndarray]]] = {name: [] for name in histories}
    for split in range(options.splits):
        draw = torch.Generator().manual_seed(split)
        halves: list[dict[str, dict[Any, np.ndarray]]] = [{}, {}]
        for name, (history, batch, labels) in histories.items():
            order = torch.randperm(history.num_prompts, generator=draw)
            for half, prompts in zip(halves, order.tensor_split(2), strict=True):
                some, told = part(history, prompts), None if labels is None else labels[prompts]
                asked = {each if told is None else (*each[:2], 1.0): None for each in VARIANTS}
                found = {each: figures(some, each, told, batch // 2, options.seeds) for each in asked}
                half[name] = {each: found.get(each, found.get((*each[:2], 1.0))) for each in VARIANTS}
        for there, here in (halves, halves[::-1]):
            best = max(VARIANTS, key=lambda each: np.mean([there[name][each][0] for name in histories]))
            chosen[best] += 1
            for name in histories:
                reached[name].append([here[name][best], here[name][FIXED]])
        print(f"split {split}: {dict(chosen)}", flush=True)
    print(f"\n| history | chosen: {' / '.join(FIGURES)} | fixed | chosen less fixed, ratio |\n|---|---|---|---|")
    for name, pairs in reached.items():
        both = np.array(pairs)  # (halves, chosen or fixed, figures)
        less = both[:, 0, 0] - both[:, 1, 0]
        shown = [" / ".join(f"{figure:.3f}" for figure in mean) for mean in both.mean(0)]
        print(f"| {name} | {shown[0]} | {shown[1]} | {less.mean():+.4f} ± {less.std(ddof=1) / len(less) ** 0.5:.4f} |")


if __name__ == "__main__":
    main()
