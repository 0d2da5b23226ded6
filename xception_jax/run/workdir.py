"""The directory of a run: one process trains in it, under one recipe."""

import contextlib
import fcntl
import json
import pathlib
import shlex
from collections.abc import Iterator

import jax

from xception_jax import recipe as recipe_lib
from xception_jax.errors import UserError

CONFIG = "config.json"


@contextlib.contextmanager
def open_workdir(directory: pathlib.Path, recipe: recipe_lib.Recipe) -> Iterator[None]:
    """Holds `directory` for this process: makes a new one and writes its config.json, or checks an old one's.

    Raises:
      UserError: if it cannot be used, holds other files, is in use, or belongs to another recipe.
    """
    with contextlib.ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                _check_files(directory)
                _lock(stack.enter_context((directory / ".lock").open("w")), directory)
                _compare_or_write(directory, recipe)
        except OSError as error:
            raise UserError(
                f"--workdir={directory}: cannot be used ({error.strerror}); name a directory that can be written"
            ) from None
        yield


def _check_files(directory: pathlib.Path) -> None:
    """Refuses a directory with files of somebody else's."""
    ours = {".lock", CONFIG, f"{CONFIG}.tmp"}
    others = sorted(path.name for path in directory.iterdir() if path.name not in ours)
    if others and not (directory / CONFIG).exists():
        raise UserError(
            f"--workdir={directory}: holds {', '.join(others[:3])} but no {CONFIG}, so it is not a run's;"
            " name a new or empty directory"
        )


def _lock(file, directory: pathlib.Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"--workdir={directory}: another process is training here; wait for it or name another directory"
        ) from None


def _compare_or_write(directory: pathlib.Path, recipe: recipe_lib.Recipe) -> None:
    if not (directory / CONFIG).exists():
        write_recipe(directory, recipe)
        return
    for key, new, old in recipe_lib.differences(recipe, read_recipe(directory)):
        raise UserError(
            f"config.{key} = {new!r}, but the run in {directory} has {old!r}:"
            f" pass --config.{key}={shlex.quote(str(0 if old is None else old))} to continue it, or name another"
            " --workdir"
        )


def write_recipe(directory: pathlib.Path, recipe: recipe_lib.Recipe) -> None:
    """Writes or replaces config.json."""
    temporary = directory / f"{CONFIG}.tmp"
    temporary.write_text(recipe_lib.to_json(recipe))
    temporary.replace(directory / CONFIG)


def read_recipe(directory: pathlib.Path) -> recipe_lib.Recipe:
    """The recipe of the run in `directory`.

    Raises:
      UserError: if there is none or it cannot be read.
    """
    path = directory / CONFIG
    try:
        return recipe_lib.parse(json.loads(path.read_text()))
    except OSError as error:
        raise UserError(
            f"workdir {directory}: holds no run ({CONFIG}: {error.strerror}); name the directory of one"
        ) from None
    except (json.JSONDecodeError, UserError) as error:
        raise UserError(
            f"{path}: is not a recipe of this version ({error}); restore the file or use the version that wrote it"
        ) from None
