"""AG News: the titles and first sentences of news articles, in four classes (Zhang, Zhao and LeCun, 2015)."""

import csv
import functools
import pathlib
from collections.abc import Iterator

from xception_jax.data.sources.folder import Refusal
from xception_jax.data.sources.manifest import FIELD_SIZE, read_lines
from xception_jax.data.text.examples import Corpus, Example, make_corpus
from xception_jax.errors import SettingError

CLASSES = ("World", "Sports", "Business", "Sci/Tech")
FILES = {"train": ("train.csv", 120_000), "val": ("test.csv", 7_600)}  # name and number of examples


def load(root: str) -> Corpus:
    r"""The texts of the official files train.csv and test.csv, which is the validation part.

    A line has a class from 1 to 4, a title and a description. The text is the title, a blank and the description,
    as torchtext's AG_NEWS gives it: a backslash that stands for a line break stays.

    Args:
      root: folder of the two files.

    Raises:
      SettingError: for files that are missing or not of this form.
    """
    refusal = functools.partial(SettingError, "root", root)
    if missing := [name for name, _ in FILES.values() if not (pathlib.Path(root) / name).is_file()]:
        reason = f"has no {' and no '.join(missing)}; name the folder that holds AG News'"
        raise refusal(f"{reason} train.csv (120,000 lines of class, title, description) and test.csv (7,600)")
    examples, notes = [], []
    for split, (name, official) in FILES.items():
        found = list(_read(pathlib.Path(root) / name, split, refusal))
        if len(found) != official:
            notes.append(f"{name} has {len(found):,} examples, and the official one {official:,}")
        examples += found
    return make_corpus(examples, CLASSES, refusal, notes=notes)


def _read(path: pathlib.Path, split: str, refusal: Refusal) -> Iterator[Example]:
    csv.field_size_limit(FIELD_SIZE)
    lines = csv.reader(read_lines(path, refusal))  # not strict, as torchtext reads them
    names = [str(number) for number in range(1, len(CLASSES) + 1)]
    for row in filter(None, lines):
        line = lines.line_num - sum(field.count("\n") for field in row)
        where = f"{path.name}, line {line}"
        if len(row) != 3 or row[0] not in names:
            raise refusal(f"{where}: needs a class from 1 to 4, a title and a description; it has {str(row)[:80]}")
        yield Example(" ".join(row[1:]), names.index(row[0]), where, split)
