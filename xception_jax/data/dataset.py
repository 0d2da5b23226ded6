"""What a dataset is: images with labels that can be read in any order."""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from xception_jax.data.images.decoding import UnreadableImage


class Source(Protocol):
    """Images in random access.

    `source[i]` is {"image": uint8[H, W, C], or the bytes of a file to decode, "label": int, or ints for several
    labels}; `source.name(i)` says in messages which image that is. Sources made of files have `file_name(i)` too,
    which is None where it is not known.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def name(self, index: int) -> str: ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training and validation images of one task.

    Attributes:
      train, validation: the sources.
      class_names: in the order of the labels.
      channels: C of the images; what has to be decoded has 3.
      multilabel: an image has any number of labels instead of one.
      class_weights: how much each class matters; None = all 1.
      notes: what the user should know of how the images were found, a line each.
    """

    train: Source
    validation: Source
    class_names: tuple[str, ...]
    channels: int = 3
    multilabel: bool = False
    class_weights: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """16 hexadecimal digits of what decides the batches: number, names and labels of the images, classes."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:  # of a million images it takes a second, and every checkpoint asks for it
        state = hashlib.sha256(repr((self.class_names, self.class_weights, self.channels)).encode())
        for source in (self.train, self.validation):
            source = getattr(source, "source", source)  # of a subset: which images are evaluated decides no batch
            paths, labels = getattr(source, "paths", np.zeros(0)), getattr(source, "labels", ())
            state.update(repr((len(source), getattr(source, "split", None))).encode())
            state.update(paths.tobytes())
            state.update(labels.tobytes() if isinstance(labels, np.ndarray) else repr(labels).encode())
        return state.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images held in memory: uint8[N, H, W, C], and labels int[N] or tuples of ints."""

    images: np.ndarray
    labels: Sequence[int] | Sequence[tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": self.labels[index]}

    def name(self, index: int) -> str:
        """Its place in the array."""
        return f"number {index}"


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Image files, read when asked for.

    Attributes:
      root: folder that the paths start from.
      paths: bytes[N]; one array instead of many strings, since worker processes get a copy each.
      labels: int[N] or tuples of ints.
    """

    root: str
    paths: np.ndarray
    labels: Sequence[int] | Sequence[tuple[int, ...]]

    @classmethod
    def make(cls, root: str | pathlib.Path, paths: Sequence[str], labels: Sequence) -> "ImageFiles":
        """From relative paths as strings."""
        return cls(str(root), np.array([os.fsencode(path) for path in paths], dtype=np.bytes_), labels)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            image = pathlib.Path(self.name(index)).read_bytes()
        except OSError as error:
            raise UnreadableImage(self.name(index), error.strerror or str(error)) from error
        return {"image": image, "label": self.labels[index]}

    def name(self, index: int) -> str:
        """Its path."""
        return os.path.join(self.root, self.file_name(index))

    def file_name(self, index: int) -> str:
        """The path below `root`."""
        return os.fsdecode(self.paths[index].item())


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some images of a source, by their numbers int[N]."""

    source: Source
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.indices[index])]

    def name(self, index: int) -> str:
        """As the source says it."""
        return self.source.name(int(self.indices[index]))
