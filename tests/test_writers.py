"""Metric files read back without the code that wrote them; the console; the training profile."""

import json
import os
import struct
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image
from tensorboardX import event_file_writer
from tensorboardX.proto.event_pb2 import Event, SessionLog

from xception_jax.plots import training_profile
from xception_jax.run.writers import Console, JsonlWriter, TensorBoardWriter, Writers, read_jsonl

ROWS = [
    {"step": 1, "kind": "train", "loss": 2.5, "top1": 0.125},
    {"step": 2, "kind": "train", "loss": 1.75, "top1": 0.25},
    {"step": 2, "kind": "raw", "loss": 1.5, "top1": 0.375},
    {"step": 2, "kind": "averaged", "loss": 1.25, "top1": 0.5},
    {"step": 3, "kind": "train", "loss": 0.1 + 0.2, "top1": 1e-9},
]


def write_rows(writer, rows=ROWS):
    for row in rows:
        writer.write(row["step"], row["kind"], {name: row[name] for name in ("loss", "top1")})


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(path):
    """The events of one file: records of length uint64, checksum, bytes, checksum."""
    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return found


def scalars(paths):
    """{(step, tag): value} over event files."""
    values = [(e.step, v) for path in paths for e in events(path) for v in e.summary.value]
    return {(step, value.tag): value.simple_value for step, value in values}


def expected_scalars(rows):
    return {
        (row["step"], f"{row['kind']}/{name}"): np.float32(row[name]) for row in rows for name in ("loss", "top1")
    }


class TestJsonl:
    def test_rows_are_on_disk_at_once(self, tmp_path):
        writer = JsonlWriter(tmp_path / "metrics.jsonl", start_step=0)
        write_rows(writer)
        assert lines(tmp_path / "metrics.jsonl") == ROWS == read_jsonl(tmp_path / "metrics.jsonl")
        writer.close()

    @pytest.mark.parametrize("start_step, kept", [(0, 0), (1, 1), (2, 4), (3, 5), (9, 5)])
    def test_a_continued_run_drops_the_rows_after_its_checkpoint(self, tmp_path, start_step, kept):
        path, new = tmp_path / "metrics.jsonl", {"step": 10, "kind": "train", "loss": 0.5, "top1": 0.5}
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        writer = JsonlWriter(path, start_step=start_step)
        assert lines(path) == ROWS[:kept]
        write_rows(writer, [new])
        writer.close()
        assert lines(path) == [*ROWS[:kept], new]
        assert os.listdir(tmp_path) == ["metrics.jsonl"]

    @pytest.mark.parametrize("torn", ["{", '{"step": 4, "kind": "tr', '{"step": 4, "kind": "train", "loss": 1'])
    def test_a_torn_last_line_is_survived(self, tmp_path, torn):
        path = tmp_path / "metrics.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + torn)
        assert read_jsonl(path) == ROWS
        writer = JsonlWriter(path, start_step=9)
        write_rows(writer, [ROWS[0]])
        writer.close()
        assert lines(path) == [*ROWS, ROWS[0]]


class TestTensorBoard:
    def test_event_files_hold_the_scalars(self, tmp_path):
        writer = TensorBoardWriter(tmp_path, start_step=0)
        write_rows(writer)
        writer.close()
        (path,) = tmp_path.iterdir()
        assert events(path)[0].file_version == "brain.Event:2"
        assert scalars([path]) == expected_scalars(ROWS)

    @pytest.mark.parametrize("start_step", [0, 2])
    def test_a_continued_run_hides_what_came_after_its_checkpoint(self, tmp_path, start_step):
        TensorBoardWriter(tmp_path, start_step=start_step).close()
        (path,) = tmp_path.iterdir()
        started = [e.step for e in events(path) if e.session_log.status == SessionLog.START]
        assert started == [start_step + 1]

    def test_two_processes_write_two_files(self, tmp_path):
        TensorBoardWriter(tmp_path, start_step=0).close()
        (path,) = tmp_path.iterdir()
        assert str(os.getpid()) in path.name.split(".")

    def test_two_writers_of_one_process_and_second_keep_both(self, tmp_path, monkeypatch):
        monkeypatch.setattr(event_file_writer, "time", types.SimpleNamespace(time=lambda: 1.5e9))
        for start_step, rows in ((0, ROWS[:1]), (1, ROWS[1:])):
            writer = TensorBoardWriter(tmp_path, start_step=start_step)
            write_rows(writer, rows)
            writer.close()
        assert scalars(tmp_path.iterdir()) == expected_scalars(ROWS)


def test_writers_write_to_all_places(tmp_path):
    writers = Writers(tmp_path, start_step=0, console=Console(enabled=False))
    write_rows(writers)
    writers.close()
    assert lines(tmp_path / "metrics.jsonl") == ROWS
    assert scalars((tmp_path / "tensorboard").iterdir()) == expected_scalars(ROWS)


def test_other_hosts_write_nothing(tmp_path, capsys):
    writers = Writers(tmp_path, start_step=0, console=Console(enabled=False), enabled=False)
    write_rows(writers)
    writers.console.line("hello")
    writers.close()
    assert os.listdir(tmp_path) == [] and capsys.readouterr().out == ""


def test_tensorflow_is_not_imported(tmp_path):
    """Where it is installed, as here a stand-in is, it would take seconds and memory of the accelerator."""
    (tmp_path / "tensorflow.py").write_text("__version__ = '9.9.9'")
    code = (
        "import importlib, sys, xception_jax, xception_jax.loop;"
        "print('tensorflow' in sys.modules, importlib.import_module('tensorflow').__version__)"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    process = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (process.stdout, process.returncode) == ("False 9.9.9\n", 0), process.stderr


class TestConsole:
    def run(self, console):
        console.start(step=3, total=9)
        console.line("step 4")
        console.advance()
        console.line()
        console.line("done")
        console.close()

    def test_lines_are_plain_where_there_is_no_terminal(self, capsys):
        self.run(Console())
        assert capsys.readouterr() == ("step 4\n\ndone\n", "")

    def test_a_terminal_shows_progress(self, capsys, monkeypatch):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        self.run(Console())
        shown = capsys.readouterr().out
        assert "step 4\n" in shown and "done\n" in shown and "3/9" in shown and "4/9" in shown

    def test_a_silent_one_is_silent(self, capsys, monkeypatch):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        self.run(Console(enabled=False))
        assert capsys.readouterr() == ("", "")


class TestTrainingProfile:
    def test_the_lines_are_the_rows(self, tmp_path):
        figure = training_profile(ROWS, tmp_path / "profile.png")
        loss, top1 = figure.axes
        assert "loss" in loss.get_ylabel() or "entropy" in loss.get_ylabel()
        assert "top-1" in top1.get_ylabel() and "%" in top1.get_ylabel()
        for axes, name, scale in ((loss, "loss", 1), (top1, "top1", 100)):
            drawn = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
            assert len(drawn) == 3
            for kind, word in (("train", "training"), ("raw", "raw"), ("averaged", "averaged")):
                (data,) = [points for label, points in drawn.items() if word in label]
                expected = [(row["step"], scale * row[name]) for row in ROWS if row["kind"] == kind]
                np.testing.assert_allclose(data, expected, rtol=1e-12)

    def test_the_file_is_an_image(self, tmp_path):
        training_profile(ROWS, tmp_path / "profile.png")
        with Image.open(tmp_path / "profile.png") as image:
            assert image.format == "PNG" and image.size == (1200, 480)
            assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 3

    def test_several_labels_have_a_panel_of_their_own(self, tmp_path):
        rows = [row if row["kind"] == "train" else row | {"map100": row["top1"] / 2} for row in ROWS]
        _, top1, precision = training_profile(rows, tmp_path / "profile.png").axes
        assert "MAP@100" in precision.get_ylabel()
        for half, whole in zip(precision.get_lines(), top1.get_lines()[1:], strict=True):
            np.testing.assert_allclose(half.get_xydata() * [[1, 2]], whole.get_xydata())

    def test_a_run_without_averaging_has_two_lines(self, tmp_path):
        figure = training_profile([row for row in ROWS if row["kind"] != "averaged"], tmp_path / "profile.png")
        assert [len(axes.get_lines()) for axes in figure.axes] == [2, 2]


def test_an_evaluation_to_be_repeated_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path, start_step=0)
    for step, kind in [(5, "train"), (5, "raw"), (10, "train"), (10, "raw"), (10, "averaged")]:
        writer.write(step, kind, {"loss": 1.0})
    writer.close()
    JsonlWriter(path, start_step=10, evaluated=False).close()
    assert [(row["step"], row["kind"]) for row in read_jsonl(path)] == [(5, "train"), (5, "raw"), (10, "train")]
