"""One side of a race: a process that does a piece of work when it is told to.

A worker prints one JSON line when it is ready: {"setup_seconds": ..., "versions": {...}, "file": ...}, the last of
which is the path of the first module it imported. Then it does its work once for each line it reads and answers
{"seconds": ...}; it ends when its input ends. A worker that lacks a library prints {"missing": NAME} instead.
workers/protocol.py is the other end.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

from xception_jax.errors import TrainingError, UserError

WORKERS = pathlib.Path(__file__).parent.parent / "workers"


@contextlib.contextmanager
def start(name: str, command: Sequence[str], *, install: str = "", **environment: str) -> Iterator["Worker"]:
    """Starts a worker, waits until it is ready, that is compiled and warm, and ends it with the `with` block.

    Args:
      name: of this side, for messages.
      command: starts the process.
      install: packages that it needs, for the message if one is missing.
      **environment: variables that it gets besides those of this process.

    Raises:
      UserError: if there is no such program, or it lacks a library.
      TrainingError: if it dies.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        try:
            process = subprocess.Popen(command, text=True, env=os.environ | environment, **pipes)
        except OSError as error:
            raise UserError(f"--peer-python={command[0]}: {error.strerror}; give a python's path") from None
        with process:
            try:
                worker = Worker(name, process, errors)
                if missing := worker.greeting.get("missing"):
                    remedy = f"pip install {install} there, or name another --peer-python"
                    raise UserError(f"--against={name}: {command[0]} has no {missing}; {remedy}")
                yield worker
            except BaseException:
                process.kill()
                raise
            finally:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.communicate(timeout=10)  # closes its input, by which it ends
                process.kill()


class Worker:
    """A process that is ready; `greeting` is what it said then. A call makes it work once."""

    def __init__(self, name: str, process: subprocess.Popen, errors: IO[str]):
        self._name, self._process, self._errors = name, process, errors
        self.greeting = self._read()

    def __call__(self) -> float:
        """Seconds that the work took this time, as the worker measured them."""
        with contextlib.suppress(BrokenPipeError):  # reading raises the error that tells why
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
        reason = lines[-1] if lines else "no message"
        raise TrainingError(f"the {self._name} process ended with code {code}: {reason}")
