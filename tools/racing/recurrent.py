"""A training step of a recurrent text classifier against those of torch, padded or packed, and of Keras."""

import argparse
import contextlib
import itertools
import json
import sys

import numpy as np

from racing.process import WORKERS, start
from xception_jax.commands import device, steps
from xception_jax.commands.benchmark import rows
from xception_jax.ops.recurrence import CELLS

PEERS = {"torch": ("torch", False), "packed": ("torch", True), "keras": ("keras", False)}  # library, packed
BATCHES = 8  # of different lengths, in each round
# Tokens of a text of AG News, by "basic_english": a log-normal distribution with about this median and spread.
MEDIAN, SPREAD, SHORTEST, LONGEST = 42, 0.3, 8, 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    several = {"nargs": "+", "type": steps.positive}
    parser.add_argument("--cell", nargs="+", choices=CELLS, default=["lstm"], help="(default: lstm)")
    parser.add_argument("--batch", default=[16, 64], help="texts a step (default: 16 64)", **several)
    parser.add_argument("--hidden", default=[32, 256], help="size of the state (default: 32 256)", **several)
    parser.add_argument("--vocabulary", type=steps.positive, default=95812, help="tokens (default: 95812)")
    parser.add_argument("--fixed-vectors", action="store_true", help="do not train the vectors of the tokens")
    parser.add_argument(
        "--against", choices=PEERS, nargs="+", required=True, help="packed: torch, packed sequences"
    )
    parser.add_argument("--peer-python", default=sys.executable, help="python with torch (default: this one)")
    parser.add_argument("--rounds", type=steps.positive, default=10, help="measurements (default: 10)")
    rows.add_argument(parser, "text_speed.csv")


def run(arguments: argparse.Namespace) -> None:
    """Measures, prints and records each combination of cell, batch and size of the state."""
    rows.check(arguments.csv)
    print(f"training steps on {device.describe()}; time here / time there", flush=True)
    for cell, batch, hidden in itertools.product(arguments.cell, arguments.batch, arguments.hidden):
        measured = race(arguments, cell, batch, hidden)
        rows.append(arguments.csv, measured)
        print("\n".join(map(describe, measured)), flush=True)
    print(f"added to {arguments.csv}")


def race(arguments: argparse.Namespace, cell: str, batch: int, hidden: int) -> list[rows.Row]:
    """The rows of this package, one for each peer, and of the peers; the steps of all sides alternate."""
    options = {
        "cell": cell,
        "hidden": hidden,
        "vocabulary": arguments.vocabulary,
        "fixed_vectors": arguments.fixed_vectors,
        "lengths": draw_lengths(batch).tolist(),
    }
    with contextlib.ExitStack() as stack:
        sides = {"xception_jax": stack.enter_context(start("xception_jax", command("text_step.py", options)))}
        for name in dict.fromkeys(arguments.against):
            library, packed = PEERS[name]
            python = arguments.peer_python if library == "torch" else sys.executable
            worker = command(f"peer_text_{library}.py", options | {"packed": packed}, python)
            sides[name] = stack.enter_context(start(name, worker, install=library, KERAS_BACKEND="jax"))
        times = [{name: side() / BATCHES for name, side in sides.items()} for _ in range(arguments.rounds)]
        versions = {k: v for side in sides.values() for k, v in side.greeting["versions"].items()}
    for name in ("jax", "xception_jax"):  # every row has them, the latter as its commit
        versions.pop(name, None)
    seconds = {name: [each[name] for each in times] for name in sides}
    vectors = "fixed" if arguments.fixed_vectors else f"{arguments.vocabulary:,} trained"
    shared = {"what": "train", "inputs": f"AG News lengths, state {hidden}, {vectors} vectors", "images": batch}
    shared["libraries"] = versions
    ours, *peers = seconds
    made = [
        rows.make(by=cell, seconds=seconds[ours], reference=(f"{peer} {cell}", seconds[peer]), **shared)
        for peer in peers
    ]
    return made + [rows.make(by=f"{peer} {cell}", seconds=seconds[peer], **shared) for peer in peers]


def draw_lengths(batch: int) -> np.ndarray:
    """Numbers of tokens, int[BATCHES, batch]."""
    drawn = np.random.default_rng(0).lognormal(np.log(MEDIAN), SPREAD, (BATCHES, batch))
    return np.clip(drawn.round(), SHORTEST, LONGEST).astype(int)


def command(script: str, options: dict, python: str = sys.executable) -> list[str]:
    """The command that starts a worker."""
    return [python, str(WORKERS / script), json.dumps(options)]


def describe(row: rows.Row) -> str:
    """A row for people."""
    by = f"{row['by']}, {row['images']} texts, {row['inputs']}"
    return f"{by}: {rows.milliseconds(row)} a step  {rows.ratio(row)}".rstrip()
