"""The seam between data and models: how the examples of a modality, such as images, become a model's inputs."""

import pathlib
import types
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, Self

import jax
import numpy as np

from xception_jax.data.dataset import Dataset, Source
from xception_jax.data.pipeline import Example
from xception_jax.settings import Section


class Inputs(Protocol):
    """How the examples of one modality become arrays; everything else in the package is independent of it.

    A modality is a subclass, which need not define the members that have a value or a body here. The functions of
    the host must be picklable, since worker processes run them, and must not import JAX.

    Attributes:
      SETTINGS: sections of the recipe that belong to the modality: "data", which extends `pipeline.Reading` by a
        `name` and more, and perhaps "augment".
      label_offset: number of leading logits that stand for no class, see `metrics.Objective`.
      block: number of consecutive examples of a batch that `prepare` treats together, such as 2 if it mixes pairs.
      counted: what reports count besides examples, by name: the array of `spec` that has their number.
      decode: host, example of a source -> example with arrays; raises `UnreadableExample`.
      train_transform: host, (decoded example, numpy random generator) -> example with the shapes of `spec`.
      eval_transform: host, decoded example -> example with the shapes of `spec`.
    """

    SETTINGS: ClassVar[Mapping[str, type[Section]]]
    label_offset: int = 0
    block: int = 1
    counted: Mapping[str, str] = types.MappingProxyType({})
    decode: Callable[[Example], Example]
    train_transform: Callable[[Example, np.random.Generator], Example]
    eval_transform: Callable[[Example], Example]

    @staticmethod
    def load(settings: Section) -> Dataset:
        """The dataset that the "data" section names; raises SettingError."""

    @staticmethod
    def continued(settings: Section, files: pathlib.Path) -> Section:
        """The "data" section for a run that has begun, whose `files` are in a folder."""
        return settings

    @staticmethod
    def data_defaults(defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of the "data" section that a model's PREPROCESSING names."""

    @classmethod
    def from_sections(cls, sections: Mapping[str, Section], dataset: Dataset, defaults: Mapping[str, Any]) -> Self:
        """The inputs of a run.

        Args:
          sections: of the recipe, by the names in `SETTINGS`.
          dataset: from `load`.
          defaults: `PREPROCESSING` of the model.

        Raises:
          SettingError: for settings that do not fit together or to the data.
        """

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The inputs that `record` describes, without augmentation."""

    def record(self) -> dict[str, Any]:
        """What JSON can hold; saved with every checkpoint."""

    def check_record(self, record: Mapping[str, Any]) -> None:
        """Raises SettingError if these inputs do not fit weights that were trained with the inputs of a record."""

    def files(self) -> Mapping[str, str]:
        """Texts for people that a run keeps in its working directory, by the name of the file."""
        return {}

    def initial_values(self) -> Mapping[str, np.ndarray]:
        """Initial values that come with the data, by attribute of the model; NaN = the model draws them itself."""
        return {}

    def lengths(self, source: Source) -> np.ndarray | None:
        """Length of each example, int[N], if a batch is as long as its longest example; None = all are equal."""
        return None

    def pad(self, example: Example, length: int) -> Example:
        """Host: a transformed example, cut or padded to a length."""
        return example

    def spec(self, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of the arrays of a global batch that `prepare` reads, without labels.

        Args:
          length: of the longest example, of those in `lengths`; without them, of no meaning.
        """

    def prepare(self, batch: Mapping[str, jax.Array], targets: jax.Array, *, train: bool) -> tuple[Any, jax.Array]:
        """Traced: normalizes and, with `train`, augments.

        Args:
          batch: arrays of `spec` and, with `train`, "seed" uint32[B], of each example's augmentation.
          targets: float32[B, classes], which an augmentation may mix.

        Returns:
          (first argument of the model: an array or a tree of arrays, targets).
        """

    def from_argument(self, text: str) -> Any:
        """What the command line names -> what `from_user` takes, of one example; raises ValueError."""
        return text

    def from_user(self, raw: Any) -> dict[str, np.ndarray]:
        """What a user passes to `predict` -> arrays with the shapes of `spec`; raises ValueError."""
