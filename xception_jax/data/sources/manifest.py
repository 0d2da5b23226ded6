"""A table of pictures: a CSV or JSONL file of paths and labels."""

import csv
import json
import math
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from xception_jax.data.dataset import Dataset, ImageFiles
from xception_jax.data.sources.folder import is_held_out, missing_classes

SEPARATOR = ";"


def load(root: str | pathlib.Path, *, classes: str | None, holdout: float) -> Dataset:
    """Pictures with one label or several, as Open Images and JFT have them.

    A CSV file has a header line with the columns `path`, and `label` or `labels` (separated by semicolons, perhaps
    none); a JSONL file has an object a line with the same keys, `labels` a list. A further column, `split`, says
    train or val. Paths are relative to the file.

    Args:
      root: the .csv or .jsonl file.
      classes: a CSV file with the column `class` and, if some classes matter more than others, `weight`; it fixes
        their order. None: all labels that occur, sorted, each of weight 1.
      holdout: without the column `split`, share of the pictures for validation, by a hash of their path.

    Raises:
      ValueError: for a file that is missing or not of this form; the line is named.
    """
    root = pathlib.Path(root)
    where = f"root = {str(root)!r}"
    rows = list(_rows(root, where))
    if not rows:
        raise ValueError(f"{where}: has no rows; add a line for each picture")
    multilabel = "labels" in rows[0][1] if isinstance(rows[0][1], dict) else False
    parsed = [_parse(row, multilabel, f"{where}: line {line}") for line, row in rows]
    names, weights = _read_classes(classes) if classes else (sorted({n for _, ns, _ in parsed for n in ns}), None)
    number = {name: index for index, name in enumerate(names)}
    parts: dict[str, list[tuple[str, tuple[int, ...]]]] = {"train": [], "val": []}
    for (line, _), (path, labels, split) in zip(rows, parsed, strict=True):
        if unknown := [label for label in labels if label not in number]:
            raise ValueError(f"{where}: line {line}: {unknown[0]!r} is not in data.classes = {classes!r}; add it")
        part = split or ("val" if is_held_out(path, holdout) else "train")
        parts[part].append((path, tuple(sorted({number[label] for label in labels}))))
    if twice := {path for path, _ in parts["train"]} & {path for path, _ in parts["val"]}:
        raise ValueError(f"{where}: {min(twice)!r} is in train and in val; keep one")
    for part, pictures in parts.items():
        if not pictures:
            raise ValueError(f"{where}: no pictures for {part}; add some, or change data.holdout")
    _check_files(root.parent, [path for path, _, _ in parsed], where)
    train, validation = (_files(root.parent, pictures, multilabel) for pictures in parts.values())
    notes = [*missing_classes(names, *([n for _, ns in pictures for n in ns] for pictures in parts.values()))]
    if held_out := sum(split is None for _, _, split in parsed):
        notes.append(f"{held_out} rows without split: {holdout:.0%} held out, chosen by a hash of their path")
    return Dataset(
        train, validation, tuple(names), multilabel=multilabel, class_weights=weights, notes=tuple(notes)
    )


def _files(folder: pathlib.Path, pictures: Sequence[tuple[str, tuple[int, ...]]], multilabel: bool) -> ImageFiles:
    labels = [labels for _, labels in pictures]
    if not multilabel:
        labels = np.array([label for (label,) in labels], np.int32)
    return ImageFiles.make(folder, [path for path, _ in pictures], labels)


def _rows(path: pathlib.Path, where: str) -> Iterator[tuple[int, dict]]:
    """(line number, row) of a CSV or JSONL file."""
    if path.suffix not in (".csv", ".jsonl"):
        raise ValueError(f"{where}: a manifest is a .csv or .jsonl file")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            if path.suffix == ".csv":
                reader = csv.DictReader(file, strict=True)
                yield from ((reader.line_num, row) for row in reader)
            else:
                yield from ((number, json.loads(line)) for number, line in enumerate(file, 1) if line.strip())
    except (csv.Error, ValueError) as error:  # of json and of the encoding too
        raise ValueError(f"{where}: is not a well-formed {path.suffix} file: {error}") from error
    except OSError as error:
        raise ValueError(f"{where}: {error.strerror}; name a .csv or .jsonl file") from error


def _parse(row: dict, multilabel: bool, where: str) -> tuple[str, list[str], str | None]:
    """(path, labels, split) of a row."""
    column = "labels" if multilabel else "label"
    if not isinstance(row, dict) or None in row or not row.get("path") or row.get(column) is None:
        raise ValueError(
            f"{where}: needs 'path' and {column!r}, and no more columns than the header; it has {row}"
        )
    labels = row[column] if multilabel else [row[column]]
    if multilabel and isinstance(labels, str):
        labels = [label for label in labels.split(SEPARATOR) if label.strip()]
    if not isinstance(labels, list) or not all(
        isinstance(label, str | int) and str(label).strip() for label in labels
    ):
        raise ValueError(f"{where}: {column} = {row[column]!r}; write a name{' or a list of them' * multilabel}")
    labels = [str(label).strip() for label in labels]
    split = row.get("split") or None
    if split not in (None, "train", "val"):
        raise ValueError(f"{where}: split = {split!r}; write train or val")
    return str(row["path"]), labels, split


def _read_classes(path: str) -> tuple[list[str], tuple[float, ...] | None]:
    """Names and, if there is such a column, weights."""
    where = f"classes = {path!r}"
    if pathlib.Path(path).suffix != ".csv":
        raise ValueError(f"{where}: must be a .csv file with the column 'class' and perhaps 'weight'")
    names, weights = [], []
    for line, row in _rows(pathlib.Path(path), where):
        try:
            names.append(row["class"])
            weights.append(float(row.get("weight", 1.0)))
        except (KeyError, TypeError, ValueError) as error:
            reason = f"needs 'class' and a number as 'weight'; it has {row}"
            raise ValueError(f"{where}: line {line}: {reason}") from error
        if not 0 <= weights[-1] < math.inf:
            raise ValueError(f"{where}: line {line}: weight {weights[-1]}; write a number from 0 on")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{where}: names {'a class twice' if names else 'no class'}; mend it")
    return names, tuple(weights) if set(weights) != {1.0} else None


def _check_files(folder: pathlib.Path, paths: Sequence[str], where: str) -> None:
    missing = [path for path in paths if not os.access(os.path.join(folder, path), os.R_OK)]
    if missing:
        raise ValueError(
            f"{where}: {len(missing)} of its {len(paths)} files cannot be opened, the first is {missing[0]!r};"
            f" paths are relative to {str(folder)!r}"
        )
