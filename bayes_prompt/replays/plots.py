"""What came out of a replay, as pictures: the effective sample ratio by visit, and reliability diagrams."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from bayes_prompt.files import whole, writable_folder
from bayes_prompt.replays.results import ReplayResults

SMOOTH = 5  # visits
FEWEST = 20  # prompts in a bin that is drawn: the share of fewer is known too badly
# Told apart without colours too.
_LINES = ("-", "--", "-.", ":")
_MARKERS = "osD^v<>phX"


def write(results: ReplayResults, folder: str | os.PathLike[str]) -> list[Path]:
    """Write ratio_by_visit.png and reliability.png, each whole or not at all; returns the paths.

    ValueError for a folder that cannot be written to; ImportError without matplotlib.
    """
    paths = [writable_folder(folder) / name for name in ("ratio_by_visit.png", "reliability.png")]
    for path, draw in zip(paths, (ratio_by_visit, reliability), strict=True):
        with whole(path) as scratch:
            draw(results, scratch)
    return paths


def ratio_by_visit(results: ReplayResults, path: str | os.PathLike[str]) -> None:
    """Effective sample ratio of every method, means of five visits and of all seeds, and the oracle's, as a PNG."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    panel = figure.subplots()
    visits = 1 + np.arange(results.visits)
    panel.plot(visits, _smooth(results.methods[0].oracle), color="black", linewidth=1, label="oracle")
    for place, method in enumerate(results.methods):
        style: dict[str, Any] = {"color": f"C{place % 10}", "linestyle": _LINES[place // 10 % len(_LINES)]}
        panel.plot(visits, method.ratio, **style, alpha=0.2)
        panel.plot(visits, _smooth(method.ratio), **style, label=method.name)
    panel.set(xlabel="visit", ylabel="share of picks with mixed outcomes", ylim=(0, 1.02))
    panel.set_title(f"{results.num_prompts:,} prompts, {results.batch_size} picked (mean of {SMOOTH} visits)")
    panel.grid(alpha=0.3)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=100, format="png", metadata={"Software": None})


def reliability(results: ReplayResults, path: str | os.PathLike[str]) -> None:
    """P(informative) against the share that was, all visits and seeds together, and below how often each, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    above.plot([0, 1], [0, 1], color="black", linewidth=1, label="calibrated")
    for place, method in enumerate(results.methods):
        bins = [each for each in method.bins if each.count >= FEWEST]
        if not bins:
            continue
        style: dict[str, Any] = {"color": f"C{place % 10}", "marker": _MARKERS[place % len(_MARKERS)], "markersize": 5}
        predicted, total = [each.predicted for each in bins], sum(each.count for each in method.bins)
        above.plot(predicted, [each.observed for each in bins], **style, label=method.name)
        below.plot(predicted, [each.count / total for each in bins], **style)
    above.set(ylabel="share that came out mixed", xlim=(0, 1), ylim=(0, 1))
    below.set(xlabel="P(informative), mean in its bin", ylabel="share of the pool", ylim=(0, None))
    for panel in (above, below):
        panel.grid(alpha=0.3)
    figure.legend(*above.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=100, format="png", metadata={"Software": None})


def _smooth(values: tuple[float, ...]) -> list[float]:
    """Mean of the last `SMOOTH` values, up to each."""
    return [float(np.mean(values[max(0, end - SMOOTH) : end])) for end in range(1, len(values) + 1)]
