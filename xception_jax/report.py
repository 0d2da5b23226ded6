"""What a run prints and records: its overview at the start, its progress, its evaluations."""

import contextlib
import datetime
import math
import os
import time
from collections.abc import Iterator

import jax
import numpy as np
import optax

from xception_jax import metrics
from xception_jax.errors import TrainingError
from xception_jax.evaluation import Evaluation
from xception_jax.run.writers import Writers
from xception_jax.task import Task

MEASURES = {"top1": "top-1", "top5": "top-5", "exact": "all labels right", "map100": "MAP@100"}
DATA_BOUND = 0.2  # share of the time spent waiting for data above which a hint is printed


def describe(evaluation: Evaluation, num_examples: int) -> str:
    """An evaluation in one line.

    >>> describe({"raw": {"loss": 0.5, "top1": 0.9, "top5": 1.0}}, 360)
    'evaluated 360 examples | raw weights: loss 0.5000, top-1 90.00 %, top-5 100.00 %'
    """
    parts = [
        f"{name} weights: loss {values['loss']:.4f}, "
        + ", ".join(f"{text} {100 * values[key]:.2f} %" for key, text in MEASURES.items() if key in values)
        for name, values in evaluation.items()
    ]
    return " | ".join([f"evaluated {num_examples} examples", *parts])


def overview(task: Task, schedule: optax.Schedule, total_steps: int) -> list[str]:
    """Lines about what is about to happen: devices, data, length, learning rate, averaging."""
    return [*_about_devices_and_data(task), *_about_training(task, schedule, total_steps), *_about_groups(task)]


def _about_devices_and_data(task: Task) -> list[str]:
    recipe, dataset, mesh = task.recipe, task.dataset, task.layout.mesh
    devices, hosts = jax.devices(), jax.process_count()
    several = ", any number of them per example" if dataset.multilabel else ""
    return [
        f"devices: {len(devices)} x {devices[0].device_kind} on {hosts} host{'s' * (hosts > 1)};"
        f" mesh {dict(mesh.shape)}; {recipe.batch_size // len(devices)} examples of a batch on each",
        f"data: {recipe.data.name}, {len(dataset.train):,} examples to train on, {len(dataset.validation):,} to"
        f" evaluate, {len(dataset.class_names):,} classes{several}",
        *(f"data: {note}" for note in dataset.notes),
    ]


def _about_training(task: Task, schedule: optax.Schedule, total_steps: int) -> Iterator[str]:
    recipe = task.recipe
    per_epoch = len(task.dataset.train) / recipe.batch_size
    yield (
        f"length: {total_steps:,} steps of {recipe.batch_size} examples, {per_epoch:,.1f} steps per epoch,"
        f" {total_steps / per_epoch:,.1f} epochs"
    )
    steps = sorted({0, total_steps // 4, total_steps // 2, 3 * total_steps // 4, total_steps - 1})
    rates = ", ".join(f"{float(schedule(step)):.4g} at step {step}" for step in steps)
    s = recipe.schedule
    yield (
        f"learning rate: {s.name}, {s.base_lr:g} for {s.reference_batch} examples by the rule '{s.lr_rule}':"
        f" {rates}"
    )
    if (replicas := recipe.optimizer.replicas) > 1:
        yield (
            f"asynchronous: {replicas} replicas in turn; each gradient is computed on parameters {replicas - 1}"
            f" updates old; {max(0, total_steps - replicas + 1):,} updates in all"
        )
    if (decay := recipe.averaging.decay) is not None:
        horizon = 1 / (1 - decay)
        warmup = f", warming up over the first {max(0, (10 * decay - 1) * horizon):,.0f} steps"
        yield (
            f"averaging: decay {decay:g}, horizon 1 / (1 - decay) = {horizon:,.0f} steps"
            f" = {horizon / per_epoch:,.2f} epochs{warmup if recipe.averaging.warmup else ''}"
        )


def _about_groups(task: Task) -> Iterator[str]:
    group, devices = task.recipe.model.get("bn_group_size"), task.layout.mesh.size
    share = task.recipe.part_size // devices
    if group and devices > 1 and share % group:
        yield (
            f"warning: bn_group_size {group} does not divide the {share} examples of a step on each device, so"
            " batch normalization moves activations between devices; another batch_size or group is faster"
        )


class Progress:
    """Metrics and time between two reports."""

    def __init__(self, task: Task, schedule: optax.Schedule, total_steps: int, writers: Writers):
        self._task, self._schedule, self._total, self._writers = task, schedule, total_steps, writers
        self._reader = task.reader(task.dataset.train)
        self._pending: list[tuple[int, metrics.Sums]] = []  # still on the devices
        self._checked: list[metrics.Sums] = []
        self._since: float | None = None  # start of the time to report, moved on by what does not count
        self._waited = 0.0
        self._unreadable: dict[int, str] = {}  # examples of this host that could not be read: why
        self._read = self._replaced = 0.0  # examples of all hosts
        self._hinted = False

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data; the first time is not counted, since threads start in it."""
        start = time.monotonic()
        yield
        if self._since is None:
            self._since = time.monotonic()
        else:
            self._waited += time.monotonic() - start

    def name_unreadable(self, unreadable: np.ndarray) -> None:
        """Prints, once for each, why examples of a batch were replaced; `unreadable` is int32[B]."""
        for index in unreadable[unreadable >= 0].tolist():
            if index not in self._unreadable:
                self._unreadable[index] = self._reader.why_unreadable(index)
                warning = f"warning: {self._unreadable[index]}; another example takes its place"
                self._writers.console.line(warning, every_host=True)

    def add(self, step: int, sums: metrics.Sums) -> None:
        """Takes the sums of a step; waits until the step before it is done."""
        self._pending.append((step, sums))
        if len(self._pending) > 1:
            jax.block_until_ready(self._pending[-2][1])
        self._writers.console.advance()

    def check(self) -> None:
        """Reads the sums back from the devices.

        Raises:
          NonFiniteError: at the first step where one is not finite.
          TrainingError: if more examples were replaced than the recipe allows.
        """
        for step, sums in jax.device_get(self._pending):
            for name, value in sums.items():
                if not np.isfinite(value):
                    raise NonFiniteError(f"{name} is {float(value)} at step {step}")
            self._checked.append(sums)
            self._read += float(sums["count"])
            self._replaced += float(sums["unreadable"])
        self._pending = []
        self._check_unreadable()

    def _check_unreadable(self) -> None:
        """In each epoch that was begun, `max_unreadable` of the examples may be replaced."""
        share, num_examples = self._task.recipe.data.max_unreadable, len(self._task.dataset.train)
        if self._replaced > share * num_examples * math.ceil(self._read / num_examples):
            reasons = " | ".join(list(self._unreadable.values())[:20]) or "the other hosts name them"
            raise TrainingError(
                f"{self._replaced:.0f} of {self._read:.0f} examples could not be read, which is more than"
                f" config.data.max_unreadable = {share:g} allows; repair them or raise it, and run the same"
                f" command to go on from the last checkpoint: {reasons}"
            )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what happens inside, such as an evaluation, out of the steps' time."""
        start = time.monotonic()
        yield
        self._since += time.monotonic() - start

    def report(self, step: int) -> None:
        """Writes the means since the last report to the writers and to the console."""
        self.check()
        seconds, steps, recipe = time.monotonic() - self._since, len(self._checked), self._task.recipe
        last_update = max(0, step - recipe.optimizer.replicas)  # asynchronous replicas apply earlier gradients
        means = metrics.compute(metrics.total(self._checked)) | {
            "epoch": step * recipe.batch_size / len(self._task.dataset.train),
            "learning_rate": float(self._schedule(last_update)),
            "examples_per_second": steps * recipe.batch_size / seconds,
            "data_wait": self._waited / seconds,
        }
        rates = {name: means[name] * means["examples_per_second"] for name in self._task.inputs.counted}
        means |= {f"{name}_per_second": rate for name, rate in rates.items()}
        self._writers.write(step, "train", means)
        left = datetime.timedelta(seconds=round((self._total - step) * seconds / steps))
        self._writers.console.line(
            f"step {step}/{self._total} | epoch {means['epoch']:.2f} | loss {means['loss']:.4f}"
            f" | top-1 {100 * means['top1']:.2f} % | lr {means['learning_rate']:.4g}"
            f" | {means['examples_per_second']:.1f} examples/s"
            + "".join(f" | {rate:,.0f} {name}/s" for name, rate in rates.items())
            + f" | data wait {100 * means['data_wait']:.0f} %"
            f" | {left} left"
        )
        self._hint(means["data_wait"])
        self._checked, self._waited, self._since = [], 0.0, time.monotonic()

    def _hint(self, data_wait: float) -> None:
        """Says once that reading is what takes the time, and what helps."""
        if self._hinted or data_wait < DATA_BOUND:
            return
        self._hinted = True
        settings = self._task.recipe.data
        self._writers.console.line(
            f"hint: the step waits for its data {100 * data_wait:.0f} % of the time. This host has"
            f" {os.cpu_count()} cores: raise --config.data.num_threads (now {settings.num_threads}) up to that,"
            f" then --config.data.num_workers (now {settings.num_workers}); docs/data.md says what else helps"
        )


class NonFiniteError(TrainingError):
    """A loss or another sum of a step is NaN or infinite."""
