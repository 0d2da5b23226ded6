"""Opening what a run left: the model, its inputs, its recipe."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Sharding, SingleDeviceSharding

from xception_jax import metrics, models, recipe, state
from xception_jax.data.inputs import Inputs
from xception_jax.data.modalities import INPUTS
from xception_jax.errors import UserError
from xception_jax.recipe import Recipe
from xception_jax.run import workdir
from xception_jax.run.checkpoint import Checkpoints, DamagedCheckpoints
from xception_jax.run.compiler import Programs

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network, ready to use.

    Attributes:
      model: with the weights of the checkpoint; call it on the model inputs that `inputs.prepare` makes.
      inputs: how examples become the model's inputs; for images, `inputs.preprocessing` is the record of that.
      recipe: that trained it.
      class_names: in the order of the probabilities.
      step: number of gradient steps it was trained for.
      weights: "averaged" or "raw".
      multilabel: whether an example has any number of classes instead of one.
      evaluation: what the run measured at this step: {"raw": {"loss", "top1", ...}, "averaged": ...}; None if it
        did not.
    """

    model: nnx.Module
    inputs: Inputs
    recipe: Recipe
    class_names: tuple[str, ...]
    step: int
    weights: str
    multilabel: bool
    evaluation: dict[str, dict[str, float]] | None

    def predict(self, raw: Sequence[Any] | np.ndarray, *, batch_size: int = 128) -> np.ndarray:
        """Class probabilities, float32[N, classes].

        Those of an example add up to 1, or each is between 0 and 1 if `multilabel`.

        Args:
          raw: what `inputs.from_user` takes, for example uint8 images of any size.
          batch_size: examples that are computed at a time. A smaller number of examples is padded to a power of
            two, so few programs are compiled however many are asked for.

        Raises:
          ValueError: for inputs of another type or shape.
        """
        parts = []
        for start in range(0, max(1, len(raw)), batch_size):
            arrays = self.inputs.from_user(raw[start : start + batch_size])
            count = len(next(iter(arrays.values())))
            size = min(batch_size, 1 << (count - 1).bit_length())
            padded = {
                name: np.pad(array, ((0, size - count), *((0, 0),) * (array.ndim - 1)))
                for name, array in arrays.items()
            }
            programs, weights = self._programs
            parts.append(np.asarray(programs(padded)(*weights, padded))[:count])
        return np.concatenate(parts)

    @functools.cached_property
    def _programs(self) -> tuple[Programs, tuple[PyTree, PyTree]]:
        """(programs of parameters, model state and batch -> probabilities; the first two of them)."""
        graphdef, *weights = state.split(self.model)
        offset = self.inputs.label_offset
        objective = metrics.Objective(
            num_classes=len(self.class_names) + offset, multilabel=self.multilabel, label_offset=offset
        )

        def probabilities(params, model_state, batch):
            inputs, _ = self.inputs.prepare(batch, None, train=False)
            return objective.probabilities(nnx.merge(graphdef, params, model_state)(inputs))

        function = jax.jit(probabilities)
        return Programs(lambda batch: function.lower(*weights, batch)), tuple(weights)


def load(directory: str | os.PathLike, *, checkpoint: str | int = "best", weights: str | None = None) -> Trained:
    """Opens the network that a run trained, on one device.

    Args:
      directory: the working directory of the run.
      checkpoint: "best" (highest top-1, or MAP@100 for several labels, on the validation examples), "latest", or a
        step.
      weights: "averaged" (Polyak averaging) or "raw"; None = averaged, if the run kept averages.

    Raises:
      UserError: if there is no such run, checkpoint or weights, or the files are damaged.
      TrainingError: if the disk cannot be read.
    """
    if weights not in (None, "averaged", "raw"):
        raise UserError(f"weights = {weights!r}: choose 'averaged' or 'raw'")
    directory = pathlib.Path(directory)
    found = recipe.read(directory)
    if weights is None:
        weights = "raw" if found.averaging.decay is None else "averaged"
    if weights == "averaged" and found.averaging.decay is None:
        raise UserError(
            "weights = 'averaged': this run kept no averages (config.averaging.decay = None); pass 'raw'"
        )
    model = nnx.eval_shape(lambda: models.create_model(found.model_name, **found.model_settings))
    graphdef, params, model_state = state.split(model)
    device = SingleDeviceSharding(jax.local_devices()[0])
    step, sets, record = restore_weights(directory, checkpoint, params, model_state, [weights], device)
    return Trained(
        model=nnx.merge(graphdef, sets[weights]["params"], sets[weights]["model_state"]),
        inputs=inputs_of(found, record),
        recipe=found,
        class_names=tuple(record["class_names"]),
        step=step,
        weights=weights,
        multilabel=record["multilabel"],
        evaluation=record["evaluation"],
    )


def inputs_of(found: Recipe, record: dict[str, Any]) -> Inputs:
    """The inputs of a checkpoint; version 0.1 recorded those of images as "preprocessing"."""
    if "inputs" not in record:
        record = record | {"inputs": record["preprocessing"] | {"channels": found.model["in_channels"]}}
    return INPUTS[models.model_class(found.model_name).INPUTS].from_record(record["inputs"])


def restore_weights(
    directory: pathlib.Path,
    checkpoint: str | int,
    params: PyTree,
    model_state: PyTree,
    sets: Sequence[str],
    sharding: Sharding | PyTree,
) -> tuple[int, dict[str, PyTree], dict[str, Any]]:
    """Reads sets of weights from a run.

    Args:
      directory: the working directory of the run.
      checkpoint: "best", "latest" or a step.
      params, model_state: trees of shapes.
      sets: "raw", "averaged" or both.
      sharding: of the arrays: one, or a tree of them, {"params": ..., "model_state": ...}.

    Returns:
      (step, {set: {"params": ..., "model_state": ...}}, the checkpoint's record).

    Raises:
      UserError: if there is no such checkpoint or it is damaged.
      TrainingError: if the disk cannot be read.
    """
    weights = {"params": params, "model_state": model_state}
    weights = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        weights,
        jax.tree.broadcast(sharding, weights),
    )
    trees = (weights if "raw" in sets else {}) | ({"averaged": weights} if "averaged" in sets else {})
    folder = directory / workdir.CHECKPOINTS
    if not folder.is_dir():
        raise UserError(f"workdir {directory}: has no checkpoints yet; train it first")
    with contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
        step = _choose_step(checkpoints, checkpoint)
        try:
            _, restored, record = checkpoints.restore(step, trees)
        except DamagedCheckpoints as error:
            raise UserError(
                f"checkpoint {folder / str(step)} is damaged ({error}); choose another of {checkpoints.steps()}"
            ) from None
    found = {"raw": {name: restored.get(name) for name in weights}, "averaged": restored.get("averaged")}
    return step, {name: found[name] for name in sets}, record


def _choose_step(checkpoints: Checkpoints, checkpoint: str | int) -> int:
    steps = checkpoints.steps()
    if not steps:
        raise UserError(f"{checkpoints.directory} has no checkpoints yet; train first")
    if checkpoint == "best":
        return checkpoints.best_step()
    if checkpoint == "latest":
        return steps[-1]
    if str(checkpoint).isdigit() and int(checkpoint) in steps:
        return int(checkpoint)
    raise UserError(f"checkpoint = {checkpoint!r}: choose 'best', 'latest' or one of {steps}")
