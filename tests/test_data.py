"""Sources, transforms and the order of batches, against files written with Pillow and windows cut with numpy."""

import itertools

import absl.flags
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from xception_jax import data
from xception_jax.data.sources import ArraySource, ImageFiles
from xception_jax.data.transforms import central_box, random_box, resize

COLORS = {"ant": (250, 10, 20), "bee": (30, 200, 40), "cat": (60, 70, 180)}


def random_image(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(256, size=(height, width, channels), dtype=np.uint8)


class TestDigits:
    def test_every_image_is_in_one_part(self):
        table, dataset = load_digits(), data.load("digits")
        assert (len(dataset.train), len(dataset.validation)) == (1437, 360)
        examples = [part[i] for part in (dataset.train, dataset.validation) for i in range(len(part))]
        assert all(e["image"].dtype == np.uint8 and e["image"].shape == (8, 8, 1) for e in examples)
        pixels = [np.round(image * 255 / 16).astype(np.uint8).tobytes() for image in table.images]
        assert len(set(pixels)) == 1797
        assert {e["image"].tobytes(): e["label"] for e in examples} == dict(zip(pixels, table.target, strict=True))

    def test_classes_keep_their_shares(self):
        dataset = data.load("digits")
        held_out, all_digits = np.bincount(dataset.validation.labels), np.bincount(load_digits().target)
        assert dataset.class_names == tuple("0123456789") and dataset.channels == 1
        np.testing.assert_allclose(held_out, all_digits * 360 / 1797, atol=1)

    def test_the_split_is_always_the_same(self):
        first, second = data.load("digits"), data.load("digits")
        np.testing.assert_array_equal(first.validation.images, second.validation.images)


def write_tree(root, splits=("train", "val"), classes=COLORS):
    """One plain PNG file a class, root/SPLIT/CLASS/plain.png."""
    for split, name in itertools.product(splits, classes):
        folder = root / split / name
        folder.mkdir(parents=True)
        Image.new("RGB", (6, 4), COLORS[name]).save(folder / "plain.png")
    return root


class TestImageFolder:
    def test_labels_are_in_the_order_of_names(self, tmp_path):
        dataset = data.load("image_folder", root=str(write_tree(tmp_path)))
        assert dataset.class_names == ("ant", "bee", "cat") and dataset.channels == 3
        for source in (dataset.train, dataset.validation):
            examples = [source[i] for i in range(len(source))]
            assert [e["label"] for e in examples] == [0, 1, 2]
            for example, color in zip(examples, COLORS.values(), strict=True):
                np.testing.assert_array_equal(example["image"], np.full((4, 6, 3), color, np.uint8), strict=True)

    @pytest.mark.parametrize(
        "mode, color, rgb",
        [
            ("L", 77, (77, 77, 77)),
            ("I;16", 77 * 257, (77, 77, 77)),
            ("1", 1, (255, 255, 255)),
            ("LA", (90, 128), (90, 90, 90)),
            ("RGBA", (10, 120, 230, 100), (10, 120, 230)),
            ("P", 0, (10, 120, 230)),
        ],
    )
    def test_every_png_becomes_rgb(self, tmp_path, mode, color, rgb):
        image = Image.new(mode, (5, 3), color)
        if mode == "P":
            image.putpalette((10, 120, 230))
        image.save(tmp_path / "x.png")
        pixels = ImageFiles((str(tmp_path / "x.png"),), (0,))[0]["image"]
        np.testing.assert_array_equal(pixels, np.full((3, 5, 3), rgb, np.uint8), strict=True)

    @pytest.mark.parametrize("mode, color", [("RGB", (200, 100, 50)), ("CMYK", (55, 155, 205, 0)), ("L", 120)])
    def test_every_jpeg_becomes_rgb(self, tmp_path, mode, color):
        Image.new(mode, (16, 8), color).save(tmp_path / "x.jpg", quality=95)
        pixels = ImageFiles((str(tmp_path / "x.jpg"),), (0,))[0]["image"]
        rgb = (120, 120, 120) if mode == "L" else (200, 100, 50)  # inks are 255 - light
        assert pixels.shape == (8, 16, 3) and pixels.dtype == np.uint8
        np.testing.assert_allclose(pixels.astype(int), np.broadcast_to(rgb, (8, 16, 3)), atol=3)

    def test_files_in_nested_folders_and_of_other_kinds(self, tmp_path):
        deep = write_tree(tmp_path) / "train" / "bee" / "2016" / "june"
        deep.mkdir(parents=True)
        Image.new("RGB", (3, 3), (1, 2, 3)).save(deep / "SCAN.PNG")
        (deep / "notes.txt").write_text("no image")
        train = data.load("image_folder", root=str(tmp_path)).train
        assert [train[i]["label"] for i in range(len(train))] == [0, 1, 1, 2]
        assert (1, 2, 3) in [tuple(train[i]["image"][0, 0]) for i in (1, 2)]

    @pytest.mark.parametrize("suffix", ["png", "jpg"])
    @pytest.mark.parametrize("kept", [0.0, 0.5, 0.9])
    def test_a_truncated_file_is_named(self, tmp_path, suffix, kept):
        path = tmp_path / f"cut.{suffix}"
        Image.fromarray(random_image(64, 64)).save(path)
        path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
        with pytest.raises(ValueError, match=f"cut.{suffix}.*remove"):
            ImageFiles((str(path),), (0,))[0]

    def test_a_corrupt_or_missing_file_is_named(self, tmp_path):
        (tmp_path / "bad.jpg").write_bytes(b"<html>404</html>")
        for name in ("bad.jpg", "gone.jpg"):
            with pytest.raises(ValueError, match=name):
                ImageFiles((str(tmp_path / name),), (0,))[0]

    def test_a_file_too_large_for_pillow_is_named(self, tmp_path, monkeypatch):
        Image.new("RGB", (20, 20)).save(tmp_path / "huge.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(ValueError, match=r"huge\.png"):
            ImageFiles((str(tmp_path / "huge.png"),), (0,))[0]

    def test_a_missing_split_is_named(self, tmp_path):
        write_tree(tmp_path, splits=("train",))
        with pytest.raises(ValueError, match="val/"):
            data.load("image_folder", root=str(tmp_path))

    def test_classes_of_one_split_only_are_named(self, tmp_path):
        write_tree(tmp_path, splits=("train",))
        write_tree(tmp_path, splits=("val",), classes=("ant", "cat"))
        with pytest.raises(ValueError, match=r"\['bee'\]"):
            data.load("image_folder", root=str(tmp_path))

    @pytest.mark.parametrize("classes", [(), ("ant",)])
    def test_a_split_without_images_is_named(self, tmp_path, classes):
        for split, name in itertools.product(("train", "val"), classes or ("",)):
            (tmp_path / split / name).mkdir(parents=True)
        with pytest.raises(ValueError, match=r"no image files.*train"):
            data.load("image_folder", root=str(tmp_path))

    @pytest.mark.parametrize(
        "name, root, message",
        [
            ("mnist", None, "'mnist'.*digits"),
            ("image_folder", None, "root = None"),
            ("digits", "/images", "'/images'.*None"),
        ],
    )
    def test_a_wrong_name_or_root_is_refused(self, name, root, message):
        with pytest.raises(ValueError, match=message):
            data.load(name, root=root)


class TestResize:
    @pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_against_pillow(self, method, channels):
        image, box = random_image(23, 31, channels), (2.5, 1.0, 28.0, 20.75)
        pillow = Image.fromarray(image.squeeze())
        for part in (None, box):
            expected = pillow.resize((12, 12), Image.Resampling[method.upper()], box=part)
            actual = resize(image, 12, method=method, box=part)
            np.testing.assert_array_equal(actual, np.asarray(expected).reshape(12, 12, channels), strict=True)

    def test_nearest_repeats_pixels(self):
        image = random_image(4, 4)
        np.testing.assert_array_equal(resize(image, 8, method="nearest"), image.repeat(2, 0).repeat(2, 1))

    def test_bilinear_halving_is_antialiased(self):
        image = random_image(4, 4, 1)
        triangle = np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7  # of support 2, around pixels 1 and 3
        expected = triangle @ image[..., 0] @ triangle.T
        np.testing.assert_allclose(resize(image, 2, method="bilinear")[..., 0], expected, atol=1)

    def test_an_image_of_the_right_size_stays_as_it_is(self):
        image = random_image(9, 9)
        np.testing.assert_array_equal(resize(image, 9, method="bicubic"), image)


@pytest.mark.parametrize(
    "height, width, fraction, box",
    [
        (256, 256, 0.875, (16, 16, 240, 240)),
        (480, 640, 0.5, (160, 120, 480, 360)),
        (7, 9, 1.0, (0, 0, 9, 7)),
        (10, 20, 0.25, (7.5, 3.75, 12.5, 6.25)),
    ],
)
def test_central_box(height, width, fraction, box):
    assert central_box(height, width, fraction) == pytest.approx(box, abs=1e-9)


def test_evaluation_keeps_the_center():
    element = {"image": random_image(8, 16), "label": 3, "mask": 1.0}
    actual = data.EvaluationTransform(image_size=4, crop_fraction=0.5, resize="nearest").map(element)
    np.testing.assert_array_equal(actual["image"], element["image"][2:6, 4:12][:, 1::2])
    assert (actual["label"], actual["mask"]) == (3, 1.0)


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
        assert distinct == 2 if crop == "none" else distinct > 10

    def test_padding_and_cropping_gives_every_window(self):
        image = random_image(6, 6, 1)
        padded = np.zeros((10, 10, 1), np.uint8)
        padded[2:8, 2:8] = image
        windows = {padded[i : i + 6, j : j + 6].tobytes() for i in range(5) for j in range(5)}
        crops = augmented(500, image, crop="pad", pad_pixels=2, flip=False)
        assert {crop.tobytes() for crop in crops} == windows

    def test_half_of_the_images_are_mirrored(self):
        image = random_image(6, 6)
        results = [x.tobytes() for x in augmented(400, image, crop="none")]
        mirrored = results.count(np.flip(image, axis=1).tobytes())
        assert mirrored + results.count(image.tobytes()) == 400
        assert 160 < mirrored < 240  # four standard deviations

    def test_without_crop_and_flip_the_image_is_resized(self):
        image = random_image(10, 14)
        (actual,) = augmented(1, image, crop="none", flip=False, image_size=5)
        np.testing.assert_array_equal(actual, Image.fromarray(image).resize((5, 5), Image.Resampling.BILINEAR))

    def test_the_random_box_has_the_least_area(self):
        ramp = np.arange(100, dtype=np.uint8)[:, None, None].repeat(100, 1)  # rows tell the height of the box
        for min_area, least in ((0.9, 80), (0.05, 15)):
            crops = augmented(200, ramp, crop="random_resized", min_area=min_area, flip=False, resize="nearest")
            heights = [int(x.max()) - int(x.min()) + 1 for x in crops]
            assert least < min(heights) < least + 15


def numbered_source(length):
    """Random images whose labels are 0, 1, 2, ..."""
    return ArraySource(random_image(length, 36).reshape(length, 6, 6, 3)[..., :1], np.arange(length))


TRAIN = data.TrainTransform(image_size=6, resize="bilinear", crop="pad", pad_pixels=2)
EVALUATE = data.EvaluationTransform(image_size=6, resize="bilinear", crop_fraction=1.0)


def train(count, length=10, **settings):
    """The first `count` batches."""
    batches = data.train_batches(numbered_source(length), TRAIN, **{"batch_size": 4, "seed": 0} | settings)
    return list(itertools.islice(batches, count))


def assert_equal_batches(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert a.keys() == e.keys() == {"image", "label"}
        np.testing.assert_array_equal(a["label"], e["label"], strict=True)
        np.testing.assert_array_equal(a["image"], e["image"], strict=True)


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
        plain = data.TrainTransform(image_size=6, resize="bilinear", crop="none", flip=False)
        for batch in itertools.islice(data.train_batches(source, plain, batch_size=4, seed=0), 5):
            np.testing.assert_array_equal(batch["image"], source.images[batch["label"]])

    def test_augmentation_differs_between_epochs(self):
        seen = {label: set() for label in range(10)}
        for batch in train(10):
            for image, label in zip(batch["image"], batch["label"], strict=True):
                seen[int(label)].add(image.tobytes())
        assert all(len(images) > 1 for images in seen.values())

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

    @pytest.mark.parametrize("processes, start_step", [(2, 0), (2, 3), (4, 1)])
    def test_processes_share_the_global_batch(self, processes, start_step):
        shares = [
            train(4, start_step=start_step, process_index=i, process_count=processes) for i in range(processes)
        ]
        for whole, *parts in zip(train(4, start_step=start_step), *shares, strict=True):
            assert all(len(part["label"]) == 4 // processes for part in parts)
            assert [pair for part in parts for pair in pairs(part)] == pairs(whole)

    def test_worker_processes_do_not_change_the_order(self):
        absl.flags.FLAGS.mark_as_parsed()
        assert_equal_batches(train(5, num_workers=2, num_threads=1, start_step=1), train(5, start_step=1))

    def test_a_corrupt_image_is_named(self, tmp_path):
        check_corrupt_image(
            tmp_path, lambda source: data.train_batches(source, TRAIN, batch_size=2, seed=0, start_step=3)
        )


def pairs(batch):
    return [(int(label), image.tobytes()) for label, image in zip(batch["label"], batch["image"], strict=True)]


def check_corrupt_image(folder, make_batches):
    Image.fromarray(random_image(32, 32)).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:300])
    batches = make_batches(ImageFiles((str(folder / "cut.jpg"),) * 2, (0, 1)))
    with pytest.raises(ValueError, match=r"cannot read image .*cut\.jpg"):
        next(batches)


class TestEvaluationBatches:
    @pytest.mark.parametrize(
        "batch_size, processes", [*((b, 1) for b in range(1, 9)), *((b, 3) for b in (3, 6, 9))]
    )
    def test_every_example_counts_once(self, batch_size, processes):
        source = numbered_source(7)
        shares = [
            list(
                data.evaluation_batches(
                    source, EVALUATE, batch_size=batch_size, process_index=i, process_count=processes
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

    def test_a_corrupt_image_is_named(self, tmp_path):
        check_corrupt_image(tmp_path, lambda source: data.evaluation_batches(source, EVALUATE, batch_size=2))
