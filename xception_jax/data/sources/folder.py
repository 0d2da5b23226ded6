"""A folder of pictures: root/CLASS/*, or root/train/CLASS/* and root/val/CLASS/*."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from xception_jax.data.dataset import Dataset, ImageFiles

SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}


def load(root: str | pathlib.Path, *, holdout: float) -> Dataset:
    """Classes are folders, numbered in the order of their names; pictures may lie in folders below them.

    Symbolic links are followed. What is left out is told in `Dataset.notes`: files that are no pictures by their
    name, broken links, files this user may not read.

    Args:
      root: holds train/ and val/, or train/ alone, or the classes themselves.
      holdout: where there is no val/, share of the pictures of each class that goes to validation, by a hash of
        their path: the same pictures on every machine, and still when others are added.

    Raises:
      ValueError: for a missing folder, a class without pictures, or classes that differ between train/ and val/.
    """
    root = pathlib.Path(root)
    if not root.is_dir():
        raise ValueError(f"root = {str(root)!r}: no such folder; name one that holds a folder of pictures a class")
    split = (root / "train").is_dir()
    beside = _check_layout(root, split)
    train_folder = root / "train" if split else root
    listing = _list_classes(train_folder)
    if empty := [name for name, paths in listing.pictures.items() if not paths]:
        where = f"root = {str(root)!r}: class {empty[0]!r}" + f" and {len(empty) - 1} others" * (len(empty) > 1)
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"{where}: no pictures ({suffixes}); add some or remove the folder")
    if split and (root / "val").is_dir():
        held_out = _list_classes(root / "val")
        _check_same_classes(root, listing, held_out)
        train, validation = _files(train_folder, _pairs(listing)), _files(root / "val", _pairs(held_out))
        notes = [*beside, *listing.notes("train/"), *held_out.notes("val/")]
    else:
        train, validation = _split(train_folder, listing, holdout)
        held_out_note = f"no val/: {holdout:.0%} of the pictures, chosen by a hash of their path, held out"
        notes = [*beside, *listing.notes(), held_out_note]
    for part, files in {"train": train, "val": validation}.items():
        if not len(files):
            raise ValueError(f"root = {str(root)!r}: no pictures for {part}; add some, or change data.holdout")
    names = tuple(listing.pictures)
    notes += missing_classes(names, train.labels, validation.labels)
    return Dataset(train, validation, class_names=names, notes=tuple(notes))


def missing_classes(names: Sequence[str], train: Iterable[int], validation: Iterable[int]) -> Iterator[str]:
    """A note for each part in which some classes have no pictures, given the labels of all pictures."""
    for part, labels in {"training": train, "validation": validation}.items():
        present = set(map(int, labels))
        if missing := [name for label, name in enumerate(names) if label not in present]:
            yield f"{len(missing)} classes have no {part} pictures: {_some(missing)}"


def _check_layout(root: pathlib.Path, split: bool) -> list[str]:
    """A note of what lies beside train/ and val/, or loose; ValueError where the folders mean something else."""
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    where = f"root = {str(root)!r}"
    others = [name for name in folders if name not in ("train", "val")]
    if not split and folders and all(name.lower() in SPLIT_NAMES for name in folders):
        raise ValueError(f"{where}: holds {_some(folders)} and no train/; call them train and val, or name one")
    if split and (classes := [name for name in others if name.lower() not in SPLIT_NAMES]):
        raise ValueError(
            f"{where}: {_some(classes)} lie beside train/; if they are classes too, rename train/ or put all below"
            " another train/, if not, move them away"
        )
    loose = sorted(path.name for path in root.iterdir() if path.is_file() and not path.name.startswith("."))
    notes = [f"left out folders beside train/: {_some(others)}"] if split and others else []
    return notes + ([f"left out {len(loose)} files outside of the classes: {_some(loose)}"] if loose else [])


@dataclasses.dataclass(frozen=True)
class _Listing:
    """What lies in a folder of classes; all paths are relative to it."""

    pictures: dict[str, list[str]]  # by class
    others: list[str]
    unreadable: list[str]

    def notes(self, where: str = "") -> Iterator[str]:
        if self.unreadable:
            yield f"left out {len(self.unreadable)} files that cannot be opened: {_some(self.unreadable, where)}"
        if self.others:
            yield f"left out {len(self.others)} files that are no pictures by name: {_some(self.others, where)}"


def _some(names: Sequence[str], where: str = "") -> str:
    """The first three, and that there are more."""
    return ", ".join(where + name for name in names[:3]) + (", ..." if len(names) > 3 else "")


def _list_classes(folder: pathlib.Path) -> _Listing:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise ValueError(f"root = {str(folder)!r}: has no folders; make one for each class of pictures")
    listing = _Listing({name: [] for name in names}, [], [])
    for name in names:
        for path in sorted(_walk(folder / name)):
            relative = os.path.relpath(path, folder)
            if os.path.splitext(path)[1].lower() not in IMAGE_SUFFIXES:
                listing.others.append(relative)
            elif not os.access(path, os.R_OK):  # a broken link as well
                listing.unreadable.append(relative)
            else:
                listing.pictures[name].append(relative)
    return listing


def _walk(folder: pathlib.Path) -> Iterator[str]:
    """Paths of all files below a folder, through links, but through none twice."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in files if not name.startswith("."))


def _check_same_classes(root: pathlib.Path, train: _Listing, held_out: _Listing) -> None:
    if differ := sorted(train.pictures.keys() ^ held_out.pictures.keys()):
        raise ValueError(
            f"root = {str(root)!r}: classes {_some(differ)} are in only one of train/ and val/; complete the other"
        )


def _pairs(listing: _Listing) -> list[tuple[str, int]]:
    """(path, label) of all pictures."""
    return [(path, label) for label, paths in enumerate(listing.pictures.values()) for path in paths]


def _files(folder: pathlib.Path, pairs: Sequence[tuple[str, int]]) -> ImageFiles:
    labels = np.array([label for _, label in pairs], np.int32)
    return ImageFiles.make(folder, [path for path, _ in pairs], labels)


def _split(folder: pathlib.Path, listing: _Listing, holdout: float) -> tuple[ImageFiles, ImageFiles]:
    parts: tuple[list[tuple[str, int]], ...] = ([], [])
    for pair in _pairs(listing):
        parts[is_held_out(pair[0], holdout)].append(pair)
    return _files(folder, parts[0]), _files(folder, parts[1])


def is_held_out(path: str, share: float) -> bool:
    """Whether the picture called `path` belongs to the `share` in [0, 1) that is held out.

    Decided by the SHA-256 of the name alone, so that it stays when other pictures come or go.

    >>> [is_held_out(f"cat/{i}.jpg", 0.25) for i in range(4)]
    [False, False, False, True]
    """
    digest = hashlib.sha256(os.fsencode(path.replace(os.sep, "/"))).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
