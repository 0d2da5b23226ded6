"""Writes pictures into the record files of TFDS, and takes ImageNet out of its archives.

TFDS's usual builder (`GeneratorBasedBuilder`) needs TensorFlow to shuffle more than 1 GiB, and room on the disk for
a second copy. Here the order, a hash of the file names, is known before a picture is read: each file of records is
written in one go (`ShardBasedBuilder`), without either. The order is TFDS's.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import io
import itertools
import os
import pathlib
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import grain
import numpy as np
import tensorflow_datasets as tfds
import tqdm
from PIL import ExifTags, Image
from tensorflow_datasets.core.utils import shard_utils

from xception_jax.data import images, records
from xception_jax.data.dataset import Dataset, ImageFiles

IMAGENET_COUNTS = {"train": 1_281_167, "validation": 50_000}
LISTED = 20  # unreadable pictures in an error


@dataclasses.dataclass(frozen=True)
class Archive:
    """Files inside a tar file, read when asked for; a source.

    Attributes:
      tar: its path.
      paths: bytes[N], names of the files.
      labels: int32[N].
      offsets, sizes: int64[N], where they lie in the tar file, in bytes.
    """

    tar: str
    paths: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with open(self.tar, "rb") as file:
            file.seek(self.offsets[index])
            encoded = file.read(self.sizes[index])
        return {"image": _to_rgb_jpeg(self.paths[index].decode(), encoded), "label": int(self.labels[index])}

    def name(self, index: int) -> str:
        """Its name, and the archive's."""
        return f"{self.paths[index].decode()} in {self.tar}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A set to be written.

    Attributes:
      dataset: of `Archive` or `ImageFiles`.
      name, version, description: for TFDS.
      encoding: "jpeg" if all pictures are.
      decode: whether each picture is decoded once, to see that it is whole.
      short_side: pictures whose shorter side is longer, in pixels, are shrunk to it (mean of the pixels) and stored
        as JPEG of quality 95; None = none. All others are stored as they are, byte for byte.
      skip_unreadable: leave out pictures that cannot be read.
    """

    dataset: Dataset
    name: str
    version: str = "1.0.0"
    description: str = ""
    encoding: str | None = None
    decode: bool = True
    short_side: int | None = None
    skip_unreadable: bool = False

    @property
    def splits(self) -> dict[str, Archive | ImageFiles]:
        """The sources by the names of their splits."""
        return {"train": self.dataset.train, "validation": self.dataset.validation}


@dataclasses.dataclass(frozen=True)
class Report:
    """A set that was written, or was there.

    Attributes:
      directory: of its version.
      counts: records of each split.
      shrunk: number of pictures.
      left_out: those that cannot be read, and why.
      was_there: whether the same set lay there, whole.
    """

    directory: pathlib.Path
    counts: Mapping[str, int]
    shrunk: int
    left_out: Sequence[str]
    was_there: bool


def check_name(name: str) -> None:
    """Whether a new set may be called that.

    Raises:
      ValueError: if TFDS would not find it under this name.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"name = {name!r}: must be small letters, digits and _, beginning with a letter")
    with contextlib.suppress(tfds.core.DatasetNotFoundError):
        tfds.builder_cls(name)
        raise ValueError(f"name = {name!r}: is that of one of TFDS's own sets; choose another")


def write(plan: Plan, directory: pathlib.Path) -> Report:
    """Writes the set to directory/NAME/VERSION, which is there only when all has been written and read back.

    Until then the files are in a hidden folder beside it, which the next attempt clears if this one is killed.

    Raises:
      ValueError: for pictures that cannot be read, or another set in the place of this one.
      OSError: if the files cannot be written, or do not read back as what was written.
    """
    for name in plan.dataset.class_names:
        if not name or name != name.strip() or "\n" in name:  # TFDS keeps the names as lines, stripped
            raise ValueError(f"class {name!r}: its name is empty, or has blanks around it or a line's end; rename it")
    place = directory / plan.name / plan.version
    directory.mkdir(parents=True, exist_ok=True)
    with _work_folder(directory, plan.name) as work:
        if place.parent.exists() and any(place.parent.iterdir()):
            return _recognize(plan, place)
        builder = _Builder(plan, work)
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        _check_written(plan, work, builder.tallies)
        os.sync()
        place.parent.mkdir(exist_ok=True)
        (work / plan.name / plan.version).rename(place)
    return _report(place, {split: len(tally) for split, tally in builder.tallies.items()}, builder.notes())


@contextlib.contextmanager
def _work_folder(directory: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
    """An empty folder for this process alone, removed in the end."""
    work = directory / f".{name}.incomplete"
    work.mkdir(exist_ok=True)
    handle = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ValueError(f"out = {str(directory)!r}: another process is writing {name!r} there; wait for it") from None
    try:
        for path in work.iterdir():
            shutil.rmtree(path)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(handle)


class _Picture(NamedTuple):
    """What becomes of a picture."""

    example: dict[str, Any] | None  # as TFDS wants it; None if it cannot be read
    given: int  # hash of its name, label and bytes
    kept: int  # hash of its label and bytes as stored
    shrunk: bool
    error: str | None


@dataclasses.dataclass(frozen=True)
class _Pictures:
    """The pictures of a split in the order of their records."""

    plan: Plan
    split: str

    def __post_init__(self):
        # of TFDS: ascending md5(split + key)
        keys = [hashlib.md5(self.split.encode() + path).digest() for path in self._source.paths.tolist()]
        object.__setattr__(self, "order", sorted(range(len(keys)), key=keys.__getitem__))
