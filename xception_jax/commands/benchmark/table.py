"""Prints the measurements of a file as Markdown, the latest of each command."""

import argparse
import re
from collections.abc import Callable, Sequence

from xception_jax.commands.benchmark import device, records

Row = dict[str, str]
# Rows of one command that agree in these measure the same thing.
IDENTITY = ("command", "benchmark", "library", "model", "batch", "image_size", "dtype", "mode", "layer",
            "implementation", "side", "stage", "data", "resize")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    records.add_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prints a table for each kind of measurement in the file, and one for each command that timed layers."""
    rows = latest(records.read(arguments.csv))
    tables = []
    for benchmark, columns in (TABLES | DATA_TABLES).items():
        if chosen := [row for row in rows if row["benchmark"] == benchmark]:
            tables.append(markdown(columns, chosen))
    ops = [row for row in rows if row["benchmark"] == "op"]
    for command in dict.fromkeys(row["command"] for row in ops):
        tables.append(op_table([row for row in ops if row["command"] == command]))
    print("\n\n".join(tables) if tables else f"{arguments.csv} has no rows")


def latest(rows: Sequence[Row]) -> list[Row]:
    """The last row of each thing measured, in the order of their first ones."""
    found = {tuple(row.get(column) for column in IDENTITY): row for row in rows}
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


def _pictures(row: Row) -> str:
    return f"{row['data']}, {float(row['kilobytes']):.0f} kB -> {row['image_size']} px, {row['resize']}"


def _cpu_milliseconds(row: Row) -> str:
    median, low, high = (records.format_ms(float(row[key])) for key in records.CPU)
    return f"{median} ({low} to {high})"


def _times(row: Row, keys: Sequence[str]) -> str:
    median, low, high = (f"{float(row[key]):.3g}" for key in keys)
    return f"{median} ({low} to {high})"


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
    about = f"{first['model']}, {_images(first)}, {device.name(first)}: ms (share of {first['reference']}'s time)"
    return f"{about}\n\n{markdown(columns, table)}"


SHARED = {
    "model": _name,
    "images": _images,
    "device": device.name,
    "pass": lambda row: row["mode"],
    "ms (quartiles)": _milliseconds,
    "images/s": _images_per_second,
}
TABLES = {
    "step": SHARED | {"of the roofline": lambda row: f"{float(row['roofline_share']):.0%} ({row['bound']})"},
    "versus": SHARED | {"share of the peer's time": _ratio},
}
# Of results/data.csv; `benchmark data` writes "data stage" for the parts of its plain loop.
PREPARED = {"pictures": _pictures, "device": device.name}
DATA_TABLES = {
    "data": PREPARED
    | {
        "prepared by": lambda row: row["side"],
        "CPU ms an image (quartiles)": _cpu_milliseconds,
        "images/s a core": _images_per_second,
        "CPU time / plain loop's": lambda row: _times(row, records.OF_BARE),
        "CPU time / pipeline's": lambda row: _times(row, records.OF_PIPELINE),
    },
    "data stage": PREPARED
    | {
        "stage": lambda row: row["stage"],
        "CPU ms an image (quartiles)": _cpu_milliseconds,
        "share of the plain loop": lambda row: (
            f"{float(row['of_bare']):.1%}" if row["stage"] != "transfer" else ""
        ),
    },
}
