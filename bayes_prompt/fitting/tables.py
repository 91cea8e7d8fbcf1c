"""What was fitted and compared, for the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bayes_prompt.fitting.compare import Comparison
from bayes_prompt.fitting.results import FitResult
from bayes_prompt.fitting.statistics import Check

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NOTE = (
    "per look: mean log predictive probability of a look's count (nats), given the looks before it; to best: how much "
    "less than the best model's. Right of a {0}: standard error over prompts, in the second case of the difference "
    "prompt by prompt. outside: checks that the model fails, of those below."
)
CHECKS = (
    "Posterior predictive checks: each figure as observed, and its mean in {0} histories with the same trials, drawn "
    "from the model's own predictions; ! where the observed one lies outside all of them."
)


def show_fit(result: FitResult, console: Console) -> None:
    """Print parameters with their intervals, the evidence, and the line that makes the model."""
    table = _table(f"{result.family or 'fit'}: {result.method}, {result.likelihood} likelihood")
    for heading in ("parameter", "mean", "sd", "2.5%", "97.5%"):
        table.add_column(heading, justify="left" if heading == "parameter" else "right")
    for name, *numbers in result.rows():
        table.add_row(name, *(f"{number:.4g}" for number in numbers))
    console.print(table)
    each = result.log_count_evidence / max(result.observations, 1)
    line = f"log evidence {result.log_count_evidence:.2f} of {result.observations:,} looks, {each:.4f} each"
    console.print(line, highlight=False)
    if any(size == size for size in result.effective_draws.values()):
        least = min(result.effective_draws, key=lambda name: result.effective_draws[name])
        console.print(f"effective draws: at least {result.effective_draws[least]:.0f} ({least})", highlight=False)
    if (code := result.python()) is not None:
        console.print(f"\n{code}", highlight=False, soft_wrap=True, markup=False)


def show_comparison(comparison: Comparison, console: Console) -> None:
    """Print the models by their evidence, then the figures that they were checked by."""
    plus_minus = "±" if console.encoding.startswith("utf") else "+-"
    table = _table(f"{comparison.prompts:,} prompts, {comparison.looks:,} looks")
    for heading in ("model", "per look", "to best", "evidence", "left out", "outside"):
        table.add_column(heading, justify="left" if heading == "model" else "right", no_wrap=True)
    for place, score in enumerate(comparison.scores):
        failed = sum(check.outside for check in score.checks)
        table.add_row(
            score.name,
            _measured(score.per_look, score.error, plus_minus),
            "" if place == 0 else _measured(score.difference, score.difference_error, plus_minus),
            f"{score.log_count_evidence:.1f}",
            str(score.unexpected or ""),
            f"{failed} of {len(score.checks)}" if score.checks else "",
        )
    console.print(table)
    console.print(NOTE.format(plus_minus), highlight=False)
    if any(score.checks for score in comparison.scores):
        console.print()
        console.print(_checks(comparison))
        console.print(CHECKS.format(comparison.replicates), highlight=False)


def _checks(comparison: Comparison) -> Table:
    """A row for each figure, a column for each model."""
    table = _table("")
    table.add_column("")
    table.add_column("observed", justify="right")
    for score in comparison.scores:
        table.add_column(score.name, justify="right", no_wrap=True)
    by_figure = [{(check.group, check.label): check for check in score.checks} for score in comparison.scores]
    figures = {key: check for each in by_figure for key, check in each.items()}
    group = ""
    for key, known in figures.items():
        if known.group != group:
            group = known.group
            table.add_row(f"[bold]{group}[/bold]")
        cells = (_checked(each.get(key)) for each in by_figure)
        table.add_row(f"  {known.label}", _figure(known.group, known.observed), *cells)
    return table


def _checked(check: Check | None) -> str:
    if check is None:
        return "-"
    return f"{_figure(check.group, check.expected)}{'!' if check.outside else ' '}"


def _figure(group: str, value: float) -> str:
    return f"{value:.0f}" if group == "transitions" else f"{value:.3f}"


def _measured(value: float, error: float, plus_minus: str) -> str:
    return f"{value:.4f}" + ("" if math.isnan(error) else f" {plus_minus} {error:.4f}")


def _table(title: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
