"""`bayes-prompt bench`: how fast the package is on this machine."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout

from bayes_prompt.command_line import bars, console, failed, folder, names, positive, shown

HELP = "Measure how fast the package is on this machine, beside other ways to do the same."
NEEDS = ("matplotlib", "rich")
# Known without importing torch, so that --help and errors are quick; a test compares them with what there is.
OPERATIONS = ("filter", "select", "thompson", "step")
PEERS = (
    *("dict of arrays", "numpy float64", "torch eager", "torch.compile", "torch.compile fused"),
    *("numpy.random.beta", "numpy Generator.beta", "torch.distributions.Beta", "torch.topk", "numpy.argpartition"),
)
BACKENDS = ("auto", "reference", "cpu", "triton")
LEAST_SIZE, MOST_SIZE = 512, 10**10  # prompts: two batches; more than memory holds


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add(
        "--operations",
        type=names("an operation", OPERATIONS),
        default=",".join(OPERATIONS),
        metavar="A,B,...",
        help=f"what is measured, among {', '.join(OPERATIONS)} (default: all)",
    )
    add(
        "--sizes",
        type=_sizes,
        default="1e4,1e5,1e6",
        metavar="N,N,...",
        help="numbers of prompts; those that memory cannot hold are left out (default: %(default)s)",
    )
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    add("--backend", choices=BACKENDS, default="auto", help="of our kernels (default: %(default)s)")
    add(
        "--peers",
        type=_peers,
        default="all",
        metavar="A,B,...",
        help='other implementations beside ours: "all", "none", or names that --list shows (default: %(default)s)',
    )
    add(
        "--budget",
        type=positive("a number of seconds greater than 0"),
        default=0.5,
        metavar="SECONDS",
        help="for the repetitions of each implementation at each size; a peer that cannot make three in it is left out "
        "(default: %(default)g)",
    )
    add("--out", type=folder, default="bayes-prompt-bench", metavar="DIR", help="of the results (default: %(default)s)")
    add("--json", action="store_true", help="print the results to stdout as JSON, and nothing else")
    add("--quiet", action="store_true", help="no progress bars")
    add("--list", action="store_true", help="show operations, settings and implementations, and measure nothing")


def act(options: argparse.Namespace) -> int:
    """Measure; returns 0, 1 where an implementation is wrong or results could not be written, 2 for a bad argument."""
    if options.list:
        return _list()
    from bayes_prompt.files import writable_folder

    try:
        writable_folder(options.out, "argument --out")
    except ValueError as error:
        return failed("bench", 2, error)
    with redirect_stdout(sys.stderr), bars(options.quiet) as progress:
        progress("loading libraries", 0, None, "")
        import torch

        from bayes_prompt.bench import plots, results, suite, tables
        from bayes_prompt.kernels.backend import BackendUnavailable

        progress("loading libraries", 1, 1, "")
        if options.device == "cuda" and not torch.cuda.is_available():
            return failed("bench", 2, ValueError("argument --device: torch finds no CUDA device"))
        device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            found = suite.run(
                options.operations,
                options.sizes,
                device=device,
                backend=options.backend,
                peers=options.peers,
                budget=options.budget,
                progress=progress,
            )
        except BackendUnavailable as error:
            return failed("bench", 2, ValueError(f"argument --backend: {error}"))
    failure: OSError | None = None
    try:
        path = results.write(found, options.out)
        plots.plot(found, path.with_suffix(".png"))
    except OSError as error:
        failure = error
    if options.json:
        print(json.dumps(found.to_json()))
    else:
        terminal = console(140)
        tables.show(found, terminal)
        if failure is None:
            terminal.print(f"results, and beside them a plot: {shown(path, terminal)}", highlight=False, soft_wrap=True)
    if failure is not None:
        return failed("bench", 1, failure)
    for verdict in found.failures:
        said = f"{verdict.operation} by {verdict.implementation} disagrees with the reference: {verdict.detail}"
        failed("bench", 1, ValueError(said))
    return 1 if found.failures else 0


def _list() -> int:
    from bayes_prompt.bench.cases import cases
    from bayes_prompt.bench.workloads import OPERATIONS, SETTINGS

    for operation, does in OPERATIONS.items():
        print(f"{operation}: {does}")
        for setting, means in SETTINGS[operation].items():
            print(f"  {setting}: {means}")
        print(f"  implementations: {', '.join(case.implementation for case in cases(operation, 'cuda'))}")
    return 0


def _peers(text: str) -> tuple[str, ...]:
    if text in ("all", "none"):
        return PEERS if text == "all" else ()
    return names("a peer", PEERS)(text)


def _sizes(text: str) -> tuple[int, ...]:
    """Distinct numbers of prompts, smallest first; 1e6 is one too."""
    sizes = set()
    for part in text.split(","):
        try:
            value = float(part)
            whole = int(part) if part.strip().isdecimal() else int(value)
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"must be integers such as 40000 or 1e6, got {part!r}") from None
        if whole != value or not LEAST_SIZE <= whole <= MOST_SIZE:
            raise argparse.ArgumentTypeError(f"must be integers in [{LEAST_SIZE}, {MOST_SIZE}], got {part!r}")
        sizes.add(whole)
    return tuple(sorted(sizes))
