"""Results as tables: for the terminal with rich, for the docs as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from bayes_prompt.bench.cases import COPY, GRAPH, OURS
from bayes_prompt.bench.results import Measurement, Results
from bayes_prompt.bench.workloads import BYTES_COPIED, BYTES_OF_OURS, OPERATIONS, SETTINGS

if TYPE_CHECKING:
    from rich.console import Console

HEADINGS = (
    "N",
    "implementation",
    "median",
    "quartiles",
    "rounds",
    "share of copy",
    "÷ copy",
    "÷ ours",
    "peak",
    "state",
    "books",
)
NOTE = (
    "share of copy: the bytes that ours moves, by count, in the median time, over the machine's best copy bandwidth "
    "(above 1 where caches hold the state). ÷ copy: median over the fastest copy beside it, which moves more bytes "
    "than ours where a posterior is copied. ÷ ours: median over that of bayes_prompt. "
    "peak: memory over the resting state during a call. state, books: bytes held in floating-point tensors, and in "
    "integers and flags. A dash: withheld, or not measured."
)
_DASH = "-"


def groups(results: Results) -> Iterator[tuple[str, str, list[Measurement]]]:
    """(operation, setting, measurements by size) in the order of a run."""
    for operation, settings in SETTINGS.items():
        for setting in settings:
            found = [each for each in results.measurements if (each.operation, each.setting) == (operation, setting)]
            if found:
                yield operation, setting, sorted(found, key=lambda each: each.prompts)


def cells(each: Measurement) -> tuple[str, ...]:
    """What stands under HEADINGS."""
    seconds = each.seconds
    return (
        f"{each.prompts:,}",
        each.implementation,
        duration(seconds.median),
        f"{duration(seconds.q1)} to {duration(seconds.q3)}",
        str(seconds.rounds),
        _ratio(each.share_of_copy),
        _ratio(each.times_copy),
        _ratio(each.times_ours),
        _DASH if each.peak is None else size(each.peak),
        *((_DASH, _DASH) if each.implementation == COPY else (size(each.held.state), size(each.held.bookkeeping))),
    )


def heading(results: Results) -> list[str]:
    """Lines that say where and with what a run was made."""
    machine, commit = results.machine, results.commit
    threads = f", {machine.threads} threads on {machine.cores} cores" if machine.kind == "cpu" else ""
    software = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    source = "an installed package" if commit is None else f"commit {commit.id[:10]}{' with changes' * commit.dirty}"
    return [
        f"{machine.device}{threads}; {software}; {source}; {results.date[:10]}.",
        f"The {results.backend} kernels, {results.budget:g} s a case at most; load average before: {machine.load:g}. A "
        f"copy of {size(results.copy.size)} moves {results.copy.best / 1e9:.1f} GB/s at best, "
        f"{results.copy.median / 1e9:.1f} in the median, read and written counted.",
    ]


def remarks(results: Results) -> list[str]:
    """What failed and what was left out, a line each."""
    lines = [
        f"FAILED: {each.operation} by {each.implementation} disagrees with the reference (seed {each.seed}): "
        f"{each.detail}. Its ratios are withheld."
        for each in results.failures
    ]
    grouped: dict[tuple[str, str, str, str], list[int]] = {}
    for left in results.left_out:
        key = (left.operation, left.setting, left.implementation, left.reason)
        grouped.setdefault(key, []).append(left.prompts)
    for (operation, setting, implementation, reason), sizes in grouped.items():
        at = ", ".join(f"{prompts:,}" for prompts in sizes)
        lines.append(f"left out: {operation} ({setting}), N = {at}, {implementation}: {reason}")
    return lines


def speedups(results: Results) -> Iterator[tuple[str, str, int, str, float]]:
    """(operation, setting, N, peer, times ours) of every peer, at the largest N where both were measured."""
    for operation, setting, found in groups(results):
        largest = {
            each.implementation: each for each in found if each.times_ours is not None
        }  # ascending: the last stays
        for name, each in largest.items():
            if name not in (OURS, GRAPH, COPY) and each.times_ours is not None:
                yield operation, setting, each.prompts, name, each.times_ours


def show(results: Results, console: Console) -> None:
    """Print everything to a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    plain = console.encoding.startswith("utf")
    narrow = ("N", "implementation", "median", "share of copy", "÷ copy", "÷ ours", "peak")
    shown = [place for place, name in enumerate(HEADINGS) if console.width >= 125 or name in narrow]

    def text(line: str) -> str:
        return line if plain else line.replace("÷", "/").replace("µ", "u")

    for line in heading(results):
        console.print(text(line), highlight=False)
    for operation, setting, found in groups(results):
        title = f"{operation} ({setting}): {OPERATIONS[operation]}; {SETTINGS[operation][setting]}"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        for column in shown:
            justify = "left" if HEADINGS[column] == "implementation" else "right"
            table.add_column(text(HEADINGS[column]), justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for each in found:
            row = cells(each)
            table.add_row(*(text(row[column]) for column in shown))
        console.print()
        console.print(table)
    console.print()
    for line in (*remarks(results), NOTE):
        console.print(text(line), highlight=False)


def markdown(results: Results) -> list[str]:
    """The same as lines of Markdown: first how much longer the peers take, then every operation."""
    lines = [*heading(results), ""]
    summary = [
        (f"{operation} ({setting})", f"{prompts:,}", peer, f"{times:.3g}")
        for operation, setting, prompts, peer, times in speedups(results)
    ]
    if summary:
        lines += ["How many times as long as ours the others take, at the largest N where both were measured:", ""]
        lines += [*_rows(("operation", "N", "implementation", "÷ ours"), summary, left=(0, 2)), ""]
    for operation, setting, found in groups(results):
        lines += [f"#### {operation}, {setting}", ""]
        lines += [f"{_sentence(OPERATIONS[operation])} {_sentence(SETTINGS[operation][setting])}"]
        lines += [f"Ours moves {BYTES_OF_OURS[operation]} bytes a prompt, the copy {BYTES_COPIED[operation]}.", ""]
        lines += [*_rows(HEADINGS, [cells(each) for each in found], left=(1,)), ""]
    lines += [f"- {line}" for line in remarks(results)]
    return [*lines, "", NOTE]


def duration(seconds: float) -> str:
    """Three digits and a unit: 12.3 ms."""
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= 0.9995 * unit:
            return f"{_three(seconds / unit)} {name}"
    return f"{_three(seconds * 1e9)} ns"


def size(number: float) -> str:
    """Bytes, with three digits and a decimal unit: 480 MB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= 0.9995 * unit:
            return f"{_three(number / unit)} {name}"
    return f"{number:.0f} B"


def _three(value: float) -> str:
    return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f}"


def _ratio(value: float | None) -> str:
    return _DASH if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _rows(headings: Sequence[str], rows: Sequence[Sequence[str]], left: tuple[int, ...]) -> list[str]:
    rule = [":--" if column in left else "--:" for column in range(len(headings))]
    return [f"| {' | '.join(row)} |" for row in (headings, rule, *rows)]
