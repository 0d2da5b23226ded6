"""Transforms of the host: from an image of any size to the model's, uint8 in and out."""

import dataclasses
import math
from typing import Any

import numpy as np

from xception_jax.data.images.decoding import decode
from xception_jax.data.images.randaugment import rand_augment
from xception_jax.data.images.resizing import Box, evaluation_image, resize

TRAIN_CROPS = ("none", "pad", "random_resized")
INCEPTION_METHODS = ("bilinear", "nearest", "bicubic", "area")


def random_box(
    height: int, width: int, rng: np.random.Generator, *, area: tuple[float, float], aspect: tuple[float, float]
) -> Box:
    """A random box of an image (Szegedy et al. 2015, section 6).

    Its share of the image's area is uniform in `area`, its aspect ratio (width / height) log-uniform in `aspect`.
    After ten boxes that do not fit into the image, the largest central one within `aspect` is taken.
    """
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return (left, top, left + w, top + h)
    w, h = min(width, height * aspect[1]), min(height, width / aspect[0])
    left, top = (width - w) / 2, (height - h) / 2
    return (left, top, left + w, top + h)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decode:
    """Decodes the image of an example if it is encoded; see `decoding.decode`."""

    orientation: bool
    background: str

    def __call__(self, example: dict[str, Any]) -> dict[str, np.ndarray]:
        """{"image": bytes or uint8[H, W, C], ...} -> {"image": uint8[H, W, C]}."""
        image = example["image"]
        if isinstance(image, bytes):
            image = decode(image, name="", orientation=self.orientation, background=self.background)
        return {"image": image}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationTransform:
    """Crops and resizes an image for evaluation; see `resizing.evaluation_image`."""

    image_size: int
    crop: str
    crop_fraction: float
    resize: str

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        """{"image": uint8[H, W, C], ...} -> {"image": uint8[size, size, C], ...}."""
        return example | {"image": evaluation_image(example["image"], **dataclasses.asdict(self))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """The augmentation that needs the whole image, or OpenCV; `augment.Augmentation` follows on the device.

    Attributes:
      image_size: in pixels.
      resize: a method of `resizing.resize`, or "inception": one of `INCEPTION_METHODS` at random.
      crop: "none": the whole image is resized. "pad": it is resized, padded with zeros on all sides, and cut back
        at random. "random_resized": a random box is resized.
      pad_pixels: on each side, for "pad".
      area, aspect: see `random_box`; TensorFlow's Inception has area (0.05, 1).
      randaugment_ops, randaugment_magnitude: see `randaugment.rand_augment`; 0 operations = none.
    """

    image_size: int
    resize: str
    crop: str
    pad_pixels: int = 4
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    randaugment_ops: int = 0
    randaugment_magnitude: float = 9.0

    def __post_init__(self):
        if self.crop not in TRAIN_CROPS:
            raise ValueError(f"crop = {self.crop!r}: choose one of {TRAIN_CROPS}")

    def __call__(self, example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """{"image": uint8[H, W, C], ...} -> {"image": uint8[size, size, C], ...}."""
        image, size, box = example["image"], self.image_size, None
        if self.crop == "random_resized":
            box = random_box(*image.shape[:2], rng, area=self.area, aspect=self.aspect)
        method = INCEPTION_METHODS[rng.integers(4)] if self.resize == "inception" else self.resize
        image = resize(image, (size, size), method=method, box=box)  # [size, size, C]
        if self.crop == "pad":
            pad = self.pad_pixels
            image = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))  # [size + 2 pad, size + 2 pad, C]
            top, left = rng.integers(2 * pad + 1, size=2)
            image = image[top : top + size, left : left + size]  # [size, size, C]
        if self.randaugment_ops:
            image = rand_augment(image, rng, num_ops=self.randaugment_ops, magnitude=self.randaugment_magnitude)
        return example | {"image": image}
