"""Recipes: the shipped ones are valid, the schema and configs/common.py agree, every mistake is one clear line."""

import dataclasses
import importlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import common
from xception_jax import recipe as recipe_lib
from xception_jax.data.images.augment import Augmentation
from xception_jax.errors import UserError
from xception_jax.models import MODELS, create_model
from xception_jax.models.xception import Config, Xception
from xception_jax.recipe import Recipe, differences, parse, to_json

OTHERS = ("common", "reproduction")
RECIPES = sorted(p.stem for p in pathlib.Path(common.__file__).parent.glob("*.py") if p.stem not in OTHERS)
MISSING = object()


def values(**changes):
    """A valid recipe as plain dictionaries, with changes like {"model.dropout": 0.3}; MISSING removes a key."""
    tree = common.default().to_dict()
    for name, value in ({"total_epochs": 10.0, "schedule.decay_every_epochs": 2.0} | changes).items():
        *path, key = name.split(".")
        section = tree
        for part in path:
            section = section[part]
        section[key] = value
        if value is MISSING:
            del section[key]
    return tree


def flat(tree, prefix=""):
    """Dotted names of the leaves of nested dictionaries."""
    names = set()
    for key, value in tree.items():
        names |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
    return names


def schema_names(schema=Recipe, prefix=""):
    """Dotted names of all settings a recipe of the paper's model has."""
    names = set()
    for key, field in schema.model_fields.items():
        if prefix + key == "model":
            names |= {"model.name", *(f"model.{f.name}" for f in dataclasses.fields(Config))}
        elif hasattr(field.annotation, "model_fields"):
            names |= schema_names(field.annotation, f"{prefix}{key}.")
        else:
            names.add(prefix + key)
    return names


@pytest.mark.parametrize("variant", ["", "smoke"])
@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_are_valid(name, variant):
    recipe = parse(importlib.import_module(f"configs.{name}").get_config(variant))
    assert recipe.model_name in MODELS
    if variant == "smoke":
        assert (recipe.batch_size, recipe.steps("total", 1437)) == (8, 4)


@pytest.mark.parametrize("name", ["jft_inception_v3", "jft_xception"])
def test_recipes_with_fully_connected_layers_differ_in_nothing_else(name):
    plain, connected = (importlib.import_module(f"configs.{n}").get_config() for n in (name, f"{name}_fc"))
    assert (plain.model.fc_layers, connected.model.fc_layers) == ((), (4096, 4096))
    plain.model.fc_layers = connected.model.fc_layers
    assert plain == connected


def test_the_experiment_of_section_4():
    """What sections 4.1 to 4.4 say of JFT, for both networks."""
    xception, inception = (
        parse(importlib.import_module(f"configs.jft_{n}").get_config()) for n in ("xception", "inception_v3")
    )
    assert (xception.optimizer.weight_decay, inception.optimizer.weight_decay) == (1e-5, 4e-5)
    assert inception.model["reading"] == "paper"
    for recipe in (xception, inception):
        assert recipe.optimizer.name.startswith("rmsprop") and recipe.optimizer.replicas == 1
        assert recipe.model["dropout"] == 0 and recipe.averaging.decay is not None and not recipe.weighted_loss
        rate = recipe_lib.make_schedule(recipe, num_examples=1_743_042)
        steps = 3_000_000 / recipe.batch_size
        expected = [0.001, 0.001, 0.0009, 0.00081]
        rates = [float(rate(step)) for step in (0, np.floor(steps), np.ceil(steps), np.ceil(2 * steps))]
        np.testing.assert_allclose(rates, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "first", "epochs", "factor"),
    [
        ("imagenet_vgg16", 0.01, (25, 45, 60), 0.1),
        ("imagenet_resnet152", 0.1, (30, 60, 90), 0.1),
        ("imagenet_xception", 0.045 * 2048 / 1920, (2, 4, 6), 0.94),
        ("imagenet_inception_v3", 0.045 * 2048 / 1920, (2, 4, 6), 0.94),
    ],
)
def test_the_learning_rate_falls_by_a_factor_at_each_of_these_epochs(name, first, epochs, factor):
    recipe = parse(importlib.import_module(f"configs.{name}").get_config())
    rate = recipe_lib.make_schedule(recipe, num_examples=1_281_167)
    firsts = [int(np.ceil(epoch * 1_281_167 / recipe.batch_size)) for epoch in epochs]
    rates = [float(rate(step)) for start in firsts for step in (start - 1, start)]
    expected = [first * factor**power for power in (0, 1, 1, 2, 2, 3)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_an_unknown_variant_is_refused(name):
    with pytest.raises(ValueError, match=r"'smok'.*:smoke"):
        importlib.import_module(f"configs.{name}").get_config("smok")


def test_common_names_every_setting_and_no_other():
    assert flat(common.default().to_dict()) == schema_names()


def test_common_has_the_papers_model():
    config, record = common.default().to_dict(), Xception.PREPROCESSING
    from_data = {"num_classes": None, "in_channels": None}
    assert config["model"] == {"name": "xception"} | dataclasses.asdict(Config()) | from_data
    recipe = parse(values())
    evaluation = {"crop": record.crop, "crop_fraction": record.crop_fraction, "resize": record.resize}
    assert (recipe.data.image_size, recipe.data.evaluation) == (record.image_size, evaluation)


@pytest.mark.parametrize("name", MODELS)
def test_common_has_every_model_as_its_own_defaults_are(name):
    from_data = dict.fromkeys(recipe_lib.FROM_DATA)
    expected = {"name": name} | dataclasses.asdict(MODELS[name].CONFIG()) | from_data
    config, record = common.default(name), MODELS[name].PREPROCESSING
    assert config.model.to_dict() == expected
    seen = config.data.image_size, config.data.eval_crop, config.data.eval_crop_fraction, config.data.eval_resize
    assert seen == (record.image_size, record.crop, record.crop_fraction, record.resize)


@pytest.mark.parametrize("name", MODELS)
def test_the_smoke_variant_of_every_model_fits_32_pixels(name):
    config = common.default(name)
    config.schedule.decay_every_epochs = 2.0
    recipe = parse(common.smoke(config))
    settings = recipe.model_settings | {"num_classes": 10, "in_channels": 3}
    pixels = recipe.data.image_size
    logits = nnx.eval_shape(lambda: create_model(name, **settings)(jnp.zeros((2, pixels, pixels, 3))))
    assert pixels == 32 and logits.shape == (2, 10)


def test_a_preset_replaces_the_settings_of_the_evaluation():
    recipe = parse(values(**{"data.eval_preset": "timm", "data.eval_resize": "area"}))
    expected = {"crop": "shorter_side", "crop_fraction": 0.897, "resize": "pillow_bicubic"}
    assert recipe.data.evaluation == expected


def test_common_augments_as_the_augmentation_does_by_itself():
    config = common.default().augment.to_dict()
    assert Augmentation(**config) == Augmentation(flip=True)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name):
    recipe = parse(importlib.import_module(f"configs.{name}").get_config())
    again = parse(json.loads(to_json(recipe)))
    assert again == recipe and differences(again, recipe) == []
    assert not any(isinstance(value, list) for value in again.model.values())


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"batch_size": "many"}, ["config.batch_size", "'many'", "integer"]),
        ({"batch_size": -4}, ["config.batch_size", "-4", "greater than 0"]),
        ({"batch_size": 32.5}, ["config.batch_size", "32.5", "integer"]),
        ({"seed": 2**32}, ["config.seed", "4294967296", "less than"]),
        ({"augment.flip": "perhaps"}, ["config.augment.flip", "'perhaps'", "boolean"]),
        ({"data": 5}, ["config.data", "5", "dictionary"]),
        ({"schedule.base_lr": float("nan")}, ["config.schedule.base_lr", "nan", "finite"]),
        ({"schedule.base_lr": float("inf")}, ["config.schedule.base_lr", "inf", "finite"]),
        ({"schedule.factors": (0.1, -1.0)}, ["config.schedule.factors.1", "-1.0", "greater than 0"]),
        ({"optimizer.clip_norm": "big"}, ["config.optimizer.clip_norm", "'big'", "number"]),
        ({"optimizer.name": "sdg"}, ["config.optimizer.name", "'sdg'", "'sgd'", "'rmsprop_keras1'"]),
        ({"data.train_resize": "bilinar"}, ["config.data.train_resize", "'bilinar'", "'bilinear'"]),
        ({"data.eval_preset": "slimm"}, ["config.data.eval_preset", "'slimm'", "'slim'"]),
        ({"data.min_area": 0.9, "data.max_area": 0.5}, ["config.data.min_area = 0.9", "max_area = 0.5"]),
        ({"augment.color": "sepia"}, ["config.augment.color", "'sepia'", "'jitter'"]),
        ({"augment.hue": 0.7}, ["config.augment.hue", "0.7", "less than or equal to 0.5"]),
        ({"augment.mixup_alpha": 0.2, "batch_size": 33}, ["config.batch_size = 33", "pairs", "even"]),
        (
            {
                "augment.mixup_alpha": 0.2,
                "batch_size": 60,
                "accumulation_steps": 2,
                "model.bn_group_size": 15,
            },
            ["config.model.bn_group_size = 15", "pairs", "even"],
        ),
        ({"batch_sise": 32}, ["config.batch_sise", "did you mean 'batch_size'"]),
        ({"optimizer.epsilom": 1.0}, ["config.optimizer.epsilom", "did you mean 'epsilon'"]),
        ({"model.dropuot": 0.1}, ["config.model.dropuot", "did you mean 'dropout'"]),
        ({"data.xyzzy": 1}, ["config.data.xyzzy", "remove it"]),
        ({"polyak.warmup": MISSING}, ["config.averaging.warmup", "missing", "configs/common.py"]),
        ({"model.name": MISSING}, ["config.model.name", "missing", "'xception'"]),
        ({"total_steps": 100}, ["total_steps = 100", "total_epochs = 10.0", "keep one"]),
        (
            {"schedule.decay_every_samples": 9.0},
            ["schedule.decay_every_samples = 9.0", "decay_every_epochs = 2.0", "keep one"],
        ),
        (
            {"schedule.warmup_steps": 5.0, "schedule.warmup_epochs": 1.0},
            ["schedule.warmup_steps = 5.0", "warmup_epochs = 1.0", "keep one"],
        ),
        (
            {"evaluate_every_steps": 5, "evaluate_every_epochs": 1.0},
            ["evaluate_every_steps = 5", "evaluate_every_epochs = 1.0", "keep one"],
        ),
        ({"total_epochs": None}, ["config.total_epochs", "total_steps", "total_samples", "set one"]),
        ({"total_epochs": 0.0}, ["config.total_epochs", "total_steps", "total_samples", "set one"]),
        ({"total_epochs": -3.0}, ["config.total_epochs", "-3.0", "greater than 0"]),
        ({"accumulation_steps": 5}, ["config.accumulation_steps = 5", "must divide", "32"]),
        ({"model.bn_group_size": 12}, ["config.model.bn_group_size = 12", "must divide", "32"]),
        (
            {"model.bn_group_size": 16, "accumulation_steps": 4},
            ["config.model.bn_group_size = 16", "must divide the 8 images"],
        ),
        (
            {"optimizer.name": "rmsprop_keras1", "optimizer.momentum": 0.9},
            ["config.optimizer.momentum = 0.9", "'rmsprop_keras1' has no momentum", "None"],
        ),
        ({"mesh.model": 0}, ["config.mesh.model", "0", "greater than 0"]),
        ({"optimizer.replicas": 0}, ["config.optimizer.replicas", "0", "greater than 0"]),
        ({"optimizer.epsilon": 1.0}, ["config.optimizer.epsilon = 1.0", "'sgd' has no epsilon", "None"]),
        (
            {"optimizer.weight_decay_paths": "(a"},
            ["config.optimizer.weight_decay_paths", "'(a'", "regular expression"],
        ),
        ({"schedule.name": "piecewise"}, ["config.schedule", "piecewise", "boundaries"]),
        (
            {"schedule.name": "piecewise", "schedule.boundaries_epochs": (1.0, 2.0), "schedule.factors": (0.1,)},
            ["config.schedule", "piecewise", "boundaries", "factors"],
        ),
        ({"schedule.decay_every_epochs": None}, ["config.schedule", "exponential", "decay_every_epochs"]),
        ({"model.name": "resnet"}, ["config.model.name", "'resnet'", "'xception'"]),
        ({"model.dropout": 1.5}, ["config.model.dropout", "1.5", "[0, 1)"]),
        ({"model.num_classes": "ten"}, ["config.model.num_classes", "'ten'", "integer"]),
        ({"model.intermediate_activation": "gelu"}, ["config.model.intermediate_activation", "'gelu'", "'elu'"]),
        ({"model.exit_widths": (8, 8, 0)}, ["config.model.exit_widths", "(8, 8, 0)", "above 0"]),
        ({"model.stem_widths": (8,)}, ["config.model.stem_widths"]),
    ],
    ids=lambda x: ", ".join(x) if isinstance(x, dict) else "",
)
def test_a_mistake_is_one_line_with_key_value_and_remedy(changes, words):
    with pytest.raises(UserError) as error:
        parse(values(**changes))
    message = str(error.value)
    assert "\n" not in message and message.startswith("config.")
    assert [word for word in words if word not in message] == [], message


def test_a_valid_recipe_comes_out_as_it_went_in():
    recipe = parse(values(**{"model.entry_widths": [8, 16, 24], "optimizer.momentum": 0.5}))
    assert recipe.model["entry_widths"] == (8, 16, 24)
    assert recipe.model_name == "xception" and "name" not in recipe.model_settings
    assert (recipe.optimizer.momentum, recipe.total_epochs, recipe.data.image_size) == (0.5, 10.0, 299)


@pytest.mark.parametrize(
    "changes, name, steps",
    [
        ({}, "total", 400.0),
        ({}, "schedule.decay_every", 80.0),
        ({}, "schedule.warmup", None),
        ({"total_epochs": None, "total_samples": 48}, "total", 1.5),
        ({"total_epochs": 0.0, "total_steps": 99}, "total", 99.0),
        ({"checkpoint_every_steps": 7}, "checkpoint_every", 7.0),
    ],
)
def test_durations_in_steps_of_the_batch(changes, name, steps):
    assert parse(values(**changes)).steps(name, num_examples=1280) == steps


@pytest.mark.parametrize(
    "schedule, expected",
    [
        (
            {"name": "piecewise", "boundaries_epochs": (1.0, 2.0), "factors": (0.1, 0.5)},
            {0: 0.2, 39: 0.2, 40: 0.02, 79: 0.02, 80: 0.01},
        ),
        ({"name": "cosine", "end_fraction": 0.5}, {0: 0.2, 200: 0.15, 400: 0.1}),
        ({"decay_rate": 0.5, "warmup_epochs": 0.1}, {0: 0.05, 3: 0.2, 79: 0.2, 80: 0.1}),
        ({"name": "constant", "lr_rule": "sqrt"}, {0: 0.4, 400: 0.4}),
    ],
    ids=lambda x: x.get("name"),
)
def test_the_schedule_of_a_recipe(schedule, expected):
    """40 steps an epoch, 400 in all; batch 32 where the rate 0.8 was tuned for 128."""
    changes = {f"schedule.{key}": value for key, value in schedule.items()}
    recipe = parse(values(**{"schedule.base_lr": 0.8, "schedule.reference_batch": 128} | changes))
    rate = jax.jit(recipe_lib.make_schedule(recipe, num_examples=1280))
    np.testing.assert_allclose([rate(jnp.int32(step)) for step in expected], [*expected.values()], rtol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"total_epochs": 20.0},
        {"total_epochs": None, "total_steps": 99},
        {"eval_batch_size": 7, "mesh.model": 4},
        {"data.root": "/elsewhere", "data.num_threads": 9, "data.num_workers": 3},
        {
            "log_every_steps": 1,
            "evaluate_every_epochs": 1.0,
            "checkpoint_every_steps": 4,
            "checkpoints_to_keep": 9,
        },
    ],
    ids=", ".join,
)
def test_what_does_not_decide_the_weights_may_change(changes):
    assert differences(parse(values(**changes)), parse(values())) == []


@pytest.mark.parametrize(
    "key, value",
    [
        ("seed", 1),
        ("batch_size", 64),
        ("accumulation_steps", 2),
        ("label_smoothing", 0.1),
        ("model.dropout", 0.1),
        ("model.exit_widths", (8, 8, 8)),
        ("data.name", "folder"),
        ("data.image_size", 64),
        ("data.eval_preset", "slim"),
        ("augment.flip", False),
        ("augment.mixup_alpha", 0.2),
        ("optimizer.name", "rmsprop_tf"),
        ("optimizer.momentum", 0.8),
        ("optimizer.replicas", 2),
        ("schedule.base_lr", 0.1),
        ("schedule.decay_every_epochs", 3.0),
        ("averaging.decay", None),
    ],
)
def test_what_decides_the_weights_may_not(key, value):
    old = values()
    for part in key.split("."):
        old = old[part]
    assert differences(parse(values(**{key: value})), parse(values())) == [(key, value, old)]


def test_the_length_of_a_cosine_decides_the_weights():
    cosine = {"schedule.name": "cosine"}
    new = parse(values(**cosine, total_epochs=20.0))
    assert differences(new, parse(values(**cosine))) == [("total_epochs", 20.0, 10.0)]
    new = parse(values(**cosine, total_epochs=None, total_steps=5))
    assert differences(new, parse(values(**cosine))) == [("total_epochs", None, 10.0), ("total_steps", 5, None)]
