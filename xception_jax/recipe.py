"""What a recipe may say: names, types, ranges. Here a recipe's ConfigDict becomes a `Recipe` or is refused."""

import dataclasses
import difflib
import json
import typing
from collections.abc import Sequence
from typing import Any, Literal

import pydantic
from ml_collections import ConfigDict
from pydantic import BaseModel, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from xception_jax import data, models, optim
from xception_jax.data.images.augment import Augmentation
from xception_jax.errors import UserError

Fraction = typing.Annotated[float, Field(gt=0, le=1)]
Share = typing.Annotated[float, Field(ge=0, lt=1)]
# 0 says the same as None, which the command line cannot write over a number. (False == 0, but is of another type.)
_unset = pydantic.BeforeValidator(lambda value: None if value == 0 and type(value) is not bool else value)
Duration = typing.Annotated[PositiveFloat | None, _unset]
WholeDuration = typing.Annotated[PositiveInt | None, _unset]


class Section(BaseModel):
    """A part of a recipe; unknown names, other types and infinite or missing numbers are refused."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(Section):
    """Where images come from and how they reach the model's size, on the host; see `xception_jax.data`."""

    name: str
    root: str | None
    train_split: str | None
    eval_split: str | None
    label: str | None
    eval_exclude: str | None
    holdout: Share
    classes: str | None
    image_size: PositiveInt
    train_crop: Literal[data.CROPS]
    train_resize: Literal[(*data.METHODS, "inception")]
    pad_pixels: NonNegativeInt
    min_area: Fraction
    max_area: Fraction
    min_aspect: PositiveFloat
    max_aspect: PositiveFloat
    randaugment_ops: NonNegativeInt
    randaugment_magnitude: float = Field(ge=0, le=10)
    eval_preset: Literal[tuple(data.PRESETS)] | None
    eval_crop: Literal["central", "shorter_side"]
    eval_crop_fraction: Fraction
    eval_resize: Literal[tuple(data.METHODS)]
    exif_orientation: bool
    max_unreadable: Share
    num_threads: PositiveInt
    num_workers: NonNegativeInt

    @property
    def evaluation(self) -> dict[str, Any]:
        """`crop`, `crop_fraction` and `resize` of the evaluation: the preset's, or the three settings."""
        if self.eval_preset is not None:
            return dict(data.PRESETS[self.eval_preset])
        return {"crop": self.eval_crop, "crop_fraction": self.eval_crop_fraction, "resize": self.eval_resize}


class Augment(Section):
    """Arguments of `augment.Augmentation`: what happens to training images on the device."""

    flip: bool
    color: Literal["none", "inception", "inception_fast", "jitter"]
    brightness: NonNegativeFloat
    contrast: NonNegativeFloat
    saturation: NonNegativeFloat
    hue: float = Field(ge=0, le=0.5)
    mixup_alpha: NonNegativeFloat
    cutmix_alpha: NonNegativeFloat


class Optimizer(Section):
    """Arguments of `optim.make_optimizer`."""

    name: Literal["sgd", "rmsprop_tf", "rmsprop_keras1"]
    momentum: Share | None
    nesterov: bool
    decay: Share | None
    epsilon: PositiveFloat | None
    weight_decay: NonNegativeFloat
    weight_decay_mode: Literal["coupled", "decoupled"]
    weight_decay_paths: str
    clip_norm: typing.Annotated[PositiveFloat | None, _unset]
    workers: PositiveInt


class Schedule(Section):
    """Arguments of `optim.scale_learning_rate` and `optim.make_schedule`; boundaries are in epochs."""

    name: Literal["constant", "exponential", "piecewise", "cosine"]
    base_lr: PositiveFloat
    reference_batch: PositiveInt
    lr_rule: Literal["none", "linear", "sqrt"]
    decay_rate: PositiveFloat
    decay_every_epochs: Duration
    decay_every_steps: Duration
    decay_every_samples: Duration
    staircase: bool
    boundaries_epochs: tuple[PositiveFloat, ...]
    factors: tuple[PositiveFloat, ...]
    end_fraction: Share
    warmup_epochs: Duration
    warmup_steps: Duration
    warmup_samples: Duration


class Polyak(Section):
    """Polyak averaging: `optim.polyak_update`; decay None or 0 = none."""

    decay: typing.Annotated[Share | None, _unset]
    warmup: bool


class Mesh(Section):
    """How the devices share the work: so many neighbors along "model" split the classes of the last layer."""

    model: PositiveInt


class Recipe(Section):
    """All that decides a run. `model` holds the model's name and the fields of its `Config`."""

    seed: NonNegativeInt = Field(lt=2**32)
    batch_size: PositiveInt
    accumulation_steps: PositiveInt
    eval_batch_size: PositiveInt
    total_epochs: Duration
    total_steps: WholeDuration
    total_samples: WholeDuration
    label_smoothing: Share
    weighted_loss: bool
    model: dict[str, Any]
    data: Data
    augment: Augment
    optimizer: Optimizer
    schedule: Schedule
    polyak: Polyak
    mesh: Mesh
    log_every_steps: PositiveInt
    evaluate_every_epochs: Duration
    evaluate_every_steps: WholeDuration
    checkpoint_every_epochs: Duration
    checkpoint_every_steps: WholeDuration
    checkpoints_to_keep: PositiveInt

    @property
    def model_name(self) -> str:
        """A key of `models.MODELS`."""
        return self.model["name"]

    @property
    def model_settings(self) -> dict[str, Any]:
        """Fields of the model's `Config`."""
        return {key: value for key, value in self.model.items() if key != "name"}

    def steps(self, name: str, num_examples: int) -> float | None:
        """The duration `name`, such as "total" or "schedule.decay_every", in gradient steps.

        Raises:
          UserError: if it is given in two units.
        """
        *path, field = name.split(".")
        section = getattr(self, path[0]) if path else self
        units = {unit: getattr(section, f"{field}_{unit}", None) for unit in ("steps", "epochs", "samples")}
        try:
            return optim.to_steps(name, batch_size=self.batch_size, num_examples=num_examples, **units)
        except ValueError as error:
            raise UserError(f"config.{error}") from None


# May differ between a run and its continuation: they do not change the weights a step gives.
FREE_KEYS = (
    "eval_batch_size",
    "total_epochs",
    "total_steps",
    "total_samples",
    "data.root",
    "data.classes",
    "data.eval_exclude",
    "data.max_unreadable",
    "data.num_threads",
    "data.num_workers",
    "log_every_steps",
    "evaluate_every_epochs",
    "evaluate_every_steps",
    "checkpoint_every_epochs",
    "checkpoint_every_steps",
    "checkpoints_to_keep",
    "mesh.model",  # these four: but for rounding
    "model.implementation",
    "model.remat",
    "model.scan_middle",
)

FROM_DATA = ("num_classes", "in_channels")  # of the model: None = what the dataset has


def parse(config: ConfigDict | dict[str, Any]) -> Recipe:
    """Checks a recipe, whole, before anything is computed.

    Raises:
      UserError: one line with the first fault: the key, its value, what it must be.
    """
    values = _tuples(config.to_dict() if isinstance(config, ConfigDict) else config)
    try:
        recipe = Recipe.model_validate(values)
    except pydantic.ValidationError as error:
        raise UserError(_explain(error, Recipe, "config")) from None
    model = _parse_model(recipe.model)
    recipe = recipe.model_copy(update={"model": model})
    _check_combinations(recipe)
    return recipe


def _tuples(value: Any) -> Any:
    """Lists, as JSON has them, become tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _parse_model(values: dict[str, Any]) -> dict[str, Any]:
    """The model section with its types and ranges checked, in the model's own order."""
    if "name" not in values:
        raise UserError(f"config.model.name is missing: choose one of {sorted(models.MODELS)}")
    try:
        cls = models.model_class(values["name"])
    except ValueError as error:
        raise UserError(f"config.{str(error).replace('model name', 'model.name')}") from None
    types = typing.get_type_hints(cls.CONFIG)
    fields = {
        field.name: (typing.Annotated[types[field.name] | None, _unset], field.default)
        if types[field.name] == int | None or field.name in FROM_DATA
        else (types[field.name], field.default)
        for field in dataclasses.fields(cls.CONFIG)
    }
    schema = pydantic.create_model("Model", __base__=Section, **fields)
    settings = {key: value for key, value in values.items() if key != "name"}
    try:
        checked = schema.model_validate(settings).model_dump()
        cls.CONFIG(**checked)
    except pydantic.ValidationError as error:
        raise UserError(_explain(error, schema, "config.model")) from None
    except ValueError as error:  # from the Config's own checks: "field = value: must be ..."
        raise UserError(f"config.model.{error}") from None
    return {"name": values["name"], **checked}


def _explain(error: pydantic.ValidationError, schema: type[BaseModel], prefix: str) -> str:
    """The first fault in one line."""
    fault = error.errors()[0]
    # Pydantic adds the alternatives of a union, such as "int", to the path.
    path = [part for part in fault["loc"] if isinstance(part, int) or part.isidentifier()]
    names = [str(part) for part in path if part not in ("int", "float", "str", "bool")]
    where = ".".join([prefix, *names])
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(names[-1], _fields(schema, names[:-1]), n=1)
        return f"{where} is not a setting; " + (f"did you mean {near[0]!r}?" if near else "remove it")
    if fault["type"] == "missing":
        return f"{where} is missing: start from configs/common.py, which names every setting"
    return f"{where} = {fault['input']!r}: {fault['msg'].replace('Input should', 'it should')}"


def _fields(schema: type[BaseModel], path: list[str]) -> list[str]:
    """Names of the settings in the section at `path`."""
    for name in path:
        schema = schema.model_fields[name].annotation
    return list(schema.model_fields)


def _check_combinations(recipe: Recipe) -> None:
    """Faults that no single setting shows."""
    if recipe.steps("total", num_examples=recipe.batch_size) is None:
        raise UserError("config.total_epochs, total_steps and total_samples are all unset: set one of them")
    for name in ("evaluate_every", "checkpoint_every", "schedule.decay_every", "schedule.warmup"):
        recipe.steps(name, num_examples=recipe.batch_size)
    part, rest = divmod(recipe.batch_size, recipe.accumulation_steps)
    if rest:
        raise UserError(
            f"config.accumulation_steps = {recipe.accumulation_steps}: must divide batch_size {recipe.batch_size}"
        )
    group = recipe.model.get("bn_group_size")
    if group and part % group:
        raise UserError(
            f"config.model.bn_group_size = {group}: must divide the {part} images of a step"
            f" (batch_size {recipe.batch_size} / accumulation_steps {recipe.accumulation_steps})"
        )
    for name in ("area", "aspect"):
        least, most = (getattr(recipe.data, f"{bound}_{name}") for bound in ("min", "max"))
        if least > most:
            raise UserError(f"config.data.min_{name} = {least}: must not be above max_{name} = {most}")
    try:
        augmentation = Augmentation(**recipe.augment.model_dump())
    except ValueError as error:
        raise UserError(f"config.augment.{error}") from None
    if augmentation.mixes and part % 2:
        raise UserError(
            f"config.batch_size = {recipe.batch_size}: mixup and cutmix mix pairs, but a step has {part} images;"
            " choose an even number"
        )
    if augmentation.mixes and recipe.accumulation_steps > 1 and (group or 2) % 2:
        raise UserError(
            f"config.model.bn_group_size = {group}: mixup and cutmix mix pairs, which accumulation_steps ="
            f" {recipe.accumulation_steps} would part; choose an even number"
        )
    try:
        optim.make_optimizer(learning_rate=0.1, **recipe.optimizer.model_dump())
    except ValueError as error:
        raise UserError(f"config.optimizer.{error}") from None
    try:
        make_schedule(recipe, num_examples=recipe.batch_size)
    except ValueError as error:
        raise UserError(f"config.schedule: {error}") from None


def make_schedule(recipe: Recipe, *, num_examples: int):
    """The recipe's learning-rate schedule on a training set of `num_examples` images."""
    s = recipe.schedule
    return optim.make_schedule(
        s.name,
        optim.scale_learning_rate(
            s.base_lr, batch_size=recipe.batch_size, reference_batch=s.reference_batch, rule=s.lr_rule
        ),
        total_steps=recipe.steps("total", num_examples),
        decay_rate=s.decay_rate,
        decay_steps=recipe.steps("schedule.decay_every", num_examples),
        staircase=s.staircase,
        boundaries=[epochs * num_examples / recipe.batch_size for epochs in s.boundaries_epochs],
        factors=s.factors,
        end_fraction=s.end_fraction,
        warmup_steps=recipe.steps("schedule.warmup", num_examples) or 0.0,
    )


def to_json(recipe: Recipe) -> str:
    """The recipe as text, to keep beside what it made."""
    return json.dumps(recipe.model_dump(), indent=2) + "\n"


def differences(new: Recipe, old: Recipe, *, free: Sequence[str] = FREE_KEYS) -> list[tuple[str, Any, Any]]:
    """(key, new value, old value) of the settings that are not the same, but for the `free` ones.

    By default those that decide the weights. The length of the run is free, unless the learning rate depends on it
    (the cosine schedule).
    """
    new_values, old_values = (_flatten(r.model_dump()) for r in (new, old))
    free = [key for key in free if not (key.startswith("total_") and new.schedule.name == "cosine")]
    return [
        (key, new_values.get(key), old_values.get(key))
        for key in sorted(new_values.keys() | old_values.keys())
        if key not in free and new_values.get(key) != old_values.get(key)
    ]


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
