"""A recipe made concrete: its dataset, inputs, objective and layout, which training and evaluation share."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xception_jax import metrics, models, sharding
from xception_jax.data import pipeline
from xception_jax.data.dataset import Dataset, Source
from xception_jax.data.inputs import Inputs
from xception_jax.data.modalities import INPUTS
from xception_jax.errors import SettingError, UserError
from xception_jax.recipe import FROM_DATA, Recipe
from xception_jax.run import hosts, workdir
from xception_jax.settings import within


@dataclasses.dataclass(frozen=True)
class Task:
    """What is learnt, from which data, on which devices.

    Attributes:
      recipe: with what only the data tells, such as the number of classes.
    """

    recipe: Recipe
    dataset: Dataset
    inputs: Inputs
    objective: metrics.Objective
    layout: sharding.Layout

    def create_model(self, key: jax.Array, values: Mapping[str, jax.Array] | None = None) -> nnx.Module:
        """The recipe's model, drawn from `key` but for `values`; see `Inputs.initial_values`."""
        model = models.create_model(self.recipe.model_name, rngs=nnx.Rngs(key), **self.recipe.model_settings)
        for name, given in (values or {}).items():
            variable = getattr(model, name)
            variable.set_value(jnp.where(jnp.isnan(given), variable[...], given))
        return model

    def abstract_model(self) -> nnx.Module:
        """The model without arrays."""
        return nnx.eval_shape(lambda: self.create_model(jax.random.key(0)))

    @property
    def eval_batch_size(self) -> int:
        """The recipe's, rounded up to a multiple of the number of devices."""
        return self.layout.round_up(self.recipe.eval_batch_size)

    def batch_spec(self, *, train: bool) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, types and shardings of the arrays of the longest global batch."""
        batch_size = self.recipe.batch_size if train else self.eval_batch_size
        lengths = self.inputs.lengths(self.dataset.train if train else self.dataset.validation)
        shapes = dict(self.inputs.spec(batch_size, 0 if lengths is None else int(lengths.max())))
        classes = (len(self.dataset.class_names),) if self.dataset.multilabel else ()
        shapes["label"] = jax.ShapeDtypeStruct((batch_size, *classes), np.uint8 if classes else np.int32)
        others = {"seed": np.uint32, "unreadable": np.int32} if train else {"mask": np.float32}
        shapes |= {name: jax.ShapeDtypeStruct((batch_size,), dtype) for name, dtype in others.items()}
        return {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.layout.of_batch(name, len(x.shape)))
            for name, x in shapes.items()
        }

    def reader(self, source: Source, *, substitute: bool = False) -> pipeline.Reader:
        """Reads and decodes the examples of a source."""
        classes = len(self.dataset.class_names) if self.dataset.multilabel else None
        return pipeline.Reader(source, self.inputs.decode, classes=classes, substitute=substitute)

    def train_batches(self, start_step: int) -> Iterator[pipeline.Batch]:
        """This host's share of the training batches from `start_step` on; see `pipeline.train_batches`."""
        return pipeline.train_batches(
            self.reader(self.dataset.train, substitute=True),
            self.inputs.train_transform,
            padding=self._padding(self.dataset.train),
            batch_size=self.recipe.batch_size,
            seed=self.recipe.seed,
            start_step=start_step,
            **self._reading,
        )

    def evaluation_batches(self) -> Iterator[pipeline.Batch]:
        """This host's share of the validation batches; see `pipeline.evaluation_batches`."""
        return pipeline.evaluation_batches(
            self.reader(self.dataset.validation),
            self.inputs.eval_transform,
            padding=self._padding(self.dataset.validation),
            batch_size=self.eval_batch_size,
            **self._reading,
        )

    def _padding(self, source: Source) -> pipeline.Padding | None:
        lengths = self.inputs.lengths(source)
        return None if lengths is None else pipeline.Padding(lengths, self.inputs.pad)

    @property
    def _reading(self) -> dict[str, int]:
        return {
            "num_threads": self.recipe.data.num_threads,
            "num_workers": self.recipe.data.num_workers,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }


def build(recipe: Recipe, directory: pathlib.Path | None = None) -> Task:
    """Loads the dataset, lays out the devices, and checks the recipe against both, on all hosts.

    Args:
      directory: of the run, which may have begun already; see `Inputs.continued`.

    Raises:
      SettingError: for a setting that does not fit the data, the devices or the model.
      UserError: if the hosts see different data, or one of them has such an error.
    """
    dataset = hosts.agree(lambda: load_dataset(recipe, directory))
    _check_hosts(dataset)
    return hosts.agree(lambda: _build(recipe, dataset))


def _build(recipe: Recipe, dataset: Dataset) -> Task:
    cls = models.model_class(recipe.model_name)
    with within("config"):
        recipe = _with_data(recipe, dataset.model_settings)
        inputs = INPUTS[cls.INPUTS].from_sections(recipe.sections(), dataset, cls.PREPROCESSING)
        recipe = _with_data(recipe, {"num_classes": len(dataset.class_names) + inputs.label_offset})
        objective = _objective(recipe, dataset, inputs)
        layout = sharding.make_layout(recipe.mesh.model, num_classes=objective.num_classes)
        if dataset.multilabel and len(dataset.class_names) % recipe.mesh.model:
            remedy = f"must divide the {len(dataset.class_names)} classes, without label_offset, too"
            raise SettingError("mesh.model", recipe.mesh.model, remedy)
        task = Task(recipe, dataset, inputs, objective, layout)
        _check_model(task)
    return task


def load_dataset(recipe: Recipe, directory: pathlib.Path | None = None) -> Dataset:
    """The examples of a recipe, to train on and held out; raises SettingError."""
    modality = INPUTS[models.model_class(recipe.model_name).INPUTS]
    settings = recipe.data
    if directory is not None and workdir.has_checkpoints(directory):
        settings = modality.continued(settings, directory / workdir.INPUTS)
    try:
        with within("config", "data"):
            return modality.load(settings)
    except OSError as error:
        raise SettingError("config.data.root", getattr(recipe.data, "root", None), str(error)) from None


def _check_hosts(dataset: Dataset) -> None:
    """Raises UserError, on all hosts, unless they see the same examples: their steps would not be the same."""
    if jax.process_count() == 1:
        return
    own = hosts.agree(lambda: [dataset.fingerprint(), len(dataset.train), len(dataset.validation)])
    seen = [json.loads(text) for text in hosts.gather(json.dumps(own))]
    if any(other != seen[0] for other in seen):
        train, validation = ([counts[part] for counts in seen] for part in (1, 2))
        raise UserError(
            f"config.data.root: the hosts see different data, {train} examples to train on and {validation} to"
            " evaluate; give all of them the same files"
        )


def _with_data(recipe: Recipe, told: Mapping[str, int]) -> Recipe:
    """The recipe with a number for each setting of the model in FROM_DATA: the data's, else the model's default.

    Args:
      told: settings of the model that follow from the data; a setting of the recipe that contradicts them is a
        SettingError.
    """
    known = models.model_config(recipe.model_name).model_dump(include=set(FROM_DATA) - {"num_classes"}) | dict(
        told
    )
    for name, value in told.items():
        if recipe.model.get(name) not in (None, value):
            remedy = f"the data ({recipe.data.name}) has {value}; pass --config.model.{name}={value}"
            raise SettingError(f"model.{name}", recipe.model[name], remedy)
    model = {name: known.get(name) if value is None else value for name, value in recipe.model.items()}
    return recipe.model_copy(update={"model": model})


def _objective(recipe: Recipe, dataset: Dataset, inputs: Inputs) -> metrics.Objective:
    if recipe.label_smoothing and dataset.multilabel:
        raise SettingError(
            "label_smoothing",
            recipe.label_smoothing,
            f"is for one label per example, and {recipe.data.name} has several; pass --config.label_smoothing=0",
        )
    weights = dataset.class_weights
    return metrics.Objective(
        num_classes=recipe.model["num_classes"],
        multilabel=dataset.multilabel,
        label_offset=inputs.label_offset,
        label_smoothing=recipe.label_smoothing,
        class_weights=None if weights is None else (0.0,) * inputs.label_offset + tuple(weights),
        weighted_loss=recipe.weighted_loss,
    )


def _check_model(task: Task) -> None:
    """Raises SettingError where the model cannot take the inputs."""

    def logits(model, batch):
        return model(task.inputs.prepare(batch, None, train=False)[0])

    try:
        nnx.eval_shape(logits, task.abstract_model(), task.batch_spec(train=False))
    except models.ImageSizeError as error:
        raise SettingError("data.image_size", task.recipe.data.image_size, error.remedy) from None
