"""Writes the generated part of the docs: the newest run of each device as tables, and its plot beside them.

python -m bayes_prompt.bench.report benchmarks/results --docs docs
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from bayes_prompt.bench.plots import plot
from bayes_prompt.bench.results import Results, load
from bayes_prompt.bench.tables import markdown
from bayes_prompt.files import whole

PAGE = "performance.md"
BEGIN = "<!-- Generated from benchmarks/results by `make performance`: what stands here is overwritten. -->"
END = "<!-- End of what is generated. -->"
NO_GPU = "No GPU was at hand: speed on a GPU has not been measured."


def newest(runs: Sequence[Results]) -> list[Results]:
    """The last run of each device, in the order of their names; of several numbers of threads, each."""
    last = {
        (run.machine.device, run.machine.kind, run.machine.threads): run for run in sorted(runs, key=lambda r: r.date)
    }
    return [last[key] for key in sorted(last)]


def digest(results: Results) -> str:
    """A fingerprint of the numbers that a plot shows."""
    return hashlib.sha256(json.dumps(results.to_json(), sort_keys=True).encode()).hexdigest()[:16]


def plot_name(results: Results) -> str:
    """Of the plot of a run: one for each device, so that a newer run replaces it."""
    machine = results.machine
    threads = f"-{machine.threads}-threads" if machine.kind == "cpu" else ""
    return f"performance-{re.sub(r'[^a-z0-9]+', '-', machine.device.lower()).strip('-')}{threads}.png"


def block(runs: Sequence[Results]) -> str:
    """The generated part, markers included."""
    lines = [BEGIN, ""]
    if not any(run.machine.kind == "cuda" for run in runs):
        lines += [NO_GPU, ""]
    for run in newest(runs):
        lines += [
            f"### {run.machine.device}",
            "",
            f"![Median time against N]({plot_name(run)})",
            "",
            *markdown(run),
            "",
        ]
    return "\n".join([*lines, END])


def replaced(page: str, runs: Sequence[Results]) -> str:
    """The page with its generated part anew; ValueError where it has not both markers, once and in order."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"the page must have these two lines once and in this order: {BEGIN} and {END}")
    before, rest = page.split(BEGIN)
    return before + block(runs) + rest.split(END)[1]


def regenerate(results: Path, docs: Path) -> list[Path]:
    """Rewrite docs/performance.md from all runs in the folder, and draw the plots; returns what was written."""
    runs = load(results)
    page = docs / PAGE
    text = replaced(page.read_text(), runs)
    written = []
    for run in newest(runs):
        written.append(docs / plot_name(run))
        with whole(written[-1]) as scratch:
            plot(run, scratch, digest(run))
    with whole(page) as scratch:
        scratch.write_text(text)
    return [*written, page]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 2 where a folder or the page is not what it should be."""
    parser = argparse.ArgumentParser(prog="python -m bayes_prompt.bench.report", description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, help="folder of the JSON files of `bayes-prompt bench`")
    parser.add_argument("--docs", type=Path, required=True, help=f"folder that has {PAGE}")
    options = parser.parse_args(arguments)
    try:
        for path in regenerate(options.results, options.docs):
            print(path)
    except (OSError, ValueError) as error:
        print(f"report: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
