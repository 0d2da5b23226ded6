"""The record that says how images become a model's input."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From any image to the input of one model; saved with every checkpoint and applied when it is used.

    Attributes:
      image_size: height and width of the input in pixels.
      mean, std: pixel values in [0, 1] are normalized as (value - mean) / std; .5 and .5 give [-1, 1].
      crop_fraction: share of the image's height and width, around its center, that evaluation keeps.
      resize: interpolation, antialiased (Pillow's filters).
    """

    image_size: int
    mean: float
    std: float
    crop_fraction: float
    resize: Literal["nearest", "bilinear", "bicubic"]
