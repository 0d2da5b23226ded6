"""A training step and inference of this package against those of timm or Keras."""

import argparse
import dataclasses
import json
import os
import sys
from typing import Any, Self

from racing.process import WORKERS, Worker, start
from xception_jax import models
from xception_jax.commands import device, steps
from xception_jax.commands.benchmark import rows
from xception_jax.commands.benchmark.step import MODES, add_mode_argument
from xception_jax.commands.steps import Workload
from xception_jax.errors import UserError

# The models of each library that are compared with; the first is the default.
PEER_MODELS = {"timm": ("legacy_xception", "inception_v3"), "keras": ("Xception", "InceptionV3")}
PACKAGES = {"timm": "timm torch", "keras": "keras jax"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    steps.add_arguments(parser, rounds=10)
    add_mode_argument(parser)
    names = "; ".join(f"{library}: {', '.join(names)}" for library, names in PEER_MODELS.items())
    parser.add_argument("--against", choices=PEER_MODELS, required=True, help="the other library")
    parser.add_argument("--peer-python", default=sys.executable, help="python that has it (default: this one)")
    parser.add_argument("--peer-model", help=f"its model ({names}; default: the first)")
    parser.add_argument("--compile", action="store_true", help="timm: torch.compile the model")
    parser.add_argument("--amp", action="store_true", help="the library computes in bfloat16 with float32 weights")
    rows.add_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Compares each mode, prints it, and adds a row for each side."""
    # JAX takes most of a GPU's memory otherwise, here and in each of the processes that share it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    rows.check(arguments.csv)
    work, peer = steps.from_arguments(arguments), Peer.from_arguments(arguments)
    print(f"{work.name}, {work.batch} x {work.inputs}, on {device.describe()}", flush=True)
    if peer.dtype != work.dtype:
        print(f"note: {peer} computes in {peer.dtype}, this package in {work.dtype}")
    for mode in MODES[arguments.mode]:
        peer_worker = start(peer.library, peer.command(work, mode), install=PACKAGES[peer.library])
        with peer_worker as theirs, start("xception_jax", own_command(work, mode)) as ours:
            measured = race(work, mode, peer, ours, theirs, arguments.rounds)
        rows.append(arguments.csv, measured)
        print(f"{mode}:\n" + "\n".join(map(describe, measured)), flush=True)
    print(f"added to {arguments.csv}")


@dataclasses.dataclass(frozen=True)
class Peer:
    """What is compared with: a library, one of its models, the python that runs it, and how."""

    library: str
    model: str
    python: str
    compile: bool
    amp: bool

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        """The peer that the flags describe; UserError if the library has no such model or option."""
        library, names = arguments.against, PEER_MODELS[arguments.against]
        model = arguments.peer_model or names[0]
        if model not in names:
            raise UserError(f"--peer-model={model}: choose one of {', '.join(names)} for --against={library}")
        if arguments.compile and library != "timm":
            raise UserError(f"--compile: {library} is compiled by JAX anyway; leave it out")
        return cls(library, model, arguments.peer_python, arguments.compile, arguments.amp)

    def __str__(self) -> str:
        return f"{self.library} {self.model}" + (" (compiled)" if self.compile else "")

    @property
    def dtype(self) -> str:
        """Type of its computation."""
        return "bfloat16" if self.amp else "float32"

    def command(self, work: Workload, mode: str) -> list[str]:
        """The command that starts its worker, a script that needs its library only."""
        options = {
            "model": self.model,
            "mode": mode,
            "batch": work.batch,
            "image_size": work.image_size,
            "classes": models.model_config(work.model, **work.settings).num_classes,
            "compile": self.compile,
            "amp": self.amp,
        }
        return [self.python, str(WORKERS / f"peer_{self.library}.py"), json.dumps(options)]


def own_command(work: Workload, mode: str) -> list[str]:
    """The command that starts this package's worker."""
    options = dataclasses.asdict(work) | {"mode": mode}
    return [sys.executable, str(WORKERS / "step.py"), json.dumps(options)]


def race(work: Workload, mode: str, peer: Peer, ours: Worker, theirs: Worker, rounds: int) -> list[rows.Row]:
    """The rows of both sides, whose steps alternate; ours has the ratio of the times, pair by pair."""
    own, other = zip(*((ours(), theirs()) for _ in range(rounds)), strict=True)
    shared: dict[str, Any] = {"images": work.batch, "libraries": theirs.greeting["versions"]}
    other_inputs = dataclasses.replace(work, dtype=peer.dtype).inputs
    return [
        rows.make(mode, work.name, work.inputs, seconds=own, reference=(str(peer), other), **shared),
        rows.make(mode, str(peer), other_inputs, seconds=other, **shared),
    ]


def describe(row: rows.Row) -> str:
    """A row for people."""
    text = f"  {row['by']}: {rows.milliseconds(row)} a step, {row['images'] / row['seconds']:.3g} images/s"
    return text + (f"; {rows.ratio(row)} (below 1: faster)" if row.get("reference") else "")
