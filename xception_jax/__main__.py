"""`python -m xception_jax COMMAND`: what can be done besides training."""

import argparse
import os
import sys
from collections.abc import Callable

from absl import logging

from xception_jax.commands import benchmark, evaluate, predict, prepare, preview, reproduce, settings, summary
from xception_jax.errors import TrainingError, UserError

COMMANDS = {
    "evaluate": evaluate,
    "predict": predict,
    "prepare": prepare,
    "preview": preview,
    "summary": summary,
    "settings": settings,
    "benchmark": benchmark,
    "reproduce": reproduce,
}


def main() -> None:
    """Parses the arguments and runs the command that they name."""
    parser = argparse.ArgumentParser(prog="python -m xception_jax", description=__doc__, allow_abbrev=False)
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        module.add_arguments(subparsers.add_parser(name, help=module.__doc__, description=module.__doc__))
    arguments, rest = parser.parse_known_args()
    if rest and not hasattr(arguments, "settings_of_recipe"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.settings_of_recipe = rest
    logging.set_verbosity(logging.FATAL)
    call(COMMANDS[arguments.command].run, arguments)


def call(run: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> None:
    """Runs a command; a mistake is one line and exit code 2, a failed run or Ctrl-C one line and 1."""
    try:
        run(arguments)
    except (UserError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except BrokenPipeError:  # such as of `| head`; Python would complain once more when it closes the output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
