"""The directory of a run: one process trains in it, with the configuration that config.json holds."""

import contextlib
import fcntl
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from xception_jax.errors import UserError
from xception_jax.run import atomic

CONFIG = "config.json"
LOCK = ".lock"
CHECKPOINTS = "checkpoints"
INPUTS = "inputs"  # folder of what belongs to the inputs, such as the vocabulary of texts
# What a run leaves before its first checkpoint.
_OF_A_RUN = {
    CONFIG,
    f"{CONFIG}.tmp",
    LOCK,
    CHECKPOINTS,
    INPUTS,
    "metrics.jsonl",
    "metrics.jsonl.tmp",
    "tensorboard",
}


@contextlib.contextmanager
def hold(directory: pathlib.Path) -> Iterator[dict[str, Any] | None]:
    """Reserves the directory of a run for this process, and makes it if it does not exist.

    With several hosts all of them call it; the first host alone locks the directory and reads its config.json.

    Yields:
      The config.json of the run that the directory belongs to, which must be continued with the same
      configuration. None if the directory is free, because it is new or its run ended before it saved anything;
      and on every host but the first.

    Raises:
      UserError: if the directory cannot be used, holds files that are not of a run, or is in use.
    """
    with contextlib.ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            config = None
            if jax.process_index() == 0:
                free = _is_free(directory)
                _lock(stack.enter_context((directory / LOCK).open("w")), directory)
                # Another run may have saved its first checkpoint before this one had the lock.
                config = None if free and _is_free(directory) else read_config(directory)
        except OSError as error:
            raise _unusable(directory, error) from None
        yield config


def _unusable(directory: pathlib.Path, error: OSError) -> UserError:
    return UserError(
        f"--workdir={directory}: cannot be used ({error.strerror}); name a directory that can be written"
    )


def _is_free(directory: pathlib.Path) -> bool:
    """Whether another run may take the directory: it is empty, or a run left it that had saved nothing.

    Raises:
      UserError: if there are files, but not those of a run.
    """
    names = {path.name for path in directory.iterdir()}
    others = sorted(names - {CONFIG, f"{CONFIG}.tmp", LOCK})
    if others and CONFIG not in names:
        raise UserError(
            f"--workdir={directory}: holds {', '.join(others[:3])} but no {CONFIG}, so it is not a run's;"
            " name a new or empty directory"
        )
    if CONFIG in names and LOCK not in names:
        return False  # a config.json alone may be another program's
    return names <= _OF_A_RUN and not has_checkpoints(directory)


def _lock(file, directory: pathlib.Path) -> None:
    """Locks an open file until it is closed or the process ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"--workdir={directory}: another process is training here; wait for it or name another directory"
        ) from None


def write_config(directory: pathlib.Path, values: dict[str, Any]) -> None:
    """Writes or replaces config.json.

    Raises:
      UserError: if it cannot be written.
    """
    try:
        atomic.write_text(directory / CONFIG, json.dumps(values, indent=2) + "\n")
    except OSError as error:
        raise _unusable(directory, error) from None


def write_inputs(directory: pathlib.Path, files: Mapping[str, str], *, fresh: bool) -> None:
    """Writes the files of the inputs, texts by name; those of a run that is not fresh, only if they are missing.

    Raises:
      OSError: if they cannot be written.
    """
    for name, text in files.items():
        path = directory / INPUTS / name
        path.parent.mkdir(exist_ok=True)
        if fresh or not path.exists():
            atomic.write_text(path, text)


def has_checkpoints(directory: pathlib.Path) -> bool:
    """Whether a run in the directory has saved a checkpoint."""
    folder = directory / CHECKPOINTS  # an unfinished checkpoint has a suffix
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


def read_config(directory: pathlib.Path) -> dict[str, Any]:
    """The configuration of the run in `directory`.

    Raises:
      UserError: if there is none or it cannot be read.
    """
    path = directory / CONFIG
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise UserError(
            f"workdir {directory}: holds no run ({CONFIG}: {error.strerror}); name the directory of one"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}); restore the file or name another directory") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no settings by name; restore the file or name another directory")
    return values
