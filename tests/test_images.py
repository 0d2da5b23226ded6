"""Decoding, resizing and presets of evaluation, against Pillow, OpenCV, Keras, numpy and colours known by hand."""

import io
import os
import pickle
import re
import struct
import subprocess
import sys
import zlib

import cv2
import keras
import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from xception_jax.data.dataset import UnreadableExample
from xception_jax.data.images import decoding
from xception_jax.data.images.decoding import decode
from xception_jax.data.images.resizing import METHODS, PRESETS, evaluation_image, resize
from xception_jax.errors import SettingError

TEMPLE, FLOWER = load_sample_images().images  # [427, 640, 3] each
DETAIL = FLOWER[100:160, 200:290]


def random_image(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(256, size=(height, width, channels), dtype=np.uint8)


def encode(image, file_format, **settings):
    """The bytes of a file, by Pillow."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, file_format, **settings)
    return file.getvalue()


def plain_palette_image(color):
    image = Image.new("P", (5, 3), 1)
    image.putpalette((9, 9, 9, *color))
    return image


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_png_chunk(encoded, kind, content):
    """A PNG file with one more chunk after the 33 bytes of its signature and header."""
    return encoded[:33] + png_chunk(kind, content) + encoded[33:]


def png_rgb16(color):
    """A PNG file of 5x3 pixels of one colour in 16 bits a channel, which Pillow cannot write."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 3, 16, 2, 0, 0, 0))
    rows = (b"\0" + struct.pack(">3H", *color) * 5) * 3
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


class TestDecode:
    @pytest.mark.parametrize("file_format", ["PNG", "WEBP", "BMP", "GIF"])
    @pytest.mark.parametrize(
        "mode, color, rgb",
        [
            ("RGB", (10, 120, 230), (10, 120, 230)),
            ("L", 77, (77, 77, 77)),
            ("1", 1, (255, 255, 255)),
            ("P", (10, 120, 230), (10, 120, 230)),
        ],
    )
    def test_every_kind_of_pixel_becomes_rgb(self, file_format, mode, color, rgb):
        image = plain_palette_image(color) if mode == "P" else Image.new(mode, (5, 3), color)
        encoded = encode(image, file_format, **({"lossless": True} if file_format == "WEBP" else {}))
        np.testing.assert_array_equal(decode(encoded, name="x"), np.full((3, 5, 3), rgb, np.uint8), strict=True)

    @pytest.mark.parametrize(
        "mode, color, rgb",
        [
            ("LA", (90, 128), (90, 90, 90)),
            ("RGBA", (10, 120, 230, 100), (10, 120, 230)),
            ("RGBA", (7, 8, 9, 0), (7, 8, 9)),
        ],
    )
    @pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
    def test_alpha_is_dropped_without_blending(self, file_format, mode, color, rgb):
        settings = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
        encoded = encode(Image.new(mode, (5, 3), color), file_format, **settings)
        np.testing.assert_array_equal(decode(encoded, name="x"), np.full((3, 5, 3), rgb, np.uint8))

    @pytest.mark.parametrize(
        "file_format, transparency", [("PNG", 1), ("PNG", bytes((255, 100))), ("GIF", 1)], ids=str
    )
    def test_a_transparent_colour_of_a_palette_keeps_its_colour(self, file_format, transparency):
        image = plain_palette_image((10, 120, 230))
        image.putpixel((0, 0), 0)
        expected = np.full((3, 5, 3), (10, 120, 230), np.uint8)
        expected[0, 0] = 9
        encoded = encode(image, file_format, transparency=transparency)
        np.testing.assert_array_equal(decode(encoded, name="x"), expected)

    def test_of_16_bits_the_upper_8_count(self):
        grey = encode(np.array([[0, 255, 256, 0x4DFF, 0xFFFF]], np.uint16), "PNG")
        np.testing.assert_array_equal(decode(grey, name="x")[0, :, 0], [0, 0, 1, 0x4D, 255])
        assert decode(grey, name="x").shape == (1, 5, 3)
        rgb = decode(png_rgb16((0x0AFF, 0x7800, 0xE67F)), name="x")
        np.testing.assert_array_equal(rgb, np.full((3, 5, 3), (0x0A, 0x78, 0xE6), np.uint8))

    def test_both_libraries_agree_about_16_bits(self):
        pixels = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
        by_opencv = cv2.imdecode(np.frombuffer(encode(pixels, "PNG"), np.uint8), cv2.IMREAD_COLOR_RGB)
        np.testing.assert_array_equal(decode(encode(pixels, "PNG"), name="x"), by_opencv)
        np.testing.assert_array_equal(decode(encode(pixels, "TIFF"), name="x"), by_opencv)

    @pytest.mark.parametrize("subsampling", [0, 1, 2])
    @pytest.mark.parametrize("settings", [{"quality": 95}, {"quality": 50, "progressive": True}], ids=str)
    def test_a_jpeg_is_as_pillow_decodes_it(self, settings, subsampling):
        for image in (TEMPLE[100:201, 200:277], DETAIL):
            encoded = encode(image, "JPEG", subsampling=subsampling, **settings)
            np.testing.assert_array_equal(decode(encoded, name="x"), Image.open(io.BytesIO(encoded)), strict=True)

    @pytest.mark.parametrize("background", ["white", "black"])
    def test_opencv_decodes_a_jpeg_alone_and_in_one_thread(self, monkeypatch, background):
        encoded = encode(DETAIL, "JPEG")
        monkeypatch.delattr(Image, "open")
        assert decode(encoded, name="x", background=background).shape == (60, 90, 3)
        assert cv2.getNumThreads() == 1

    def test_a_grey_jpeg_is_as_pillow_decodes_it(self):
        encoded = encode(DETAIL[..., 0], "JPEG")
        expected = np.asarray(Image.open(io.BytesIO(encoded)))[..., None].repeat(3, axis=2)
        np.testing.assert_array_equal(decode(encoded, name="x"), expected, strict=True)

    def test_inks_become_rgb(self):
        encoded = encode(Image.new("CMYK", (16, 8), (55, 155, 205, 51)), "JPEG", quality=95)
        light = np.array((200, 100, 50)) * (255 - 51) / 255
        np.testing.assert_allclose(decode(encoded, name="x"), np.broadcast_to(light, (8, 16, 3)), atol=3)
        photo = Image.merge("CMYK", [*Image.fromarray(TEMPLE).split(), Image.fromarray(FLOWER[..., 0])])
        encoded = encode(photo, "JPEG", quality=90)
        pillow = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"), int)
        np.testing.assert_allclose(decode(encoded, name="x"), pillow, atol=2)

    def test_a_lossy_webp_is_as_pillow_decodes_it(self):
        encoded = encode(DETAIL, "WEBP")
        np.testing.assert_array_equal(decode(encoded, name="x"), Image.open(io.BytesIO(encoded)))

    @pytest.mark.parametrize("file_format", ["PNG", "WEBP", "GIF"])
    def test_of_an_animation_the_first_frame_counts(self, file_format):
        frames = [plain_palette_image(color).convert("RGB") for color in ((10, 120, 230), (250, 10, 20))]
        settings = {"lossless": True} if file_format == "WEBP" else {}
        encoded = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **settings)
        assert Image.open(io.BytesIO(encoded)).n_frames == 2
        np.testing.assert_array_equal(decode(encoded, name="x"), np.full((3, 5, 3), (10, 120, 230), np.uint8))

    @pytest.mark.parametrize("file_format", ["PCX", "TGA", "ICO"])
    def test_pillow_reads_what_opencv_cannot(self, file_format):
        image = random_image(16, 16)
        encoded = encode(image, file_format)
        assert cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR) is None
        np.testing.assert_array_equal(decode(encoded, name="x"), image, strict=True)

    @pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
    def test_exif_orientation_only_if_asked_for(self, file_format):
        exif = Image.Exif()
        exif[0x0112] = 6  # a quarter turn clockwise
        encoded = encode(random_image(20, 30), file_format, exif=exif)
        stored = Image.open(io.BytesIO(encoded))
        np.testing.assert_array_equal(decode(encoded, name="x"), stored)
        turned = decode(encoded, name="x", orientation=True)
        np.testing.assert_array_equal(turned, ImageOps.exif_transpose(stored), strict=True)
        np.testing.assert_array_equal(turned, np.rot90(np.asarray(stored), -1))

    @pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
    def test_broken_exif_data_turn_nothing(self, file_format):
        image = random_image(8, 16)
        encoded = encode(image, "JPEG", exif=b"Exif\0\0garbage") if file_format == "JPEG" else encode(image, "PNG")
        if file_format == "PNG":
            encoded = with_png_chunk(encoded, b"eXIf", b"garbage")
        assert decode(encoded, name="x", orientation=True).shape == (8, 16, 3)

    def test_pixels_can_be_written_to(self):
        for file_format in ("JPEG", "PNG"):
            decode(encode(random_image(4, 4), file_format), name="x")[0] = 0


def over_white(color, alpha):
    """The blend in real numbers."""
    return np.array(color) * (alpha / 255) + 255 * (1 - alpha / 255)


def png_grey(row, bits, transparent):
    """A PNG file of one row of packed grey pixels with a transparent grey; Pillow writes no such depths."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", len(row) * 8 // bits, 1, bits, 0, 0, 0, 0))
    transparency = png_chunk(b"tRNS", struct.pack(">H", transparent))
    pixels = png_chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + transparency + pixels + png_chunk(b"IEND", b"")


class TestBackground:
    """Transparent pixels over white; what "black" gives is tested above, as it is the default."""

    @pytest.mark.parametrize("alpha", [0, 1, 100, 128, 254, 255])
    @pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
    def test_alpha_is_blended_with_white(self, file_format, alpha):
        settings = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
        rgb = random_image(7, 9)
        rgba = np.dstack([rgb, np.full((7, 9), alpha, np.uint8)])
        encoded = encode(rgba, file_format, **settings)
        actual = decode(encoded, name="x", background="white")
        assert actual.dtype == np.uint8
        np.testing.assert_allclose(actual, over_white(rgb, alpha), atol=0.5 + 1e-9)

    def test_a_black_drawing_on_transparent_black_stays_visible(self):
        drawing = np.zeros((8, 8, 4), np.uint8)
        drawing[2:6, 2:6, 3] = 255
        for file_format, settings in (("PNG", {}), ("WEBP", {"lossless": True}), ("WEBP", {})):
            encoded = encode(drawing, file_format, **settings)
            pixels = decode(encoded, name="x", background="white")
            assert (pixels[2:6, 2:6] < 30).all() and (pixels[0] > 225).all()
            assert (decode(encoded, name="x") < 30).all()

    def test_grey_with_alpha(self):
        encoded = encode(Image.new("LA", (5, 3), (90, 128)), "PNG")
        expected = np.full((3, 5, 3), np.rint(over_white(90, 128)))
        np.testing.assert_array_equal(decode(encoded, name="x", background="white"), expected)

    @pytest.mark.parametrize(
        "file_format, transparency", [("PNG", 1), ("PNG", bytes((255, 0))), ("GIF", 1)], ids=str
    )
    def test_a_transparent_colour_of_a_palette_becomes_white(self, file_format, transparency):
        image = plain_palette_image((10, 120, 230))
        image.putpixel((0, 0), 0)
        expected = np.full((3, 5, 3), 255, np.uint8)
        expected[0, 0] = 9
        encoded = encode(image, file_format, transparency=transparency)
        np.testing.assert_array_equal(decode(encoded, name="x", background="white"), expected)

    def test_a_palette_with_alpha_is_blended(self):
        encoded = encode(plain_palette_image((10, 120, 230)), "PNG", transparency=bytes((255, 100)))
        expected = np.broadcast_to(over_white((10, 120, 230), 100), (3, 5, 3))
        np.testing.assert_allclose(decode(encoded, name="x", background="white"), expected, atol=0.5 + 1e-9)

    def test_a_transparent_colour_without_a_palette(self):
        image = Image.new("RGB", (2, 1), (10, 120, 230))
        image.putpixel((0, 0), (10, 120, 231))
        encoded = encode(image, "PNG", transparency=(10, 120, 230))
        pixels = decode(encoded, name="x", background="white")
        assert pixels.tolist() == [[[10, 120, 231], [255, 255, 255]]]

    @pytest.mark.parametrize(
        "row, bits, transparent, greys",
        [
            (b"\xa0", 1, 1, [255, 0, 255, 0, 0, 0, 0, 0]),
            (b"\x1b", 2, 2, [0, 85, 255, 255]),
            (b"\x5f\x06", 4, 6, [85, 255, 0, 255]),
            (b"\x05\x06", 8, 5, [255, 6]),
            (b"\x12\x34\x56\x78", 16, 0x1234, [255, 0x56]),
        ],
    )
    def test_a_transparent_grey_of_any_depth(self, row, bits, transparent, greys):
        pixels = decode(png_grey(row, bits, transparent), name="x", background="white")
        np.testing.assert_array_equal(pixels, np.array(greys)[None, :, None].repeat(3, 2))

    @pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PCX"])
    def test_images_without_alpha_stay_as_they_are(self, file_format):
        encoded = encode(DETAIL, file_format)
        white = decode(encoded, name="x", background="white")
        np.testing.assert_array_equal(white, decode(encoded, name="x"), strict=True)

    def test_the_image_is_turned_as_well(self):
        exif = Image.Exif()
        exif[0x0112] = 6  # a quarter turn clockwise
        rgba = np.dstack([random_image(4, 6), np.zeros((4, 6), np.uint8)])
        rgba[0, 0] = 10, 20, 30, 255  # its corner goes to the upper right
        for file_format in ("PNG", "WEBP"):
            settings = {"lossless": True} if file_format == "WEBP" else {}
            encoded = encode(rgba, file_format, exif=exif, **settings)
            pixels = decode(encoded, name="x", orientation=True, background="white")
            assert pixels.shape == (6, 4, 3) and pixels[0, -1].tolist() == [10, 20, 30]
            assert (pixels.reshape(-1, 3) == 255).all(axis=1).sum() == 23

    def test_another_background_is_refused(self):
        with pytest.raises(SettingError, match=r"^background = 'grey': choose one of \('white', 'black'\)"):
            decode(encode(DETAIL, "JPEG"), name="x", background="grey")


def damaged_png():
    encoded = bytearray(encode(DETAIL, "PNG"))
    encoded[len(encoded) // 2] ^= 1
    return bytes(encoded)


def bomb_jpeg():
    encoded = bytearray(encode(random_image(8, 8), "JPEG"))
    sizes = encoded.index(b"\xff\xc0") + 5
    encoded[sizes : sizes + 4] = struct.pack(">HH", 64_000, 64_000)
    return bytes(encoded)


def bomb_webp():
    encoded = bytearray(encode(random_image(8, 8), "WEBP", lossless=True))
    sizes = encoded.index(b"VP8L") + 9  # 14 bits each, less one
    encoded[sizes : sizes + 4] = struct.pack("<I", 16_381 | 16_381 << 14)
    return bytes(encoded)


def bomb_png():
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 64_000, 64_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"")) + png_chunk(b"IEND", b"")


def cut(file_format):
    encoded = encode(DETAIL, file_format)
    return encoded[: len(encoded) // 2]


LIMIT = "178956970 pixels"
BAD_FILES = {
    "nothing": (b"", "is empty"),
    "a web page": (b"<html>404 Not Found</html>", r"not an image: begins with b'<html>404"),
    "a damaged header": (
        b"\xff\xd8\xff\xe0" + bytes(50),
        r"damaged or cut short in its header: begins with b'\\xff\\xd8",
    ),
    "a cut JPEG": (cut("JPEG"), "damaged or cut short: image file is truncated"),
    "a cut PNG": (cut("PNG"), "damaged or cut short: Truncated File Read"),
    "a cut WebP": (cut("WEBP"), "damaged or cut short: could not create decoder object"),
    "a cut GIF": (cut("GIF"), "damaged or cut short: image file is truncated"),
    "a cut BMP": (cut("BMP"), "damaged or cut short: image file is truncated"),
    "a changed byte": (damaged_png(), r"damaged or cut short: broken PNG file \(bad header checksum in b'IDAT'\)"),
    "a JPEG bomb": (bomb_jpeg(), rf"4096000000 pixels.*{LIMIT}.*bomb"),
    "a PNG bomb": (bomb_png(), rf"4096000000 pixels.*{LIMIT}.*bomb"),
    "a WebP bomb": (bomb_webp(), rf"268369924 pixels.*{LIMIT}.*bomb"),
    "a TIFF of floats": (encode(np.ones((4, 4), np.float32), "TIFF"), r"32 bits \(mode F\) have no known range"),
}


class TestBadFiles:
    @pytest.mark.parametrize("encoded, reason", BAD_FILES.values(), ids=BAD_FILES)
    @pytest.mark.parametrize("background", ["white", "black"])
    @pytest.mark.parametrize("orientation", [False, True])
    def test_the_file_and_the_reason_are_named_and_nothing_else_is_printed(
        self, encoded, reason, orientation, background, capfd
    ):
        with pytest.raises(UnreadableExample) as caught:
            decode(encoded, name="cat/7.jpg", orientation=orientation, background=background)
        pattern = f"cannot read cat/7.jpg: [^;]*{reason}[^;]*; repair or remove the file"
        assert re.fullmatch(pattern, str(caught.value))
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize(
        "file_format, settings, marker",
        [
            ("JPEG", {}, 0),
            ("JPEG", {"progressive": True}, 0),
            ("PNG", {}, 4),  # the checksum of its last, empty chunk
            ("WEBP", {}, 0),
            ("WEBP", {"lossless": True}, 0),
            ("GIF", {}, 2),  # the end marks of its pixels and of the file
        ],
    )
    def test_no_part_of_an_image_passes_for_the_whole(self, file_format, settings, marker, capfd):
        encoded = encode(DETAIL, file_format, **settings)
        end = len(encoded) - marker
        for length in {*np.linspace(0, end - 1, 50, dtype=int).tolist(), *range(end - 20, end)}:
            with pytest.raises(UnreadableExample):
                decode(encoded[:length], name="x")
        assert decode(encoded[:end], name="x").shape == (60, 90, 3)
        assert capfd.readouterr() == ("", "")

    def test_every_changed_byte_of_a_png_is_found(self):
        encoded = encode(random_image(6, 7), "PNG")
        for position in range(len(encoded) - 12):  # of the last chunk, which is empty, the name alone counts
            changed = bytearray(encoded)
            changed[position] ^= 0x10
            with pytest.raises(UnreadableExample):
                decode(bytes(changed), name="x")

    @pytest.mark.parametrize(
        "chunk", [(b"iCCP", b"x\0\0" + zlib.compress(b"profile")), (b"sBIT", b"\x09\x09\x09")]
    )
    def test_a_png_with_odd_metadata_is_read_in_silence(self, chunk, capfd):
        image = random_image(4, 6)
        encoded = with_png_chunk(encode(image, "PNG"), *chunk)
        np.testing.assert_array_equal(decode(encoded, name="x"), image)
        assert capfd.readouterr() == ("", "")

    def test_the_error_crosses_the_border_of_a_process(self):
        error = pickle.loads(pickle.dumps(UnreadableExample("cat/7.jpg", "is empty")))
        assert isinstance(error, ValueError) and (error.name, error.reason) == ("cat/7.jpg", "is empty")
        assert str(error) == "cannot read cat/7.jpg: is empty; repair or remove the file"

    def test_both_libraries_have_one_limit_and_pillow_does_not_warn_below_it(self):
        program = f"""if True:
            import io, os, runpy, sys
            from PIL import Image
            Image.MAX_IMAGE_PIXELS = 50  # pixels; Pillow warns above it and refuses above twice as many
            names = runpy.run_path({decoding.__file__!r})
            assert os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] == "100"
            for file_format in ("JPEG", "PNG", "WEBP", "BMP", "GIF"):
                for width in (10, 11):
                    file = io.BytesIO()
                    Image.new("RGB", (width, 10)).save(file, file_format)
                    try:
                        print(file_format, names["decode"](file.getvalue(), name="x").shape)
                    except names["UnreadableExample"] as error:
                        print(file_format, error.reason)
        """
        environment = {k: v for k, v in os.environ.items() if k != "OPENCV_IO_MAX_IMAGE_PIXELS"}
        command = [sys.executable, "-W", "error", "-c", program]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (result.returncode, result.stderr) == (0, "")
        refused = "Image size (110 pixels) exceeds limit of 100 pixels, could be decompression bomb DOS attack"
        formats = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
        assert result.stdout.splitlines() == [
            f"{name} {end}" for name in formats for end in ("(10, 10, 3)", refused)
        ]

    def test_the_limit_holds_here(self):
        assert os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] == "178956970"


OPENCV = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "area": cv2.INTER_AREA,
}


def tf1_bilinear(image, height, width):
    """Pixel by pixel, in float64: float64[height, width, C]."""
    result = np.empty((height, width, image.shape[2]))
    for i, j in np.ndindex(height, width):
        y, x = i * len(image) / height, j * image.shape[1] / width
        top, left = int(y), int(x)
        bottom, right = min(top + 1, len(image) - 1), min(left + 1, image.shape[1] - 1)
        upper = image[top, left] * (left + 1 - x) + image[top, right] * (x - left)
        lower = image[bottom, left] * (left + 1 - x) + image[bottom, right] * (x - left)
        result[i, j] = upper * (top + 1 - y) + lower * (y - top)
    return result


class TestResize:
    @pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_against_pillow(self, method, channels):
        image, box = random_image(23, 31, channels), (2.5, 1.0, 28.0, 20.75)
        pillow = Image.fromarray(image.squeeze())
        for part in (None, box):
            expected = pillow.resize((12, 14), Image.Resampling[method.upper()], box=part)
            actual = resize(image, (14, 12), method=f"pillow_{method}", box=part)
            np.testing.assert_array_equal(actual, np.asarray(expected).reshape(14, 12, channels), strict=True)

    @pytest.mark.parametrize("method", OPENCV)
    @pytest.mark.parametrize("channels", [1, 3])
    def test_against_opencv(self, method, channels):
        image = random_image(23, 31, channels)
        for box, part in ((None, image), ((2.4, 1.6, 28.7, 20.2), np.ascontiguousarray(image[2:20, 2:29]))):
            expected = cv2.resize(part, (12, 14), interpolation=OPENCV[method]).reshape(14, 12, channels)
            actual = resize(image, (14, 12), method=method, box=box)
            np.testing.assert_array_equal(actual, expected, strict=True)

    @pytest.mark.parametrize("method", ["nearest", "pillow_nearest"])
    def test_nearest_repeats_pixels(self, method):
        image = random_image(4, 5)
        np.testing.assert_array_equal(resize(image, (8, 10), method=method), image.repeat(2, 0).repeat(2, 1))

    def test_bilinear_weighs_two_pixels_by_their_distance(self):
        ramp = np.array([0, 80, 240], np.uint8)[None, :, None]
        actual = resize(ramp, (1, 6), method="bilinear")
        np.testing.assert_array_equal(actual[0, :, 0], [0, 20, 60, 120, 200, 240])
        actual = resize(ramp, (1, 6), method="tf1_bilinear")
        np.testing.assert_array_equal(actual[0, :, 0], [0, 40, 80, 160, 240, 240])

    def test_area_is_the_mean_of_blocks(self):
        image = random_image(12, 20)
        means = image.reshape(4, 3, 5, 4, 3).mean(axis=(1, 3))  # [4, 5, 3]
        np.testing.assert_allclose(resize(image, (4, 5), method="area"), means, atol=0.51)
        rows = image.reshape(4, 3, 20, 3).mean(axis=1)
        np.testing.assert_allclose(resize(image, (4, 20), method="area"), rows, atol=0.51)

    @pytest.mark.parametrize("size", [(24, 40), (24, 10), (6, 40)])
    def test_area_is_bilinear_where_a_side_grows(self, size):
        image = random_image(12, 20)
        np.testing.assert_array_equal(resize(image, size, method="area"), resize(image, size, method="bilinear"))

    @pytest.mark.parametrize("method, weights", [("pillow_bilinear", [[3, 3, 1, 0], [0, 1, 3, 3]])])
    def test_bilinear_halving_is_antialiased(self, method, weights):
        image, triangle = random_image(4, 4, 1), np.array(weights) / 7  # of support 2, around pixels 1 and 3
        expected = triangle @ image[..., 0] @ triangle.T
        np.testing.assert_allclose(resize(image, (2, 2), method=method)[..., 0], expected, atol=1)

    @pytest.mark.parametrize("size", [(9, 10), (23, 50), (40, 31), (1, 1)])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_tf1_bilinear_against_a_loop(self, size, channels):
        image = random_image(23, 31, channels)
        actual = resize(image, size, method="tf1_bilinear")
        assert actual.dtype == np.uint8
        np.testing.assert_allclose(actual, tf1_bilinear(image, *size), atol=0.5 + 1e-4)
        actual = resize(image, size, method="tf1_bilinear", box=(2, 1, 29, 20))
        np.testing.assert_allclose(actual, tf1_bilinear(image[1:20, 2:29], *size), atol=0.5 + 1e-4)

    @pytest.mark.parametrize("photo", [TEMPLE, FLOWER], ids=["temple", "flower"])
    @pytest.mark.parametrize("size", [(299, 299), (500, 700)])
    def test_tf1_bilinear_against_an_affine_map_of_pillow(self, photo, size):
        y, x = photo.shape[0] / size[0], photo.shape[1] / size[1]
        matrix = (x, 0, 0.5 - 0.5 * x, 0, y, 0.5 - 0.5 * y)  # Pillow's pixels have their centers at halves
        affine = Image.Transform.AFFINE
        expected = Image.fromarray(photo).transform(size[::-1], affine, matrix, Image.Resampling.BILINEAR)
        actual = resize(photo, size, method="tf1_bilinear").astype(int)
        np.testing.assert_allclose(actual, np.asarray(expected, int), atol=1)  # Pillow does not round

    @pytest.mark.parametrize("method", METHODS)
    def test_an_image_of_the_right_size_is_returned_as_it_is(self, method):
        image = random_image(9, 11)
        assert resize(image, (9, 11), method=method) is image
        assert resize(image, (9, 11), method=method, box=(0.0, 0.0, 11.0, 9.0)) is image

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("channels", [1, 3])
    def test_views_are_resized_like_copies(self, method, channels):
        image = random_image(30, 40, channels)
        before = image.copy()
        for view in (image[3:20, 5:31], image[:, ::-1], image.transpose(1, 0, 2)):
            expected = resize(np.ascontiguousarray(view), (7, 8), method=method)
            np.testing.assert_array_equal(resize(view, (7, 8), method=method), expected)
        np.testing.assert_array_equal(image, before)

    @pytest.mark.parametrize("method", [*OPENCV, "tf1_bilinear"])
    def test_a_box_smaller_than_a_pixel_becomes_one(self, method):
        image = random_image(5, 6)
        for box, pixel in (((2.1, 1.2, 2.3, 1.4), (1, 2)), ((5.8, 4.7, 6.0, 5.0), (4, 5))):
            expected = np.broadcast_to(image[pixel], (4, 4, 3))
            np.testing.assert_array_equal(resize(image, (4, 4), method=method, box=box), expected)

    def test_an_unknown_method_is_refused(self):
        with pytest.raises(SettingError, match=r"resize = 'lanczos': choose one of \['area', .*'tf1_bilinear'\]"):
            resize(random_image(4, 4), (4, 4), method="lanczos")


PORTRAIT = np.ascontiguousarray(TEMPLE.transpose(1, 0, 2))  # [640, 427, 3]


class TestPresets:
    @pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
    @pytest.mark.parametrize("photo", [PORTRAIT, FLOWER], ids=["portrait", "flower"])
    def test_keras_is_what_its_guide_loads(self, tmp_path, photo, file_format):
        path = tmp_path / "photo"
        path.write_bytes(encode(photo, file_format))
        expected = np.asarray(keras.utils.load_img(path, target_size=(299, 299)))
        actual = evaluation_image(decode(path.read_bytes(), name="x"), image_size=299, **PRESETS["keras"])
        np.testing.assert_array_equal(actual, expected, strict=True)

    @pytest.mark.parametrize(
        "photo, size, box",
        [
            (FLOWER, (499, 333), (100, 17, 399, 316)),  # 333 * 640 / 427 = 499.1
            (PORTRAIT, (333, 499), (17, 100, 316, 399)),
            (FLOWER[:427, :427], (333, 333), (17, 17, 316, 316)),
        ],
        ids=["landscape", "portrait", "square"],
    )
    def test_timm_keeps_the_aspect_ratio(self, photo, size, box):
        expected = Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC).crop(box)
        actual = evaluation_image(photo, image_size=299, **PRESETS["timm"])
        np.testing.assert_array_equal(actual, expected, strict=True)

    @pytest.mark.parametrize("photo", [PORTRAIT, FLOWER], ids=["portrait", "flower"])
    def test_slim_squashes_the_central_part(self, photo):
        top, left = {(640, 427): (40, 26), (427, 640): (26, 40)}[photo.shape[:2]]  # 0.0625 of each, whole pixels
        part = photo[top:-top, left:-left].astype(float)
        rows, columns = (np.arange(299) * length / 299 for length in part.shape[:2])
        part = np.apply_along_axis(lambda p: np.interp(rows, np.arange(len(p)), p), 0, part)
        part = np.apply_along_axis(lambda p: np.interp(columns, np.arange(len(p)), p), 1, part)  # [299, 299, 3]
        actual = evaluation_image(photo, image_size=299, **PRESETS["slim"])
        assert actual.dtype == np.uint8
        np.testing.assert_allclose(actual, part, atol=0.51)

    @pytest.mark.parametrize(
        "width, left", [(10, 0), (11, 0), (13, 2), (14, 2), (15, 2), (17, 4)]
    )  # halves are rounded to even numbers
    def test_the_central_square_is_torchvisions(self, width, left):
        image = random_image(10, width)
        settings = {"image_size": 10, "crop": "shorter_side", "crop_fraction": 1.0, "resize": "bilinear"}
        np.testing.assert_array_equal(evaluation_image(image, **settings), image[:, left : left + 10])
        upright = image.transpose(1, 0, 2)
        np.testing.assert_array_equal(evaluation_image(upright, **settings), upright[left : left + 10])

    @pytest.mark.parametrize("fraction, top, left", [(0.5, 2, 4), (0.875, 0, 1), (0.7, 1, 2), (1.0, 0, 0)])
    def test_the_central_part_has_tensorflows_corners(self, fraction, top, left):
        image = random_image(10, 17)
        part = image[top : 10 - top, left : 17 - left]
        settings = {"image_size": 6, "crop": "central", "crop_fraction": fraction, "resize": "bicubic"}
        expected = cv2.resize(np.ascontiguousarray(part), (6, 6), interpolation=cv2.INTER_CUBIC)
        np.testing.assert_array_equal(evaluation_image(image, **settings), expected, strict=True)

    @pytest.mark.parametrize("preset", PRESETS)
    def test_grey_images_stay_grey(self, preset):
        actual = evaluation_image(random_image(50, 40, 1), image_size=24, **PRESETS[preset])
        assert (actual.shape, actual.dtype) == ((24, 24, 1), np.uint8)

    @pytest.mark.parametrize(
        "settings, message",
        [
            ({"crop": "center"}, r"crop = 'center': choose one of \['central', 'shorter_side'\]"),
            ({"crop_fraction": 0.0}, "crop_fraction = 0.0: choose"),
            ({"crop_fraction": 1.1}, "crop_fraction = 1.1: choose"),
            ({"resize": "box"}, "resize = 'box': choose"),
        ],
    )
    def test_a_wrong_setting_is_refused(self, settings, message):
        with pytest.raises(SettingError, match=message):
            evaluation_image(random_image(8, 8), image_size=4, **PRESETS["slim"] | settings)


@pytest.mark.parametrize("orientation", [False, True])
def test_tiff_images_are_turned_in_any_case(orientation):
    image, exif, buffer = Image.new("RGB", (40, 20), (9, 80, 200)), Image.Exif(), io.BytesIO()
    exif[274] = 6  # the camera was held upright
    image.save(buffer, "TIFF", exif=exif)
    pixels = decode(buffer.getvalue(), name="x", orientation=orientation)
    assert pixels.shape == (40, 20, 3)


@pytest.mark.parametrize("shape", [(3, 90), (90, 3)])
def test_very_long_images_are_cut_before_they_are_enlarged(shape):
    pixels = np.random.default_rng(0).integers(256, size=(*shape, 3), dtype=np.uint8)
    middle = pixels[:, 30:60] if shape[0] == 3 else pixels[30:60]
    settings = {"image_size": 12, "crop": "shorter_side", "crop_fraction": 0.8, "resize": "pillow_bilinear"}
    np.testing.assert_array_equal(evaluation_image(pixels, **settings), evaluation_image(middle, **settings))
