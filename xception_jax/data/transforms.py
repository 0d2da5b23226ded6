"""From an image of any size to the model's: numpy and Pillow, uint8 in and out."""

import dataclasses
import math
from typing import Any

import grain
import numpy as np
from PIL import Image

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

Box = tuple[float, float, float, float]


def resize(image: np.ndarray, size: int, *, method: str, box: Box | None = None) -> np.ndarray:
    """Resizes the part `box` = (left, top, right, bottom) of an image, antialiased.

    Args:
      image: uint8[H, W, C], C 1 or 3.
      size: height and width of the result in pixels.
      method: "nearest", "bilinear" or "bicubic".
      box: in pixels, fractions allowed; None = all of it.

    Returns:
      uint8[size, size, C].
    """
    height, width, channels = image.shape
    if box in (None, (0, 0, width, height)) and (height, width) == (size, size):
        return image
    pillow = Image.fromarray(image[..., 0] if channels == 1 else image)
    return np.asarray(pillow.resize((size, size), FILTERS[method], box=box)).reshape(size, size, channels)


def central_box(height: int, width: int, fraction: float) -> Box:
    """The box with `fraction` of the height and of the width around the center.

    >>> central_box(100, 200, 0.5)
    (50.0, 25.0, 150.0, 75.0)
    """
    top, left = height * (1 - fraction) / 2, width * (1 - fraction) / 2
    return (left, top, width - left, height - top)


def random_box(
    height: int, width: int, rng: np.random.Generator, *, area: tuple[float, float], aspect: tuple[float, float]
) -> Box:
    """A box with a share of the image's area drawn from `area`, and an aspect ratio (width / height), log-uniform.

    Szegedy et al. 2015, section 6. After ten boxes that do not fit: the largest central one within `aspect`.
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
class EvaluationTransform(grain.transforms.Map):
    """Central crop, then resize; as TF-Slim evaluated Inception: aspect ratios are not kept."""

    image_size: int
    crop_fraction: float
    resize: str

    def map(self, element: dict[str, Any]) -> dict[str, Any]:
        """{"image": uint8[H, W, C], ...} -> {"image": uint8[size, size, C], ...}."""
        image = element["image"]
        box = central_box(*image.shape[:2], self.crop_fraction)
        return element | {"image": resize(image, self.image_size, method=self.resize, box=box)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTransform(grain.transforms.RandomMap):
    """Augmentation: a random crop of the given kind, then a mirror image half of the time.

    Attributes:
      image_size: in pixels.
      resize: interpolation.
      crop: "none": the whole image, resized. "pad": resized, zeros on all sides, cut back at random.
        "random_resized": a random box, resized.
      pad_pixels: on each side, for "pad".
      min_area: smallest share of the image's area, for "random_resized" (0.05 in TensorFlow's Inception).
      flip: mirror left and right.
    """

    image_size: int
    resize: str
    crop: str
    pad_pixels: int = 4
    min_area: float = 0.08
    flip: bool = True

    def __post_init__(self):
        if self.crop not in (kinds := ("none", "pad", "random_resized")):
            raise ValueError(f"crop = {self.crop!r}: choose one of {kinds}")

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """{"image": uint8[H, W, C], ...} -> {"image": uint8[size, size, C], ...}."""
        image, size, box = element["image"], self.image_size, None
        if self.crop == "random_resized":
            box = random_box(*image.shape[:2], rng, area=(self.min_area, 1.0), aspect=(3 / 4, 4 / 3))
        image = resize(image, size, method=self.resize, box=box)
        if self.crop == "pad":
            pad = self.pad_pixels
            image = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))  # [size + 2 pad, size + 2 pad, C]
            top, left = rng.integers(2 * pad + 1, size=2)
            image = image[top : top + size, left : left + size]
        if self.flip and rng.random() < 0.5:
            image = image[:, ::-1]
        return element | {"image": np.ascontiguousarray(image)}
