"""Races this package against other libraries, or against another checkout of itself; see tools/README.md."""

import argparse

from racing import commits, images, peers, recurrent

from xception_jax.__main__ import call

RACES = {"step": peers, "data": images, "commits": commits, "recurrent": recurrent}


def main() -> None:
    """Runs the race; a mistake is one line and exit code 2, a worker that fails one line and 1."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    subparsers = parser.add_subparsers(dest="race", required=True)
    for name, module in RACES.items():
        module.add_arguments(subparsers.add_parser(name, help=module.__doc__, description=module.__doc__))
    arguments = parser.parse_args()
    call(RACES[arguments.race].run, arguments)


if __name__ == "__main__":
    main()
