"""Training what a table or figure needs, unless it is there already."""

import contextlib
import dataclasses
import pathlib
import shlex
import time
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from xception_jax import command_line, loop, plots, writers
from xception_jax import config as config_lib
from xception_jax.errors import TrainingError, UserError
from xception_jax.workdir import CONFIG, read_recipe

RECIPES = "configs/reproduction.py"
PROFILE = "training_profile.png"  # the last thing a run leaves, here as in train.py


@dataclasses.dataclass(frozen=True)
class Job:
    """A run with a seed.

    Attributes:
      run: of configs/reproduction.py.
      flags: "--config=..." and "--config.KEY=VALUE", which make the recipe.
      config: the recipe.
      workdir: of the run.
    """

    run: str
    seed: int
    flags: tuple[str, ...]
    config: ConfigDict
    workdir: pathlib.Path

    @property
    def command(self) -> str:
        """To launch it by itself."""
        return shlex.join(["python", "train.py", *self.flags, f"--workdir={self.workdir}"])

    @property
    def finished(self) -> bool:
        """Whether the run is there, complete, with this recipe.

        Raises:
          UserError: if another recipe's is.
        """
        if not (self.workdir / CONFIG).exists():
            return False
        new, old = config_lib.parse(self.config), read_recipe(self.workdir)
        from_data = {name: old.model[name] for name in config_lib.FROM_DATA if new.model[name] is None}
        new = new.model_copy(update={"model": new.model | from_data})
        for key, ours, theirs in config_lib.differences(new, old):
            raise UserError(
                f"--workdir: the run in {self.workdir} has {key} = {theirs!r}, not {ours!r}; remove it or name"
                " another --workdir"
            )
        lengths = [(r.total_epochs, r.total_steps, r.total_samples) for r in (new, old)]
        return lengths[0] == lengths[1] and (self.workdir / PROFILE).exists()


def make_job(run: str, *, scale: str, seed: int, workdir: pathlib.Path, settings: Sequence[str]) -> Job:
    """The job of a run, its recipe read from configs/reproduction.py.

    Args:
      workdir: of all runs.
      settings: "--config.KEY=VALUE", which change the recipe.

    Raises:
      UserError: for a wrong setting, or if there is no such file: outside of the repository's root.
    """
    flags = (f"--config={RECIPES}:{scale}/{run}", f"--config.seed={seed}", *settings)
    example = "python -m xception_jax reproduce fig9"
    config = command_line.read_config(flags, example=example)
    return Job(run, seed, flags, config, workdir / scale / run / f"seed{seed}")


def train(job: Job) -> bool:
    """Trains to the end, or goes on where it was stopped; its console goes to a file beside the directory.

    Returns:
      False if it was interrupted.

    Raises:
      TrainingError: if it cannot go on.
    """
    log = job.workdir.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        result = loop.train(job.config, job.workdir)
    if result.evaluation is None:
        return False
    plots.training_profile(writers.read_jsonl(job.workdir / "metrics.jsonl"), job.workdir / PROFILE)
    jax.clear_caches()  # the next network is another
    return True


def train_all(jobs: Sequence[Job]) -> list[Job]:
    """Trains those that are not finished, and tells of each in a line.

    Returns:
      the finished ones; a run that fails is told of and left out.

    Raises:
      UserError: for a directory with another recipe's run, before anything is trained.
      TrainingError: when interrupted.
    """
    finished = {job.workdir for job in jobs if job.finished}
    waiting = [job for job in jobs if job.workdir not in finished]
    print(f"{len(jobs)} runs, {len(finished)} of them are there already", flush=True)
    for number, job in enumerate(waiting, 1):
        print(f"[{number}/{len(waiting)}] {job.run}, seed {job.seed}: ", end="", flush=True)
        start = time.monotonic()
        try:
            complete = train(job)
        except TrainingError as error:
            print(f"failed: {error}", flush=True)
            continue
        if not complete:
            raise TrainingError("interrupted; what was trained is saved: run the same command to go on")
        print(f"{time.monotonic() - start:.0f} s", flush=True)
        finished.add(job.workdir)
    return [job for job in jobs if job.workdir in finished]
