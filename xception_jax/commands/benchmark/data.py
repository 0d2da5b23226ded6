"""Times how training images are prepared on one core, stage by stage, and by the pipeline of the training."""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import os
import pathlib
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import cv2
import jax
import numpy as np

from xception_jax import data
from xception_jax.commands import device
from xception_jax.commands.benchmark import images, rows
from xception_jax.commands.steps import positive
from xception_jax.data.images.resizing import METHODS, resize
from xception_jax.data.images.transforms import Decode, TrainTransform, random_box
from xception_jax.errors import UserError
from xception_jax.run import memory

PREPARE, TRANSFER = "prepare", "transfer"
STAGES = {
    PREPARE: "file -> batch, all of the following but the transfer",
    "read": "file -> bytes",
    "decode": "bytes -> pixels",
    "crop": "draws a random box",
    "resize": "box -> the model's size",
    "stack": "images -> batch",
    TRANSFER: "batch -> device",
}
DECODE = Decode(orientation=False, background="white")  # the defaults of training
PLAIN, PIPELINE = "plain loop", "pipeline"
Times = dict[str, float]  # stage -> CPU seconds of an image, all threads together


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    add_work_arguments(parser)
    parser.add_argument("--feed", type=positive, default=3000, help="images/s to count cores for (default: 3000)")


def add_work_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags that say what is prepared, how often, and where the rows go."""
    images.add_arguments(parser)
    parser.add_argument("--image-size", type=positive, default=299, help="of the model, in pixels (default: 299)")
    parser.add_argument("--resize", choices=METHODS, default="bilinear", help="(default: bilinear)")
    parser.add_argument("--batch", type=positive, default=32, help="images a batch (default: 32)")
    parser.add_argument("--rounds", type=positive, default=11, help="measurements (default: 11)")
    rows.add_argument(parser, "data.csv")


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints and records each stage of the plain loop, and the pipeline.

    Raises:
      UserError: for a mistake in the flags, or an image that cannot be read.
    """
    memory.keep_freed_memory()  # as in training
    rows.check(arguments.csv)
    with tempfile.TemporaryDirectory() as folder:
        work = Work.from_arguments(arguments, pathlib.Path(folder))
        print(f"{work}; one thread on one core of {device.describe()}")
        print(f"{arguments.rounds} rounds of {work.images} images, each side in turn", flush=True)
        with one_core():
            rounds = [(plain_loop(work, number), pipeline(work, number)) for number in range(1 + arguments.rounds)]
    measured = make_rows(work, *zip(*rounds[1:], strict=True))  # the first round warms up
    rows.append(arguments.csv, measured)
    print(describe(measured, feed=arguments.feed))
    print(f"added to {arguments.csv}")


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Binds this thread, and threads and processes that it starts, to one core where the system can do that."""
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
class Work:
    """What is prepared in each round: as many whole batches as the sample gives."""

    sample: images.Sample
    transform: TrainTransform
    batch: int

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace, folder: pathlib.Path) -> "Work":
        """The work that the flags describe; UserError if there are not enough images for a batch."""
        sample = images.find(arguments, folder)
        if sample.count < arguments.batch:
            n = sample.count
            raise UserError(f"--batch={arguments.batch}: there are only {n} images; choose at most {n}")
        transform = TrainTransform(image_size=arguments.image_size, crop="random_resized", resize=arguments.resize)
        return cls(sample, transform, arguments.batch)

    def __str__(self) -> str:
        return f"{self.sample.count} images ({self.inputs}) in batches of {self.batch}"

    @property
    def inputs(self) -> str:
        """What an image is, and becomes."""
        sample, transform = self.sample, self.transform
        return f"{sample.title}, {sample.kilobytes:.0f} kB -> {transform.image_size} px, {transform.resize}"

    @property
    def batches(self) -> int:
        """Batches a round."""
        return self.sample.count // self.batch

    @property
    def images(self) -> int:
        """Images a round."""
        return self.batches * self.batch


def plain_loop(work: Work, number: int) -> Times:
    """Times the functions of this package in round `number`, called one after the other."""
    rng = np.random.default_rng((images.SEED, number))
    order = rng.permutation(work.sample.count)[: work.images].reshape(work.batches, work.batch)
    clock = Clock()
    for indices in order.tolist():
        batch = prepare(work, indices, rng, clock)
    times = {stage: seconds / work.images for stage, seconds in clock.seconds.items()}
    start = time.process_time()
    jax.block_until_ready(jax.device_put(batch))
    return {PREPARE: sum(times.values()), **times, TRANSFER: (time.process_time() - start) / work.batch}


class Clock:
    """Adds up CPU seconds by stage."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.process_time()

    def lap(self, stage: str) -> None:
        """Adds the time since the last lap to a stage."""
        now = time.process_time()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def prepare(work: Work, indices: Sequence[int], rng: np.random.Generator, clock: Clock) -> np.ndarray:
    """A batch uint8[N, H, W, C], as decoding, `work.transform` and stacking make it."""
    transform, prepared = work.transform, []
    size = (transform.image_size, transform.image_size)
    for index in indices:
        encoded = work.sample.source[index]["image"]
        clock.lap("read")
        image = DECODE({"image": encoded})["image"]  # [H, W, C]
        clock.lap("decode")
        box = random_box(*image.shape[:2], rng, area=transform.area, aspect=transform.aspect)
        clock.lap("crop")
        prepared.append(resize(image, size, method=transform.resize, box=box))  # [size, size, C]
        clock.lap("resize")
    batch = np.stack(prepared)  # [N, size, size, C]
    clock.lap("stack")
    return batch


def pipeline(work: Work, number: int) -> Times:
    """Times `data.train_batches` in round `number` with one thread, as training calls it.

    It reads ahead only while a batch is waited for, so no image is prepared outside of the measurement.
    """
    start = number * (1 + work.batches)
    reader = data.Reader(work.sample.source, DECODE, substitute=True)
    settings = {"batch_size": work.batch, "seed": images.SEED, "start_step": start, "num_threads": 1}
    batches = data.train_batches(reader, work.transform, **settings)
    others = set(threading.enumerate())
    next(batches)  # starts the thread
    before = time.process_time()
    for _ in range(work.batches):
        next(batches)
    seconds = time.process_time() - before
    batches.close()
    for thread in set(threading.enumerate()) - others:
        thread.join(timeout=10)  # it ends after the batch that it has begun
    return {PREPARE: seconds / work.images}


def make_rows(work: Work, plain: Sequence[Times], piped: Sequence[Times]) -> list[rows.Row]:
    """A row for each stage of the plain loop, as a share of the whole loop, and one for the pipeline."""
    whole = [times[PREPARE] for times in plain]
    sides = [(PLAIN, stage, [times[stage] for times in plain]) for stage in plain[0]]
    sides.append((PIPELINE, PREPARE, [times[PREPARE] for times in piped]))
    return [
        rows.make(
            stage, side, work.inputs, images=1, seconds=seconds, reference=(PLAIN, whole), libraries=versions()
        )
        for side, stage, seconds in sides
    ]


def versions() -> dict[str, str]:
    """Versions of the libraries that prepare images."""
    return {"opencv": cv2.__version__} | {
        name: importlib.metadata.version(name) for name in ("numpy", "pillow", "grain")
    }


def describe(measured: Sequence[Mapping], *, feed: int) -> str:
    """The rows for people."""
    *stages, piped = measured
    lines = [f"{'plain loop':<10}{'CPU ms':>9}{'share':>8}"]
    for row in stages:
        share = f"{row['ratio']:.1%}" if row["what"] != TRANSFER else "-"
        lines.append(f"{row['what']:<10}{1000 * row['seconds']:>9.3f}{share:>8}  {STAGES[row['what']]}")
    seconds = piped["seconds"]
    grain, low, high = (1 - 1 / piped[key] for key in rows.RATIO)
    return "\n".join([
        *lines,
        f"pipeline: {rows.milliseconds(piped)} of CPU time an image, {1 / seconds:,.0f} images/s;"
        f" Grain takes {grain:.1%} of it (quartiles {low:.1%} to {high:.1%})",
        f"{feed:,} images/s take {feed * seconds:.1f} cores like this one",
    ])  # fmt: skip
