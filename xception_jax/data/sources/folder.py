"""A folder of images: root/CLASS/*, or root/train/CLASS/* and root/val/CLASS/*."""

import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from xception_jax.data.dataset import Dataset, ImageFiles
from xception_jax.errors import SettingError

SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}

Refusal = Callable[[str], SettingError]  # from what is wrong with a setting, and the remedy
Label = int | tuple[int, ...]
Entry = tuple[str, Label, str | None]  # path, label, split


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
    folders = dict.fromkeys(("train", "val"), root / "train" if split else root)
    listing = _list_classes(folders["train"], refusal)
    _check_classes(listing, refusal)
    if split and (root / "val").is_dir():
        folders["val"] = root / "val"
        held_out = _list_classes(folders["val"], refusal)
        if differ := sorted(listing.images.keys() ^ held_out.images.keys()):
            raise refusal(f"classes {_some(differ)} are in only one of train/ and val/; complete the other")
        images = [*listing.entries("train"), *held_out.entries("val")]
        notes += [*listing.notes("train/"), *held_out.notes("val/")]
    else:
        images = listing.entries(None)
        note = f"no val/: {holdout:.0%} of the images, chosen by a hash of their path, held out"
        notes += [*listing.notes(), note]
    train, validation = make_sources(folders, images, holdout, refusal)
    names = tuple(listing.images)
    notes += missing_classes(names, train, validation)
    return Dataset(train, validation, class_names=names, notes=tuple(notes))


def make_sources(
    folders: Mapping[str, pathlib.Path], images: Iterable[Entry], holdout: float, refusal: Refusal
) -> tuple[ImageFiles, ImageFiles]:
    """(training, validation); SettingError if one of them has no images.

    Args:
      folders: of the splits "train" and "val"; paths are relative to them.
      images: path, label or tuple of labels, and split; without one, `is_held_out` decides.
    """
    parts: dict[str, list] = {"train": [], "val": []}
    for path, label, split in images:
        parts[split or ("val" if is_held_out(path, holdout) else "train")].append((path, label))
    for part, found in parts.items():
        if not found:
            raise refusal(f"no images for {part}; add some, or change holdout = {holdout}")
    return _make_source(folders["train"], parts["train"]), _make_source(folders["val"], parts["val"])


def _make_source(folder: pathlib.Path, images: Sequence[tuple[str, Label]]) -> ImageFiles:
    paths, labels = zip(*images, strict=True)
    several = isinstance(labels[0], tuple)
    return ImageFiles.make(folder, paths, list(labels) if several else np.array(labels, np.int32))


def missing_classes(names: Sequence[str], train: ImageFiles, validation: ImageFiles) -> Iterator[str]:
    """A note for each part in which some classes have no images."""
    for part, source in {"training": train, "validation": validation}.items():
        one = isinstance(source.labels, np.ndarray)
        present = set(source.labels.tolist() if one else itertools.chain.from_iterable(source.labels))
        if missing := [name for label, name in enumerate(names) if label not in present]:
            yield f"{len(missing)} classes have no {part} images: {_some(missing)}"


def _some(names: Sequence[str], where: str = "") -> str:
    """The first three names, and dots if there are more."""
    return ", ".join(where + name for name in names[:3]) + (", ..." if len(names) > 3 else "")


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

    def entries(self, split: str | None) -> Iterator[Entry]:
        return ((path, label, split) for label, paths in enumerate(self.images.values()) for path in paths)

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


def is_held_out(path: str, share: float) -> bool:
    """Whether the image called `path` belongs to the `share` in [0, 1) that is held out.

    The SHA-256 of the name alone decides, so other images that come or go change nothing.

    >>> [is_held_out(f"cat/{i}.jpg", 0.25) for i in range(4)]
    [False, False, False, True]
    """
    digest = hashlib.sha256(os.fsencode(path.replace(os.sep, "/"))).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
