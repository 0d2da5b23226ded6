"""A recipe made concrete: dataset, mesh, model, optimizer, schedule and lengths in steps."""

import dataclasses
import math

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xception_jax import config as config_lib
from xception_jax import data, models, optim, state
from xception_jax.errors import UserError
from xception_jax.models import Preprocessing


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a run needs besides arrays and files.

    Attributes:
      mesh: all devices along one axis, "data": parameters are replicated, batches are split.
      preprocessing: the model's record with the recipe's image size, crop and interpolation.
      total_steps, evaluate_every, checkpoint_every: in gradient steps.
    """

    recipe: config_lib.Recipe
    dataset: data.Dataset
    preprocessing: Preprocessing
    mesh: Mesh
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    total_steps: int
    evaluate_every: int
    checkpoint_every: int

    @property
    def replicated(self) -> NamedSharding:
        """The same on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def by_image(self) -> NamedSharding:
        """The first axis split over the devices."""
        return NamedSharding(self.mesh, PartitionSpec("data"))

    @property
    def eval_batch_size(self) -> int:
        """The recipe's, rounded up to a multiple of the devices; padding is masked."""
        return math.ceil(self.recipe.eval_batch_size / self.mesh.size) * self.mesh.size

    @property
    def normalization(self) -> dict[str, float]:
        """Arguments of `step.normalize`."""
        return {"mean": self.preprocessing.mean, "std": self.preprocessing.std}

    def create_model(self, key: jax.Array) -> nnx.Module:
        """The recipe's model with parameters drawn from `key`."""
        return models.create_model(self.recipe.model_name, rngs=nnx.Rngs(key), **self.recipe.model_settings)

    def abstract_model(self) -> nnx.Module:
        """The same without arrays."""
        return nnx.eval_shape(lambda: self.create_model(jax.random.key(0)))

    def create_state(self, key: jax.Array) -> state.TrainState:
        """The state before the first step."""
        averaging = self.recipe.polyak.decay is not None
        return state.create(self.create_model(key), self.optimizer, averaging=averaging)

    def batch_spec(self, batch_size: int, *, masked: bool) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a global batch, split over the devices; evaluation's is masked."""
        size = self.preprocessing.image_size
        shapes = {
            "image": ((batch_size, size, size, self.dataset.channels), np.uint8),
            "label": ((batch_size,), np.int32),
        }
        if masked:
            shapes["mask"] = ((batch_size,), np.float32)
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=self.by_image)
            for name, (shape, dtype) in shapes.items()
        }

    def to_devices(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """This host's share of a batch -> the global batch, split over all devices."""
        return {
            name: jax.make_array_from_process_local_data(self.by_image, array) for name, array in batch.items()
        }

    def train_batches(self, start_step: int):
        """Augmented training batches of this host from `start_step` on; see `data.train_batches`."""
        settings = self.recipe.data
        transform = data.TrainTransform(
            image_size=settings.image_size,
            resize=settings.resize,
            crop=settings.train_crop,
            pad_pixels=settings.pad_pixels,
            min_area=settings.min_area,
            flip=settings.flip,
        )
        return data.train_batches(
            self.dataset.train,
            transform,
            batch_size=self.recipe.batch_size,
            seed=self.recipe.seed,
            start_step=start_step,
            num_threads=settings.num_threads,
            num_workers=settings.num_workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def evaluation_batches(self):
        """Validation batches of this host; see `data.evaluation_batches`."""
        record = self.preprocessing
        transform = data.EvaluationTransform(
            image_size=record.image_size, crop_fraction=record.crop_fraction, resize=record.resize
        )
        return data.evaluation_batches(
            self.dataset.validation,
            transform,
            batch_size=self.eval_batch_size,
            num_threads=self.recipe.data.num_threads,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )


def build(recipe: config_lib.Recipe, *, training: bool = True) -> Experiment:
    """Loads the dataset, makes the mesh of all devices, and checks the recipe against both.

    Args:
      training: False leaves out what only matters to training: that batches divide over the devices.

    Raises:
      UserError: if they do not fit together.
    """
    try:
        dataset = data.load(recipe.data.source, root=recipe.data.root)
    except ValueError as error:
        raise UserError(f"config.data.{error}") from None
    except OSError as error:
        raise UserError(f"config.data.root = {recipe.data.root!r}: {error}") from None
    num_examples = len(dataset.train)
    total = max(1, round(recipe.steps("total", num_examples)))

    def interval(name: str) -> int:
        steps = recipe.steps(name, num_examples)
        return total if steps is None else max(1, round(steps))

    schedule = config_lib.make_schedule(recipe, num_examples=num_examples)
    experiment = Experiment(
        recipe=recipe,
        dataset=dataset,
        preprocessing=dataclasses.replace(
            models.model_class(recipe.model_name).PREPROCESSING,
            image_size=recipe.data.image_size,
            crop_fraction=recipe.data.crop_fraction,
            resize=recipe.data.resize,
        ),
        mesh=jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,)),
        optimizer=optim.make_optimizer(learning_rate=schedule, **recipe.optimizer.model_dump()),
        schedule=schedule,
        total_steps=total,
        evaluate_every=interval("evaluate_every"),
        checkpoint_every=interval("checkpoint_every"),
    )
    if training:
        _check_batch(experiment)
    _check_model(experiment)
    return experiment


def _check_batch(experiment: Experiment) -> None:
    recipe = experiment.recipe
    part, devices = recipe.batch_size // recipe.accumulation_steps, experiment.mesh.size
    if part % devices:
        raise UserError(
            f"config.batch_size = {recipe.batch_size}: batch_size / accumulation_steps = {part} images must divide"
            f" over {devices} devices; choose a multiple of {devices * recipe.accumulation_steps}"
        )


def _check_model(experiment: Experiment) -> None:
    """Raises UserError where the model does not fit the data or the optimizer."""
    recipe, dataset = experiment.recipe, experiment.dataset
    for name, value in {"num_classes": len(dataset.class_names), "in_channels": dataset.channels}.items():
        if recipe.model[name] != value:
            raise UserError(
                f"config.model.{name} = {recipe.model[name]}: the data ({recipe.data.source}) has {value};"
                f" pass --config.model.{name}={value}"
            )
    model = experiment.abstract_model()
    image = experiment.batch_spec(1, masked=False)["image"]
    try:
        nnx.eval_shape(lambda model, x: model(x), model, jax.ShapeDtypeStruct(image.shape, np.float32))
    except ValueError as error:
        raise UserError(f"config.data.image_size = {recipe.data.image_size}: {error}") from None
    try:
        optim.path_mask(state.split(model)[1], recipe.optimizer.weight_decay_paths)
    except ValueError as error:
        raise UserError(f"config.optimizer.{error}") from None
