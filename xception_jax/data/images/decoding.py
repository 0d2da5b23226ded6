"""From the bytes of an image file to pixels, with OpenCV where it is faster and as good, else with Pillow."""

import contextlib
import io
import os
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if Image.MAX_IMAGE_PIXELS:  # OpenCV reads the variable when it is imported; Pillow refuses above twice its limit
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2 * Image.MAX_IMAGE_PIXELS))

import cv2

from xception_jax.data.dataset import UnreadableExample
from xception_jax.errors import SettingError

cv2.setNumThreads(0)  # the pipeline decodes images in parallel, in threads and processes of its own
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # UnreadableExample says the same with the name
warnings.filterwarnings("ignore", module=r"PIL\.")  # they name no file; catch_warnings is not safe in threads

BACKGROUNDS = ("white", "black")

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG"
# OpenCV's libpng writes warnings to stderr, and OpenCV turns the transparent pixels of a GIF black.
LEFT_TO_PILLOW = (PNG, b"GIF8")
WEBP_FLAGS = {b"VP8X": 20, b"VP8L": 24}  # place of the byte whose bit 4 says that there is alpha, by first chunk
SIGNATURES = (*LEFT_TO_PILLOW, JPEG, b"RIFF", b"BM")


def decode(encoded: bytes, *, name: str, orientation: bool = False, background: str = "black") -> np.ndarray:
    """The pixels of a JPEG, PNG, WebP, BMP or GIF file, or of another format that OpenCV or Pillow reads.

    Grey images get three equal channels, and indices of a palette become its colors. Of 16 bits the upper 8 remain
    (value >> 8). CMYK becomes (255 - ink) (255 - K) / 255, within 2 grey levels of Pillow's result. Color profiles
    are not applied. Of an animation, the first frame is read.

    A file that ends before its last pixel is refused, and so is a PNG with a wrong checksum. JPEG and WebP have no
    checksums, so wrong bytes in the middle may go unnoticed. Nothing is written to stderr, except that libjpeg may
    write a line about such bytes or about an unusual header.

    Args:
      encoded: the whole file.
      name: of the file, for the message.
      orientation: turn the image as its EXIF data say; TensorFlow and Keras do not. (TIFF files are turned by
        both libraries in any case.)
      background: what becomes of transparent pixels.
        "white": they are blended with white: (alpha * color + (255 - alpha) * 255) / 255, rounded.
        "black": alpha is dropped without blending, as in version 0.1. A pixel keeps the color that the file stores
        with its alpha: in clip art and logos usually black, and a drawing that is black as well disappears.

    Returns:
      uint8[H, W, 3], red first.

    Raises:
      UnreadableExample: if the file is no image or not a whole one, or has more pixels than Pillow's limit against
        decompression bombs (178,956,970).
      SettingError: for an unknown background.
    """
    if background not in BACKGROUNDS:
        raise SettingError("background", background, f"choose one of {BACKGROUNDS}")
    if not encoded:
        raise UnreadableExample(name, "is empty")
    over_white = background == "white"
    needs_pillow = encoded.startswith(LEFT_TO_PILLOW) or (over_white and _has_alpha(encoded))
    image = None if needs_pillow else _decode_with_opencv(encoded, orientation)
    if image is not None:
        return image
    try:
        return _decode_with_pillow(encoded, orientation, over_white)
    except Exception as error:  # Pillow's readers raise all kinds of errors when bytes are wrong
        raise UnreadableExample(name, _reason(encoded, error)) from error


def _has_alpha(encoded: bytes) -> bool:
    """Whether the header of a file tells of transparent pixels; a JPEG never has any."""
    if encoded.startswith(JPEG):
        return False
    if encoded[8:12] == b"WEBP":  # Pillow needs 0.4 ms for a photograph's header: it allocates the pixels
        place = WEBP_FLAGS.get(encoded[12:16])
        return place is not None and len(encoded) > place and bool(encoded[place] & 0x10)
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.has_transparency_data
    except Exception:  # damaged, or unknown to Pillow; `decode` finds out which
        return False


def _decode_with_opencv(encoded: bytes, orientation: bool) -> np.ndarray | None:
    """uint8[H, W, 3], or None if OpenCV does not know the format or finds the file damaged."""
    flags = cv2.IMREAD_COLOR_RGB | (0 if orientation else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
        return cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error:  # too many pixels
        return None


def _decode_with_pillow(encoded: bytes, orientation: bool, over_white: bool) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        image.verify()  # a PNG's checksums and its end, which decoding skips; the file has to be opened again
    with Image.open(io.BytesIO(encoded)) as image:
        image.load()
        transparency = _transparency(encoded, image) if over_white else None
        image.info.pop("transparency", None)
        if orientation:
            with contextlib.suppress(SyntaxError):  # broken EXIF data are ignored, as OpenCV does
                ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16"):  # `convert` would clip values at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError(f"pixels of 32 bits (mode {image.mode}) have no known range")
        if transparency is not None:
            image.info["transparency"] = transparency
        if over_white and image.has_transparency_data:
            image, drawing = Image.new("RGB", image.size, "white"), image.convert("RGBA")
            image.paste(drawing, mask=drawing)
        return np.array(image.convert("RGB"))  # [H, W, 3]; `asarray` would be read-only


def _transparency(encoded: bytes, image: Image.Image) -> bytes | int | tuple[int, ...] | None:
    """`image.info["transparency"]`: the transparent color or palette index, or alpha for each palette color.

    In a PNG of 2, 4 or 16 bits Pillow converts the pixels to 8 bits, but not the transparent color; this does.
    """
    value = image.info.get("transparency")
    if value is None or not encoded.startswith(PNG) or image.mode not in ("L", "RGB", "I;16"):
        return value
    bits = encoded[24]  # of a channel; see the IHDR chunk in the PNG specification
    channels = [v >> 8 if bits == 16 else v * 255 // (2**bits - 1) for v in np.atleast_1d(value).tolist()]
    return tuple(channels) if isinstance(value, tuple) else channels[0]


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
