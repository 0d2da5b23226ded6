"""Writes pictures into the record files of TFDS.

TFDS's usual builder (`GeneratorBasedBuilder`) needs TensorFlow to shuffle more than 1 GiB, and room on the disk
for a second copy. Its order, a hash of the file names, can be known before a picture is read: so each file of
records is written in one go here (`ShardBasedBuilder`), without either.
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import grain
import numpy as np
import tensorflow_datasets as tfds
import tqdm
from PIL import ExifTags, Image
from tensorflow_datasets.core.utils import shard_utils

from xception_jax.data.dataset import Dataset, ImageFiles, Source, UnreadableExample
from xception_jax.data.images import decoding
from xception_jax.data.sources import records
from xception_jax.data.sources.imagenet import Archive

LISTED = 20  # unreadable pictures in a message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A set to be written.

    Attributes:
      dataset: its sources are of type `ImageFiles` or `Archive`.
      name, version, description: for TFDS.
      encoding: "jpeg" if all pictures are.
      decode: whether each picture is decoded once, to see that it can be.
      short_side: pictures whose shorter side is longer, in pixels, are shrunk to it by averaging, and stored as
        JPEG of quality 95; all others, and without it all, are stored byte for byte.
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
    def label(self) -> str:
        """The feature."""
        return "labels" if self.dataset.multilabel else "label"

    @property
    def settings(self) -> dict[str, Any]:
        """What makes two sets of the same pictures and labels differ, as JSON gives it back."""
        weights = self.dataset.class_weights
        return {
            "short_side": self.short_side,
            "class_names": _add_up([_hash(self.dataset.class_names)]),
            "class_weights": None if weights is None else list(weights),
        }


@dataclasses.dataclass(frozen=True)
class Report:
    """A set that was written, or lay there already.

    Attributes:
      directory: of this version of it.
      counts: records of each split.
      shrunk: number of pictures.
      left_out: those that cannot be read, and why.
      was_there: whether it lay there, whole.
    """

    directory: pathlib.Path
    counts: Mapping[str, int]
    shrunk: int
    left_out: Sequence[str]
    was_there: bool = False


def check_name(name: str) -> None:
    """Whether a set of one's own may have this name.

    Raises:
      ValueError: if TFDS would not find it.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"name = {name!r}: must be small letters, digits and _, beginning with a letter")
    with contextlib.suppress(tfds.core.DatasetNotFoundError):
        tfds.builder_cls(name)
        raise ValueError(f"name = {name!r}: is that of a set of TFDS; choose another")


def write(request: Request, directory: pathlib.Path) -> Report:
    """Writes the set to directory/NAME/VERSION, where it appears only when it is whole and has been read back.

    Until then it is in a hidden folder beside that, which is removed in the end, or by the next attempt.

    Raises:
      ValueError: for pictures that cannot be read, or if something else lies in its place.
      OSError: if it cannot be written, or what is read back differs.
    """
    for name in request.dataset.class_names:
        if not name or name != name.strip() or "\n" in name:  # TFDS keeps them as lines, stripped
            raise ValueError(
                f"class {name!r}: is empty, or has blanks around it or a line's end within; rename it"
            )
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


def _report(request: Request, place: pathlib.Path, root: pathlib.Path, expected: dict[str, Any]) -> Report:
    """Reads the set below `root` back, and compares it with what should be in it."""
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
    """An empty hidden folder, for this process alone."""
    work = directory / f".{name}.incomplete"
    work.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        handle = os.open(work, os.O_RDONLY)
        stack.callback(os.close, handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"out = {str(directory)!r}: another process is writing {name!r}; wait for it"
            ) from None
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        for left_over in work.iterdir():
            shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
        yield work


def _recognize(request: Request, place: pathlib.Path) -> Report:
    """What lies in the place of the set, if it is the same set and whole."""

    def refusal(reason: str) -> ValueError:
        where = f"out = {str(place.parents[1])!r}: {place.parent} is there and"
        return ValueError(f"{where} {reason}; remove it, or write to another folder")

    if (found := sorted(path.name for path in place.parent.iterdir())) != [request.version]:
        raise refusal(f"holds {', '.join(found)}")
    try:
        noted = (tfds.builder_from_directory(place).info.metadata or {}).get(records.METADATA, {})
    except (OSError, ValueError) as error:
        raise refusal(f"is no set that can be read ({error})") from error
    if noted.get("settings") != request.settings or noted.get("given") != _hash_given(request):
        raise refusal("was not made of these pictures with these settings")
    try:
        return dataclasses.replace(_report(request, place, place.parents[1], noted), was_there=True)
    except OSError as error:
        raise refusal(f"is damaged ({error})") from error


def _splits(dataset: Dataset) -> dict[str, Source]:
    return {"train": dataset.train, "validation": dataset.validation}


def _hash(*parts: object) -> int:
    """128 bits of bytes, and of what `repr` makes of other things."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part if isinstance(part, bytes) else repr(part).encode()
        state.update(len(encoded).to_bytes(8, "little"))
        state.update(encoded)
    return int.from_bytes(state.digest(), "little")


def _add_up(hashes: Iterable[int]) -> str:
    """One hash of all, in whatever order they come."""
    return f"{sum(hashes) % 2**128:032x}"


def _hash_kept(dataset: Dataset) -> dict[str, str]:
    """Of the labels and bytes of all records, by split."""
    return {
        split: _add_up(_hash(example["label"], example["image"]) for example in _read(source, f"checking {split}"))
        for split, source in _splits(dataset).items()
    }


def _hash_given(request: Request) -> dict[str, str]:
    """Of the names, labels and bytes of all pictures before anything is done to them, by split."""
    request = dataclasses.replace(request, decode=False, short_side=None)
    return {
        split: _add_up(picture.given for picture in _read(_Pictures(request, split), f"comparing {split}"))
        for split in _splits(request.dataset)
    }


def _read(source: Any, title: str) -> tqdm.tqdm:
    """All of it in order, by threads."""
    threads = os.cpu_count() or 1
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    items = iter(grain.MapDataset.source(source).to_iter_dataset(options))
    return tqdm.tqdm(items, title, len(source), unit=" pictures", disable=None)


class _Picture(NamedTuple):
    """What becomes of a picture."""

    given: int  # hash
    example: dict[str, Any] | None = None  # for TFDS; None if it cannot be read
    kept: int = 0  # hash
    shrunk: bool = False
    error: str | None = None


class _Pictures:
    """The pictures of a split, in the order of their records."""

    def __init__(self, request: Request, split: str):
        self._request, self._source = request, _splits(request.dataset)[split]
        keys = [hashlib.md5(split.encode() + path).digest() for path in self._source.paths.tolist()]  # as TFDS
        self._order = sorted(range(len(keys)), key=keys.__getitem__)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> _Picture:
        index = self._order[index]
        path, label = self._source.paths[index].item(), self._source.labels[index]
        label = tuple(int(number) for number in label) if self._request.dataset.multilabel else int(label)
        encoded = b""
        try:
            encoded = self._source[index]["image"]
            stored = self._convert(encoded)
        except UnreadableExample as error:
            return _Picture(_hash(path, label, encoded), error=f"{os.fsdecode(path)}: {error.reason}")
        example = {"image": stored, self._request.label: label, "file_name": path}
        return _Picture(_hash(path, label, encoded), example, _hash(label, stored), shrunk=stored is not encoded)

    def _convert(self, encoded: bytes) -> bytes:
        """What to store: the same object, if nothing has to be done to it."""
        if not self._request.decode:
            return encoded
        image, short_side = decoding.decode(encoded, name=""), self._request.short_side
        if short_side is None or min(image.shape[:2]) <= short_side:
            return encoded
        return shrink(image, short_side, orientation=_read_orientation(encoded))


def shrink(image: np.ndarray, short_side: int, *, orientation: int | None = None) -> bytes:
    """A JPEG of quality 95 of an image shrunk by averaging, aspect ratio kept.

    Args:
      image: uint8[H, W, 3].
      short_side: of the result, in pixels.
      orientation: how the camera was held, to be noted in the file; see EXIF.
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
    except Exception:  # whatever Pillow makes of broken EXIF data; the pixels could be read
        return None


@dataclasses.dataclass
class _Tally:
    """Sums over the pictures of a split."""

    given: int = 0
    kept: int = 0
    count: int = 0
    shrunk: int = 0
    errors: list[str] = dataclasses.field(default_factory=list)

    def add(self, picture: _Picture) -> None:
        self.given += picture.given
        self.kept += picture.kept
        self.count += picture.example is not None
        self.shrunk += picture.shrunk
        self.errors += [picture.error] if picture.error else []


class _Builder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """What TFDS asks for the pictures; the names of its methods are TFDS's.

    Attributes:
      noted: what metadata.json says of the set, when it has been written.
    """

    def __init__(self, request: Request, directory: pathlib.Path):
        self.name, self.VERSION = request.name, tfds.core.Version(request.version)
        self._request = request
        self._tallies = {split: _Tally() for split in _splits(request.dataset)}
        self.noted: dict[str, Any] = {}
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
        count = shard_utils.ShardConfig().get_number_shards(_count_bytes(source), len(source))
        ends = shard_utils.get_shard_boundaries(len(source), count)
        lengths = [*np.diff([0, *ends[:-1]]).tolist(), None]  # the last takes what is left
        pictures = iter(_read(_Pictures(self._request, split), f"writing {split}"))
        return [functools.partial(self._examples, split, itertools.islice(pictures, length)) for length in lengths]

    def _examples(self, split: str, pictures: Iterable[_Picture]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, picture in enumerate(pictures):
            self._tallies[split].add(picture)
            if picture.example is not None:
                yield number, picture.example

    def _example_writer(self) -> "_Writer":
        return _Writer(file_format=self.info.file_format)

    def _download_and_prepare(self, **settings: Any) -> None:
        super()._download_and_prepare(**settings)
        tallies = self._tallies
        errors = [error for tally in tallies.values() for error in tally.errors]
        if errors and not self._request.skip_unreadable:
            raise ValueError(_describe(errors))
        if empty := [split for split, tally in tallies.items() if not tally.count]:
            raise ValueError(f"no picture for {empty[0]!r} can be read; the first: {errors[0]}")
        self.noted = {
            "settings": self._request.settings,
            "given": {split: _add_up([tally.given]) for split, tally in tallies.items()},
            "kept": {split: _add_up([tally.kept]) for split, tally in tallies.items()},
            "shrunk": sum(tally.shrunk for tally in tallies.values()),
            "left_out": errors,
        }
        self.info.metadata[records.METADATA] = self.noted


class _Writer(tfds.core.ExampleWriter):
    """Says OSError where array_record says RuntimeError: for a full disk and the like."""

    def write(self, path: Any, examples: Iterable) -> Any:
        try:
            return super().write(path, examples)
        except RuntimeError as error:
            raise OSError(str(error).split(";")[0]) from error


def _count_bytes(source: ImageFiles | Archive) -> int:
    if isinstance(source, Archive):
        return int(source.sizes.sum())
    return sum(os.path.getsize(source.name(index)) for index in range(len(source)))


def _describe(errors: Sequence[str]) -> str:
    more = [f"and {len(errors) - LISTED} more"] if len(errors) > LISTED else []
    lines = [
        f"unreadable pictures: {len(errors)}; repair or remove them, or leave them out with --skip-unreadable"
    ]
    return "\n  ".join([*lines, *errors[:LISTED], *more])
