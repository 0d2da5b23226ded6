"""Training the runs that a table or figure needs and that do not exist yet."""

import contextlib
import dataclasses
import pathlib
import shlex
import time
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from xception_jax import loop, plots
from xception_jax import recipe as recipe_lib
from xception_jax.commands import command_line
from xception_jax.errors import TrainingError, UserError
from xception_jax.run import writers
from xception_jax.run.workdir import CONFIG

RECIPES = "configs/reproduction.py"
PROFILE = "training_profile.png"  # the last file that a run writes, here as in train.py
# Settings that a run may be continued with, but that change the numbers of a page.
STRICT = ("data.eval_exclude", "evaluate_every_", "total_")


@dataclasses.dataclass(frozen=True)
class Job:
    """A run of configs/reproduction.py with a seed; `flags` name its recipe, `config`, and change it."""

    run: str
    seed: int
    flags: tuple[str, ...]
    config: ConfigDict
    workdir: pathlib.Path

    @property
    def command(self) -> str:
        """The command that trains this run by itself."""
        return shlex.join(["python", "train.py", *self.flags, f"--workdir={self.workdir}"])

    @property
    def finished(self) -> bool:
        """Whether the run exists and is complete.

        Raises:
          UserError: if the directory holds the run of another recipe, or one that was evaluated differently.
        """
        if not (self.workdir / CONFIG).exists():
            return False
        new, old = recipe_lib.parse(self.config), recipe_lib.read(self.workdir)
        from_data = {name: old.model[name] for name in recipe_lib.FROM_DATA if new.model.get(name, 0) is None}
        new = new.replace(model=new.model | from_data)
        for key, ours, theirs in recipe_lib.differences(new, old, strict=STRICT):
            found = f"the run in {self.workdir} has {key} = {theirs!r}, not {ours!r}"
            raise UserError(f"--workdir: {found}; remove it or name another --workdir")
        return (self.workdir / PROFILE).exists()


def make_job(run: str, *, scale: str, seed: int, workdir: pathlib.Path, settings: Sequence[str]) -> Job:
    """The job of a run; `settings` ("--config.KEY=VALUE") change its recipe, `workdir` is the folder of all runs.

    Raises:
      UserError: for a wrong setting, or if there is no such file because the working directory is not the
        repository's root.
    """
    flags = (f"--config={RECIPES}:{scale}/{run}", f"--config.seed={seed}", *settings)
    config = command_line.read_config(flags, example="python -m xception_jax reproduce fig9")
    return Job(run, seed, flags, config, workdir / scale / run / f"seed{seed}")


def train(job: Job) -> loop.Result:
    """`loop.train` for a run, from its latest checkpoint if it has one; prints to a file beside its directory."""
    log = job.workdir.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            result = loop.train(job.config, job.workdir)
    finally:
        jax.clear_caches()  # the next run has another network
    if result.evaluation is not None:
        plots.training_profile(writers.read_jsonl(job.workdir / "metrics.jsonl"), job.workdir / PROFILE)
    return result


class Interrupted(Exception):
    """Training was asked to stop; a compilation may still be running in another thread."""


class Queue:
    """Trains runs, each once, and prints a line for each; `finished` and `failed` are directories of runs.

    Raises:
      UserError: for a directory with the run of another recipe, before anything is trained.
    """

    def __init__(self, jobs: Sequence[Job]):
        self.finished = {job.workdir for job in jobs if job.finished}
        self.failed: set[pathlib.Path] = set()
        self._waiting, self._started = len(jobs) - len(self.finished), 0
        print(f"{len(jobs)} runs, {len(self.finished)} of them finished already", flush=True)

    def train(self, jobs: Sequence[Job]) -> list[Job]:
        """Trains the runs that were not trained yet, and returns those that are finished; others are reported.

        Raises:
          Interrupted: when asked to stop, by Ctrl-C or SIGTERM.
        """
        for job in jobs:
            if job.workdir not in self.finished | self.failed:
                self._train(job)
        return [job for job in jobs if job.workdir in self.finished]

    def _train(self, job: Job) -> None:
        self._started += 1
        print(f"[{self._started}/{self._waiting}] {job.run}, seed {job.seed}: ", end="", flush=True)
        start = time.monotonic()
        try:
            result = train(job)
        except (UserError, TrainingError, jax.errors.JaxRuntimeError) as error:  # the last: out of memory
            print(f"failed: {str(error).splitlines()[0]}", flush=True)
            self.failed.add(job.workdir)
            return
        print(f"{time.monotonic() - start:.0f} s", flush=True)
        if result.evaluation is not None:
            self.finished.add(job.workdir)
        if result.stopped or result.evaluation is None:
            raise Interrupted("interrupted; what was trained is saved: run the same command to continue")
