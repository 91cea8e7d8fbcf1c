"""`bayes-prompt demo`: a small real RL run, once per method of choosing prompts."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout

from bayes_prompt.command_line import bars, console, failed, folder, names, shown, whole

HELP = "Finetune a small language model by RL, once per method of choosing prompts, and show the difference."
#: What it imports, by the names of the modules.
NEEDS = ("trl", "transformers", "accelerate", "datasets", "tokenizers", "matplotlib", "pyarrow", "rich")
# Known without importing the testbed, so that --help and errors are quick; a test compares them with it.
METHODS = ("uniform", "best", "dps", "mopps", "kgps", "gps", "history_resampling")
LEAST_PROMPTS = 256


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add(
        "--methods",
        type=names("a method", METHODS),
        default="uniform,dps",
        metavar="A,B,...",
        help=f"ways of choosing prompts, one after the other, among {', '.join(METHODS)} (default: %(default)s)",
    )
    add("--steps", type=whole(1), default=80, metavar="N", help="GRPO steps of each method (default: %(default)s)")
    add(
        "--prompts",
        type=whole(LEAST_PROMPTS),
        default=256,
        metavar="N",
        help=f"prompts in the training pool, at least {LEAST_PROMPTS} (default: %(default)s)",
    )
    # NumPy's generator, which the trainer seeds too, takes 32 bits.
    add("--seed", type=whole(0, 2**32 - 1), default=0, metavar="N", help="seed of everything (default: %(default)s)")
    add(
        "--out",
        type=folder,
        default="bayes-prompt-demo",
        metavar="DIR",
        help="folder for curves, results and rollout histories (default: %(default)s)",
    )
    add("--json", action="store_true", help="print the results to stdout as JSON, and nothing else")
    add("--quiet", action="store_true", help="no progress bars")
    cache = parser.add_mutually_exclusive_group()
    cache.add_argument(
        "--cache",
        type=folder,
        metavar="DIR",
        help="folder of warm starts (default: $BAYES_PROMPT_CACHE, or bayes_prompt in the user's cache folder)",
    )
    cache.add_argument("--no-cache", action="store_true", help="make the warm start anew and do not keep it")


def act(options: argparse.Namespace) -> int:
    """Run the demo; returns 0, 1 when results could not be written, 2 for a folder that cannot be used."""
    from bayes_prompt.files import writable_folder

    try:
        writable_folder(options.out, "argument --out")
    except ValueError as error:
        return failed("demo", 2, error)
    failure: Exception | None = None
    # Whatever a library prints goes to stderr: stdout is for the results.
    with redirect_stdout(sys.stderr), bars(options.quiet) as progress:
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
        terminal = console(100)
        report.show(results, terminal)
        if failure is None:
            where = shown(options.out, terminal)
            terminal.print(f"curves, results and rollout histories: {where}", highlight=False, soft_wrap=True)
    return 0 if failure is None else failed("demo", 1, failure)
