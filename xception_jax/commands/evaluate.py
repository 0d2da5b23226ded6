"""Evaluates a checkpoint on the validation images of its recipe, with raw and averaged weights."""

import argparse
import dataclasses
import math
import pathlib

import jax

from xception_jax import experiment, loop, state, step, trained
from xception_jax import recipe as recipe_lib
from xception_jax.models import Preprocessing
from xception_jax.run import memory, workdir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="directory of the run")
    parser.add_argument("--checkpoint", default="best", help="best (default), latest, or a step")
    parser.add_argument("--batch_size", type=int, help="images at a time (default: the recipe's eval_batch_size)")
    parser.add_argument("--data_root", help="folder of the images, if it moved since training")
    parser.add_argument(
        "--exclude",
        help="file that lists images to leave out, such as the blacklist of ILSVRC's validation images",
    )


def run(arguments: argparse.Namespace) -> None:
    """Prints the checkpoint's step, and the loss and the measures of each set of weights."""
    memory.keep_freed_memory()
    loop.use_compilation_cache()
    recipe = workdir.read_recipe(arguments.workdir)
    values = recipe.model_dump()
    # The devices here may be fewer than those of the training.
    values["mesh"]["model"] = math.gcd(recipe.mesh.model, jax.local_device_count())
    if arguments.batch_size is not None:
        values["eval_batch_size"] = arguments.batch_size
    if arguments.data_root is not None:
        values["data"]["root"] = arguments.data_root
    if arguments.exclude is not None:
        values["data"]["eval_exclude"] = arguments.exclude
    plan = experiment.build(recipe_lib.parse(values), training=False)
    graphdef, params, batch_stats = state.split(plan.abstract_model())
    sharding = plan.state_sharding({"params": params, "batch_stats": batch_stats})
    sets = ["raw"] if recipe.polyak.decay is None else ["raw", "averaged"]
    number, weights, meta = trained.restore_weights(
        arguments.workdir, arguments.checkpoint, params, batch_stats, sets, sharding
    )
    loop.check_classes(plan, meta)
    plan = dataclasses.replace(plan, preprocessing=Preprocessing(**meta["preprocessing"]))
    eval_step = step.make_eval_step(
        graphdef, **plan.normalization, objective=plan.objective, logits_sharding=plan.logits_sharding
    )
    eval_step = jax.jit(eval_step, out_shardings=plan.replicated)
    evaluation = loop.evaluate(plan, eval_step, weights)
    print(f"step {number} of {arguments.workdir}: {loop.describe(evaluation, len(plan.dataset.validation))}")
