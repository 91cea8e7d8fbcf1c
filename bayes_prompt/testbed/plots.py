"""The curves of an experiment."""

from __future__ import annotations

import os
from collections.abc import Sequence

from bayes_prompt.testbed.results import RunResult, mean_and_error

# One of each per method: told apart without colours too.
_COLOURS = ("C0", "C1", "C2", "C3")
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D")


def plot(results: Sequence[RunResult], path: str | os.PathLike[str]) -> None:
    """Three panels by step, as a PNG: effective sample ratio; held-out reward; useful prompts met so far."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(13, 4), layout="constrained")
    ratio, reward, useful = figure.subplots(1, 3)
    for result, colour, line, marker in zip(results, _COLOURS, _LINES, _MARKERS, strict=False):
        style = {"color": colour, "linestyle": line, "label": result.method}
        steps = range(1, result.steps + 1)
        ratio.plot(steps, result.effective_sample_ratio, color=colour, alpha=0.25)
        ratio.plot(steps, _smooth(result.effective_sample_ratio), **style)
        measured = [mean_and_error(evaluation.rates) for evaluation in result.held_out]
        means, errors = zip(*measured, strict=True)
        at = [evaluation.step for evaluation in result.held_out]
        reward.plot(at, means, marker=marker, **style)
        reward.fill_between(at, *_bounds(means, errors), color=colour, alpha=0.12, linewidth=0)
        useful.plot(steps, result.useful_prompts, **style)
    ratio.set(title="Effective sample ratio\n(mean of 5 steps; faint: each step)", ylim=(0, 1))
    reward.set(title="Held-out reward\n(shaded: ± standard error over the prompts)")
    useful.set(title="Useful prompts so far\n(distinct, with at least one mixed group)")
    useful.set_ylim(bottom=0)
    for panel in (ratio, reward, useful):
        panel.set_xlabel("GRPO step")
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(path, dpi=120)


def _bounds(means: Sequence[float], errors: Sequence[float]) -> tuple[list[float], list[float]]:
    pairs = list(zip(means, errors, strict=True))
    return [mean - error for mean, error in pairs], [mean + error for mean, error in pairs]


def _smooth(values: Sequence[float], width: int = 5) -> list[float]:
    """Mean of the last `width` values, up to each."""
    parts = [values[max(0, end - width) : end] for end in range(1, len(values) + 1)]
    return [sum(part) / len(part) for part in parts]
