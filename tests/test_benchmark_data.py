"""Preparing images: all sides prepare the same, the stages add up, and what is printed is what the file has."""

import argparse
import csv
import json
import os
import pathlib
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from xception_jax import __main__, data
from xception_jax.commands.benchmark import data as command
from xception_jax.commands.benchmark import device, pictures, records, versus

TINY = ("--pictures=8", "--batch=4", "--rounds=3", "--image-size=32")
# What stands for TensorFlow's worker: seconds that are known, for boxes that lie in their pictures.
PEER = """
import json, pathlib, sys
options = json.loads(sys.argv[1])
plan = json.loads(pathlib.Path(options["plan"]).read_text())
sizes = json.loads(pathlib.Path(__file__).with_name("sizes.json").read_text())
assert options["batch"] == 4 and options["batches"] == 2 and options["image_size"] == 32
assert options["method"] == "bilinear" and len(plan["paths"]) == len(plan["windows"]) == 4 * 8
for path, (top, left, height, width) in zip(plan["paths"], plan["windows"]):
    rows, columns = sizes[pathlib.Path(path).name]
    assert top >= 0 and left >= 0 and height > 0 and width > 0
    assert top + height <= rows and left + width <= columns
print(json.dumps({"setup_seconds": 1, "versions": {"tensorflow": "9.8"}}), flush=True)
for _ in sys.stdin:
    print(json.dumps({"seconds": {"cpu": 8.0, "wall": 16.0}}), flush=True)
"""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    return pictures.make_photographs(folder, 12)


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    """Runs `python -m xception_jax benchmark data ...` here; the rows of the file."""
    monkeypatch.setattr(device, "BUSY_SECONDS", 0.01)
    path = tmp_path / "results" / "data.csv"

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["xception_jax", "benchmark", "data", *arguments, f"--csv={path}"])
        __main__.main()
        return records.read(path)

    return run


def size_of(file):
    """(height, width) in its header."""
    with Image.open(file) as image:
        return image.height, image.width


def make_work(source, **changes):
    """Two batches of 4 a round from all of a source's files."""
    flags = {"image_size": 32, "resize": "bilinear", "batch": 4, "rounds": 2} | changes
    files = tuple(source.name(index) for index in range(len(source)))
    sizes = tuple(map(size_of, files))
    members = tuple((source, index) for index in range(len(source)))
    found = pictures.Pictures("test", members, files, sizes, 90.0)
    return pictures.Work.from_arguments(argparse.Namespace(**flags), found)


class TestPhotographs:
    def test_they_are_of_imagenets_size(self, photographs):
        sizes = np.array([size_of(photographs.name(index)) for index in range(12)])
        lengths = np.array([os.path.getsize(photographs.name(index)) for index in range(12)])
        longer, shorter = sizes.max(1), sizes.min(1)
        assert 440 <= longer.min() < longer.max() <= 560 and 330 <= shorter.min() < shorter.max() <= 420
        assert 0 < (sizes[:, 0] > sizes[:, 1]).sum() < 6  # upright
        assert 80_000 < lengths.mean() < 110_000 and lengths.min() > 50_000

    def test_they_are_the_same_each_time_and_none_twice(self, photographs, tmp_path):
        again = pictures.make_photographs(tmp_path, 12)
        files = [photographs[index]["image"] for index in range(12)]
        assert files == [again[index]["image"] for index in range(12)]
        assert len(set(files)) == 12


class TestSides:
    def test_the_plain_loop_prepares_what_training_does(self, photographs):
        """Pixel for pixel, in its order."""
        work = make_work(photographs)
        for number in range(2):
            batches = command.Pipeline(work).batches(number)
            next(batches)  # the one between the rounds
            for tasks in work.batches(number):
                actual = command.PlainLoop(work).prepare(tasks, command.Clock())
                np.testing.assert_array_equal(actual, next(batches)["image"])
            batches.close()

    @pytest.mark.parametrize("method", ["pillow_nearest", "pillow_bilinear", "pillow_bicubic"])
    def test_pillow_prepares_the_same_where_the_interpolation_is_pillows(self, photographs, method):
        work = make_work(photographs, resize=method)
        (tasks, *_) = work.batches(0)
        actual = [command.Pillow(work).prepare(task) for task in tasks]
        np.testing.assert_array_equal(actual, command.PlainLoop(work).prepare(tasks, command.Clock()))

    def test_a_draft_is_nearly_the_same_picture(self, photographs):
        work = make_work(photographs)
        assert work.may_draft and not make_work(photographs, image_size=299).may_draft
        tasks = [task for task in work.plan[0] if work.scale(task) >= 2]
        plain, draft = (np.array([command.Pillow(work, d).prepare(t) for t in tasks], int) for d in (False, True))
        assert 0 < np.abs(plain - draft).mean() < 3

    def test_the_stages_add_up_to_the_whole(self, photographs):
        side = command.PlainLoop(make_work(photographs, image_size=128))
        side(0)
        times = side(1)
        assert list(times) == ["read", "decode", "crop", "resize", "stack", "all", "transfer"]
        for kind in ("cpu", "wall"):
            parts = {stage: getattr(seconds, kind) for stage, seconds in times.items()}
            del parts["transfer"]
            assert parts.pop("all") == pytest.approx(sum(parts.values()), rel=0.05)
        assert times["decode"].cpu > times["all"].cpu / 2

    def test_the_pipeline_leaves_no_thread(self, photographs):
        before = threading.active_count()
        times = command.Pipeline(make_work(photographs))(0)
        assert list(times) == ["all"] and times["all"].cpu > 0
        assert threading.active_count() == before


class TestCommand:
    def test_rows_and_console_agree(self, benchmark, capsys):
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        rows = benchmark(*TINY, "--feed=500")
        printed = capsys.readouterr().out
        if cores:
            assert os.sched_getaffinity(0) == cores
            assert {row["cores"] for row in rows} == {str(len(cores))}
        stages = [row for row in rows if row["benchmark"] == "data stage"]
        assert [row["stage"] for row in stages] == list(command.STAGES)
        sides = {row["side"]: row for row in rows if row["benchmark"] == "data"}
        assert list(sides) == ["plain loop", "pipeline", "Pillow", "Pillow draft"]
        for row in rows:
            assert (row["rounds"], row["images"], row["pictures"], row["batch"]) == ("3", "8", "8", "4")
            low, median, high = (float(row[key]) for key in ("cpu_seconds_low", "cpu_seconds", "cpu_seconds_high"))
            assert 0 <= low <= median <= high
            assert row["command"].startswith("python -m xception_jax benchmark data --pictures=8")
            assert "opencv" in row["peer"] and "grain" in row["peer"]
        for row in sides.values():
            assert float(row["images_per_second"]) == pytest.approx(1 / float(row["cpu_seconds"]), rel=1e-4)
        assert float(sides["plain loop"]["of_bare"]) == float(sides["pipeline"]["of_pipeline"]) == 1
        assert float(sides["Pillow"]["of_bare"]) > 1
        share = 1 - 1 / float(sides["pipeline"]["of_bare"])
        assert f"Grain takes {share:.1%} of the pipeline's time" in printed
        assert f"500 images/s take {500 * float(sides['pipeline']['cpu_seconds']):.1f} cores" in printed
        decode = next(row for row in stages if row["stage"] == "decode")
        line = next(line for line in printed.splitlines() if line.startswith("decode"))
        assert line.split()[1:3] == [
            f"{1000 * float(decode['cpu_seconds']):.3f}",
            f"{float(decode['of_bare']):.1%}",
        ]

    def test_ratios_are_of_the_same_round(self, photographs, monkeypatch):
        monkeypatch.setattr(device, "BUSY_SECONDS", 0.01)
        cpu = {"plain loop": [2.0, 1.0, 4.0], "pipeline": [4.0, 4.0, 4.0]}
        rounds = [
            {side: {"all": command.Seconds(values[i], 9.0)} for side, values in cpu.items()} for i in range(3)
        ]
        rows = command.make_rows(make_work(photographs), dict.fromkeys(cpu), rounds)
        # 4/2, 4/1 and 4/4; the ratio of the medians would be 4/2 too, but not its quartiles.
        assert [rows[1][key] for key in records.OF_BARE] == [2.0, 1.5, 3.0]
        assert [rows[0][key] for key in records.OF_PIPELINE] == [0.5, 0.375, 0.75]
        assert [rows[0][key] for key in records.CPU] == [2.0, 1.5, 3.0] and rows[0]["wall_seconds"] == 9.0

    def test_tf_data_gets_the_same_boxes_in_turn(self, benchmark, monkeypatch, tmp_path, capsys):
        known = pictures.make_photographs(tmp_path, 8)
        sizes = {os.path.basename(known.name(i)): size_of(known.name(i)) for i in range(8)}
        (tmp_path / "sizes.json").write_text(json.dumps(sizes))
        (tmp_path / "peer_tfdata.py").write_text(PEER)
        monkeypatch.setattr(versus, "WORKERS", tmp_path)
        rows = benchmark(*TINY, "--against=tfdata")
        assert rows[-1]["side"] == "tf.data" and rows[-1]["peer"] == "tensorflow 9.8"
        assert float(rows[-1]["cpu_seconds"]) == 1 and float(rows[-1]["wall_seconds"]) == 2  # of 8 images
        assert "\ntf.data       1000.000 2000.000         1" in capsys.readouterr().out

    def test_own_pictures_are_spread_over_all_parts(self, benchmark, photographs, tmp_path):
        for number in range(12):
            path = tmp_path / "own" / ("train" if number < 9 else "val") / "ab"[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photographs[number]["image"])
        root = tmp_path / "own"
        flags = {"data_name": "folder", "root": str(root), "pictures": 4, "batch": 4}
        found = pictures.find_pictures(argparse.Namespace(**flags), tmp_path)
        parts = [os.path.relpath(file, root).split(os.sep)[0] for file in found.files]
        assert parts == ["train", "train", "train", "val"]
        assert found.sizes == tuple(map(size_of, found.files))
        assert found.kilobytes == pytest.approx(np.mean([os.path.getsize(file) for file in found.files]) / 1000)
        rows = benchmark(*TINY, "--data-name=folder", f"--root={root}")
        assert {row["data"] for row in rows} == {f"folder {root}"}

    def test_pictures_in_records_get_files_for_the_others(self, photographs, monkeypatch, tmp_path):
        class Records:
            __len__ = photographs.__len__
            __getitem__ = photographs.__getitem__

            def name(self, index):
                return f"record {index}"

        monkeypatch.setattr(data, "load", lambda *_, **__: data.Dataset(Records(), Records(), ("a",)))
        flags = {"data_name": "tfds:x", "root": None, "pictures": 6, "batch": 4}
        found = pictures.find_pictures(argparse.Namespace(**flags), tmp_path)
        for index, file in enumerate(found.files):
            with open(file, "rb") as opened:
                assert opened.read() == found[index]["image"]

    def test_the_table_shows_both_kinds_of_rows(self, benchmark, monkeypatch, tmp_path, capsys):
        benchmark(*TINY)
        path = tmp_path / "results" / "data.csv"
        monkeypatch.setattr(sys, "argv", ["xception_jax", "benchmark", "table", f"--csv={path}"])
        capsys.readouterr()
        __main__.main()
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("| pictures | device | prepared by |")
        assert [line.split(" | ")[2] for line in lines if "| plain loop |" in line] == ["plain loop"]
        stages = [line.split(" | ")[2] for line in lines if "photographs" in line][4:]
        assert stages == list(command.STAGES)


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--data-name=folder", "--root=/nowhere"], "error: --root='/nowhere': no such folder; name one"),
            (["--data-name=folder"], "error: --root=None: dataset 'folder' needs it; name the folder"),
            (["--data-name=digits"], "error: --data-name=digits: has no image files; choose folder"),
            (["--root=/data"], "error: --root=/data: of what? say --data-name=folder"),
            (["--pictures=3", "--batch=4"], "error: --batch=4: there are only 3 pictures; choose at most 3"),
            (["--rounds=0"], "argument --rounds: 0: must be at least 1"),
            (["--against=tfdata", "--peer-python=/no/python"], "error: --peer-python=/no/python: No such file"),
        ],
    )
    def test_each_is_one_line(self, failure, arguments, message):
        assert message in failure(*TINY, *arguments)

    def test_a_python_without_tensorflow_says_what_to_install(self, failure, tmp_path):
        """With -S python sees no installed packages."""
        python = tmp_path / "bare"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
        python.chmod(0o755)
        message = failure(*TINY, "--against=tfdata", f"--peer-python={python}")
        assert message.startswith(
            f"error: --against=tfdata: {python} has no tensorflow; pip install tensorflow-cpu"
        )

    def test_a_picture_that_is_damaged_or_no_jpeg_is_named(self, failure, tmp_path):
        for number in range(4):
            folder = tmp_path / "own" / ("train", "val")[number % 2] / "a"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (50, 40)).save(folder / f"{number}.png")
        flags = ("--data-name=folder", f"--root={tmp_path / 'own'}")
        message = failure(*TINY, *flags, "--against=tfdata")
        assert (
            message.startswith("error: --against=tfdata: decodes parts of JPEG files only") and "0.png" in message
        )
        (folder / "3.png").write_bytes(b"")
        assert failure(*TINY, *flags).endswith("3.png: is empty; repair or remove the file")

    def test_a_file_of_other_measurements_is_refused(self, failure, tmp_path):
        path = tmp_path / "results" / "data.csv"
        path.parent.mkdir()
        with path.open("w", newline="") as file:
            csv.writer(file).writerow(records.COLUMNS)
        assert failure(*TINY).startswith(f"error: --csv={path}: has other columns (")


def test_the_readme_has_the_measured_numbers():
    root = pathlib.Path(__file__).parent.parent
    with (root / "results" / "data.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["stage"] == command.ALL]
    made = {row["side"]: row for row in rows if row["data"].startswith("photographs")}
    stored = {row["data"].split()[0]: row for row in rows if row["side"] == command.PIPELINE}
    text = " ".join((root / "README.md").read_text().split())
    pipeline = made[command.PIPELINE]
    expected = [
        f"takes {1000 * float(pipeline['cpu_seconds']):.2f} ms",
        f"({float(pipeline['images_per_second']):.0f} images/s",
        f"Pillow takes {float(made[command.PILLOW]['of_pipeline']):.2f} times as long",
        f"tf.data {float(made[command.TFDATA]['of_pipeline']):.2f} times",
        f"Grain has {1 - 1 / float(pipeline['of_bare']):.0%}".replace("%", " %"),
        *(f"{float(stored[f'tfds:p{side}']['images_per_second']):,.0f}" for side in (0, 352, 299)),
    ]
    assert [part for part in expected if part not in text] == []
