"""Prints the measurements of a file as tables in Markdown, the latest of each command."""

import argparse
from collections.abc import Mapping, Sequence

from xception_jax.commands.benchmark import rows
from xception_jax.commands.benchmark.op import PASSES
from xception_jax.commands.steps import MODES

HEADINGS = ("", "by", "inputs", "device", "median (quartiles)", "images/s", "ratio (quartiles)")
IDENTITY = ("command", "what", "by", "inputs", "images")  # rows that agree in these measure the same


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    rows.add_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prints a table for each benchmark that has rows in the file."""
    found = latest(rows.read(arguments.csv))
    images = {row["what"] for row in found}.difference(MODES, PASSES)
    for names in (MODES, PASSES, images):
        if chosen := [row for row in found if row["what"] in names]:
            print(markdown(chosen) + "\n")


def latest(measured: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The last row of each thing measured, in the order of their first ones."""
    return list({tuple(row[column] for column in IDENTITY): row for row in measured}.values())


def markdown(measured: Sequence[Mapping[str, str]]) -> str:
    """A table with a line for each row."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *map(_cells, measured)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(row: Mapping[str, str]) -> tuple[str, ...]:
    images, seconds = int(row["images"]), float(row["seconds"])
    inputs = row["inputs"] if images == 1 else f"{images} x {row['inputs']}"
    cells = (row["what"], row["by"], inputs, row["device"])
    rate = images / seconds
    return *cells, rows.milliseconds(row), f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}", rows.ratio(row)
