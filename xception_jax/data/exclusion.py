"""Leaving listed images out of the evaluation, such as the blacklist of the ILSVRC validation images."""

import dataclasses
import pathlib

import numpy as np

from xception_jax.data.dataset import Dataset, Source, Subset

ILSVRC = "ILSVRC2012_val_{:08d}"  # files of the validation images, which the official list names by number


def exclude(dataset: Dataset, path: str | pathlib.Path) -> Dataset:
    """The dataset without the validation images that a file lists.

    Chollet 2017, section 4.5.1, counts the images of ILSVRC 2012's validation set that are not blacklisted; the
    list comes with the development kit of ILSVRC 2014.

    Args:
      path: a text file with a picture in each line: a file name, with or without folder and extension, or the
        number at the end of ILSVRC2012_val_00000001.JPEG.

    Raises:
      ValueError: for a list that cannot be read or is empty, names no validation image, or names all of them.
    """
    where = f"eval_exclude = {str(path)!r}"
    names, source = _read(path, where), dataset.validation
    found = _file_stems(source, where)
    if missing := sorted(names - set(found)):
        raise ValueError(
            f"{where}: lists {missing[0]!r} and {len(missing) - 1} other names that no validation image has, which"
            f" are such as {found[0]!r}; give the list of these images"
        )
    kept = np.array([index for index, name in enumerate(found) if name not in names], np.int64)
    if len(kept) == 0:
        raise ValueError(f"{where}: lists all {len(source)} validation images; keep some")
    note = f"evaluation leaves out the {len(source) - len(kept):,} images that {path} lists"
    return dataclasses.replace(dataset, validation=Subset(source, kept), notes=(*dataset.notes, note))


def _read(path: str | pathlib.Path, where: str) -> set[str]:
    """The names in a list, without folder and extension."""
    try:
        lines = [line.strip() for line in pathlib.Path(path).read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{where}: cannot be read ({error}); name a text file with a picture in each line"
        ) from None
    names = {ILSVRC.format(int(line)) if line.isdecimal() else pathlib.Path(line).stem for line in lines if line}
    if not names:
        raise ValueError(f"{where}: lists nothing; name a text file with a picture in each line")
    return names


def _file_stems(source: Source, where: str) -> list[str]:
    file_name = getattr(source, "file_name", lambda index: None)
    names = [file_name(index) for index in range(len(source))]
    if None in names:
        raise ValueError(f"{where}: these images come from no files, so none can be named; set it to None")
    return [pathlib.Path(name).stem for name in names]
