"""Times how training images are prepared on one core, stage by stage, and the same work in other libraries."""

import argparse
import contextlib
import copy
import dataclasses
import functools
import importlib.metadata
import json
import os
import pathlib
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from xception_jax import data, memory
from xception_jax.commands.benchmark import device, records, versus
from xception_jax.commands.benchmark.workload import positive
from xception_jax.data import images
from xception_jax.data.resizing import Box, resize
from xception_jax.data.transforms import random_box
from xception_jax.errors import UserError

STAGES = {
    "read": "file -> bytes",
    "decode": "bytes -> pixels",
    "crop": "draws a random box",
    "resize": "box -> the model's size",
    "stack": "images -> batch",
    "transfer": "batch -> device",
}
ALL = "all"  # of the stages but the transfer, which is beside the comparison
PLAIN, PIPELINE, PILLOW, DRAFT, TFDATA = "plain loop", "pipeline", "Pillow", "Pillow draft", "tf.data"
ABOUT = {
    PLAIN: "this package's functions, one after the other",
    PIPELINE: "the same as training calls them, with grain",
    PILLOW: "Image.open, convert, resize of the box, np.stack",
    DRAFT: "the same, JPEGs decoded to 1/2, 1/4 or 1/8 of their size where the box allows it",
    TFDATA: "decode_and_crop_jpeg, tf.image.resize, batch",
}
LIBRARIES = ("numpy", "opencv-python-headless", "pillow", "grain")
LENGTH = 10_000  # records at least: for a few hundred, grain takes longer to draw the order
SEED = 0


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


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Some image files of a data set, over and over: a source as long as a large set's.

    Attributes:
      title: what they are, for people.
      members: (source, index) of each.
      files: path of each; of pictures that come from records, a copy.
      sizes: (height, width) of each, in pixels.
      kilobytes: mean of the files.
    """

    title: str
    members: tuple[tuple[data.Source, int], ...]
    files: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    kilobytes: float

    def __len__(self) -> int:
        return len(self.members) * -(-LENGTH // len(self.members))

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, number = self.members[index % len(self.members)]
        return source[number]

    def name(self, index: int) -> str:
        """As its own source says it."""
        source, number = self.members[index % len(self.members)]
        return source.name(number)


def find_pictures(arguments: argparse.Namespace, folder: pathlib.Path) -> Pictures:
    """The pictures that the flags ask for; those that have to be written lie in `folder`.

    Reading each once, to see its size, leaves the files in the system's memory: no stage waits for a disk.

    Raises:
      UserError: if there are none, not enough for a batch, or one cannot be read.
    """
    if arguments.data_name is None:
        if arguments.root is not None:
            raise UserError(f"--root={arguments.root}: of what? say --data-name=folder, manifest or tfds:NAME")
        title, sources = "photographs made for this", (make_photographs(folder, arguments.pictures),)
    else:
        title, sources = f"{arguments.data_name} {arguments.root or ''}".strip(), load(arguments)
    starts = np.cumsum([0, *map(len, sources)])
    count = min(arguments.pictures, int(starts[-1]))
    if count < arguments.batch:
        raise UserError(f"--batch={arguments.batch}: there are only {count} pictures; choose at most {count}")
    members, files, sizes, lengths = [], [], [], []
    for number in np.linspace(0, starts[-1] - 1, count).astype(int).tolist():  # spread over the set
        part = int(np.searchsorted(starts, number, side="right")) - 1
        source, index = sources[part], number - int(starts[part])
        members.append((source, index))
        try:
            encoded = source[index]["image"]
            sizes.append(images.decode(encoded, name=source.name(index)).shape[:2])
        except data.UnreadableImage as error:
            raise UserError(f"--root={arguments.root}: {error}") from None
        lengths.append(len(encoded))
        files.append(source.name(index))
        if not isinstance(source, data.ImageFiles):
            files[-1] = str(folder / f"{number}.image")
            pathlib.Path(files[-1]).write_bytes(encoded)
    return Pictures(title, tuple(members), tuple(files), tuple(sizes), np.mean(lengths).item() / 1000)


def load(arguments: argparse.Namespace) -> tuple[data.Source, ...]:
    """Training and validation images of a data set; UserError if it cannot be opened."""
    name, root = arguments.data_name, arguments.root
    if name not in ("folder", "manifest") and not name.startswith("tfds:"):
        raise UserError(f"--data-name={name}: has no image files; choose folder, manifest or tfds:NAME")
    try:
        dataset = data.load(name, root=root, holdout=0.5)  # so that both parts have pictures, if there are few
    except (ValueError, OSError) as error:
        raise UserError(f"--data-name={name} --root={root}: {error}") from None
    return dataset.train, dataset.validation


def make_photographs(folder: pathlib.Path, count: int) -> data.ImageFiles:
    """JPEG files like ImageNet's: 500 x 375 pixels and 90 kB on average, a quarter of them upright.

    Random parts of scikit-learn's two photographs. Enlarging made them smooth; noise as of a camera's sensor gives
    them back the bytes, most of which decoding has to go through.
    """
    rng = np.random.default_rng(SEED)
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    names = [f"{number:04}.jpg" for number in range(count)]
    for number, name in enumerate(names):
        photograph = photographs[number % len(photographs)]
        size = rng.integers((440, 330), (561, 421))[:: -1 if rng.random() < 0.25 else 1]  # width, height
        part = size * min(photograph.size / size) * rng.uniform(0.6, 1)
        left, top = rng.uniform(0, photograph.size - part)
        box = (left, top, left + part[0], top + part[1])
        pixels = np.asarray(photograph.resize(tuple(size.tolist()), Image.Resampling.LANCZOS, box), np.float32)
        pixels = pixels + rng.normal(0, 4, (*pixels.shape[:2], 1))
        picture = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
        picture.save(folder / name, quality=94)
    return data.ImageFiles.make(folder, names, np.zeros(count, np.int32))


class Task(NamedTuple):
    """An image to prepare: its number, the box to cut out, and the random numbers that drew the box."""

    index: int
    box: Box
    rng: np.random.Generator


@dataclasses.dataclass(frozen=True)
class Work:
    """What each side does.

    Attributes:
      transform: crop and size of the training images.
      batch: images a batch.
      plan: what is prepared in each round; the first warms up.
    """

    pictures: Pictures
    transform: data.TrainTransform
    batch: int
    plan: tuple[tuple[Task, ...], ...]

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace, pictures: Pictures) -> "Work":
        """As many whole batches a round as the pictures give."""
        crop = {"crop": "random_resized", "resize": arguments.resize}
        transform = data.TrainTransform(image_size=arguments.image_size, **crop)
        batch, batches = arguments.batch, len(pictures.members) // arguments.batch
        plan = draw_plan(pictures, transform, batch=batch, batches=batches, rounds=1 + arguments.rounds)
        return cls(pictures, transform, batch, plan)

    def __str__(self) -> str:
        width, height = np.mean([size[::-1] for size in self.pictures.sizes], 0)
        return (
            f"{len(self.pictures.members)} pictures ({self.pictures.title}), on average {self.pictures.kilobytes:.0f}"
            f" kB, {width:.0f} x {height:.0f} pixels\nto {self.size[0]} x {self.size[1]} pixels"
            f" ({self.transform.resize}), batches of {self.batch}"
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the result."""
        return (self.transform.image_size, self.transform.image_size)

    @property
    def images(self) -> int:
        """Of a round."""
        return len(self.plan[0])

    @property
    def method(self) -> str:
        """What other libraries call the interpolation."""
        return self.transform.resize.rpartition("_")[2]

    @property
    def may_draft(self) -> bool:
        """Whether some box is at least twice as large as the result."""
        return any(_draft_scale(task.box, self.size) >= 2 for tasks in self.plan for task in tasks)

    def batches(self, number: int) -> Iterator[tuple[Task, ...]]:
        """The tasks of a round, batch by batch."""
        tasks = self.plan[number]
        yield from (tasks[start : start + self.batch] for start in range(0, len(tasks), self.batch))


@dataclasses.dataclass(frozen=True)
class _Draw(grain.transforms.RandomMap):
    """In the place of a transform: the box that it would cut out, and the random numbers before it is drawn."""

    sizes: tuple[tuple[int, int], ...]
    area: tuple[float, float]
    aspect: tuple[float, float]

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        before = copy.deepcopy(rng)
        size = self.sizes[element["index"] % len(self.sizes)]
        return element | {"rng": before, "box": random_box(*size, rng, area=self.area, aspect=self.aspect)}


@dataclasses.dataclass(frozen=True)
class _Numbers:
    """In the place of a reader: the numbers of the images."""

    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": index}


def draw_plan(
    pictures: Pictures, transform: data.TrainTransform, *, batch: int, batches: int, rounds: int
) -> tuple[tuple[Task, ...], ...]:
    """The tasks that `data.train_batches` does; between the rounds a batch is left out, see `Pipeline`."""
    draw = _Draw(pictures.sizes, transform.area, transform.aspect)
    steps = data.train_batches(_Numbers(len(pictures)), draw, batch_size=batch, seed=SEED, num_threads=1)
    plan = []
    for _ in range(rounds):
        next(steps)
        columns = [next(steps) for _ in range(batches)]
        plan.append(
            tuple(
                Task(index, tuple(box), rng)
                for step in columns
                for index, box, rng in zip(*(step[key].tolist() for key in ("index", "box", "rng")), strict=True)
            )
        )
    steps.close()
    return tuple(plan)


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
    """The functions of this package called one after the other; `last` has its last batch afterwards."""

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
        transfer.lap("transfer")
        return clock.times(self.work.images) | whole.times(self.work.images) | transfer.times(self.work.images)

    def prepare(self, tasks: Sequence[Task], clock: Clock) -> np.ndarray:
        """A batch uint8[N, H, W, C]."""
        pictures, transform, prepared = self.work.pictures, self.work.transform, []
        for task in tasks:
            encoded = pictures[task.index]["image"]
            clock.lap("read")
            image = images.decode(encoded, name=pictures.name(task.index))
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
        """From the end of one batch, which starts the thread, to that of the last: nobody else uses the batches, so
        each is asked for before it is done, and none is prepared unseen."""
        count = self.work.images // self.work.batch
        batches = self.batches(number)
        others = set(threading.enumerate())
        next(batches)
        clock = Clock()
        for _ in range(count):
            next(batches)
        clock.lap(ALL)
        batches.close()
        while set(threading.enumerate()) - others:  # its thread ends with the batch that it has begun
            time.sleep(0.001)
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
        filters = {"nearest": Image.Resampling.NEAREST, "bicubic": Image.Resampling.BICUBIC}
        files, box = self.work.pictures.files, task.box
        with Image.open(files[task.index % len(files)]) as image:
            scale = _draft_scale(box, self.work.size)
            if self.draft and scale >= 2:
                width = image.width
                image.draft("RGB", (int(width / scale), int(image.height / scale)))
                box = tuple(side * image.width / width for side in box)
            image = image.convert("RGB")
            image = image.resize(self.work.size, filters.get(self.work.method, Image.Resampling.BILINEAR), box=box)
            return np.asarray(image)


def _draft_scale(box: Box, size: tuple[int, int]) -> float:
    """How many times larger the box is than the result, along its shorter side."""
    left, top, right, bottom = box
    return min(right - left, bottom - top) / size[0]


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

    def _read(self) -> dict[str, Any]:
        answer = super()._read()
        if "missing" in answer:
            raise UserError(
                f"--against=tfdata: {self.command[0]} has no {answer['missing']}; pip install tensorflow-cpu there,"
                " or name another --peer-python"
            )
        return answer


def _whole(task: Task) -> tuple[int, ...]:
    """The box in whole pixels, one at least."""
    left, top, right, bottom = map(round, task.box)
    return left, top, max(right, left + 1), max(bottom, top + 1)
