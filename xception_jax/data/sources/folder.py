"""A folder of images: root/CLASS/*, or root/train/CLASS/* and root/val/CLASS/*."""

import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from xception_jax.data.dataset import Dataset, ImageFiles
from xception_jax.errors import SettingError

SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}


def load(root: str | pathlib.Path, *, holdout: float) -> Dataset:
    """Each folder is a class, numbered in the order of the names; images may lie in folders below it.

    Symbolic links are followed. `Dataset.notes` tells what is left out: files without the suffix of an image,
    broken links, and files that this user may not read.

    Args:
      root: holds train/ and val/, or train/ alone, or the folders of the classes.
      holdout: without val/, share of the images that goes to validation, chosen by a hash of their path: the same
        images on every machine, also after others were added.

    Raises:
      SettingError: for a missing folder, fewer than two classes, a class without images, or classes that differ
        between train/ and val/.
    """
    root = pathlib.Path(root)
    refusal = functools.partial(SettingError, "root", str(root))
    if not root.is_dir():
        raise refusal("no such folder; name one that has a folder of images for each class")
    split = (root / "train").is_dir()
    notes = _check_layout(root, split, refusal)
    train_folder = root / "train" if split else root
    listing = _list_classes(train_folder, refusal)
    _check_classes(listing, refusal)
    if split and (root / "val").is_dir():
        held_out = _list_classes(root / "val", refusal)
        if differ := sorted(listing.images.keys() ^ held_out.images.keys()):
            raise refusal(f"classes {_some(differ)} are in only one of train/ and val/; complete the other")
        train, validation = _files(train_folder, listing), _files(root / "val", held_out)
        notes += [*listing.notes("train/"), *held_out.notes("val/")]
    else:
        train, validation = _split(_files(train_folder, listing), holdout)
        note = f"no val/: {holdout:.0%} of the images, chosen by a hash of their path, held out"
        notes += [*listing.notes(), note]
    for part, files in {"train": train, "val": validation}.items():
        if not len(files):
            raise refusal(f"no images for {part}; add some, or change holdout = {holdout}")
    names = tuple(listing.images)
    notes += missing_classes(names, train.labels, validation.labels)
    return Dataset(train, validation, class_names=names, notes=tuple(notes))


def missing_classes(names: Sequence[str], train: Iterable[int], validation: Iterable[int]) -> Iterator[str]:
    """A note for each part in which some classes have no images, given the labels of all its images."""
    for part, labels in {"training": train, "validation": validation}.items():
        present = set(map(int, labels))
        if missing := [name for label, name in enumerate(names) if label not in present]:
            yield f"{len(missing)} classes have no {part} images: {_some(missing)}"


def _some(names: Sequence[str], where: str = "") -> str:
    """The first three names, and dots if there are more."""
    return ", ".join(where + name for name in names[:3]) + (", ..." if len(names) > 3 else "")


Refusal = Callable[[str], SettingError]  # from what is wrong with a setting, and the remedy


def _visible(folder: pathlib.Path, kind: Callable[[pathlib.Path], bool]) -> list[str]:
    """Sorted names of what is of this kind in a folder and not hidden."""
    return sorted(path.name for path in folder.iterdir() if kind(path) and not path.name.startswith("."))


def _check_layout(root: pathlib.Path, split: bool, refusal: Refusal) -> list[str]:
    """Notes about what is left out; SettingError where it is not clear what the folders mean."""
    folders, loose = _visible(root, pathlib.Path.is_dir), _visible(root, pathlib.Path.is_file)
    others = [name for name in folders if name not in ("train", "val")]
    if not split and folders and all(name.lower() in SPLIT_NAMES for name in folders):
        raise refusal(f"holds {_some(folders)} and no train/; call them train and val, or name one of them")
    if split and (classes := [name for name in others if name.lower() not in SPLIT_NAMES]):
        raise refusal(
            f"{_some(classes)} lie beside train/; if they are classes as well, rename train/ or move all of them"
            " into another train/; if not, move them away"
        )
    notes = [f"left out folders beside train/: {_some(others)}"] if split and others else []
    return notes + ([f"left out {len(loose)} files outside of the classes: {_some(loose)}"] if loose else [])


@dataclasses.dataclass(frozen=True)
class _Listing:
    """Paths of the files in a folder of classes, relative to it."""

    images: dict[str, list[str]]  # by class
    others: list[str]
    unreadable: list[str]

    def notes(self, where: str = "") -> Iterator[str]:
        if self.unreadable:
            yield f"left out {len(self.unreadable)} files that cannot be opened: {_some(self.unreadable, where)}"
        if self.others:
            yield f"left out {len(self.others)} files without the suffix of an image: {_some(self.others, where)}"


def _list_classes(folder: pathlib.Path, refusal: Refusal) -> _Listing:
    names = _visible(folder, pathlib.Path.is_dir)
    if not names:
        raise refusal(
            f"{folder} has no folders; make one for each class, or, if it is a class itself, name its parent"
        )
    listing = _Listing({name: [] for name in names}, [], [])
    for name in names:
        for path in sorted(_walk(folder / name)):
            relative = os.path.relpath(path, folder)
            if os.path.splitext(path)[1].lower() not in IMAGE_SUFFIXES:
                listing.others.append(relative)
            elif not os.access(path, os.R_OK):  # a broken link as well
                listing.unreadable.append(relative)
            else:
                listing.images[name].append(relative)
    return listing


def _walk(folder: pathlib.Path) -> Iterator[str]:
    """Paths of all files below a folder, also behind links, but each folder once."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(parent, name) for name in files if not name.startswith("."))


def _check_classes(train: _Listing, refusal: Refusal) -> None:
    if len(train.images) < 2:
        raise refusal(
            f"a classifier needs two classes or more, and the only folder is {min(train.images)!r}; add the other"
            " classes, or, if root is the folder of a class itself, name its parent"
        )
    if empty := [name for name, paths in train.images.items() if not paths]:
        others = f" and {len(empty) - 1} others" * (len(empty) > 1)
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise refusal(f"class {empty[0]!r}{others}: no images ({suffixes}); add some or remove the folder")


def _files(folder: pathlib.Path, listing: _Listing) -> ImageFiles:
    counts = [len(paths) for paths in listing.images.values()]
    labels = np.arange(len(counts), dtype=np.int32).repeat(counts)
    return ImageFiles.make(folder, list(itertools.chain.from_iterable(listing.images.values())), labels)


def _split(files: ImageFiles, holdout: float) -> tuple[ImageFiles, ...]:
    """(training, validation)."""
    paths = [files.file_name(index) for index in range(len(files))]
    held_out = np.array([is_held_out(path, holdout) for path in paths], bool)
    parts = ((list(itertools.compress(paths, part)), files.labels[part]) for part in (~held_out, held_out))
    return tuple(ImageFiles.make(files.root, *part) for part in parts)


def is_held_out(path: str, share: float) -> bool:
    """Whether the image called `path` belongs to the `share` in [0, 1) that is held out.

    The SHA-256 of the name alone decides, so other images that come or go change nothing.

    >>> [is_held_out(f"cat/{i}.jpg", 0.25) for i in range(4)]
    [False, False, False, True]
    """
    digest = hashlib.sha256(os.fsencode(path.replace(os.sep, "/"))).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
