"""Leaving listed images out of the evaluation, such as the blacklist of the ILSVRC validation images."""

import collections
import dataclasses
import functools
import pathlib

import numpy as np

from xception_jax.data.dataset import Dataset, Source, Subset
from xception_jax.data.sources.folder import Refusal
from xception_jax.errors import SettingError

ILSVRC = "ILSVRC2012_val_{:08d}"  # files of the validation images, which the official list names by number


def exclude(dataset: Dataset, path: str | pathlib.Path) -> Dataset:
    """The dataset without the validation images that a file lists.

    Chollet 2017, section 4.5.1, does not count the blacklisted images of ILSVRC 2012's validation set; the list
    comes with the development kit of ILSVRC 2014.

    Args:
      path: a text file with an image in each line: a file name, with or without folders and extension, or the
        number at the end of ILSVRC2012_val_00000001.JPEG.

    Raises:
      SettingError: for a list that cannot be read or is empty, that names all validation images, or that has a
        name which none or several of them have.
    """
    refusal = functools.partial(SettingError, "eval_exclude", str(path))
    source = dataset.validation
    left_out = _find(_read(path, refusal), _file_names(source, refusal), refusal)
    kept = np.array([index for index in range(len(source)) if index not in left_out], np.int64)
    if len(kept) == 0:
        raise refusal(f"lists all {len(source)} validation images; keep some")
    note = f"evaluation leaves out the {len(source) - len(kept):,} images that {path} lists"
    return dataclasses.replace(dataset, validation=Subset(source, kept), notes=(*dataset.notes, note))


Name = tuple[str, ...]  # folders and name of a file, without its extension


def _parts(name: str) -> Name:
    path = pathlib.PurePath(name)
    return (*path.parts[:-1], path.stem)


def _find(listed: set[Name], files: list[Name], refusal: Refusal) -> set[int]:
    """Indices in `files` of the listed images.

    Two names mean the same image if their last parts are equal, as many parts as the shorter name has.
    """
    found, unknown, by_stem = set(), [], collections.defaultdict(list)
    for index, file in enumerate(files):
        by_stem[file[-1]].append(index)
    for name in sorted(listed):
        places = [i for i in by_stem[name[-1]] if files[i][-len(name) :] == name[-len(files[i]) :]]
        if len(places) > 1:
            first, second = ("/".join(files[index]) for index in places[:2])
            raise refusal(f"lists {'/'.join(name)!r}, which is {first!r} or {second!r}; write it with its folder")
        found.update(places)
        if not places:
            unknown.append("/".join(name))
    if unknown:
        raise refusal(
            f"lists {unknown[0]!r} and {len(unknown) - 1} other names that no validation image has; name a list of"
            f" these images, whose names are like {'/'.join(files[0])!r}"
        )
    return found


def _read(path: str | pathlib.Path, refusal: Refusal) -> set[Name]:
    try:
        lines = [line.strip() for line in pathlib.Path(path).read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise refusal(f"cannot be read ({error}); name a text file with an image in each line") from None
    names = {_parts(ILSVRC.format(int(line)) if line.isdecimal() else line) for line in lines if line}
    if not names:
        raise refusal("lists nothing; name a text file with an image in each line")
    return names


def _file_names(source: Source, refusal: Refusal) -> list[Name]:
    file_name = getattr(source, "file_name", lambda index: None)
    names = [file_name(index) for index in range(len(source))]
    if None in names:
        raise refusal("these images come from no files, so none can be named; set it to None")
    return [_parts(name) for name in names]
