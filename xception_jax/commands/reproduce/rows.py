"""The results of runs as rows of a CSV file, from which every page, plot and notebook is made."""

import csv
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

from flax import nnx

from xception_jax import models, state
from xception_jax import recipe as recipe_lib
from xception_jax.commands.reproduce.training import Job
from xception_jax.run import writers

MEASURES = ("loss", "top1", "top5", "map100", "exact")
COLUMNS = ("run", "label", "seed", "parameters", "weights", "step", "samples", *MEASURES)
RUNNING = {"running": None, "running_108800": 108_800}  # running accuracy -> after so many examples
Row = dict[str, Any]


def of_workdir(workdir: pathlib.Path, *, run: str, label: str) -> list[Row]:
    """A row for each evaluation and each set of weights; `run` and `label` are the run's names in the tables."""
    recipe = recipe_lib.read(workdir)
    parameters = _count_parameters(recipe.model_name, tuple(recipe.model_settings.items()))
    run_columns = {"run": run, "label": label, "seed": recipe.seed, "parameters": parameters}
    lines = writers.read_jsonl(workdir / "metrics.jsonl")
    train = [line for line in lines if line["kind"] == "train"]
    return [
        run_columns
        | {"weights": row["kind"], "step": row["step"], "samples": row["step"] * recipe.batch_size}
        | {name: row.get(name) for name in MEASURES}
        | {
            name: running_accuracy(train, row["step"] if samples is None else samples / recipe.batch_size)
            for name, samples in RUNNING.items()
        }
        for row in lines
        if row["kind"] != "train"
    ]


def running_accuracy(lines: Sequence[Row], steps: float) -> float | None:
    """The mean top-1 of the first steps of training, measured while training.

    Args:
      lines: the rows "train" of a metrics.jsonl, each with the mean over the steps since the one before it; the
        first one after an interruption has only the steps since the checkpoint, and stands for all of them.
      steps: number of steps; None is returned if no row ends there.
    """
    right, last = 0.0, 0
    for line in lines:
        if line["step"] > steps or "top1" not in line:
            break
        right += line["top1"] * (line["step"] - last)
        last = line["step"]
    return right / last if last == steps and last else None


@functools.cache  # the seeds of a run have the same number, and targets share runs
def _count_parameters(name: str, settings: tuple[tuple[str, Any], ...]) -> int:
    return state.count(state.split(nnx.eval_shape(lambda: models.create_model(name, **dict(settings))))[1])


def of_jobs(jobs: Sequence[Job], labels: dict[str, str]) -> list[Row]:
    """The rows of the runs that `labels` names, in the order of `labels`."""
    return [
        row
        for run, label in labels.items()
        for job in jobs
        if job.run == run
        for row in of_workdir(job.workdir, run=run, label=label)
    ]


def write(path: pathlib.Path, rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> None:
    """Writes some columns to a CSV file; None becomes an empty cell."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)


def missing(path: pathlib.Path, rows: Sequence[Row]) -> list[str]:
    """The runs that are in a CSV file but not in `rows`; none if there is no file."""
    now = {(row["run"], row["seed"]) for row in rows}
    earlier = dict.fromkeys((row["run"], row["seed"]) for row in (read(path) if path.exists() else []))
    return [f"{run}, seed {seed}" for run, seed in earlier if (run, seed) not in now]


def read(path: pathlib.Path) -> list[Row]:
    """Reads a CSV file that `write` wrote, with numbers as numbers."""
    with path.open(newline="") as file:
        return [{key: _parse(value) for key, value in row.items()} for row in csv.DictReader(file)]


def _parse(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None


def reported(rows: Sequence[Row]) -> str:
    """The weights that the pages report: "averaged" if there are any, else "raw"."""
    return "averaged" if any(row["weights"] == "averaged" for row in rows) else "raw"


def evaluations(rows: Sequence[Row], run: str) -> dict[int, list[Row]]:
    """The evaluations of a run's reported weights by seed, in the order of the steps."""
    found: dict[int, list[Row]] = {}
    weights = reported(rows)
    for row in sorted(rows, key=lambda row: (row["seed"], row["step"])):
        if row["run"] == run and row["weights"] == weights:
            found.setdefault(row["seed"], []).append(row)
    return found


def final(rows: Sequence[Row], run: str, measure: str) -> dict[int, float]:
    """The measure at the end of training by seed."""
    return {seed: points[-1][measure] for seed, points in evaluations(rows, run).items()}


def over_training(rows: Sequence[Row], run: str, measure: str) -> dict[int, float]:
    """The mean of the measure over all evaluations by seed; it is higher the faster a run converges."""
    by_seed = evaluations(rows, run).items()
    return {seed: sum(point[measure] for point in points) / len(points) for seed, points in by_seed}
