"""`bayes-prompt fit` and `bayes-prompt compare`: models learned from rollout histories, and compared on them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from bayes_prompt.history import History

FIT_HELP = "Learn the parameters of a model from a rollout history, and print the line of Python that makes it."
COMPARE_HELP = "Compare models by how well each predicted a rollout history, and show what each gets wrong."
NEEDS = ("rich",)  # and pyarrow for Parquet, which says so itself
# Known without importing Pyro, so that --help and errors are quick; a test compares them with the families.
MODELS = ("dps", "states", "partition", "mopps", "static", "inflated", "walk", "redraw", "mixture")
METHODS = ("svi", "nuts", "map")


def configure_fit(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `bayes-prompt fit`."""
    add = parser.add_argument
    _history(parser)
    add("--model", choices=MODELS, default="walk", help="family of models (default: %(default)s)")
    add(
        "--method",
        choices=METHODS,
        default="svi",
        help="variational inference, Hamiltonian Monte Carlo (for small histories), or the mode alone (default: "
        "%(default)s)",
    )
    add(
        "--fix",
        type=_fixed,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="hold a parameter at a value; may be given again",
    )
    add("--draws", type=_whole(1), default=300, metavar="N", help="of nuts (default: %(default)s)")
    add("--seed", type=_whole(0), default=0, metavar="N", help="of all randomness (default: %(default)s)")
    add(
        "--out",
        metavar="FILE",
        help="write what was found there as JSON; the model is made of it by read(FILE), after: from "
        "bayes_prompt.fitting.families import read",
    )
    add("--json", action="store_true", help="print the same to stdout, and nothing else")
    add("--quiet", action="store_true", help="no progress bars")


def configure_compare(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `bayes-prompt compare`."""
    add = parser.add_argument
    _history(parser)
    add(
        "--models",
        type=_models,
        default=",".join(MODELS),
        metavar="A,B,...",
        help=f"families of models among {', '.join(MODELS)}, or files that fit --out wrote (default: all families)",
    )
    add(
        "--fit",
        action="store_true",
        help="fit each family to every second prompt, and compare on the others; without it they have the parameters "
        "that they start from",
    )
    add(
        "--replicates",
        type=_whole(0),
        default=40,
        metavar="N",
        help="histories drawn from each model, for the checks; 0: no checks (default: %(default)s)",
    )
    add("--seed", type=_whole(0), default=0, metavar="N", help="of all randomness (default: %(default)s)")
    add("--json", action="store_true", help="print the results to stdout as JSON, and nothing else")
    add("--quiet", action="store_true", help="no progress bars")


def act_fit(options: argparse.Namespace) -> int:
    """Fit; returns 0, 1 when the result could not be written, 2 for a file or an argument that cannot be used."""
    with redirect_stdout(sys.stderr), _bars(options.quiet) as tell:  # stdout is for the results
        from bayes_prompt.fitting.fit import fit

        try:
            history = _read(options.history)
            if options.out is not None:
                _writable(options.out)
            result = fit(
                history,
                options.model,
                method=options.method,
                draws=options.draws,
                seed=options.seed,
                progress=tell,
                **dict(options.fix),
            )
        except (OSError, ValueError, TypeError, ImportError, FloatingPointError) as error:
            return _failed("fit", 2, error)
    failure: OSError | None = None
    if options.out is not None:
        try:
            result.write(options.out)
        except OSError as error:
            failure = error
    if options.json:
        print(json.dumps(result.to_json(), allow_nan=False))
    else:
        from bayes_prompt.fitting import tables

        tables.show_fit(result, _console())
    return 0 if failure is None else _failed("fit", 1, failure)


def act_compare(options: argparse.Namespace) -> int:
    """Compare; returns 0, or 2 for a file or an argument that cannot be used."""
    with redirect_stdout(sys.stderr), _bars(options.quiet) as tell:
        from bayes_prompt.fitting.compare import compare

        try:
            history = _read(options.history)
            models, history = _declared(options, history, tell)
            found = compare(history, models, replicates=options.replicates, seed=options.seed, progress=tell)
        except (OSError, ValueError, TypeError, ImportError, FloatingPointError) as error:
            return _failed("compare", 2, error)
    if options.json:
        print(json.dumps(found.to_json(), allow_nan=False))
    else:
        from bayes_prompt.fitting import tables

        tables.show_comparison(found, _console())
    return 0


def _declared(
    options: argparse.Namespace, history: History, tell: Callable[[str, int, int], None]
) -> tuple[dict[str, Any], History]:
    """The models by name, and the history to compare them on."""
    from bayes_prompt.fitting.families import FAMILIES, read
    from bayes_prompt.fitting.fit import fit

    models: dict[str, Any] = {}
    learned = judged = history
    if options.fit:
        if history.num_prompts < 2:
            raise ValueError("argument --fit: HISTORY must have two prompts or more")
        learned, judged = _every_second(history, 0), _every_second(history, 1)
    for name in options.models:
        if name not in FAMILIES:
            models[name] = read(name)
        elif options.fit:
            result = fit(
                learned,
                name,
                method="map",
                seed=options.seed,
                progress=lambda stage, done, total, name=name: tell(f"{name}: {stage}", done, total),  # type: ignore[misc]
            )
            models[name] = result.model
        else:
            models[name] = FAMILIES[name].declare()
    return models, judged


def _every_second(history: History, first: int) -> History:
    from bayes_prompt.history import History

    assert history.successes is not None
    return History(history.successes[:, first::2], history.trials[:, first::2])


def _history(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "history",
        metavar="HISTORY",
        help="rollout history, .parquet or .jsonl, with the columns prompt_id, step (or visit), successes, trials",
    )


def _read(path: str) -> History:
    from bayes_prompt.history import History

    if not Path(path).is_file():
        raise ValueError(f"argument HISTORY: there is no file {path!r}")
    try:
        return History.read(path)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise ValueError(f"argument HISTORY: {error}") from error


def _writable(file: str) -> None:
    from bayes_prompt.files import writable_folder

    if Path(file).is_dir():
        raise ValueError(f"argument --out: {file!r} is a folder")
    writable_folder(Path(file).parent, "argument --out")


def _models(text: str) -> tuple[str, ...]:
    """Distinct names of families, and files."""
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in MODELS and not Path(name).is_file():
            raise argparse.ArgumentTypeError(f"{name!r} is no model and no file; choose among {', '.join(MODELS)}")
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} names a model twice")
    return names


def _fixed(text: str) -> tuple[str, float]:
    name, sign, value = text.partition("=")
    try:
        if sign:
            return name.strip(), float(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"must be NAME=VALUE with a number, such as decay=0.7; got {text!r}")


def _whole(least: int) -> Callable[[str], int]:
    """A converter for integers of at least that."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"must be an integer >= {least}, got {text!r}")
        return value

    return convert


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140)


@contextmanager
def _bars(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage on stderr; a function of (stage, done, in all) to call as work goes on."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True, quiet=quiet)
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bars:
        stages: dict[str, TaskID] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = bars.add_task(stage, total=total)
            bars.update(stages[stage], completed=done, total=total)

        yield tell


def _failed(command: str, code: int, error: Exception) -> int:
    print(f"bayes-prompt {command}: error: {error}", file=sys.stderr)
    return code
