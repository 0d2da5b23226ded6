"""Augmentation on the host and the order of batches, against windows cut with numpy and plain calls."""

import gc
import itertools
import multiprocessing
import os
import pathlib
import time

import absl.flags
import numpy as np
import pytest
from PIL import Image

from xception_jax import data
from xception_jax.data.images import randaugment
from xception_jax.data.images.resizing import resize
from xception_jax.data.images.transforms import random_box


def random_image(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(256, size=(height, width, channels), dtype=np.uint8)


class TestRandomBox:
    @pytest.mark.parametrize("height, width", [(100, 100), (90, 160), (300, 200)])
    def test_boxes_stay_inside_and_cover_their_ranges(self, height, width):
        rng, limits = np.random.default_rng(0), {"area": (0.08, 1.0), "aspect": (3 / 4, 4 / 3)}
        boxes = np.array([random_box(height, width, rng, **limits) for _ in range(2000)])
        left, top, right, bottom = boxes.T
        assert left.min() == 0 and top.min() == 0 and right.max() == width and bottom.max() == height
        w, h = right - left, bottom - top
        assert w.min() > 0 and h.min() > 0
        area, aspect = w * h / (height * width), w / h
        assert 0.07 < area.min() < 0.1 and 0.7 < area.max() <= 1
        assert 0.72 < aspect.min() < 0.78 and 1.28 < aspect.max() < 1.38  # sides are whole pixels

    def test_areas_are_uniform_and_aspects_log_uniform_where_all_fit(self):
        rng = np.random.default_rng(0)
        boxes = [random_box(400, 400, rng, area=(0.1, 0.5), aspect=(1 / 2, 2)) for _ in range(2000)]
        w, h = np.array([(right - left, bottom - top) for left, top, right, bottom in boxes]).T
        np.testing.assert_allclose(np.sort(w * h / 400**2), np.linspace(0.1, 0.5, 2000), atol=0.02)
        np.testing.assert_allclose(np.sort(np.log2(w / h)), np.linspace(-1, 1, 2000), atol=0.1)

    @pytest.mark.parametrize(
        "height, width, box",
        [(30, 1000, (480, 0, 520, 30)), (1000, 30, (0, 480, 30, 520)), (60, 60, (0, 0, 60, 60))],
    )
    def test_where_none_fits_it_is_the_largest_central_one(self, height, width, box):
        rng, limits = np.random.default_rng(0), {"area": (1.1, 1.2), "aspect": (3 / 4, 4 / 3)}
        assert random_box(height, width, rng, **limits) == pytest.approx(box)


def augmented(count, image, **settings):
    """What `count` random numbers in turn make of one image."""
    transform = data.TrainTransform(**{"image_size": len(image), "resize": "bilinear"} | settings)
    element = {"image": image, "label": 7}
    results = [transform.random_map(element, np.random.default_rng(seed)) for seed in range(count)]
    assert all(result["label"] == 7 for result in results)
    return [result["image"] for result in results]


class TestTrainTransform:
    @pytest.mark.parametrize("crop", ["none", "pad", "random_resized"])
    def test_the_same_numbers_make_the_same_image(self, crop):
        image = random_image(20, 30)
        first, second = (augmented(20, image, crop=crop, image_size=12) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert {x.shape for x in first} == {(12, 12, 3)} and first[0].dtype == np.uint8
        distinct = len({x.tobytes() for x in first})
        assert distinct == 1 if crop == "none" else distinct > 10

    def test_padding_and_cropping_gives_every_window(self):
        image = random_image(6, 6, 1)
        padded = np.zeros((10, 10, 1), np.uint8)
        padded[2:8, 2:8] = image
        windows = {padded[i : i + 6, j : j + 6].tobytes() for i in range(5) for j in range(5)}
        crops = augmented(500, image, crop="pad", pad_pixels=2)
        assert {crop.tobytes() for crop in crops} == windows

    def test_without_crop_the_image_is_resized(self):
        image = random_image(10, 14)
        (actual,) = augmented(1, image, crop="none", image_size=5, resize="pillow_bilinear")
        np.testing.assert_array_equal(actual, Image.fromarray(image).resize((5, 5), Image.Resampling.BILINEAR))

    def test_the_random_box_has_the_least_area(self):
        ramp = np.arange(100, dtype=np.uint8)[:, None, None].repeat(100, 1)  # rows tell the height of the box
        for min_area, least in ((0.9, 80), (0.05, 15)):
            crops = augmented(200, ramp, crop="random_resized", area=(min_area, 1.0), resize="nearest")
            heights = [int(x.max()) - int(x.min()) + 1 for x in crops]
            assert least < min(heights) < least + 15

    def test_inception_draws_one_of_four_interpolations(self):
        image = random_image(20, 30)
        results = {x.tobytes() for x in augmented(60, image, crop="none", resize="inception", image_size=12)}
        methods = ("bilinear", "nearest", "bicubic", "area")
        assert results == {resize(image, (12, 12), method=method).tobytes() for method in methods}

    def test_randaugment_follows_the_crop(self):
        image = random_image(8, 8)
        settings = {"crop": "none", "randaugment_ops": 2, "randaugment_magnitude": 7.0}
        expected = [
            randaugment.rand_augment(image, np.random.default_rng(seed), num_ops=2, magnitude=7.0)
            for seed in range(9)
        ]
        np.testing.assert_array_equal(augmented(9, image, **settings), expected)

    def test_every_image_gets_a_seed_of_its_own(self):
        transform = data.TrainTransform(image_size=6, resize="bilinear", crop="none")
        element = {"image": random_image(6, 6), "label": 0}
        seeds = [transform.random_map(element, np.random.default_rng(n))["seed"] for n in range(50)]
        assert len(set(seeds)) == 50 and {seed.dtype.name for seed in seeds} == {"uint32"}


def numbered_source(length):
    """Random images whose labels are 0, 1, 2, ..."""
    return data.ArraySource(random_image(length, 36).reshape(length, 6, 6, 3)[..., :1], np.arange(length))


TRAIN = data.TrainTransform(image_size=6, resize="bilinear", crop="pad", pad_pixels=2)
EVALUATE = data.EvaluationTransform(image_size=6, resize="bilinear", crop="central", crop_fraction=1.0)


def train(count, length=10, reader=None, **settings):
    """The first `count` batches."""
    reader = reader or data.Reader(numbered_source(length), substitute=True)
    batches = data.train_batches(reader, TRAIN, **{"batch_size": 4, "seed": 0} | settings)
    found = list(itertools.islice(batches, count))
    if hasattr(batches, "close"):
        batches.close()
    return found


def assert_equal_batches(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert a.keys() == e.keys() == {"image", "label", "seed", "unreadable"}
        for name in e:
            np.testing.assert_array_equal(a[name], e[name], strict=True)


def joined(shares):
    """Batches of several processes as those of one."""
    return [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in shares]


class TestTrainBatches:
    def test_every_epoch_is_another_permutation(self):
        batches = train(15)
        assert {(b["image"].shape, b["image"].dtype.name) for b in batches} == {((4, 6, 6, 1), "uint8")}
        assert {(b["label"].shape, b["label"].dtype.name) for b in batches} == {((4,), "int32")}
        epochs = np.concatenate([b["label"] for b in batches]).reshape(6, 10)
        np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(10), (6, 1)))
        assert len({tuple(epoch) for epoch in epochs} | {tuple(range(10))}) == 7

    def test_labels_stay_with_their_images(self):
        source = numbered_source(10)
        plain = data.TrainTransform(image_size=6, resize="bilinear", crop="none")
        for batch in itertools.islice(data.train_batches(data.Reader(source), plain, batch_size=4, seed=0), 5):
            np.testing.assert_array_equal(batch["image"], source.images[batch["label"]])

    def test_several_labels_become_zeros_and_ones(self):
        labels = [(0, 2), (), (1,), (0, 1, 2)]
        source = data.ArraySource(random_image(4, 36).reshape(4, 6, 6, 3), labels)
        (batch,) = train(1, reader=data.Reader(source, classes=3, substitute=True))
        assert batch["label"].dtype == np.uint8
        assert sorted(map(tuple, batch["label"])) == [(0, 0, 0), (0, 1, 0), (1, 0, 1), (1, 1, 1)]

    def test_augmentation_differs_between_epochs(self):
        seen = {label: set() for label in range(10)}
        seeds = set()
        for batch in train(10):
            for image, label in zip(batch["image"], batch["label"], strict=True):
                seen[int(label)].add(image.tobytes())
            seeds |= set(batch["seed"].tolist())
        assert all(len(images) > 1 for images in seen.values()) and len(seeds) == 40

    def test_the_seed_decides_order_and_augmentation(self):
        assert_equal_batches(train(5), train(5))
        order, other_order = (np.concatenate([b["label"] for b in train(5, seed=seed)]) for seed in (0, 1))
        assert (order != other_order).any()
        (batch,), (other,) = (train(1, length=1, seed=seed) for seed in (0, 1))
        assert (batch["image"] != other["image"]).any()

    @pytest.mark.parametrize("start_step", [1, 2, 7])
    def test_a_later_start_continues_the_unbroken_order(self, start_step):
        assert_equal_batches(train(5, start_step=start_step), train(5 + start_step)[start_step:])

    @pytest.mark.parametrize("num_threads", [1, 5])
    def test_threads_do_not_change_the_order(self, num_threads):
        assert_equal_batches(train(6, num_threads=num_threads), train(6))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Twelve JPEG files of noise in sizes of their own, the fifth cut short; their labels tell which is which."""
    folder = tmp_path_factory.mktemp("files")
    names = [f"{i}.jpg" for i in range(12)]
    for i, name in enumerate(names):
        Image.fromarray(random_image(20 + i, 30 - i, seed=i)).save(folder / name)
    (folder / "5.jpg").write_bytes((folder / "5.jpg").read_bytes()[:400])
    return data.ImageFiles.make(folder, names, np.arange(12, dtype=np.int32))


@pytest.mark.parametrize("processes, workers, start_step", [(2, 0, 0), (2, 0, 3), (4, 0, 1), (1, 8, 2)])
def test_processes_and_workers_do_not_change_the_global_batch(files, processes, workers, start_step):
    """Records, pixels and seeds, of augmented JPEG files with one that cannot be read."""
    absl.flags.FLAGS.mark_as_parsed()
    reader = data.Reader(files, substitute=True)
    settings = {"reader": reader, "batch_size": 8, "start_step": start_step}
    shares = [
        train(4, process_index=i, process_count=processes, num_workers=workers, **settings)
        for i in range(processes)
    ]
    assert {len(batch["label"]) for share in shares for batch in share} == {8 // processes}
    whole = train(4, **settings)
    assert_equal_batches(joined(zip(*shares, strict=True)), whole)
    assert 5 in np.concatenate([batch["unreadable"] for batch in whole])


class TestUnreadableImages:
    def test_training_goes_on_with_the_next_image_and_says_which_it_was(self, files):
        reader = data.Reader(files, substitute=True)
        assert [int(reader[i]["unreadable"]) for i in range(12)] == [-1] * 5 + [5] + [-1] * 6
        substitute = (5 + 7919) % 12
        np.testing.assert_array_equal(reader[5]["image"], reader[substitute]["image"])
        assert reader[5]["label"] == substitute

    def test_neighbors_that_failed_together_do_not_end_a_run(self, files, tmp_path):
        """Twenty in a row of a thousand: a download that went wrong."""
        paths = [f"gone/{i}.jpg" if 300 <= i < 320 else f"{i % 5}.jpg" for i in range(1000)]
        reader = data.Reader(data.ImageFiles.make(files.root, paths, np.arange(1000)), substitute=True)
        assert [int(reader[i]["unreadable"]) for i in range(299, 322)] == [-1, *range(300, 320), -1, -1]

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_vanished_disk_is_an_error(self, tmp_path, workers):
        absl.flags.FLAGS.mark_as_parsed()
        gone = data.ImageFiles.make(tmp_path / "disk", [f"{i}.jpg" for i in range(30)], np.arange(30))
        with pytest.raises(ValueError, match=r"disk/.*: No such file.*9 before.*is the disk there"):
            train(1, reader=data.Reader(gone, substitute=True), num_workers=workers)

    def test_an_evaluation_leaves_none_out(self, files):
        with pytest.raises(data.UnreadableImage, match=r"cannot read image .*5\.jpg"):
            list(data.evaluation_batches(data.Reader(files), EVALUATE, batch_size=5))


class TestEvaluationBatches:
    @pytest.mark.parametrize(
        "batch_size, processes", [*((b, 1) for b in range(1, 9)), *((b, 3) for b in (3, 6, 9))]
    )
    def test_every_example_counts_once(self, batch_size, processes):
        source = numbered_source(7)
        shares = [
            list(
                data.evaluation_batches(
                    data.Reader(source), EVALUATE, batch_size=batch_size, process_index=i, process_count=processes
                )
            )
            for i in range(processes)
        ]
        assert {len(share) for share in shares} == {-(-7 // batch_size)}
        labels = []
        for batch in itertools.chain(*shares):
            assert {name: len(array) for name, array in batch.items()} == dict.fromkeys(
                ("image", "label", "mask"), batch_size // processes
            )
            assert (batch["label"].dtype, batch["mask"].dtype) == (np.int32, np.float32)
            assert set(batch["mask"]) <= {0, 1}
            np.testing.assert_array_equal(batch["image"], source.images[batch["label"]])
            labels += list(batch["label"][batch["mask"] == 1])
        assert (labels if processes == 1 else sorted(labels)) == list(range(7))

    def test_workers_do_not_change_it(self):
        absl.flags.FLAGS.mark_as_parsed()
        reader = data.Reader(numbered_source(7))
        plain, workers = (
            list(data.evaluation_batches(reader, EVALUATE, batch_size=4, num_workers=n)) for n in (0, 2)
        )
        for a, b in zip(plain, workers, strict=True):
            assert a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


class TestResources:
    def test_files_stay_closed_and_memory_flat_over_epochs(self, files):
        reader = data.Reader(files, substitute=True)
        batches = data.train_batches(reader, TRAIN, batch_size=6, seed=0)
        usage = []
        for step in range(700):  # 350 epochs
            next(batches)
            if step in (200, 699):
                status = pathlib.Path("/proc/self/status").read_text()
                resident = int(status.split("VmRSS:")[1].split()[0])  # kB
                usage.append((len(os.listdir("/proc/self/fd")), resident))
        assert usage[1][0] <= usage[0][0] + 4  # threads read ahead, a file each
        assert usage[1][1] - usage[0][1] < 8_000

    def test_workers_leave_nothing_behind(self, files):
        absl.flags.FLAGS.mark_as_parsed()
        before = set(os.listdir("/dev/shm"))
        train(3, reader=data.Reader(files, substitute=True), batch_size=6, num_workers=2)
        assert not multiprocessing.active_children()
        deadline = time.monotonic() + 20
        while left := set(os.listdir("/dev/shm")) - before:  # a thread removes what was shared
            gc.collect()
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
