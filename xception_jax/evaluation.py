"""Evaluation: means of the metrics over all validation examples, each counted once."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from xception_jax import metrics, state
from xception_jax import step as step_lib
from xception_jax.errors import TrainingError, UserError
from xception_jax.run import hosts
from xception_jax.run.compiler import Programs
from xception_jax.settings import within
from xception_jax.task import Task

PyTree = Any
Evaluation = dict[str, dict[str, float]]  # {"raw": {"loss": ..., "top1": ..., "top5": ...}, "averaged": ...}


def make_eval_step(task: Task, weight_sets: dict[str, PyTree]) -> Programs:
    """The evaluation step; nothing is compiled yet.

    Args:
      weight_sets: as in `state.weight_sets`; arrays, or shapes with shardings.
    """
    eval_step = step_lib.make_eval_step(
        state.split(task.abstract_model())[0],
        prepare=task.inputs.prepare,
        objective=task.objective,
        logits_sharding=task.layout.logits,
    )
    eval_step = jax.jit(eval_step, out_shardings=task.layout.replicated)
    return Programs(lambda batch: eval_step.lower(weight_sets, batch))


def evaluate(
    task: Task,
    eval_step: Programs,
    weight_sets: dict[str, PyTree],
    *,
    stop: Callable[[], bool] | None = None,
) -> Evaluation | None:
    """Evaluates every set of weights on all validation examples, on all hosts.

    Args:
      eval_step: from `make_eval_step`.
      stop: asked before each batch whether to give up.

    Returns:
      Means of the metrics by set of weights; None if `stop()` was true.

    Raises:
      TrainingError: for an example that cannot be read.
    """
    pending = []
    with contextlib.closing(task.evaluation_batches()) as batches:
        while (batch := hosts.agree(lambda: next_batch(batches))) is not None:
            if stop is not None and stop():
                return None
            placed = task.layout.place(batch)
            program = eval_step(placed)
            with jax.transfer_guard("disallow"):
                pending.append(program(weight_sets, placed))
            if len(pending) > 1:
                jax.block_until_ready(pending[-2])  # at most two batches are in flight
    totals = {name: metrics.total([sums[name] for sums in jax.device_get(pending)]) for name in weight_sets}
    counts = {sums["count"] for sums in totals.values()}
    if counts != {len(task.dataset.validation)}:
        raise TrainingError(f"evaluation counted {counts} of {len(task.dataset.validation)} examples")
    return {name: metrics.compute(sums) for name, sums in totals.items()}


def next_batch(batches: Iterator[dict[str, np.ndarray]]) -> dict[str, np.ndarray] | None:
    """The next batch, None after the last; TrainingError for an example that cannot be read."""
    try:
        return next(batches, None)
    except (ValueError, RuntimeError) as error:  # RuntimeError: a worker process died, for example without memory
        raise TrainingError(str(error)) from error


def check_record(task: Task, record: dict) -> None:
    """Raises UserError if a checkpoint has other classes than the data, in the same order, or other inputs."""
    now, then = list(task.dataset.class_names), record["class_names"]
    if now != then:
        differ = next(((a, b) for a, b in zip(now, then, strict=False) if a != b), (len(now), len(then)))
        raise UserError(
            f"config.data: the classes are not those of the run, which has {differ[1]!r} for {differ[0]!r}; name"
            " the data that the run was trained on"
        )
    with within("config"):
        task.inputs.check_record(record.get("inputs", {}))
