"""Writers of metrics: metrics.jsonl, TensorBoard event files and the console."""

import json
import os
import pathlib
import sys
import time
from collections.abc import Mapping

import tensorboardX
from tqdm import tqdm

from xception_jax.run import atomic

Scalars = Mapping[str, float]


class JsonlWriter:
    """Writes one line of JSON for each call, {"step": ..., "kind": ..., name: value}, without delay."""

    def __init__(self, path: pathlib.Path, *, start_step: int, evaluated: bool = True):
        """Opens `path` to continue after `start_step`.

        Rows of later steps are dropped: they come from a run that was killed after its last checkpoint, and will
        be written again.

        Args:
          evaluated: whether `start_step` was evaluated; if not, rows of its evaluation are dropped too, because it
            will be repeated.
        """
        rows = [
            row
            for row in (read_jsonl(path) if path.exists() else [])
            if row["step"] < start_step or (row["step"] == start_step and (evaluated or row["kind"] == "train"))
        ]
        atomic.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = path.open("a", buffering=1)

    def write(self, step: int, kind: str, scalars: Scalars) -> None:
        """Writes a row."""
        self._file.write(json.dumps({"step": step, "kind": kind, **scalars}) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_jsonl(path: pathlib.Path) -> list[dict]:
    """The rows of a metrics file, without a last line that was cut short when the process was killed."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class TensorBoardWriter:
    """Writes event files for TensorBoard, without TensorFlow; scalars are named kind/name."""

    def __init__(self, directory: pathlib.Path, *, start_step: int):
        # Without a suffix, two writers that start in the same second would write to the same file.
        self._writer = tensorboardX.SummaryWriter(
            str(directory), purge_step=start_step + 1, filename_suffix=f".{os.getpid()}.{time.time_ns()}"
        )

    def write(self, step: int, kind: str, scalars: Scalars) -> None:
        """Writes an event for each scalar."""
        for name, value in scalars.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()


class Console:
    """Prints lines to standard output and, on a terminal, a progress bar below them."""

    def __init__(self, *, enabled: bool = True):
        self._enabled = enabled
        self._bar = None

    def start(self, *, step: int, total: int) -> None:
        """Shows the progress bar, if this is a terminal."""
        if self._enabled and sys.stdout.isatty():
            self._bar = tqdm(total=total, initial=step, unit="step", file=sys.stdout, dynamic_ncols=True)

    def advance(self) -> None:
        """Moves the progress bar by one step."""
        if self._bar is not None:
            self._bar.update()

    def line(self, text: str = "", *, every_host: bool = False) -> None:
        """Prints a line, above the progress bar if there is one.

        Args:
          every_host: print it even if this console is not enabled, as on all hosts but the first.
        """
        if self._bar is not None:
            self._bar.write(text)
        elif self._enabled or every_host:
            print(text, flush=True)

    def close(self) -> None:
        """Ends the progress bar; what it shows stays on the terminal."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Writers:
    """Fans out to all writers; silent except on the first host.

    `start_step` and `evaluated` are explained in `JsonlWriter`.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        start_step: int,
        evaluated: bool = True,
        console: Console,
        enabled: bool = True,
    ):
        self.console = console
        self._writers = []
        if enabled:
            self._writers = [
                JsonlWriter(workdir / "metrics.jsonl", start_step=start_step, evaluated=evaluated),
                TensorBoardWriter(workdir / "tensorboard", start_step=start_step),
            ]

    def write(self, step: int, kind: str, scalars: Scalars) -> None:
        """Writes finite numbers under `kind`: "train", "raw" or "averaged"."""
        for writer in self._writers:
            writer.write(step, kind, scalars)

    def close(self) -> None:
        """Closes all writers and the console."""
        for writer in self._writers:
            writer.close()
        self.console.close()
