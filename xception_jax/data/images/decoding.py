"""From the bytes of an image file to pixels: OpenCV for what it is best at, Pillow for the rest."""

import contextlib
import io
import os
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if Image.MAX_IMAGE_PIXELS:  # OpenCV reads this while it is loaded; Pillow refuses above twice its limit
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2 * Image.MAX_IMAGE_PIXELS))

import cv2

from xception_jax.data.dataset import UnreadableExample

cv2.setNumThreads(0)  # images are decoded side by side, in threads and processes of the pipeline
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # the exception says it, and of which file
warnings.filterwarnings("ignore", module=r"PIL\.")  # they name no file; catch_warnings is not safe in threads

# OpenCV's libpng writes its warnings to stderr, and OpenCV paints the transparent pixels of a GIF black.
LEFT_TO_PILLOW = (b"\x89PNG", b"GIF8")
SIGNATURES = (*LEFT_TO_PILLOW, b"\xff\xd8\xff", b"RIFF", b"BM")


UnreadableImage = UnreadableExample  # until all callers use the new name


def decode(encoded: bytes, *, name: str, orientation: bool = False) -> np.ndarray:
    """The pixels of a JPEG, PNG, WebP, BMP or GIF file, and of other kinds that OpenCV or Pillow know.

    Grey images get three equal channels, palettes are looked up, alpha is dropped (not blended with a background),
    16 bits become the upper 8 (value >> 8), the inks C, M, Y, K become (255 - ink) (255 - K) / 255, within 2 grey
    levels of what Pillow makes of them. Colour profiles are not applied. Of an animation: the first frame.

    A file that ends before its last pixel is refused, and so is a PNG with a wrong checksum. JPEG and WebP have no
    checksums: wrong bytes in the middle may give a wrong picture. The one thing that may reach stderr is libjpeg's
    line about such bytes, or about an odd header.

    Args:
      encoded: the whole file.
      name: of the file, for the message.
      orientation: turn the image as its EXIF data say; TensorFlow and Keras do not. (TIFF files are turned by
        both libraries in any case.)

    Returns:
      uint8[H, W, 3], red first.

    Raises:
      UnreadableExample: if the file is no image or not a whole one, or has more pixels than Pillow's limit against
        decompression bombs (178,956,970).
    """
    if not encoded:
        raise UnreadableExample(name, "is empty")
    image = None if encoded.startswith(LEFT_TO_PILLOW) else _decode_with_opencv(encoded, orientation)
    if image is not None:
        return image
    try:
        return _decode_with_pillow(encoded, orientation)
    except Exception as error:  # Pillow's readers raise whatever a wrong byte leads them to
        raise UnreadableExample(name, _reason(encoded, error)) from error


def _decode_with_opencv(encoded: bytes, orientation: bool) -> np.ndarray | None:
    """uint8[H, W, 3], or None for what OpenCV does not know or finds damaged."""
    flags = cv2.IMREAD_COLOR_RGB | (0 if orientation else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error:  # too many pixels
        return None


def _decode_with_pillow(encoded: bytes, orientation: bool) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        image.verify()  # a PNG's checksums and its end, which decoding skips; the file has to be opened again
    with Image.open(io.BytesIO(encoded)) as image:
        image.load()
        image.info.pop("transparency", None)
        if orientation:
            with contextlib.suppress(SyntaxError):  # broken EXIF data are none, as for OpenCV
                ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16"):  # `convert` would clip it at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError(f"pixels of 32 bits (mode {image.mode}) have no known range")
        return np.array(image.convert("RGB"))  # [H, W, 3]; `asarray` would be read-only


def _reason(encoded: bytes, error: Exception) -> str:
    begin = f"begins with {encoded[:20]!r}"
    text = str(error).rstrip(".") or type(error).__name__
    match error:
        case UnidentifiedImageError() if encoded.startswith(SIGNATURES):
            return f"damaged or cut short in its header: {begin}"
        case UnidentifiedImageError():
            return f"not an image: {begin}"
        case ValueError() | Image.DecompressionBombError():
            return text
        case _:  # some are about "decoder object" or "data stream" only
            return f"damaged or cut short: {text}"
