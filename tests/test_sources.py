"""Datasets by name, against files written with Pillow and scikit-learn's digits."""

import csv
import itertools
import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from xception_jax import data
from xception_jax.data.dataset import UnreadableExample
from xception_jax.data.images.decoding import decode
from xception_jax.data.sources.builtin import CANVAS
from xception_jax.data.sources.folder import is_held_out
from xception_jax.errors import SettingError

COLORS = {"ant": (250, 10, 20), "bee": (30, 200, 40), "cat": (60, 70, 180)}


def examples(source):
    return [source[i] for i in range(len(source))]


def decoded(source):
    """Pixels, with labels."""
    return [example | {"image": decode(example["image"], name="x")} for example in examples(source)]


class TestDigits:
    def test_every_image_is_in_one_part(self):
        table, dataset = load_digits(), data.load("digits")
        assert (len(dataset.train), len(dataset.validation)) == (1437, 360)
        found = examples(dataset.train) + examples(dataset.validation)
        assert all(e["image"].dtype == np.uint8 and e["image"].shape == (8, 8, 1) for e in found)
        pixels = [np.round(image * 255 / 16).astype(np.uint8).tobytes() for image in table.images]
        assert len(set(pixels)) == 1797
        assert {e["image"].tobytes(): e["label"] for e in found} == dict(zip(pixels, table.target, strict=True))

    def test_classes_keep_their_shares(self):
        dataset = data.load("digits")
        held_out, all_digits = np.bincount(dataset.validation.labels), np.bincount(load_digits().target)
        assert dataset.class_names == tuple("0123456789") and dataset.model_settings == {"in_channels": 1}
        np.testing.assert_allclose(held_out, all_digits * 360 / 1797, atol=1)

    def test_the_split_is_always_the_same(self):
        first, second = data.load("digits"), data.load("digits")
        np.testing.assert_array_equal(first.validation.images, second.validation.images)


@pytest.fixture(scope="module")
def several():
    return data.load("digits_multilabel")


class TestSeveralDigits:
    def test_each_canvas_shows_its_labels_and_no_other(self, several):
        assert several.multilabel and (len(several.train), len(several.validation)) == (8192, 1024)
        single = data.load("digits")
        for part, originals in ((several.train, single.train), (several.validation, single.validation)):
            pairs = zip(originals.images, originals.labels, strict=True)
            known = {image.tobytes(): int(label) for image, label in pairs}
            for index in range(40):
                example = part[index]
                assert example["image"].shape == (CANVAS, CANVAS, 1)
                assert set(example["label"]) == digits_on(example["image"], known)

    def test_one_to_four_digits_in_equal_shares(self, several):
        labels = several.train.labels
        sizes = np.bincount([len(label) for label in labels])
        assert sizes[0] == 0 and len(sizes) == 5 and min(sizes[1:]) > 1000
        assert all(label == tuple(sorted(set(label))) for label in labels)

    def test_the_canvases_are_always_the_same(self, several):
        np.testing.assert_array_equal(data.load("digits_multilabel").train.images, several.train.images)


def digits_on(canvas, known):
    """Labels of the digits found by looking for each at every place, as windows of pixels."""
    found = set()
    for top, left in itertools.product(range(CANVAS - 7), repeat=2):
        window = canvas[top : top + 8, left : left + 8]
        label = known.get(window.tobytes())
        if label is not None:
            found.add(label)
    return found


def test_synthetic_images_are_always_the_same_noise():
    first, second = (data.load("synthetic", image_size=20) for _ in range(2))
    assert len(first.class_names) == 1000 and first.train[3]["image"].shape == (20, 20, 3)
    np.testing.assert_array_equal(first.train[7]["image"], second.train[7]["image"])
    assert first.train[7]["label"] == second.train[7]["label"]
    assert first.train[0]["image"].std() == pytest.approx(73.9, rel=0.1)  # of 0..255, uniform


def write_tree(root, splits=("train", "val"), classes=COLORS, count=1):
    """Plain PNG files root/SPLIT/CLASS/0.png ...; without splits root/CLASS/0.png."""
    for split, name, number in itertools.product(splits or ("",), classes, range(count)):
        folder = root / split / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), COLORS[name]).save(folder / f"{number}.png")
    return root


def load_folder(root, **settings):
    return data.load("folder", root=str(root), **settings)


class TestFolder:
    def test_labels_are_in_the_order_of_names(self, tmp_path):
        dataset = load_folder(write_tree(tmp_path))
        assert dataset.class_names == ("ant", "bee", "cat") and dataset.model_settings == {} and not dataset.notes
        for source in (dataset.train, dataset.validation):
            found = decoded(source)
            assert [int(e["label"]) for e in found] == [0, 1, 2]
            for example, color in zip(found, COLORS.values(), strict=True):
                np.testing.assert_array_equal(example["image"], np.full((4, 6, 3), color, np.uint8), strict=True)
        assert dataset.train.name(1) == str(tmp_path / "train" / "bee" / "0.png")

    @pytest.mark.parametrize("splits", [(), ("train",)])
    def test_without_validation_images_some_are_held_out(self, tmp_path, splits):
        dataset = load_folder(write_tree(tmp_path, splits=splits, count=40), holdout=0.25)
        parts = [{source.name(i) for i in range(len(source))} for source in (dataset.train, dataset.validation)]
        assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 120
        assert 15 <= len(parts[1]) <= 45  # three standard deviations around 30
        assert "25%" in dataset.notes[0]

    def test_what_is_held_out_stays_when_images_are_added(self, tmp_path):
        before = load_folder(write_tree(tmp_path, splits=(), count=20)).validation
        after = load_folder(write_tree(tmp_path, splits=(), count=40)).validation
        names = [{source.name(i) for i in range(len(source))} for source in (before, after)]
        assert names[0] < names[1]

    def test_held_out_shares_are_those_asked_for(self):
        for share in (0.0, 0.1, 0.5, 0.9):
            count = sum(is_held_out(f"a/{i}.jpg", share) for i in range(4000))
            assert count == pytest.approx(4000 * share, abs=100)

    def test_what_is_left_out_is_told(self, tmp_path):
        write_tree(tmp_path)
        bee = tmp_path / "train" / "bee"
        (bee / "notes.txt").write_text("no image")
        (bee / "gone.jpg").symlink_to("nowhere.jpg")
        (bee / ".hidden.png").write_text("of no interest")
        dataset = load_folder(tmp_path)
        assert len(dataset.train) == 3
        told = "\n".join(dataset.notes)
        assert "train/bee/notes.txt" in told and "train/bee/gone.jpg" in told and "hidden" not in told

    def test_links_are_followed_but_not_in_circles(self, tmp_path):
        root = write_tree(tmp_path / "images")
        elsewhere = tmp_path / "elsewhere" / "deep"
        elsewhere.mkdir(parents=True)
        Image.new("RGB", (3, 3)).save(elsewhere / "SCAN.JPG")
        (root / "train" / "bee" / "more").symlink_to(tmp_path / "elsewhere")
        (elsewhere / "back").symlink_to(root / "train" / "bee")
        (root / "train" / "cat" / "one.png").symlink_to(elsewhere / "SCAN.JPG")
        train = load_folder(root).train
        assert [int(label) for label in train.labels] == [0, 1, 1, 2, 2]
        assert len(decoded(train)) == 5

    def test_classes_without_validation_images_are_told(self, tmp_path):
        write_tree(tmp_path)
        (tmp_path / "val" / "cat" / "0.png").unlink()
        assert "cat" in load_folder(tmp_path).notes[0]

    @pytest.mark.parametrize(
        "splits, classes, spoil, message",
        [
            (("val",), COLORS, None, "holds val and no train/"),
            (("train",), COLORS, ("val", "ant"), r"classes bee, cat are in only one"),
            (("train", "val"), COLORS, ("train", "dog"), "class 'dog': no images"),
            (("train",), (), None, "train has no folders; .* if it is a class itself, name its parent"),
            ((), ("ant", "bee"), None, "no images for val; .* holdout = 0.0"),
        ],
    )
    def test_folders_of_another_form_are_refused(self, tmp_path, splits, classes, spoil, message):
        for split in splits:
            (tmp_path / split).mkdir()
        write_tree(tmp_path, splits, classes)
        if spoil:
            (tmp_path / spoil[0] / spoil[1]).mkdir(parents=True)
        with pytest.raises(SettingError, match=rf"^root = '.*': .*{message}"):
            load_folder(tmp_path, holdout=0.0)

    @pytest.mark.parametrize("splits", [(), ("train", "val")])
    def test_one_class_is_too_few_for_a_classifier(self, tmp_path, splits):
        write_tree(tmp_path, splits, ("ant",), count=30)
        with pytest.raises(SettingError, match=r"two classes or more, .* 'ant'; .*name its parent$") as caught:
            load_folder(tmp_path)
        assert (caught.value.setting, caught.value.value) == ("root", str(tmp_path))

    def test_the_folder_of_one_class_is_told_from_one_of_classes(self, tmp_path):
        write_tree(tmp_path, ())
        with pytest.raises(SettingError, match=r"^root = '.*ant': .*has no folders; .*name its parent$"):
            load_folder(tmp_path / "ant")

    def test_folders_of_splits_by_other_names_are_no_classes(self, tmp_path):
        for split in ("Train", "Val"):
            write_tree(tmp_path, (split,))
        with pytest.raises(SettingError, match=r"holds Train, Val and no train/"):
            load_folder(tmp_path)

    def test_a_class_called_train_is_not_taken_for_the_training_images(self, tmp_path):
        write_tree(tmp_path, ())
        write_tree(tmp_path, ("train",))
        with pytest.raises(SettingError, match=r"ant, bee, cat lie beside train/"):
            load_folder(tmp_path)

    def test_test_images_and_loose_files_are_left_out_and_told(self, tmp_path):
        write_tree(tmp_path, ("train", "val", "test"))
        (tmp_path / "loose.png").write_bytes(b"")
        dataset = load_folder(tmp_path)
        assert (len(dataset.train), len(dataset.validation)) == (3, 3)
        assert "test" in dataset.notes[0] and "loose.png" in dataset.notes[1]

    def test_classes_without_training_images_are_told(self, tmp_path):
        write_tree(tmp_path, (), count=9)
        held_out = next(i for i in range(9) if is_held_out(f"cat/{i}.png", 0.5))
        for i in set(range(9)) - {held_out}:
            (tmp_path / "cat" / f"{i}.png").unlink()
        assert "1 classes have no training images: cat" in load_folder(tmp_path, holdout=0.5).notes

    def test_the_fingerprint_tells_data_apart_but_not_places(self, tmp_path):
        one = load_folder(write_tree(tmp_path / "one")).fingerprint()
        assert one == load_folder(write_tree(tmp_path / "two")).fingerprint()
        (tmp_path / "two" / "train" / "ant" / "0.png").rename(tmp_path / "two" / "train" / "ant" / "1.png")
        assert one != load_folder(tmp_path / "two").fingerprint()
        assert data.load("digits").fingerprint() == data.load("digits").fingerprint()

    def test_a_missing_folder_is_named(self, tmp_path):
        with pytest.raises(SettingError, match=r"nowhere.*no such folder"):
            load_folder(tmp_path / "nowhere")

    def test_an_image_that_vanished_is_named(self, tmp_path):
        train = load_folder(write_tree(tmp_path)).train
        os.remove(train.name(0))
        with pytest.raises(UnreadableExample, match=r"ant/0\.png: No such file.*remove"):
            train[0]

    def test_the_source_crosses_processes(self, tmp_path):
        train = load_folder(write_tree(tmp_path)).train
        assert pickle.loads(pickle.dumps(train))[2] == train[2]


def write_manifest(folder, rows, suffix):
    """Rows as dicts, labels as lists, with an image for each."""
    for row in rows:
        path = folder / row["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 5)).save(path)
    path = folder / f"images{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({k: ";".join(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    return path


SEVERAL = [
    {"path": "a/1.jpg", "labels": ["sofa", "cat"], "split": "train"},
    {"path": "a/2.png", "labels": [], "split": "train"},
    {"path": "3.jpg", "labels": ["dog"], "split": "val"},
    {"path": "4.jpg", "labels": ["cat", "cat"], "split": "train"},
]
ONE = [{"path": f"{i}.png", "label": "even" if i % 2 == 0 else "odd"} for i in range(40)]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
class TestManifest:
    def load(self, path, **settings):
        return data.load("manifest", root=str(path), **settings)

    def test_several_labels(self, tmp_path, suffix):
        dataset = self.load(write_manifest(tmp_path, SEVERAL, suffix))
        assert dataset.multilabel and dataset.class_names == ("cat", "dog", "sofa")
        assert dataset.class_weights is None
        assert [e["label"] for e in examples(dataset.train)] == [(0, 2), (), (0,)]
        assert [e["label"] for e in examples(dataset.validation)] == [(1,)]
        assert dataset.train.name(1) == str(tmp_path / "a" / "2.png")

    def test_one_label_and_no_split(self, tmp_path, suffix):
        dataset = self.load(write_manifest(tmp_path, ONE, suffix), holdout=0.3)
        assert not dataset.multilabel and dataset.class_names == ("even", "odd")
        for source in (dataset.train, dataset.validation):
            for index, example in enumerate(examples(source)):
                number = int(os.path.basename(source.name(index)).removesuffix(".png"))
                assert example["label"] == number % 2
        assert len(dataset.train) + len(dataset.validation) == 40 and len(dataset.validation) > 3

    def test_classes_in_an_order_of_their_own_with_weights(self, tmp_path, suffix):
        path = write_manifest(tmp_path, SEVERAL, suffix)
        classes = tmp_path / "classes.csv"
        classes.write_text("class,weight\nsofa,0.5\ndog,2\nfox,1\ncat,1\n")
        dataset = self.load(path, classes=str(classes))
        assert dataset.class_names == ("sofa", "dog", "fox", "cat")
        assert dataset.class_weights == (0.5, 2.0, 1.0, 1.0)
        assert dataset.train[0]["label"] == (0, 3)

    @pytest.mark.parametrize(
        "classes, message",
        [
            ("class\ncat\ndog\n", r"line \d: 'sofa' is not in the file of classes"),
            ("class,weight\ncat,much\n", "classes = .*line 2: needs 'class' and a number"),
            ("class,weight\ncat,-1\n", "line 2: weight -1"),
            ("name\ncat\n", "line 2: needs 'class'"),
            ("class\ncat\ncat\n", "twice"),
            (None, "classes = .*No such file"),
        ],
    )
    def test_a_faulty_file_of_classes_is_named(self, tmp_path, suffix, classes, message):
        path = write_manifest(tmp_path, SEVERAL, suffix)
        if classes is not None:
            (tmp_path / "classes.csv").write_text(classes)
        with pytest.raises(SettingError, match=message):
            self.load(path, classes=str(tmp_path / "classes.csv"))

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"split": "test"}, r"line \d: split = 'test'; write train or val"),
            ({"path": ""}, r"line \d: needs 'path' and 'labels'"),
            ({"path": "gone.jpg"}, r"1 of its 4 files cannot be opened, the first is 'gone.jpg'"),
            ({"path": "a/1.jpg"}, r"'a/1.jpg' is in train and in val"),
        ],
    )
    def test_a_faulty_row_is_named(self, tmp_path, suffix, change, message):
        write_manifest(tmp_path, SEVERAL, suffix)
        rows = [*SEVERAL[:2], SEVERAL[2] | change, SEVERAL[3]]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if suffix == ".csv":
            lines = (f"{r['path']},{';'.join(r['labels'])},{r['split']}\n" for r in rows)
            text = "path,labels,split\n" + "".join(lines)
        path = tmp_path / f"images{suffix}"
        path.write_text(text)
        with pytest.raises(SettingError, match=rf"^root = '.*{message}"):
            self.load(path)

    def test_one_class_is_too_few_unless_images_may_have_none(self, tmp_path, suffix):
        path = write_manifest(tmp_path, [row | {"label": "cat"} for row in ONE], suffix)
        with pytest.raises(SettingError, match=r"^root = '.*': .*two classes or more, and 'cat' is the only one$"):
            self.load(path)
        (tmp_path / "c.csv").write_text("class\ncat\n")
        with pytest.raises(SettingError, match=r"^classes = '.*c\.csv': .*two classes or more, and 'cat' is"):
            self.load(path, classes=str(tmp_path / "c.csv"))
        several = write_manifest(
            tmp_path, [row | {"labels": ["cat"] * (row["split"] == "val")} for row in SEVERAL], suffix
        )
        assert self.load(several).class_names == ("cat",)

    def test_labels_lose_the_blanks_around_them(self, tmp_path, suffix):
        rows = [row | {"label": f" {row['label']} "} for row in ONE]
        assert self.load(write_manifest(tmp_path, rows, suffix)).class_names == ("even", "odd")

    def test_a_file_as_spreadsheets_save_it(self, tmp_path, suffix):
        path = write_manifest(tmp_path, ONE, suffix)
        path.write_text(path.read_text(), encoding="utf-8-sig")
        assert self.load(path).class_names == ("even", "odd")

    def test_what_was_held_out_is_told(self, tmp_path, suffix):
        assert (
            "40 rows without split: 30%" in self.load(write_manifest(tmp_path, ONE, suffix), holdout=0.3).notes[0]
        )

    @pytest.mark.parametrize("text", ['"a', "{\x00", ""])
    def test_a_file_of_another_form_is_refused(self, tmp_path, suffix, text):
        path = tmp_path / f"images{suffix}"
        path.write_text(text)
        with pytest.raises(SettingError, match=rf"^root = '.*images{suffix}': (is not|has no rows|line)"):
            self.load(path)


@pytest.mark.parametrize(
    "suffix, line",
    [
        (".csv", "path,label\na.jpg,"),
        (".csv", "path,label\na.jpg,x,y"),
        (".jsonl", '{"path": "a.jpg", "label": ["cat"]}'),
        (".jsonl", '{"path": "a.jpg", "label": " "}'),
        (".jsonl", '{"path": "a.jpg", "labels": [null]}'),
        (".jsonl", '{"path": "a.jpg", "labels": 3}'),
        (".jsonl", "3"),
    ],
)
def test_labels_of_another_form_are_refused(tmp_path, suffix, line):
    path = tmp_path / f"images{suffix}"
    path.write_text(line + "\n")
    with pytest.raises(SettingError, match=r"^root = .*: line \d: (needs|labels? =)"):
        data.load("manifest", root=str(path))


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("images", {}, "name = 'images'.*digits.*tfds:NAME"),
        ("digit", {}, "did you mean 'digits'"),
        ("folder", {}, "root = None.*folder"),
        ("manifest", {}, "root = None.*csv"),
        ("manifest", {"root": "images.txt"}, r"a manifest is a \.csv or \.jsonl"),
        ("digits", {"root": "/images"}, "root = '/images'.*None"),
        ("digits", {"classes": "c.csv"}, "classes = 'c.csv'.*digits"),
        ("folder", {"root": ".", "train_split": "train[:1%]"}, "train_split = 'train.*folder"),
        ("digits", {"label": "objects"}, "label = 'objects'.*digits"),
    ],
)
def test_a_wrong_name_or_setting_is_refused(name, settings, message):
    with pytest.raises(SettingError, match=message):
        data.load(name, **settings)


class TestFingerprint:
    """Checkpoints of version 0.1 hold these values, which that version computed."""

    def test_arrays_have_that_of_version_0_1(self, several):
        assert several.fingerprint() == "2811e6b99e8ef2c1"
        assert data.load("digits").fingerprint() == "1f16df911bc5d383"
        assert data.load("synthetic", image_size=20).fingerprint() == "be11bb20985a04f5"

    def test_a_folder_has_that_of_version_0_1(self, tmp_path):
        assert load_folder(write_tree(tmp_path, count=2)).fingerprint() == "1ac58de27784c175"

    def test_a_folder_without_validation_images_has_that_of_version_0_1(self, tmp_path):
        write_tree(tmp_path, (), count=9)
        Image.new("RGB", (6, 4)).save(tmp_path / "bee" / "long name 1.png")  # held out; the longest path
        assert load_folder(tmp_path, holdout=0.25).fingerprint() == "0bda24f7165344c2"

    def test_a_manifest_has_that_of_version_0_1(self, tmp_path):
        rows = [{"path": "a.png", "labels": ["x", "y"], "split": "train"}]
        rows += [{"path": "b.png", "labels": ["y"], "split": "train"}]
        rows += [{"path": "c.png", "labels": ["x"], "split": "val"}]
        path = write_manifest(tmp_path, rows, ".csv")
        (tmp_path / "c.csv").write_text("class,weight\nx,2\ny,1\n")
        dataset = data.load("manifest", root=str(path), classes=str(tmp_path / "c.csv"))
        assert dataset.fingerprint() == "994030e4d9c50621"

    def test_settings_of_the_model_count(self):
        images, labels = np.zeros((2, 4, 4, 1), np.uint8), np.arange(2)
        source = data.ArraySource(images, labels)
        kinds = [{}, {"in_channels": 1}, {"in_channels": 1, "vocabulary": 9}, {"in_channels": 1, "vocabulary": 8}]
        prints = {data.Dataset(source, source, ("a", "b"), model_settings=kind).fingerprint() for kind in kinds}
        assert len(prints) == 4
