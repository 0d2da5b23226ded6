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
from collections.abc import Mapping, Sequence
from typing import Any, Self

from xception_jax.errors import TrainingError, UserError

WORKERS = pathlib.Path(__file__).parent.parent / "workers"


class Worker:
    """A process that is ready, that is compiled and warm, inside a `with` block, and ends with it.

    Attributes:
      greeting: what it said when it was ready.
    """

    def __init__(self, name: str, command: Sequence[str], *, install: str = "", **environment: str):
        """
        Args:
          name: of this side, for messages.
          command: starts the process.
          install: packages that it needs, for the message if one is missing.
          **environment: variables that it gets besides those of this process.
        """
        self.name, self._command, self._install = name, list(command), install
        self._environment: Mapping[str, str] = os.environ | environment

    def __enter__(self) -> Self:
        """Starts the process and waits until it is ready.

        Raises:
          UserError: if there is no such program, or it lacks a library.
          TrainingError: if it dies.
        """
        with contextlib.ExitStack() as stack:
            self._errors = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
            try:
                process = subprocess.Popen(self._command, text=True, env=self._environment, **pipes)
            except OSError as error:
                python = self._command[0]
                raise UserError(f"--peer-python={python}: {error.strerror}; give a python's path") from None
            self._process = stack.enter_context(process)
            stack.push(self._stop)
            self.greeting = self._read()
            if "missing" in self.greeting:
                raise UserError(
                    f"--against={self.name}: {self._command[0]} has no {self.greeting['missing']}; "
                    f"pip install {self._install} there, or name another --peer-python"
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.__exit__(*exception)

    def _stop(self, failure: type[BaseException] | None, *_: object) -> None:
        """Ends the process by ending its input; kills it if something went wrong."""
        if failure is not None:
            self._process.kill()
        try:
            self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()

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
        raise TrainingError(f"the {self.name} process ended with code {code}: {reason}")
