"""The images that `benchmark data` prepares: those of a dataset, or photographs that it makes itself."""

import argparse
import dataclasses
import pathlib

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from xception_jax import data
from xception_jax.commands.steps import positive
from xception_jax.data.dataset import Subset, UnreadableExample
from xception_jax.data.images.resizing import METHODS
from xception_jax.data.images.transforms import Decode, TrainTransform
from xception_jax.errors import SettingError, UserError

DECODE = Decode(orientation=False, background="white")  # the defaults of training
LENGTH = 10_000  # examples; grain takes longer to draw the order of a few hundred
SEED = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags that say what is prepared."""
    names = "folder, manifest or tfds:NAME (default: photographs made for this)"
    parser.add_argument("--data-name", help=f"your own images: {names}")
    parser.add_argument("--root", help="where they are, as config.data.root")
    parser.add_argument("--images", type=positive, default=200, help="number of images to use (default: 200)")
    parser.add_argument("--image-size", type=positive, default=299, help="of the model, in pixels (default: 299)")
    parser.add_argument("--resize", choices=METHODS, default="bilinear", help="(default: bilinear)")
    parser.add_argument("--batch", type=positive, default=32, help="images a batch (default: 32)")


@dataclasses.dataclass(frozen=True)
class Work:
    """What is prepared in each round: as many whole batches as the images give.

    Attributes:
      title: what the images are, for people.
      count: number of images.
      source: their files, repeated in their order to the length of a large dataset.
      kilobytes: mean size of the files.
    """

    title: str
    count: int
    source: Subset
    kilobytes: float
    transform: TrainTransform
    batch: int

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace, folder: pathlib.Path) -> "Work":
        """The images that the flags ask for, spread over the dataset; `folder` is for those that have to be made.

        Each is read and decoded once, so that a damaged one is found before anything is measured, and so that the
        files are in the system's memory and no stage waits for a disk.

        Raises:
          UserError: if the dataset cannot be opened or is too small, or one of the images cannot be read.
        """
        title, source = _open(arguments, folder)
        count = min(arguments.images, len(source))
        if count < arguments.batch:
            raise UserError(f"--batch={arguments.batch}: there are only {count} images; choose at most {count}")
        chosen = Subset(source, np.linspace(0, len(source) - 1, count).astype(int))
        reader = data.Reader(chosen, DECODE)
        try:
            for index in range(count):
                reader[index]
        except UnreadableExample as error:
            raise UserError(f"--root={arguments.root}: {error}") from None
        kilobytes = np.mean([len(chosen[index]["image"]) for index in range(count)]).item() / 1000
        repeated = Subset(source, np.tile(chosen.indices, -(-LENGTH // count)))
        transform = TrainTransform(image_size=arguments.image_size, crop="random_resized", resize=arguments.resize)
        return cls(title, count, repeated, kilobytes, transform, arguments.batch)

    def __str__(self) -> str:
        return f"{self.count} images ({self.inputs}) in batches of {self.batch}"

    @property
    def inputs(self) -> str:
        """What an image is, and becomes."""
        size, method = self.transform.image_size, self.transform.resize
        return f"{self.title}, {self.kilobytes:.0f} kB -> {size} px, {method}"

    @property
    def batches(self) -> int:
        """Batches a round."""
        return self.count // self.batch

    @property
    def images(self) -> int:
        """Images a round."""
        return self.batches * self.batch


def _open(arguments: argparse.Namespace, folder: pathlib.Path) -> tuple[str, data.Source]:
    """Title and source of the training images of a dataset, or of photographs."""
    name, root = arguments.data_name, arguments.root
    if name is None and root is not None:
        raise UserError(f"--root={root}: of what? say --data-name=folder, manifest or tfds:NAME")
    if name is None:
        return "photographs made for this", make_photographs(folder, arguments.images)
    if name not in ("folder", "manifest") and not name.startswith("tfds:"):
        raise UserError(f"--data-name={name}: has no image files; choose folder, manifest or tfds:NAME")
    try:
        dataset = data.load(name, root=root, holdout=0.5)  # of very few images, 0.1 might hold out none
    except SettingError as error:
        raise error.as_flag() from None
    return f"{name} {root or ''}".strip(), dataset.train


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
