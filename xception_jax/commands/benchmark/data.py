"""Times how training images are prepared on one core, stage by stage, and the same work in other libraries."""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import cv2
import jax
import numpy as np
from PIL import Image

from xception_jax import data
from xception_jax.commands.benchmark import device, records, versus
from xception_jax.commands.benchmark.pictures import SEED, Task, Work, find_pictures
from xception_jax.commands.benchmark.workload import positive
from xception_jax.data.images import decoding
from xception_jax.data.images.resizing import resize
from xception_jax.data.images.transforms import random_box
from xception_jax.errors import UserError
from xception_jax.run import memory

TRANSFER = "transfer"
STAGES = {
    "read": "file -> bytes",
    "decode": "bytes -> pixels",
    "crop": "draws a random box",
    "resize": "box -> the model's size",
    "stack": "images -> batch",
    TRANSFER: "batch -> device",
}
ALL = "all"  # of the stages but the transfer, which is beside the comparison
PLAIN, PIPELINE, PILLOW, DRAFT, TFDATA = "plain loop", "pipeline", "Pillow", "Pillow draft", "tf.data"
ABOUT = {
    PLAIN: "the stages above but the transfer",
    PIPELINE: "the same functions as training calls them, through Grain",
    PILLOW: "open, convert, resize of the box, np.stack",
    DRAFT: "where the box allows it, JPEGs decoded to 1/2, 1/4 or 1/8",
    TFDATA: "decode_and_crop_jpeg, tf.image.resize, batch",
}
FILTERS = {"nearest": Image.Resampling.NEAREST, "bicubic": Image.Resampling.BICUBIC}  # Pillow's; else BILINEAR


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    own = "your own pictures: folder, manifest or tfds:NAME (default: photographs made for this)"
    parser.add_argument("--data-name", help=own)
    parser.add_argument("--root", help="where they are, as config.data.root")
    parser.add_argument("--pictures", type=positive, default=200, help="how many of them (default: 200)")
    parser.add_argument("--image-size", type=positive, default=299, help="of the model, in pixels (default: 299)")
    parser.add_argument("--resize", choices=data.METHODS, default="bilinear", help="(default: bilinear)")
    parser.add_argument("--batch", type=positive, default=32, help="images a batch (default: 32)")
    parser.add_argument("--rounds", type=positive, default=11, help="measurements (default: 11)")
    parser.add_argument("--feed", type=positive, default=3000, help="images/s to count cores for (default: 3000)")
    parser.add_argument("--against", choices=("tfdata",), help="compare with TensorFlow's tf.data as well")
    parser.add_argument("--peer-python", default=sys.executable, help="python that has it (default: this one)")
    records.add_argument(parser, "data.csv")


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints it, and adds a row for each side and each stage.

    Raises:
      UserError: for a mistake in the flags or the pictures, or a library that is not there.
      TrainingError: if the other library's process dies.
    """
    memory.keep_freed_memory()  # as in training
    records.check(arguments.csv, records.DATA_COLUMNS)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        pictures = find_pictures(arguments, pathlib.Path(folder))
        work = Work.from_arguments(arguments, pictures)
        print(f"{work}; one thread on one core of {device.describe()}")
        print(f"{arguments.rounds} rounds of {work.images} images, each side in turn", flush=True)
        stack.enter_context(one_core())
        sides = {PLAIN: PlainLoop(work), PIPELINE: Pipeline(work), PILLOW: Pillow(work)}
        if work.may_draft:
            sides[DRAFT] = Pillow(work, draft=True)
        if arguments.against:
            plan = pathlib.Path(folder) / "plan.json"
            sides[TFDATA] = stack.enter_context(TfData(work, arguments.peer_python, plan))
        rounds = [{name: side(number) for name, side in sides.items()} for number in range(len(work.plan))]
    rows = make_rows(work, sides, rounds[1:])  # the first warms up
    records.append(arguments.csv, rows, records.DATA_COLUMNS)
    print(describe(rows, feed=arguments.feed))
    print(f"added to {arguments.csv}")


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """This thread, and the threads and processes that it starts, share one core, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


class Seconds(NamedTuple):
    """Of an image: of the processor, all threads together, and on the clock."""

    cpu: float
    wall: float


Times = dict[str, Seconds]  # by stage


class Clock:
    """Adds up seconds by stage."""

    def __init__(self):
        self._seconds: dict[str, list[float]] = {}
        self._last = self._now()

    def _now(self) -> tuple[float, float]:
        return time.process_time(), time.perf_counter()

    def lap(self, stage: str) -> None:
        """What has passed since the last lap belongs to this stage."""
        now = self._now()
        total = self._seconds.setdefault(stage, [0.0, 0.0])
        total[0] += now[0] - self._last[0]
        total[1] += now[1] - self._last[1]
        self._last = now

    def times(self, count: int) -> Times:
        """Of one of `count` images."""
        return {stage: Seconds(cpu / count, wall / count) for stage, (cpu, wall) in self._seconds.items()}


@dataclasses.dataclass(frozen=True)
class PlainLoop:
    """The functions of this package, called one after the other."""

    work: Work

    def __call__(self, number: int) -> Times:
        """The stages of round `number`, and ALL."""
        whole, clock = Clock(), Clock()
        for tasks in self.work.batches(number):
            batch = self.prepare(tasks, clock)  # [N, H, W, C]
        whole.lap(ALL)
        transfer = Clock()
        for _ in self.work.batches(number):
            jax.block_until_ready(jax.device_put(batch))
        transfer.lap(TRANSFER)
        return clock.times(self.work.images) | whole.times(self.work.images) | transfer.times(self.work.images)

    def prepare(self, tasks: Sequence[Task], clock: Clock) -> np.ndarray:
        """A batch uint8[N, H, W, C]."""
        pictures, transform, prepared = self.work.pictures, self.work.transform, []
        for task in tasks:
            encoded = pictures[task.index]["image"]
            clock.lap("read")
            image = decoding.decode(encoded, name=f"number {task.index}")
            clock.lap("decode")
            box = random_box(*image.shape[:2], task.rng, area=transform.area, aspect=transform.aspect)
            clock.lap("crop")
            prepared.append(resize(image, self.work.size, method=transform.resize, box=box))
            clock.lap("resize")
        batch = np.stack(prepared)
        clock.lap("stack")
        return batch


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """`data.train_batches` as in training, with one thread."""

    work: Work

    def __call__(self, number: int) -> Times:
        """ALL of round `number`, from the end of the batch before it to the end of its last.

        Each batch is asked for before it is done, so none is prepared unseen.
        """
        batches = self.batches(number)
        others = set(threading.enumerate())
        next(batches)  # starts the thread
        clock = Clock()
        for _ in self.work.batches(number):
            next(batches)
        clock.lap(ALL)
        batches.close()
        for thread in set(threading.enumerate()) - others:
            thread.join(timeout=10)  # it ends with the batch that it has begun
        return clock.times(self.work.images)

    def batches(self, number: int) -> Iterator[dict[str, np.ndarray]]:
        """From one batch before the round on."""
        reader = data.Reader(self.work.pictures, substitute=True)
        start = number * (1 + self.work.images // self.work.batch)
        settings = {"batch_size": self.work.batch, "seed": SEED, "start_step": start}
        return data.train_batches(reader, self.work.transform, num_threads=1, **settings)


@dataclasses.dataclass(frozen=True)
class Pillow:
    """The usual way with Pillow, which averages over all pixels below a new one; boxes are given.

    Attributes:
      draft: let libjpeg decode to a fraction where the box is large enough.
    """

    work: Work
    draft: bool = False

    def __call__(self, number: int) -> Times:
        """ALL of round `number`."""
        clock = Clock()
        for tasks in self.work.batches(number):
            np.stack([self.prepare(task) for task in tasks])
        clock.lap(ALL)
        return clock.times(self.work.images)

    def prepare(self, task: Task) -> np.ndarray:
        """uint8[H, W, 3]."""
        files, box = self.work.pictures.files, task.box
        with Image.open(files[task.index % len(files)]) as image:
            scale = self.work.scale(task)
            if self.draft and scale >= 2:
                width, height = image.size
                image.draft("RGB", (int(width / scale), int(height / scale)))
                left, right = (side * image.width / width for side in box[::2])
                top, bottom = (side * image.height / height for side in box[1::2])
                box = (left, top, right, bottom)
            image = image.convert("RGB")
            method = FILTERS.get(self.work.method, Image.Resampling.BILINEAR)
            return np.asarray(image.resize(self.work.size, method, box=box))


class TfData(versus.Worker):
    """tf.data in a process of its own; boxes are given."""

    def __init__(self, work: Work, python: str, plan: pathlib.Path):
        """
        Args:
          work: of JPEG files.
          python: that has TensorFlow.
          plan: file to write what it is to prepare.

        Raises:
          UserError: if not all are JPEG files.
        """
        files = work.pictures.files
        for file in files:
            with open(file, "rb") as opened:
                if opened.read(3) != b"\xff\xd8\xff":
                    raise UserError(f"--against=tfdata: decodes parts of JPEG files only, and {file} is none")
        tasks = [task for tasks in work.plan for task in tasks]
        windows = [(top, left, bottom - top, right - left) for left, top, right, bottom in map(_whole, tasks)]
        paths = [files[task.index % len(files)] for task in tasks]
        plan.write_text(json.dumps({"paths": paths, "windows": windows}))
        options = {"plan": str(plan), "image_size": work.size[0], "method": work.method}
        options |= {"batch": work.batch, "batches": work.images // work.batch}
        super().__init__("tfdata", [python, str(versus.WORKERS / "peer_tfdata.py"), json.dumps(options)])
        self._images = work.images

    def __call__(self, number: int) -> Times:
        """ALL of the next round."""
        seconds = self.step()
        return {ALL: Seconds(seconds["cpu"] / self._images, seconds["wall"] / self._images)}


def _whole(task: Task) -> tuple[int, ...]:
    """The box in whole pixels, one at least."""
    left, top, right, bottom = map(round, task.box)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def make_rows(work: Work, sides: Mapping[str, object], rounds: Sequence[Mapping[str, Times]]) -> list[records.Row]:
    """A row for each side, and for each stage of the plain loop; ratios are of CPU times, round by round."""
    versions = {"numpy": np.__version__, "opencv": cv2.__version__}
    versions |= {name: importlib.metadata.version(name) for name in ("pillow", "grain")}
    shared = work.columns | device.environment() | {"rounds": len(rounds)}
    rows = []
    for name, side in sides.items():
        used = side.greeting["versions"] if isinstance(side, TfData) else versions
        about = {"side": name, "peer": " ".join(f"{library} {version}" for library, version in used.items())}
        for stage in rounds[0][name]:
            cpu, wall = zip(*(times[name][stage] for times in rounds), strict=True)
            row = shared | about | {"benchmark": "data" if stage == ALL else "data stage", "stage": stage}
            row |= _spread(records.CPU, cpu) | _spread(records.WALL, wall)
            row["images_per_second"] = 1 / row["cpu_seconds"] if stage == ALL else ""
            for columns, reference in ((records.OF_BARE, PLAIN), (records.OF_PIPELINE, PIPELINE)):
                whole = [times[reference][ALL].cpu for times in rounds]
                row |= _spread(columns, [ours / theirs for ours, theirs in zip(cpu, whole, strict=True)])
            rows.append(row)
    return rows


def _spread(columns: Sequence[str], values: Sequence[float]) -> records.Row:
    """Median and quartiles under these names."""
    return dict(zip(columns, dataclasses.astuple(records.spread(values)), strict=True))


def describe(rows: Sequence[records.Row], *, feed: int) -> str:
    """The rows for people."""
    sides = {row["side"]: row for row in rows if row["stage"] == ALL}
    lines = ["", f"{'plain loop':<14}{'CPU ms':>7}{'share':>8}"]
    for row in rows:
        if row["stage"] != ALL:
            share = f"{row['of_bare']:.1%}" if row["stage"] != TRANSFER else "beside"
            lines.append(f"{row['stage']:<14}{1000 * row['cpu_seconds']:>7.3f}{share:>8}  {STAGES[row['stage']]}")
    lines += ["", f"{'':<14}{'CPU ms':>7}{'wall ms':>9}{'images/s':>10}  {'of the plain loop':<22}of the pipeline"]
    for name, row in sides.items():
        cpu, wall = 1000 * row["cpu_seconds"], 1000 * row["wall_seconds"]
        ratios = f"{_ratio(row, records.OF_BARE):<22}{_ratio(row, records.OF_PIPELINE):<22}"
        lines.append(f"{name:<14}{cpu:>7.3f}{wall:>9.3f}{row['images_per_second']:>10,.0f}  {ratios}{ABOUT[name]}")
    grain, low, high = (1 - 1 / sides[PIPELINE][key] for key in records.OF_BARE)
    cores = feed * sides[PIPELINE]["cpu_seconds"]
    lines += [
        "an image's time; images/s of CPU time; of ... = ratio of CPU times, median and quartiles of the rounds",
        "",
        f"Grain takes {grain:.1%} of the pipeline's time (quartiles {low:.1%} to {high:.1%})",
        f"{feed:,} images/s take {cores:.1f} cores like this one: {feed:,} x {cores / feed * 1000:.3f} ms",
    ]
    return "\n".join(lines)


def _ratio(row: records.Row, keys: Sequence[str]) -> str:
    median, low, high = (row[key] for key in keys)
    return f"{median:.2f} ({low:.2f} to {high:.2f})"
