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
      path: a text file with a picture in each line: a file name, with or without folders and extension, or the
        number at the end of ILSVRC2012_val_00000001.JPEG.

    Raises:
      ValueError: for a list that cannot be read or is empty, has a name that no validation image has or several
        have, or names all of them.
    """
    where = f"eval_exclude = {str(path)!r}"
    source = dataset.validation
    left_out = _find(_read(path, where), _file_names(source, where), where)
    kept = np.array([index for index in range(len(source)) if index not in left_out], np.int64)
    if len(kept) == 0:
        raise ValueError(f"{where}: lists all {len(source)} validation images; keep some")
    note = f"evaluation leaves out the {len(source) - len(kept):,} images that {path} lists"
    return dataclasses.replace(dataset, validation=Subset(source, kept), notes=(*dataset.notes, note))


def _parts(name: str) -> tuple[str, ...]:
    """Folders and name of a file, without its extension."""
    path = pathlib.PurePath(name)
    return (*path.parts[:-1], path.stem)


def _find(listed: set[tuple[str, ...]], files: list[tuple[str, ...]], where: str) -> set[int]:
    """The places in `files` of the listed ones: of those whose last parts are the same, as many as both have."""
    found, unknown = set(), []
    tables: dict[int, dict[tuple[str, ...], list[int]]] = {len(name): {} for name in listed}
    for depth, table in tables.items():
        for index, file in enumerate(files):
            table.setdefault(file[-depth:], []).append(index)
    for name in sorted(listed):
        ends = (name[-depth:] for depth in range(len(name), 0, -1))
        places = [index for end in ends for index in tables[len(name)].get(end, ())]
        if len(places) > 1:
            first, second = ("/".join(files[index]) for index in places[:2])
            raise ValueError(
                f"{where}: lists {'/'.join(name)!r}, which is {first!r} or {second!r}; write it with its folder"
            )
        found.update(places)
        if not places:
            unknown.append("/".join(name))
    if unknown:
        raise ValueError(
            f"{where}: lists {unknown[0]!r} and {len(unknown) - 1} other names that no validation image has, which"
            f" are such as {'/'.join(files[0])!r}; give the list of these images"
        )
    return found


def _read(path: str | pathlib.Path, where: str) -> set[tuple[str, ...]]:
    """The names in a list."""
    try:
        lines = [line.strip() for line in pathlib.Path(path).read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{where}: cannot be read ({error}); name a text file with a picture in each line"
        ) from None
    names = {_parts(ILSVRC.format(int(line)) if line.isdecimal() else line) for line in lines if line}
    if not names:
        raise ValueError(f"{where}: lists nothing; name a text file with a picture in each line")
    return names


def _file_names(source: Source, where: str) -> list[tuple[str, ...]]:
    file_name = getattr(source, "file_name", lambda index: None)
    names = [file_name(index) for index in range(len(source))]
    if None in names:
        raise ValueError(f"{where}: these images come from no files, so none can be named; set it to None")
    return [_parts(name) for name in names]
