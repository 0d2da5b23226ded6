"""tools/race.py: sides alternate, rows have the columns of the benchmarks, mistakes are one line."""

import contextlib
import importlib
import io
import json
import pathlib
import sys

import numpy as np
import pytest

from xception_jax.commands import device
from xception_jax.commands.benchmark import data, rows
from xception_jax.data.images.resizing import resize
from xception_jax.errors import TrainingError

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
race = importlib.import_module("race")
commits, images, peers, recurrent = race.commits, race.images, race.peers, race.recurrent

STEP = ("step", "--batch=2", "--image-size=8", "--rounds=3", "--set", "num_classes=10", "stem_widths=4,4")
STEP += ("stem_strides=1,1", "stem_padding=SAME", "entry_widths=8,", "middle_blocks=0", "exit_widths=8,8,8")
DATA = ("data", "--images=8", "--batch=4", "--rounds=3", "--image-size=32")

# A worker that appends its name to a file at each step, says that the steps took the seconds it was told, and dies
# when it is asked for more.
SCRIPT = """
import json, sys
name, path, seconds = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
print("noise", file=sys.stderr)
print(json.dumps({"setup_seconds": 1.5, "versions": {"timm": "1.2"}, "file": path}), flush=True)
for value in seconds:
    sys.stdin.readline()
    with open(path, "a") as file:
        file.write(name)
    print(json.dumps({"seconds": value}), flush=True)
print("Killed: out of memory", file=sys.stderr)
sys.exit(3)
"""


@pytest.fixture
def scripted(tmp_path):
    """scripted(name, seconds): the command that starts such a worker."""
    (tmp_path / "worker.py").write_text(SCRIPT)

    def command(name, seconds):
        parts = [sys.executable, "-S", tmp_path / "worker.py", name, tmp_path / "turns", json.dumps(seconds)]
        return list(map(str, parts))

    return command


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    """Runs `python tools/race.py ...` here; (the rows of its file, what it printed)."""
    monkeypatch.setattr(device, "BUSY_SECONDS", 0.01)
    path = tmp_path / "results.csv"

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tools/race.py", *arguments, f"--csv={path}"])
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            race.main()
        return rows.read(path), printed.getvalue()

    return run


@pytest.fixture
def bare_python(tmp_path):
    """A python that sees no installed packages."""
    path = tmp_path / "bare"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    path.chmod(0o755)
    return path


class TestTexts:
    def test_all_sides_take_turns_with_the_same_lengths(self, benchmark, scripted, monkeypatch, tmp_path):
        """Each round has 8 steps; the packed side of torch and the padded one are workers of their own."""
        asked = []

        def command(script, options, python=sys.executable):
            asked.append(options)
            packed = options.get("packed")
            name = {"text_step.py": "A", "peer_text_torch.py": "C" if packed else "B"}[script]
            return scripted(name, {"A": [8, 16], "B": [16, 16], "C": [32, 64]}[name])

        monkeypatch.setattr(recurrent, "command", command)
        arguments = ("recurrent", "--cell=gru", "--batch=4", "--hidden=5", "--rounds=2", "--fixed-vectors")
        measured, _ = benchmark(*arguments, "--against", "torch", "packed")
        assert (tmp_path / "turns").read_text() == "ABCABC"
        assert all(options["lengths"] == asked[0]["lengths"] for options in asked)
        found = [(row["by"], row["reference"], row["ratio"], row["seconds"]) for row in measured]
        assert found == [
            ("gru", "torch gru", "0.75", "1.5"),
            ("gru", "packed gru", "0.25", "1.5"),
            ("torch gru", "", "", "2"),
            ("packed gru", "", "", "6"),
        ]
        assert measured[0]["inputs"] == "AG News lengths, state 5, fixed vectors"

    def test_lengths_are_like_those_of_ag_news(self):
        lengths = recurrent.draw_lengths(1000)
        assert lengths.shape == (8, 1000) and lengths.min() >= 8 and lengths.max() <= 200
        assert np.median(lengths) == pytest.approx(42, abs=1) and lengths.mean() == pytest.approx(44, abs=1)


class TestSteps:
    def test_steps_alternate_and_each_mode_has_a_row_for_each_side(
        self, benchmark, scripted, monkeypatch, tmp_path
    ):
        monkeypatch.setattr(peers, "own_command", lambda *_: scripted("A", [2, 6, 8]))
        monkeypatch.setattr(peers.Peer, "command", lambda *_: scripted("B", [1, 2, 8]))
        measured, printed = benchmark(*STEP, "--against=timm", "--amp")
        assert (tmp_path / "turns").read_text() == "ABABABABABAB"
        assert [(row["what"], row["by"].split()[0]) for row in measured] == [
            (mode, side) for mode in ("train", "inference") for side in ("xception", "timm")
        ]
        ours, theirs = measured[:2]
        # The ratios are 2, 3 and 1; the ratio of the medians would be 3.
        assert [ours[key] for key in rows.RATIO] == ["2", "1.5", "2.5"] and theirs["ratio"] == ""
        assert ours["reference"] == theirs["by"] == "timm legacy_xception"
        assert (ours["inputs"], theirs["inputs"]) == ("8 px, float32", "8 px, bfloat16")
        assert (ours["seconds"], theirs["seconds"]) == ("6", "2") and "timm 1.2" in ours["versions"]
        assert ours["command"].startswith("python tools/race.py step --batch=2")
        assert "note: timm legacy_xception computes in bfloat16, this package in float32" in printed

    def test_a_worker_that_dies_gives_its_last_words(self, scripted):
        message = r"^the timm process ended with code 3: Killed: out of memory$"
        with pytest.raises(TrainingError, match=message), peers.start("timm", scripted("A", [1])) as worker:
            assert worker() == 1
            worker()

    @pytest.mark.slow
    def test_our_worker_races_itself(self, benchmark):
        """The one race with real steps: this checkout against this checkout."""
        arguments = [
            "commits",
            f"--old={ROOT}",
            *STEP[1:],
            "--rounds=1",
            "--what",
            "inference",
            "data",
            "--images=4",
        ]
        measured, printed = benchmark(*arguments)
        assert [(row["what"], row["by"]) for row in measured] == [
            ("inference", "xception"),
            ("prepare", "pipeline"),
        ]
        assert all(float(row["ratio"]) > 0 and row["reference"] == commits.commit(ROOT) for row in measured)
        assert printed.count("below 1 is faster here") == 2

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--against=timm", "--peer-model=Xception"], "--peer-model=Xception: choose one of legacy_xception"),
            (["--against=keras", "--compile"], "--compile: keras is compiled by JAX"),
            (["--against=timm", "--peer-python=/no/python"], "--peer-python=/no/python: No such file"),
        ],
    )
    def test_a_mistake_is_one_line(self, failure, arguments, message):
        assert failure(*STEP, *arguments).startswith(f"error: {message}")

    @pytest.mark.parametrize("library", ["timm", "keras"])
    def test_a_missing_library_says_what_to_install(self, library, failure, bare_python):
        message = failure(*STEP, f"--against={library}", f"--peer-python={bare_python}")
        assert message.startswith(
            f"error: --against={library}: {bare_python} has no {library}; pip install {library}"
        )

    def test_another_checkout_must_be_one(self, failure, tmp_path):
        assert failure("commits", f"--old={tmp_path}").startswith(f"error: --old={tmp_path}: has no xception_jax")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """(work, tasks of a round): two batches of 4, from 8 photographs."""
    folder = tmp_path_factory.mktemp("work")
    flags = {
        "data_name": None,
        "root": None,
        "images": 8,
        "image_size": 32,
        "resize": "pillow_bilinear",
        "batch": 4,
    }
    made = data.Work.from_arguments(images.argparse.Namespace(**flags), folder)
    return made, images.draw(made, images.write_files(made, folder), rounds=2)


# In the place of TensorFlow's worker: seconds that are known, for boxes that lie in their images.
TFDATA = """
import json, pathlib, sys
options = json.loads(sys.argv[1])
tasks = json.loads(pathlib.Path(options["tasks"]).read_text())
assert options["batch"] == 4 and options["batches"] == 2 and options["image_size"] == 32
assert options["method"] == "bilinear" and len(tasks["paths"]) == len(tasks["windows"]) == 4 * 8
for path, (top, left, height, width) in zip(tasks["paths"], tasks["windows"]):
    assert pathlib.Path(path).read_bytes()[:3] == bytes([255, 216, 255])
    assert 0 <= top < top + height <= 560 and 0 <= left < left + width <= 560
print(json.dumps({"setup_seconds": 1, "versions": {"tensorflow": "9.8"}, "file": ""}), flush=True)
for _ in sys.stdin:
    print(json.dumps({"seconds": 8.0}), flush=True)
"""


class TestImages:
    def test_pillow_prepares_what_the_pipeline_does_where_the_interpolation_is_pillows(self, work):
        work, (tasks, _) = work
        for task in tasks[:3]:
            with images.Image.open(task.file) as image:
                pixels = np.asarray(image.convert("RGB"))
            expected = resize(pixels, (32, 32), method="pillow_bilinear", box=task.box)
            np.testing.assert_array_equal(images.Pillow(work, []).prepare(task), expected)

    def test_a_draft_is_nearly_the_same_image(self, work):
        work, rounds = work
        tasks = [task for tasks in rounds for task in tasks if min(np.subtract(task.box[2:], task.box[:2])) >= 64]
        plain, draft = (
            np.array([images.Pillow(work, rounds, draft=draft).prepare(task) for task in tasks], int)
            for draft in (False, True)
        )
        assert 0 < np.abs(plain - draft).mean() < 5

    def test_every_side_has_a_row(self, benchmark, monkeypatch, tmp_path):
        (tmp_path / "peer_tfdata.py").write_text(TFDATA)
        monkeypatch.setattr(images, "WORKERS", tmp_path)
        measured, printed = benchmark(*DATA, "--against", "pillow", "draft", "tfdata")
        assert [row["by"] for row in measured] == ["pipeline", "Pillow", "Pillow draft", "tf.data"]
        assert [row["reference"] for row in measured] == ["", "pipeline", "pipeline", "pipeline"]
        assert float(measured[3]["seconds"]) == 1  # 8 s for 8 images
        assert all(row["what"] == "prepare" and "tensorflow 9.8" in row["versions"] for row in measured)
        assert "tf.data       1,000 ms (1,000 to 1,000) of CPU time an image" in printed

    def test_a_python_without_tensorflow_says_what_to_install(self, failure, bare_python):
        message = failure(*DATA, "--against=tfdata", f"--peer-python={bare_python}")
        assert message.startswith(
            f"error: --against=tfdata: {bare_python} has no tensorflow; pip install tensorflow"
        )

    def test_tfdata_takes_jpeg_files_only(self, failure, tmp_path):
        for number in range(16):
            folder = tmp_path / "own" / ("train", "val")[number % 2] / "ab"[number // 2 % 2]
            folder.mkdir(parents=True, exist_ok=True)
            images.Image.new("RGB", (50, 40)).save(folder / f"{number}.png")
        message = failure(*DATA, "--data-name=folder", f"--root={tmp_path / 'own'}", "--against=tfdata")
        assert (
            message.startswith("error: --against=tfdata: decodes parts of JPEG files only, and ")
            and ".png" in message
        )
