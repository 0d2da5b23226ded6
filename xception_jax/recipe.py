"""A recipe: all settings that decide a run, put together from the sections that stand beside what they set."""

import pathlib
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from xception_jax import models, optim, sharding
from xception_jax.data.modalities import INPUTS
from xception_jax.errors import SettingError, UserError
from xception_jax.run import workdir
from xception_jax.settings import Row, Section, is_free, setting, table, to_config_dict, within, zero_is_none

WholeDuration = Annotated[int | None, zero_is_none]

# Settings of the model for which None stands for what the dataset says.
FROM_DATA = ("num_classes", "in_channels", "vocab_size", "embedding_size")

# Where a config.json of version 0.1 has a section or setting -> its name today.
RENAMED = {"polyak": "averaging", "optimizer.workers": "replicas"}
# What a config.json lacks takes its default, but for settings of images whose default changes old numbers.
BEFORE = {"background": "black"}


class Recipe(Section):
    """Settings of a run. `model` holds the model's name and its settings, `data` and `augment` are the
    modality's."""

    seed: int = setting(0, "seed of initialization, data order, augmentation and dropout", ge=0, lt=2**32)
    batch_size: int = setting(32, "examples of a gradient step, on all devices together", gt=0)
    accumulation_steps: int = setting(1, "parts that a batch is computed in, one after the other", gt=0)
    eval_batch_size: int = setting(100, "examples of an evaluation step, on all devices together", free=True, gt=0)
    total_epochs: optim.Duration = setting(
        None, "length in epochs; set one of total_epochs, total_steps, total_samples", free=True, gt=0
    )
    total_steps: WholeDuration = setting(None, "length in gradient steps", free=True, gt=0)
    total_samples: WholeDuration = setting(None, "length in examples", free=True, gt=0)
    label_smoothing: float = setting(0.0, "share of the target spread over all classes", ge=0, lt=1)
    weighted_loss: bool = setting(True, "apply the data's class weights to the loss; to MAP@100 they always apply")
    model: dict[str, Any] = setting({}, "name and settings of the model")
    data: pydantic.SerializeAsAny[Section] = setting(None, "source, reading and transforms of the examples")
    augment: pydantic.SerializeAsAny[Section] | None = setting(None, "augmentation on the device")
    optimizer: optim.Optimizer = setting(optim.Optimizer(), "update rule")
    schedule: optim.Schedule = setting(optim.Schedule(), "learning rate")
    averaging: optim.Averaging = setting(optim.Averaging(), "averaging of the weights")
    mesh: sharding.MeshShape = setting(sharding.MeshShape(), "how the devices share the work")
    log_every_steps: int = setting(100, "steps between log lines", free=True, gt=0)
    evaluate_every_epochs: optim.Duration = setting(
        None, "between evaluations; unset = at the end only", free=True, gt=0
    )
    evaluate_every_steps: WholeDuration = setting(None, "steps between evaluations", free=True, gt=0)
    checkpoint_every_epochs: optim.Duration = setting(
        None, "between checkpoints; every evaluation saves one too", free=True, gt=0
    )
    checkpoint_every_steps: WholeDuration = setting(None, "steps between checkpoints", free=True, gt=0)
    checkpoints_to_keep: int = setting(3, "latest checkpoints to keep; the best is kept besides", free=True, gt=0)

    @property
    def model_name(self) -> str:
        """A key of `models.MODELS`."""
        return self.model["name"]

    @property
    def model_settings(self) -> dict[str, Any]:
        """Fields of the model's `Config`."""
        return {key: value for key, value in self.model.items() if key != "name"}

    @property
    def part_size(self) -> int:
        """Number of examples that are computed at a time."""
        return self.batch_size // self.accumulation_steps

    def sections(self) -> dict[str, Section]:
        """The sections of the model's modality, by name."""
        names = INPUTS[models.model_class(self.model_name).INPUTS].SETTINGS
        return {name: getattr(self, name) for name in names}

    def steps(self, name: str, num_examples: int) -> float | None:
        """A duration of the run in gradient steps, "total", "evaluate_every" or "checkpoint_every"; None if unset.

        Raises:
          SettingError: if it is given in two units.
        """
        return optim.to_steps(self, name, batch_size=self.batch_size, num_examples=num_examples)


def parse(config: ConfigDict | Mapping[str, Any]) -> Recipe:
    """Checks a recipe as a whole, before anything is computed.

    Raises:
      SettingError: names the first setting that cannot be used, as "config.SECTION.NAME".
    """
    values = _to_tuples(config.to_dict() if isinstance(config, ConfigDict) else dict(config))
    with within("config"):
        model = _parse_model(**_section("model", values))
        cls = models.model_class(model["name"])
        modality = INPUTS[cls.INPUTS]
        values["data"] = modality.data_defaults(cls.PREPROCESSING) | dict(_section("data", values))
        sections = {}
        for name, section in modality.SETTINGS.items():
            given = _section(name, values)
            with within(name):
                sections[name] = section(**given)
        recipe = Recipe(model=model, **sections, **values)
        _check_combinations(recipe)
    return recipe


def _section(name: str, values: dict[str, Any]) -> Mapping[str, Any]:
    """Takes the settings of a section out of the recipe's values; none if it is not there."""
    settings = values.pop(name, {})
    if not isinstance(settings, Mapping):
        raise SettingError(name, settings, "is a section; give its settings by name, as a dictionary")
    return settings


def _to_tuples(value: Any) -> Any:
    """Lists, which JSON has in the place of tuples, become tuples."""
    if isinstance(value, Mapping):
        return {key: _to_tuples(item) for key, item in value.items()}
    return tuple(map(_to_tuples, value)) if isinstance(value, list | tuple) else value


def _parse_model(name: str | None = None, **settings: Any) -> dict[str, Any]:
    """The model section, checked; settings in FROM_DATA may stay None, which they are unless given."""
    with within("model"):
        if name is None:
            raise SettingError("name", None, f"is missing: choose one of {', '.join(models.MODELS)}")
        fields = models.model_class(name).CONFIG.model_fields
        unknown = {key: None for key in FROM_DATA if key in fields and settings.get(key) in (None, 0)}
        known = {key: value for key, value in settings.items() if key not in unknown}
        return {"name": name, **models.model_config(name, **known).model_dump(), **unknown}


def _check_combinations(recipe: Recipe) -> None:
    """Raises SettingError for faults that no single setting shows."""
    total = recipe.steps("total", num_examples=recipe.batch_size)
    if total is None:
        raise SettingError("total_epochs", None, "set it, or total_steps or total_samples")
    for name in ("evaluate_every", "checkpoint_every"):
        recipe.steps(name, num_examples=recipe.batch_size)
    if recipe.batch_size % recipe.accumulation_steps:
        remedy = f"must divide batch_size {recipe.batch_size}"
        raise SettingError("accumulation_steps", recipe.accumulation_steps, remedy)
    group = recipe.model.get("bn_group_size")
    if group and recipe.part_size % group:
        raise SettingError(
            "model.bn_group_size",
            group,
            f"must divide the {recipe.part_size} examples of a part (batch_size {recipe.batch_size} /"
            f" accumulation_steps {recipe.accumulation_steps})",
        )
    with within("optimizer"):
        optim.make_optimizer(learning_rate=0.1, **recipe.optimizer.model_dump())
    with within("schedule"):
        recipe.schedule.build(batch_size=recipe.batch_size, num_examples=recipe.batch_size, total_steps=total)


def from_record(values: Mapping[str, Any]) -> Recipe:
    """The recipe of a config.json, of this version or an older one.

    Settings that it lacks take their defaults, or those of `BEFORE`; renamed ones go through `RENAMED`.

    Raises:
      SettingError: if it is no recipe.
    """
    today = _rename(values)
    if isinstance(data := today.get("data"), Mapping) and "image_size" in data:
        today["data"] = BEFORE | data
    return parse(today)


def _rename(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return {
        RENAMED.get(prefix + key, key): _rename(value, f"{key}.") if isinstance(value, Mapping) else value
        for key, value in values.items()
    }


def read(directory: pathlib.Path) -> Recipe:
    """The recipe of the run in a working directory.

    Raises:
      UserError: if there is no run, or its config.json is no recipe.
    """
    values = workdir.read_config(directory)
    try:
        return from_record(values)
    except SettingError as error:
        raise UserError(
            f"{directory / workdir.CONFIG}: is no recipe ({error}); restore the file or use the version that wrote"
            " it"
        ) from None


def differences(new: Recipe, old: Recipe, *, strict: tuple[str, ...] = ()) -> list[tuple[str, Any, Any]]:
    """(setting, new value, old value) of the settings that differ and decide the weights.

    Settings that are free (see `settings.setting`) are left out, except those whose names begin with one of
    `strict`. The length of the run is free, unless the learning rate depends on it (the cosine schedule).
    """
    new_values, old_values = _flatten(new.model_dump()), _flatten(old.model_dump())
    free = {
        prefix + name
        for prefix, section in _sections(new.model_name).items()
        for name, field in section.model_fields.items()
        if is_free(field)
    }
    strict = (*strict, "total_") if new.schedule.name == "cosine" else strict
    return [
        (key, new_values.get(key), old_values.get(key))
        for key in sorted(new_values.keys() | old_values.keys())
        if new_values.get(key) != old_values.get(key) and (key not in free or key.startswith(strict))
    ]


def _sections(model: str) -> dict[str, type[Section]]:
    """The sections of recipes for a model, by what stands before the names of their settings, such as "data."."""
    cls = models.model_class(model)
    defaults = {name: field.default for name, field in Recipe.model_fields.items()}
    sections = {"model": cls.CONFIG, **INPUTS[cls.INPUTS].SETTINGS}
    sections |= {name: type(section) for name, section in defaults.items() if isinstance(section, Section)}
    return {"": Recipe} | {f"{name}.": section for name, section in sections.items()}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def default_config(model: str) -> ConfigDict:
    """Every setting with its default, from which recipes start; the evaluation is that of the model's paper."""
    cls = models.model_class(model)
    modality = INPUTS[cls.INPUTS]
    sections = {name: to_config_dict(section) for name, section in modality.SETTINGS.items()}
    sections["data"].update(modality.data_defaults(cls.PREPROCESSING))
    network = to_config_dict(models.model_config(model))
    for name in set(FROM_DATA) & set(network):
        del network[name]
        network[name] = placeholder(int)
    network.name = model
    config = to_config_dict(Recipe, **sections, model=network)
    for name in {"data", "augment"} - set(sections):
        del config[name]
    return config


def small_settings(model: str) -> dict[str, Any]:
    """Settings that make a model train in seconds, for smoke tests."""
    return dict(models.model_class(model).SMALL)


def settings_table(model: str) -> list[Row]:
    """A row for each setting of recipes for a model, with names as after --config."""
    defaults = _flatten(default_config(model).to_dict())
    return [
        row._replace(name=name, default=repr(defaults[name]))
        for prefix, section in _sections(model).items()
        for row in table(section)
        if (name := prefix + row.name) in defaults  # not the sections themselves, such as "data"
    ]
