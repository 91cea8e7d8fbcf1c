"""What came out of an experiment: a table for the terminal, curves, JSON and Parquet. Printed as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayes_prompt.files import whole, writable_folder
from bayes_prompt.testbed.plots import plot
from bayes_prompt.testbed.results import RunResult, mean_and_error
from bayes_prompt.testbed.tasks import Task

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_HEADINGS = (
    *("steps", "roll-\nouts", "effective\nsamples", "useful\nprompts"),
    *("held-out\nbefore", "held-out\nafter", "held-out\ngain", "seconds\nto pick"),
)
_NOTE = (
    "effective samples: share of the groups that were partially solved. useful prompts: distinct ones that ever gave "
    "such a group. held-out: mean reward on prompts that were never trained on, {} standard error; that of the gain is "
    "of the differences prompt by prompt. seconds to pick: spent on choosing prompts and on learning from rewards."
)


def summary(result: RunResult) -> dict[str, Any]:
    """A result as plain numbers and lists, ready for JSON.

    `gain` is the held-out reward after minus before; its standard error is that of the differences prompt by prompt,
    which is smaller than what the errors of the two means suggest.
    """
    ratios, useful = result.effective_sample_ratio, result.useful_prompts
    measured = {"before": result.held_out[0].rates, "after": result.held_out[-1].rates, "gain": _gains(result)}
    return {
        "method": result.method,
        "seed": result.seed,
        "steps": result.steps,
        "rollouts": result.rollouts,
        "effective_sample_ratio": sum(ratios) / len(ratios),
        "useful_prompts": useful[-1],
        "held_out": {name: _figures(values) for name, values in measured.items()},
        "coverage": result.coverage,
        "seconds_selecting": result.seconds_selecting,
        "seconds": result.seconds,
        "curves": {
            "effective_sample_ratio": ratios,
            "useful_prompts": useful,
            "reward": result.reward,
            "pool_success_rate": result.pool_success_rate,
            "held_out": [[each.step, *mean_and_error(each.rates)] for each in result.held_out],
        },
    }


def summaries(results: Sequence[RunResult]) -> list[dict[str, Any]]:
    """The summary of every result, with `gain_over`: by how much its gain exceeds that of the first method.

    That is a difference prompt by prompt, {first method: {"mean": ..., "error": ...}}; empty for the first itself.
    """
    return [
        summary(result) | {"gain_over": {first.method: _gain_over(first, result) for first in results[:1] if number}}
        for number, result in enumerate(results)
    ]


def show(results: Sequence[RunResult], console: Console) -> None:
    """Print the table (as lists, one per method, where the console is too narrow) and what goes with it."""
    from rich.measure import Measurement

    plus_minus = "±" if console.encoding.startswith("utf") else "+-"
    wide = table(results, plus_minus)
    needed = Measurement.get(console, console.options.update(max_width=1000), wide).maximum
    tables = [wide] if needed <= console.width else [_list(result, plus_minus) for result in results]
    for each in tables:
        console.print(each)
        console.print()
    for line in (comparison(results, plus_minus), _NOTE.format(plus_minus)):
        if line:
            console.print(line, highlight=False)


def table(results: Sequence[RunResult], plus_minus: str = "±") -> Table:
    """One row per method, to be printed with rich. With "uniform" and "dps" it fits a terminal of 80."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = "GRPO from the same start, once per method of choosing prompts"
    rows = Table(title=title, box=SIMPLE_HEAD, padding=0, show_edge=False)
    rows.add_column("method", no_wrap=True)
    for heading in _HEADINGS:
        rows.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        rows.add_row(result.method, *_cells(result, plus_minus))
    return rows


def comparison(results: Sequence[RunResult], plus_minus: str = "±") -> str:
    """One line: how the gain of every later method compares with that of the first. Empty for a single method."""
    first, *others = results
    parts = [f"{each.method} {_measured(_gain_over(first, each), plus_minus, '+')}" for each in others]
    return f"gain over that of {first.method}, prompt by prompt: {', '.join(parts)}" if parts else ""


def write(
    results: Sequence[RunResult], train: Sequence[Task], held_out: Sequence[Task], out: str | os.PathLike[str]
) -> list[Path]:
    """Write everything into the folder `out`, made where it is missing; returns the paths.

    results.json; prompts.parquet (the training pool); held_out.parquet (a row for each method, evaluation and task); a
    history_METHOD.parquet each; curves.png. Every file is written under another name first, so that under its own there
    is the old one or the whole new one. Raises ValueError for a folder that cannot be written to, OSError when writing
    fails later.
    """
    folder = writable_folder(out)
    tables = {
        "prompts": {**_columns(train), "answer": [task.answer for task in train]},
        "held_out": _evaluations(results, held_out),
    }
    with whole(folder / "results.json") as path:
        path.write_text(json.dumps(summaries(results), indent=1) + "\n")
    for name, columns in tables.items():
        with whole(folder / f"{name}.parquet") as path:
            _write_parquet(columns, path)
    for result in results:
        with whole(folder / f"history_{result.method}.parquet") as path:
            result.history.write_parquet(path)
    with whole(folder / "curves.png") as path:
        plot(results, path)
    names = ["results.json", *(f"{name}.parquet" for name in tables), "curves.png"]
    return [folder / name for name in (*names, *(f"history_{result.method}.parquet" for result in results))]


def _gains(result: RunResult) -> list[float]:
    before, after = result.held_out[0].rates, result.held_out[-1].rates
    return [late - early for early, late in zip(before, after, strict=True)]


def _gain_over(first: RunResult, other: RunResult) -> dict[str, float]:
    return _figures([mine - theirs for theirs, mine in zip(_gains(first), _gains(other), strict=True)])


def _figures(values: Sequence[float]) -> dict[str, float]:
    mean, error = mean_and_error(values)
    return {"mean": mean, "error": error}


def _measured(figures: dict[str, float], plus_minus: str, sign: str = "") -> str:
    return f"{figures['mean']:{sign}.3f}{plus_minus}{figures['error']:.3f}".replace(f"{plus_minus}0.", f"{plus_minus}.")


def _cells(result: RunResult, plus_minus: str) -> list[str]:
    """What stands under the headings."""
    figures = summary(result)
    return [
        str(result.steps),
        str(result.rollouts),
        f"{figures['effective_sample_ratio']:.3f}",
        str(figures["useful_prompts"]),
        *(_measured(part, plus_minus) for part in figures["held_out"].values()),
        f"{result.seconds_selecting:.2f}",
    ]


def _list(result: RunResult, plus_minus: str) -> Table:
    """The row of one method upright: at most 30 characters wide."""
    from rich.table import Table

    rows = Table(title=result.method, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for heading, cell in zip(_HEADINGS, _cells(result, plus_minus), strict=True):
        rows.add_row(heading.replace("-\n", "").replace("\n", " "), cell)
    return rows


def _columns(tasks: Sequence[Task]) -> dict[str, list[Any]]:
    return {
        "prompt_id": list(range(len(tasks))),
        "text": [task.text for task in tasks],
        "family": [task.family for task in tasks],
        "level": [task.level for task in tasks],
    }


def _evaluations(results: Sequence[RunResult], held_out: Sequence[Task]) -> dict[str, list[Any]]:
    evaluations = [(result.method, evaluation) for result in results for evaluation in result.held_out]
    tasks = len(held_out)
    return {
        **{name: values * len(evaluations) for name, values in _columns(held_out).items()},
        "method": [method for method, _ in evaluations for _ in range(tasks)],
        "step": [evaluation.step for _, evaluation in evaluations for _ in range(tasks)],
        "successes": [count for _, evaluation in evaluations for count in evaluation.successes],
        "samples": [evaluation.samples for _, evaluation in evaluations for _ in range(tasks)],
    }


def _write_parquet(columns: dict[str, list[Any]], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)
