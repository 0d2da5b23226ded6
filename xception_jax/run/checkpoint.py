"""Checkpoints of a run, which orbax writes in the background and atomically; the latest and the best are kept."""

import contextlib
import errno
import json
import math
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from xception_jax.errors import TrainingError
from xception_jax.run import atomic, hosts

PyTree = Any
T = TypeVar("T")

# Names in checkpoints of version 0.1: of trees, and of the trees inside "averaged".
_OLD_NAMES = {"model_state": "batch_stats", "averaged": "ema"}
_RECORD, _OLD_RECORD, _OLD_SCORE = "record/metadata", "meta/metadata", "metrics/metrics"  # JSON files

_WAITS = (0.5, 2.0, 8.0)  # seconds before a failed read is tried again
_UNFINISHED = (".orbax-checkpoint-tmp", ".deleted")  # names of folders that a kill can leave


class DamagedCheckpoints(Exception):
    """A checkpoint, or every checkpoint of a run, has missing files or wrong content; names it and the reason."""


class Restored(NamedTuple):
    """A checkpoint that was read."""

    step: int
    trees: dict[str, PyTree]
    record: dict[str, Any]


class Checkpoints:
    """The checkpoints below one directory; each is a folder that has its step as name.

    A checkpoint holds named trees of arrays, kept apart so that a reader can restore some of them; a record, which
    is any JSON object; and a score, which decides which checkpoint is the best (higher is better, None = unknown).

    With several hosts the first one writes everything, because each host holds a copy of every array; each host
    reads for itself. Methods marked "on all hosts" must be called by all of them, and raise the same error on all
    of them (see `hosts.agree`).
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        keep: int = 1,
        read_only: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ):
        """Opens `directory`; unless `read_only`, on all hosts, and makes it if it does not exist.

        Args:
          keep: how many of the latest checkpoints to keep; the best is kept besides.
          sleep: waits for so many seconds between attempts to read.
        """
        self.directory, self._keep, self._sleep = directory.absolute(), keep, sleep
        self._writer: ocp.AsyncCheckpointer | None = None
        if not read_only:
            hosts.agree(self._open)

    def _open(self) -> None:
        """Prepares the first host for writing, and removes what a kill left unfinished."""
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            for path in self.directory.iterdir():
                if any(part in path.name for part in _UNFINISHED):
                    shutil.rmtree(path)
            self._writer = _make_writer()

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, in ascending order."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit())

    def best_step(self) -> int | None:
        """The step with the highest score, the later of equal ones; None if there are no checkpoints.

        Raises:
          TrainingError: if the disk could not be read.
        """
        steps = self.steps()
        return max(steps, key=lambda step: (self._score(step), step), default=None)

    def _score(self, step: int) -> float:
        """The score of a checkpoint; minus infinity if it has none or the record is damaged."""
        try:
            score = self._retry(step, lambda: _read_record(self._folder(step)))[1]
        except DamagedCheckpoints:
            score = None
        return -math.inf if score is None else score

    def save(self, step: int, trees: dict[str, PyTree], record: dict[str, Any], score: float | None) -> None:
        """Starts to save in the background, on all hosts; the arrays may be donated as soon as this returns.

        Args:
          trees: a tree without leaves is not written.
          score: of these weights; None = not evaluated.

        Raises:
          TrainingError: if this save or the one before it could not be written.
        """

        def write():
            if self._writer is None:
                return
            self._finish()
            if self._folder(step).exists():
                raise TrainingError(f"checkpoint {self._folder(step)} exists already and was not written again")
            full = {name: tree for name, tree in trees.items() if jax.tree.leaves(tree)}
            items = {name: ocp.args.StandardSave(jax.tree.map(_to_numpy, tree)) for name, tree in full.items()}
            items["record"] = ocp.args.JsonSave({"record": record, "score": score})
            with self._writing():
                self._writer.save(self._folder(step), args=ocp.args.Composite(**items))

        hosts.agree(write)

    def update_record(self, step: int, record: dict[str, Any], score: float | None) -> None:
        """Replaces the record and the score of a saved checkpoint, on all hosts.

        Both are in one file, which is replaced atomically: a kill leaves the old ones or the new ones.

        Raises:
          TrainingError: if it could not be written.
        """

        def write():
            if self._writer is None:
                return
            path = self._folder(step) / _RECORD
            with self._writing():
                self._writer.wait_until_finished()
                path.parent.mkdir(exist_ok=True)  # version 0.1 had another name for it
                atomic.write_text(path, json.dumps({"record": record, "score": score}))

        hosts.agree(write)

    def wait(self) -> None:
        """Returns when the last save is on disk, on all hosts; TrainingError if it failed."""
        hosts.agree(self._finish)

    def close(self) -> None:
        """Waits for the last save; `wait` tells whether it failed."""
        if self._writer is not None:
            with contextlib.suppress(Exception):
                self._finish()
            self._writer.close()
            self._writer = None

    def _finish(self) -> None:
        """Waits for the last save and deletes checkpoints that are no longer kept; does nothing on other hosts."""
        if self._writer is None:
            return
        with self._writing():
            self._writer.wait_until_finished()
            best = self.best_step()
            for step in self.steps()[: -self._keep]:
                if step != best:
                    # A kill amid the deletion must not leave a folder that looks like a damaged checkpoint.
                    deleted = self._folder(step).rename(self.directory / f"{step}.deleted")
                    shutil.rmtree(deleted, ignore_errors=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax has no common error for the many ways in which a disk can fail
            raise TrainingError(
                f"cannot write to {self.directory}: {_first_line(error)}; checkpoints kept: {self.steps()}; free"
                " or repair the disk and run the same command to go on"
            ) from error

    def restore(self, step: int, trees: dict[str, PyTree]) -> Restored:
        """Reads a checkpoint on this host.

        Args:
          trees: of jax.ShapeDtypeStruct with shardings: what to read and where to put it. A tree without leaves,
            such as the state of a model that has none, is not in the files and returned as it is.

        Raises:
          DamagedCheckpoints: if files are missing or have wrong content, also when they are read again.
          TrainingError: if the disk could not be read, also after several attempts.
        """
        folder = self._folder(step)

        def read():
            restored = {name: _read_tree(folder, name, tree) for name, tree in trees.items()}
            return Restored(step, restored, _read_record(folder)[0])

        return self._retry(step, read)

    def _retry(self, step: int, read: Callable[[], T]) -> T:
        """The result of `read`, which is called again after a pause if it failed.

        A checkpoint is damaged if this fails twice in a row for a reason that proves damage; what fails for any
        other reason may be whole.
        """
        waits, damaged = iter(_WAITS), False
        while True:
            try:
                return read()
            except Exception as error:  # orbax has no common error for the many ways in which a read can fail
                known, damaged = damaged, _proves_damage(error)
                if damaged and known:
                    raise DamagedCheckpoints(_first_line(error)) from error
                if (wait := next(waits, None)) is None:
                    raise TrainingError(
                        f"cannot read checkpoint {self._folder(step)}: {_first_line(error)}; nothing was changed;"
                        " run the same command again when the disk can be read"
                    ) from error
            self._sleep(wait)

    def restore_latest(self, trees: dict[str, PyTree], *, warn: Callable[[str], None]) -> Restored | None:
        """Reads the latest checkpoint that is not damaged, on all hosts; None if there are no checkpoints.

        Later ones that are damaged are named to `warn`, and their folders are set aside as damaged-STEP.

        Args:
          trees: see `restore`.

        Raises:
          DamagedCheckpoints: if there are checkpoints and all are damaged; none is set aside.
          TrainingError: if the disk could not be read, or hosts differ in what they read; nothing is changed.
        """
        damaged: dict[int, str] = {}
        for step in reversed(hosts.from_first_host(self.steps)):
            restored, reason = hosts.agree(lambda step=step: self._try_restore(step, trees))
            reasons = hosts.gather(reason)
            if not any(reasons):
                for bad, why in damaged.items():
                    kept = self._set_aside(bad)
                    warn(f"checkpoint {self._folder(bad)} is damaged ({why}), kept as {kept}; using {step}")
                return restored._replace(record=hosts.from_first_host(lambda read=restored: read.record))
            if not all(reasons):
                failed = ", ".join(f"host {host}: {why}" for host, why in enumerate(reasons) if why)
                raise TrainingError(
                    f"checkpoint {self._folder(step)} can be read on some hosts only ({failed}); nothing was"
                    " changed; make sure that all hosts see the same files, and run the same command again"
                )
            damaged[step] = reasons[0]
        if damaged:
            step, reason = next(iter(damaged.items()))
            raise DamagedCheckpoints(f"none of {len(damaged)} in {self.directory} can be read; {step}: {reason}")
        return None

    def _try_restore(self, step: int, trees: dict[str, PyTree]) -> tuple[Restored | None, str]:
        """(checkpoint, "") or (None, why it is damaged)."""
        try:
            return self.restore(step, trees), ""
        except DamagedCheckpoints as error:
            return None, str(error)

    def _set_aside(self, step: int) -> str:
        """Renames a damaged folder, so that a new checkpoint of its step can be saved; returns the new name."""

        def rename():
            target, number = self.directory.parent / f"damaged-{step}", 1
            while target.exists():
                number += 1
                target = self.directory.parent / f"damaged-{step}-{number}"
            self._folder(step).rename(target)
            return target.name

        return hosts.from_first_host(rename)

    def _folder(self, step: int) -> pathlib.Path:
        return self.directory / str(step)


def _make_writer() -> ocp.AsyncCheckpointer:
    """Orbax's writer, for the first host alone: it waits for no other host."""
    processes = ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix="first_host"
    )
    # Folders that are made in the background are announced to all hosts, but the others do not listen.
    background = ocp.options.AsyncOptions(create_directories_asynchronously=False)
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=processes, async_options=background)
    )
    return ocp.AsyncCheckpointer(handler, multiprocessing_options=processes, async_options=background)


def _to_numpy(array: jax.Array) -> np.ndarray:
    """The whole array, from the devices of this host alone; orbax copies it before `save` returns.

    Given a jax.Array, orbax expects all hosts to write, and by default writes a part of each device's copy.
    """
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    whole = np.empty(array.shape, array.dtype)
    for shard in array.addressable_shards:
        whole[shard.index] = shard.data
    return whole


def _read_tree(folder: pathlib.Path, name: str, tree: PyTree) -> PyTree:
    """Restores a tree from the folder of a checkpoint, by its name or the name it had in version 0.1."""
    if not jax.tree.leaves(tree):
        return tree
    old = _OLD_NAMES.get(name, name)
    if (folder / name).is_dir() or not (folder / old).is_dir():
        return _restore(folder / name, tree)
    if name != "averaged":
        return _restore(folder / old, tree)
    saved_as = {key: _OLD_NAMES.get(key, key) for key in tree}
    read = _restore(folder / old, {saved_as[key]: value for key, value in tree.items()})
    return {key: read[saved_as[key]] for key in tree}


def _restore(path: pathlib.Path, tree: PyTree) -> PyTree:
    return ocp.StandardCheckpointHandler().restore(path, args=ocp.args.StandardRestore(tree))


def _read_record(folder: pathlib.Path) -> tuple[dict[str, Any], float | None]:
    """(record, score) of a checkpoint, also of version 0.1."""
    if (path := folder / _RECORD).exists():
        content = json.loads(path.read_text())
        return content["record"], content["score"]
    record, score = json.loads((folder / _OLD_RECORD).read_text()), None
    if (path := folder / _OLD_SCORE).exists():
        (score,) = json.loads(path.read_text()).values()
    return record, score


def _proves_damage(error: Exception) -> bool:
    """Whether files are missing or have wrong content, in contrast to a disk or a device that failed."""
    for cause in _causes(error):
        if isinstance(cause, MemoryError | jax.errors.JaxRuntimeError):
            return False
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
            return False
        # Tensorstore raises ValueError for everything, and ends the text of an operating system's error with this.
        codes = re.findall(r"os_error_code='(\d+)'", str(cause))
        if any(int(code) != errno.ENOENT for code in codes):
            return False
    return True


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, back to the first."""
    while error is not None:
        yield error
        error = error.__cause__


def _first_line(error: Exception) -> str:
    """The first cause of an error in one line; orbax wraps it in text of its own."""
    texts = [str(cause).strip() or type(cause).__name__ for cause in _causes(error)]
    if any(sign in text for text in texts for sign in ("No space left on device", "RESOURCE_EXHAUSTED")):
        return "No space left on device"
    text = texts[-1].splitlines()[0].partition(" [tensorstore_spec")[0]
    return text if len(text) <= 300 else f"{text[:100]} ... {text[-200:]}"  # the cause is often at the end
