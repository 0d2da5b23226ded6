"""RandAugment (Cubuk et al. 2020) on the host, with Pillow: a few random operations of one magnitude."""

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


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """The new pixel (x, y) is that at (a x + b y + c, d x + e y + f), for a matrix a, b, c, d, e, f."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=_fill(image))


def _fill(image: Image.Image) -> tuple[int, ...]:
    return (FILL,) * len(image.getbands())


def _enhancement(kind: type) -> Operation:
    """An operation of Pillow whose amount is the factor minus 1."""
    return Operation(lambda image, amount: kind(image).enhance(1 + amount), 0, 0.9, signed=True)


# The operations are those of section 3 of the paper, with the ranges of torchvision's RandAugment, whose 31 steps
# become continuous here. Unlike in the authors' code, a greater magnitude is always a greater change. Two things
# differ from torchvision: solarize starts at 256 instead of 255, so that magnitude 0 changes nothing, and pixels
# from outside the image are gray instead of black, as in the authors' code. Both take the nearest pixel, as here.
OPERATIONS = {
    "identity": Operation(lambda image, _: image),
    "autocontrast": Operation(lambda image, _: ImageOps.autocontrast(image)),
    "equalize": Operation(lambda image, _: ImageOps.equalize(image)),
    # degrees around the centre
    "rotate": Operation(lambda image, degrees: image.rotate(degrees, fillcolor=_fill(image)), 0, 30, signed=True),
    # pixels of this value or more are inverted
    "solarize": Operation(lambda image, threshold: ImageOps.solarize(image, round(threshold)), 256, 0),
    # bits that are kept
    "posterize": Operation(lambda image, bits: ImageOps.posterize(image, round(bits)), 8, 4),
    "color": _enhancement(ImageEnhance.Color),
    "contrast": _enhancement(ImageEnhance.Contrast),
    "brightness": _enhancement(ImageEnhance.Brightness),
    "sharpness": _enhancement(ImageEnhance.Sharpness),
    # slope
    "shear_x": Operation(lambda image, b: _affine(image, 1, b, 0, 0, 1, 0), 0, 0.3, signed=True),
    "shear_y": Operation(lambda image, d: _affine(image, 1, 0, 0, d, 1, 0), 0, 0.3, signed=True),
    # share of the width or height
    "translate_x": Operation(lambda im, x: _affine(im, 1, 0, x * im.width, 0, 1, 0), 0, 150 / 331, signed=True),
    "translate_y": Operation(lambda im, y: _affine(im, 1, 0, 0, 0, 1, y * im.height), 0, 150 / 331, signed=True),
}


def rand_augment(image: np.ndarray, rng: np.random.Generator, *, num_ops: int, magnitude: float) -> np.ndarray:
    """Applies operations, drawn with replacement from the fourteen, one after the other.

    Args:
      image: uint8[H, W, C], C 1 or 3.
      num_ops: the paper's N.
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
        apply, weakest, strongest, signed = OPERATIONS[name]
        amount = weakest + (strongest - weakest) * magnitude / MAX_MAGNITUDE
        pil_image = apply(pil_image, amount * sign if signed else amount)
    return np.array(pil_image).reshape(image.shape)
