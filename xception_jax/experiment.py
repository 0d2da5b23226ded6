"""A recipe made concrete: dataset, mesh, model, optimizer, schedule and lengths in steps."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xception_jax import data, metrics, models, optim, state
from xception_jax import recipe as recipe_lib
from xception_jax.data.images.augment import Augmentation
from xception_jax.errors import UserError
from xception_jax.models import Preprocessing

PyTree = Any

WORTH_WORKERS = 5000  # images of an evaluation from which on worker processes pay for their start, some seconds


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a run needs besides arrays and files.

    Attributes:
      mesh: all devices along "data" and, if the recipe says so, "model". Images are split over all of them, the
        classes of the last layer along "model", and all else is replicated.
      preprocessing: the model's record with the recipe's image size, crop and interpolation.
      total_steps, evaluate_every, checkpoint_every: in gradient steps.
    """

    recipe: recipe_lib.Recipe
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
        """The first axis split over all devices."""
        return NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))

    @property
    def logits_sharding(self) -> NamedSharding:
        """Of logits [N, classes]: images along "data" and, where the mesh has it, classes along "model"."""
        return NamedSharding(self.mesh, PartitionSpec(*self.mesh.axis_names))

    def batch_sharding(self, name: str, ndim: int) -> NamedSharding:
        """Of an array of a batch: labels and masks lie where the logits of their images will be."""
        if name in ("label", "mask"):
            return NamedSharding(self.mesh, PartitionSpec(*self.mesh.axis_names[:ndim]))
        return self.by_image

    def state_sharding(self, tree: PyTree) -> PyTree:
        """Of a state, or of a part of one: on every device, but for what the classifier has for each class.

        Its kernel and bias, their averages and what the optimizer keeps of them are split along "model", if the
        mesh has it.

        Args:
          tree: of shapes.
        """
        classes = len(self.dataset.class_names)

        def sharding(path, leaf):
            of_classes = "classifier" in jax.tree_util.keystr(path) and leaf.shape[-1:] == (classes,)
            if not of_classes or "model" not in self.mesh.axis_names:
                return self.replicated
            return NamedSharding(self.mesh, PartitionSpec(*(None,) * (leaf.ndim - 1), "model"))

        return jax.tree_util.tree_map_with_path(sharding, tree)

    @property
    def eval_batch_size(self) -> int:
        """The recipe's, rounded up to a multiple of the devices; padding is masked."""
        return math.ceil(self.recipe.eval_batch_size / self.mesh.size) * self.mesh.size

    @property
    def normalization(self) -> dict[str, float]:
        """`mean` and `std` of `step.normalize`."""
        return {"mean": self.preprocessing.mean, "std": self.preprocessing.std}

    @property
    def objective(self) -> metrics.Objective:
        """What is learnt from this data."""
        return metrics.Objective(
            num_classes=len(self.dataset.class_names),
            multilabel=self.dataset.multilabel,
            label_smoothing=self.recipe.label_smoothing,
            class_weights=self.dataset.class_weights,
            weighted_loss=self.recipe.weighted_loss,
        )

    @property
    def augmentation(self) -> Augmentation:
        """Of training images, on the device."""
        return Augmentation(**self.recipe.augment.model_dump())

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

    def abstract_state(self) -> state.TrainState:
        """The same without arrays: their shapes, and where they belong."""
        shapes = jax.eval_shape(self.create_state, jax.random.key(0))
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            shapes,
            self.state_sharding(shapes),
        )

    def batch_spec(self, batch_size: int, *, training: bool) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a global batch, split over the devices."""
        size = self.preprocessing.image_size
        several = ((batch_size, len(self.dataset.class_names)), np.uint8)
        shapes = {
            "image": ((batch_size, size, size, self.dataset.channels), np.uint8),
            "label": several if self.dataset.multilabel else ((batch_size,), np.int32),
        }
        if training:
            shapes |= {"seed": ((batch_size,), np.uint32), "unreadable": ((batch_size,), np.int32)}
        else:
            shapes["mask"] = ((batch_size,), np.float32)
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=self.batch_sharding(name, len(shape)))
            for name, (shape, dtype) in shapes.items()
        }

    def to_devices(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """This host's share of a batch -> the global batch, split over the devices."""
        return {
            name: jax.make_array_from_process_local_data(self.batch_sharding(name, array.ndim), array)
            for name, array in batch.items()
        }

    def reader(self, source: data.Source, *, substitute: bool) -> data.Reader:
        """A source of the dataset, decoded as the recipe says."""
        return data.Reader(
            source,
            classes=len(self.dataset.class_names) if self.dataset.multilabel else None,
            orientation=self.recipe.data.exif_orientation,
            substitute=substitute,
        )

    def train_batches(self, start_step: int):
        """Augmented training batches of this host from `start_step` on; see `data.train_batches`."""
        settings = self.recipe.data
        transform = data.TrainTransform(
            image_size=settings.image_size,
            resize=settings.train_resize,
            crop=settings.train_crop,
            pad_pixels=settings.pad_pixels,
            area=(settings.min_area, settings.max_area),
            aspect=(settings.min_aspect, settings.max_aspect),
            randaugment_ops=settings.randaugment_ops,
            randaugment_magnitude=settings.randaugment_magnitude,
        )
        return data.train_batches(
            self.reader(self.dataset.train, substitute=True),
            transform,
            batch_size=self.recipe.batch_size,
            seed=self.recipe.seed,
            start_step=start_step,
            **self._reading,
        )

    def why_unreadable(self, index: int) -> str:
        """What is wrong with a training image."""
        try:
            self.reader(self.dataset.train, substitute=False)[index]
        except data.UnreadableImage as error:
            return str(error)
        return f"cannot read image {self.dataset.train.name(index)}: it failed once, and now it can be read"

    def evaluation_batches(self):
        """Validation batches of this host; see `data.evaluation_batches`."""
        reading = self._reading
        if len(self.dataset.validation) < WORTH_WORKERS:
            reading["num_workers"] = 0
        return data.evaluation_batches(
            self.reader(self.dataset.validation, substitute=False),
            evaluation_transform(self.preprocessing),
            batch_size=self.eval_batch_size,
            **reading,
        )

    @property
    def _reading(self) -> dict[str, int]:
        return {
            "num_threads": self.recipe.data.num_threads,
            "num_workers": self.recipe.data.num_workers,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }


def evaluation_transform(record: Preprocessing) -> data.EvaluationTransform:
    """What the record says of the image's geometry."""
    return data.EvaluationTransform(
        image_size=record.image_size, crop=record.crop, crop_fraction=record.crop_fraction, resize=record.resize
    )


def build(recipe: recipe_lib.Recipe, *, training: bool = True) -> Experiment:
    """Loads the dataset, makes the mesh of all devices, and checks the recipe against both.

    Args:
      training: False leaves out what only matters to training: that batches divide over the devices.

    Raises:
      UserError: if they do not fit together.
    """
    try:
        dataset = load_dataset(recipe.data)
    except ValueError as error:
        raise UserError(f"config.data.{error}") from None
    except OSError as error:
        raise UserError(f"config.data.root = {recipe.data.root!r}: {error}") from None
    _check_hosts(dataset)
    recipe = _with_data(recipe, dataset)
    num_examples = len(dataset.train)
    total = max(1, round(recipe.steps("total", num_examples)))

    def interval(name: str) -> int:
        steps = recipe.steps(name, num_examples)
        return total if steps is None else max(1, round(steps))

    schedule = recipe_lib.make_schedule(recipe, num_examples=num_examples)
    experiment = Experiment(
        recipe=recipe,
        dataset=dataset,
        preprocessing=dataclasses.replace(
            models.model_class(recipe.model_name).PREPROCESSING,
            image_size=recipe.data.image_size,
            exif_orientation=recipe.data.exif_orientation,
            **recipe.data.evaluation,
        ),
        mesh=_make_mesh(recipe.mesh.model, classes=len(dataset.class_names)),
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


def _make_mesh(model: int, *, classes: int) -> Mesh:
    """All devices along "data" or, if `model` > 1, along "data" and so many neighbors along "model".

    Neighbors are devices of one host, which then reads all labels of the images that it reads.

    Raises:
      UserError: if `model` does not divide the devices of a host and the classes.
    """
    local = jax.local_device_count()
    if local % model or classes % model:
        choices = [size for size in range(1, local + 1) if local % size == 0 and classes % size == 0]
        raise UserError(
            f"config.mesh.model = {model}: must divide the number of devices of a host, {local}, and of classes,"
            f" {classes:,}; choose one of {choices}"
        )
    if model == 1:
        return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.reshape(devices, (-1, model)), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def load_dataset(settings: recipe_lib.Data) -> data.Dataset:
    """The images of a recipe, to train on and held out; raises ValueError as `data.load` does."""
    return data.load(
        settings.name,
        root=settings.root,
        image_size=settings.image_size,
        train_split=settings.train_split,
        eval_split=settings.eval_split,
        label=settings.label,
        holdout=settings.holdout,
        classes=settings.classes,
        eval_exclude=settings.eval_exclude,
    )


def _check_hosts(dataset: data.Dataset) -> None:
    """Raises UserError, on all hosts, unless they see the same images: their steps would not be the same."""
    if jax.process_count() == 1:
        return
    own = np.frombuffer(bytes.fromhex(dataset.fingerprint()), np.uint8)
    lengths = np.array([len(dataset.train), len(dataset.validation)], np.int32)
    prints, counts = multihost_utils.process_allgather((own, lengths))  # [hosts, 8], [hosts, 2]
    if (prints != prints[0]).any():
        raise UserError(
            f"config.data.root: the hosts see different data, {counts[:, 0].tolist()} images to train on and"
            f" {counts[:, 1].tolist()} to evaluate; give all of them the same files"
        )


def _with_data(recipe: recipe_lib.Recipe, dataset: data.Dataset) -> recipe_lib.Recipe:
    """The recipe with what only the data can tell; UserError where it says otherwise."""
    values = {"num_classes": len(dataset.class_names), "in_channels": dataset.channels}
    for name, value in values.items():
        if recipe.model[name] not in (None, value):
            raise UserError(
                f"config.model.{name} = {recipe.model[name]}: the data ({recipe.data.name}) has {value};"
                f" pass --config.model.{name}={value}"
            )
    if recipe.augment.color != "none" and dataset.channels != 3:
        raise UserError(
            f"config.augment.color = {recipe.augment.color!r}: the images ({recipe.data.name}) have no colors;"
            " pass --config.augment.color=none"
        )
    if recipe.label_smoothing and dataset.multilabel:
        raise UserError(
            f"config.label_smoothing = {recipe.label_smoothing}: is for one label an image, and {recipe.data.name}"
            " has several; pass --config.label_smoothing=0"
        )
    return recipe.model_copy(update={"model": recipe.model | values})


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
    recipe = experiment.recipe
    model = experiment.abstract_model()
    image = experiment.batch_spec(1, training=False)["image"]
    try:
        nnx.eval_shape(lambda model, x: model(x), model, jax.ShapeDtypeStruct(image.shape, np.float32))
    except ValueError as error:
        raise UserError(f"config.data.image_size = {recipe.data.image_size}: {error}") from None
    try:
        optim.path_mask(state.split(model)[1], recipe.optimizer.weight_decay_paths)
    except ValueError as error:
        raise UserError(f"config.optimizer.{error}") from None
