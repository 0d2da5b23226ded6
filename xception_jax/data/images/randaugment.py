"""RandAugment (Cubuk et al. 2020) on the host, with Pillow: a few random operations of one magnitude."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from xception_jax.errors import SettingError

MAX_MAGNITUDE = 10
FILL = 128  # value of pixels that come from outside the image


class Operation(NamedTuple):
    """One of the operations, with its range.

    Attributes:
      apply: (Pillow image, amount) -> Pillow image of the same size and mode.
      weakest, strongest: amounts at magnitude 0 and at `MAX_MAGNITUDE`.
      signed: whether the amount is negated with probability 1/2.
    """

    apply: Callable[[Image.Image, float], Image.Image]
    weakest: float = 0.0
    strongest: float = 0.0
    signed: bool = False

    def amount(self, magnitude: float) -> float:
        """The amount at this magnitude, before the sign."""
        return self.weakest + (self.strongest - self.weakest) * magnitude / MAX_MAGNITUDE


def _enhance(kind: type, image: Image.Image, amount: float) -> Image.Image:
    return kind(image).enhance(1 + amount)


def _solarize(image: Image.Image, threshold: float) -> Image.Image:
    return ImageOps.solarize(image, round(threshold))


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    return ImageOps.posterize(image, round(bits))


def _rotate(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, fillcolor=_fill(image))


def _shear(image: Image.Image, *, x: float = 0.0, y: float = 0.0) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, (1, x, 0, y, 1, 0), fillcolor=_fill(image))


def _translate(image: Image.Image, *, x: float = 0.0, y: float = 0.0) -> Image.Image:
    shift = (1, 0, x * image.width, 0, 1, y * image.height)
    return image.transform(image.size, Image.Transform.AFFINE, shift, fillcolor=_fill(image))


def _fill(image: Image.Image) -> tuple[int, ...]:
    return (FILL,) * len(image.getbands())


# The operations are those of section 3 of the paper, with the ranges of torchvision's RandAugment, whose 31 steps
# become continuous here. Unlike in the authors' code, a greater magnitude is always a greater change. Two things
# differ from torchvision: solarize starts at 256 instead of 255, so that magnitude 0 changes nothing, and pixels
# from outside the image are gray instead of black, as in the authors' code. Both take the nearest pixel, as here.
OPERATIONS = {
    "identity": Operation(lambda image, _: image),
    "autocontrast": Operation(lambda image, _: ImageOps.autocontrast(image)),
    "equalize": Operation(lambda image, _: ImageOps.equalize(image)),
    # degrees around the centre
    "rotate": Operation(_rotate, 0, 30, signed=True),
    # pixels of this value or more are inverted
    "solarize": Operation(_solarize, 256, 0),
    # bits that are kept
    "posterize": Operation(_posterize, 8, 4),
    # factor minus 1
    "color": Operation(functools.partial(_enhance, ImageEnhance.Color), 0, 0.9, signed=True),
    "contrast": Operation(functools.partial(_enhance, ImageEnhance.Contrast), 0, 0.9, signed=True),
    "brightness": Operation(functools.partial(_enhance, ImageEnhance.Brightness), 0, 0.9, signed=True),
    "sharpness": Operation(functools.partial(_enhance, ImageEnhance.Sharpness), 0, 0.9, signed=True),
    # slope
    "shear_x": Operation(lambda image, slope: _shear(image, x=slope), 0, 0.3, signed=True),
    "shear_y": Operation(lambda image, slope: _shear(image, y=slope), 0, 0.3, signed=True),
    # share of the width or height
    "translate_x": Operation(lambda image, share: _translate(image, x=share), 0, 150 / 331, signed=True),
    "translate_y": Operation(lambda image, share: _translate(image, y=share), 0, 150 / 331, signed=True),
}


def rand_augment(image: np.ndarray, rng: np.random.Generator, *, num_ops: int, magnitude: float) -> np.ndarray:
    """Applies operations, drawn with replacement from the fourteen, one after the other.

    Args:
      image: uint8[H, W, C], C 1 or 3.
      rng: source of the operations and their signs.
      num_ops: number of operations; the paper's N.
      magnitude: 0 to 10; the paper's M. At 0 only autocontrast and equalize change anything.

    Returns:
      uint8[H, W, C].

    Raises:
      SettingError: for a magnitude or a number out of range.
    """
    if not 0 <= magnitude <= MAX_MAGNITUDE:
        raise SettingError("magnitude", magnitude, f"must be between 0 and {MAX_MAGNITUDE}")
    if num_ops < 0:
        raise SettingError("num_ops", num_ops, "must be 0 or more")
    pil_image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    for name, sign in zip(rng.choice(list(OPERATIONS), num_ops), rng.choice((-1, 1), num_ops), strict=True):
        operation = OPERATIONS[name]
        amount = operation.amount(magnitude) * (sign if operation.signed else 1)
        pil_image = operation.apply(pil_image, amount)
    return np.array(pil_image).reshape(image.shape)
