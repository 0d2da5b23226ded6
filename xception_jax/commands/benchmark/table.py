"""Prints the measurements of a file as Markdown, the latest of each command."""

import argparse
import re
from collections.abc import Callable, Sequence

from xception_jax.commands.benchmark import records

Row = dict[str, str]
# Rows of one command that agree in these measure the same thing.
IDENTITY = ("command", "benchmark", "library", "model", "batch", "image_size", "dtype", "mode", "layer",
            "implementation")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    records.add_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prints a table of the steps, one of the comparisons, and one for each command that timed layers."""
    rows = latest(records.read(arguments.csv))
    tables = []
    for benchmark, columns in TABLES.items():
        if chosen := [row for row in rows if row["benchmark"] == benchmark]:
            tables.append(markdown(columns, chosen))
    ops = [row for row in rows if row["benchmark"] == "op"]
    for command in dict.fromkeys(row["command"] for row in ops):
        tables.append(op_table([row for row in ops if row["command"] == command]))
    print("\n\n".join(tables) if tables else f"{arguments.csv} has no rows")


def latest(rows: Sequence[Row]) -> list[Row]:
    """The last row of each thing measured, in the order of their first ones."""
    found = {tuple(row[column] for column in IDENTITY): row for row in rows}
    return list(found.values())


def markdown(columns: dict[str, Callable[[Row], str]], rows: Sequence[Row]) -> str:
    """A table; `columns` says for each heading how a row fills it."""
    lines = [columns.keys(), ["---"] * len(columns), *([fill(row) for fill in columns.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _name(row: Row) -> str:
    library = "" if row["library"] == "xception_jax" else f"{row['library']} "
    if library:
        choice = "" if row["implementation"] == "default" else row["implementation"]
    else:
        settings = re.search(r"--set ((?:[\w.]+=\S+ ?)+)", row["command"])
        choice = settings[1].strip() if settings else ""
    return f"{library}{row['model']}" + (f" ({choice})" if choice else "")


def _images(row: Row) -> str:
    return f"{row['batch']} x {row['image_size']} px, {row['dtype']}"


def _device(row: Row) -> str:
    return f"{row['cpu']}, {row['cores']} cores" if row["cpu"] else row["device"]


def _milliseconds(row: Row) -> str:
    median, low, high = (records.format_ms(float(row[key])) for key in records.SECONDS)
    return f"{median} ({low} to {high})"


def _images_per_second(row: Row) -> str:
    return f"{float(row['images_per_second']):.3g}"


def _ratio(row: Row) -> str:
    if not row["time_ratio"]:
        return ""
    median, low, high = (f"{float(row[key]):.3g}" for key in records.RATIO)
    return f"{median} ({low} to {high}) of {row['reference']}'s"


def op_table(rows: Sequence[Row]) -> str:
    """Of one command: a line for each layer and implementation, a column for each pass."""
    first = rows[0]
    passes = dict.fromkeys(row["mode"] for row in rows)
    lines: dict[tuple[str, str], Row] = {}
    for row in rows:
        line = lines.setdefault((row["layer"], row["implementation"]), {})
        line[row["mode"]] = f"{records.format_ms(float(row['seconds']))} ({float(row['time_ratio']):.3g})"
    table = [{"layer": layer, "implementation": name, **cells} for (layer, name), cells in lines.items()]
    columns = {key: lambda line, key=key: line.get(key, "") for key in ("layer", "implementation", *passes)}
    about = f"{first['model']}, {_images(first)}, {_device(first)}: ms (share of {first['reference']}'s time)"
    return f"{about}\n\n{markdown(columns, table)}"


SHARED = {
    "model": _name,
    "images": _images,
    "device": _device,
    "pass": lambda row: row["mode"],
    "ms (quartiles)": _milliseconds,
    "images/s": _images_per_second,
}
TABLES = {
    "step": SHARED | {"of the roofline": lambda row: f"{float(row['roofline_share']):.0%} ({row['bound']})"},
    "versus": SHARED | {"share of the peer's time": _ratio},
}
