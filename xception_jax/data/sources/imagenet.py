"""ImageNet (ILSVRC 2012), read from the archives as they are downloaded."""

import dataclasses
import functools
import io
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from PIL import Image

from xception_jax.data.dataset import Dataset
from xception_jax.errors import SettingError

COUNTS = {"train": 1_281_167, "validation": 50_000}


@dataclasses.dataclass(frozen=True)
class Archive:
    """A source of the images inside a tar file; each is read when its example is asked for.

    Attributes:
      paths: bytes[N], names of the image files.
      labels: int32[N].
      offsets, sizes: int64[N], place of each image file in the tar file, in bytes.
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
        return f"{self.paths[index].decode()} in {self.tar}"

    def take(self, indices: np.ndarray, labels: np.ndarray) -> "Archive":
        """The images at `indices`, in that order, with other labels."""
        return Archive(self.tar, self.paths[indices], labels, self.offsets[indices], self.sizes[indices])


def load(train_tar: str, val_tar: str, *, counts: Mapping[str, int] = COUNTS) -> Dataset:
    """The 1000 classes of ILSVRC 2012, numbered in the order of their WordNet ids as in TFDS.

    As in TFDS, the 22 training images in CMYK and the one PNG become RGB JPEGs of quality 100. TFDS decodes the 22
    with libjpeg's fast transform, so its pixels differ from these by about one grey level.

    Args:
      train_tar: path of ILSVRC2012_img_train.tar, which holds a tar file for each class.
      val_tar: path of ILSVRC2012_img_val.tar; the labels are those that TFDS has for the numbers in the names.
      counts: number of images that each must hold.

    Raises:
      SettingError: if a file is no such archive or not whole.
    """
    folder = tfds.core.tfds_path("datasets/imagenet2012")
    synsets, held_out = ((folder / f"{name}.txt").read_text().split() for name in ("labels", "validation_labels"))
    number = {synset: index for index, synset in enumerate(synsets)}
    members = functools.partial(_validation_members, labels=[number[synset] for synset in held_out])
    validation = _scan("val_tar", val_tar, members, counts["validation"])  # first, because train_tar takes minutes
    train = _scan("train_tar", train_tar, functools.partial(_train_members, number=number), counts["train"])
    if missing := sorted(set(range(len(synsets))) - set(train.labels.tolist())):
        remedy = f"lacks {len(missing)} of the {len(synsets)} classes, the first is {synsets[missing[0]]}"
        raise SettingError("train_tar", train_tar, f"{remedy}; download it again")
    return Dataset(train, validation, tuple(synsets))


def choose_100(dataset: Dataset, *, seed: int, train: int = 500, validation: int = 50) -> Dataset:
    """ImageNet100 of Ding et al. 2021 (EAM-DyNet), section 4.1.2: some images of every tenth class.

    Their test images are taken from the validation images, since ImageNet's test images have no public labels.

    Args:
      dataset: what `load` returns.
      seed: of the choice of images; at least 0.
      train, validation: number of images of each class.

    Raises:
      SettingError: if a class has fewer.
    """
    classes = range(0, len(dataset.class_names), 10)
    return Dataset(
        train=_choose("train_tar", dataset.train, classes, train, seed),
        validation=_choose("val_tar", dataset.validation, classes, validation, seed),
        class_names=tuple(dataset.class_names[label] for label in classes),
    )


def _choose(setting: str, archive: Archive, classes: Sequence[int], count: int, seed: int) -> Archive:
    chosen = []
    for label in classes:
        members = np.flatnonzero(archive.labels == label)
        if len(members) < count:
            raise SettingError(
                setting, archive.tar, f"has {len(members)} images of class {label}; {count} are needed"
            )
        members = members[np.argsort(archive.paths[members])]  # independent of the order in the archive
        chosen.append(np.random.default_rng([seed, label]).permutation(members)[:count])
    return archive.take(np.concatenate(chosen), np.repeat(np.arange(len(classes), dtype=np.int32), count))


Member = tuple[str, int, int, int]  # name of the file, label, offset and size in bytes


def _scan(setting: str, path: str, members: Callable[[tarfile.TarFile], Iterable[Member]], count: int) -> Archive:
    refusal = functools.partial(SettingError, setting, path)
    try:
        with tarfile.open(path, "r:") as tar:
            rows = list(members(tar))
    except FileNotFoundError:
        raise refusal("no such file; name the archive as downloaded") from None
    except (OSError, tarfile.TarError) as error:
        raise refusal(f"is not a whole, uncompressed tar file ({error}); download it again") from error
    if len(rows) != count:
        raise refusal(
            f"holds {len(rows):,} images of this part of ImageNet instead of {count:,}; name the archive as"
            " downloaded, or download it again"
        )
    names, labels, offsets, sizes = zip(*rows, strict=True)
    paths = np.array([name.encode() for name in names], np.bytes_)
    return Archive(path, paths, np.array(labels, np.int32), np.array(offsets, np.int64), np.array(sizes, np.int64))


def _train_members(tar: tarfile.TarFile, number: Mapping[str, int]) -> Iterator[Member]:
    for outer in tqdm.tqdm(tar, "listing train", len(number), unit=" classes", disable=None):
        label = number.get(os.path.basename(outer.name).removesuffix(".tar"))
        if label is None or not outer.isreg():
            continue
        with tarfile.open(fileobj=tar.extractfile(outer), mode="r:") as inner:
            for member in filter(tarfile.TarInfo.isreg, inner):
                yield os.path.basename(member.name), label, outer.offset_data + member.offset_data, member.size


def _validation_members(tar: tarfile.TarFile, labels: Sequence[int]) -> Iterator[Member]:
    for member in tqdm.tqdm(tar, "listing validation", len(labels), unit=" images", disable=None):
        name = os.path.basename(member.name)
        match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
        if match and member.isreg() and 0 < int(match[1]) <= len(labels):
            yield name, labels[int(match[1]) - 1], member.offset_data, member.size


@functools.cache
def _exceptions() -> frozenset[str]:
    """Names of the files that are not RGB or grey JPEGs, as TFDS lists them."""
    from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as tfds_imagenet

    return frozenset([*tfds_imagenet.CMYK_IMAGES, *tfds_imagenet.PNG_IMAGES])


def _to_rgb_jpeg(name: str, encoded: bytes) -> bytes:
    """The file as it is; instead of an exception, a JPEG of quality 100 with TensorFlow's settings."""
    if name not in _exceptions():
        return encoded
    with Image.open(io.BytesIO(encoded)) as image:
        if image.mode == "CMYK":
            light = 255 - np.asarray(image, np.uint16)  # [H, W, 4]
            pixels = (light[..., :3] * light[..., 3:] // 255).astype(np.uint8)  # [H, W, 3], as TensorFlow rounds
        else:
            pixels = np.asarray(image.convert("RGB"))  # [H, W, 3]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=100, subsampling="4:2:0", dpi=(300, 300))
    return buffer.getvalue()
