"""The file of measurements: one row for each, with all that is needed to repeat it."""

import argparse
import csv
import dataclasses
import pathlib
import statistics
from collections.abc import Iterable, Sequence

from xception_jax.errors import UserError

# What was measured.
WORK = ("benchmark", "library", "model", "batch", "image_size", "dtype", "mode", "layer", "implementation")
# Seconds of a call: median and quartiles over the rounds; and as a share of a reference's seconds.
SECONDS = ("seconds", "seconds_low", "seconds_high")
RATIO = ("time_ratio", "time_ratio_low", "time_ratio_high")
TIME = ("rounds", *SECONDS, "setup_seconds", "dispatch_seconds", "images_per_second", *RATIO, "reference")
# What was done in that time, the most that the device did, and how near this came to it.
ROOFLINE = ("flops_per_second", "bytes_per_second", "peak_flops", "peak_bytes", "roofline_share", "bound")
# Where and when.
ENVIRONMENT = ("command", "date", "commit", "device", "cpu", "cores", "busy", "python", "jax", "peer")
COLUMNS = (*WORK, *TIME, *ROOFLINE, "temporary_bytes", *ENVIRONMENT)

# Of `benchmark data`: who did what with which pictures, and seconds an image; times as shares of our two ways'.
PICTURES = ("benchmark", "side", "stage", "data", "pictures", "kilobytes", "batch", "image_size", "resize")
CPU, WALL, OF_BARE, OF_PIPELINE = (
    (name, f"{name}_low", f"{name}_high") for name in ("cpu_seconds", "wall_seconds", "of_bare", "of_pipeline")
)
DATA_COLUMNS = (
    *(*PICTURES, "rounds", "images", *CPU, *WALL, "images_per_second", *OF_BARE, *OF_PIPELINE),
    *ENVIRONMENT,
)
Row = dict[str, object]


@dataclasses.dataclass(frozen=True)
class Spread:
    """The median of some values, and their quartiles."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles, interpolated between the values.

    >>> spread([1.0, 2.0, 3.0, 4.0, 100.0])
    Spread(median=3.0, low=2.0, high=4.0)
    """
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def seconds_columns(seconds: Sequence[float]) -> Row:
    """The columns that say how long a call took."""
    s = spread(seconds)
    return {"rounds": len(seconds), "seconds": s.median, "seconds_low": s.low, "seconds_high": s.high}


def ratio_columns(seconds: Sequence[float], reference: Sequence[float], name: str) -> Row:
    """The columns that compare with a reference called `name`: the spread of the ratios, round by round.

    What else the machine did during a round met both sides of it.
    """
    s = spread([ours / theirs for ours, theirs in zip(seconds, reference, strict=True)])
    return {"time_ratio": s.median, "time_ratio_low": s.low, "time_ratio_high": s.high, "reference": name}


def format_ms(seconds: float) -> str:
    """Milliseconds in four digits or more.

    >>> format_ms(0.01234567), format_ms(27.1312)
    ('12.35', '27,131')
    """
    return f"{1000 * seconds:,.4g}" if seconds < 1 else f"{1000 * seconds:,.0f}"


def milliseconds(row: Row) -> str:
    """The time of a call for people."""
    median, low, high = (format_ms(float(row[key])) for key in SECONDS)
    return f"{median} ms (quartiles {low} to {high})"


def add_argument(parser: argparse.ArgumentParser, name: str = "speed.csv") -> None:
    """Declares --csv; `name` is that of the file in results/ if nothing is said."""
    default = pathlib.Path("results") / name
    parser.add_argument(
        "--csv", type=pathlib.Path, default=default, help=f"file of measurements (default: {default})"
    )


def check(path: pathlib.Path, columns: Sequence[str] = COLUMNS) -> None:
    """Refuses a file that rows of these columns cannot be added to, before anything is measured.

    Raises:
      UserError: if it has other columns, or cannot be read or written.
    """
    header = _header(path)
    if header not in (None, columns):
        differing = sorted(set(header) ^ set(columns)) or ["their order"]
        raise UserError(f"--csv={path}: has other columns ({', '.join(differing[:3])}); name another file")


def _header(path: pathlib.Path) -> tuple[str, ...] | None:
    """The first line of a file that can be written; None if it is empty or not there yet."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        with path.open("a+", newline="") as file:
            file.seek(0)
            header = next(csv.reader(file), None)
        if is_new:
            path.unlink()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--csv={path}: {error}; name another file") from None
    return header if header is None else tuple(header)


def append(path: pathlib.Path, rows: Iterable[Row], columns: Sequence[str] = COLUMNS) -> None:
    """Adds rows at the end; the header comes first in an empty file."""
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows({key: _short(value) for key, value in row.items()} for row in rows)


def _short(value: object) -> object:
    """Floats with six digits: no measurement has more."""
    return f"{value:.6g}" if isinstance(value, float) else value


def read(path: pathlib.Path) -> list[dict[str, str]]:
    """All rows of a file that `append` wrote, with the one set of columns or the other.

    Raises:
      UserError: if there is none, or it has other columns.
    """
    if not path.is_file():
        raise UserError(f"--csv={path}: no such file; python -m xception_jax benchmark step writes one")
    check(path, DATA_COLUMNS if _header(path) == DATA_COLUMNS else COLUMNS)
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
