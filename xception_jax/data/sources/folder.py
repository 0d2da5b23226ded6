"""A folder of images: root/CLASS/*, or root/train/CLASS/* and root/val/CLASS/*."""

import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import NamedTuple, Protocol

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
    refusal = functools.partial(SettingError, "root", str(root))
    found = find(root, IMAGES, refusal)
    notes = list(found.notes)
    if not found.has_validation:
        notes.append(f"no val/: {holdout:.0%} of the images, chosen by a hash of their path, held out")
    train, validation = make_sources(found.folders, found.entries, holdout, refusal)
    notes += missing_classes(found.class_names, train, validation)
    return Dataset(train, validation, class_names=found.class_names, notes=tuple(notes))


class Kind(NamedTuple):
    """What the files of examples are: the word for one of them, and how their names end."""

    word: str
    suffixes: Set[str]


IMAGES = Kind("image", IMAGE_SUFFIXES)


class Found(NamedTuple):
    """The examples' files in a folder.

    Attributes:
      folders: of the splits "train" and "val"; the same one if there is no val/.
      entries: path below the folder of its split, label, and split, which is None if there is no val/.
      notes: about what is left out.
    """

    class_names: tuple[str, ...]
    folders: Mapping[str, pathlib.Path]
    entries: Sequence[Entry]
    notes: Sequence[str]

    @property
    def has_validation(self) -> bool:
        return self.folders["train"] != self.folders["val"]


def find(root: str | pathlib.Path, kind: Kind, refusal: Refusal) -> Found:
    """Classes and files of a folder in the form that `load` describes; raises what `load` raises."""
    root = pathlib.Path(root)
    if not root.is_dir():
        raise refusal(f"no such folder; name one that has a folder of {kind.word}s for each class")
    split = (root / "train").is_dir()
    notes = _check_layout(root, split, refusal)
    folders = dict.fromkeys(("train", "val"), root / "train" if split else root)
    listing = _list_classes(folders["train"], kind, refusal)
    _check_classes(listing, refusal)
    if split and (root / "val").is_dir():
        folders["val"] = root / "val"
        held_out = _list_classes(folders["val"], kind, refusal)
        if differ := sorted(listing.files.keys() ^ held_out.files.keys()):
            raise refusal(f"classes {_some(differ)} are in only one of train/ and val/; complete the other")
        entries = [*listing.entries("train"), *held_out.entries("val")]
        notes += [*listing.notes("train/"), *held_out.notes("val/")]
    else:
        entries = list(listing.entries(None))
        notes += listing.notes()
    return Found(tuple(listing.files), folders, entries, notes)


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


class Labelled(Protocol):
    """What `missing_classes` reads: int32[N], or tuples of ints."""

    labels: np.ndarray | Sequence[tuple[int, ...]]


def missing_classes(
    names: Sequence[str], train: Labelled, validation: Labelled, word: str = "image"
) -> Iterator[str]:
    """A note for each part in which some classes have no examples, which are called by a word."""
    for part, source in {"training": train, "validation": validation}.items():
        one = isinstance(source.labels, np.ndarray)
        present = set(source.labels.tolist() if one else itertools.chain.from_iterable(source.labels))
        if missing := [name for label, name in enumerate(names) if label not in present]:
            yield f"{len(missing)} classes have no {part} {word}s: {_some(missing)}"


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

    kind: Kind
    files: dict[str, list[str]]  # by class
    others: list[str]
    unreadable: list[str]

    def entries(self, split: str | None) -> Iterator[Entry]:
        return ((path, label, split) for label, paths in enumerate(self.files.values()) for path in paths)

    def notes(self, where: str = "") -> Iterator[str]:
        if self.unreadable:
            yield f"left out {len(self.unreadable)} files that cannot be opened: {_some(self.unreadable, where)}"
        if self.others:
            article = "an" if self.kind.word[0] in "aeiou" else "a"
            reason = f"without the suffix of {article} {self.kind.word}"
            yield f"left out {len(self.others)} files {reason}: {_some(self.others, where)}"


def _list_classes(folder: pathlib.Path, kind: Kind, refusal: Refusal) -> _Listing:
    names = _visible(folder, pathlib.Path.is_dir)
    if not names:
        raise refusal(
            f"{folder} has no folders; make one for each class, or, if it is a class itself, name its parent"
        )
    listing = _Listing(kind, {name: [] for name in names}, [], [])
    for name in names:
        for path in sorted(_walk(folder / name)):
            relative = os.path.relpath(path, folder)
            if os.path.splitext(path)[1].lower() not in kind.suffixes:
                listing.others.append(relative)
            elif not os.access(path, os.R_OK):  # a broken link as well
                listing.unreadable.append(relative)
            else:
                listing.files[name].append(relative)
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
    if len(train.files) < 2:
        raise refusal(
            f"a classifier needs two classes or more, and the only folder is {min(train.files)!r}; add the other"
            " classes, or, if root is the folder of a class itself, name its parent"
        )
    if empty := [name for name, paths in train.files.items() if not paths]:
        others = f" and {len(empty) - 1} others" * (len(empty) > 1)
        suffixes = ", ".join(sorted(train.kind.suffixes))
        raise refusal(
            f"class {empty[0]!r}{others}: no {train.kind.word}s ({suffixes}); add some or remove the folder"
        )


def is_held_out(path: str, share: float) -> bool:
    """Whether the image called `path` belongs to the `share` in [0, 1) that is held out.

    The SHA-256 of the name alone decides, so other images that come or go change nothing.

    >>> [is_held_out(f"cat/{i}.jpg", 0.25) for i in range(4)]
    [False, False, False, True]
    """
    return in_share(os.fsencode(path.replace(os.sep, "/")), share)


def in_share(content: bytes, share: float) -> bool:
    """Whether the SHA-256 of some bytes lies in the lowest `share` of all values."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") < share * 2**64
