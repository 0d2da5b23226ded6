"""Resizing images to the model's size as various libraries do, and the presets of evaluation."""

import functools
import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from PIL import Image

from xception_jax.errors import SettingError

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
MAX_ASPECT = 10  # longer side by shorter side, for "shorter_side"


def resize(image: np.ndarray, size: tuple[int, int], *, method: str, box: Box | None = None) -> np.ndarray:
    """Resizes the part `box` of an image to `size`.

    Args:
      image: uint8[H, W, C], C 1 or 3; any strides, so it may be a view of a larger image.
      size: (height, width) of the result in pixels.
      method: a key of `METHODS`:
        "pillow_nearest", "pillow_bilinear", "pillow_bicubic": Pillow's `Image.resize`. The latter two average over
          all pixels that a new pixel covers (antialiasing). Boxes may be fractional.
        "nearest", "bilinear", "bicubic": OpenCV's, from the nearest 1, 4 or 16 pixels however much the image
          shrinks. Boxes are rounded to whole pixels, here and below.
        "area": OpenCV's mean over the area of a new pixel; "bilinear" if a side grows.
        "tf1_bilinear": TensorFlow 1's `resize_bilinear(align_corners=False)`, rounded: from 4 pixels, with the new
          pixel i at i H / h instead of (i + 1/2) H / h - 1/2, which shifts the image by a part of a pixel.
      box: None = the whole image.

    Returns:
      uint8[h, w, C]; the image itself if the box is all of it and its size is right.

    Raises:
      SettingError: for an unknown method.
    """
    height, width = image.shape[:2]
    if method not in METHODS:
        raise SettingError("resize", method, f"choose one of {sorted(METHODS)}")
    box = (0, 0, width, height) if box is None else tuple(box)
    if box == (0, 0, width, height) and tuple(size) == (height, width):
        return image
    return METHODS[method](image, size, box).reshape(*size, image.shape[2])  # [h, w] -> [h, w, 1] for a grey image


def _pillow(image: np.ndarray, size: tuple[int, int], box: Box, *, filter: Image.Resampling) -> np.ndarray:
    pil_image = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    return np.array(pil_image.resize(size[::-1], filter, box=box))


def _opencv(image: np.ndarray, size: tuple[int, int], box: Box, *, interpolation: int) -> np.ndarray:
    part = _crop(image, box)
    if interpolation == cv2.INTER_AREA and (size[0] > part.shape[0] or size[1] > part.shape[1]):
        interpolation = cv2.INTER_LINEAR
    return cv2.resize(part, size[::-1], interpolation=interpolation)


def _tf1_bilinear(image: np.ndarray, size: tuple[int, int], box: Box) -> np.ndarray:
    pixels = _crop(image, box)
    for axis in (1, 0):  # TensorFlow's order, so that rounding is the same
        before, after, weight = _tf1_neighbors(pixels.shape[axis], size[axis])
        weight = np.expand_dims(weight, (0, 2) if axis else (1, 2))  # [1, w, 1] or [h, 1, 1]
        start = pixels.take(before, axis).astype(np.float32)
        pixels = pixels.take(after, axis).astype(np.float32)
        pixels -= start  # in place, which takes half the time
        pixels *= weight
        pixels += start  # [H, w, C], then [h, w, C]
    return np.rint(pixels).astype(np.uint8)


def _tf1_neighbors(length: int, new_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each new pixel, indices of the pixels before and after it, int[n], and the latter's weight, float[n]."""
    position = np.arange(new_length, dtype=np.float32) * np.float32(length / new_length)
    before = np.minimum(position.astype(np.int64), length - 1)
    return before, np.minimum(before + 1, length - 1), position - before.astype(np.float32)


def _crop(image: np.ndarray, box: Box) -> np.ndarray:
    """A view of the box, rounded to whole pixels, at least one."""
    height, width = image.shape[:2]
    left, top = min(round(box[0]), width - 1), min(round(box[1]), height - 1)
    right, bottom = max(round(box[2]), left + 1), max(round(box[3]), top + 1)
    return image[top:bottom, left:right]


METHODS: dict[str, Callable[[np.ndarray, tuple[int, int], Box], np.ndarray]] = {
    "pillow_nearest": functools.partial(_pillow, filter=Image.Resampling.NEAREST),
    "pillow_bilinear": functools.partial(_pillow, filter=Image.Resampling.BILINEAR),
    "pillow_bicubic": functools.partial(_pillow, filter=Image.Resampling.BICUBIC),
    "nearest": functools.partial(_opencv, interpolation=cv2.INTER_NEAREST),
    "bilinear": functools.partial(_opencv, interpolation=cv2.INTER_LINEAR),
    "bicubic": functools.partial(_opencv, interpolation=cv2.INTER_CUBIC),
    "area": functools.partial(_opencv, interpolation=cv2.INTER_AREA),
    "tf1_bilinear": _tf1_bilinear,
}

PRESETS: dict[str, dict[str, Any]] = {
    "slim": {"crop": "central", "crop_fraction": 0.875, "resize": "tf1_bilinear"},
    "timm": {"crop": "shorter_side", "crop_fraction": 0.897, "resize": "pillow_bicubic"},
    "keras": {"crop": "central", "crop_fraction": 1.0, "resize": "pillow_nearest"},
}


def evaluation_image(
    image: np.ndarray, *, image_size: int, crop: str, crop_fraction: float, resize: str
) -> np.ndarray:
    """The part of an image that a model is evaluated on, resized to the model's size.

    `PRESETS` has the last three arguments for three ways to measure Xception's published weights. They give these
    top-1 and top-5 accuracies in percent on ImageNet's 50,000 validation images, at 299 pixels and one crop each:

    * "slim": 77.96, 94.10, as users of the weights report. TF-Slim's Inception preprocessing, except that Slim
      does not round the resized pixels.
    * "timm": 79.058, 94.396, as timm lists for legacy_xception: the shorter side has 333 pixels.
    * "keras": 79.0, 94.5, as keras.io lists. `keras.utils.load_img(path, target_size=(299, 299))`, which is how
      its guide to keras.applications loads images; Keras does not say how it measured these two numbers.

    Args:
      image: uint8[H, W, C], C 1 or 3.
      image_size: height and width of the result in pixels.
      crop: a key of `EVAL_CROPS`:
        "central": `crop_fraction` of the height and of the width around the center, in whole pixels like
          TensorFlow's `central_crop`, resized without keeping the aspect ratio.
        "shorter_side": resized, keeping the aspect ratio, so that the shorter side has image_size / crop_fraction
          pixels, rounded down; the central square of that (torchvision's `Resize` and `CenterCrop`). An image more
          than ten times as long as wide is first cut to that aspect ratio, because the resized image could be too
          large for the memory.
      crop_fraction: in (0, 1].
      resize: a key of `METHODS`.

    Returns:
      uint8[image_size, image_size, C].

    Raises:
      SettingError: for an unknown crop or method, or a fraction out of range.
    """
    if crop not in EVAL_CROPS:
        raise SettingError("crop", crop, f"choose one of {sorted(EVAL_CROPS)}")
    if not 0 < crop_fraction <= 1:
        raise SettingError("crop_fraction", crop_fraction, "choose a number above 0, at most 1")
    return EVAL_CROPS[crop](image, image_size, crop_fraction, resize)


def _central(image: np.ndarray, image_size: int, fraction: float, method: str) -> np.ndarray:
    height, width = image.shape[:2]
    top, left = int((height - height * fraction) / 2), int((width - width * fraction) / 2)
    return resize(image, (image_size, image_size), method=method, box=(left, top, width - left, height - top))


def _shorter_side(image: np.ndarray, image_size: int, fraction: float, method: str) -> np.ndarray:
    height, width = image.shape[:2]
    if max(height, width) > MAX_ASPECT * min(height, width):
        half = MAX_ASPECT * min(height, width) // 2
        top, left = max(height // 2 - half, 0), max(width // 2 - half, 0)
        image = image[top : top + 2 * half, left : left + 2 * half]
        height, width = image.shape[:2]
    shorter = math.floor(image_size / fraction)
    longer = int(shorter * max(height, width) / min(height, width))
    size = (longer, shorter) if height > width else (shorter, longer)
    resized = resize(image, size, method=method)
    top, left = (round((length - image_size) / 2) for length in size)
    return resized[top : top + image_size, left : left + image_size]


EVAL_CROPS = {"central": _central, "shorter_side": _shorter_side}
