"""Sets in record files, written by TFDS's own builder, against the bytes and labels that it was given."""

import concurrent.futures
import io
import json
import pickle
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import constants

from xception_jax.data.dataset import UnreadableExample
from xception_jax.data.images import decoding
from xception_jax.data.sources import records
from xception_jax.errors import SettingError

COLORS = ("red", "green", "blue")
ONE = {"image": tfds.features.Image(shape=(8, 8, 3)), "label": tfds.features.ClassLabel(names=COLORS)}


def encode(seed, *, height=8, width=8, channels=3, kind="PNG"):
    """The file of a random image."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def write_set(root, name, features, splits, *, version="1.0.0", config=None):
    """What TFDS writes for {split: [example, ...]}; gives the folder."""

    class Written(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(examples) for split, examples in splits.items()}

        def _generate_examples(self, examples):
            yield from enumerate(examples)

    Written.name = name
    builder = Written(data_dir=root, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return root / name / (config or "") / version


def one_label(count, start=0):
    return [{"image": encode(seed), "label": seed % 3} for seed in range(start, start + count)]


def pairs(source):
    """(bytes, label) of all of its examples."""
    return sorted((source[i]["image"], source[i]["label"]) for i in range(len(source)))


def given(examples):
    return sorted((example["image"], example["label"]) for example in examples)


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    """A set with 30 train and 6 test images."""
    root = tmp_path_factory.mktemp("colors")
    write_set(root, "colors", ONE, {"train": one_label(30), "test": one_label(6, start=30)})
    return root


@pytest.fixture
def copied(colors, tmp_path):
    """A copy of it, to be damaged: (data_dir, folder of the version)."""
    shutil.copytree(colors / "colors", tmp_path / "colors")
    return tmp_path, tmp_path / "colors" / "1.0.0"


class TestOneLabel:
    def test_bytes_and_labels_are_those_that_were_written(self, colors):
        dataset = records.load("colors", root=str(colors))
        assert pairs(dataset.train) == given(one_label(30))
        assert pairs(dataset.validation) == given(one_label(6, start=30))
        assert dataset.class_names == COLORS and dataset.model_settings == {}
        assert not dataset.multilabel and dataset.class_weights is None and dataset.notes == ()
        example = dataset.train[0]
        assert (
            set(example) == {"image", "label"}
            and type(example["image"]) is bytes
            and type(example["label"]) is int
        )

    def test_order_and_pixels_are_those_of_tfds(self, colors):
        theirs = tfds.builder_from_directory(colors / "colors" / "1.0.0").as_data_source("train")
        ours = records.load("colors", root=str(colors)).train
        assert len(ours) == len(theirs) == 30
        for i in (0, 7, 29):
            np.testing.assert_array_equal(decoding.decode(ours[i]["image"], name="x"), theirs[i]["image"])
            assert ours[i]["label"] == theirs[i]["label"]

    def test_grey_images_become_rgb(self, tmp_path):
        features = ONE | {"image": tfds.features.Image(shape=(5, 4, 1))}
        example = {"image": encode(0, height=5, width=4, channels=1), "label": 2}
        write_set(tmp_path, "grey", features, {"train": [example], "test": [example]})
        pixels = decoding.decode(records.load("grey", root=str(tmp_path)).train[0]["image"], name="x")
        grey = np.asarray(Image.open(io.BytesIO(example["image"])))
        np.testing.assert_array_equal(pixels, np.stack([grey] * 3, axis=-1), strict=True)

    def test_other_features_are_left_out(self, tmp_path):
        features = ONE | {
            "mask": tfds.features.LabeledImage(labels=2, shape=(8, 8, 1)),
            "box": tfds.features.BBoxFeature(),
        }
        box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
        example = one_label(1)[0]
        more = {"mask": encode(1, channels=1), "box": box}
        write_set(tmp_path, "boxes", features, {"train": [example | more], "test": [example | more]})
        assert records.load("boxes", root=str(tmp_path)).train[0] == example

    def test_names_say_which_record_and_file(self, tmp_path, colors):
        assert records.load("colors", root=str(colors)).train.name(17) == "record 17 of colors train"
        features = ONE | {"file_name": tfds.features.Text()}
        write_set(
            tmp_path,
            "filed",
            features,
            {s: [one_label(1)[0] | {"file_name": "a/ü.png"}] for s in ("train", "test")},
        )
        assert records.load("filed", root=str(tmp_path)).validation.name(0) == "record 0 of filed test (a/ü.png)"

    def test_an_index_beyond_the_end_is_refused(self, colors):
        source = records.load("colors", root=str(colors)).validation
        for index in (6, -1):
            with pytest.raises(IndexError):
                source[index]

    def test_workers_get_the_same_records(self, colors):
        source = records.load("colors", root=str(colors)).train
        sent = pickle.dumps(source)
        assert len(sent) < 500  # not the open files
        copy = pickle.loads(sent)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert list(pool.map(copy.__getitem__, range(30))) == [source[i] for i in range(30)]


class TestManyLabels:
    def test_labels_are_sorted_and_may_be_none(self, tmp_path):
        features = {"image": ONE["image"], "labels": tfds.features.Sequence(ONE["label"])}
        train = [{"image": encode(i), "labels": labels} for i, labels in enumerate([[], [2], [2, 0], [1, 1]])]
        write_set(tmp_path, "many", features, {"train": train, "validation": train[:1]})
        dataset = records.load("many", root=str(tmp_path))
        assert dataset.multilabel and dataset.class_names == COLORS
        expected = zip((example["image"] for example in train), [(), (2,), (0, 2), (1,)], strict=True)
        assert pairs(dataset.train) == sorted(expected) and dataset.validation[0]["label"] == ()

    def test_open_images_gives_what_people_verified(self, tmp_path):
        names = ["verification", "crowdsource-verification", "machine"]
        found = tfds.features.Sequence(
            {"label": ONE["label"], "confidence": np.int32, "source": tfds.features.ClassLabel(names=names)}
        )
        all_found = tfds.features.Sequence(
            {
                "label": tfds.features.ClassLabel(names=["other", *COLORS]),
                "confidence": np.int32,
                "source": tfds.features.ClassLabel(names=names),
            }
        )
        features = {"image": ONE["image"], "image/filename": tfds.features.Text()}
        features |= {"objects": all_found, "objects_trainable": found}
        cases = [
            ("blue", 10, "verification"),
            ("red", 10, "crowdsource-verification"),
            ("green", 0, "verification"),
        ]
        cases += [
            ("green", 9, "verification"),
            ("green", 9, "machine"),
            ("green", 10, "machine"),
            ("blue", 10, "crowdsource-verification"),
        ]
        objects = [{"label": label, "confidence": sure, "source": source} for label, sure, source in cases]
        others = [{"label": "other", "confidence": 10, "source": "verification"}]
        examples = [
            {"image": encode(i), "image/filename": f"{i}.jpg", "objects": others, "objects_trainable": objects * i}
            for i in range(2)
        ]
        write_set(tmp_path, "open", features, {"train": examples, "validation": examples}, config="200k")
        dataset = records.load("open/200k:1.*.*", root=str(tmp_path))
        assert dataset.multilabel and dataset.class_names == COLORS and "verified" in dataset.notes[0]
        labels = {dataset.train[i]["image"]: dataset.train[i]["label"] for i in range(2)}
        assert labels == {encode(0): (), encode(1): (0, 2)}
        assert dataset.train.name(0) in {f"record 0 of open/200k train ({i}.jpg)" for i in range(2)}
        dataset = records.load("open/200k", root=str(tmp_path), label="objects")
        assert dataset.class_names == ("other", *COLORS)
        assert [dataset.train[i]["label"] for i in range(2)] == [(0,), (0,)]

    def test_one_of_several_labels_can_be_named(self, tmp_path):
        features = ONE | {"coarse_label": tfds.features.ClassLabel(names=["cold", "warm"])}
        examples = [example | {"coarse_label": int(example["label"] == 0)} for example in one_label(6)]
        write_set(tmp_path, "coarse", features, {"train": examples, "test": examples[:2]})
        dataset = records.load("coarse", root=str(tmp_path), label="coarse_label")
        assert not dataset.multilabel and dataset.class_names == ("cold", "warm")
        assert pairs(dataset.train) == sorted((e["image"], e["coarse_label"]) for e in examples)
        copy = pickle.loads(pickle.dumps(dataset.train))  # as a worker process gets it
        assert pairs(copy) == pairs(dataset.train)
        with pytest.raises(SettingError, match=r"label = 'fine': has no .* one of \['coarse_label', 'label'\]"):
            records.load("coarse", root=str(tmp_path), label="fine")


class TestSplits:
    @pytest.mark.parametrize(
        "train, evaluation, first, second",
        [
            ("train[:60%]", "train[60%:]", 18, 12),
            ("train[:20]", "train[20:]+test", 20, 16),
            (None, "test[:50%]", 30, 3),
        ],
    )
    def test_parts(self, colors, train, evaluation, first, second):
        dataset = records.load("colors", root=str(colors), train_split=train, eval_split=evaluation)
        assert (len(dataset.train), len(dataset.validation)) == (first, second)
        assert not set(pairs(dataset.train)) & set(pairs(dataset.validation))

    def test_validation_comes_before_test(self, tmp_path):
        write_set(
            tmp_path, "three", ONE, {s: one_label(n) for n, s in enumerate(("train", "test", "validation"), 1)}
        )
        assert len(records.load("three", root=str(tmp_path)).validation) == 3
        assert len(records.load("three", root=str(tmp_path), eval_split="test").validation) == 2

    @pytest.mark.parametrize(
        "train, evaluation, message",
        [
            ("train[:60%]", "train[50%:]", r"eval_split = 'train\[50%:\]': 3 images.*train\[:60%\]"),
            (None, "train[90%:]", r"eval_split = 'train\[90%:\]': 3 images.*'train' as well"),
            (
                "train+test",
                None,
                "eval_split = None: 6 images of 'test' are in train_split = 'train\\+test' as well",
            ),
            ("trein", None, "train_split = 'trein': the set has no split 'trein', but train, test"),
            (None, "test[", r"eval_split = 'test\[': the set has no split"),
            ("train[:0]", None, r"train_split = 'train\[:0\]': .* has no records"),
        ],
    )
    def test_what_cannot_be_is_refused(self, colors, train, evaluation, message):
        with pytest.raises(SettingError, match=f"^{message}"):
            records.load("colors", root=str(colors), train_split=train, eval_split=evaluation)

    def test_a_set_for_training_alone_needs_an_eval_split(self, tmp_path):
        write_set(tmp_path, "alone", ONE, {"train": one_label(4)})
        with pytest.raises(
            SettingError, match=r"^eval_split = None: the set has no split 'test', but train; name"
        ):
            records.load("alone", root=str(tmp_path))


class TestFinding:
    def test_the_highest_version_unless_one_is_named(self, tmp_path):
        for version, count in (("1.0.0", 1), ("1.10.0", 2), ("1.9.0", 3)):
            write_set(tmp_path, "old", ONE, {s: one_label(count) for s in ("train", "test")}, version=version)
        assert len(records.load("old", root=str(tmp_path)).train) == 2
        assert len(records.load("old:1.9.0", root=str(tmp_path)).train) == 3

    def test_no_root_is_the_folder_of_tfds(self, colors, monkeypatch):
        monkeypatch.setattr(constants, "DATA_DIR", str(colors))
        assert len(records.load("colors", root=None).train) == 30
        with pytest.raises(
            SettingError, match=f"^root = None: {colors} holds no set 'shapes', but colors/1.0.0; "
        ):
            records.load("shapes", root=None)

    def test_a_home_folder(self, colors, monkeypatch):
        monkeypatch.setenv("HOME", str(colors))
        assert len(records.load("colors", root="~").train) == 30

    @pytest.mark.parametrize(
        "name, message",
        [
            ("shapes", "root = '.*': .* holds no set 'shapes', but colors/1.0.0; .*prepare"),
            ("colors:2.0.0", "root = '.*': .* holds no set 'colors:2.0.0', but colors/1.0.0"),
            ("colors/dark", "root = .*holds no set 'colors/dark'"),
            ("imagenet2012", "root = .*holds no set 'imagenet2012'.*prepare"),
            ("my colors", "name = 'tfds:my colors': is no name"),
            ("", "name = 'tfds:': is no name"),
        ],
    )
    def test_a_name_of_nothing(self, colors, name, message):
        with pytest.raises(SettingError, match=f"^{message}"):
            records.load(name, root=str(colors))

    def test_a_missing_folder(self, tmp_path):
        with pytest.raises(SettingError, match=r"^root = '.*gone': .*gone holds no set 'colors', but none at all"):
            records.load("colors", root=str(tmp_path / "gone"))


class TestFeatures:
    @pytest.mark.parametrize(
        "features, message",
        [
            ({"label": ONE["label"]}, "must have one feature of type Image; has 0 among"),
            (ONE | {"other": ONE["image"]}, "must have one feature of type Image; has 2 among"),
            ({"image": ONE["image"]}, "must have a ClassLabel 'label'"),
            ({"image": ONE["image"], "label": np.int64}, "must have a ClassLabel 'label'"),
            (
                {"image": ONE["image"], **{k: tfds.features.Sequence(ONE["label"]) for k in "ab"}},
                r"must have a ClassLabel 'label'.*set label to one of .* \['a', 'b'\]",
            ),
            (ONE | {"image": tfds.features.Image(shape=(8, 8, 1), dtype=np.float32)}, "its images are float32"),
        ],
    )
    def test_other_kinds_are_refused(self, features, message):
        with pytest.raises(SettingError, match=f"^name = 'tfds:x': {message}"):
            records.Layout.of(tfds.features.FeaturesDict(features), "tfds:x")

    def test_records_without_a_label_are_refused(self, tmp_path):
        unlabelled = [{"image": encode(0), "label": -1}]
        write_set(tmp_path, "blind", ONE, {"train": one_label(1), "test": unlabelled})
        with pytest.raises(
            SettingError, match=r"^root = .*split 'test' cannot be used: record 0 of blind test: has no label"
        ):
            records.load("blind", root=str(tmp_path))


class TestDamage:
    def test_another_file_format_is_refused(self, copied):
        root, folder = copied
        info = (folder / "dataset_info.json").read_text()
        (folder / "dataset_info.json").write_text(info.replace('"array_record"', '"tfrecord"'))
        with pytest.raises(SettingError, match=r"^root = .*holds tfrecord files.*file_format='array_record'"):
            records.load("colors", root=str(root))

    @pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
    @pytest.mark.parametrize("text", ["", "{}", '{"name": '])
    def test_damaged_descriptions(self, copied, name, text):
        root, folder = copied
        (folder / name).write_text(text)
        with pytest.raises(SettingError, match=r"^root = .*its set 'colors' is damaged"):
            records.load("colors", root=str(root))

    def test_a_missing_file_of_records(self, copied):
        root, folder = copied
        next(folder.glob("*test*")).unlink()
        with pytest.raises(
            SettingError, match=r"^root = .*split 'test' lacks 1 files, the first is .*colors-test"
        ):
            records.load("colors", root=str(root))

    @pytest.mark.parametrize("kept", [0, 0.5, 0.99])
    def test_a_file_that_ends_too_early(self, copied, kept):
        root, folder = copied
        path = next(folder.glob("*train*"))
        path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
        with pytest.raises(SettingError, match=r"^root = .*split 'train' cannot be read: .*; write the set again"):
            records.load("colors", root=str(root))

    def test_a_wrong_byte_costs_one_record(self, copied):
        root, folder = copied
        path = next(folder.glob("*train*"))
        before = records.load("colors", root=str(root)).train
        examples = [before[i] for i in range(30)]
        content = bytearray(path.read_bytes())
        content[content.index(examples[20]["image"][50:100])] ^= 1
        path.write_bytes(content)
        after = records.load("colors", root=str(root)).train
        assert [after[i] for i in range(30) if i != 20] == examples[:20] + examples[21:]
        with pytest.raises(UnreadableExample, match=r"^cannot read record 20 of colors train: .*mismatch"):
            after[20]

    def test_metadata_of_others_do_no_harm(self, copied):
        root, folder = copied
        (folder / "metadata.json").write_text(json.dumps({"author": "me"}))
        assert records.load("colors", root=str(root)).class_weights is None


class TestFingerprint:
    """It tells sets apart whose class names and numbers of records are equal."""

    def of(self, root, **splits):
        return records.load("colors", root=str(root), **splits).fingerprint()

    @pytest.mark.parametrize("change", ["labels", "images", "order"])
    def test_other_records_give_another(self, colors, tmp_path, change):
        train = one_label(30)
        if change == "labels":
            train = [example | {"label": (example["label"] + 1) % 3} for example in train]
        elif change == "images":
            train = [example | {"image": encode(seed + 100)} for seed, example in enumerate(train)]
        else:
            train = train[::-1]
        write_set(tmp_path, "colors", ONE, {"train": train, "test": one_label(6, start=30)})
        assert self.of(tmp_path) != self.of(colors)

    def test_a_copy_in_another_folder_has_the_same(self, colors, copied):
        assert self.of(copied[0]) == self.of(colors)

    def test_another_part_gives_another(self, colors):
        parts = ("train[:15]", "train[15:]", "train")
        assert len({self.of(colors, train_split=part) for part in parts}) == 3

    def test_a_damaged_record_is_no_error(self, colors, copied):
        path = next(copied[1].glob("*train*"))
        content = bytearray(path.read_bytes())
        content[content.index(records.load("colors", root=str(colors)).train[20]["image"][50:100])] ^= 1
        path.write_bytes(content)
        assert self.of(copied[0]) != self.of(colors)
