"""What came out of an experiment: a table for the terminal, curves, JSON and Parquet. Printed as it is."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayes_prompt.testbed.tasks import Task

if TYPE_CHECKING:
    from rich.table import Table

    from bayes_prompt.testbed.experiment import RunResult


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error over prompts (NaN for a single one)."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)


def summary(result: RunResult) -> dict[str, Any]:
    """A result as plain numbers and lists, ready for JSON.

    `gain` is the held-out reward after minus before; its standard error is that of the differences prompt by prompt,
    which is smaller than what the errors of the two means suggest.
    """
    (_, before), (_, after) = result.held_out[0], result.held_out[-1]
    gain = [late - early for early, late in zip(before, after, strict=True)]
    ratios = result.effective_sample_ratio
    measured = {"before": before, "after": after, "gain": gain}
    held_out = {
        name: dict(zip(("mean", "error"), mean_and_error(rates), strict=True)) for name, rates in measured.items()
    }
    return {
        "method": result.method,
        "seed": result.seed,
        "steps": result.steps,
        "rollouts": result.rollouts,
        "effective_sample_ratio": sum(ratios) / len(ratios),
        "held_out": held_out,
        "coverage": result.coverage,
        "seconds_selecting": result.seconds_selecting,
        "seconds": result.seconds,
        "curves": {
            "effective_sample_ratio": ratios,
            "reward": result.reward,
            "pool_success_rate": result.pool_success_rate,
            "held_out": [[step, *mean_and_error(rates)] for step, rates in result.held_out],
        },
    }


def table(results: Sequence[RunResult]) -> Table:
    """One row per method, to be printed with rich."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    # 78 characters wide with "uniform" and "dps": it fits a terminal of 80.
    rows = Table(title="GRPO from the same start, once per method of choosing prompts", box=SIMPLE_HEAD, padding=0)
    rows.add_column("method", overflow="fold")
    for heading in ("steps", "rollouts", "effective\nsamples", "held-out\nbefore", "after", "gain", "selecting"):
        rows.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        figures = summary(result)
        held_out = figures["held_out"].values()
        measured = [f"{part['mean']:.3f}±{part['error']:.3f}".replace("±0.", "±.") for part in held_out]
        rows.add_row(
            result.method,
            str(result.steps),
            str(result.rollouts),
            f"{figures['effective_sample_ratio']:.3f}",
            *measured,
            f"{result.seconds_selecting:.2f} s",
        )
    rows.caption = (
        "effective samples: share of the groups that were partially solved. held-out: mean reward on prompts that were "
        "never trained on, ± standard error; the gain's is of the differences prompt by prompt."
    )
    return rows


def write(results: Sequence[RunResult], train: Sequence[Task], out: str | os.PathLike[str]) -> list[Path]:
    """Write curves.png, results.json, prompts.parquet and a history_METHOD.parquet each; the paths written."""
    import pyarrow
    import pyarrow.parquet

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "results.json", folder / "curves.png", folder / "prompts.parquet"]
    paths[0].write_text(json.dumps([summary(result) for result in results], indent=1) + "\n")
    plot(results, paths[1])
    columns = {
        "prompt_id": list(range(len(train))),
        "text": [task.text for task in train],
        "family": [task.family for task in train],
        "level": [task.level for task in train],
        "answer": [task.answer for task in train],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), paths[2])
    for result in results:
        paths.append(folder / f"history_{result.method}.parquet")
        result.history.write_parquet(paths[-1])
    return paths


def plot(results: Sequence[RunResult], path: str | os.PathLike[str]) -> None:
    """Three panels by step: effective sample ratio; held-out reward; the pool's success rate as it is believed."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(13, 4), layout="constrained")
    ratio, reward, pool = figure.subplots(1, 3)
    for result, colour in zip(results, (f"C{number}" for number in range(10)), strict=False):
        steps = range(1, result.steps + 1)
        ratio.plot(steps, result.effective_sample_ratio, color=colour, alpha=0.25)
        ratio.plot(steps, _smooth(result.effective_sample_ratio), color=colour, label=result.method)
        points = [(step, *mean_and_error(rates)) for step, rates in result.held_out]
        at, means, errors = zip(*points, strict=True)
        reward.errorbar(at, means, errors, color=colour, capsize=2, marker="o", markersize=3, label=result.method)
        reward.plot(steps, result.reward, color=colour, alpha=0.25)
        pool.plot(steps, result.pool_success_rate, color=colour, label=result.method)
    ratio.set(title="Effective sample ratio (faint: each step)", ylim=(0, 1))
    reward.set(title="Held-out reward ± standard error\n(faint: training batches)", ylim=(0, 1))
    pool.set(title="Success rate of the whole pool,\nas the selector estimates it", ylim=(0, 1))
    for panel in (ratio, reward, pool):
        panel.set_xlabel("GRPO step")
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(path, dpi=120)


def _smooth(values: Sequence[float], width: int = 5) -> list[float]:
    """Mean of the last `width` values, up to each."""
    parts = [values[max(0, end - width) : end] for end in range(1, len(values) + 1)]
    return [sum(part) / len(part) for part in parts]
