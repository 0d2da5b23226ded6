"""Prints the most probable classes of texts or image files, by the network that a run trained."""

import argparse
import pathlib
import sys

import numpy as np

from xception_jax import loop, trained
from xception_jax.errors import UserError

SHOWN = 3  # classes of an example


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    parser.add_argument("examples", nargs="*", metavar="EXAMPLE", help="a text or, for images, the path of a file")
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="of the run")
    parser.add_argument("--file", type=pathlib.Path, help="file with an example on each line")
    parser.add_argument("--checkpoint", default="best", help="best, latest or a step (default: best)")
    parser.add_argument("--weights", choices=("averaged", "raw"), help="(default: averaged, if the run has them)")


def run(arguments: argparse.Namespace) -> None:
    """Prints a line for each example: its most probable classes, then the example."""
    sys.stdout.reconfigure(errors="backslashreplace")
    examples = [*arguments.examples, *(_lines(arguments.file) if arguments.file is not None else [])]
    if not examples:
        raise UserError("no examples: give a text or an image file as an argument, or --file")
    loop.use_compilation_cache()
    opened = trained.load(arguments.workdir, checkpoint=arguments.checkpoint, weights=arguments.weights)
    try:
        raw = [opened.inputs.from_argument(example) for example in examples]
        probabilities = opened.predict(raw)  # [N, classes]
    except ValueError as error:
        raise UserError(str(error)) from None
    for example, row in zip(examples, probabilities, strict=True):
        print(f"{describe(row, opened.class_names)} | {' '.join(example.splitlines())}")


def _lines(path: pathlib.Path) -> list[str]:
    """The lines of a file that are not blank."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--file={path}: cannot be read ({reason}); name a file of UTF-8 text") from None
    if not lines:
        raise UserError(f"--file={path}: has no lines; write an example on each")
    return lines


def describe(probabilities: np.ndarray, class_names: tuple[str, ...]) -> str:
    """The most probable classes of an example.

    Args:
      probabilities: float32[classes].

    >>> describe(np.array([0.25, 0.75]), ("cat", "dog"))
    'dog 75.0 %, cat 25.0 %'
    """
    best = np.argsort(-probabilities, kind="stable")[:SHOWN]
    return ", ".join(f"{class_names[index]} {100 * probabilities[index]:.1f} %" for index in best)
