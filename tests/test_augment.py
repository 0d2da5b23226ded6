"""Augmentation on the device, against colorsys, Pillow, scipy and numpy by hand.

What was drawn for an image is read off what became of a plain image with the same seed.
"""

import colorsys
import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_image

from xception_jax.data.images import augment
from xception_jax.data.images.augment import Augmentation
from xception_jax.errors import SettingError

adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue = map(
    jax.jit, (augment.adjust_brightness, augment.adjust_contrast, augment.adjust_saturation, augment.adjust_hue)
)
jitter_brightness, jitter_contrast, jitter_saturation = map(
    jax.jit, (augment.jitter_brightness, augment.jitter_contrast, augment.jitter_saturation)
)
symmetric_beta = jax.jit(augment.symmetric_beta)
SIZE = 16
EVERYTHING = Augmentation(flip=True, color="jitter", hue=0.2, mixup_alpha=0.4, cutmix_alpha=1.0)


def photographs():
    """uint8[2, 16, 16, 3]."""
    pixels = [load_sample_image(name)[::25, ::25][:SIZE, :SIZE] for name in ("china.jpg", "flower.jpg")]
    return np.stack(pixels)


def random_batch(count, classes=5, seed=0):
    """(images, targets, seeds, key): noise, with classes 0, 1, 2, ... in turn."""
    rng = np.random.default_rng(seed)
    images = rng.random((count, SIZE, SIZE, 3), np.float32)
    targets = np.eye(classes, dtype=np.float32)[np.arange(count) % classes]
    seeds = rng.integers(2**32, size=count, dtype=np.uint32)
    return jnp.array(images), jnp.array(targets), jnp.array(seeds), jax.random.key(7)


@functools.cache
def jitted(augmentation):
    return jax.jit(augmentation)


def augmented(count, image, **settings):
    """What `count` seeds make of one image [H, W, 3]."""
    images = jnp.array(np.broadcast_to(image, (count, *image.shape)), jnp.float32)
    seeds = jnp.arange(count, dtype=jnp.uint32)
    augmentation = Augmentation(**{"flip": False} | settings)
    return np.array(jitted(augmentation)(images, jnp.ones((count, 1)), seeds, jax.random.key(3))[0])


def plain(*color):
    return np.full((SIZE, SIZE, 3), color, np.float32)


def gray_pair(dark, bright):
    return np.concatenate([plain(dark)[:, : SIZE // 2], plain(bright)[:, SIZE // 2 :]], axis=1)


def by_colorsys(images, change):
    """Applies change(h, s, v) to each pixel of [..., 3]."""
    pixels = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in images.reshape(-1, 3)]
    return np.array(pixels).reshape(images.shape)


class TestColorFunctions:
    @pytest.mark.parametrize("shift", [-0.5, -0.2, 0.0, 0.013, 0.34, 0.5])
    def test_hue_turns_as_in_colorsys(self, shift):
        images = np.float32(photographs() / 255)
        expected = by_colorsys(images, lambda h, s, v: ((h + shift) % 1, s, v))
        actual = adjust_hue(jnp.array(images), jnp.full(2, shift))
        np.testing.assert_allclose(actual, expected, atol=2e-6)

    @pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.5, 4.0])
    def test_saturation_scales_as_in_colorsys(self, factor):
        images = np.float32(photographs() / 255)
        expected = by_colorsys(images, lambda h, s, v: (h, min(s * factor, 1), v))
        actual = adjust_saturation(jnp.array(images), jnp.full(2, factor))
        np.testing.assert_allclose(actual, expected, atol=2e-6)

    @pytest.mark.parametrize("function", [adjust_hue, adjust_saturation])
    def test_pixels_without_color_stay(self, function):
        grays = [0.0, 1e-42, 1e-30, 0.3, 1.0]
        pixels = np.array([(g, g, g) for g in grays] + [(1e-42, 0, 0), (0, 1e-20, 1e-30)], np.float32)
        actual = function(jnp.array(pixels[None, None]), jnp.array([0.4]))
        np.testing.assert_allclose(actual, pixels[None, None], atol=1e-7)

    def test_saturation_of_a_pixel_without_light_is_zero(self):
        pixel = jnp.array([[[[-0.1, -0.2, -0.3]]]])
        np.testing.assert_allclose(adjust_saturation(pixel, jnp.ones(1)).ravel(), [-0.1] * 3, rtol=1e-6)

    def test_contrast_keeps_the_mean_of_each_channel(self):
        images = photographs() / 255
        mean = images.mean((1, 2), keepdims=True)
        factor = np.array([0.5, 1.5])
        expected = mean + (images - mean) * factor[:, None, None, None]
        actual = adjust_contrast(jnp.array(images, jnp.float32), jnp.array(factor, jnp.float32))
        np.testing.assert_allclose(actual, expected, atol=1e-6)

    def test_brightness_is_added(self):
        actual = adjust_brightness(jnp.full((2, 1, 1, 3), 0.9), jnp.array([0.2, -1.0]))
        np.testing.assert_allclose(actual[:, 0, 0], [[1.1] * 3, [-0.1] * 3], rtol=1e-6)

    @pytest.mark.parametrize(
        "function, enhance",
        [
            (jitter_brightness, ImageEnhance.Brightness),
            (jitter_contrast, ImageEnhance.Contrast),
            (jitter_saturation, ImageEnhance.Color),
        ],
    )
    @pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4])
    def test_jitter_is_that_of_pillow(self, function, enhance, factor):
        images = photographs()
        expected = np.stack([enhance(Image.fromarray(image)).enhance(factor) for image in images])
        actual = jnp.clip(function(jnp.array(images, jnp.float32) / 255, jnp.full(2, factor)), 0, 1)
        np.testing.assert_allclose(255 * actual, expected, atol=1.51)  # Pillow rounds the gray image, then the sum


def assert_uniform(values, low, high):
    """Sorted, they lie on a straight line; Kolmogorov's statistic of 1000 exceeds 0.05 once in a hundred."""
    expected = np.linspace(low, high, len(values))
    np.testing.assert_allclose(np.sort(values), expected, atol=0.05 * (high - low))


def chroma(images):
    """Of plain images: [N]."""
    return np.ptp(images[:, 0, 0], axis=-1)


def hue_shift(images, color):
    """Of plain images of one color, in turns: [N]."""
    hues = np.array([colorsys.rgb_to_hsv(*pixel)[0] for pixel in images[:, 0, 0]])
    return (hues - colorsys.rgb_to_hsv(*color)[0] + 0.5) % 1 - 0.5


class TestInceptionColors:
    COLOR = (0.6, 0.5, 0.45)

    def draws(self, count, kind="inception"):
        """(delta, saturation, shift, contrast): [count] each."""
        delta = augmented(count, plain(0.5), color=kind)[:, 0, 0, 0] - 0.5
        colored = augmented(count, plain(*self.COLOR), color=kind)
        pair = augmented(count, gray_pair(0.4, 0.6), color=kind)[:, 0]  # [N, W, 3]
        contrast = (pair[:, -1, 0] - pair[:, 0, 0]) / 0.2
        return delta, chroma(colored) / 0.15, hue_shift(colored, self.COLOR), contrast

    def test_amounts_are_uniform_in_the_ranges_of_tensorflow(self):
        delta, saturation, shift, contrast = self.draws(1000)
        assert_uniform(delta, -32 / 255, 32 / 255)
        assert_uniform(saturation, 0.5, 1.5)
        assert_uniform(shift, -0.2, 0.2)
        assert_uniform(contrast, 0.5, 1.5)
        assert np.abs(np.corrcoef([delta, saturation, shift, contrast]) - np.eye(4)).max() < 0.12

    def test_contrast_comes_before_saturation_or_last(self):
        count = 1000
        image = photographs()[1] / 255
        actual = augmented(count, image, color="inception")
        delta, saturation, shift, contrast = (jnp.array(x, jnp.float32) for x in self.draws(count))
        start = adjust_brightness(jnp.array([image] * count, jnp.float32), delta)
        last = adjust_hue(adjust_saturation(start, saturation), shift)
        last = adjust_contrast(last, contrast)
        first = adjust_saturation(adjust_contrast(start, contrast), saturation)
        first = adjust_hue(first, shift)
        errors = np.array([np.abs(actual - np.clip(x, 0, 1)).max((1, 2, 3)) for x in (last, first)])
        assert errors.min(0).max() < 1e-4 < np.median(errors.max(0))
        assert 420 < (errors[0] < errors[1]).sum() < 580  # five standard deviations

    def test_fast_mode_is_brightness_then_saturation(self):
        count, kind = 50, "inception_fast"
        delta, saturation, shift, contrast = self.draws(count, kind)
        np.testing.assert_allclose(shift, 0, atol=1e-5)
        np.testing.assert_allclose(contrast, 1, atol=1e-5)
        image = photographs()[0] / 255
        bright = (image + delta[:, None, None, None]).astype(np.float32)
        expected = adjust_saturation(jnp.array(bright), jnp.array(saturation, jnp.float32))
        actual = augmented(count, image, color=kind)
        np.testing.assert_allclose(actual, np.clip(expected, 0, 1), atol=1e-5)
        assert np.ptp(saturation) > 0.8 and np.ptp(delta) > 0.2


class TestColorJitter:
    SETTINGS = types.MappingProxyType(
        {"color": "jitter", "brightness": 0.8, "contrast": 0.4, "saturation": 0.5, "hue": 0.2}
    )
    COLOR = (0.3, 0.25, 0.2)

    def augmented(self, image):
        return augmented(1000, image, **self.SETTINGS)

    def draws(self):
        """(brightness, contrast, saturation, shift): [1000] each."""
        brightness = self.augmented(plain(0.2))[:, 0, 0, 0] / 0.2
        pair = self.augmented(gray_pair(0.1, 0.3))[:, 0]  # [N, W, 3]
        contrast = (pair[:, -1, 0] - pair[:, 0, 0]) / 0.2 / brightness
        colored = self.augmented(plain(*self.COLOR))
        return brightness, contrast, chroma(colored) / 0.1 / brightness / contrast, hue_shift(colored, self.COLOR)

    def test_strength_is_the_width_of_the_range(self):
        brightness, contrast, saturation, shift = self.draws()
        assert_uniform(brightness, 0.2, 1.8)
        assert_uniform(contrast, 0.6, 1.4)
        assert_uniform(saturation, 0.5, 1.5)
        assert_uniform(shift, -0.2, 0.2)
        assert np.abs(np.corrcoef([brightness, contrast, saturation, shift]) - np.eye(4)).max() < 0.12

    def test_all_24_orders_occur(self):
        amounts = [jnp.array(x, jnp.float32) for x in self.draws()]
        functions = (jitter_brightness, jitter_contrast, jitter_saturation, adjust_hue)
        image = photographs()[0] / 255
        actual = self.augmented(image)
        errors = []
        for order in itertools.permutations(range(4)):
            images = jnp.array([image] * 1000, jnp.float32)
            for i in order:
                images = jnp.clip(functions[i](images, amounts[i]), 0, 1)
            errors.append(np.abs(actual - images).max((1, 2, 3)))
        errors = np.array(errors)  # [24, N]
        assert errors.min(0).max() < 1e-4
        assert np.bincount(errors.argmin(0), minlength=24).min() > 5  # some orders agree on some images

    def test_factors_are_not_negative_and_what_has_no_strength_is_left_out(self):
        settings = {"color": "jitter", "brightness": 2, "contrast": 0, "saturation": 0}
        image = gray_pair(0.1, 0.25) * np.array([0.5, 1.0, 0.8], np.float32)
        factors = augmented(1000, image, **settings) / image
        assert_uniform(factors[:, 0, 0, 0], 0, 3)
        np.testing.assert_allclose(np.ptp(factors, axis=(1, 2, 3)), 0, atol=1e-5)

    def test_without_strength_the_image_stays(self):
        image = photographs()[0] / 255
        settings = {"color": "jitter", "brightness": 0, "contrast": 0, "saturation": 0}
        np.testing.assert_array_equal(augmented(2, image, **settings), np.float32([image, image]))


class TestFlip:
    def test_half_of_the_images_are_mirrored(self):
        image = np.random.default_rng(0).random((SIZE, SIZE, 3), np.float32)
        results = [x.tobytes() for x in augmented(1000, image, flip=True)]
        mirrored = results.count(image[:, ::-1].tobytes())
        assert mirrored + results.count(image.tobytes()) == 1000
        assert 420 < mirrored < 580

    def test_gray_images_can_be_mirrored_and_mixed(self):
        images, targets, seeds, key = random_batch(16)
        images = images[..., :1]
        actual, _ = jitted(Augmentation(flip=True, mixup_alpha=1.0))(images, targets, seeds, key)
        assert actual.shape == images.shape and (actual != images).any()

    def test_without_the_flip_nothing_changes_by_default(self):
        batch = random_batch(3)
        for actual, expected in zip(jitted(Augmentation(flip=False))(*batch), batch[:2], strict=True):
            np.testing.assert_array_equal(actual, expected)


def assert_close(actual, expected, atol=1e-6):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=atol, rtol=0)


class TestSeeds:
    def test_results_move_with_the_pairs(self):
        *batch, key = random_batch(16)
        order = np.arange(16).reshape(8, 2)[[3, 0, 2, 1, 7, 5, 6, 4]].ravel()
        expected = jitted(EVERYTHING)(*batch, key)
        assert_close(jitted(EVERYTHING)(*(x[order] for x in batch), key), [x[order] for x in expected], atol=0)

    def test_results_without_mixing_move_with_the_images(self):
        *batch, key = random_batch(16)
        augmentation, order = Augmentation(flip=True, color="inception"), np.random.default_rng(0).permutation(16)
        expected = jitted(augmentation)(*batch, key)
        assert_close(jitted(augmentation)(*(x[order] for x in batch), key), [x[order] for x in expected], atol=0)

    def test_halves_of_a_batch_become_what_they_become_in_it(self):
        *batch, key = random_batch(16)
        whole = jitted(EVERYTHING)(*batch, key)
        halves = [jitted(EVERYTHING)(*(x[part] for x in batch), key) for part in (slice(8), slice(8, 16))]
        assert_close([jnp.concatenate(parts) for parts in zip(*halves, strict=True)], whole)

    def test_seed_and_key_decide_and_nothing_else(self):
        images, targets, seeds, key = random_batch(4)
        images = jnp.tile(images[:1], (4, 1, 1, 1))
        run = jitted(Augmentation(flip=True, color="jitter"))
        first, _ = run(images, targets, jnp.array([5, 6, 5, 2**32 - 1], jnp.uint32), key)
        np.testing.assert_array_equal(first[0], first[2])
        assert len({np.array(x).tobytes() for x in first}) == 3
        other, _ = run(images, targets, seeds, jax.random.key(8))
        assert (other != run(images, targets, seeds, key)[0]).any()


class TestDevices:
    @pytest.mark.parametrize("augmentation", [EVERYTHING, Augmentation(color="inception")])
    def test_eight_devices_compute_the_same_without_a_word(self, augmentation):
        *batch, key = random_batch(16)
        expected = jitted(augmentation)(*batch, key)
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
        batch, key = jax.device_put(batch, split), jax.device_put(key, whole)
        run = jax.jit(augmentation, out_shardings=split).lower(*batch, key).compile()
        assert "all-" not in run.as_text() and "collective" not in run.as_text()
        assert_close(run(*batch, key), expected)


def pairs(x):
    """(the first, the second) of each pair."""
    return np.array(x[0::2]), np.array(x[1::2])


def mixed(count, **settings):
    """(own, other, result, own share) of `count` pairs of noise, from the side of the first image."""
    batch = random_batch(2 * count, classes=2)
    images, targets = jitted(Augmentation(flip=False, **settings))(*batch)
    np.testing.assert_allclose(targets.sum(-1), 1, atol=1e-6)
    (a, b), (first, second), (share, other_share) = pairs(batch[0]), pairs(images), pairs(targets)
    np.testing.assert_allclose(share[:, 0], other_share[:, 1], atol=1e-6)
    np.testing.assert_allclose(first + second, a + b, atol=1e-6)  # what one loses the other gets
    return a, b, first, share[:, 0]


class TestMixing:
    def test_mixup_is_the_weighted_mean(self):
        a, b, result, share = mixed(500, mixup_alpha=3.0)
        assert scipy.stats.kstest(share, scipy.stats.beta(3, 3).cdf).pvalue > 0.01
        share = share[:, None, None, None]
        np.testing.assert_allclose(result, share * a + (1 - share) * b, atol=3e-6)

    @pytest.mark.parametrize("alpha", [0.4, 0.5, 1.0, 3.0])
    def test_shares_are_beta_distributed(self, alpha):
        keys = jax.random.split(jax.random.key(0), 5000)
        shares = np.array(symmetric_beta(keys, alpha), np.float64)
        assert scipy.stats.kstest(shares, scipy.stats.beta(alpha, alpha).cdf).pvalue > 0.01
        assert shares.min() >= 0 and shares.max() <= 1

    def test_extreme_alphas_stay_finite(self):
        keys = jax.random.split(jax.random.key(0), 5000)
        from_center = np.abs(np.array(symmetric_beta(keys, 1e-3), np.float64) - 0.5)
        assert from_center.max() == 0.5 and (from_center > 0.499).mean() > 0.95
        np.testing.assert_allclose(symmetric_beta(keys, 1e6), 0.5, atol=0.01)

    def test_cutmix_pastes_a_box_and_counts_its_pixels(self):
        a, b, result, share = mixed(2000, cutmix_alpha=1.0)
        pasted = (result == b).all(-1)  # [N, H, W]
        assert ((result == a).all(-1) ^ pasted).all()
        np.testing.assert_allclose(share, 1 - pasted.mean((1, 2)), atol=1e-6)
        rows, columns = pasted.any(2), pasted.any(1)
        np.testing.assert_array_equal(pasted, rows[:, :, None] & columns[:, None, :])
        assert (np.abs(np.diff(rows, axis=1)).sum(1) <= 2).all()  # one stretch each
        assert (np.abs(np.diff(columns, axis=1)).sum(1) <= 2).all()
        inside = ~(rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1])
        assert (np.abs(rows.sum(1) - columns.sum(1))[inside] <= 1).all()  # of the image's shape

    def test_cutmix_boxes_have_the_area_drawn_and_lie_anywhere(self):
        """Of a uniform area 1 - share and a uniform centre, clipped at the edges."""
        rng = np.random.default_rng(0)
        side, center = np.sqrt(rng.random(100_000))[:, None], rng.random((100_000, 2))
        low, high = np.clip(center - side / 2, 0, 1), np.clip(center + side / 2, 0, 1)
        _, b, result, share = mixed(2000, cutmix_alpha=1.0)
        assert (1 - share).mean() == pytest.approx((high - low).prod(1).mean(), abs=0.02)
        pasted = (result == b).all(-1).mean(0)  # how often, [H, W]
        for row, column in [(0, 0), (0, 8), (8, 0), (8, 8), (15, 15), (4, 12)]:
            point = (np.array([row, column]) + 0.5) / SIZE
            expected = ((low < point) & (point < high)).all(1).mean()
            assert pasted[row, column] == pytest.approx(expected, abs=0.045)  # four standard deviations

    def test_with_both_a_pair_has_either(self):
        a, b, result, share = mixed(500, mixup_alpha=1.0, cutmix_alpha=1.0)
        is_cutmix = ((result == a) | (result == b)).all((1, 2, 3))
        blend = share[:, None, None, None] * a + (1 - share)[:, None, None, None] * b
        is_mixup = np.abs(result - blend).max((1, 2, 3)) < 1e-5
        assert (is_cutmix | is_mixup).all()
        assert 194 < (is_cutmix & ~is_mixup).sum() < 306  # five standard deviations

    def test_several_labels_are_mixed_alike(self):
        images, _, seeds, key = random_batch(2)
        _, (first, second) = jitted(Augmentation(mixup_alpha=1.0))(
            images, jnp.array([[1.0, 1, 0, 0], [0, 1, 1, 0]]), seeds, key
        )
        share = first[0]
        assert 0.01 < share < 0.99
        np.testing.assert_allclose(first, [share, 1, 1 - share, 0], atol=1e-6)
        np.testing.assert_allclose(second, [1 - share, 1, share, 0], atol=1e-6)


class TestErrors:
    @pytest.mark.parametrize(
        "name, value, remedy",
        [
            ("flip", 0.5, "boolean"),
            ("color", "sepia", "'inception_fast' or 'jitter'"),
            ("brightness", -0.1, "greater than or equal to 0"),
            ("contrast", float("nan"), "finite"),
            ("saturation", float("inf"), "finite"),
            ("hue", 0.6, "less than or equal to 0.5"),
            ("hue", -0.1, "greater than or equal to 0"),
            ("mixup_alpha", -1, "greater than or equal to 0"),
            ("cutmix_alpha", -1, "greater than or equal to 0"),
        ],
    )
    def test_a_value_out_of_range_is_named(self, name, value, remedy):
        with pytest.raises(SettingError, match=rf"^{name} = {value!r}: input should be .*{remedy}"):
            Augmentation(**{name: value})

    def test_colors_need_three_channels(self):
        images, *rest = random_batch(2)
        with pytest.raises(ValueError, match=r"^color = 'jitter': must be 'none' for images of 1 channels"):
            Augmentation(color="jitter")(images[..., :1], *rest)

    @pytest.mark.parametrize("name", ["mixup_alpha", "cutmix_alpha"])
    def test_mixing_needs_an_even_batch(self, name):
        with pytest.raises(ValueError, match=r"^batch size = 3: must be even"):
            Augmentation(**{name: 1.0})(*random_batch(3))

    def test_whether_it_mixes_is_known(self):
        assert EVERYTHING.mixes and Augmentation(cutmix_alpha=1.0).mixes and Augmentation(mixup_alpha=0.1).mixes
        assert not Augmentation(flip=True, color="inception").mixes
