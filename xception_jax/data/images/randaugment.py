"""RandAugment (Cubuk et al. 2020) on the host, with Pillow: a few random operations, all of one magnitude."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

MAX_MAGNITUDE = 10
FILL = 128  # of what comes in from outside the image


class Operation(NamedTuple):
    """One of the operations, and its range.

    Attributes:
      apply: (picture, amount) -> picture of the same size and mode.
      weakest, strongest: amounts at magnitude 0 and at `MAX_MAGNITUDE`.
      signed: the amount is negated with probability 1/2.
    """

    apply: Callable[[Image.Image, float], Image.Image]
    weakest: float = 0.0
    strongest: float = 0.0
    signed: bool = False

    def amount(self, magnitude: float) -> float:
        """The amount at this magnitude, before the sign."""
        return self.weakest + (self.strongest - self.weakest) * magnitude / MAX_MAGNITUDE


def _enhance(kind: type, picture: Image.Image, amount: float) -> Image.Image:
    return kind(picture).enhance(1 + amount)


def _solarize(picture: Image.Image, threshold: float) -> Image.Image:
    return ImageOps.solarize(picture, round(threshold))


def _posterize(picture: Image.Image, bits: float) -> Image.Image:
    return ImageOps.posterize(picture, round(bits))


def _rotate(picture: Image.Image, degrees: float) -> Image.Image:
    return picture.rotate(degrees, fillcolor=_fill(picture))


def _shear(picture: Image.Image, *, x: float = 0.0, y: float = 0.0) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, (1, x, 0, y, 1, 0), fillcolor=_fill(picture))


def _translate(picture: Image.Image, *, x: float = 0.0, y: float = 0.0) -> Image.Image:
    shift = (1, 0, x * picture.width, 0, 1, y * picture.height)
    return picture.transform(picture.size, Image.Transform.AFFINE, shift, fillcolor=_fill(picture))


def _fill(picture: Image.Image) -> tuple[int, ...]:
    return (FILL,) * len(picture.getbands())


# The operations are those of section 3 of the paper, the ranges those of torchvision's RandAugment, whose 31 steps
# are made continuous here: unlike in the authors' code, a greater magnitude is always a greater change. Two things
# differ from torchvision: solarize starts at 256 instead of 255, so that magnitude 0 changes nothing, and the
# outside is gray, as in the authors' code, instead of black. The nearest pixel is taken, as in both.
OPERATIONS = {
    "identity": Operation(lambda picture, _: picture),
    "autocontrast": Operation(lambda picture, _: ImageOps.autocontrast(picture)),
    "equalize": Operation(lambda picture, _: ImageOps.equalize(picture)),
    # degrees around the centre
    "rotate": Operation(_rotate, 0, 30, signed=True),
    # value from which on pixels are inverted
    "solarize": Operation(_solarize, 256, 0),
    # bits that stay
    "posterize": Operation(_posterize, 8, 4),
    # factor less 1
    "color": Operation(functools.partial(_enhance, ImageEnhance.Color), 0, 0.9, signed=True),
    "contrast": Operation(functools.partial(_enhance, ImageEnhance.Contrast), 0, 0.9, signed=True),
    "brightness": Operation(functools.partial(_enhance, ImageEnhance.Brightness), 0, 0.9, signed=True),
    "sharpness": Operation(functools.partial(_enhance, ImageEnhance.Sharpness), 0, 0.9, signed=True),
    # slope
    "shear_x": Operation(lambda picture, slope: _shear(picture, x=slope), 0, 0.3, signed=True),
    "shear_y": Operation(lambda picture, slope: _shear(picture, y=slope), 0, 0.3, signed=True),
    # share of the width or height
    "translate_x": Operation(lambda picture, share: _translate(picture, x=share), 0, 150 / 331, signed=True),
    "translate_y": Operation(lambda picture, share: _translate(picture, y=share), 0, 150 / 331, signed=True),
}


def rand_augment(image: np.ndarray, rng: np.random.Generator, *, num_ops: int, magnitude: float) -> np.ndarray:
    """Applies operations drawn from the fourteen, with replacement, one after the other.

    Args:
      image: uint8[H, W, C], C 1 or 3.
      rng: decides the operations and their signs.
      num_ops: how many; the paper's N.
      magnitude: 0 to 10; the paper's M. At 0 only autocontrast and equalize change anything.

    Returns:
      uint8[H, W, C].

    Raises:
      ValueError: for a magnitude or a number out of range.
    """
    if not 0 <= magnitude <= MAX_MAGNITUDE:
        raise ValueError(f"magnitude = {magnitude}: must be between 0 and {MAX_MAGNITUDE}")
    if num_ops < 0:
        raise ValueError(f"num_ops = {num_ops}: must be 0 or more")
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    for name, sign in zip(rng.choice(list(OPERATIONS), num_ops), rng.choice((-1, 1), num_ops), strict=True):
        operation = OPERATIONS[name]
        picture = operation.apply(picture, operation.amount(magnitude) * (sign if operation.signed else 1))
    return np.array(picture).reshape(image.shape)
