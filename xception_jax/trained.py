"""Opening what a run left: the model, its preprocessing, its recipe."""

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

from xception_jax import models, state
from xception_jax import step as step_lib
from xception_jax.errors import UserError
from xception_jax.experiment import evaluation_transform
from xception_jax.models import Preprocessing
from xception_jax.recipe import Recipe
from xception_jax.run.checkpoint import Checkpoints, first_line
from xception_jax.run.workdir import read_recipe

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network, ready to use.

    Attributes:
      model: with the weights of the checkpoint; call it on normalized images.
      preprocessing: how images become its input.
      recipe: that trained it.
      class_names: in the order of the logits.
      step: gradient steps it was trained for.
      weights: "averaged" or "raw".
      multilabel: whether an image has any number of classes instead of one.
      evaluation: what the run measured at this step: {"raw": {"loss", "top1", ...}, "averaged": ...}; None if it
        did not.
    """

    model: nnx.Module
    preprocessing: Preprocessing
    recipe: Recipe
    class_names: tuple[str, ...]
    step: int
    weights: str
    multilabel: bool
    evaluation: dict[str, dict[str, float]] | None

    def preprocess(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Crops and resizes images as the evaluation did.

        Args:
          images: uint8 arrays [H, W, C] or, grey, [H, W], pixels in 0..255; sizes may differ. Arrays are taken as
            they are: `data.images.decode(bytes, name=..., orientation=preprocessing.exif_orientation)` reads a
            file as the run did.

        Returns:
          uint8[N, size, size, C].

        Raises:
          ValueError: for another type of pixels, shape, or number of channels.
        """
        record, channels = self.preprocessing, self.recipe.model["in_channels"]
        transform = evaluation_transform(record)
        if len(images) == 0:
            raise ValueError("images is empty: pass one image or more")
        if isinstance(images, np.ndarray) and images.ndim == 3 and images.shape[2] == channels:
            raise ValueError(f"images has shape {images.shape}, as one image has: pass [image]")
        return np.stack([transform.map({"image": _check_image(image, channels)})["image"] for image in images])

    def predict(self, images: Sequence[np.ndarray] | np.ndarray, *, batch_size: int = 128) -> np.ndarray:
        """Class probabilities of any uint8 images, float32[N, classes]; see `preprocess` for what they may be.

        Those of an image add up to 1, or each is between 0 and 1 if `multilabel`.
        """
        probabilities = jax.nn.sigmoid if self.multilabel else jax.nn.softmax
        batch_size = min(batch_size, max(1, len(images)))
        parts = []
        for start in range(0, max(1, len(images)), batch_size):
            part = self.preprocess(images[start : start + batch_size])  # [n, size, size, C]
            padding = ((0, batch_size - len(part)), (0, 0), (0, 0), (0, 0))
            logits = self._logits(np.pad(part, padding))[: len(part)]
            parts.append(np.asarray(probabilities(logits)))
        return np.concatenate(parts)

    @functools.cached_property
    def _logits(self):
        graphdef, params, batch_stats = state.split(self.model)
        record = self.preprocessing

        @jax.jit
        def logits(params, batch_stats, image):
            image = step_lib.normalize(image, mean=record.mean, std=record.std)
            return nnx.merge(graphdef, params, batch_stats)(image)

        return functools.partial(logits, params, batch_stats)


def _check_image(image: np.ndarray, channels: int) -> np.ndarray:
    """uint8[H, W] or [H, W, C] -> uint8[H, W, C], or ValueError."""
    image = np.asarray(image)
    if image.dtype != np.uint8:
        raise ValueError(f"pixels are {image.dtype}: pass uint8 in 0..255, for example (255 * x).astype('uint8')")
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[2] != channels or min(image.shape) < 1:
        raise ValueError(f"an image has shape {image.shape}: this model takes [height, width, {channels}]")
    return image


def load(workdir: str | os.PathLike, *, checkpoint: str | int = "best", weights: str = "averaged") -> Trained:
    """Opens the network that a run trained, on one device.

    Args:
      workdir: of the run.
      checkpoint: "best" (highest top-1, or MAP@100 for several labels, on the validation images), "latest", or a
        step.
      weights: "averaged" (Polyak) or "raw".

    Raises:
      UserError: if there is no such run, checkpoint or weights, or the files are damaged.
    """
    if weights not in ("averaged", "raw"):
        raise UserError(f"weights = {weights!r}: choose 'averaged' or 'raw'")
    directory = pathlib.Path(workdir)
    recipe = read_recipe(directory)
    if weights == "averaged" and recipe.polyak.decay is None:
        raise UserError("weights = 'averaged': this run kept no averages (config.polyak.decay = None); pass 'raw'")
    model = nnx.eval_shape(lambda: models.create_model(recipe.model_name, **recipe.model_settings))
    graphdef, params, batch_stats = state.split(model)
    device = SingleDeviceSharding(jax.local_devices()[0])
    step, sets, meta = restore_weights(directory, checkpoint, params, batch_stats, [weights], device)
    return Trained(
        model=nnx.merge(graphdef, sets[weights]["params"], sets[weights]["batch_stats"]),
        preprocessing=Preprocessing(**meta["preprocessing"]),
        recipe=recipe,
        class_names=tuple(meta["class_names"]),
        step=step,
        weights=weights,
        multilabel=meta["multilabel"],
        evaluation=meta["evaluation"],
    )


def restore_weights(
    workdir: pathlib.Path,
    checkpoint: str | int,
    params: PyTree,
    batch_stats: PyTree,
    sets: Sequence[str],
    sharding: Sharding | PyTree,
) -> tuple[int, dict[str, PyTree], dict]:
    """Reads sets of weights from a run.

    Args:
      checkpoint: "best", "latest" or a step.
      params, batch_stats: trees of shapes.
      sets: "raw", "averaged" or both.
      sharding: of the arrays: one, or a tree of them, {"params": ..., "batch_stats": ...}.

    Returns:
      (step, {set: {"params": ..., "batch_stats": ...}}, the checkpoint's record).

    Raises:
      UserError: if there is no such checkpoint or it is damaged.
    """
    weights = {"params": params, "batch_stats": batch_stats}
    weights = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        weights,
        jax.tree.broadcast(sharding, weights),
    )
    trees = (weights if "raw" in sets else {}) | ({"ema": weights} if "averaged" in sets else {})
    directory = workdir / "checkpoints"
    if not directory.is_dir():
        raise UserError(f"workdir {workdir}: has no checkpoints yet; train it first")
    with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
        step = _choose_step(checkpoints, checkpoint)
        try:
            restored, meta = checkpoints.restore(step, trees)
        except Exception as error:  # orbax has no common error for the many ways files can be broken
            raise UserError(
                f"checkpoint {directory / str(step)} is damaged ({first_line(error)}); choose another of"
                f" {checkpoints.steps()}"
            ) from error
    found = {"raw": {name: restored.get(name) for name in weights}, "averaged": restored.get("ema")}
    return step, {name: found[name] for name in sets}, meta


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
