"""What came out of a replay, for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bayes_prompt.replays.results import Figure, Method, ReplayResults

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: Under each heading, the figures that stand there.
PICKS = {
    "effective\nsamples": ("effective_sample_ratio",),
    "second\nhalf": ("second_half",),
    "regret": ("regret",),
    "coverage": ("coverage",),
    "absence,\nmean / max": ("mean_absence", "longest_absence"),
    "ms to pick\n/ to learn": ("seconds_picking", "seconds_learning"),
}
BELIEFS = {
    "log loss": ("log_loss",),
    "Brier\nscore": ("brier",),
    "calibration\nerror": ("calibration_error",),
    "AUC": ("auc",),
}
NOTE = (
    "effective samples: share of the picks that were mixed, some rollouts right and some wrong; regret: what an "
    "oracle's share has more. coverage: share of the pool ever picked; absence: longest run of visits without a pick, "
    "by prompt."
)
ERRORS = " Right of a {}: standard error over the seeds."
BELIEFS_TITLE = "P(informative) of the whole pool before each pick, from visit {} on, against what came out"


def show(results: ReplayResults, console: Console) -> None:
    """Print what was picked, and how well P(informative) was known."""
    plus_minus = "±" if console.encoding.startswith("utf") else "+-"
    seeds = len(results.methods[0].runs)
    title = (
        f"{results.num_prompts:,} prompts, {results.visits} visits, {results.batch_size} picked at each, "
        f"{seeds} seed{'s' * (seeds > 1)}"
    )
    console.print(_table(results, title, PICKS, plus_minus))
    console.print()
    unjudged = [method.name for method in results.methods if math.isnan(method.figures["log_loss"].mean)]
    if len(unjudged) < len(results.methods):
        console.print(_table(results, BELIEFS_TITLE.format(results.first_visit), BELIEFS, plus_minus))
        console.print()
    if unjudged:
        names = ", ".join(unjudged)
        console.print(
            f"P(informative) could not be judged, from visit {results.first_visit} on: {names}", highlight=False
        )
    console.print(NOTE + (ERRORS.format(plus_minus) if seeds > 1 else ""), highlight=False)


def _table(results: ReplayResults, title: str, columns: Mapping[str, tuple[str, ...]], plus_minus: str) -> Table:
    """A row for each method."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("method", overflow="fold")
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for method in results.methods:
        table.add_row(method.name, *(_cell(method, names, plus_minus) for names in columns.values()))
    return table


def _cell(method: Method, names: tuple[str, ...], plus_minus: str) -> str:
    figures = method.figures
    if names == ("coverage",):
        return _short(figures["coverage"].mean)
    if len(names) == 1:
        return _measured(figures[names[0]], plus_minus)
    scale, digits = (1e3, 2) if names[0].startswith("seconds") else (1.0, 0)
    return " / ".join(f"{scale * figures[name].mean:.{digits}f}" for name in names)


def _measured(figure: Figure, plus_minus: str) -> str:
    """.862 ± .004; the error is left out where there is none, and a dash stands for what was not judged."""
    if math.isnan(figure.mean):
        return "-"
    return f"{_short(figure.mean)}{'' if math.isnan(figure.error) else f' {plus_minus} {_short(figure.error)}'}"


def _short(value: float) -> str:
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text
