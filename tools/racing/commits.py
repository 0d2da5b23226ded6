"""Another checkout of this project against this one: a training step, inference, and the input pipeline."""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import tempfile

from racing.process import WORKERS, start
from xception_jax.commands import device, steps
from xception_jax.commands.benchmark import data, images, rows
from xception_jax.errors import UserError

HERE = pathlib.Path(__file__).resolve().parent.parent.parent
WHAT = (*steps.MODES, "data")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    steps.add_arguments(parser, rounds=10)
    parser.add_argument("--old", type=pathlib.Path, required=True, help="root of the other checkout")
    parser.add_argument("--what", choices=WHAT, nargs="+", default=("train", "data"), help="(default: train data)")
    parser.add_argument("--images", type=steps.positive, default=96, help="data: images a round (default: 96)")
    parser.add_argument("--csv", type=pathlib.Path, help="file of measurements to add rows to (default: none)")


def run(arguments: argparse.Namespace) -> None:
    """Compares each kind of work, the two checkouts in turn, and prints the ratio with its quartiles."""
    if not (arguments.old / "xception_jax").is_dir():
        raise UserError(f"--old={arguments.old}: has no xception_jax; name the root of a checkout")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the two processes share a GPU
    if arguments.csv is not None:
        rows.check(arguments.csv)
    work = steps.from_arguments(arguments)
    print(f"on {device.describe()}", flush=True)
    for what in dict.fromkeys(arguments.what):
        row = race_data(arguments, work) if what == "data" else race_steps(arguments, work, what)
        print(f"{row['what']}, {row['inputs']}: {rows.milliseconds(row)}", end="; ")
        print(f"time here / time there: {rows.ratio(row)}; below 1 is faster here", flush=True)
        if arguments.csv is not None:
            rows.append(arguments.csv, [row])


def race_steps(arguments: argparse.Namespace, work: steps.Workload, mode: str) -> rows.Row:
    """The row of this checkout's step."""
    options = dataclasses.asdict(work) | {"mode": mode}
    seconds = alternate(arguments, "step.py", options)
    return make_row(arguments, mode, work.inputs, work.batch, seconds)


def race_data(arguments: argparse.Namespace, work: steps.Workload) -> rows.Row:
    """The row of this checkout's pipeline on photographs: CPU seconds of an image."""
    batches = -(-arguments.images // work.batch)
    with tempfile.TemporaryDirectory() as folder, data.one_core():
        images.make_photographs(pathlib.Path(folder), arguments.images)
        options = {"folder": folder, "image_size": work.image_size, "batch": work.batch, "batches": batches}
        seconds = alternate(arguments, "pipeline.py", options)
    seconds = [tuple(side / (batches * work.batch) for side in pair) for pair in seconds]
    return make_row(arguments, data.PREPARE, f"photographs -> {work.image_size} px, bilinear", 1, seconds)


def alternate(arguments: argparse.Namespace, script: str, options: dict) -> list[tuple[float, float]]:
    """Seconds here and in the other checkout, in turn, round by round."""
    with contextlib.ExitStack() as stack:
        sides = []
        for root in (HERE, arguments.old.resolve()):
            command = [sys.executable, str(WORKERS / script), json.dumps(options)]
            side = stack.enter_context(start(str(root), command, PYTHONPATH=str(root)))
            if not pathlib.Path(side.greeting["file"]).is_relative_to(root):
                raise UserError(f"--old={arguments.old}: python imports {side.greeting['file']} instead")
            sides.append(side)
        return [tuple(side() for side in sides) for _ in range(1 + arguments.rounds)][1:]  # the first warms up


def make_row(
    arguments: argparse.Namespace, what: str, inputs: str, images: int, seconds: list[tuple[float, float]]
) -> rows.Row:
    """The row of this checkout, with the ratio to the other one."""
    ours, theirs = zip(*seconds, strict=True)
    name = arguments.model if what in steps.MODES else data.PIPELINE
    return rows.make(what, name, inputs, images=images, seconds=ours, reference=(commit(arguments.old), theirs))


def commit(root: pathlib.Path) -> str:
    """A name of a checkout: its commit, else its path."""
    found = device.commit(root)
    return f"commit {found}" if found else str(root)
