"""The record that says how images become a model's input."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From any image to the input of one model; saved with every checkpoint and applied when it is used.

    Attributes:
      image_size: height and width of the input in pixels.
      mean, std: pixel values in [0, 1] are normalized as (value - mean) / std; .5 and .5 give [-1, 1].
      exif_orientation: whether pictures were turned as the camera was held, when their files were decoded.
      crop, crop_fraction, resize: what an evaluation shows of an image; see `data.resizing.evaluation_image`.
    """

    image_size: int
    mean: float
    std: float
    exif_orientation: bool = False
    crop: str
    crop_fraction: float
    resize: str
