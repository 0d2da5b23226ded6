"""Record files written from archives, folders and tables, read back and by TFDS, against the files given."""

import argparse
import fcntl
import hashlib
import io
import os
import pathlib
import subprocess
import sys
import tarfile
import textwrap

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import ExifTags, Image
from tensorflow_datasets.core.utils import shard_utils
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as tfds_imagenet

from xception_jax.commands import prepare as command
from xception_jax.data.sources import folder, imagenet, manifest, records, records_writer
from xception_jax.errors import SettingError, TrainingError, UserError

SYNSETS = (tfds.core.tfds_path("datasets/imagenet2012") / "labels.txt").read_text().split()
VALIDATION = np.array((tfds.core.tfds_path("datasets/imagenet2012") / "validation_labels.txt").read_text().split())
KINDS = {".png": "PNG", ".jpg": "JPEG", ".bmp": "BMP", ".webp": "WEBP", ".gif": "GIF"}


def encode(seed, kind="JPEG", *, height=12, width=16, mode="RGB", **settings):
    """The file of a random image."""
    shape = (height, width, len(mode)) if len(mode) > 1 else (height, width)
    pixels = np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.frombytes(mode, (width, height), pixels.tobytes()).save(buffer, kind, **settings)
    return buffer.getvalue()


def write_files(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture
def images(tmp_path):
    """A folder of 12 train and 4 val images of all kinds; its files by name."""
    suffixes = [*KINDS, ".png"]
    names = [f"train/{c}/{i}{s}" for c in ("ant", "bee wolf") for i, s in enumerate(suffixes)]
    names += [f"val/{c}/{i}.jpg" for c in ("ant", "bee wolf") for i in range(2)]
    files = {name: encode(seed, KINDS[pathlib.Path(name).suffix]) for seed, name in enumerate(names)}
    write_files(tmp_path / "images", files)
    return files


def request(root, name="mine", **settings):
    return records_writer.Request(dataset=folder.load(root, holdout=0.25), name=name, **settings)


def contents(source):
    """(bytes, label) of all examples."""
    return sorted((source[i]["image"], source[i]["label"]) for i in range(len(source)))


def snapshot(root):
    """All paths below a folder, with the times and sizes of files."""
    return {
        str(path.relative_to(root)): path.is_file() and (path.stat().st_mtime_ns, path.stat().st_size)
        for path in root.rglob("*")
    }


class TestFolder:
    def test_files_are_kept_byte_for_byte(self, tmp_path, images):
        report = records_writer.write(request(tmp_path / "images"), tmp_path / "out")
        assert report.directory == tmp_path / "out" / "mine" / "1.0.0" and not report.was_there
        assert report.counts == {"train": 12, "validation": 4} and (report.shrunk, list(report.left_out)) == (
            0,
            [],
        )
        dataset = records.load("mine", root=str(tmp_path / "out"))
        assert dataset.class_names == ("ant", "bee wolf") and not dataset.multilabel
        for split, source in (("train", dataset.train), ("val", dataset.validation)):
            assert contents(source) == sorted(
                (content, int("bee" in name)) for name, content in images.items() if name.startswith(split)
            )
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"mine"}

    def test_tfds_reads_it(self, tmp_path, images):
        records_writer.write(request(tmp_path / "images"), tmp_path / "out")
        builder = tfds.builder("mine", data_dir=tmp_path / "out")
        assert builder.info.supervised_keys == ("image", "label")
        for example in builder.as_data_source("validation"):
            name = example["file_name"].decode()
            decoded = np.asarray(Image.open(io.BytesIO(images[f"val/{name}"])))
            np.testing.assert_array_equal(example["image"], decoded)
            assert builder.info.features["label"].int2str(example["label"]) == name.split("/")[0]

    def test_order_is_that_of_tfds(self, tmp_path, images):
        class Shuffled(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict({"key": tfds.features.Text()})
                )

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                names = [name.removeprefix("train/") for name in images if name.startswith("train/")]
                yield from ((name, {"key": name}) for name in names)

        theirs = Shuffled(data_dir=tmp_path / "theirs", file_format="array_record")
        theirs.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        records_writer.write(request(tmp_path / "images"), tmp_path / "out")
        ours = tfds.builder("mine", data_dir=tmp_path / "out").as_data_source("train")
        names = [example["file_name"] for example in ours]
        assert names == [example["key"] for example in theirs.as_data_source("train")] != sorted(names)

    def test_several_files_of_records(self, tmp_path, images, monkeypatch):
        monkeypatch.setattr(shard_utils.ShardConfig, "min_shard_size", 1)
        report = records_writer.write(request(tmp_path / "images"), tmp_path / "out")
        assert len(list(report.directory.glob("*train.array_record*"))) == 8
        source = records.load("mine", root=str(tmp_path / "out")).train
        assert contents(source) == sorted((v, int("bee" in k)) for k, v in images.items() if k.startswith("train"))

    def test_a_share_is_held_out(self, tmp_path):
        files = {f"{c}/{i}.png": encode(i + len(c), "PNG") for c in ("ant", "beetle") for i in range(20)}
        dataset = folder.load(write_files(tmp_path / "images", files), holdout=0.25)
        records_writer.write(request(tmp_path / "images"), tmp_path / "out")
        written = records.load("mine", root=str(tmp_path / "out"))
        for before, after in ((dataset.train, written.train), (dataset.validation, written.validation)):
            assert contents(after) == sorted(
                (e["image"], int(e["label"])) for e in map(before.__getitem__, range(len(before)))
            )

    @pytest.mark.parametrize("name", [" ant", "ant\nbee"])
    def test_class_names_that_tfds_cannot_keep_are_refused(self, tmp_path, name):
        root = write_files(
            tmp_path / "images",
            {f"{s}/{c}/0.png": encode(0, "PNG") for s in ("train", "val") for c in ("bee", name)},
        )
        with pytest.raises(UserError, match=r"^class .*ant.*rename"):
            records_writer.write(request(root), tmp_path / "out")


class TestManifest:
    def test_many_labels_and_weights(self, tmp_path):
        files = {f"{i}.png": encode(i, "PNG") for i in range(5)}
        root = write_files(tmp_path / "images", files)
        rows = ["cat;dog", "", "dog", "cat", "emu;cat"]
        lines = [f"{i}.png,{labels},{'val' if i == 4 else 'train'}" for i, labels in enumerate(rows)]
        (root / "table.csv").write_text("\n".join(["path,labels,split", *lines]))
        (root / "classes.csv").write_text("class,weight\nemu,0.1\ndog,1\ncat,2.5\n")
        dataset = manifest.load(root / "table.csv", classes=str(root / "classes.csv"), holdout=0.1)
        records_writer.write(records_writer.Request(dataset=dataset, name="many"), tmp_path / "out")
        written = records.load("many", root=str(tmp_path / "out"))
        assert written.multilabel and written.class_names == ("emu", "dog", "cat")
        assert written.class_weights == (0.1, 1.0, 2.5)
        labels = [(1, 2), (), (1,), (2,), (0, 2)]
        assert contents(written.train) == sorted(zip(list(files.values())[:4], labels, strict=False))
        assert contents(written.validation) == [(files["4.png"], (0, 2))]

    def test_one_label_and_a_image_named_twice(self, tmp_path):
        root = write_files(tmp_path / "images", {"a.png": encode(0, "PNG"), "b.png": encode(1, "PNG")})
        (root / "t.csv").write_text("path,label,split\na.png,x,train\na.png,y,train\nb.png,y,val\n")
        dataset = manifest.load(root / "t.csv", classes=None, holdout=0.1)
        records_writer.write(records_writer.Request(dataset=dataset, name="twice"), tmp_path / "out")
        written = records.load("twice", root=str(tmp_path / "out"))
        assert contents(written.train) == [(encode(0, "PNG"), 0), (encode(0, "PNG"), 1)]
        assert not written.multilabel and written.class_weights is None


class TestShortSide:
    def write(self, tmp_path, files, short_side, **settings):
        names = {f"{s}/a/{k}": v for s in ("train", "val") for k, v in files.items()}
        names |= {f"{s}/b/tiny.png": encode(0, "PNG", height=4, width=4) for s in ("train", "val")}
        root = write_files(tmp_path / "images", names)
        report = records_writer.write(request(root, short_side=short_side, **settings), tmp_path / "out")
        source = tfds.builder("mine", data_dir=tmp_path / "out").as_data_source(
            "train", decoders={"image": tfds.decode.SkipDecoding()}
        )
        return report, {example["file_name"].decode().split("/")[1]: example["image"] for example in source}

    def test_larger_images_are_averaged_and_others_kept(self, tmp_path):
        coarse = np.random.default_rng(0).integers(40, 200, size=(6, 8, 1)).repeat(3, 2)  # grey
        fine = np.kron(coarse, np.ones((40, 40, 1)))  # [240, 320, 3]
        fine[::2] += 40  # so that an image of every other line would be wrong by 20
        buffer = io.BytesIO()
        Image.fromarray(fine.astype(np.uint8)).save(buffer, "PNG")
        files = {
            "large.png": buffer.getvalue(),
            "wide.jpg": encode(1, height=60, width=300),
            "even.gif": encode(2, "GIF", height=80, width=60),
        }
        report, stored = self.write(tmp_path, files, 60)
        assert (report.shrunk, report.counts) == (2, {"train": 4, "validation": 4})  # of both splits
        assert stored["wide.jpg"] == files["wide.jpg"] and stored["even.gif"] == files["even.gif"]
        with Image.open(io.BytesIO(stored["large.png"])) as small:
            assert (small.format, small.size) == ("JPEG", (80, 60))
            expected = fine.reshape(60, 4, 80, 4, 3).mean(axis=(1, 3))
            assert np.abs(np.asarray(small) - expected).mean() < 1

    def test_sizes_are_rounded_and_quality_is_95(self, tmp_path):
        _, stored = self.write(tmp_path, {"a.jpg": encode(0, height=101, width=67, quality=80)}, 50)
        with (
            Image.open(io.BytesIO(stored["a.jpg"])) as small,
            Image.open(io.BytesIO(encode(0, quality=95))) as same,
        ):
            assert small.size == (50, 75) and small.quantization == same.quantization  # 101 * 50 / 67 = 75.4

    @pytest.mark.parametrize("orientation", [None, 6])
    def test_how_the_camera_was_held_is_kept(self, tmp_path, orientation):
        exif = Image.Exif()
        if orientation:
            exif[ExifTags.Base.Orientation] = orientation
        _, stored = self.write(tmp_path, {"a.jpg": encode(0, height=100, width=200, exif=exif)}, 50)
        with Image.open(io.BytesIO(stored["a.jpg"])) as small:
            assert small.size == (100, 50) and small.getexif().get(ExifTags.Base.Orientation) == orientation

    @pytest.mark.parametrize("background, outside", [("white", 255), ("black", 0)])
    def test_transparent_pixels_get_the_background_if_an_image_is_shrunk(self, tmp_path, background, outside):
        drawing = np.zeros((96, 96, 4), np.uint8)
        drawing[32:64, 32:64] = 60, 60, 60, 255
        buffer = io.BytesIO()
        Image.fromarray(drawing).save(buffer, "PNG")
        settings = {} if background == "white" else {"background": background}
        _, stored = self.write(tmp_path, {"large.png": buffer.getvalue()}, 24, **settings)
        pixels = np.asarray(Image.open(io.BytesIO(stored["large.png"])), int)
        expected = np.full((24, 24, 3), outside)
        expected[8:16, 8:16] = 60
        np.testing.assert_allclose(pixels, expected, atol=12)  # JPEG

    def test_the_background_is_a_setting_of_sets_with_shrunk_images_only(self, tmp_path, images):
        root = tmp_path / "images"
        of_version_0_1 = {"short_side", "class_names", "class_weights"}
        assert set(request(root).settings) == of_version_0_1
        assert set(request(root, short_side=9, background="black").settings) == of_version_0_1
        assert request(root, short_side=9).settings["background"] == "white"


def test_the_fingerprint_of_a_written_set_knows_every_record(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "SAMPLED", 0)  # without the records that those of other sets depend on
    files = {f"{s}/{c}/{i}.png": encode(i, "PNG") for s in ("train", "val") for c in "ab" for i in (len(s + c), 9)}
    prints = []
    for out in "one", "two", "three":
        if out == "two":  # two images change places, and classes
            first, second = "train/a/9.png", "train/b/6.png"
            files[first], files[second] = files[second], files[first]
        root = write_files(tmp_path / f"images of {out}", files)
        records_writer.write(request(root), tmp_path / out)
        prints.append(records.load("mine", root=str(tmp_path / out)).fingerprint())
    assert prints[0] != prints[1] == prints[2]


class TestUnreadable:
    @pytest.fixture
    def spoiled(self, tmp_path, images):
        """The images and 22 that are none."""
        bad = {f"train/ant/bad{i}.png": encode(i, "PNG")[: 50 + i] for i in range(21)}
        write_files(tmp_path / "images", {**bad, "val/ant/bad.jpg": b"<html>"})
        return tmp_path / "images"

    def test_all_are_told_and_nothing_is_written(self, tmp_path, spoiled):
        with pytest.raises(UserError, match=r"^unreadable images: 22; .*--skip-unreadable") as error:
            records_writer.write(request(spoiled), tmp_path / "out")
        lines = str(error.value).split("\n")
        assert len(lines) == 22 and lines[-1].strip() == "and 2 more"
        assert all("ant/bad" in line and ".png: " in line for line in lines[1:-1])
        assert not list((tmp_path / "out").iterdir())

    def test_they_are_left_out_if_asked(self, tmp_path, spoiled, images):
        report = records_writer.write(request(spoiled, skip_unreadable=True), tmp_path / "out")
        assert report.counts == {"train": 12, "validation": 4}
        assert len(report.left_out) == 22 and "ant/bad.jpg: not an image" in report.left_out[-1]
        written = records.load("mine", root=str(tmp_path / "out"))
        stored = [image for image, _ in contents(written.train) + contents(written.validation)]
        assert sorted(stored) == sorted(images.values())

    def test_none_left_is_an_error(self, tmp_path):
        files = {f"train/{c}/0.png": b"no" for c in "ab"} | {f"val/{c}/0.png": encode(0, "PNG") for c in "ab"}
        with pytest.raises(UserError, match=r"^no image for 'train' can be read; the first: [ab]/0\.png: "):
            records_writer.write(
                request(write_files(tmp_path / "p", files), skip_unreadable=True), tmp_path / "out"
            )


class TestPlace:
    """What is in the way, what is left, and that a set is whole or not there."""

    def test_the_same_set_is_left_alone(self, tmp_path, images):
        first = records_writer.write(request(tmp_path / "images", short_side=10), tmp_path / "out")
        before = snapshot(tmp_path / "out")
        again = records_writer.write(request(tmp_path / "images", short_side=10), tmp_path / "out")
        assert again.was_there and snapshot(tmp_path / "out") == before
        assert (again.counts, again.shrunk, again.directory) == (first.counts, first.shrunk, first.directory)
        assert first.shrunk == 16

    @pytest.mark.parametrize("change", ["content", "new", "gone", "class", "short_side"])
    def test_another_set_is_not_replaced(self, tmp_path, images, change):
        root, settings = tmp_path / "images", {}
        records_writer.write(request(root), tmp_path / "out")
        before = snapshot(tmp_path / "out")
        if change == "content":  # of the same length
            path = root / "train/ant/2.bmp"
            path.write_bytes(path.read_bytes()[:-1] + b"\x07")
        elif change == "new":
            (root / "val/ant/2.png").write_bytes(encode(99, "PNG"))
        elif change == "gone":
            (root / "train/ant/2.bmp").unlink()
        elif change == "class":
            for split in ("train", "val"):
                (root / split / "ant").rename(root / split / "aunt")
        else:
            settings["short_side"] = 1000
        with pytest.raises(
            ValueError, match=r"^out = '.*out': .*out/mine is there and was not made of these.*remove"
        ):
            records_writer.write(request(root, **settings), tmp_path / "out")
        assert snapshot(tmp_path / "out") == before

    @pytest.mark.parametrize("other", ["class,weight\nx,3\nz,1\n", "class,weight\ny,2\nz,1\n"])
    def test_other_weights_or_class_names_are_another_set(self, tmp_path, other):
        root = write_files(tmp_path / "p", {"a.png": encode(0, "PNG"), "b.png": encode(1, "PNG")})
        for classes in ("class,weight\nx,2\nz,1\n", other):
            name = classes.split()[1][0]
            (root / "c.csv").write_text(classes)
            (root / "t.csv").write_text(f"path,labels,split\na.png,{name},train\nb.png,{name},val\n")
            dataset = manifest.load(root / "t.csv", classes=str(root / "c.csv"), holdout=0.1)
            if classes != other:
                records_writer.write(records_writer.Request(dataset=dataset, name="mine"), tmp_path / "out")
        with pytest.raises(SettingError, match="was not made of these images with these settings"):
            records_writer.write(records_writer.Request(dataset=dataset, name="mine"), tmp_path / "out")

    def test_another_version_beside_it_is_told_of(self, tmp_path, images):
        report = records_writer.write(request(tmp_path / "images"), tmp_path / "out")
        (report.directory.parent / "2.0.0").mkdir()
        with pytest.raises(SettingError, match=r"^out = .*mine is there and holds 1\.0\.0, 2\.0\.0; remove it"):
            records_writer.write(request(tmp_path / "images"), tmp_path / "out")

    def test_a_damaged_set_is_told_of(self, tmp_path, images):
        report = records_writer.write(request(tmp_path / "images"), tmp_path / "out")
        path = next(report.directory.glob("*validation*"))
        content = bytearray(path.read_bytes())
        content[content.index(images["val/ant/0.jpg"][200:260])] ^= 1
        path.write_bytes(content)
        with pytest.raises(SettingError, match=r"^out = .*mine is there and is damaged .*mismatch.*; remove it"):
            records_writer.write(request(tmp_path / "images"), tmp_path / "out")

    @pytest.mark.parametrize("name", ["0.9.0", "config", "1.0.0"])
    def test_a_set_of_somebody_else_is_not_replaced(self, tmp_path, images, name):
        write_files(tmp_path / "out" / "mine", {f"{name}/features.json": b"{}"})
        before = snapshot(tmp_path / "out")
        with pytest.raises(
            SettingError, match=r"^out = .*out/mine is there and .*; remove it, or write to another"
        ):
            records_writer.write(request(tmp_path / "images"), tmp_path / "out")
        assert snapshot(tmp_path / "out") == before

    def test_other_sets_beside_it_do_not_matter(self, tmp_path, images):
        for name in ("mine", "yours"):
            records_writer.write(request(tmp_path / "images", name=name), tmp_path / "out")
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mine", "yours"]

    def test_what_a_killed_attempt_left_is_removed(self, tmp_path, images):
        write_files(
            tmp_path / "out" / ".mine.incomplete", {"mine/incomplete.x_1.0.0/mine-train": b"x", "stray": b"y"}
        )
        records_writer.write(request(tmp_path / "images"), tmp_path / "out")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]

    def test_a_kill_leaves_no_set(self, tmp_path, images):
        """SIGKILL to a process that has begun to write."""
        code = f"""
            import os, pathlib, signal
            from xception_jax.data.sources import folder, records_writer
            records_writer._hash_kept = lambda dataset: os.kill(os.getpid(), signal.SIGKILL)
            dataset = folder.load({str(tmp_path / "images")!r}, holdout=0.25)
            request = records_writer.Request(dataset=dataset, name="mine")
            records_writer.write(request, pathlib.Path({str(tmp_path / "out")!r}))
        """
        result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True)
        assert result.returncode == -9, result.stderr
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".mine.incomplete"]
        with pytest.raises(SettingError, match="holds no set 'mine', but none at all"):
            records.load("mine", root=str(tmp_path / "out"))
        assert not records_writer.write(request(tmp_path / "images"), tmp_path / "out").was_there

    def test_an_error_half_way_leaves_nothing(self, tmp_path, images, monkeypatch):
        def fail(*arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(records_writer, "_hash_kept", fail)
        with pytest.raises(KeyboardInterrupt):
            records_writer.write(request(tmp_path / "images"), tmp_path / "out")
        assert not list((tmp_path / "out").iterdir())

    def test_two_processes_do_not_write_the_same_set(self, tmp_path, images):
        work = tmp_path / "out" / ".mine.incomplete"
        write_files(work, {"mine/x": b"of the other"})
        handle = os.open(work, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(SettingError, match=r"^out = .*: another process is writing 'mine'; wait"):
            records_writer.write(request(tmp_path / "images"), tmp_path / "out")
        assert (work / "mine" / "x").exists()
        os.close(handle)

    def test_records_that_do_not_read_back_are_told_of(self, tmp_path, images, monkeypatch):
        write = tfds.core.ExampleWriter.write

        def forget(self, path, examples):
            _, *rest = examples
            return write(self, path, [rest[0], *rest])

        monkeypatch.setattr(tfds.core.ExampleWriter, "write", forget)
        with pytest.raises(OSError, match="what is read back is not what was written"):
            records_writer.write(request(tmp_path / "images"), tmp_path / "out")
        assert not list((tmp_path / "out").iterdir())


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write_archives(root, *, per_class=2, exceptions=(), reverse=False, prefix="", seed=0, held_out=range(1, 6)):
    """Archives of all classes: files of random bytes, but for `exceptions`; gives {name: content} of both."""
    rng, train = np.random.default_rng(seed), {}
    exceptions = dict(exceptions)
    with tarfile.open(root / "train.tar", "w") as outer:
        for synset in SYNSETS[:: -1 if reverse else 1]:
            files = {f"{synset}_{i}.JPEG": None for i in range(per_class)}
            files |= {name: content for name, content in exceptions.items() if name.startswith(synset)}
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as inner:
                for name, content in list(files.items())[:: -1 if reverse else 1]:
                    train[name] = content or hashlib.sha256(name.encode()).digest() + rng.bytes(rng.integers(99))
                    add(inner, prefix + name, train[name])
            add(outer, f"{prefix}{synset}.tar", buffer.getvalue())
    validation = {f"ILSVRC2012_val_{i:08d}.JPEG": b"image %d" % i for i in held_out}
    with tarfile.open(root / "val.tar", "w") as tar:
        for name in list(validation)[:: -1 if reverse else 1]:
            add(tar, prefix + name, validation[name])
    return train, validation


def load_archives(root, train, validation):
    counts = {"train": len(train), "validation": len(validation)}
    return imagenet.load(str(root / "train.tar"), str(root / "val.tar"), counts=counts)


def imagenet_request(dataset):
    return records_writer.Request(
        dataset=dataset, name="imagenet2012", version="5.1.0", encoding="jpeg", decode=False
    )


class TestImageNet:
    def test_files_labels_and_description_are_those_of_tfds(self, tmp_path):
        train, validation = write_archives(tmp_path)
        records_writer.write(imagenet_request(load_archives(tmp_path, train, validation)), tmp_path / "out")
        builder = tfds.builder("imagenet2012", data_dir=tmp_path / "out")  # by TFDS's own code for ImageNet
        assert (type(builder), str(builder.version)) == (tfds_imagenet.Builder, "5.1.0")
        assert (
            tfds.builder_from_directory(builder.data_dir).info.features.to_json()
            == builder.info.features.to_json()
        )
        decoders = {"image": tfds.decode.SkipDecoding()}
        examples = list(builder.as_data_source("train", decoders=decoders))
        assert {e["file_name"].decode(): e["image"] for e in examples} == train
        assert all(SYNSETS[e["label"]] == e["file_name"].decode()[:9] for e in examples)
        order = [e["file_name"] for e in examples]
        assert order == sorted(order, key=lambda name: hashlib.md5(b"train" + name).digest())
        for example in builder.as_data_source("validation", decoders=decoders):
            name = example["file_name"].decode()
            assert example["image"] == validation[name]
            assert SYNSETS[example["label"]] == VALIDATION[int(name[15:23]) - 1]

    def test_cmyk_and_png_become_rgb_jpegs(self, tmp_path):
        cmyk, png = tfds_imagenet.CMYK_IMAGES[3], tfds_imagenet.PNG_IMAGES[0]
        inks = np.array([[[30, 200, 90, 60]]], np.uint8).repeat(16, 0).repeat(24, 1)
        buffers = io.BytesIO(), io.BytesIO()
        Image.frombytes("CMYK", (24, 16), inks.tobytes()).save(buffers[0], "JPEG", quality=100)
        Image.new("RGBA", (24, 16), (10, 120, 230, 128)).save(buffers[1], "PNG")
        exceptions = {cmyk: buffers[0].getvalue(), png: buffers[1].getvalue()}
        train, validation = write_archives(tmp_path, exceptions=exceptions)
        source = load_archives(tmp_path, train, validation).train
        stored = {source.paths[i].decode(): source[i]["image"] for i in range(len(source))}
        light = [(255 - ink) * (255 - 60) // 255 for ink in (30, 200, 90)]
        for name, color in ((cmyk, light), (png, (10, 120, 230))):
            with Image.open(io.BytesIO(stored.pop(name))) as image:
                assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (24, 16))
                np.testing.assert_allclose(np.asarray(image, int), np.broadcast_to(color, (16, 24, 3)), atol=3)
        assert stored == {name: content for name, content in train.items() if name not in exceptions}

    def test_archives_made_anew_give_the_same(self, tmp_path):
        """With another order and with ./ before the names, as `tar -c .` writes them."""
        both = []
        for name, settings in (("a", {}), ("b", {"reverse": True, "prefix": "./"})):
            (tmp_path / name).mkdir()
            files = write_archives(tmp_path / name, per_class=1, **settings)
            both.append(load_archives(tmp_path / name, *files))
        for one, other in zip(*((dataset.train, dataset.validation) for dataset in both), strict=True):
            assert dict(zip(one.paths, one.labels, strict=True)) == dict(
                zip(other.paths, other.labels, strict=True)
            )

    @pytest.mark.parametrize(
        "spoil, message",
        [
            (lambda root: (root / "train.tar").unlink(), "train_tar = '.*train.tar': no such file"),
            (
                lambda root: (root / "val.tar").write_bytes(b"x" * 2000),
                "val_tar = .*: is not a whole, uncompressed tar",
            ),
            (lambda root: (root / "val.tar").rename(root / "train.tar"), "val_tar = .*: no such file"),
            (
                lambda root: (root / "val.tar").write_bytes((root / "train.tar").read_bytes()),
                "val_tar = .*: holds 0 images of this part of ImageNet instead of 5;",
            ),
            (
                lambda root: os.truncate(root / "train.tar", 5_000_000),
                "train_tar = .*: (is not a whole|holds 9[0-9]{2} images)",
            ),
            (
                lambda root: write_archives(root, per_class=1),
                "train_tar = .*: holds 1,000 images .* instead of 2,000",
            ),
        ],
    )
    def test_other_archives_are_refused(self, tmp_path, spoil, message):
        files = write_archives(tmp_path)
        spoil(tmp_path)
        with pytest.raises(SettingError, match=f"^{message}"):
            load_archives(tmp_path, *files)

    def test_a_missing_class_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setitem(globals(), "SYNSETS", SYNSETS[:-1])
        files = write_archives(tmp_path)
        with pytest.raises(
            ValueError, match=r"^train_tar = .*: lacks 1 of the 1000 classes, the first is n15075141"
        ):
            load_archives(tmp_path, *files)


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """ImageNet with four training images of each class, and three of every tenth to validate."""
    root = tmp_path_factory.mktemp("archives")
    held_out = [i + 1 for synset in SYNSETS[::10] for i in np.flatnonzero(synset == VALIDATION)[:3].tolist()]
    return load_archives(root, *write_archives(root, per_class=4, held_out=held_out))


class TestImageNet100:
    def test_every_tenth_class(self, archives):
        dataset = imagenet.choose_100(archives, seed=0, train=3, validation=2)
        assert dataset.class_names == tuple(SYNSETS[::10]) and len(dataset.class_names) == 100
        for source, count in ((dataset.train, 3), (dataset.validation, 2)):
            np.testing.assert_array_equal(np.bincount(source.labels), [count] * 100)
            assert len(set(source.paths.tolist())) == 100 * count
        names = [
            (path.decode()[:9], label)
            for path, label in zip(dataset.train.paths, dataset.train.labels, strict=True)
        ]
        assert all(SYNSETS[10 * label] == synset for synset, label in names)
        original = dict(zip(archives.validation.paths, archives.validation.labels, strict=True))
        for path, label in zip(dataset.validation.paths, dataset.validation.labels, strict=True):
            assert original[path] == 10 * label

    def test_the_seed_decides_which_images(self, archives):
        names = [
            imagenet.choose_100(archives, seed=s, train=2, validation=1).train.paths.tolist() for s in (0, 0, 1)
        ]
        assert names[0] == names[1] != names[2]

    def test_the_order_of_the_archive_does_not(self, archives):
        order = np.random.default_rng(0).permutation(len(archives.train))
        shuffled = archives.train.take(order, archives.train.labels[order])
        other = imagenet.Dataset(shuffled, archives.validation, archives.class_names)
        one, two = (imagenet.choose_100(d, seed=0, train=2, validation=1).train for d in (archives, other))
        np.testing.assert_array_equal(one.paths, two.paths)
        assert [one[i] for i in range(20)] == [two[i] for i in range(20)]

    def test_too_few_images_are_told_of(self, archives):
        with pytest.raises(
            SettingError, match=r"^train_tar = '.*train\.tar': has 4 images of class 0; 500 are needed"
        ):
            imagenet.choose_100(archives, seed=0)


@pytest.mark.parametrize("name", ["My", "my-set", "1st", "", "a/b", "_x", "imagenet2012", "cifar10", "mnist"])
def test_names_that_tfds_would_not_find_are_refused(name):
    with pytest.raises(SettingError, match=f"^name = '{name}': (must be|is the name of a set of TFDS)"):
        records_writer.check_name(name)


def test_other_names_are_allowed():
    for name in ("my_images", "set2", "imagenet100"):
        records_writer.check_name(name)


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(argument) for argument in arguments]))


class TestCommand:
    def test_it_says_what_was_written_and_how_to_train(self, tmp_path, images, capsys):
        out = tmp_path / "my data"
        (tmp_path / "images/train/ant/bad.png").write_bytes(b"no image")
        flags = [
            "--root",
            tmp_path / "images",
            "--name",
            "mine",
            "--short-side",
            10,
            "--skip-unreadable",
            "--out",
            out,
        ]
        for ending in ("", ", already there"):
            run("folder", *flags)
            first, shrunk, left_out, last = capsys.readouterr().out.splitlines()
            assert first == f"{out}/mine/1.0.0: 12 train and 4 validation records{ending}"
            assert shrunk == "shrunk to a shorter side of 10 pixels: 16 of 16"
            assert left_out.startswith("unreadable images left out: 1: ant/bad.png: ")
            assert last == f"train with --config.data.name=tfds:mine --config.data.root='{out}'"

    def test_a_table(self, tmp_path, capsys):
        root = write_files(tmp_path / "p", {f"{i}.png": encode(i, "PNG") for i in range(30)})
        (root / "t.csv").write_text("path,labels\n" + "".join(f"{i}.png,a;b\n" for i in range(30)))
        run("manifest", "--root", root / "t.csv", "--name", "table", "--holdout", 0.5, "--out", tmp_path / "out")
        written = records.load("table", root=str(tmp_path / "out"))
        assert len(written.train) + len(written.validation) == 30 and 5 < len(written.validation) < 25

    def test_both_sets_of_imagenet(self, tmp_path, capsys, monkeypatch):
        train, validation = write_archives(tmp_path)
        monkeypatch.setattr(imagenet, "COUNTS", {"train": len(train), "validation": len(validation)})
        monkeypatch.setattr(imagenet.load, "__kwdefaults__", {"counts": imagenet.COUNTS})
        flags = [
            "--train-tar",
            tmp_path / "train.tar",
            "--val-tar",
            tmp_path / "val.tar",
            "--out",
            tmp_path / "out",
        ]
        run("imagenet2012", *flags)
        assert "5.1.0: 2,000 train and 5 validation records" in capsys.readouterr().out
        with pytest.raises(UserError, match=r"^--train-tar=.*train\.tar: has 2 images of class 0; 500 are needed"):
            run("imagenet100", *flags)
        monkeypatch.setattr(imagenet.choose_100, "__kwdefaults__", {"train": 2, "validation": 0})
        with pytest.raises(UserError, match="--seed=-1: must be at least 0"):
            run("imagenet100", *flags, "--seed", -1)

    @pytest.mark.parametrize(
        "flags, message",
        [
            (["--root", "/gone"], "--root=/gone: no such folder"),
            (["--name", "My"], "--name=My: must be"),
            (["--holdout", "1"], r"--holdout=1\.0: must be a share"),
            (["--short-side", "0"], "--short-side=0: must be at least 1 pixel"),
            (["--root", "images/train/ant"], "--root=images/train/ant: images/train/ant has no folders; .*parent"),
        ],
    )
    def test_mistakes_name_the_flag(self, tmp_path, images, flags, message, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError, match=f"^{message}"):
            run("folder", "--root", tmp_path / "images", "--name", "mine", "--out", tmp_path / "out", *flags)
        assert not (tmp_path / "out").exists()

    def test_a_full_disk_is_one_line_and_leaves_nothing(self, tmp_path, images, monkeypatch):
        def fail(self, path, examples):
            raise RuntimeError(f"write() failed: No space left on device; writing {path}; at byte 65536")

        monkeypatch.setattr(tfds.core.ExampleWriter, "write", fail)
        with pytest.raises(
            TrainingError, match=r"^--out=.*out: write\(\) failed: No space left on device; nothing"
        ):
            run("folder", "--root", tmp_path / "images", "--name", "mine", "--out", tmp_path / "out")
        assert not list((tmp_path / "out").iterdir())

    def test_a_place_that_cannot_be_written(self, tmp_path, images):
        (tmp_path / "out").write_text("a file")
        with pytest.raises(TrainingError, match=r"^--out=.*out: .*File exists"):
            run("folder", "--root", tmp_path / "images", "--name", "mine", "--out", tmp_path / "out")

    def test_it_runs_where_tensorflow_is_not_installed(self, tmp_path, images):
        code = f"""
            import argparse, sys
            from importlib.machinery import PathFinder

            class WithoutTensorFlow(PathFinder):
                @classmethod
                def find_spec(cls, name, path=None, target=None):
                    return None if name == "tensorflow" else super().find_spec(name, path, target)

            sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTensorFlow
            from xception_jax.commands import prepare
            from xception_jax.data.sources import records

            parser = argparse.ArgumentParser()
            prepare.add_arguments(parser)
            prepare.run(parser.parse_args())
            dataset = records.load("mine", root={str(tmp_path / "out")!r})
            print(len(dataset.train), sum(len(dataset.train[i]["image"]) for i in range(len(dataset.train))))
        """
        flags = ["--root", tmp_path / "images", "--name", "mine", "--out", tmp_path / "out"]
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(code), "folder", *map(str, flags)],
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        size = sum(len(content) for name, content in images.items() if name.startswith("train/"))
        assert result.stdout.splitlines()[-1] == f"12 {size}"
        assert "records" in result.stdout and "images/s" not in result.stderr
