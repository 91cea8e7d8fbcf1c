"""`bayes-prompt replay`: what methods of choosing prompts would have picked in a recorded history."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from bayes_prompt.command_line import add_history, column_of, console, failed, positive, read_history, whole, writable

if TYPE_CHECKING:
    from bayes_prompt.history import History

HELP = "Replay ways of choosing prompts on a recorded rollout history, and compare what they would have picked."
NEEDS = ("rich",)  # and pyarrow for Parquet, matplotlib for --plots, which say so themselves
METHODS = "uniform,dps:decay=0.5,mopps:decay=1"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add_history(parser)
    add(
        "--methods",
        default=METHODS,
        metavar="A,B:OPTION=VALUE,...",
        help="names of recipes, with options behind colons; commas in brackets are a value's (default: %(default)s)",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--batch-fraction",
        type=positive("a number in (0, 1]", 1.0),
        default=0.1,
        metavar="SHARE",
        help="share of the pool picked at each visit (default: %(default)s)",
    )
    size.add_argument("--batch-size", type=whole(1), metavar="N", help="or so many prompts")
    add("--seeds", type=whole(1), default=5, metavar="N", help="runs of each method (default: %(default)s)")
    add(
        "--visits",
        type=whole(1),
        metavar="N",
        help="replay the first N steps (default: all; where every prompt counts its own, in a column called visit, as "
        "many as nine in ten prompts have)",
    )
    add(
        "--min-visits",
        type=whole(1),
        metavar="N",
        help="keep prompts with at least N records (default: 1; where every prompt counts its own visits, --visits)",
    )
    add(
        "--first-visit",
        type=whole(0),
        default=5,
        metavar="N",
        help="judge P(informative) from this visit on, counted from 0 (default: %(default)s)",
    )
    add("--texts", metavar="FILE", help="table of the prompts, .parquet or .jsonl: prompt_id and their texts")
    add("--text-column", default="text", metavar="COLUMN", help="where FILE has the texts (default: %(default)s)")
    add(
        "--groups",
        metavar="[FILE:]COLUMN",
        help="labels of the prompts, such as their data set: a column of the file of --texts, or of another one",
    )
    add(
        "--prior-rates",
        metavar="[FILE:]COLUMN",
        help="success rates in [0, 1] that were known before training, of another model, say; null for none",
    )
    add("--json", metavar="OUT", help='write the results there as JSON; "-": to stdout, and nothing else')
    add("--plots", metavar="DIR", help="folder for ratio_by_visit.png and reliability.png")
    add("--quiet", action="store_true", help="no progress bars")


def act(options: argparse.Namespace) -> int:
    """Replay; returns 0, 1 when results could not be written, 2 for a file or an argument that cannot be used."""
    from bayes_prompt.files import writable_folder

    try:
        if options.plots is not None:
            import matplotlib  # noqa: F401 - told now, not after the work

            writable_folder(options.plots, "argument --plots")
        if options.json not in (None, "-"):
            inputs = {"HISTORY": options.history, "--texts": options.texts}
            for argument in ("--groups", "--prior-rates"):
                inputs[argument] = _file_and_column(options, argument)[0]
            writable(options.json, "--json", inputs)
    except (ValueError, ImportError) as error:
        return failed("replay", 2, error)
    with redirect_stdout(sys.stderr):  # whatever a library prints: stdout is for the results
        from bayes_prompt.replays.methods import split
        from bayes_prompt.replays.protocol import replay

        try:
            history = read_history(options.history)
            sides = _sides(options, history)
            results = replay(
                history,
                split(options.methods, ","),
                batch_size=options.batch_size,
                batch_fraction=options.batch_fraction,
                seeds=options.seeds,
                visits=options.visits,
                min_visits=options.min_visits,
                first_visit=options.first_visit,
                progress=not options.quiet,
                **sides,
            )
        except (OSError, ValueError, TypeError, ImportError) as error:
            return failed("replay", 2, error)
    failure: Exception | None = None
    try:
        if options.json not in (None, "-"):
            results.write(options.json)
        if options.plots is not None:
            from bayes_prompt.replays import plots

            plots.write(results, options.plots)
    except (OSError, ValueError) as error:
        failure = error
    if options.json == "-":
        print(json.dumps(results.to_json(), allow_nan=False))
    else:
        from bayes_prompt.replays import tables

        tables.show(results, console(120))
    return 0 if failure is None else failed("replay", 1, failure)


def _sides(options: argparse.Namespace, history: History) -> dict[str, Any]:
    """Texts and groups of the history's prompts, in the order of its rows."""
    found: dict[str, Any] = {}
    if options.texts is not None:
        found["texts"] = column_of(options.texts, options.text_column, history, "--texts")
        if not all(isinstance(text, str) for text in found["texts"]):
            raise ValueError(f"argument --text-column: column {options.text_column!r} must hold strings")
    for argument, name in (("--groups", "groups"), ("--prior-rates", "prior_rates")):
        file, column = _file_and_column(options, argument)
        if column is None:
            continue
        if not (file or options.texts):
            raise ValueError(f"argument {argument}: name its file, FILE:COLUMN, or give --texts FILE")
        found[name] = column_of(file or options.texts, column, history, argument, gaps=name == "prior_rates")
        if all(value is None for value in found[name]):
            raise ValueError(
                f"argument {argument}: {file or options.texts!r} has no {column} of any prompt of the history"
            )
    return found


def _file_and_column(options: argparse.Namespace, argument: str) -> tuple[str | None, str | None]:
    """The two parts of [FILE:]COLUMN; None for what was not given."""
    given = getattr(options, argument.removeprefix("--").replace("-", "_"))
    if given is None:
        return None, None
    file, _, column = given.rpartition(":")
    return file or None, column
