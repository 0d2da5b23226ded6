"""Datasets that need no files: handwritten digits, several digits on one canvas, and noise."""

import dataclasses

import numpy as np

from xception_jax.data.dataset import ArraySource, Dataset

CANVAS = 24  # height and width of a canvas of `digits_multilabel` in pixels: four cells of 12 x 12


def digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, in ten classes: 1,437 for training, 360 for validation.

    These are the test images of the UCI dataset of Alpaydin and Kaynak (1998), split at random with a fixed seed,
    so that each class has the same share of both parts.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    table = load_digits()
    images = np.round(table.images * (255 / 16)).astype(np.uint8)[..., None]  # [N, 8, 8, 1], from 0..16
    parts = train_test_split(images, table.target, test_size=360, stratify=table.target, random_state=0)
    train_images, held_out_images, train_labels, held_out_labels = parts
    return Dataset(
        train=ArraySource(train_images, train_labels),
        validation=ArraySource(held_out_images, held_out_labels),
        class_names=tuple(str(name) for name in table.target_names),
        model_settings={"in_channels": 1},
    )


def digits_multilabel() -> Dataset:
    """Canvases of 24 x 24 pixels with one to four of `digits`; the labels are the set of digits present.

    8,192 canvases show training digits and 1,024 show validation digits; they are the same in every run.
    """
    single = digits()
    train, validation = _compose(single.train, 8192, seed=0), _compose(single.validation, 1024, seed=1)
    return dataclasses.replace(single, train=train, validation=validation, multilabel=True)


def _compose(digits: ArraySource, count: int, *, seed: int) -> ArraySource:
    """`count` canvases; each digit has a cell of its own and lies anywhere within it."""
    rng = np.random.default_rng(seed)
    images, labels = np.zeros((count, CANVAS, CANVAS, 1), np.uint8), []
    size, cell = digits.images.shape[1], CANVAS // 2
    for image in images:
        chosen = rng.integers(len(digits), size=rng.integers(1, 5))
        for place, index in zip(rng.permutation(4), chosen, strict=False):
            top, left = rng.integers(cell - size + 1, size=2) + cell * np.array(divmod(place, 2))
            image[top : top + size, left : left + size] = digits.images[index]
        labels.append(tuple(sorted({int(digits.labels[index]) for index in chosen})))
    return ArraySource(images, tuple(labels))


def synthetic(image_size: int) -> Dataset:
    """Noise in 1,000 classes, for measuring speed without reading: 256 images for training, 64 for validation.

    Args:
      image_size: height and width in pixels.
    """
    rng = np.random.default_rng(0)
    noise = rng.integers(256, size=(64, image_size, image_size, 3), dtype=np.uint8)

    def part(count: int) -> ArraySource:
        return ArraySource(noise[np.arange(count) % len(noise)], rng.integers(1000, size=count))

    return Dataset(part(256), part(64), class_names=tuple(f"class {i}" for i in range(1000)))
