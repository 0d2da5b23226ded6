"""Transforms of the host, order of batches, and inputs of images, against numpy, Pillow and plain calls."""

import dataclasses
import gc
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import pathlib
import signal
import tarfile
import time

import absl.flags
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from xception_jax import data
from xception_jax.data.images import randaugment
from xception_jax.data.images.augment import Augmentation
from xception_jax.data.images.inputs import ImageData, Images, Preprocessing, of_model
from xception_jax.data.images.resizing import resize
from xception_jax.data.images.transforms import Decode, EvaluationTransform, TrainTransform, random_box
from xception_jax.errors import SettingError


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


def of_channels(channels):
    """A dataset of images with so many channels, and no examples."""
    return data.Dataset((), (), ("a", "b"), model_settings={"in_channels": channels})


def augmented(count, image, **settings):
    """What `count` random numbers in turn make of one image."""
    transform = TrainTransform(**{"image_size": len(image), "resize": "bilinear"} | settings)
    example = {"image": image, "label": 7}
    results = [transform(example, np.random.default_rng(seed)) for seed in range(count)]
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


def numbered_source(length):
    """Random images whose labels are 0, 1, 2, ..."""
    return data.ArraySource(random_image(length, 36).reshape(length, 6, 6, 3)[..., :1], np.arange(length))


DECODE = Decode(orientation=False, background="black")
TRAIN = TrainTransform(image_size=6, resize="bilinear", crop="pad", pad_pixels=2)
EVALUATE = EvaluationTransform(image_size=6, resize="bilinear", crop="central", crop_fraction=1.0)


def reader(source, **settings):
    """Reads a source as training does: images that cannot be read are replaced."""
    return data.Reader(source, DECODE, **{"substitute": True} | settings)


def train(count, length=10, source=None, **settings):
    """The first `count` batches."""
    examples = source or reader(numbered_source(length))
    batches = data.train_batches(examples, TRAIN, **{"batch_size": 4, "seed": 0} | settings)
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

    def test_order_seeds_and_pixels_are_those_of_version_0_1(self):
        batches = train(4)
        assert [b["label"].tolist() for b in batches] == [[1, 2, 4, 5], [9, 7, 8, 6], [0, 3, 9, 6], [1, 8, 2, 0]]
        assert batches[0]["seed"].tolist() == [3633160328, 3655189734, 2337254674, 3549690707]
        assert batches[3]["seed"].tolist() == [3324263720, 1486225726, 2319888978, 1223758166]
        pixels = b"".join(b["image"].tobytes() for b in batches)
        assert hashlib.sha256(pixels).hexdigest()[:16] == "3b8596e40c08b3c0"

    def test_labels_stay_with_their_images(self):
        source = numbered_source(10)
        plain = TrainTransform(image_size=6, resize="bilinear", crop="none")
        batches = data.train_batches(reader(source, substitute=False), plain, batch_size=4, seed=0)
        for batch in itertools.islice(batches, 5):
            assert batch.keys() == {"image", "label", "seed"}
            np.testing.assert_array_equal(batch["image"], source.images[batch["label"]])

    def test_several_labels_become_zeros_and_ones(self):
        labels = [(0, 2), (), (1,), (0, 1, 2)]
        source = data.ArraySource(random_image(4, 36).reshape(4, 6, 6, 3), labels)
        (batch,) = train(1, source=reader(source, classes=3))
        assert batch["label"].dtype == np.uint8
        assert sorted(map(tuple, batch["label"])) == [(0, 0, 0), (0, 1, 0), (1, 0, 1), (1, 1, 1)]

    def test_augmentation_differs_between_epochs(self):
        seen = {label: set() for label in range(10)}
        seeds = set()
        for batch in train(10):
            for image, label in zip(batch["image"], batch["label"], strict=True):
                seen[int(label)].add(image.tobytes())
            seeds |= set(batch["seed"].tolist())
            assert batch["seed"].dtype == np.uint32
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
    settings = {"source": reader(files), "batch_size": 8, "start_step": start_step}
    shares = [
        train(4, process_index=i, process_count=processes, num_workers=workers, **settings)
        for i in range(processes)
    ]
    assert {len(batch["label"]) for share in shares for batch in share} == {8 // processes}
    whole = train(4, **settings)
    assert_equal_batches(joined(zip(*shares, strict=True)), whole)
    assert 5 in np.concatenate([batch["unreadable"] for batch in whole])


@dataclasses.dataclass(frozen=True)
class Scarred:
    """Examples whose labels are their indices; those in `bad` cannot be read, and `asked` lists all attempts."""

    length: int
    bad: range
    asked: list

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.asked.append(index)
        if index in self.bad:
            raise data.UnreadableExample(self.name(index), "is empty")
        return {"image": np.zeros((2, 2, 3), np.uint8), "label": index}

    def name(self, index):
        return f"{index}.jpg"


class TestUnreadableImages:
    def test_training_goes_on_with_another_image_and_says_which_was_replaced(self, files):
        examples = reader(files)
        assert [int(examples[i]["unreadable"]) for i in range(12)] == [-1] * 5 + [5] + [-1] * 6
        substitute = (5 + 7919) % 12
        np.testing.assert_array_equal(examples[5]["image"], examples[substitute]["image"])
        assert examples[5]["label"] == substitute

    @pytest.mark.parametrize("length", [7919, 2 * 7919, 7907, 7918, 10])
    def test_ten_attempts_are_of_ten_examples_whatever_their_number(self, length):
        """7,919 is the distance between attempts elsewhere."""
        asked = []
        with pytest.raises(data.UnreadableExample, match="9 other examples"):
            reader(Scarred(length, range(length), asked))[3]
        assert asked[0] == 3 and len(set(asked)) == len(asked) == 10

    def test_one_bad_file_of_7919_is_replaced(self):
        example = reader(Scarred(7919, range(50, 51), []))[50]
        assert example["label"] != 50 and example["unreadable"] == 50

    def test_why_an_example_was_replaced_can_be_asked(self, files):
        assert "5.jpg: " in reader(files).why_unreadable(5) and "repair or remove" in reader(files).why_unreadable(
            5
        )
        assert "4.jpg: it failed once, and now it can be read" in reader(files).why_unreadable(4)

    def test_neighbors_that_failed_together_do_not_end_a_run(self, files, tmp_path):
        """Twenty in a row of a thousand: a download that went wrong."""
        paths = [f"gone/{i}.jpg" if 300 <= i < 320 else f"{i % 5}.jpg" for i in range(1000)]
        examples = reader(data.ImageFiles.make(files.root, paths, np.arange(1000)))
        assert [int(examples[i]["unreadable"]) for i in range(299, 322)] == [-1, *range(300, 320), -1, -1]

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_vanished_disk_is_an_error(self, tmp_path, workers):
        absl.flags.FLAGS.mark_as_parsed()
        gone = data.ImageFiles.make(tmp_path / "disk", [f"{i}.jpg" for i in range(30)], np.arange(30))
        with pytest.raises(ValueError, match=r"disk/.*: No such file.*9 other examples.*is the disk there"):
            train(1, source=reader(gone), num_workers=workers)

    def test_an_evaluation_leaves_none_out(self, files):
        with pytest.raises(data.UnreadableExample, match=r"cannot read .*5\.jpg"):
            list(data.evaluation_batches(reader(files, substitute=False), EVALUATE, batch_size=5))


class TestEvaluationBatches:
    @pytest.mark.parametrize(
        "batch_size, processes", [*((b, 1) for b in range(1, 9)), *((b, 3) for b in (3, 6, 9))]
    )
    def test_every_example_counts_once(self, batch_size, processes):
        source = numbered_source(7)
        examples, sizes = reader(source, substitute=False), {"batch_size": batch_size, "process_count": processes}
        shares = [
            list(data.evaluation_batches(examples, EVALUATE, process_index=i, **sizes)) for i in range(processes)
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
        examples = reader(numbered_source(7), substitute=False)
        plain, workers = (
            list(data.evaluation_batches(examples, EVALUATE, batch_size=4, num_workers=n)) for n in (0, 2)
        )
        for a, b in zip(plain, workers, strict=True):
            assert a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


class TestResources:
    def test_files_stay_closed_and_memory_flat_over_epochs(self, files):
        batches = data.train_batches(reader(files), TRAIN, batch_size=6, seed=0)
        usage = []
        for step in range(700):  # 350 epochs
            next(batches)
            if step in (200, 699):
                status = pathlib.Path("/proc/self/status").read_text()
                resident = int(status.split("VmRSS:")[1].split()[0])  # kB
                usage.append((len(os.listdir("/proc/self/fd")), resident))
        assert usage[1][0] <= usage[0][0] + 4  # threads read ahead, a file each
        assert usage[1][1] - usage[0][1] < 8_000

    def test_workers_leave_a_sigterm_to_the_main_process(self, files):
        """Slurm and systemd send it to all processes of a run, which then saves a checkpoint and ends."""
        absl.flags.FLAGS.mark_as_parsed()
        batches = data.train_batches(reader(files), TRAIN, batch_size=6, seed=0, num_workers=1)
        first = next(batches)
        assert multiprocessing.active_children()
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGTERM)
        later = [next(batches) for _ in range(20)]  # more than were read ahead
        batches.close()
        assert_equal_batches([first, *later], train(21, source=reader(files), batch_size=6))

    def test_workers_leave_nothing_behind(self, files):
        absl.flags.FLAGS.mark_as_parsed()
        before = set(os.listdir("/dev/shm"))
        train(3, source=reader(files), batch_size=6, num_workers=2)
        assert not multiprocessing.active_children()
        deadline = time.monotonic() + 20
        while left := set(os.listdir("/dev/shm")) - before:  # a thread removes what was shared
            gc.collect()
            assert time.monotonic() < deadline, left
            time.sleep(0.1)


RECORD = {
    "image_size": 5,
    "mean": (0.4, 0.45, 0.5),
    "std": (0.2, 0.25, 0.3),
    "crop": "central",
    "crop_fraction": 1.0,
    "resize": "pillow_bilinear",
}


def golden_preprocessing(name, step):
    """The record of a checkpoint that version 0.1 wrote."""
    golden = pathlib.Path(__file__).parent / "golden" / f"v0.1_{name}_finished.tar.xz"
    with tarfile.open(golden) as archive:
        return json.load(archive.extractfile(f"{name}/checkpoints/{step}/meta/metadata"))["preprocessing"]


class TestImages:
    @pytest.mark.parametrize("order", ["rgb", "bgr"])
    def test_each_channel_has_its_own_mean_and_deviation(self, order):
        """They follow the order of the model's channels, which is that of the input reversed for BGR."""
        pixels = random_image(4 * 5, 5).reshape(4, 5, 5, 3)
        inputs, targets = of_model(RECORD, channels=3, channel_order=order), jnp.eye(4)
        actual, same = jax.jit(lambda batch: inputs.prepare(batch, targets, train=False))({"image": pixels})
        channels = pixels[..., ::-1] if order == "bgr" else pixels
        expected = (channels / 255 - np.array(RECORD["mean"])) / np.array(RECORD["std"])
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(same, targets)
        assert actual.dtype == jnp.float32
        np.testing.assert_array_equal(inputs.normalize(jnp.float32(pixels) / 255), actual)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_one_number_is_for_all_channels(self, channels):
        inputs = of_model(RECORD | {"mean": 0.5, "std": 0.5}, channels=channels)
        assert inputs.preprocessing.mean == (0.5,) * channels and inputs.preprocessing.channels == channels
        pixels = random_image(5, 5, channels)[None]
        actual, _ = inputs.prepare({"image": jnp.asarray(pixels)}, jnp.ones((1, 2)), train=False)
        np.testing.assert_allclose(actual, pixels / 127.5 - 1, atol=1e-6)

    def test_augmentation_comes_before_the_normalization_and_in_training_only(self):
        augmentation = Augmentation(color="jitter", brightness=0, contrast=0, mixup_alpha=1.0)
        inputs = dataclasses.replace(of_model(RECORD, channels=3, channel_order="bgr"), augmentation=augmentation)
        pixels, targets = random_image(4 * 5, 5).reshape(4, 5, 5, 3), jnp.eye(4)
        seeds = jnp.arange(4, dtype=jnp.uint32)
        batch = {"image": jnp.asarray(pixels), "seed": seeds}
        mixed, shares = jax.jit(augmentation)(jnp.float32(pixels) / 255, targets, seeds, jax.random.key(0))
        expected = (np.asarray(mixed)[..., ::-1] - np.array(RECORD["mean"])) / np.array(RECORD["std"])
        actual, actual_shares = jax.jit(lambda *args: inputs.prepare(*args, train=True))(batch, targets)
        np.testing.assert_allclose(actual, expected, atol=1e-5)
        np.testing.assert_array_equal(actual_shares, shares)
        plain, same = inputs.prepare(batch, targets, train=False)
        expected = (pixels[..., ::-1] / 255 - np.array(RECORD["mean"])) / np.array(RECORD["std"])
        np.testing.assert_allclose(plain, expected, atol=1e-5)
        np.testing.assert_array_equal(same, targets)
        assert np.abs(actual - plain).max() > 0.1

    @pytest.mark.parametrize(
        "augmentation, block", [(None, 1), (Augmentation(), 1), (Augmentation(cutmix_alpha=0.5), 2)]
    )
    def test_pairs_that_are_mixed_stay_together(self, augmentation, block):
        assert dataclasses.replace(of_model(RECORD, channels=3), augmentation=augmentation).block == block

    def test_a_record_builds_the_same_inputs_again(self):
        changes = {"channel_order": "bgr", "label_offset": 1, "exif_orientation": True, "background": "white"}
        inputs = of_model(RECORD, channels=3, **changes)
        record = json.loads(json.dumps(inputs.record()))
        assert record == RECORD | changes | {"mean": [0.4, 0.45, 0.5], "std": [0.2, 0.25, 0.3], "channels": 3}
        assert Images.from_record(record) == inputs and inputs.label_offset == 1

    @pytest.mark.parametrize(
        "name, step, size, fraction", [("xception_digits", 4, 8, 1.0), ("vgg_multilabel", 6, 16, 0.875)]
    )
    def test_records_of_version_0_1_have_one_number_for_all_channels(self, name, step, size, fraction):
        record = golden_preprocessing(name, step)
        assert (record["mean"], record["std"]) == (0.5, 0.5)
        expected = Preprocessing(
            image_size=size,
            mean=(0.5,),
            std=(0.5,),
            channel_order="rgb",
            label_offset=0,
            exif_orientation=False,
            background="black",
            crop="central",
            crop_fraction=fraction,
            resize="bilinear",
        )
        assert Images.from_record(record | {"channels": 1}) == Images(preprocessing=expected)

    def test_spec_is_what_the_transforms_give(self):
        inputs = of_model(RECORD, channels=3)
        assert inputs.spec(7) == {"image": jax.ShapeDtypeStruct((7, 5, 5, 3), np.uint8)}
        found = inputs.from_user([random_image(9, 7)] * 7)
        assert jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), found) == inputs.spec(7)

    def test_images_of_a_user_are_cropped_and_resized_as_in_an_evaluation(self):
        inputs = of_model(RECORD, channels=3, crop_fraction=0.5)
        images = [random_image(20, 28), random_image(8, 8, seed=1)]
        boxes = [(7, 5, 21, 15), (2, 2, 6, 6)]  # left, top, right, bottom
        expected = [
            Image.fromarray(image).resize((5, 5), Image.Resampling.BILINEAR, box=box)
            for image, box in zip(images, boxes, strict=True)
        ]
        np.testing.assert_array_equal(inputs.from_user(images)["image"], expected)

    def test_gray_images_of_a_user_may_lack_the_axis_of_channels(self):
        inputs, image = of_model(RECORD | {"mean": 0.5, "std": 0.5}, channels=1), random_image(9, 9, 1)
        expected = inputs.from_user([image])["image"]
        assert expected.shape == (1, 5, 5, 1)
        np.testing.assert_array_equal(inputs.from_user([image[..., 0]])["image"], expected)
        np.testing.assert_array_equal(inputs.from_user(image[None])["image"], expected)

    @pytest.mark.parametrize(
        "raw, message",
        [
            ([], "images is empty: pass one image"),
            (np.zeros((4, 4, 3), np.uint8), r"shape \(4, 4, 3\), as one image has: pass \[image\]"),
            ([np.zeros((4, 4, 3))], "pixels are float64: pass uint8"),
            ([np.zeros((4, 4, 1), np.uint8)], r"shape \(4, 4, 1\): this model takes \[height, width, 3\]"),
            ([np.zeros((4, 4), np.uint8)], r"shape \(4, 4, 1\): this model takes"),
            ([np.zeros((0, 4, 3), np.uint8)], r"shape \(0, 4, 3\): this model takes"),
        ],
    )
    def test_what_is_no_list_of_images_is_refused(self, raw, message):
        with pytest.raises(ValueError, match=message):
            of_model(RECORD, channels=3).from_user(raw)

    @pytest.mark.parametrize("background, value", [("white", 255), ("black", 10)])
    def test_files_are_decoded_as_the_record_says(self, background, value):
        """A transparent pixel shows white, or its own color as if it were opaque."""
        file = io.BytesIO()
        Image.fromarray(np.full((3, 4, 4), [10, 10, 10, 0], np.uint8)).save(file, "png")
        decoded = of_model(RECORD, channels=3, background=background).decode(
            {"image": file.getvalue(), "label": 1}
        )
        np.testing.assert_array_equal(decoded["image"], np.full((3, 4, 3), value))

    def test_sections_become_transforms_and_a_record(self):
        settings = ImageData(
            image_size=6,
            train_crop="pad",
            train_resize="area",
            pad_pixels=2,
            min_area=0.2,
            max_area=0.9,
            min_aspect=0.5,
            max_aspect=1.5,
            randaugment_ops=1,
            randaugment_magnitude=3.0,
            eval_preset="slim",
            channel_order="bgr",
            label_offset=2,
            exif_orientation=True,
            background="white",
        )
        sections = {"data": settings, "augment": Augmentation(flip=False)}
        inputs = Images.from_sections(sections, of_channels(3), RECORD)
        assert inputs.augmentation == Augmentation(flip=False)
        assert inputs.train_transform == TrainTransform(
            image_size=6,
            resize="area",
            crop="pad",
            pad_pixels=2,
            area=(0.2, 0.9),
            aspect=(0.5, 1.5),
            randaugment_ops=1,
            randaugment_magnitude=3.0,
        )
        assert inputs.record() == RECORD | {
            "image_size": 6,
            "channels": 3,
            "channel_order": "bgr",
            "label_offset": 2,
            "exif_orientation": True,
            "background": "white",
            "crop": "central",
            "crop_fraction": 0.875,
            "resize": "tf1_bilinear",
        }
        evaluation = EvaluationTransform(image_size=6, crop="central", crop_fraction=0.875, resize="tf1_bilinear")
        assert inputs.eval_transform == evaluation
        assert inputs.decode == Decode(orientation=True, background="white")

    @pytest.mark.parametrize(
        "changes, augment, channels, message",
        [
            ({"min_area": 0.9, "max_area": 0.5}, {}, 3, r"^data\.min_area = 0\.9: .*max_area = 0\.5"),
            ({"min_aspect": 2.0, "max_aspect": 1.0}, {}, 3, r"^data\.min_aspect = 2\.0: .*max_aspect = 1\.0"),
            (
                {},
                {"color": "jitter"},
                1,
                r"^augment\.color = 'jitter': .*\(digits\) have no colors; set it to none",
            ),
        ],
    )
    def test_sections_that_do_not_fit_together_are_refused(self, changes, augment, channels, message):
        sections = {"data": ImageData(**changes), "augment": Augmentation(**augment)}
        with pytest.raises(SettingError, match=message):
            Images.from_sections(sections, of_channels(channels), RECORD | {"mean": 0.5, "std": 0.5})
