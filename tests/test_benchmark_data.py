"""Preparing images: the batches are those of training, the stages add up, the file has what is printed."""

import argparse
import io
import os
import pathlib
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from xception_jax import __main__, data
from xception_jax.commands import device
from xception_jax.commands.benchmark import data as command
from xception_jax.commands.benchmark import images, rows

TINY = ("--images=8", "--batch=4", "--rounds=3", "--image-size=32")
ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    """Runs `python -m xception_jax benchmark data ...` here; the rows of the file."""
    monkeypatch.setattr(device, "BUSY_SECONDS", 0.01)
    path = tmp_path / "results" / "data.csv"

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["xception_jax", "benchmark", "data", *arguments, f"--csv={path}"])
        __main__.main()
        return rows.read(path)

    return run


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return images.make_photographs(tmp_path_factory.mktemp("photographs"), 12)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Two batches of 4 a round, from 8 photographs."""
    flags = {"data_name": None, "root": None, "images": 8, "image_size": 128, "resize": "bilinear", "batch": 4}
    return command.Work.from_arguments(argparse.Namespace(**flags), tmp_path_factory.mktemp("work"))


def test_photographs_are_like_imagenets_and_the_same_each_time(photographs, tmp_path):
    files = [photographs[index]["image"] for index in range(12)]
    again = images.make_photographs(tmp_path, 12)
    assert files == [again[index]["image"] for index in range(12)] and len(set(files)) == 12
    sizes = np.array([Image.open(io.BytesIO(file)).size for file in files])
    longer, shorter = sizes.max(1), sizes.min(1)
    assert 440 <= longer.min() < longer.max() <= 560 and 330 <= shorter.min() < shorter.max() <= 420
    assert 0 < (sizes[:, 1] > sizes[:, 0]).sum() < 6  # upright
    lengths = np.array(list(map(len, files)))
    assert 80_000 < lengths.mean() < 110_000 and lengths.min() > 50_000


class TestPipeline:
    def test_the_stages_add_up_to_the_whole_and_leave_no_thread(self, work):
        before = threading.active_count()
        times = command.pipeline(work, 1)
        assert threading.active_count() == before
        assert list(times) == list(command.STAGES) and min(times.values()) > 0
        assert times.pop("prepare") == pytest.approx(sum(times.values())) and times["decode"] == max(
            times.values()
        )

    def test_rounds_prepare_the_batches_of_training_in_their_order(self, work, monkeypatch):
        """Two batches a round; the one before each round starts the thread."""
        prepared, train_batches = [], data.train_batches

        def recorded(*arguments, **settings):
            for step in train_batches(*arguments, **settings):
                prepared.append(step["image"])
                yield step

        monkeypatch.setattr(data, "train_batches", recorded)
        command.pipeline(work, 1)
        reader = data.Reader(work.source, command.DECODE)
        plain = train_batches(reader, work.transform, batch_size=4, seed=images.SEED, num_threads=1)
        expected = [next(plain)["image"] for _ in range(6)][3:]
        plain.close()
        np.testing.assert_array_equal(prepared, expected)


class TestCommand:
    def test_rows_and_console_agree(self, benchmark, capsys):
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        measured = benchmark(*TINY, "--feed=500")
        printed = capsys.readouterr().out
        if cores:
            assert os.sched_getaffinity(0) == cores
        assert [(row["what"], row["by"]) for row in measured] == [(stage, "pipeline") for stage in command.STAGES]
        for row in measured:
            low, median, high = (float(row[key]) for key in ("seconds_low", "seconds", "seconds_high"))
            assert 0 <= low <= median <= high
            assert row["inputs"].startswith("photographs made for this, ") and row["images"] == "1"
            assert row["command"].startswith("python -m xception_jax benchmark data --images=8")
            assert "opencv" in row["versions"] and "grain" in row["versions"]
        whole, decode = measured[0], measured[2]
        assert f"500 images/s take {500 * float(whole['seconds']):.1f} cores" in printed
        line = next(line for line in printed.splitlines() if line.startswith("decode"))
        assert line.split()[1:3] == [f"{1000 * float(decode['seconds']):.3f}", f"{float(decode['ratio']):.1%}"]

    def test_shares_are_of_the_same_round(self, work):
        whole, decode = [4.0, 4.0, 4.0], [2.0, 1.0, 4.0]
        rounds = [dict.fromkeys(command.STAGES, d) | {"prepare": w} for w, d in zip(whole, decode, strict=True)]
        row = command.make_rows(work, rounds)[2]
        assert [row[key] for key in rows.RATIO] == [0.5, 0.375, 0.75] and row["reference"] == "prepare"

    def test_own_images_are_spread_over_the_dataset(self, benchmark, photographs, tmp_path):
        for number in range(12):
            path = tmp_path / "own" / ("train" if number < 9 else "val") / "ab"[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photographs[number]["image"])
        root = str(tmp_path / "own")
        flags = {"data_name": "folder", "root": root, "images": 3, "batch": 3, "image_size": 32}
        work = images.Work.from_arguments(argparse.Namespace(resize="bilinear", **flags), tmp_path)
        names = [
            pathlib.Path(work.source.name(index)).name for index in range(4)
        ]  # of a: 0 2 4 6 8, of b: 1 3 5 7
        assert work.count == 3 and names == ["0.jpg", "8.jpg", "7.jpg", "0.jpg"]
        assert len(work.source) >= images.LENGTH
        sizes = [len(photographs[number]["image"]) for number in (0, 8, 7)]
        assert work.kilobytes == pytest.approx(np.mean(sizes) / 1000)
        measured = benchmark(*TINY, "--data-name=folder", f"--root={root}")
        assert {row["inputs"].partition(",")[0] for row in measured} == {f"folder {root}"}


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--data-name=folder", "--root=/nowhere"], "error: --root=/nowhere: no such folder; name one"),
            (["--data-name=digits"], "error: --data-name=digits: has no image files; choose folder"),
            (["--root=/data"], "error: --root=/data: of what? say --data-name=folder"),
            (["--images=3", "--batch=4"], "error: --batch=4: there are only 3 images; choose at most 3"),
            (["--rounds=0"], "argument --rounds: 0: must be at least 1"),
        ],
    )
    def test_each_is_one_line(self, failure, arguments, message):
        assert message in failure(*TINY, *arguments)

    def test_a_damaged_image_is_named(self, failure, tmp_path):
        for number in range(8):
            folder = tmp_path / "own" / ("train", "val")[number // 6] / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (50, 40)).save(folder / f"{number}.png")
        (tmp_path / "own/train/b/3.png").write_bytes(b"")
        message = failure(*TINY, "--data-name=folder", f"--root={tmp_path / 'own'}")
        assert message.endswith("3.png: is empty; repair or remove the file")


def test_the_pages_have_the_measured_numbers():
    measured = [row for row in rows.read(ROOT / "results" / "data.csv") if row["what"] == "prepare"]
    made = {row["by"]: row for row in measured if row["inputs"].startswith("photographs")}
    stored = {row["inputs"].split()[0]: row for row in measured if row["by"] == "pipeline"}
    seconds = float(made["pipeline"]["seconds"])
    readme = [f"{1000 * seconds:.2f} ms", f"Pillow takes {float(made['Pillow']['ratio']):.2f} times as long"]
    page = [
        f"takes {1000 * seconds:.2f} ms",
        f"{1 / seconds:.0f} images/s",
        f"Grain takes {1 - 1 / float(made['pipeline']['ratio']):.0%}".replace("%", " %"),
        readme[1],
        f"tf.data {float(made['tf.data']['ratio']):.2f} times",
        *(f"{1 / float(stored[f'tfds:p{side}']['seconds']):,.0f}" for side in (0, 352, 299)),
    ]
    for path, parts in {"README.md": readme, "docs/data.md": page}.items():
        text = " ".join((ROOT / path).read_text().split())
        assert [part for part in parts if part not in text] == []
