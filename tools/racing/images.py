"""Preparing images by the pipeline of this package against Pillow and tf.data, on one core."""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from racing.process import WORKERS, start
from xception_jax.commands import device
from xception_jax.commands.benchmark import data, rows
from xception_jax.commands.benchmark.images import SEED
from xception_jax.data.images.resizing import Box
from xception_jax.data.images.transforms import random_box
from xception_jax.errors import UserError
from xception_jax.run import memory

FILTERS = {"nearest": Image.Resampling.NEAREST, "bicubic": Image.Resampling.BICUBIC}  # Pillow's; else BILINEAR
SIDES = {
    "pillow": "Pillow",  # opens, converts, resizes the box
    "draft": "Pillow draft",  # where the box is large enough, libjpeg decodes to 1/2, 1/4 or 1/8
    "tfdata": "tf.data",  # decode_and_crop_jpeg, tf.image.resize, batch
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    data.add_work_arguments(parser)
    parser.add_argument("--against", choices=SIDES, nargs="+", required=True, help="the others")
    parser.add_argument("--peer-python", default=sys.executable, help="python with TensorFlow (default: this one)")


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints and records each side."""
    memory.keep_freed_memory()  # as in training
    rows.check(arguments.csv)
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work = data.Work.from_arguments(arguments, folder)
        print(f"{work}, in turn, each on one core of {device.describe()}", flush=True)
        rounds = draw(work, write_files(work, folder), rounds=1 + arguments.rounds)
        stack.enter_context(data.one_core())
        sides: dict[str, Callable[[int], float]] = {data.PIPELINE: lambda n: data.pipeline(work, n)[data.PREPARE]}
        for name in dict.fromkeys(arguments.against):
            if name == "tfdata":
                command = tfdata_command(work, rounds, arguments.peer_python, folder)
                worker = stack.enter_context(start(name, command, install="tensorflow-cpu"))
                sides[SIDES[name]] = lambda n, worker=worker: worker() / work.images
            else:
                sides[SIDES[name]] = Pillow(work, rounds, draft=name == "draft")
        times = [{name: side(number) for name, side in sides.items()} for number in range(len(rounds))]
    seconds = {name: [each[name] for each in times[1:]] for name in sides}  # the first round warms up
    versions = data.versions() | (worker.greeting["versions"] if "tfdata" in arguments.against else {})
    shared = {"what": data.PREPARE, "inputs": work.inputs, "images": 1, "libraries": versions}
    measured = rows.compare("by", seconds, **shared)
    rows.append(arguments.csv, measured)
    print("\n".join(map(describe, measured)) + f"\nadded to {arguments.csv}")


class Task(NamedTuple):
    """An image file, and the box that is cut out of it."""

    file: str
    box: Box


Round = tuple[Task, ...]


def write_files(work: data.Work, folder: pathlib.Path) -> list[str]:
    """Writes the images of the sample into a folder, since they may come from record files; their paths."""
    files = []
    for number in range(work.count):
        path = folder / f"file-{number}"
        path.write_bytes(work.source[number]["image"])
        files.append(str(path))
    return files


def draw(work: data.Work, files: list[str], *, rounds: int) -> list[Round]:
    """Random files and boxes for each round, with the same distribution as those of the pipeline."""
    rng, transform, sizes = np.random.default_rng(SEED), work.transform, []
    for file in files:
        with Image.open(file) as image:
            sizes.append((image.height, image.width))
    return [
        tuple(
            Task(files[index], random_box(*sizes[index], rng, area=transform.area, aspect=transform.aspect))
            for index in rng.permutation(len(files))[: work.images].tolist()
        )
        for _ in range(rounds)
    ]


@dataclasses.dataclass(frozen=True)
class Pillow:
    """Pillow's usual way, which averages over all pixels below a new one when it shrinks an image.

    Attributes:
      draft: let libjpeg decode to a fraction of the size where the box is large enough.
    """

    work: data.Work
    rounds: list[Round]
    draft: bool = False

    def __call__(self, number: int) -> float:
        """CPU seconds of an image in round `number`."""
        tasks, batch, start = self.rounds[number], self.work.batch, time.process_time()
        for first in range(0, len(tasks), batch):
            np.stack([self.prepare(task) for task in tasks[first : first + batch]])
        return (time.process_time() - start) / len(tasks)

    def prepare(self, task: Task) -> np.ndarray:
        """uint8[size, size, 3]."""
        size, (left, top, right, bottom) = self.work.transform.image_size, task.box
        scale = min(right - left, bottom - top) / size
        with Image.open(task.file) as image:
            if self.draft and scale >= 2:
                width, height = image.size
                image.draft("RGB", (int(width / scale), int(height / scale)))
                left, right = (side * image.width / width for side in (left, right))
                top, bottom = (side * image.height / height for side in (top, bottom))
            method = FILTERS.get(interpolation(self.work), Image.Resampling.BILINEAR)
            return np.asarray(image.convert("RGB").resize((size, size), method, box=(left, top, right, bottom)))


def interpolation(work: data.Work) -> str:
    """The name that other libraries have for the interpolation, without ours for the library it comes from."""
    return work.transform.resize.rpartition("_")[2]


def tfdata_command(work: data.Work, rounds: list[Round], python: str, folder: pathlib.Path) -> list[str]:
    """The command that starts TensorFlow's worker; its tasks are written to a file.

    Raises:
      UserError: if not all images are JPEG files.
    """
    tasks = [task for tasks in rounds for task in tasks]
    for file in {task.file for task in tasks}:
        with open(file, "rb") as opened:
            if opened.read(3) != b"\xff\xd8\xff":
                number = int(file.rpartition("-")[2])
                name = work.source.name(number)
                raise UserError(f"--against=tfdata: decodes parts of JPEG files only, and {name} is none")
    path = folder / "tasks.json"
    windows = [_window(task.box) for task in tasks]
    path.write_text(json.dumps({"paths": [task.file for task in tasks], "windows": windows}))
    options = {"tasks": str(path), "image_size": work.transform.image_size, "method": interpolation(work)}
    options |= {"batch": work.batch, "batches": work.batches}
    return [python, str(WORKERS / "peer_tfdata.py"), json.dumps(options)]


def _window(box: Box) -> tuple[int, int, int, int]:
    """A box as (top, left, height, width) in whole pixels, one at least."""
    left, top, right, bottom = map(round, box)
    return top, left, max(bottom - top, 1), max(right - left, 1)


def describe(row: rows.Row) -> str:
    """A row for people."""
    return f"{row['by']:<14}{rows.milliseconds(row)} of CPU time an image  {rows.ratio(row)}".rstrip()
