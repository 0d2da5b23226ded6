"""Labelled images with random access: source[i] -> {"image": uint8[H, W, C], "label": int}."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from PIL import Image

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


class Source(Protocol):
    """What the pipeline reads: a length and random access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training and validation images of one task.

    Attributes:
      train, validation: the sources.
      class_names: in the order of the labels.
      channels: C of the images.
    """

    train: Source
    validation: Source
    class_names: tuple[str, ...]
    channels: int


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images held in memory: uint8[N, H, W, C], and labels int[N]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index])}


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Image files, decoded to RGB when read."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                if image.mode == "I;16":  # Pillow would clip it at 255
                    image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
                pixels = np.asarray(image.convert("RGB"))  # [H, W, 3]
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises each
            raise ValueError(f"cannot read image {path}: {error}; repair or remove the file") from error
        return {"image": pixels, "label": self.labels[index]}


def digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey: 1,437 to train on, 360 held out, ten classes.

    The test part of the UCI set of Alpaydin and Kaynak (1998), split at random with a fixed seed and equal
    shares of the classes.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    table = load_digits()
    images = np.round(table.images * (255 / 16)).astype(np.uint8)[..., None]  # [N, 8, 8, 1], from 0..16
    parts = train_test_split(images, table.target, test_size=360, stratify=table.target, random_state=0)
    train_images, held_out_images, train_labels, held_out_labels = parts
    return Dataset(
        train=ArraySource(train_images, train_labels),
        validation=ArraySource(held_out_images, held_out_labels),
        class_names=tuple(str(name) for name in table.target_names),
        channels=1,
    )


def image_folder(root: str | pathlib.Path) -> Dataset:
    """Image files in root/train/CLASS/ and root/val/CLASS/; classes are numbered in the order of their names.

    Raises:
      ValueError: if a folder is missing or empty, or the two name different classes.
    """
    root = pathlib.Path(root)
    folders = {split: root / split for split in ("train", "val")}
    for split, folder in folders.items():
        if not folder.is_dir():
            raise ValueError(
                f"root = {str(root)!r}: has no folder {split}/; images belong in train/CLASS/ and val/CLASS/"
            )
    names = {
        split: sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
        for split, folder in folders.items()
    }
    if names["train"] != names["val"]:
        differ = sorted(set(names["train"]) ^ set(names["val"]))
        raise ValueError(
            f"root = {str(root)!r}: classes {differ[:5]} are in only one of train/ and val/; complete the other"
        )
    train, validation = (_list_files(folder, names["train"]) for folder in folders.values())
    return Dataset(train=train, validation=validation, class_names=tuple(names["train"]), channels=3)


def _list_files(folder: pathlib.Path, class_names: list[str]) -> ImageFiles:
    files = [
        (str(path), label)
        for label, name in enumerate(class_names)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not files:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"root = {str(folder.parent)!r}: no image files ({suffixes}) below {folder}; add some")
    paths, labels = zip(*files, strict=True)
    return ImageFiles(paths, labels)


SOURCES: dict[str, Callable[..., Dataset]] = {"digits": digits, "image_folder": image_folder}


def load(name: str, *, root: str | None = None) -> Dataset:
    """The dataset called `name`.

    Args:
      name: a key of `SOURCES`.
      root: where its files are; needed by "image_folder", refused by "digits".

    Raises:
      ValueError: for an unknown name, or a root that is missing, needless or unusable.
    """
    if name not in SOURCES:
        raise ValueError(f"source = {name!r}: choose one of {sorted(SOURCES)}")
    make = SOURCES[name]
    if name == "image_folder":
        if root is None:
            raise ValueError("root = None: source 'image_folder' needs the folder that holds train/ and val/")
        make = functools.partial(make, root)
    elif root is not None:
        raise ValueError(f"root = {root!r}: source {name!r} comes without files; set root to None")
    return make()
