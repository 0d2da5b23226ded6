"""Rows of measurements, with all that is needed to repeat them, and the CSV files in results/ that keep them."""

import argparse
import csv
import datetime
import pathlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from xception_jax.commands import device
from xception_jax.errors import UserError

SECONDS = ("seconds", "seconds_low", "seconds_high")
RATIO = ("ratio", "ratio_low", "ratio_high")
# what: "train" or "inference" (a whole step); "forward", "input gradient" or "kernel gradient" (of a layer);
#   "prepare" (an image from its file to a batch) or one of its stages.
# by: what did the work: a model with its settings, an implementation, a pipeline.
# inputs, images: what each image is, and how many images a call gets.
# seconds: median over the rounds and its quartiles; of `benchmark data` CPU time of all threads, else wall time.
# ratio: to the seconds of `reference` for the same work in the same round; median over the rounds and quartiles.
# versions: the commit of this package, and the versions of Python, JAX and other libraries.
COLUMNS = (
    *("what", "by", "inputs", "images", *SECONDS, *RATIO),
    *("reference", "device", "versions", "command", "date"),
)
Row = dict[str, object]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """The median of some values and their quartiles, interpolated between the values.

    >>> spread([1.0, 2.0, 3.0, 4.0, 100.0])
    (3.0, 2.0, 4.0)
    """
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return median, low, high


def make(
    what: str,
    by: str,
    inputs: str,
    *,
    images: int,
    seconds: Sequence[float],
    reference: tuple[str, Sequence[float]] | None = None,
    libraries: Mapping[str, str] | None = None,
) -> Row:
    """A row; see `COLUMNS`.

    Args:
      seconds: of each round.
      reference: name and seconds of what is compared with. The ratio is taken round by round, because whatever
        else the machine does during a round slows down both.
      libraries: versions, besides those of this package, Python and JAX.
    """
    row: Row = {"what": what, "by": by, "inputs": inputs, "images": images}
    row |= zip(SECONDS, spread(seconds), strict=True)
    if reference is not None:
        ratios = [ours / theirs for ours, theirs in zip(seconds, reference[1], strict=True)]
        row |= {**dict(zip(RATIO, spread(ratios), strict=True)), "reference": reference[0]}
    versions = {"xception_jax": device.commit(), "python": platform.python_version(), "jax": jax.__version__}
    versions |= libraries or {}
    return row | {
        "device": device.name(),
        "versions": " ".join(f"{name} {version}".strip() for name, version in versions.items()),
        "command": device.command(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def compare(column: str, seconds: Mapping[str, Sequence[float]], **shared: Any) -> list[Row]:
    """A row for each name in `seconds`, which stands in `column`; all but the first have the ratio to it."""
    first = next(iter(seconds))
    references = {name: (first, seconds[first]) for name in seconds if name != first}
    return [
        make(**{column: name}, seconds=values, reference=references.get(name), **shared)
        for name, values in seconds.items()
    ]


def milliseconds(row: Mapping[str, object]) -> str:
    """Median and quartiles for people, in four digits or more.

    >>> milliseconds({"seconds": 0.01234567, "seconds_low": 0.01, "seconds_high": "27.1312"})
    '12.35 ms (10 to 27,131)'
    """
    values = (float(row[key]) for key in SECONDS)
    median, low, high = (f"{1000 * s:,.4g}" if s < 1 else f"{1000 * s:,.0f}" for s in values)
    return f"{median} ms ({low} to {high})"


def ratio(row: Mapping[str, object]) -> str:
    """The ratio with its quartiles for people; empty if there is none.

    >>> ratio({"ratio": "0.91065", "ratio_low": 0.8, "ratio_high": 1, "reference": "xla"})
    '0.911 (0.8 to 1) of xla'
    """
    if not row.get("reference"):
        return ""
    median, low, high = (f"{float(row[key]):.3g}" for key in RATIO)
    return f"{median} ({low} to {high}) of {row['reference']}"


def add_argument(parser: argparse.ArgumentParser, name: str = "speed.csv") -> None:
    """Declares --csv; by default it is the file `name` in results/."""
    default = pathlib.Path("results") / name
    parser.add_argument("--csv", type=pathlib.Path, default=default, help=f"measurements (default: {default})")


def check(path: pathlib.Path) -> None:
    """Refuses a file that rows cannot be added to, before anything is measured.

    Raises:
      UserError: if it has other columns, or cannot be read or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        with path.open("a+", newline="") as file:
            file.seek(0)
            header = next(csv.reader(file), list(COLUMNS))
        if is_new:
            path.unlink()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--csv={path}: {error}; name another file") from None
    if header != list(COLUMNS):
        differing = sorted(set(header) ^ set(COLUMNS)) or ["their order"]
        raise UserError(f"--csv={path}: has other columns ({', '.join(differing[:3])}); name another file")


def append(path: pathlib.Path, rows: Iterable[Row]) -> None:
    """Adds rows at the end of a file, with a header if it is empty; floats get six digits."""
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        if file.tell() == 0:
            writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()})


def read(path: pathlib.Path) -> list[dict[str, str]]:
    """All rows of a file.

    Raises:
      UserError: if there is none, or it has other columns.
    """
    if not path.is_file():
        raise UserError(f"--csv={path}: no such file; python -m xception_jax benchmark step writes one")
    check(path)
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
