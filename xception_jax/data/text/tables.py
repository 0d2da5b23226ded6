"""A table of texts: a CSV or JSONL file with a column of texts and one of labels."""

import functools
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from xception_jax.data.sources.folder import Refusal
from xception_jax.data.sources.manifest import parse_labels, parse_split, read_rows
from xception_jax.data.text.examples import Corpus, Example, make_corpus
from xception_jax.errors import SettingError

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


class _Columns(NamedTuple):
    """Names of the columns, and whether that of the labels holds several."""

    text: str
    label: str
    several: bool


class _Row(NamedTuple):
    text: str
    labels: list[str]
    where: str
    split: str | None


def load(root: str, *, text_column: str, label_column: str, eval_root: str | None, holdout: float) -> Corpus:
    """Texts with one label or several, numbered by their names in order, or by their values if all are numbers.

    A CSV file has a header line; a JSONL file has an object in each line. As in a manifest of images, the column
    `labels` holds several labels, separated by semicolons or, in JSONL, as a list, and a column `split` says train
    or val. A list in another column of a JSONL file holds several labels too.

    Args:
      root: the .csv or .jsonl file.
      eval_root: such a file with the validation texts.
      holdout: without `eval_root`, share of the texts without `split` that goes to validation, chosen by a hash of
        the text.

    Raises:
      SettingError: for a file that is missing or not of this form (naming the line), or with one class only.
    """
    refusal = functools.partial(SettingError, "root", root)
    columns, rows = _read(root, text_column, label_column, refusal)
    names = _sort({name for row in rows for name in row.labels})
    if len(names) < 2 - columns.several:
        raise refusal(f"a classifier needs two classes or more, and it has {names}; add texts of other classes")
    if eval_root is not None:
        rows = _add_validation(rows, eval_root, columns, names)
    numbers = {name: number for number, name in enumerate(names)}
    examples = []
    for row in rows:
        labels = tuple(sorted({numbers[name] for name in row.labels}))
        examples.append(Example(row.text, labels if columns.several else labels[0], row.where, row.split))
    return make_corpus(examples, names, refusal, holdout=holdout, multilabel=columns.several)


def _read(path: str, text: str, label: str, refusal: Refusal) -> tuple[_Columns, list[_Row]]:
    """The columns and rows of a file; one row or more."""
    rows: list[_Row] = []
    for line, row in read_rows(pathlib.Path(path), refusal, "table"):
        if not rows:
            columns = _find_columns(path, row, text, label)
        rows.append(_parse(line, row, columns, os.path.basename(path), refusal))
    if not rows:
        raise refusal("has no rows; add a line for each text")
    return columns, rows


def _find_columns(path: str, first: Any, text: str, label: str) -> _Columns:
    """The columns that the first row has; SettingError lists them if one is missing."""
    there = [key for key in first if key is not None] if isinstance(first, dict) else []
    for setting, name in (("text_column", text), ("label_column", label)):
        if name not in there:
            raise SettingError(setting, name, f"{path} has no such column; it has {', '.join(there) or 'none'}")
    return _Columns(text, label, several=label == "labels" or isinstance(first[label], list))


def _parse(line: int, row: Any, columns: _Columns, file: str, refusal: Refusal) -> _Row:
    text, label, several = columns
    if not isinstance(row, dict) or None in row or not isinstance(row.get(text), str) or row.get(label) is None:
        reason = f"needs {text!r}, which is a string, and {label!r}, and no more columns than the header"
        raise refusal(f"line {line}: {reason}; it has {str(row)[:80]}")
    try:
        row[text].encode()
    except UnicodeEncodeError as error:
        reason = f"{text} has {error.object[error.start]!r}, one half of a pair of surrogates; correct it"
        raise refusal(f"line {line}: {reason}") from None
    labels = parse_labels(line, row, label, several, refusal)
    return _Row(row[text], labels, f"{file}, line {line}", parse_split(line, row, refusal))


def _sort(names: Iterable[str]) -> list[str]:
    """In the order of their values if all are numbers, else of their code points."""
    by_name = sorted(names)
    return sorted(by_name, key=float) if all(map(_NUMBER.fullmatch, by_name)) else by_name


def _add_validation(rows: Sequence[_Row], path: str, columns: _Columns, names: Sequence[str]) -> list[_Row]:
    """Training rows, and behind them those of a second file, whose labels must be among the names."""
    refusal = functools.partial(SettingError, "eval_root", path)
    if any(row.split for row in rows):
        raise refusal("root has a column 'split', which says the same; set eval_root to None or remove the column")
    theirs, added = _read(path, columns.text, columns.label, refusal)
    if theirs.several != columns.several:
        raise refusal(f"column {columns.label!r} is a list in only one of the two files; write both alike")
    for row in added:
        if unknown := set(row.labels).difference(names):
            reason = f"{min(unknown)!r} is not among the labels of root: {', '.join(names[:10])}"
            raise refusal(f"{row.where}: {reason}{', ...' if len(names) > 10 else ''}")
    return [row._replace(split="train") for row in rows] + [row._replace(split="val") for row in added]
