"""The same work here and in another library, in turn: each side a process that runs a step when it is told to.

A worker prints one JSON line when it is ready, {"setup_seconds": ..., "versions": ...}; then it runs a step for
each line it reads and answers {"seconds": ...}; it ends when its input does. A worker that lacks a library says
{"missing": NAME} instead.
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, Self

from xception_jax import models
from xception_jax.commands.benchmark import device, records
from xception_jax.commands.benchmark.workload import Workload
from xception_jax.errors import TrainingError, UserError

WORKERS = pathlib.Path(__file__).parent / "workers"
# The models of each library that are compared with; the first is the default.
PEER_MODELS = {"timm": ("legacy_xception", "inception_v3"), "keras": ("Xception", "InceptionV3")}
PACKAGES = {"timm": "timm torch", "keras": "keras jax", "tfdata": "tensorflow-cpu"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags of the comparison."""
    names = "; ".join(f"{library}: {', '.join(names)}" for library, names in PEER_MODELS.items())
    parser.add_argument("--against", choices=PEER_MODELS, help="compare with this library, step by step in turn")
    parser.add_argument("--peer-python", default=sys.executable, help="python that has it (default: this one)")
    parser.add_argument("--peer-model", help=f"its model ({names}; default: the first)")
    parser.add_argument("--compile", action="store_true", help="timm: torch.compile the model")
    parser.add_argument("--amp", action="store_true", help="the library computes in bfloat16 with float32 weights")


def run(arguments: argparse.Namespace, work: Workload, modes: tuple[str, ...]) -> None:
    """Compares each mode, prints it, and adds a row for each side.

    Raises:
      UserError: for a model the library has not, or a library that is not there.
      TrainingError: if a worker dies.
    """
    peer = Peer.from_arguments(arguments)
    if peer.dtype != work.dtype:
        print(f"note: {peer} computes in {peer.dtype}, this package in {work.dtype}")
    for mode in modes:
        # One after the other: each compiles with the machine to itself.
        with (
            Worker(peer.library, peer.command(work, mode)) as theirs,
            Worker("xception_jax", own_command(work, mode)) as ours,
        ):
            pairs = alternate(ours, theirs, arguments.rounds)
        rows = make_rows(work, mode, peer, (ours.greeting, theirs.greeting), pairs)
        records.append(arguments.csv, rows)
        print(describe(*rows), flush=True)


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
            raise UserError(f"--compile: {library} is compiled by JAX anyway; leave it away")
        return cls(library, model, arguments.peer_python, arguments.compile, arguments.amp)

    def __str__(self) -> str:
        return f"{self.library} {self.model}" + (" compiled" if self.compile else "")

    @property
    def dtype(self) -> str:
        """Of its computation."""
        return "bfloat16" if self.amp else "float32"

    def command(self, work: Workload, mode: str) -> list[str]:
        """What starts its worker; the script needs its library only."""
        config = models.model_class(work.model).CONFIG(**work.settings)
        options = {
            "model": self.model,
            "mode": mode,
            "batch": work.batch,
            "image_size": work.image_size,
            "classes": config.num_classes,
            "compile": self.compile,
            "amp": self.amp,
        }
        return [self.python, str(WORKERS / f"peer_{self.library}.py"), json.dumps(options)]


def own_command(work: Workload, mode: str) -> list[str]:
    """What starts this package's worker."""
    options = dataclasses.asdict(work) | {"mode": mode}
    return [sys.executable, "-m", "xception_jax.commands.benchmark.workers.ours", json.dumps(options)]


class Worker:
    """A process that is ready, that is compiled and warm, inside a `with` block, and ends with it.

    Attributes:
      greeting: what it said when it was ready.
    """

    def __init__(self, name: str, command: Sequence[str]):
        """
        Args:
          name: the library, for messages.
          command: what starts it.
        """
        self.name, self.command = name, command

    def __enter__(self) -> Self:
        """Starts it and waits until it is ready.

        Raises:
          UserError: if there is no such program, or it lacks a library.
          TrainingError: if it dies.
        """
        with contextlib.ExitStack() as stack:
            self._errors = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
            try:
                self._process = stack.enter_context(subprocess.Popen(self.command, text=True, **pipes))
            except OSError as error:
                raise UserError(
                    f"--peer-python={self.command[0]}: {error.strerror}; give a python's path"
                ) from None
            stack.push(self._stop)
            self.greeting = self._read()
            if "missing" in self.greeting:
                raise UserError(
                    f"--against={self.name}: {self.command[0]} has no {self.greeting['missing']}; "
                    f"pip install {PACKAGES[self.name]} there, or name another --peer-python"
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception) -> None:
        self._stack.__exit__(*exception)

    def _stop(self, failure: type[BaseException] | None, *_) -> None:
        """Ends it with its input; at once if something went wrong."""
        if failure is not None:
            self._process.kill()
        try:
            self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def step(self) -> float:
        """Seconds of one step, as the worker measured them."""
        with contextlib.suppress(BrokenPipeError):  # reading tells why
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return self._read()["seconds"]

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        lines = [text.strip() for text in self._errors if text.strip()]
        raise TrainingError(
            f"the {self.name} process ended with code {code}: {lines[-1] if lines else 'no message'}"
        )


def alternate(ours: Worker, theirs: Worker, rounds: int) -> list[tuple[float, float]]:
    """Seconds of a step here and of the one after it there, round by round."""
    return [(ours.step(), theirs.step()) for _ in range(rounds)]


def make_rows(
    work: Workload, mode: str, peer: Peer, ready: Sequence[dict[str, Any]], pairs: Sequence[tuple[float, float]]
) -> list[records.Row]:
    """The rows of both sides; ours has the ratio of the times, pair by pair."""
    seconds = list(zip(*pairs, strict=True))
    versions = " ".join(f"{name} {version}" for name, version in ready[1]["versions"].items())
    shared = device.environment() | {"benchmark": "versus", "mode": mode, "peer": versions}
    ours = work.columns | records.ratio_columns(*seconds, str(peer))
    theirs = work.columns | {"library": peer.library, "model": peer.model, "dtype": peer.dtype}
    theirs["implementation"] = "compiled" if peer.compile else "default"
    sides = [ours, theirs]
    for side, greeting, times in zip(sides, ready, seconds, strict=True):
        side |= shared | records.seconds_columns(times) | {"setup_seconds": greeting["setup_seconds"]}
        side["images_per_second"] = work.batch / side["seconds"]
    return sides


def describe(ours: records.Row, theirs: records.Row) -> str:
    """Both rows for people."""
    ratio, low, high = (ours[f"time_ratio{end}"] for end in ("", "_low", "_high"))
    lines = [f"{ours['mode']}:"]
    for row in (ours, theirs):
        lines.append(
            f"{row['library']} {row['model']}: {records.milliseconds(row)} a step, "
            f"{row['images_per_second']:.3g} images/s; ready after {row['setup_seconds']:.0f} s"
        )
    lines.append(
        f"time here / time there: {ratio:.3g} (quartiles {low:.3g} to {high:.3g}; below 1 is faster here)"
    )
    return "\n  ".join(lines)
