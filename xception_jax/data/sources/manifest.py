"""A table of images: a CSV or JSONL file of paths and labels."""

import csv
import functools
import json
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from xception_jax.data.dataset import Dataset
from xception_jax.data.sources.folder import Entry, Refusal, make_sources, missing_classes
from xception_jax.errors import SettingError

SEPARATOR = ";"
FIELD_SIZE = 2**31 - 1  # characters that a field of a CSV file may have; Python's default is 131,072


def load(root: str | pathlib.Path, *, classes: str | None, holdout: float) -> Dataset:
    """Images with one label or several, as in Open Images and JFT.

    A CSV file has a header line with the columns `path`, and `label` or `labels` (separated by semicolons, perhaps
    none); a JSONL file has an object in each line with the same keys, `labels` a list. A further column, `split`,
    says train or val. Other columns are ignored. Paths are relative to the folder of the file.

    Args:
      root: the .csv or .jsonl file.
      classes: a CSV file with the column `class` and, if some classes matter more than others, `weight`; it fixes
        their order. None: all labels that occur, sorted, each of weight 1.
      holdout: share of the images without `split` that goes to validation, chosen by a hash of their path.

    Raises:
      SettingError: for a file that is missing or not of this form (naming the line), or with one class only.
    """
    root = pathlib.Path(root)
    refusal = functools.partial(SettingError, "root", str(root))
    table = list(read_rows(root, refusal))
    if not table:
        raise refusal("has no rows; add a line for each image")
    multilabel = "labels" in table[0][1] if isinstance(table[0][1], dict) else False
    rows = [_parse(line, row, multilabel, refusal) for line, row in table]
    names, weights = _read_classes(classes) if classes else (sorted({n for row in rows for n in row.labels}), None)
    if len(names) < 2 and not multilabel:
        setting = ("classes", classes) if classes else ("root", str(root))
        raise SettingError(*setting, f"a classifier needs two classes or more, and {names[0]!r} is the only one")
    folders = dict.fromkeys(("train", "val"), root.parent)
    train, validation = make_sources(folders, _entries(rows, names, multilabel, refusal), holdout, refusal)
    if missing := [row.path for row in rows if not os.access(os.path.join(root.parent, row.path), os.R_OK)]:
        reason = f"{len(missing)} of its {len(rows)} files cannot be opened, the first is {missing[0]!r}"
        raise refusal(f"{reason}; paths are relative to {str(root.parent)!r}")
    if twice := {*train.paths.tolist()} & {*validation.paths.tolist()}:
        raise refusal(f"{os.fsdecode(min(twice))!r} is in train and in val; keep one")
    notes = [*missing_classes(names, train, validation)]
    if held_out := sum(row.split is None for row in rows):
        notes.append(f"{held_out} rows without split: {holdout:.0%} held out, chosen by a hash of their path")
    return Dataset(
        train, validation, tuple(names), multilabel=multilabel, class_weights=weights, notes=tuple(notes)
    )


def read_rows(path: pathlib.Path, refusal: Refusal, word: str = "manifest") -> Iterator[tuple[int, dict]]:
    """(number of its first line, row) of a CSV or JSONL file; SettingError names the line that is damaged."""
    if path.suffix not in (".csv", ".jsonl"):
        raise refusal(f"a {word} is a .csv or .jsonl file")
    if path.suffix == ".csv":
        yield from _read_csv(read_lines(path, refusal), refusal)
        return
    for number, line in enumerate(read_lines(path, refusal), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise refusal(f"is not a well-formed .jsonl file: line {number}: {error}") from None


def _read_csv(lines: Iterator[str], refusal: Refusal) -> Iterator[tuple[int, dict]]:
    csv.field_size_limit(FIELD_SIZE)
    reader = csv.DictReader(lines, strict=True)
    try:
        for row in reader:
            breaks = sum(value.count("\n") for value in row.values() if isinstance(value, str))
            yield reader.line_num - breaks, row
    except csv.Error as error:
        where = f"in the row that begins in line {reader.line_num + 1}"
        raise refusal(f"is not a well-formed .csv file: {where}: {error}") from None


def read_lines(path: pathlib.Path, refusal: Refusal) -> Iterator[str]:
    """The lines of a text file in UTF-8, with their line breaks; SettingError names the line that is not."""
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                try:
                    line.encode()
                except UnicodeEncodeError:
                    raise refusal(f"line {number}: is not UTF-8; save the file in this encoding") from None
                yield line
    except OSError as error:
        raise refusal(f"{error.strerror}; name another file") from None


class _Row(NamedTuple):
    line: int
    path: str
    labels: list[str]
    split: str | None


def _parse(line: int, row: dict, multilabel: bool, refusal: Refusal) -> _Row:
    column = "labels" if multilabel else "label"
    if not isinstance(row, dict) or None in row or not row.get("path") or row.get(column) is None:
        raise refusal(
            f"line {line}: needs 'path' and {column!r}, and no more columns than the header; it has {row}"
        )
    labels = parse_labels(line, row, column, multilabel, refusal)
    return _Row(line, str(row["path"]), labels, parse_split(line, row, refusal))


def parse_labels(line: int, row: dict, column: str, several: bool, refusal: Refusal) -> list[str]:
    """The names of the labels in a row: one, or, with `several`, those of a list or separated by semicolons."""
    labels = row[column] if several else [row[column]]
    if several and isinstance(labels, str):
        labels = [label for label in labels.split(SEPARATOR) if label.strip()]
    if not isinstance(labels, list) or not all(map(_is_name, labels)):
        kind = "a list of names" if several else "a name"
        raise refusal(f"line {line}: {column} = {row[column]!r}; write {kind}")
    return [str(label).strip() for label in labels]


def _is_name(label: Any) -> bool:
    return isinstance(label, str | int | float) and label == label and bool(str(label).strip())  # not NaN


def parse_split(line: int, row: dict, refusal: Refusal) -> str | None:
    """What the column `split` says: "train", "val" or nothing."""
    split = row.get("split") or None
    if split not in (None, "train", "val"):
        raise refusal(f"line {line}: split = {split!r}; write train or val")
    return split


def _read_classes(path: str) -> tuple[list[str], tuple[float, ...] | None]:
    """Names, and weights unless all are 1."""
    refusal = functools.partial(SettingError, "classes", path)
    if pathlib.Path(path).suffix != ".csv":
        raise refusal("must be a .csv file with the column 'class' and perhaps 'weight'")
    names, weights = [], []
    for line, row in read_rows(pathlib.Path(path), refusal):
        try:
            names.append(row["class"])
            weights.append(float(row.get("weight", 1.0)))
        except (KeyError, TypeError, ValueError) as error:
            raise refusal(f"line {line}: needs 'class' and a number as 'weight'; it has {row}") from error
        if not 0 <= weights[-1] < math.inf:
            raise refusal(f"line {line}: weight {weights[-1]}; write a number, at least 0")
    if not names or len(set(names)) < len(names):
        raise refusal(f"names {'a class twice' if names else 'no class'}; correct it")
    return names, tuple(weights) if set(weights) != {1.0} else None


def _entries(rows: Sequence[_Row], names: Sequence[str], multilabel: bool, refusal: Refusal) -> Iterator[Entry]:
    number = {name: index for index, name in enumerate(names)}
    for row in rows:
        if unknown := [label for label in row.labels if label not in number]:
            raise refusal(f"line {row.line}: {unknown[0]!r} is not in the file of classes; add it there")
        labels = tuple(sorted({number[label] for label in row.labels}))
        yield row.path, labels if multilabel else labels[0], row.split
