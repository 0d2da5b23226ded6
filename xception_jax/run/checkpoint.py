"""Checkpoints of a run, with orbax: asynchronous, atomic, the latest few and the best."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

PyTree = Any


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of orbax: of a handler replaced, and of every read-only directory."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(min(verbosity, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


# Of equal copies of an array on several devices, one is written. Orbax by default writes a part of each copy, and
# compiles a program for each of these parts: Xception on 8 devices then waits 3 s for a save, and 15 s for the
# first one, instead of 0.4 s (on CPU).
with _quiet():
    ocp.type_handlers.register_type_handler(
        jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False), override=True
    )


class DamagedCheckpoints(Exception):
    """No checkpoint of a run can be read; the message names the folder and the first reason."""


class Checkpoints:
    """The checkpoints below one directory, a folder named by its step each.

    A checkpoint is a set of named trees of arrays, kept apart so that a reader can restore some of them, and
    a JSON record "meta".
    """

    def __init__(self, directory: pathlib.Path, *, keep: int = 1, read_only: bool = False):
        """Opens `directory`, which is created unless `read_only`.

        Args:
          keep: how many of the latest to keep; the best is kept besides.
        """
        self.directory = directory
        with _quiet():
            self._manager = ocp.CheckpointManager(directory.absolute(), options=_options(keep, read_only))

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, in ascending order."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step with the best metric; the latest if none was evaluated; None without checkpoints."""
        return self._manager.best_step() or self._manager.latest_step()

    def save(self, step: int, trees: dict[str, PyTree], meta: dict, metrics: dict[str, float] | None) -> None:
        """Starts to save in the background; the arrays may be donated as soon as this returns.

        Args:
          metrics: the one measure of this step that decides which checkpoint is the best, by name; higher is
            better. None = not evaluated.

        Raises:
          OSError: if this or the save before it could not be written.
        """
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items() if jax.tree.leaves(tree)}
        args = ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items)
        try:
            saved = self._manager.save(step, args=args, metrics=metrics)
        except Exception as error:
            raise OSError(f"cannot write to {self.directory}: {first_line(error)}") from error
        if not saved:
            raise OSError(f"checkpoint {self.directory / str(step)} exists already and was not written again")

    def wait(self) -> None:
        """Returns when the last save is on disk; OSError if it failed."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise OSError(f"cannot write to {self.directory}: {first_line(error)}") from error

    def close(self) -> None:
        """Waits for the last save and frees the threads."""
        self._manager.close()

    def restore(self, step: int, trees: dict[str, PyTree]) -> tuple[dict[str, PyTree], dict]:
        """Reads the named trees, and the record, of the checkpoint of `step`.

        Args:
          trees: of jax.ShapeDtypeStruct with shardings: what to read and where to put it. One without leaves, such
            as the batch statistics of a network that has none, is not in the files.
        """
        items = {name: ocp.args.StandardRestore(tree) for name, tree in trees.items() if jax.tree.leaves(tree)}
        args = ocp.args.Composite(meta=ocp.args.JsonRestore(), **items)
        restored = self._manager.restore(step, args=args)
        return {name: restored[name] if name in items else tree for name, tree in trees.items()}, restored["meta"]

    def restore_latest(
        self, trees: dict[str, PyTree], *, warn: Callable[[str], None]
    ) -> tuple[int, dict[str, PyTree], dict] | None:
        """(step, trees, record) of the latest checkpoint that can be read, None if there are none at all.

        A later one that is damaged is named to `warn` and its folder set aside as damaged-STEP.

        Raises:
          DamagedCheckpoints: if there are checkpoints and none can be read.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                restored, meta = self.restore(step, trees)
            except Exception as error:  # orbax has no common error for the many ways files can be broken
                damaged[step] = first_line(error)
                continue
            for bad, reason in damaged.items():
                kept = self._set_aside(bad)
                warn(f"checkpoint {self.directory / str(bad)} is damaged ({reason}), kept as {kept}; using {step}")
            return step, restored, meta
        if damaged:
            step, reason = next(iter(damaged.items()))
            raise DamagedCheckpoints(f"none of {len(damaged)} in {self.directory} can be read; {step}: {reason}")
        return None

    def _set_aside(self, step: int) -> str:
        """Moves a damaged folder out of orbax's way, which would neither read nor replace it; the new name."""
        target = self.directory.parent / f"damaged-{step}"
        number = 1
        while target.exists():
            number += 1
            target = self.directory.parent / f"damaged-{step}-{number}"
        if jax.process_index() == 0:
            (self.directory / str(step)).rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {step}")
        self._manager.reload()
        return target.name


def _options(keep: int, read_only: bool) -> ocp.CheckpointManagerOptions:
    def metric(metrics):
        (value,) = metrics.values()
        return value

    # The policy keeps the right ones; `best_fn` is what makes `best_step` find the best.
    policy = checkpoint_managers.AnyPreservationPolicy(
        [
            checkpoint_managers.LatestN(keep),
            checkpoint_managers.BestN(get_metric_fn=metric, n=1, keep_checkpoints_without_metrics=False),
        ]
    )
    return ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=metric,
        create=not read_only,
        read_only=read_only,
        cleanup_tmp_directories=not read_only,
        enable_async_checkpointing=not read_only,
    )


def first_line(error: Exception) -> str:
    """The cause in one line; orbax wraps the operating system's words in its own."""
    text = str(error).strip() or type(error).__name__
    for cause in ("No space left on device", "RESOURCE_EXHAUSTED"):
        if cause in text:
            return "No space left on device"
    return text.splitlines()[0][:300]
