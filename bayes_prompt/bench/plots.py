"""The log-log plot of a run: median time against N."""

from __future__ import annotations

import os

from bayes_prompt.bench.cases import COPY, GRAPH, OURS, PEERS
from bayes_prompt.bench.results import Results
from bayes_prompt.bench.tables import groups, heading
from bayes_prompt.bench.workloads import BYTES_COPIED, SETTINGS

# Told apart without colours too, and the same in every panel.
_MARKERS = dict(zip((OURS, GRAPH, *PEERS), "oPsD^v<>dph8X", strict=False))
_COLOURS = dict(zip(_MARKERS, ("C0", "navy", *(f"C{place}" for place in range(1, 10)), "darkgreen"), strict=False))


def plot(results: Results, path: str | os.PathLike[str], digest: str = "") -> None:
    """One panel for each operation and setting, as a PNG; dashed, the time that the copy bandwidth allows at best.

    Bars span the quartiles. digest: of what is drawn, kept in the file's description.
    """
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    drawn = list(groups(results))
    rows, columns = 2, max(1, (len(drawn) + 1) // 2)
    figure = Figure(figsize=(4.4 * columns, 7.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    handles = {}
    for place, panel in enumerate(panels.T.flat):
        if place >= len(drawn):
            panel.set_axis_off()
            continue
        operation, setting, found = drawn[place]
        for name in dict.fromkeys(each.implementation for each in found if each.implementation != COPY):
            mine = [each for each in found if each.implementation == name]
            sizes, medians = [each.prompts for each in mine], [each.seconds.median for each in mine]
            below = [each.seconds.median - each.seconds.q1 for each in mine]
            above = [each.seconds.q3 - each.seconds.median for each in mine]
            style = {"color": _COLOURS[name], "marker": _MARKERS[name], "markersize": 5, "capsize": 2}
            width = 2.2 if name in (OURS, GRAPH) else 1.1
            handles[name] = panel.errorbar(sizes, medians, yerr=[below, above], linewidth=width, **style)
        sizes = sorted({each.prompts for each in found})
        moved = BYTES_COPIED[operation]
        (line,) = panel.plot(sizes, [moved * n / results.copy.best for n in sizes], color="black", linestyle="--")
        handles["copying the bytes"] = line
        panel.set(xscale="log", yscale="log", xlabel="prompts N", ylabel="median seconds")
        panel.set_title(f"{operation}: {setting}" if len(SETTINGS[operation]) > 1 else operation)
        panel.grid(alpha=0.3)
    figure.suptitle(heading(results)[0].split(";")[0])
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(6, len(handles)))
    figure.savefig(path, dpi=100, format="png", metadata={"Software": None, "Description": digest})
