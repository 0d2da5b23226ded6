"""Times how the pipeline of training prepares images on one core, as a whole and stage by stage."""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import os
import pathlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2

from xception_jax import data
from xception_jax.commands import device
from xception_jax.commands.benchmark import images, rows
from xception_jax.commands.benchmark.images import DECODE, Work
from xception_jax.commands.steps import positive
from xception_jax.data.dataset import Subset
from xception_jax.run import memory

PREPARE, BATCH, PIPELINE = "prepare", "batch", "pipeline"
STAGES = {
    PREPARE: "file -> batch, all of the following",
    "read": "file -> bytes",
    "decode": "bytes -> pixels",
    "transform": "crop and resize to the model's size",
    BATCH: "the rest: order, threads, images -> batch",
}
Times = dict[str, float]  # stage -> CPU seconds of an image, all threads together


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    add_work_arguments(parser)
    parser.add_argument("--feed", type=positive, default=3000, help="images/s to count cores for (default: 3000)")


def add_work_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags that say what is prepared, how often, and where the rows go."""
    images.add_arguments(parser)
    parser.add_argument("--rounds", type=positive, default=11, help="measurements (default: 11)")
    rows.add_argument(parser, "data.csv")


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints and records the pipeline and each of its stages."""
    memory.keep_freed_memory()  # as in training
    rows.check(arguments.csv)
    with tempfile.TemporaryDirectory() as folder:
        work = Work.from_arguments(arguments, pathlib.Path(folder))
        print(f"{work}; one thread on one core of {device.describe()}")
        print(f"{arguments.rounds} rounds of {work.images} images", flush=True)
        with one_core():
            rounds = [pipeline(work, number) for number in range(1 + arguments.rounds)]
    measured = make_rows(work, rounds[1:])  # the first round warms up
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


class Timed:
    """A function, with the CPU seconds that its thread spent in it."""

    def __init__(self, function: Callable):
        self.seconds, self._function = 0.0, function

    def __call__(self, *arguments: Any) -> Any:
        start = time.thread_time()
        result = self._function(*arguments)
        self.seconds += time.thread_time() - start
        return result


@dataclasses.dataclass(frozen=True)
class TimedSource(Subset):
    """A source whose reading is timed."""

    read: Timed

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.read(index)


def pipeline(work: Work, number: int) -> Times:
    """Times `data.train_batches` in round `number` with one thread, as training calls it, and the stages within.

    It reads ahead only while a batch is waited for, so no image is prepared outside of the measurement.
    """
    read, decode, transform = Timed(work.source.__getitem__), Timed(DECODE), Timed(work.transform)
    stages = {"read": read, "decode": decode, "transform": transform}
    reader = data.Reader(TimedSource(**vars(work.source), read=read), decode, substitute=True)
    settings = {"batch_size": work.batch, "seed": images.SEED, "start_step": number * (1 + work.batches)}
    batches = data.train_batches(reader, transform, num_threads=1, **settings)
    others = set(threading.enumerate())
    next(batches)  # starts the thread
    start, before = time.process_time(), {stage: timed.seconds for stage, timed in stages.items()}
    for _ in range(work.batches):
        next(batches)
    whole = time.process_time() - start
    times = {stage: timed.seconds - before[stage] for stage, timed in stages.items()}
    batches.close()
    for thread in set(threading.enumerate()) - others:
        thread.join(timeout=10)  # it ends after the batch that it has begun
    times = {PREPARE: whole, **times, BATCH: whole - sum(times.values())}
    return {stage: seconds / work.images for stage, seconds in times.items()}


def make_rows(work: Work, rounds: Sequence[Times]) -> list[rows.Row]:
    """A row for each stage, with its share of the whole."""
    seconds = {stage: [times[stage] for times in rounds] for stage in STAGES}
    return rows.compare("what", seconds, by=PIPELINE, inputs=work.inputs, images=1, libraries=versions())


def versions() -> dict[str, str]:
    """Versions of the libraries that prepare images."""
    others = {name: importlib.metadata.version(name) for name in ("numpy", "pillow", "grain")}
    return {"opencv": cv2.__version__} | others


def describe(measured: Sequence[rows.Row], *, feed: int) -> str:
    """The rows for people."""
    lines = [f"{'stage':<10}{'CPU ms':>9}{'share':>8}"]
    for row in measured:
        milliseconds, share = 1000 * row["seconds"], row.get("ratio", 1.0)
        lines.append(f"{row['what']:<10}{milliseconds:>9.3f}{share:>8.1%}  {STAGES[row['what']]}")
    seconds = measured[0]["seconds"]
    lines.append(f"{rows.milliseconds(measured[0])} of CPU time an image, {1 / seconds:,.0f} images/s")
    lines.append(f"{feed:,} images/s take {feed * seconds:.1f} cores like this one")
    return "\n".join(lines)
