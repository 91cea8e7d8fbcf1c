"""The command `bayes-prompt`, one `Command` per subcommand."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bayes_prompt.bench import command as bench
from bayes_prompt.fitting import command as fitting
from bayes_prompt.replays import command as replays
from bayes_prompt.testbed import command as testbed


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


COMMANDS = (
    Command("fit", fitting.FIT_HELP, "replay", fitting.NEEDS, fitting.configure_fit, fitting.act_fit),
    Command("compare", fitting.COMPARE_HELP, "replay", fitting.NEEDS, fitting.configure_compare, fitting.act_compare),
    Command("replay", replays.HELP, "replay", replays.NEEDS, replays.configure, replays.act),
    Command("demo", testbed.HELP, "demo", testbed.NEEDS, testbed.configure, testbed.act),
    Command("bench", bench.HELP, "bench", bench.NEEDS, bench.configure, bench.act),
)

if __name__ == "__main__":
    sys.exit(main())
