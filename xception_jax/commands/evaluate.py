"""Evaluates a checkpoint on the validation examples of its recipe, with raw and averaged weights."""

import argparse
import dataclasses
import math
import pathlib

import jax

from xception_jax import evaluation, loop, recipe, report, state, task, trained
from xception_jax.errors import UserError
from xception_jax.run import memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="directory of the run")
    parser.add_argument("--checkpoint", default="best", help="best (default), latest, or a step")
    parser.add_argument(
        "--batch_size", type=int, help="examples at a time (default: eval_batch_size of the recipe)"
    )
    parser.add_argument("--data_root", help="config.data.root, if the data moved since training")
    parser.add_argument("--exclude", help="file that lists images to leave out, such as ILSVRC's blacklist")


def run(arguments: argparse.Namespace) -> None:
    """Prints the checkpoint's step, and the loss and the metrics of each set of weights."""
    memory.keep_freed_memory()
    loop.use_compilation_cache()
    built = task.build(_recipe(arguments), arguments.workdir)
    _, params, model_state = state.split(built.abstract_model())
    sharding = built.layout.of_state({"params": params, "model_state": model_state})
    sets = ["raw"] if built.recipe.averaging.decay is None else ["raw", "averaged"]
    step, weights, record = trained.restore_weights(
        arguments.workdir, arguments.checkpoint, params, model_state, sets, sharding
    )
    evaluation.check_record(built, record)
    built = dataclasses.replace(built, inputs=trained.inputs_of(built.recipe, record))
    measured = evaluation.evaluate(built, evaluation.make_eval_step(built, weights), weights)
    if jax.process_index() == 0:
        text = report.describe(measured, len(built.dataset.validation))
        print(f"step {step} of {arguments.workdir}: {text}")


def _recipe(arguments: argparse.Namespace) -> recipe.Recipe:
    """The recipe of the run, with what the flags change."""
    values = recipe.read(arguments.workdir).model_dump()
    # The devices here may be fewer than those of the training.
    values["mesh"]["model"] = math.gcd(values["mesh"]["model"], jax.local_device_count())
    if arguments.batch_size is not None:
        values["eval_batch_size"] = arguments.batch_size
    given = {"--data_root": ("root", arguments.data_root), "--exclude": ("eval_exclude", arguments.exclude)}
    for flag, (setting, value) in given.items():
        if value is None:
            continue
        if setting not in values["data"]:
            raise UserError(f"{flag}={value}: the data of this run have no setting {setting}; leave it out")
        values["data"][setting] = value
    return recipe.parse(values)
