"""Where metrics go: metrics.jsonl, TensorBoard events, the console."""

import json
import os
import pathlib
import sys
import time
from collections.abc import Mapping

import tensorboardX
from tqdm import tqdm

Scalars = Mapping[str, float]


class JsonlWriter:
    """One line of JSON for each call, {"step": ..., "kind": ..., name: value}; written through at once."""

    def __init__(self, path: pathlib.Path, *, start_step: int, evaluated: bool = True):
        """Opens `path` to go on after `start_step`.

        Rows of later steps, from a run that was killed after its last checkpoint, are dropped, as they will be
        written again; so are those of an evaluation of `start_step` that is to be repeated, if not `evaluated`.
        """
        rows = [
            row
            for row in (read_jsonl(path) if path.exists() else [])
            if row["step"] < start_step or (row["step"] == start_step and (evaluated or row["kind"] == "train"))
        ]
        rewritten = path.with_suffix(".tmp")
        rewritten.write_text("".join(json.dumps(row) + "\n" for row in rows))
        rewritten.replace(path)
        self._file = path.open("a", buffering=1)

    def write(self, step: int, kind: str, scalars: Scalars) -> None:
        """Writes a row."""
        self._file.write(json.dumps({"step": step, "kind": kind, **scalars}) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_jsonl(path: pathlib.Path) -> list[dict]:
    """The rows of a metrics file; a last line that a kill cut short is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class TensorBoardWriter:
    """Event files for TensorBoard; scalars are named kind/name. TensorFlow is not needed."""

    def __init__(self, directory: pathlib.Path, *, start_step: int):
        # Two writers started in the same second would share a file name, and the second empty it.
        self._writer = tensorboardX.SummaryWriter(
            str(directory), purge_step=start_step + 1, filename_suffix=f".{os.getpid()}.{time.time_ns()}"
        )

    def write(self, step: int, kind: str, scalars: Scalars) -> None:
        """Writes an event for each scalar."""
        for name, value in scalars.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self._writer.close()


class Console:
    """Lines on standard output, and on a terminal a progress bar below them."""

    def __init__(self, *, enabled: bool = True):
        self._enabled = enabled
        self._bar = None

    def start(self, *, step: int, total: int) -> None:
        """Shows the progress bar, if this is a terminal."""
        if self._enabled and sys.stdout.isatty():
            self._bar = tqdm(total=total, initial=step, unit="step", file=sys.stdout, dynamic_ncols=True)

    def advance(self) -> None:
        """Moves the progress bar by a step."""
        if self._bar is not None:
            self._bar.update()

    def line(self, text: str = "", *, every_host: bool = False) -> None:
        """Prints a line, above the progress bar if there is one; on the first host alone unless told otherwise."""
        if self._bar is not None:
            self._bar.write(text)
        elif self._enabled or every_host:
            print(text, flush=True)

    def close(self) -> None:
        """Leaves the progress bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Writers:
    """All of them; on other hosts than the first, none. `start_step` and `evaluated`: see `JsonlWriter`."""

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
        """Closes all of them."""
        for writer in self._writers:
            writer.close()
        self.console.close()
