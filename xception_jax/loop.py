"""The training loop: from a recipe and a working directory to a trained, evaluated, saved network."""

import contextlib
import dataclasses
import datetime
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from xception_jax import experiment as experiment_lib
from xception_jax import metrics, state
from xception_jax import recipe as recipe_lib
from xception_jax import step as step_lib
from xception_jax.errors import TrainingError, UserError
from xception_jax.experiment import Experiment
from xception_jax.run import memory
from xception_jax.run.checkpoint import Checkpoints, DamagedCheckpoints
from xception_jax.run.interrupt import StopRequest
from xception_jax.run.workdir import open_workdir, write_recipe
from xception_jax.run.writers import Console, Writers

PyTree = Any
Evaluation = dict[str, dict[str, float]]  # {"raw": {"loss": ..., "top1": ..., "top5": ...}, "averaged": ...}


@dataclasses.dataclass(frozen=True)
class Result:
    """How a call of `train` ended.

    Attributes:
      step: updates done since the run began.
      evaluation: of this step's weights; None if the run was interrupted.
      num_examples: that it counted.
      fingerprint: see `state.fingerprint`; None if the run was interrupted before there were weights.
      stopped: whether this host was asked to stop, be it too late to interrupt the run.
    """

    step: int
    evaluation: Evaluation | None
    num_examples: int
    fingerprint: str | None
    stopped: bool


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, in JAX_COMPILATION_CACHE_DIR or below ~/.cache."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/xception_jax/compiled"))


def train(config: ConfigDict, workdir: str | os.PathLike) -> Result:
    """Trains as the recipe says, from the latest checkpoint in `workdir` or from the beginning.

    Leaves in `workdir`: config.json, checkpoints/, metrics.jsonl, tensorboard/.

    Args:
      config: a recipe; configs/common.py names its settings.
      workdir: a directory that all hosts see.

    Raises:
      UserError: for a mistake in the recipe or the directory, before anything is compiled.
      TrainingError: if training cannot go on; what was saved stays.
    """
    use_compilation_cache()
    recipe, directory = recipe_lib.parse(config), pathlib.Path(workdir)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        experiment = experiment_lib.build(recipe)
        recipe = experiment.recipe  # with what the data told
        stack.enter_context(open_workdir(directory, recipe))
        checkpoints = Checkpoints(directory / "checkpoints", keep=recipe.checkpoints_to_keep)
        try:
            return _Run(experiment, directory, checkpoints, stop).train()
        except OSError as error:  # a full disk, above all
            raise TrainingError(
                f"{error}; checkpoints kept: {checkpoints.steps()}; mend this and run the same command to go on"
            ) from error
        finally:
            checkpoints.close()


class _Run:
    """One call of `train`."""

    def __init__(self, experiment: Experiment, workdir: pathlib.Path, checkpoints: Checkpoints, stop: StopRequest):
        self.experiment, self.recipe = experiment, experiment.recipe
        self.workdir, self.checkpoints, self.stop = workdir, checkpoints, stop
        self.first_host = jax.process_index() == 0
        self.console = Console(enabled=self.first_host)

    def train(self) -> Result:
        """Restores or initializes, tells the plan, compiles, trains."""
        abstract = self.experiment.abstract_state()
        start = self._restore(abstract) or self._initialize(abstract)
        if start is None:
            return self._interrupted(0, None)
        train_state, start_step, evaluation = start
        self._print_plan(train_state, start_step)
        if start_step >= self.experiment.total_steps and evaluation:
            self.console.line("nothing to do: the run is complete")
            return self._result(train_state, start_step, evaluation)
        if self.first_host:
            write_recipe(self.workdir, self.recipe)  # a continuation may have another length
        steps = self._compile(train_state)
        if steps is None:
            return self._interrupted(start_step, train_state)
        writers = Writers(
            self.workdir,
            start_step=start_step,
            evaluated=evaluation is not None,
            console=self.console,
            enabled=self.first_host,
        )
        try:
            return self._train(train_state, start_step, evaluation, *steps, writers)
        finally:
            writers.close()

    def _train(
        self,
        train_state: state.TrainState,
        start_step: int,
        evaluation: Evaluation | None,
        train_step: Callable,
        eval_step: Callable,
        writers: Writers,
    ) -> Result:
        """The loop proper; every `due` step reads the metrics back before it evaluates or saves."""
        total, evaluate_every = self.experiment.total_steps, self.experiment.evaluate_every
        if evaluation is None and start_step and (start_step >= total or self._due(start_step, evaluate_every)):
            evaluation = self._evaluate(eval_step, train_state, start_step, writers)  # a stop came before it
        key = self._on_all_devices(lambda: jax.random.key(self.recipe.seed))
        progress = _Progress(self.experiment, self.checkpoints, writers)
        self.console.start(step=start_step, total=total)
        with contextlib.closing(self.experiment.train_batches(start_step)) as batches:
            for step in range(start_step + 1, total + 1):
                batch = progress.next_batch(batches)
                with jax.transfer_guard("disallow"):
                    train_state, sums = train_step(train_state, batch, key)
                progress.add(step, sums)
                evaluation = None
                if self._due(step, self.recipe.log_every_steps):
                    progress.report(step)
                evaluate = self._due(step, evaluate_every)
                if evaluate or self._due(step, self.experiment.checkpoint_every):
                    progress.check()
                    with progress.paused(), self._saving(step, train_state) as record:
                        if evaluate:
                            evaluation = self._evaluate(eval_step, train_state, step, writers)
                            record["evaluation"] = evaluation
                if self.stop.agreed(step) and (step < total or evaluation is None):
                    progress.check()
                    return self._interrupted(step, train_state)
        self.checkpoints.wait()
        return self._result(train_state, max(start_step, total), evaluation)

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.experiment.total_steps

    def _on_all_devices(self, make: Callable[[], PyTree]) -> PyTree:
        """What `make` computes, replicated. (One host cannot put an array on the devices of another.)"""
        return jax.jit(make, out_shardings=self.experiment.replicated)()

    def _initialize(self, abstract: state.TrainState) -> tuple[state.TrainState, int, None] | None:
        """(fresh state, 0, None); None if a stop was requested meanwhile."""
        seed, create = self.recipe.seed, self.experiment.create_state
        shardings = jax.tree.map(lambda x: x.sharding, abstract)
        train_state = self.stop.run(jax.jit(lambda: create(jax.random.key(seed)), out_shardings=shardings))
        return None if train_state is None else (train_state, 0, None)

    def _restore(self, abstract: state.TrainState) -> tuple[state.TrainState, int, Evaluation | None] | None:
        """(state, step, its evaluation) of the latest good checkpoint; None if there are no checkpoints."""
        try:
            restored = self.checkpoints.restore_latest(
                _trees(abstract), warn=lambda text: self.console.line(f"warning: {text}")
            )
        except DamagedCheckpoints as error:
            raise UserError(
                f"--workdir={self.workdir}: {error}; restore the files or name another directory"
            ) from None
        if restored is None:
            return None
        step, trees, meta = restored
        check_classes(self.experiment, meta)
        if meta["data"] != self.experiment.dataset.fingerprint():
            self.console.line(
                "warning: images or labels have changed since the checkpoint: order and epochs are the new ones"
            )
        counter = self._on_all_devices(lambda: jnp.int32(step))
        return dataclasses.replace(abstract, step=counter, **trees), step, meta["evaluation"]

    def _compile(self, train_state: state.TrainState) -> tuple[Callable, Callable] | None:
        """The compiled (train_step, eval_step); None if a stop was requested meanwhile."""
        start = time.monotonic()
        lowered = lower_steps(self.experiment, train_state)
        compiled = self.stop.run(lambda: [step.compile() for step in lowered])
        if compiled is None:
            return None
        self.console.line(f"compiled in {time.monotonic() - start:.1f} s")
        return tuple(compiled)

    def _evaluate(
        self, eval_step: Callable, train_state: state.TrainState, step: int, writers: Writers
    ) -> Evaluation | None:
        """Evaluates and reports; None if a stop was requested meanwhile."""
        stop = self.stop.local if jax.process_count() == 1 else None
        evaluation = evaluate(self.experiment, eval_step, state.weight_sets(train_state), stop=stop)
        if evaluation is not None:
            for weights, values in evaluation.items():
                writers.write(step, weights, values)
            writers.console.line(f"step {step}: {describe(evaluation, len(self.experiment.dataset.validation))}")
        return evaluation

    @contextlib.contextmanager
    def _saving(self, step: int, train_state: state.TrainState) -> Iterator[dict[str, Evaluation | None]]:
        """Saves a checkpoint at the end, with the "evaluation" put into the record; even if that failed."""
        record = {"evaluation": None}
        try:
            yield record
        finally:
            self._save(step, train_state, record["evaluation"])

    def _save(self, step: int, train_state: state.TrainState, evaluation: Evaluation | None) -> None:
        meta = {
            "evaluation": evaluation,
            "preprocessing": dataclasses.asdict(self.experiment.preprocessing),
            "class_names": list(self.experiment.dataset.class_names),
            "multilabel": self.experiment.dataset.multilabel,
            "data": self.experiment.dataset.fingerprint(),
        }
        values = {} if evaluation is None else evaluation.get("averaged", evaluation["raw"])
        best = self.experiment.objective.best_measure
        score = {best: values[best]} if best in values else None
        self.checkpoints.save(step, _trees(train_state), meta, score)

    def _interrupted(self, step: int, train_state: state.TrainState | None) -> Result:
        if train_state is None:
            self.console.line("interrupted before there was anything to save; run the same command to begin again")
            return Result(0, None, 0, None, stopped=True)
        self.checkpoints.wait()
        if step not in self.checkpoints.steps():
            self._save(step, train_state, None)
            self.checkpoints.wait()
        self.console.line(f"interrupted at step {step}, which is saved; run the same command to go on")
        return self._result(train_state, step, None)

    def _result(self, train_state: state.TrainState, step: int, evaluation: Evaluation | None) -> Result:
        return Result(
            step,
            evaluation,
            len(self.experiment.dataset.validation),
            state.fingerprint(train_state),
            stopped=self.stop.local(),
        )

    def _print_plan(self, train_state: state.TrainState, start_step: int) -> None:
        if self.first_host:
            self.console.line(parameter_overview.get_parameter_overview(train_state.params, include_stats=False))
        for line in plan(self.experiment):
            self.console.line(line)
        if memory.is_kept():
            self.console.line("memory: what a step frees is kept for the next one (mallopt)")
        if start_step:
            self.console.line(f"continuing from step {start_step}")


def _trees(train_state: state.TrainState) -> dict[str, PyTree]:
    """What a checkpoint holds; the step is its name."""
    names = ("params", "batch_stats", "opt_state", "ema")
    return {name: tree for name in names if (tree := getattr(train_state, name)) is not None}


def lower_steps(experiment: Experiment, train_state: state.TrainState) -> tuple[jax.stages.Lowered, ...]:
    """The programs (train_step, eval_step), ready to be compiled; the first takes the memory of its state.

    Args:
      train_state: a state, or `Experiment.abstract_state`.
    """
    recipe, augmentation = experiment.recipe, experiment.augmentation
    graphdef = state.split(experiment.abstract_model())[0]
    shared = {
        **experiment.normalization,
        "objective": experiment.objective,
        "logits_sharding": experiment.logits_sharding,
    }
    train_step = step_lib.make_train_step(
        graphdef,
        experiment.optimizer,
        **shared,
        augmentation=augmentation,
        accumulation_steps=recipe.accumulation_steps,
        accumulation_block=recipe.model.get("bn_group_size") or 1 + augmentation.mixes,
        polyak_decay=recipe.polyak.decay,
        polyak_warmup=recipe.polyak.warmup,
    )
    eval_step = step_lib.make_eval_step(graphdef, **shared)
    train_batch = experiment.batch_spec(recipe.batch_size, training=True)
    eval_batch = experiment.batch_spec(experiment.eval_batch_size, training=False)
    replicated = experiment.replicated
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=replicated)
    unmoved = jax.tree.map(lambda x: x.sharding, train_state)
    train_step = jax.jit(train_step, donate_argnums=0, out_shardings=(unmoved, replicated))
    eval_step = jax.jit(eval_step, out_shardings=replicated)
    return (
        train_step.lower(train_state, train_batch, key),
        eval_step.lower(state.weight_sets(train_state), eval_batch),
    )


def check_classes(experiment: Experiment, meta: dict) -> None:
    """Raises UserError if the classes of the data are not those a checkpoint was trained on, in that order."""
    now, then = list(experiment.dataset.class_names), meta["class_names"]
    if now != then:
        differ = next(((a, b) for a, b in zip(now, then, strict=False) if a != b), (len(now), len(then)))
        raise UserError(
            f"config.data.root = {experiment.recipe.data.root!r}: its classes are not those of the run, which has"
            f" {differ[1]!r} for {differ[0]!r}; name the data the run was trained on"
        )


def evaluate(
    experiment: Experiment,
    eval_step: Callable,
    weight_sets: dict[str, PyTree],
    *,
    stop: Callable[[], bool] | None = None,
) -> Evaluation | None:
    """Means over all validation images, each counted once, for every set of weights; None if `stop()` is true."""
    pending = []
    with contextlib.closing(experiment.evaluation_batches()) as batches:
        while (batch := _next(batches)) is not None:
            if stop is not None and stop():
                return None
            placed = experiment.to_devices(batch)
            with jax.transfer_guard("disallow"):
                pending.append(eval_step(weight_sets, placed))
            if len(pending) > 1:
                jax.block_until_ready(pending[-2])  # at most two batches are on their way
    totals = {name: metrics.total([sums[name] for sums in jax.device_get(pending)]) for name in weight_sets}
    counts = {sums["count"] for sums in totals.values()}
    if counts != {len(experiment.dataset.validation)}:
        raise TrainingError(f"evaluation counted {counts} of {len(experiment.dataset.validation)} images")
    return {name: metrics.compute(sums) for name, sums in totals.items()}


def _next(batches: Iterator[dict[str, np.ndarray]]) -> dict[str, np.ndarray] | None:
    """The next batch, None after the last; TrainingError for an image that cannot be read."""
    try:
        return next(batches, None)
    except ValueError as error:
        raise TrainingError(str(error)) from error


MEASURES = {"top1": "top-1", "top5": "top-5", "exact": "all labels right", "map100": "MAP@100"}


def describe(evaluation: Evaluation, num_examples: int) -> str:
    """An evaluation in one line.

    >>> describe({"raw": {"loss": 0.5, "top1": 0.9, "top5": 1.0}}, 360)
    'evaluated 360 images | raw weights: loss 0.5000, top-1 90.00 %, top-5 100.00 %'
    """
    parts = [
        f"{name} weights: loss {values['loss']:.4f}, "
        + ", ".join(f"{text} {100 * values[key]:.2f} %" for key, text in MEASURES.items() if key in values)
        for name, values in evaluation.items()
    ]
    return " | ".join([f"evaluated {num_examples} images", *parts])


def plan(experiment: Experiment) -> list[str]:
    """What is about to happen, in lines: devices, data, lengths, learning rate, averaging."""
    recipe, num_examples = experiment.recipe, len(experiment.dataset.train)
    per_epoch = num_examples / recipe.batch_size
    total = experiment.total_steps
    rates = [
        f"{float(experiment.schedule(step)):.4g} at step {step}"
        for step in sorted({0, total // 4, total // 2, 3 * total // 4, total - 1})
    ]
    devices, hosts = jax.devices(), jax.process_count()
    lines = [
        f"devices: {len(devices)} x {devices[0].device_kind} on {hosts} host{'s' * (hosts > 1)};"
        f" mesh {dict(experiment.mesh.shape)}: {recipe.batch_size // len(devices)} images of a batch on each",
        f"data: {recipe.data.name}, {num_examples:,} images to train on,"
        f" {len(experiment.dataset.validation):,} to evaluate, {len(experiment.dataset.class_names):,} classes"
        + ", any number of them an image"
        * experiment.dataset.multilabel,
        *(f"data: {note}" for note in experiment.dataset.notes),
        f"length: {total:,} steps of {recipe.batch_size} images, {per_epoch:,.1f} steps an epoch,"
        f" {total / per_epoch:,.1f} epochs",
        f"learning rate: {recipe.schedule.name}, {recipe.schedule.base_lr:g} for {recipe.schedule.reference_batch}"
        f" images by the rule '{recipe.schedule.lr_rule}': " + ", ".join(rates),
    ]
    if (workers := recipe.optimizer.workers) > 1:
        lines.append(
            f"asynchronous: {workers} workers in turn, each gradient of parameters {workers - 1} updates old;"
            f" {max(0, total - workers + 1):,} updates in all"
        )
    group, share = (
        recipe.model.get("bn_group_size"),
        recipe.batch_size // recipe.accumulation_steps // len(devices),
    )
    if group and len(devices) > 1 and share % group:
        lines.append(
            f"warning: bn_group_size {group} does not divide the {share} images of a step on each device, so batch"
            " normalization moves activations between devices; another batch_size or group is faster"
        )
    if (decay := recipe.polyak.decay) is not None:
        horizon = 1 / (1 - decay)
        warmup = (
            f", warming up over the first {max(0, (10 * decay - 1) / (1 - decay)):,.0f} steps"
            if recipe.polyak.warmup
            else ""
        )
        lines.append(
            f"averaging: decay {decay:g}, horizon 1 / (1 - decay) = {horizon:,.0f} steps"
            f" = {horizon / per_epoch:,.2f} epochs{warmup}"
        )
    return lines


DATA_BOUND = 0.2  # share of the time spent waiting for data from which on the user is told


class _Progress:
    """Metrics and time between two reports."""

    def __init__(self, experiment: Experiment, checkpoints: Checkpoints, writers: Writers):
        self._experiment, self._checkpoints, self._writers = experiment, checkpoints, writers
        self._pending: list[tuple[int, metrics.Sums]] = []  # still on the devices
        self._checked: list[metrics.Sums] = []
        self._waited, self._elapsed, self._resumed = 0.0, 0.0, time.monotonic()
        self._unreadable: dict[int, str] = {}  # images of this host that could not be read: why
        self._read = self._replaced = 0.0  # images of all hosts
        self._started = self._hinted = False

    def next_batch(self, batches: Iterator[dict[str, np.ndarray]]) -> dict[str, jax.Array]:
        """The next batch, on the devices; measures the wait for it, and names images that could not be read."""
        start = time.monotonic()
        batch = _next(batches)
        if self._started:
            self._waited += time.monotonic() - start
        else:  # what it takes to start threads and processes is not the images' time
            self._started, self._resumed = True, time.monotonic()
        for index in batch["unreadable"][batch["unreadable"] >= 0].tolist():
            if index not in self._unreadable:
                self._unreadable[index] = self._experiment.why_unreadable(index)
                warning = f"warning: {self._unreadable[index]}; another image takes its place"
                self._writers.console.line(warning, every_host=True)
        return self._experiment.to_devices(batch)

    def add(self, step: int, sums: metrics.Sums) -> None:
        """Takes the sums of a step; waits until the step before it is done."""
        self._pending.append((step, sums))
        if len(self._pending) > 1:
            jax.block_until_ready(self._pending[-2][1])
        self._writers.console.advance()

    def check(self) -> None:
        """Reads the sums back; TrainingError at the first step where one is not finite."""
        for step, sums in jax.device_get(self._pending):
            for name, value in sums.items():
                if not np.isfinite(value):
                    self._stop_at(step, name, float(value))
            self._checked.append(sums)
            self._read += sums["count"]
            self._replaced += sums["unreadable"]
        self._pending = []
        self._check_unreadable()

    def _check_unreadable(self) -> None:
        """TrainingError if more images were replaced than the recipe allows in as many epochs as were begun."""
        share, num_examples = self._experiment.recipe.data.max_unreadable, len(self._experiment.dataset.train)
        if self._replaced > share * num_examples * math.ceil(self._read / num_examples):
            reasons = " | ".join(list(self._unreadable.values())[:20])
            raise TrainingError(
                f"{self._replaced:.0f} of {self._read:.0f} images could not be read, which is more than"
                f" config.data.max_unreadable = {share:g} allows: {reasons}"
            )

    def _stop_at(self, step: int, name: str, value: float) -> None:
        self._checkpoints.wait()
        saved = self._checkpoints.steps()
        last = (
            f"last good checkpoint: {self._checkpoints.directory / str(saved[-1])}" if saved else "none saved yet"
        )
        raise TrainingError(
            f"{name} is {value} at step {step}; {last}; start a new --workdir with a lower"
            " --config.schedule.base_lr or with --config.optimizer.clip_norm"
        )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what happens inside, such as an evaluation, out of the steps' time."""
        self._elapsed += time.monotonic() - self._resumed
        yield
        self._resumed = time.monotonic()

    def report(self, step: int) -> None:
        """Writes the means since the last report, to the writers and as a line on the console."""
        self.check()
        with self.paused():
            seconds, steps = self._elapsed, len(self._checked)
            means = metrics.compute(metrics.total(self._checked))
            recipe, total = self._experiment.recipe, self._experiment.total_steps
            last_update = max(0, step - recipe.optimizer.workers)  # of asynchronous workers, an earlier step's
            means |= {
                "epoch": step * recipe.batch_size / len(self._experiment.dataset.train),
                "learning_rate": float(self._experiment.schedule(last_update)),
                "images_per_second": steps * recipe.batch_size / seconds,
                "data_wait": self._waited / seconds,
            }
            self._writers.write(step, "train", means)
            left = datetime.timedelta(seconds=round((total - step) * seconds / steps))
            self._writers.console.line(
                f"step {step}/{total} | epoch {means['epoch']:.2f} | loss {means['loss']:.4f}"
                f" | top-1 {100 * means['top1']:.2f} % | lr {means['learning_rate']:.4g}"
                f" | {means['images_per_second']:.1f} images/s | data wait {100 * means['data_wait']:.0f} %"
                f" | {left} left"
            )
            self._hint(means["data_wait"])
            self._checked, self._waited, self._elapsed = [], 0.0, 0.0

    def _hint(self, data_wait: float) -> None:
        """Says once that reading images is what takes the time, and what helps."""
        if self._hinted or data_wait < DATA_BOUND:
            return
        self._hinted = True
        settings, cores = self._experiment.recipe.data, os.cpu_count()
        self._writers.console.line(
            f"hint: the step waits for its images {100 * data_wait:.0f} % of the time. This host has {cores}"
            f" cores: raise --config.data.num_threads (now {settings.num_threads}) up to that, then"
            f" --config.data.num_workers (now {settings.num_workers}); pictures much larger than"
            f" {settings.image_size} px are read faster after python -m xception_jax prepare ... --short-side"
        )
