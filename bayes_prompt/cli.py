"""The command `bayes-prompt`, one `Command` per subcommand."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bayes_prompt.fitting import command as fitting_command
from bayes_prompt.replays import command as replay_command

if TYPE_CHECKING:
    from rich.console import Console

    from bayes_prompt.testbed.experiment import Progress

#: What the demo imports, by the names of the modules.
_DEMO_NEEDS = ("trl", "transformers", "accelerate", "datasets", "tokenizers", "matplotlib", "pyarrow", "rich")
# Known without importing the testbed, so that --help and errors are quick; a test compares them with it.
_METHODS = ("uniform", "best", "dps", "mopps", "kgps", "gps", "history_resampling")
_LEAST_PROMPTS = 256
# Of the benchmarks, likewise.
_OPERATIONS = ("filter", "select", "thompson", "step")
_PEERS = (
    *("dict of arrays", "numpy float64", "torch eager", "torch.compile", "torch.compile fused"),
    *("numpy.random.beta", "numpy Generator.beta", "torch.distributions.Beta", "torch.topk", "numpy.argpartition"),
)
_BACKENDS = ("auto", "reference", "cpu", "triton")
_LEAST_SIZE, _MOST_SIZE = 512, 10**10  # prompts: two batches; more than memory holds


@dataclass(frozen=True)
class Command:
    """A subcommand. extra: the extra it needs.  needs: the modules of that extra.  act: returns the exit code."""

    name: str
    help: str
    extra: str
    needs: tuple[str, ...]
    configure: Callable[[argparse.ArgumentParser], None]
    act: Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0; 1 when results could not be written, whoever reads the output has gone, or a benchmarked implementation is wrong;
    2 for bad usage or a missing extra; 130 when interrupted.
    """
    options = build_parser().parse_args(arguments)
    command: Command = options.command
    missing = [module for module in command.needs if importlib.util.find_spec(module) is None]
    if missing:
        print(
            f"bayes-prompt {command.name} needs {', '.join(missing)}; install with:\n\n"
            f'    pip install "bayes-prompt[{command.extra}]"\n',
            file=sys.stderr,
        )
        return 2
    try:
        code = command.act(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # As when it is piped into head. What is still to be written goes nowhere, so that the exit is quiet, too.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="bayes-prompt", description="Choose which prompts to roll out next when finetuning a language model by RL."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        subparser = commands.add_parser(command.name, help=command.help, description=command.help)
        command.configure(subparser)
        subparser.set_defaults(command=command)
    return parser


def _names(kind: str, known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """A converter for distinct names with commas between them."""

    def convert(text: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in text.split(","))
        if "" in names:
            raise argparse.ArgumentTypeError(f"{text!r} leaves a name empty; write names with one comma between two")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not {kind}; choose among {', '.join(known)}")
        if len(set(names)) < len(names):
            raise argparse.ArgumentTypeError(f"{text!r} names {kind} twice")
        return names

    return convert


def _peers(text: str) -> tuple[str, ...]:
    if text in ("all", "none"):
        return _PEERS if text == "all" else ()
    return _names("a peer", _PEERS)(text)


def _sizes(text: str) -> tuple[int, ...]:
    """Distinct numbers of prompts, smallest first; 1e6 is one too."""
    sizes = set()
    for part in text.split(","):
        try:
            value = float(part)
            whole = int(part) if part.strip().isdecimal() else int(value)
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"must be integers such as 40000 or 1e6, got {part!r}") from None
        if whole != value or not _LEAST_SIZE <= whole <= _MOST_SIZE:
            raise argparse.ArgumentTypeError(f"must be integers in [{_LEAST_SIZE}, {_MOST_SIZE}], got {part!r}")
        sizes.add(whole)
    return tuple(sorted(sizes))


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds greater than 0, got {text!r}")
    return value


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A converter for integers in [least, most]."""
    accepted = f"an integer >= {least}" if most is None else f"an integer in [{least}, {most}]"

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {accepted}, got {text!r}") from None
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"must be {accepted}, got {value}")
        return value

    return convert


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("must be the name of a folder, got ''")
    path = Path(os.path.expanduser(text))
    if os.path.exists(path) and not os.path.isdir(path):  # unlike Path's, these never raise
        raise argparse.ArgumentTypeError(f"{text!r} exists and is not a folder")
    return path


def _configure_demo(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--methods",
        type=_names("a method", _METHODS),
        default="uniform,dps",
        metavar="A,B,...",
        help=f"ways of choosing prompts, one after the other, among {', '.join(_METHODS)} (default: %(default)s)",
    )
    add("--steps", type=_whole(1), default=80, metavar="N", help="GRPO steps of each method (default: %(default)s)")
    add(
        "--prompts",
        type=_whole(_LEAST_PROMPTS),
        default=256,
        metavar="N",
        help=f"prompts in the training pool, at least {_LEAST_PROMPTS} (default: %(default)s)",
    )
    # NumPy's generator, which the trainer seeds too, takes 32 bits.
    add("--seed", type=_whole(0, 2**32 - 1), default=0, metavar="N", help="seed of everything (default: %(default)s)")
    add(
        "--out",
        type=_folder,
        default="bayes-prompt-demo",
        metavar="DIR",
        help="folder for curves, results and rollout histories (default: %(default)s)",
    )
    add("--json", action="store_true", help="print the results to stdout as JSON, and nothing else")
    add("--quiet", action="store_true", help="no progress bars")
    cache = parser.add_mutually_exclusive_group()
    cache.add_argument(
        "--cache",
        type=_folder,
        metavar="DIR",
        help="folder of warm starts (default: $BAYES_PROMPT_CACHE, or bayes_prompt in the user's cache folder)",
    )
    cache.add_argument("--no-cache", action="store_true", help="make the warm start anew and do not keep it")


def _demo(options: argparse.Namespace) -> int:
    from rich.console import Console

    from bayes_prompt.files import writable_folder

    try:
        writable_folder(options.out, "argument --out")
    except ValueError as error:
        return _failed(2, error)
    terminal = Console(stderr=True, quiet=options.quiet)
    failure: Exception | None = None
    # Whatever a library prints goes to stderr: stdout is for the results.
    with redirect_stdout(sys.stderr), _bars(terminal) as progress:
        progress("loading libraries", 0, None, "")
        from bayes_prompt.testbed import report
        from bayes_prompt.testbed.experiment import run
        from bayes_prompt.testbed.results import NotWritten

        progress("loading libraries", 1, 1, "")
        try:
            results = run(
                options.methods,
                steps=options.steps,
                prompts=options.prompts,
                seed=options.seed,
                out=options.out,
                cache=options.cache,
                use_cache=not options.no_cache,
                progress=progress,
            )
        except NotWritten as error:
            results, failure = error.results, error
    if options.json:
        print(json.dumps(report.summaries(results)))
    else:
        console = Console(width=None if sys.stdout.isatty() else 100)
        report.show(results, console)
        if failure is None:
            # Its name may have characters that this terminal has not.
            folder = str(options.out).encode(console.encoding, "backslashreplace").decode(console.encoding)
            console.print(f"curves, results and rollout histories: {folder}", highlight=False, soft_wrap=True)
    return 0 if failure is None else _failed(1, failure)


def _configure_bench(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--operations",
        type=_names("an operation", _OPERATIONS),
        default=",".join(_OPERATIONS),
        metavar="A,B,...",
        help=f"what is measured, among {', '.join(_OPERATIONS)} (default: all)",
    )
    add(
        "--sizes",
        type=_sizes,
        default="1e4,1e5,1e6",
        metavar="N,N,...",
        help="numbers of prompts; those that memory cannot hold are left out (default: %(default)s)",
    )
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    add("--backend", choices=_BACKENDS, default="auto", help="of our kernels (default: %(default)s)")
    add(
        "--peers",
        type=_peers,
        default="all",
        metavar="A,B,...",
        help='other implementations beside ours: "all", "none", or names that --list shows (default: %(default)s)',
    )
    add(
        "--budget",
        type=_seconds,
        default=0.5,
        metavar="SECONDS",
        help="for the repetitions of each implementation at each size; a peer that cannot make three in it is left out "
        "(default: %(default)g)",
    )
    add(
        "--out", type=_folder, default="bayes-prompt-bench", metavar="DIR", help="of the results (default: %(default)s)"
    )
    add("--json", action="store_true", help="print the results to stdout as JSON, and nothing else")
    add("--quiet", action="store_true", help="no progress bars")
    add("--list", action="store_true", help="show operations, settings and implementations, and measure nothing")


def _bench(options: argparse.Namespace) -> int:
    from rich.console import Console

    if options.list:
        return _list_benchmarks()
    from bayes_prompt.files import writable_folder

    try:
        writable_folder(options.out, "argument --out")
    except ValueError as error:
        return _failed(2, error, "bench")
    with redirect_stdout(sys.stderr), _bars(Console(stderr=True, quiet=options.quiet)) as progress:
        progress("loading libraries", 0, None, "")
        import torch

        from bayes_prompt.bench import plots, results, suite, tables
        from bayes_prompt.kernels.backend import BackendUnavailable

        progress("loading libraries", 1, 1, "")
        if options.device == "cuda" and not torch.cuda.is_available():
            return _failed(2, ValueError("argument --device: torch finds no CUDA device"), "bench")
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
            return _failed(2, ValueError(f"argument --backend: {error}"), "bench")
    failure: OSError | None = None
    try:
        path = results.write(found, options.out)
        plots.plot(found, path.with_suffix(".png"))
    except OSError as error:
        failure = error
    if options.json:
        print(json.dumps(found.to_json()))
    else:
        console = Console(width=None if sys.stdout.isatty() else 140)
        tables.show(found, console)
        if failure is None:
            name = str(path).encode(console.encoding, "backslashreplace").decode(console.encoding)
            console.print(f"results, and beside them a plot: {name}", highlight=False, soft_wrap=True)
    if failure is not None:
        return _failed(1, failure, "bench")
    for verdict in found.failures:
        said = f"{verdict.operation} by {verdict.implementation} disagrees with the reference: {verdict.detail}"
        _failed(1, ValueError(said), "bench")
    return 1 if found.failures else 0


def _list_benchmarks() -> int:
    from bayes_prompt.bench.cases import cases
    from bayes_prompt.bench.workloads import OPERATIONS, SETTINGS

    for operation, does in OPERATIONS.items():
        print(f"{operation}: {does}")
        for setting, means in SETTINGS[operation].items():
            print(f"  {setting}: {means}")
        print(f"  implementations: {', '.join(case.implementation for case in cases(operation, 'cuda'))}")
    return 0


def _failed(code: int, error: Exception, command: str = "demo") -> int:
    print(f"bayes-prompt {command}: error: {error}", file=sys.stderr)
    return code


@contextmanager
def _bars(console: Console) -> Iterator[Progress]:
    """A progress bar per stage; stages appear when they are first heard of."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[remark]}"),
    )
    with Progress(*columns, console=console) as bars:
        stages: dict[str, TaskID] = {}

        def tell(stage: str, done: int, total: int | None, remark: str) -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(stage, total=total, remark=remark)
            bars.update(stages[stage], completed=done, total=total, remark=remark)

        yield tell


COMMANDS = (
    Command(
        "fit",
        fitting_command.FIT_HELP,
        "replay",
        fitting_command.NEEDS,
        fitting_command.configure_fit,
        fitting_command.act_fit,
    ),
    Command(
        "compare",
        fitting_command.COMPARE_HELP,
        "replay",
        fitting_command.NEEDS,
        fitting_command.configure_compare,
        fitting_command.act_compare,
    ),
    Command(
        "replay", replay_command.HELP, "replay", replay_command.NEEDS, replay_command.configure, replay_command.act
    ),
    Command(
        "demo",
        "Finetune a small language model by RL, once per method of choosing prompts, and show the difference.",
        "demo",
        _DEMO_NEEDS,
        _configure_demo,
        _demo,
    ),
    Command(
        "bench",
        "Measure how fast the package is on this machine, beside other ways to do the same.",
        "bench",
        ("matplotlib", "rich"),
        _configure_bench,
        _bench,
    ),
)

if __name__ == "__main__":
    sys.exit(main())
