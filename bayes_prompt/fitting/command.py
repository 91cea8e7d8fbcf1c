"""`bayes-prompt fit` and `bayes-prompt compare`: models learned from rollout histories, and compared on them."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayes_prompt.command_line import Tell, add_history, bars, column_of, console, failed, read_history, whole, writable

if TYPE_CHECKING:
    from bayes_prompt.history import History

FIT_HELP = "Learn the parameters of a model from a rollout history, and print the line of Python that makes it."
COMPARE_HELP = "Compare models by how well each predicted a rollout history, and show what each gets wrong."
NEEDS = ("rich",)  # and pyarrow for Parquet, which says so itself
# Known without importing Pyro, so that --help and errors are quick; a test compares them with the families.
QUICK = ("dps", "states", "partition", "mopps", "static", "inflated", "walk", "redraw", "mixture")
MODELS = (*QUICK, "kalman", "shared", "best", "pooled", "grouped", "adaptive")
METHODS = ("svi", "nuts", "map")


def configure_fit(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `bayes-prompt fit`."""
    add = parser.add_argument
    add_history(parser)
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
        help="hold a parameter at a value, such as one that the history tells nothing of; may be given again",
    )
    _add_groups(parser)
    add("--draws", type=whole(1), default=300, metavar="N", help="of nuts (default: %(default)s)")
    add("--seed", type=whole(0), default=0, metavar="N", help="of all randomness (default: %(default)s)")
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
    add_history(parser)
    add(
        "--models",
        type=_models,
        default=",".join(QUICK),
        metavar="A,B,...",
        help=f"families of models among {', '.join(MODELS)}, or files that fit --out wrote (default: all but the last "
        f"{len(MODELS) - len(QUICK)}, which take longer)",
    )
    _add_groups(parser)
    add(
        "--fit",
        action="store_true",
        help="fit each family to every second prompt, and compare on the others; what these tell nothing of, "
        "and without it everything, is where the family starts",
    )
    add(
        "--replicates",
        type=whole(0),
        default=40,
        metavar="N",
        help="histories drawn from each model, for the checks; 0: no checks (default: %(default)s)",
    )
    add("--seed", type=whole(0), default=0, metavar="N", help="of all randomness (default: %(default)s)")
    add("--json", action="store_true", help="print the results to stdout as JSON, and nothing else")
    add("--quiet", action="store_true", help="no progress bars")


def act_fit(options: argparse.Namespace) -> int:
    """Fit; returns 0, 1 when the result could not be written, 2 for a file or an argument that cannot be used."""
    with redirect_stdout(sys.stderr), bars(options.quiet, on_terminals_alone=True) as tell:  # stdout is for the results
        from bayes_prompt.fitting.fit import fit

        try:
            history = read_history(options.history)
            if options.out is not None:
                table = None if options.groups is None else options.groups.rpartition(":")[0]
                writable(options.out, "--out", {"HISTORY": options.history, "--groups": table})
            result = fit(
                history,
                options.model,
                groups=_groups(options, history),
                method=options.method,
                draws=options.draws,
                seed=options.seed,
                progress=tell,
                **dict(options.fix),
            )
        except (OSError, ValueError, TypeError, ImportError, FloatingPointError) as error:
            return failed("fit", 2, error)
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

        tables.show_fit(result, console(140))
    return 0 if failure is None else failed("fit", 1, failure)


def act_compare(options: argparse.Namespace) -> int:
    """Compare; returns 0, or 2 for a file or an argument that cannot be used."""
    with redirect_stdout(sys.stderr), bars(options.quiet, on_terminals_alone=True) as tell:
        from bayes_prompt.fitting.compare import compare

        try:
            history = read_history(options.history)
            groups = _groups(options, history)
            models, history, groups = _declared(options, history, groups, tell)
            found = compare(
                history, models, groups=groups, replicates=options.replicates, seed=options.seed, progress=tell
            )
        except (OSError, ValueError, TypeError, ImportError, FloatingPointError) as error:
            return failed("compare", 2, error)
    if options.json:
        print(json.dumps(found.to_json(), allow_nan=False))
    else:
        from bayes_prompt.fitting import tables

        tables.show_comparison(found, console(140))
    return 0


def _declared(
    options: argparse.Namespace, history: History, groups: list[Any] | None, tell: Tell
) -> tuple[dict[str, Any], History, list[Any] | None]:
    """The models by name, and the history to compare them on, with its prompts' groups."""
    from bayes_prompt.fitting.families import FAMILIES, read

    models: dict[str, Any] = {}
    learned, judged = (history, groups), (history, groups)
    if options.fit:
        if history.num_prompts < 2:
            raise ValueError("argument --fit: HISTORY must have two prompts or more")
        learned, judged = (_every_second(history, groups, first) for first in (0, 1))
    for name in options.models:
        if name not in FAMILIES:
            models[name] = read(name)
        elif options.fit:
            models[name] = _fitted(
                name,
                *learned,
                options.seed,
                lambda stage, done, total, name=name: tell(f"{name}: {stage}", done, total),
            )
        else:
            models[name] = FAMILIES[name].declare()
    return models, *judged


def _fitted(name: str, history: History, groups: list[Any] | None, seed: int, tell: Tell) -> Any:
    """A family's declaration at the mode; parameters that the history says nothing of stay where they start."""
    from bayes_prompt.fitting.families import FAMILIES
    from bayes_prompt.fitting.fit import fit
    from bayes_prompt.fitting.program import Undetermined

    family = FAMILIES[name]
    held: dict[str, Any] = {}
    while len(held) < len(family.start):
        try:
            return fit(history, name, groups=groups, method="map", seed=seed, progress=tell, **held).model
        except Undetermined as error:
            held |= {parameter: family.start[parameter] for parameter in error.names}
    return family.declare()


def _every_second(history: History, groups: list[Any] | None, first: int) -> tuple[History, list[Any] | None]:
    assert history.successes is not None
    some = replace(history, successes=history.successes[:, first::2], trials=history.trials[:, first::2], ids=None)
    return some, None if groups is None else groups[first::2]


def _add_groups(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--groups",
        metavar="FILE:COLUMN",
        help="labels of the prompts, such as their data set, for models that learn by group: a column of a table, "
        ".parquet or .jsonl with a column prompt_id",
    )


def _groups(options: argparse.Namespace, history: History) -> list[Any] | None:
    """The label of each prompt, in the order of the history's rows."""
    if options.groups is None:
        return None
    file, _, column = options.groups.rpartition(":")
    if not file:
        raise ValueError(f"argument --groups: must be FILE:COLUMN, got {options.groups!r}")
    return column_of(file, column, history, "--groups")


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
