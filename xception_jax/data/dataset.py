"""What a dataset is: examples with labels that can be read in any order."""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np


class UnreadableExample(ValueError):
    """An example whose file is missing, damaged or of another kind.

    >>> print(UnreadableExample("cat/7.jpg", "is empty"))
    cannot read cat/7.jpg: is empty; repair or remove the file
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)  # the arguments that pickle calls the class with
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"cannot read {self.name}: {self.reason}; repair or remove the file"


class Source(Protocol):
    """Examples in random access.

    `source[i]` is {"label": int, or ints for several labels} and the input: for images, {"image": uint8[H, W, C],
    or the bytes of a file to decode}. It raises `UnreadableExample` if the file cannot be read. `source.name(i)`
    names the example in messages.

    Two methods are optional. `file_name(i)`: the file that an example comes from, or None if it is not known.
    `digest()`: bytes that change with the content, for `Dataset.fingerprint`; for sources without the attributes
    `paths` and `labels`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def name(self, index: int) -> str: ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training and validation examples of one task.

    Attributes:
      class_names: in the order of the labels.
      model_settings: settings of the model that follow from the data, such as {"in_channels": 1} for grey images;
        those not named keep the model's defaults.
      multilabel: an example has any number of labels instead of one.
      class_weights: weight of each class in the metrics and the loss; None = all 1.
      notes: what the user should know about how the examples were found, a line each.
    """

    train: Source
    validation: Source
    class_names: tuple[str, ...]
    model_settings: Mapping[str, int] = dataclasses.field(default_factory=dict)
    multilabel: bool = False
    class_weights: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the examples, their labels or the classes, not with the folder.

        Checkpoints keep it, and every host compares its own with the others'. For image files it depends on the
        relative paths and the labels, for record files on the content (`records.Records.digest`).
        """
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:  # takes a second for a million images, and every checkpoint asks for it
        settings = dict(self.model_settings)
        channels = settings.pop("in_channels", 3)  # in this place because checkpoints of version 0.1 have it there
        parts = (self.class_names, self.class_weights, channels, *sorted(settings.items()))
        state = hashlib.sha256(repr(parts).encode())
        for source in (self.train, self.validation):
            source = getattr(source, "source", source)  # of a Subset, which does not change the training
            paths, labels = getattr(source, "paths", np.zeros(0)), getattr(source, "labels", ())
            state.update(repr((len(source), getattr(source, "split", None))).encode())
            state.update(paths.tobytes())
            state.update(labels.tobytes() if isinstance(labels, np.ndarray) else repr(labels).encode())
            if hasattr(source, "digest"):
                state.update(source.digest())
        return state.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images in memory: uint8[N, H, W, C], and labels int[N] or tuples of ints."""

    images: np.ndarray
    labels: Sequence[int] | Sequence[tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": self.labels[index]}

    def name(self, index: int) -> str:
        return f"number {index}"


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Image files; each is read when its example is asked for.

    Attributes:
      root: folder that the paths are relative to.
      paths: bytes[N]; one array instead of many strings, because every worker process gets a copy.
    """

    root: str
    paths: np.ndarray
    labels: Sequence[int] | Sequence[tuple[int, ...]]

    @classmethod
    def make(cls, root: str | pathlib.Path, paths: Sequence[str], labels: Sequence) -> "ImageFiles":
        """The source of files whose relative paths are given as strings."""
        return cls(str(root), np.array([os.fsencode(path) for path in paths], dtype=np.bytes_), labels)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            image = pathlib.Path(self.name(index)).read_bytes()
        except OSError as error:
            raise UnreadableExample(self.name(index), error.strerror or str(error)) from error
        return {"image": image, "label": self.labels[index]}

    def name(self, index: int) -> str:
        return os.path.join(self.root, self.file_name(index))

    def file_name(self, index: int) -> str:
        return os.fsdecode(self.paths[index].item())


@dataclasses.dataclass(frozen=True)
class Subset:
    """The examples of a source at some of its indices, int[N]."""

    source: Source
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.indices[index])]

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))
