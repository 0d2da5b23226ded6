"""The image files that `benchmark data` prepares: those of a dataset, or photographs that it makes itself."""

import argparse
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from xception_jax import data
from xception_jax.commands.steps import positive
from xception_jax.data.dataset import Subset, UnreadableExample
from xception_jax.data.images import decoding
from xception_jax.errors import SettingError, UserError

LENGTH = 10_000  # examples; grain takes longer to draw the order of a few hundred
SEED = 0


class Sample(NamedTuple):
    """Some image files of a dataset.

    Attributes:
      title: what the images are, for people.
      count: number of images.
      source: the images, repeated in their order to the length of a large dataset.
      kilobytes: mean size of the files.
    """

    title: str
    count: int
    source: data.Source
    kilobytes: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags that say which images."""
    names = "folder, manifest or tfds:NAME (default: photographs made for this)"
    parser.add_argument("--data-name", help=f"your own images: {names}")
    parser.add_argument("--root", help="where they are, as config.data.root")
    parser.add_argument("--images", type=positive, default=200, help="number of images to use (default: 200)")


def find(arguments: argparse.Namespace, folder: pathlib.Path) -> Sample:
    """The images that the flags ask for, spread over the dataset; `folder` is for those that have to be made.

    Each is read and decoded once, so that a damaged one is found before anything is measured, and so that the
    files are in the system's memory and no stage waits for a disk.

    Raises:
      UserError: if the dataset cannot be opened, or one of the images cannot be read.
    """
    name, root = arguments.data_name, arguments.root
    if name is not None:
        title, source = f"{name} {root or ''}".strip(), _open(name, root)
    elif root is not None:
        raise UserError(f"--root={root}: of what? say --data-name=folder, manifest or tfds:NAME")
    else:
        title, source = "photographs made for this", make_photographs(folder, arguments.images)
    count = min(arguments.images, len(source))
    sample = Subset(source, np.linspace(0, len(source) - 1, count).astype(int))
    lengths = []
    for index in range(count):
        try:
            encoded = sample[index]["image"]
            decoding.decode(encoded, name=sample.name(index))
        except UnreadableExample as error:
            raise UserError(f"--root={root}: {error}") from None
        lengths.append(len(encoded))
    repeated = Subset(source, np.tile(sample.indices, -(-LENGTH // count)))
    return Sample(title, count, repeated, np.mean(lengths).item() / 1000)


def _open(name: str, root: str | None) -> data.Source:
    """The training images of a dataset."""
    if name not in ("folder", "manifest") and not name.startswith("tfds:"):
        raise UserError(f"--data-name={name}: has no image files; choose folder, manifest or tfds:NAME")
    try:
        return data.load(name, root=root, holdout=0.5).train  # of very few images, 0.1 might hold out none
    except SettingError as error:
        raise error.as_flag() from None


def make_photographs(folder: pathlib.Path, count: int) -> data.ImageFiles:
    """Makes JPEG files like ImageNet's: 500 x 375 pixels and 90 kB on average, a quarter of them upright.

    They are random parts of scikit-learn's two photographs, enlarged. Enlarging makes images smooth and their
    files small, so noise like that of a camera's sensor is added: decoding time depends on the size of the file.
    """
    rng = np.random.default_rng(SEED)
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    names = [f"{number:04}.jpg" for number in range(count)]
    for number, name in enumerate(names):
        photograph = photographs[number % len(photographs)]
        size = rng.integers((440, 330), (561, 421))[:: -1 if rng.random() < 0.25 else 1]  # width, height
        part = size * min(photograph.size / size) * rng.uniform(0.6, 1)
        left, top = rng.uniform(0, photograph.size - part)
        box = (left, top, left + part[0], top + part[1])
        pixels = np.asarray(photograph.resize(tuple(size.tolist()), Image.Resampling.LANCZOS, box), np.float32)
        pixels = pixels + rng.normal(0, 4, (*pixels.shape[:2], 1))
        pixels = pixels.round().clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name, quality=94)
    return data.ImageFiles.make(folder, names, np.zeros(count, np.int32))
