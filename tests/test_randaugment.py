"""RandAugment, each operation against Pillow's function with the argument worked out by hand, or against numpy."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_image

from xception_jax.data.images import randaugment
from xception_jax.data.images.randaugment import OPERATIONS, Operation, rand_augment
from xception_jax.errors import SettingError

HEIGHT, WIDTH = 40, 60
OF_THE_PAPER = {
    "identity", "autocontrast", "equalize", "rotate", "solarize", "color", "posterize", "contrast", "brightness",
    "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
}  # fmt: skip


def photograph():
    """uint8[40, 60, 3] with every value from 0 to 255 in it."""
    image = np.ascontiguousarray(load_sample_image("china.jpg")[::10, ::10][:HEIGHT, :WIDTH])
    image[:3] = np.arange(256, dtype=np.uint8)[: 3 * WIDTH, None].reshape(3, WIDTH, 1)
    image[3:6] = image[:3] + 76
    return image


def results(monkeypatch, name, magnitude, image):
    """The different images that 20 generators make if `name` is the only operation."""
    monkeypatch.setattr(randaugment, "OPERATIONS", {name: OPERATIONS[name]})
    arrays = [rand_augment(image, np.random.default_rng(i), num_ops=1, magnitude=magnitude) for i in range(20)]
    assert {(x.shape, x.dtype.name) for x in arrays} == {(image.shape, "uint8")}
    return {x.tobytes() for x in arrays}


def assert_results(monkeypatch, name, magnitude, expected):
    assert results(monkeypatch, name, magnitude, photograph()) == {np.asarray(x).tobytes() for x in expected}


def moved(rows, columns):
    """The pixel at (rows, columns) of the photograph, or gray where that is outside; two float arrays [H, W]."""
    y, x = np.floor(rows).astype(int), np.floor(columns).astype(int)
    inside = (y >= 0) & (y < HEIGHT) & (x >= 0) & (x < WIDTH)
    picked = photograph()[y.clip(0, HEIGHT - 1), x.clip(0, WIDTH - 1)]
    return np.where(inside[..., None], picked, np.uint8(128))


CENTERS = np.meshgrid(np.arange(HEIGHT) + 0.5, np.arange(WIDTH) + 0.5, indexing="ij")


class TestOperations:
    def test_they_are_those_of_the_paper(self):
        assert set(OPERATIONS) == OF_THE_PAPER

    @pytest.mark.parametrize(
        "name, enhance",
        [
            ("color", ImageEnhance.Color),
            ("contrast", ImageEnhance.Contrast),
            ("brightness", ImageEnhance.Brightness),
            ("sharpness", ImageEnhance.Sharpness),
        ],
    )
    @pytest.mark.parametrize("magnitude, factors", [(10, (0.1, 1.9)), (5, (0.55, 1.45))])
    def test_enhancements_lessen_or_strengthen(self, monkeypatch, name, enhance, magnitude, factors):
        pil_image = Image.fromarray(photograph())
        assert_results(monkeypatch, name, magnitude, [enhance(pil_image).enhance(factor) for factor in factors])

    @pytest.mark.parametrize("magnitude, degrees", [(10, 30), (4, 12)])
    def test_rotation(self, monkeypatch, magnitude, degrees):
        gray, pil_image = (128, 128, 128), Image.fromarray(photograph())
        expected = [pil_image.rotate(sign * degrees, fillcolor=gray) for sign in (-1, 1)]
        assert_results(monkeypatch, "rotate", magnitude, expected)

    @pytest.mark.parametrize("magnitude, slope", [(10, 0.3), (5, 0.15)])
    def test_shear(self, monkeypatch, magnitude, slope):
        y, x = CENTERS
        assert_results(monkeypatch, "shear_x", magnitude, [moved(y, x + s * y) for s in (-slope, slope)])
        assert_results(monkeypatch, "shear_y", magnitude, [moved(y + s * x, x) for s in (-slope, slope)])

    def test_translation(self, monkeypatch):
        y, x = CENTERS
        columns, rows = 27, 18  # of 60 * 150 / 331 = 27.19 and 40 * 150 / 331 = 18.13
        assert_results(monkeypatch, "translate_x", 10, [moved(y, x + shift) for shift in (-columns, columns)])
        assert_results(monkeypatch, "translate_y", 10, [moved(y + shift, x) for shift in (-rows, rows)])

    @pytest.mark.parametrize("magnitude, threshold", [(10, 0), (5, 128), (2.5, 192)])
    def test_solarize_inverts_from_a_threshold_on(self, monkeypatch, magnitude, threshold):
        image = photograph()
        assert_results(monkeypatch, "solarize", magnitude, [np.where(image >= threshold, 255 - image, image)])

    @pytest.mark.parametrize("magnitude, mask", [(10, 0b11110000), (5, 0b11111100), (3, 0b11111110)])
    def test_posterize_keeps_the_upper_bits(self, monkeypatch, magnitude, mask):
        assert_results(monkeypatch, "posterize", magnitude, [photograph() & np.uint8(mask)])

    @pytest.mark.parametrize("magnitude", [0, 10])
    def test_histogram_operations_have_no_magnitude(self, monkeypatch, magnitude):
        image = photograph() // 2 + 20
        pil_image = Image.fromarray(image)
        for name, function in [("autocontrast", ImageOps.autocontrast), ("equalize", ImageOps.equalize)]:
            assert (
                results(monkeypatch, name, magnitude, image)
                == {np.asarray(function(pil_image)).tobytes()}
                != {image.tobytes()}
            )

    @pytest.mark.parametrize("name", sorted(OF_THE_PAPER - {"autocontrast", "equalize"}))
    def test_magnitude_0_changes_nothing(self, monkeypatch, name):
        assert_results(monkeypatch, name, 0, [photograph()])

    @pytest.mark.parametrize("name", sorted(OF_THE_PAPER))
    def test_gray_images_become_what_gray_rgb_images_become(self, monkeypatch, name):
        gray = photograph()[..., :1]
        expected = results(monkeypatch, name, 7, gray.repeat(3, axis=-1))
        as_rgb = {np.frombuffer(x, np.uint8).repeat(3).tobytes() for x in results(monkeypatch, name, 7, gray)}
        assert as_rgb == expected


class TestRandAugment:
    def test_the_generator_decides(self):
        image = photograph()
        first, second = (
            [rand_augment(image, np.random.default_rng(i), num_ops=2, magnitude=9).tobytes() for i in range(50)]
            for _ in range(2)
        )
        assert first == second and len(set(first)) > 40

    def test_every_operation_is_drawn_as_often(self, monkeypatch):
        drawn = []

        def record(name):
            return Operation(lambda image, _: drawn.append(name) or image)

        monkeypatch.setattr(randaugment, "OPERATIONS", {name: record(name) for name in OPERATIONS})
        rng, image = np.random.default_rng(0), photograph()
        for _ in range(700):
            rand_augment(image, rng, num_ops=2, magnitude=5)
        counts = {name: drawn.count(name) for name in OF_THE_PAPER}
        assert sum(counts.values()) == 1400
        assert min(counts.values()) > 61 and max(counts.values()) < 139  # four standard deviations

    def test_operations_follow_one_another(self, monkeypatch):
        monkeypatch.setattr(randaugment, "OPERATIONS", {"brightness": OPERATIONS["brightness"]})
        pil_image, expected = Image.fromarray(photograph()), set()
        for factors in [(0.1, 0.1), (0.1, 1.9), (1.9, 0.1), (1.9, 1.9)]:
            once = ImageEnhance.Brightness(pil_image).enhance(factors[0])
            expected.add(np.asarray(ImageEnhance.Brightness(once).enhance(factors[1])).tobytes())
        rng = np.random.default_rng(0)
        actual = {rand_augment(photograph(), rng, num_ops=2, magnitude=10).tobytes() for _ in range(50)}
        assert actual == expected

    def test_the_image_given_is_left_alone(self):
        image = photograph()
        image.flags.writeable = False
        result = rand_augment(image, np.random.default_rng(0), num_ops=0, magnitude=10)
        np.testing.assert_array_equal(result, image, strict=True)
        assert result.flags.writeable and not np.shares_memory(result, image)

    @pytest.mark.parametrize("name, value", [("magnitude", -1), ("magnitude", 10.5), ("num_ops", -1)])
    def test_a_value_out_of_range_is_named(self, name, value):
        settings = {"num_ops": 2, "magnitude": 9} | {name: value}
        with pytest.raises(SettingError, match=rf"^{name} = {value}: must be"):
            rand_augment(photograph(), np.random.default_rng(0), **settings)
