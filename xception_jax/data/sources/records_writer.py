"""Writes images into the record files of TFDS.

TFDS's usual builder (`GeneratorBasedBuilder`) needs TensorFlow to shuffle more than 1 GiB, and disk space for a
second copy. But it sorts by a hash of the file names, which is known before any image is read. So each record file
is written in one go here (`ShardBasedBuilder`), in the same order, without either.
"""

import collections
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import grain
import numpy as np
import tensorflow_datasets as tfds
import tqdm
from PIL import ExifTags, Image
from tensorflow_datasets.core.utils import shard_utils

from xception_jax.data.dataset import Dataset, Source, UnreadableExample
from xception_jax.data.images import decoding
from xception_jax.data.sources import records
from xception_jax.data.sources.imagenet import Archive
from xception_jax.errors import SettingError, UserError

LISTED = 20  # unreadable images in a message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A set to be written.

    Attributes:
      dataset: its sources are of type `ImageFiles` or `Archive`.
      name, version, description: for TFDS.
      encoding: "jpeg" if all images are JPEGs.
      decode: whether to decode each image once, to see that it can be decoded.
      short_side: images whose shorter side is longer, in pixels, are shrunk to it by averaging and stored as JPEGs
        of quality 95. All others are stored byte for byte; None = all images are.
      background: of the transparent pixels of images that are shrunk, see `decoding.decode`.
      skip_unreadable: leave out images that cannot be read.
    """

    dataset: Dataset
    name: str
    version: str = "1.0.0"
    description: str = ""
    encoding: str | None = None
    decode: bool = True
    short_side: int | None = None
    background: str = "white"
    skip_unreadable: bool = False

    @property
    def label(self) -> str:
        """Name of the feature with the labels."""
        return "labels" if self.dataset.multilabel else "label"

    @property
    def settings(self) -> dict[str, Any]:
        """What makes two sets of the same images and labels differ, as values that JSON does not change."""
        weights = self.dataset.class_weights
        settings = {
            "short_side": self.short_side,
            "class_names": _add_up([_hash(self.dataset.class_names)]),
            "class_weights": None if weights is None else list(weights),
        }
        if self.short_side and self.background != "black":  # version 0.1 knew only "black", and did not write it
            settings["background"] = self.background
        return settings


@dataclasses.dataclass(frozen=True)
class Report:
    """A set that was written or was already there."""

    directory: pathlib.Path  # of this version of the set
    counts: Mapping[str, int]  # number of records of each split
    shrunk: int  # number of images
    left_out: Sequence[str]  # the images that cannot be read, and why
    was_there: bool = False


def check_name(name: str) -> None:
    """Raises SettingError if a set cannot have this name, because TFDS would not find it."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise SettingError("name", name, "must be small letters, digits and _, beginning with a letter")
    with contextlib.suppress(tfds.core.DatasetNotFoundError):
        tfds.builder_cls(name)
        raise SettingError("name", name, "is the name of a set of TFDS; choose another")


def write(request: Request, directory: pathlib.Path) -> Report:
    """Writes the set to directory/NAME/VERSION, where it appears after all of it has been written and read back.

    Until then it is in a hidden folder beside that, which is removed in the end, or by the next attempt.

    Raises:
      UserError: for images that cannot be read, class names that TFDS cannot store, or another set in its place.
      OSError: if it cannot be written, or if what is read back differs.
    """
    for name in request.dataset.class_names:
        if not name or name != name.strip() or "\n" in name:  # TFDS keeps them as lines, stripped
            raise UserError(f"class {name!r}: is empty, begins or ends with a blank, or has two lines; rename it")
    directory.mkdir(parents=True, exist_ok=True)
    place = directory / request.name / request.version
    with _work_folder(directory, request.name) as work:
        if place.parent.exists() and any(place.parent.iterdir()):
            return _recognize(request, place)
        builder = _Builder(request, work)
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        report = _report(request, place, work, expected=builder.noted)
        os.sync()
        place.parent.mkdir(exist_ok=True)
        pathlib.Path(builder.data_dir).rename(place)
    return report


def _report(request: Request, place: pathlib.Path, root: pathlib.Path, expected: Mapping[str, Any]) -> Report:
    """Reads the set below `root` back and compares it with what should be in it."""
    try:
        written = records.load(request.name, root=str(root), train_split="train", eval_split="validation")
        kept = _hash_kept(written)
    except ValueError as error:
        raise OSError(f"what was written cannot be read back: {error}") from error
    if kept != expected["kept"] or written.class_names != request.dataset.class_names:
        raise OSError("what is read back is not what was written; the disk or the memory may be faulty")
    counts = {split: len(source) for split, source in _splits(written).items()}
    return Report(place, counts, expected["shrunk"], expected["left_out"])


@contextlib.contextmanager
def _work_folder(directory: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
    """An empty hidden folder that no other process uses; it is removed in the end."""
    work = directory / f".{name}.incomplete"
    work.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        handle = os.open(work, os.O_RDONLY)
        stack.callback(os.close, handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            remedy = f"another process is writing {name!r}; wait for it"
            raise SettingError("out", str(directory), remedy) from None
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        for left_over in work.iterdir():
            shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
        yield work


def _recognize(request: Request, place: pathlib.Path) -> Report:
    """Describes the set that is already in place; SettingError unless it is the same one and whole."""

    def refusal(reason: str) -> SettingError:
        remedy = f"{place.parent} is there and {reason}; remove it, or write to another folder"
        return SettingError("out", str(place.parents[1]), remedy)

    if (found := sorted(path.name for path in place.parent.iterdir())) != [request.version]:
        raise refusal(f"holds {', '.join(found)}")
    try:
        noted = records.prepared(tfds.builder_from_directory(place).info)
    except (OSError, ValueError) as error:
        raise refusal(f"is no set that can be read ({error})") from error
    if noted.get("settings") != request.settings or noted.get("given") != _hash_given(request):
        raise refusal("was not made of these images with these settings")
    try:
        return dataclasses.replace(_report(request, place, place.parents[1], noted), was_there=True)
    except OSError as error:
        raise refusal(f"is damaged ({error})") from error


def _splits(dataset: Dataset) -> dict[str, Any]:
    return {"train": dataset.train, "validation": dataset.validation}


def _hash(*parts: object) -> int:
    """128 bits of bytes, and of the `repr` of other things."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part if isinstance(part, bytes) else repr(part).encode()
        state.update(len(encoded).to_bytes(8, "little"))
        state.update(encoded)
    return int.from_bytes(state.digest(), "little")


def _add_up(hashes: Iterable[int]) -> str:
    """One hash of all of them, independent of their order."""
    return f"{sum(hashes) % 2**128:032x}"


def _hash_kept(dataset: Dataset) -> dict[str, str]:
    """By split, a hash of the labels and bytes of all records."""
    return {
        split: _add_up(_hash(example["label"], example["image"]) for example in _read(source, f"checking {split}"))
        for split, source in _splits(dataset).items()
    }


def _hash_given(request: Request) -> dict[str, str]:
    """By split, a hash of the names, labels and bytes of all images as they are given."""
    request = dataclasses.replace(request, decode=False, short_side=None)
    return {
        split: _add_up(image.given for image in _read(_Images(request, split), f"comparing {split}"))
        for split in _splits(request.dataset)
    }


def _read(source: Any, title: str) -> tqdm.tqdm:
    """All items in order, read by threads."""
    threads = os.cpu_count() or 1
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    items = iter(grain.MapDataset.source(source).to_iter_dataset(options))
    return tqdm.tqdm(items, title, len(source), unit=" images", disable=None)


class _Converted(NamedTuple):
    """What an image becomes."""

    given: int  # hash
    example: dict[str, Any] | None = None  # for TFDS; None if the image cannot be read
    kept: int = 0  # hash
    shrunk: bool = False
    error: str | None = None


class _Images:
    """The images of a split, converted, in the order of the records."""

    def __init__(self, request: Request, split: str):
        self._request, self._source = request, _splits(request.dataset)[split]
        keys = [hashlib.md5(split.encode() + path).digest() for path in self._source.paths.tolist()]  # as TFDS
        self._order = sorted(range(len(keys)), key=keys.__getitem__)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> _Converted:
        index = self._order[index]
        path, label = self._source.paths[index].item(), self._source.labels[index]
        label = tuple(int(number) for number in label) if self._request.dataset.multilabel else int(label)
        encoded = b""
        try:
            encoded = self._source[index]["image"]
            stored = self._convert(encoded)
        except UnreadableExample as error:
            return _Converted(_hash(path, label, encoded), error=f"{os.fsdecode(path)}: {error.reason}")
        example = {"image": stored, self._request.label: label, "file_name": path}
        return _Converted(_hash(path, label, encoded), example, _hash(label, stored), stored is not encoded)

    def _convert(self, encoded: bytes) -> bytes:
        """What to store: the same object if the image stays as it is."""
        request = self._request
        if not request.decode:
            return encoded
        image = decoding.decode(encoded, name="", background=request.background)
        if request.short_side is None or min(image.shape[:2]) <= request.short_side:
            return encoded
        return shrink(image, request.short_side, orientation=_read_orientation(encoded))


def shrink(image: np.ndarray, short_side: int, *, orientation: int | None = None) -> bytes:
    """A JPEG of quality 95 of an image that is shrunk by averaging and keeps its aspect ratio.

    Args:
      image: uint8[H, W, 3].
      short_side: of the result, in pixels.
      orientation: to be written into the EXIF data: how the camera was held.
    """
    scale = short_side / min(image.shape[:2])
    height, width = (round(scale * length) for length in image.shape[:2])
    exif = Image.Exif()
    if orientation:
        exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)  # [height, width, 3]
    Image.fromarray(small).save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


def _read_orientation(encoded: bytes) -> int | None:
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises all kinds for broken EXIF data; the pixels could be read
        return None


class _Builder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """The builder that TFDS asks for the images; the names of its methods are TFDS's."""

    def __init__(self, request: Request, directory: pathlib.Path):
        self.name, self.VERSION = request.name, tfds.core.Version(request.version)
        self._request = request
        self._sums = {split: collections.Counter() for split in _splits(request.dataset)}
        self._errors: list[str] = []
        self.noted: dict[str, Any] = {}  # what metadata.json says of the set, once it has been written
        super().__init__(data_dir=directory, file_format=records.FORMAT)

    def _info(self) -> tfds.core.DatasetInfo:
        kinds, label = tfds.features, tfds.features.ClassLabel(names=self._request.dataset.class_names)
        features = {
            "image": kinds.Image(encoding_format=self._request.encoding),
            self._request.label: kinds.Sequence(label) if self._request.dataset.multilabel else label,
            "file_name": kinds.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._request.description,
            features=kinds.FeaturesDict(features),
            supervised_keys=("image", self._request.label),
            metadata=tfds.core.MetadataDict(),
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Callable[[], Iterator]]]:
        return {split: self._shards(split, source) for split, source in _splits(self._request.dataset).items()}

    def _shards(self, split: str, source: Source) -> list[Callable[[], Iterator]]:
        is_archive = isinstance(source, Archive)
        sizes = source.sizes if is_archive else (os.path.getsize(source.name(i)) for i in range(len(source)))
        count = shard_utils.ShardConfig().get_number_shards(int(sum(sizes)), len(source))
        ends = shard_utils.get_shard_boundaries(len(source), count)
        lengths = [*np.diff([0, *ends[:-1]]).tolist(), None]  # the last file takes the rest
        images = iter(_read(_Images(self._request, split), f"writing {split}"))
        return [functools.partial(self._examples, split, itertools.islice(images, length)) for length in lengths]

    def _examples(self, split: str, images: Iterable[_Converted]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, image in enumerate(images):
            self._sums[split].update(given=image.given, kept=image.kept, shrunk=image.shrunk)
            self._errors += [image.error] if image.error else []
            if image.example is not None:
                self._sums[split]["count"] += 1
                yield number, image.example

    def _example_writer(self) -> "_Writer":
        return _Writer(file_format=self.info.file_format)

    def _download_and_prepare(self, **settings: Any) -> None:
        super()._download_and_prepare(**settings)
        sums, errors = self._sums, self._errors
        if errors and not self._request.skip_unreadable:
            remedy = "repair or remove them, or leave them out with --skip-unreadable"
            more = [f"and {len(errors) - LISTED} more"] if len(errors) > LISTED else []
            raise UserError("\n  ".join([f"unreadable images: {len(errors)}; {remedy}", *errors[:LISTED], *more]))
        if empty := [split for split in sums if not sums[split]["count"]]:
            raise UserError(f"no image for {empty[0]!r} can be read; the first: {errors[0]}")
        self.noted = {
            "settings": self._request.settings,
            "given": {split: _add_up([sums[split]["given"]]) for split in sums},
            "kept": {split: _add_up([sums[split]["kept"]]) for split in sums},
            "shrunk": sum(sums[split]["shrunk"] for split in sums),
            "left_out": errors,
        }
        self.info.metadata[records.METADATA] = self.noted


class _Writer(tfds.core.ExampleWriter):
    """Raises OSError instead of array_record's RuntimeError, for a full disk and the like."""

    def write(self, path: Any, examples: Iterable) -> Any:
        try:
            return super().write(path, examples)
        except RuntimeError as error:
            raise OSError(str(error).split(";")[0]) from error
