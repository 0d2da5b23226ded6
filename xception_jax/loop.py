"""The training loop: from a recipe and a working directory to a trained, evaluated, saved network."""

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
import pathlib
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from clu import parameter_overview
from ml_collections import ConfigDict

from xception_jax import evaluation, optim, recipe, report, state
from xception_jax import step as step_lib
from xception_jax import task as task_lib
from xception_jax.data.pipeline import Batch
from xception_jax.errors import SettingError, TrainingError, UserError
from xception_jax.evaluation import Evaluation
from xception_jax.recipe import Recipe
from xception_jax.run import hosts, memory, workdir
from xception_jax.run.checkpoint import Checkpoints, DamagedCheckpoints
from xception_jax.run.compiler import Programs
from xception_jax.run.interrupt import StopRequest
from xception_jax.run.writers import Console, Writers
from xception_jax.settings import within
from xception_jax.task import Task

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Result:
    """How a call of `train` ended.

    Attributes:
      step: number of updates since the run began.
      evaluation: of this step's weights; None if the run was interrupted.
      num_examples: number of examples that the evaluation counted.
      fingerprint: see `state.fingerprint`; None if the run was interrupted before there were weights.
      stopped: whether this host was asked to stop, even if the run still finished.
    """

    step: int
    evaluation: Evaluation | None
    num_examples: int
    fingerprint: str | None
    stopped: bool


@dataclasses.dataclass(frozen=True)
class Training:
    """What training needs besides the task.

    Attributes:
      optimizer: with its learning rate.
      schedule: learning rate by the number of updates.
      total_steps, evaluate_every, checkpoint_every: in gradient steps.
    """

    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    total_steps: int
    evaluate_every: int
    checkpoint_every: int

    def due(self, step: int, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens at `step`."""
        return step % every == 0 or step >= self.total_steps


def make_training(task: Task) -> Training:
    """The optimizer, schedule and lengths of a recipe, for the size of its dataset.

    Raises:
      SettingError: for a batch that does not divide over the devices, or weight decay that matches no parameter.
    """
    recipe, num_examples = task.recipe, len(task.dataset.train)
    _check_batch(task)
    total = max(1, round(recipe.steps("total", num_examples)))

    def interval(name: str) -> int:
        steps = recipe.steps(name, num_examples)
        return total if steps is None else max(1, round(steps))

    sizes = {"batch_size": recipe.batch_size, "num_examples": num_examples}
    schedule = recipe.schedule.build(**sizes, total_steps=recipe.steps("total", num_examples))
    with within("config", "optimizer"):
        optim.path_mask(state.split(task.abstract_model())[1], recipe.optimizer.weight_decay_paths)
    optimizer = optim.make_optimizer(learning_rate=schedule, **recipe.optimizer.model_dump())
    return Training(optimizer, schedule, total, interval("evaluate_every"), interval("checkpoint_every"))


def _check_batch(task: Task) -> None:
    recipe, devices, block = task.recipe, task.layout.mesh.size, task.inputs.block
    least = math.lcm(devices, block) * recipe.accumulation_steps
    if recipe.part_size % devices:
        raise SettingError(
            "config.batch_size",
            recipe.batch_size,
            f"batch_size / accumulation_steps = {recipe.part_size} examples must divide over {devices} devices;"
            f" choose a multiple of {least}",
        )
    if recipe.part_size % block:
        remedy = f"batch_size / accumulation_steps = {recipe.part_size} must be even, since examples are mixed;"
        raise SettingError("config.batch_size", recipe.batch_size, f"{remedy} choose a multiple of {least}")
    group = recipe.model.get("bn_group_size") or block
    if recipe.accumulation_steps > 1 and group % block:
        raise SettingError(
            "config.model.bn_group_size",
            group,
            f"accumulation_steps = {recipe.accumulation_steps} would separate examples that are mixed; choose an"
            " even number",
        )


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, in JAX_COMPILATION_CACHE_DIR or below ~/.cache."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/xception_jax/compiled"))


def train(config: ConfigDict, directory: str | os.PathLike) -> Result:
    """Trains as the recipe says, from the latest checkpoint in the working directory or from the beginning.

    Leaves in the directory: config.json, checkpoints/, metrics.jsonl, tensorboard/ and, of texts, inputs/ with the
    vocabulary.

    Args:
      config: a recipe; docs/settings.md lists its settings.
      directory: the working directory, which all hosts see.

    Raises:
      UserError: for a mistake in the recipe or the directory, before anything is compiled.
      TrainingError: if training cannot go on; what was saved stays.
      KeyboardInterrupt: for a second Ctrl-C; what was saved stays.
      An error of one host is raised on all hosts.
    """
    use_compilation_cache()
    directory = pathlib.Path(directory)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        task = task_lib.build(hosts.agree(lambda: recipe.parse(config)), directory)
        training = hosts.agree(lambda: make_training(task))
        hosts.agree(lambda: stack.enter_context(open_workdir(directory, task.recipe)))
        checkpoints = Checkpoints(directory / workdir.CHECKPOINTS, keep=task.recipe.checkpoints_to_keep)
        try:
            return _Run(task, training, directory, checkpoints, stop).train()
        except OSError as error:
            raise _disk_error(error, checkpoints) from error
        finally:
            checkpoints.close()


def _disk_error(error: OSError, checkpoints: Checkpoints) -> TrainingError:
    """The failure of a disk, for example a full one, with what is kept and what to do."""
    return TrainingError(
        f"{error}; {checkpoints.directory} keeps what was saved; free or repair it and run the same command"
        " to go on"
    )


def _check_same_recipe(new: Recipe, old: Recipe, directory: pathlib.Path) -> None:
    """Raises UserError for settings that would change the weights of the run, and says how to continue it."""
    if not (differing := recipe.differences(new, old)):
        return
    setting, new_value, old_value = differing[0]
    flags = " ".join(f"--config.{name}={shlex.quote(str(value))}" for name, _, value in differing)
    remedy = f"pass {flags}"
    if new.model_name != old.model_name:
        setting, new_value, old_value = "model.name", new.model_name, old.model_name
        remedy = "pass --config with a recipe of that model"
    raise UserError(
        f"config.{setting} = {new_value!r}, but the run in {directory} has {old_value!r}: {remedy} to continue it,"
        " or name another --workdir"
    )


@contextlib.contextmanager
def open_workdir(directory: pathlib.Path, checked: Recipe) -> Iterator[None]:
    """Reserves the working directory for this process, and writes or compares its config.json.

    Raises:
      UserError: if it cannot be used, holds other files, is in use, or belongs to another recipe.
    """
    with workdir.hold(directory) as config:
        if jax.process_index() == 0:
            old = None if config is None else recipe.read(directory)
            if old is None:
                workdir.write_config(directory, checked.model_dump())
            else:
                _check_same_recipe(checked, old, directory)
        yield


class _Run:
    """One call of `train`; `eval_step` and `writers` are there when `_train` begins."""

    eval_step: Programs
    writers: Writers

    def __init__(
        self, task: Task, training: Training, directory: pathlib.Path, checkpoints: Checkpoints, stop: StopRequest
    ):
        self.task, self.training, self.recipe = task, training, task.recipe
        self.directory, self.checkpoints, self.stop = directory, checkpoints, stop
        self.first_host = jax.process_index() == 0
        self.console = Console(enabled=self.first_host)

    def train(self) -> Result:
        """Restores or initializes, prints the overview, compiles, trains."""
        abstract = abstract_state(self.task, self.training.optimizer)
        start = self._restore(abstract) or self._initialize(abstract)
        if start is None:
            return self._interrupted(0, None)
        train_state, start_step, measured = start
        hosts.agree(lambda: self._write_settings(fresh=start_step == 0))
        self._print_overview(train_state, start_step)
        if start_step >= self.training.total_steps and measured:
            self.console.line("nothing to do: the run is complete")
            return self._result(train_state, start_step, measured)
        compiled = self._compile(train_state)
        if compiled is None:
            return self._interrupted(start_step, train_state)
        train_step, self.eval_step = compiled
        options = {"start_step": start_step, "evaluated": measured is not None, "enabled": self.first_host}
        self.writers = hosts.agree(lambda: Writers(self.directory, console=self.console, **options))
        try:
            return self._train(train_step, train_state, start_step, measured)
        except report.NonFiniteError as error:
            raise self._diverged(error) from None
        finally:
            self.writers.close()

    def _train(
        self, train_step: Programs, train_state: state.TrainState, start_step: int, measured: Evaluation | None
    ) -> Result:
        """The loop proper; the metrics are read back and checked before anything is evaluated or saved."""
        training, total = self.training, self.training.total_steps
        if start_step and measured is None and training.due(start_step, training.evaluate_every):
            measured = self._evaluate(train_state, start_step)
            if measured is None:
                return self._interrupted(start_step, train_state)
            self.checkpoints.update_record(start_step, *self._record(measured))
        key = self._on_all_devices(lambda: jax.random.key(self.recipe.seed))
        progress = report.Progress(self.task, training.schedule, total, self.writers)
        self.console.start(step=start_step, total=total)
        batch = None
        with contextlib.closing(self.task.train_batches(start_step)) as batches:
            for step in range(start_step + 1, total + 1):
                with progress.waiting():
                    batch = self._next_batch(batches, batch)
                with self._on_this_host():
                    progress.name_unreadable(batch["unreadable"])
                placed = self.task.layout.place(batch)
                with progress.paused():  # the first batch of a length is compiled for
                    program = train_step(placed)
                with jax.transfer_guard("disallow"):
                    train_state, sums = program(train_state, placed, key)
                progress.add(step, sums)
                measured = None
                if training.due(step, self.recipe.log_every_steps):
                    with self._on_this_host():
                        progress.report(step)
                evaluate = training.due(step, training.evaluate_every)
                if evaluate or training.due(step, training.checkpoint_every):
                    progress.check()
                    with progress.paused():
                        measured = self._evaluate_and_save(train_state, step, evaluate=evaluate)
                if self.stop.agreed(step) and (step < total or measured is None):
                    progress.check()
                    return self._interrupted(step, train_state)
        self.stop.raise_failures()
        self.checkpoints.wait()
        return self._result(train_state, max(start_step, total), measured)

    def _next_batch(self, batches: Iterator[Batch], last: Batch | None) -> Batch:
        """The next batch of this host; a host of several that cannot read one repeats its last until all stop.

        The hosts agree on their first batches only, since agreeing takes longer than a short step.
        """
        if last is None:
            return hosts.agree(lambda: evaluation.next_batch(batches))
        if not self.stop.failed:
            try:
                return evaluation.next_batch(batches)
            except Exception as error:
                if jax.process_count() == 1:
                    raise
                self.stop.fail(error)
        return last

    @contextlib.contextmanager
    def _on_this_host(self) -> Iterator[None]:
        """An OSError raised inside ends the run on all hosts, after this step or a later one."""
        try:
            yield
        except OSError as error:
            self.stop.fail(_disk_error(error, self.checkpoints))

    def _diverged(self, error: report.NonFiniteError) -> TrainingError:
        """The error with the last good checkpoint and a remedy."""
        self.checkpoints.wait()
        saved = self.checkpoints.steps()
        folder = self.checkpoints.directory
        last = f"last good checkpoint: {folder / str(saved[-1])}" if saved else "none saved yet"
        return TrainingError(
            f"{error}; {last}; start a new --workdir with a lower --config.schedule.base_lr or with"
            " --config.optimizer.clip_norm"
        )

    def _on_all_devices(self, make: Callable[[], PyTree]) -> PyTree:
        """The result of `make`, replicated. (One host cannot put an array on the devices of another.)"""
        return jax.jit(make, out_shardings=self.task.layout.replicated)()

    def _initialize(self, abstract: state.TrainState) -> tuple[state.TrainState, int, None] | None:
        """(fresh state, 0, None); None if a stop was requested meanwhile."""
        shardings = jax.tree.map(lambda x: x.sharding, abstract)
        create = functools.partial(create_state, self.task, self.training.optimizer)
        make = jax.jit(lambda values: create(jax.random.key(self.recipe.seed), values), out_shardings=shardings)
        values = hosts.agree(self.task.inputs.initial_values)
        content = hashlib.sha256(b"".join(values[name].tobytes() for name in sorted(values))).hexdigest()
        if len(set(hosts.gather(content))) > 1:
            raise UserError(
                "config.data: the hosts read different initial values; give all of them the same files"
            )
        train_state = self.stop.run(lambda: make(values))
        return None if train_state is None else (train_state, 0, None)

    def _write_settings(self, *, fresh: bool) -> None:
        """Writes config.json, since a continuation may have another length, and the files of the inputs."""
        if self.first_host:
            workdir.write_config(self.directory, self.recipe.model_dump())
            workdir.write_inputs(self.directory, self.task.inputs.files(), fresh=fresh)

    def _restore(self, abstract: state.TrainState) -> tuple[state.TrainState, int, Evaluation | None] | None:
        """(state, step, its evaluation) of the latest good checkpoint; None if there are no checkpoints."""
        try:
            restored = self.checkpoints.restore_latest(
                _trees(abstract), warn=lambda text: self.console.line(f"warning: {text}")
            )
        except DamagedCheckpoints as error:
            raise UserError(
                f"--workdir={self.directory}: {error}; restore the files or name another directory"
            ) from None
        if restored is None:
            return None
        step, trees, record = restored
        evaluation.check_record(self.task, record)
        if record["data"] != self.task.dataset.fingerprint():
            self.console.line(
                "warning: examples or labels have changed since the checkpoint: order and epochs are the new ones"
            )
        counter = self._on_all_devices(lambda: jnp.int32(step))
        return dataclasses.replace(abstract, step=counter, **trees), step, record["evaluation"]

    def _compile(self, train_state: state.TrainState) -> tuple[Programs, Programs] | None:
        """(train_step, eval_step), compiled for the longest batch; None if a stop was requested meanwhile."""
        start = time.monotonic()
        train_step = make_train_step(self.task, self.training.optimizer, train_state)
        eval_step = evaluation.make_eval_step(self.task, state.weight_sets(train_state))

        def compile_both():
            return train_step(self.task.batch_spec(train=True)), eval_step(self.task.batch_spec(train=False))

        if self.stop.run(compile_both) is None:
            return None
        self.console.line(f"compiled in {time.monotonic() - start:.1f} s")
        return train_step, eval_step

    def _evaluate(self, train_state: state.TrainState, step: int) -> Evaluation | None:
        """Evaluates and reports; None if a stop was requested meanwhile."""
        stop = self.stop.local if jax.process_count() == 1 else None
        measured = evaluation.evaluate(self.task, self.eval_step, state.weight_sets(train_state), stop=stop)
        if measured is not None:
            with self._on_this_host():
                for weights, values in measured.items():
                    self.writers.write(step, weights, values)
                text = report.describe(measured, len(self.task.dataset.validation))
                self.console.line(f"step {step}: {text}")
        return measured

    def _evaluate_and_save(self, train_state: state.TrainState, step: int, *, evaluate: bool) -> Evaluation | None:
        """Evaluates if asked to, and saves a checkpoint, even if the evaluation failed."""
        self.stop.raise_failures()
        try:
            measured = self._evaluate(train_state, step) if evaluate else None
        except Exception:
            self._save(step, train_state, None)
            raise
        self._save(step, train_state, measured)
        return measured

    def _save(self, step: int, train_state: state.TrainState, measured: Evaluation | None) -> None:
        self.checkpoints.save(step, _trees(train_state), *self._record(measured))

    def _record(self, measured: Evaluation | None) -> tuple[dict[str, Any], float | None]:
        """The record of a checkpoint, from which `trained.load` builds the same inputs again, and its score.

        The score is of the averaged weights if there are any.
        """
        dataset = self.task.dataset
        record = {
            "evaluation": measured,
            "inputs": self.task.inputs.record(),
            "class_names": list(dataset.class_names),
            "multilabel": dataset.multilabel,
            "data": dataset.fingerprint(),
        }
        values = {} if measured is None else measured.get("averaged", measured["raw"])
        return record, values.get(self.task.objective.best_measure)

    def _interrupted(self, step: int, train_state: state.TrainState | None) -> Result:
        if train_state is None:
            self.console.line("interrupted before there was anything to save; run the same command to begin again")
            return Result(0, None, 0, None, stopped=True)
        self.stop.raise_failures()
        self.checkpoints.wait()
        if step not in hosts.from_first_host(self.checkpoints.steps):
            self._save(step, train_state, None)
            self.checkpoints.wait()
        self.console.line(f"interrupted at step {step}, which is saved; run the same command to go on")
        return self._result(train_state, step, None)

    def _result(self, train_state: state.TrainState, step: int, measured: Evaluation | None) -> Result:
        count, fingerprint = len(self.task.dataset.validation), state.fingerprint(train_state)
        return Result(step, measured, count, fingerprint, stopped=self.stop.local())

    def _print_overview(self, train_state: state.TrainState, start_step: int) -> None:
        if self.first_host:
            self.console.line(parameter_overview.get_parameter_overview(train_state.params, include_stats=False))
        for line in report.overview(self.task, self.training.schedule, self.training.total_steps):
            self.console.line(line)
        if memory.is_kept():
            self.console.line("memory: host memory freed by a step is reused, not returned to the OS (mallopt)")
        if start_step:
            self.console.line(f"continuing from step {start_step}")


def create_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    values: Mapping[str, jax.Array] | None = None,
) -> state.TrainState:
    """The state before the first step; the arguments are those of `Task.create_model`."""
    averaging = task.recipe.averaging.decay is not None
    return state.create(task.create_model(key, values), optimizer, averaging=averaging)


def abstract_state(task: Task, optimizer: optax.GradientTransformation) -> state.TrainState:
    """The state without arrays: shapes and shardings."""
    make = functools.partial(create_state, task, optimizer)
    return task.layout.abstract(jax.eval_shape(make, jax.random.key(0)))


def _trees(train_state: state.TrainState) -> dict[str, PyTree]:
    """The trees that a checkpoint holds; the step is its name."""
    names = ("params", "model_state", "opt_state", "averaged")
    return {name: tree for name in names if (tree := getattr(train_state, name)) is not None}


def make_train_step(
    task: Task, optimizer: optax.GradientTransformation, train_state: state.TrainState
) -> Programs:
    """The training step, which takes over the memory of its state; nothing is compiled yet.

    Args:
      train_state: a state, or `abstract_state`.
    """
    recipe, layout = task.recipe, task.layout
    train_step = step_lib.make_train_step(
        state.split(task.abstract_model())[0],
        optimizer,
        prepare=task.inputs.prepare,
        objective=task.objective,
        counted=task.inputs.counted,
        accumulation_steps=recipe.accumulation_steps,
        accumulation_block=recipe.model.get("bn_group_size") or task.inputs.block,
        averaging=recipe.averaging,
        logits_sharding=layout.logits,
    )
    unmoved = jax.tree.map(lambda x: x.sharding, train_state)
    train_step = jax.jit(train_step, donate_argnums=0, out_shardings=(unmoved, layout.replicated))
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=layout.replicated)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), train_state)
    return Programs(lambda batch: train_step.lower(abstract, batch, key))
