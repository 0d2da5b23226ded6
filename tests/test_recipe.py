"""Recipes: the shipped ones are valid, defaults and old records hold, every mistake is one clear line."""

import dataclasses
import importlib
import json
import pathlib
import pickle
import re
import shlex
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from PIL import Image

from configs import common
from xception_jax import loop, optim, sharding, task
from xception_jax.commands import command_line
from xception_jax.data.images.augment import Augmentation
from xception_jax.data.images.inputs import ImageData
from xception_jax.errors import SettingError, UserError
from xception_jax.models import MODELS, create_model, model_class, model_config
from xception_jax.models.xception import Xception
from xception_jax.recipe import Recipe, default_config, differences, from_record, parse, read, settings_table
from xception_jax.run import workdir

OTHERS = ("common", "reproduction")
RECIPES = sorted(p.stem for p in pathlib.Path(common.__file__).parent.glob("*.py") if p.stem not in OTHERS)
GOLDEN = pathlib.Path(__file__).parent / "golden"
MISSING = object()

# The settings that version 0.1 let a continuation change, from its own list.
FREE = (
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
    "mesh.model",
    "model.implementation",
    "model.remat",
    "model.scan_middle",
    # Of texts.
    "data.embeddings",
    "data.eval_root",
    "data.vocabulary",
    "model.unroll",
)


def values(**changes):
    """A valid recipe as plain dictionaries, with changes like {"model.dropout": 0.3}; MISSING removes a key."""
    name = changes.get("model.name")
    tree = common.default(name if name in MODELS else "xception").to_dict()
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
    """Leaves of nested dictionaries by their dotted names."""
    leaves = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves


def learning_rate(recipe, num_examples):
    """The recipe's schedule on a training set of that size."""
    total = recipe.steps("total", num_examples)
    return recipe.schedule.build(batch_size=recipe.batch_size, num_examples=num_examples, total_steps=total)


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
        rate = learning_rate(recipe, 1_743_042)
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
    rate = learning_rate(recipe, 1_281_167)
    firsts = [int(np.ceil(epoch * 1_281_167 / recipe.batch_size)) for epoch in epochs]
    rates = [float(rate(step)) for start in firsts for step in (start - 1, start)]
    expected = [first * factor**power for power in (0, 1, 1, 2, 2, 3)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_an_unknown_variant_is_refused(name):
    with pytest.raises(ValueError, match=r"'smok'.*:smoke"):
        importlib.import_module(f"configs.{name}").get_config("smok")


IMAGE_MODELS = [name for name in MODELS if model_class(name).INPUTS == "images"]


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_the_config_of_every_model_has_the_defaults_of_its_sections(name):
    record = model_class(name).PREPROCESSING
    evaluation = {f"eval_{key}": record[key] for key in ("crop", "crop_fraction", "resize")}
    expected = {
        "model": {"name": name} | model_config(name).model_dump() | {"num_classes": None, "in_channels": None},
        "data": ImageData().model_dump() | {"image_size": record["image_size"]} | evaluation,
        "augment": Augmentation().model_dump(),
        "optimizer": optim.Optimizer().model_dump(),
        "schedule": optim.Schedule().model_dump(),
        "averaging": optim.Averaging().model_dump(),
        "mesh": sharding.MeshShape().model_dump(),
    }
    others = {key: field.default for key, field in Recipe.model_fields.items() if key not in expected}
    assert len(others) == 15
    assert default_config(name).to_dict() == expected | others


@pytest.mark.parametrize("name", MODELS)
def test_a_default_config_comes_out_as_it_went_in(name):
    config = default_config(name)
    config.total_steps, config.schedule.decay_every_steps = 5, 2.0
    assert parse(config).model_dump() == {"augment": None} | config.to_dict()  # texts have no augmentation


@pytest.mark.parametrize("name", MODELS)
def test_the_table_names_every_setting_once_and_says_what_it_means(name):
    rows = settings_table(name)
    names = [row.name for row in rows]
    recipe = parse(values(**{"model.name": name}))
    assert {*names, "model.name"} == set(flat(recipe.model_dump())) - {"augment"} and len(set(names)) == len(names)
    assert [row.name for row in rows if not (row.meaning.strip() and row.values and row.default)] == []


def test_the_table_has_types_ranges_and_defaults():
    rows = {row.name: (row.values, row.default) for row in settings_table("xception")}
    expected = {
        "batch_size": ("int > 0", "32"),
        "total_epochs": ("float > 0 or None", "None"),
        "model.exit_widths": ("tuple of int", "(1024, 1536, 2048)"),
        "data.eval_crop": ("'central', 'shorter_side'", "'central'"),
        "augment.hue": ("float >= 0, <= 0.5", "0.0"),
        "optimizer.momentum": ("float >= 0, < 1 or None", "None"),
    }
    assert {name: rows[name] for name in expected} == expected


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_the_smoke_variant_of_every_model_fits_32_pixels(name):
    config = common.default(name)
    config.schedule.decay_every_epochs = 2.0
    recipe = parse(common.smoke(config))
    settings = recipe.model_settings | {"num_classes": 10, "in_channels": 3}
    pixels = recipe.data.image_size
    logits = nnx.eval_shape(lambda: create_model(name, **settings)(jnp.zeros((2, pixels, pixels, 3))))
    assert pixels == 32 and logits.shape == (2, 10)


def test_a_preset_replaces_the_settings_of_the_evaluation():
    record = Xception.PREPROCESSING
    assert parse(values()).data.evaluation == {key: record[key] for key in ("crop", "crop_fraction", "resize")}
    recipe = parse(values(**{"data.eval_preset": "timm", "data.eval_resize": "area"}))
    expected = {"crop": "shorter_side", "crop_fraction": 0.897, "resize": "pillow_bicubic"}
    assert recipe.data.evaluation == expected


def test_augmentation_mirrors_images_unless_told_otherwise():
    assert parse(values()).augment == Augmentation(flip=True) and Augmentation().flip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name, tmp_path):
    recipe = parse(importlib.import_module(f"configs.{name}").get_config())
    workdir.write_config(tmp_path, recipe.model_dump())
    again = read(tmp_path)
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
        ({"data": 5}, ["config.data = 5", "dictionary"]),
        ({"model": 5}, ["config.model = 5", "dictionary"]),
        ({"augment": None}, ["config.augment = None", "dictionary"]),
        ({"optimizer": 5}, ["config.optimizer = 5", "dictionary"]),
        ({"schedule.base_lr": float("nan")}, ["config.schedule.base_lr", "nan", "finite"]),
        ({"schedule.base_lr": float("inf")}, ["config.schedule.base_lr", "inf", "finite"]),
        ({"schedule.factors": (0.1, -1.0)}, ["config.schedule.factors.1", "-1.0", "greater than 0"]),
        ({"optimizer.clip_norm": "big"}, ["config.optimizer.clip_norm", "'big'", "number"]),
        ({"optimizer.name": "sdg"}, ["config.optimizer.name", "'sdg'", "'sgd'", "'rmsprop_keras1'"]),
        ({"data.train_resize": "bilinar"}, ["config.data.train_resize", "'bilinar'", "'bilinear'"]),
        ({"data.eval_preset": "slimm"}, ["config.data.eval_preset", "'slimm'", "'slim'"]),
        ({"augment.color": "sepia"}, ["config.augment.color", "'sepia'", "'jitter'"]),
        ({"augment.hue": 0.7}, ["config.augment.hue", "0.7", "less than or equal to 0.5"]),
        ({"batch_sise": 32}, ["config.batch_sise", "did you mean 'batch_size'"]),
        ({"optimizer.epsilom": 1.0}, ["config.optimizer.epsilom", "did you mean 'epsilon'"]),
        ({"model.dropuot": 0.1}, ["config.model.dropuot", "did you mean 'dropout'"]),
        ({"data.xyzzy": 1}, ["config.data.xyzzy", "remove it"]),
        ({"model.name": MISSING}, ["config.model.name", "missing", "xception"]),
        ({"total_steps": 100}, ["config.total_steps = 100", "total_epochs is set too", "keep one"]),
        (
            {"schedule.decay_every_samples": 9.0},
            ["config.schedule.decay_every_epochs = 2.0", "decay_every_samples is set too", "keep one"],
        ),
        (
            {"schedule.warmup_steps": 5.0, "schedule.warmup_epochs": 1.0},
            ["config.schedule.warmup_steps = 5.0", "warmup_epochs is set too", "keep one"],
        ),
        (
            {"evaluate_every_steps": 5, "evaluate_every_epochs": 1.0},
            ["config.evaluate_every_steps = 5", "evaluate_every_epochs is set too", "keep one"],
        ),
        ({"total_epochs": None}, ["config.total_epochs = None", "set it", "total_steps", "total_samples"]),
        ({"total_epochs": 0.0}, ["config.total_epochs = None", "set it", "total_steps", "total_samples"]),
        ({"total_epochs": -3.0}, ["config.total_epochs", "-3.0", "greater than 0"]),
        ({"accumulation_steps": 5}, ["config.accumulation_steps = 5", "must divide", "32"]),
        ({"model.bn_group_size": 12}, ["config.model.bn_group_size = 12", "must divide", "32"]),
        (
            {"model.bn_group_size": 16, "accumulation_steps": 4},
            ["config.model.bn_group_size = 16", "must divide the 8 examples"],
        ),
        (
            {"optimizer.name": "rmsprop_keras1", "optimizer.momentum": 0.9},
            ["config.optimizer.momentum = 0.9", "'rmsprop_keras1' has no momentum", "None"],
        ),
        ({"mesh.model": 0}, ["config.mesh.model", "0", "greater than 0"]),
        ({"optimizer.replicas": 0}, ["config.optimizer.replicas = 0", "greater than or equal to 1"]),
        ({"optimizer.epsilon": 1.0}, ["config.optimizer.epsilon = 1.0", "'sgd' has no epsilon", "None"]),
        (
            {"optimizer.weight_decay_paths": "(a"},
            ["config.optimizer.weight_decay_paths", "'(a'", "regular expression"],
        ),
        ({"schedule.name": "piecewise"}, ["config.schedule.boundaries_epochs = ()", "'piecewise' needs"]),
        (
            {"schedule.name": "piecewise", "schedule.boundaries_epochs": (1.0, 2.0), "schedule.factors": (0.1,)},
            ["config.schedule.factors = (0.1,)", "'piecewise' needs a factor", "2 boundaries"],
        ),
        (
            {"schedule.decay_every_epochs": None},
            ["config.schedule.decay_every_epochs = None", "'exponential'", "decay_every_samples"],
        ),
        ({"model.name": "resnet"}, ["config.model.name", "'resnet'", "xception"]),
        ({"model.dropout": 1.5}, ["config.model.dropout", "1.5", "less than 1"]),
        ({"model.num_classes": "ten"}, ["config.model.num_classes", "'ten'", "integer"]),
        ({"model.intermediate_activation": "gelu"}, ["config.model.intermediate_activation", "'gelu'", "'elu'"]),
        ({"model.exit_widths": (8, 8, 0)}, ["config.model.exit_widths.2 = 0", "greater than 0"]),
        ({"model.stem_widths": (8,)}, ["config.model.stem_widths = (8,)", "too few values"]),
        ({"model.name": "vgg16", "model.bn_momentum": 0.5}, ["config.model.bn_momentum = 0.5", "remove it"]),
        ({"optimizer.momentum": 1.0}, ["config.optimizer.momentum = 1.0", "less than 1"]),
        ({"averaging.decay": 1.0}, ["config.averaging.decay = 1.0", "less than 1"]),
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
        ({}, "evaluate_every", None),
        ({"total_epochs": None, "total_samples": 48}, "total", 1.5),
        ({"total_epochs": 0.0, "total_steps": 99}, "total", 99.0),
        ({"checkpoint_every_steps": 7}, "checkpoint_every", 7.0),
    ],
)
def test_durations_in_steps_of_the_batch(changes, name, steps):
    assert parse(values(**changes)).steps(name, num_examples=1280) == steps


def test_durations_of_the_schedule_in_steps():
    section, sizes = parse(values()).schedule, {"batch_size": 32, "num_examples": 1280}
    assert [optim.to_steps(section, name, **sizes) for name in ("decay_every", "warmup")] == [80.0, None]


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
    rate = jax.jit(learning_rate(recipe, 1280))
    np.testing.assert_allclose([rate(jnp.int32(step)) for step in expected], [*expected.values()], rtol=1e-6)


def other_value(value, choices):
    """Another value for a setting, which its row of the table allows."""
    literals = re.findall(r"'(\w+)'", choices)
    if literals:
        return next(literal for literal in literals if literal != value)
    if value is None:
        return {"int": 4, "float": 0.5, "str": "elsewhere"}[choices.split()[0]]
    if isinstance(value, tuple):
        return (*value, value[-1]) if value else {"int": (7,), "float": (1.5,)}[choices.split()[-1]]
    if isinstance(value, bool | str):
        return not value if isinstance(value, bool) else value + "2"
    return value + 1 if isinstance(value, int) else value / 2 + 0.01


def replace(recipe, name, value):
    """The recipe with another value for a setting, without the checks of combinations."""
    section, _, key = name.rpartition(".")
    if section == "model":
        return recipe.model_copy(update={"model": recipe.model | {key: value}})
    if section:
        value, key = getattr(recipe, section).replace(**{key: value}), section
    return recipe.model_copy(update={key: value})


@pytest.mark.parametrize("name", MODELS)
def test_a_continuation_may_change_the_settings_that_do_not_decide_the_weights(name):
    recipe = parse(values(**{"model.name": name}))
    leaves, free = flat(recipe.model_dump()), set()
    for row in settings_table(name):
        new = other_value(leaves[row.name], row.values)
        found = differences(replace(recipe, row.name, new), recipe)
        assert found in ([], [(row.name, new, leaves[row.name])])
        free |= {row.name} if not found else set()
    assert free == set(FREE) & leaves.keys()


def test_free_settings_can_be_held_too():
    """As a comparison of two networks wants it, whose implementations should be the same."""
    old = parse(values())
    new = replace(replace(old, "mesh.model", 2), "model.remat", True)
    assert differences(new, old) == [] and differences(new, old, strict=("mesh",)) == [("mesh.model", 2, 1)]
    held = differences(new, old, strict=("model.", "mesh."))
    assert held == [("mesh.model", 2, 1), ("model.remat", True, False)]


def test_settings_of_other_models_differ():
    new, old = parse(values(**{"model.name": "vgg16"})), parse(values())
    assert ("model.name", "vgg16", "xception") in differences(new, old)
    assert ("model.stages", new.model["stages"], None) in differences(new, old)
    assert ("model.residual", None, True) in differences(new, old)


def test_the_length_of_a_cosine_decides_the_weights():
    cosine = {"schedule.name": "cosine"}
    new = parse(values(**cosine, total_epochs=20.0))
    assert differences(new, parse(values(**cosine))) == [("total_epochs", 20.0, 10.0)]
    new = parse(values(**cosine, total_epochs=None, total_steps=5))
    assert differences(new, parse(values(**cosine))) == [("total_epochs", None, 10.0), ("total_steps", 5, None)]


def golden_record(name):
    """The config.json that version 0.1 wrote for a run."""
    with tarfile.open(GOLDEN / f"v0.1_{name}_finished.tar.xz") as archive:
        return json.load(archive.extractfile(f"{name}/config.json"))


# What each run of version 0.1 had set itself, in today's names; all else were the defaults of that version.
SET = {
    "xception_digits": {
        "batch_size": 16,
        "eval_batch_size": 90,
        "total_steps": 6,
        "evaluate_every_steps": 2,
        "log_every_steps": 1,
        "checkpoints_to_keep": 1,
        "model.num_classes": 10,
        "model.in_channels": 1,
        "model.stem_widths": (2, 3),
        "model.stem_strides": (1, 1),
        "model.stem_padding": "SAME",
        "model.entry_widths": (4,),
        "model.middle_blocks": 0,
        "model.exit_widths": (4, 5, 6),
        "model.bn_momentum": 0.9,
        "data.image_size": 8,
        "data.train_crop": "pad",
        "data.pad_pixels": 2,
        "data.eval_crop_fraction": 1.0,
        "augment.flip": False,
        "schedule.reference_batch": 32,
        "schedule.decay_every_epochs": 2.0,
        "averaging.decay": 0.99,
    },
    "vgg_multilabel": {
        "batch_size": 16,
        "eval_batch_size": 128,
        "total_steps": 6,
        "evaluate_every_steps": 2,
        "log_every_steps": 1,
        "checkpoints_to_keep": 1,
        "model.num_classes": 10,
        "model.in_channels": 1,
        "model.stages": ((4,), (6,)),
        "data.name": "digits_multilabel",
        "data.image_size": 16,
        "data.train_crop": "none",
        "augment.flip": False,
        "optimizer.name": "rmsprop_keras1",
        "optimizer.replicas": 2,
        "schedule.base_lr": 0.001,
        "schedule.lr_rule": "none",
        "schedule.decay_every_samples": 64.0,
        "averaging.decay": None,
    },
}


class TestRecordsOfVersion01:
    @pytest.mark.parametrize("name", SET)
    def test_every_setting_is_read(self, name):
        """So the defaults are still those of version 0.1, but for the background of transparent images."""
        recipe = from_record(golden_record(name))
        expected = flat(default_config(recipe.model_name).to_dict()) | {"data.background": "black"} | SET[name]
        assert flat(recipe.model_dump()) == expected

    def test_other_settings_than_the_background_take_their_defaults_where_it_lacks_them(self):
        record = golden_record("xception_digits")
        assert not {"background", "channel_order", "label_offset"} & record["data"].keys()
        data = from_record(record).data
        assert (data.background, data.channel_order, data.label_offset) == ("black", "rgb", 0)

    @pytest.mark.parametrize("name, changed", [("averaging", "polyak"), ("optimizer", "optimizer")])
    def test_renamed_settings_keep_their_values(self, name, changed):
        record = golden_record("vgg_multilabel")
        old = {key: value for key, value in record[changed].items() if key != "workers"}
        found = getattr(from_record(record), name).model_dump()
        assert {key: found[key] for key in old} == old
        assert "polyak" not in from_record(record).model_dump() and "workers" not in found

    def test_todays_record_is_read_as_it_is(self):
        recipe = parse(values(**{"averaging.decay": 0.5, "optimizer.replicas": 3, "data.background": "white"}))
        assert from_record(json.loads(json.dumps(recipe.model_dump()))) == recipe

    @pytest.mark.parametrize("section", ["augment", "optimizer", "polyak", "mesh"])
    def test_a_missing_section_is_completed(self, section):
        record = golden_record("xception_digits")
        whole = from_record(record)
        del record[section]
        name = {"polyak": "averaging"}.get(section, section)
        found = from_record(record)
        default = {"augment": Augmentation(), "averaging": optim.Averaging(decay=0.9999, warmup=True)}
        default |= {"optimizer": optim.Optimizer(name="sgd", replicas=1), "mesh": sharding.MeshShape(model=1)}
        assert getattr(found, name) == default[name]
        assert found.replace(**{name: getattr(whole, name)}) == whole

    def test_missing_settings_are_completed(self):
        record = golden_record("xception_digits")
        whole = flat(from_record(record).model_dump())
        for name in ("data.max_unreadable", "model.scan_middle", "weighted_loss", "schedule.end_fraction"):
            *path, key = name.split(".")
            del (record[path[0]] if path else record)[key]
        assert flat(from_record(record).model_dump()) == whole

    def test_what_is_no_recipe_is_one_line_with_the_file(self, tmp_path):
        record = golden_record("xception_digits")
        record["optimizer"]["wrokers"] = 3
        workdir.write_config(tmp_path, record)
        with pytest.raises(
            UserError, match=r"config\.json: is no recipe \(config\.optimizer\.wrokers = 3: .*restore"
        ):
            read(tmp_path)


class TestSettingErrors:
    @pytest.mark.parametrize(
        "changes, setting, value, remedy",
        [
            ({"batch_size": 0}, "config.batch_size", 0, "greater than 0"),
            ({"schedule.factors": (0.1, -1.0)}, "config.schedule.factors.1", -1.0, "greater than 0"),
            ({"model.exit_widths": (8, 0, 8)}, "config.model.exit_widths.1", 0, "greater than 0"),
            ({"augment.hue": 0.7}, "config.augment.hue", 0.7, "less than or equal to 0.5"),
            ({"data.name": 3}, "config.data.name", 3, "string"),
            ({"model.name": "vgg19"}, "config.model.name", "vgg19", "vgg16"),
            ({"optimizer.decay": 0.5}, "config.optimizer.decay", 0.5, "set it to None"),
        ],
    )
    def test_it_has_setting_value_and_remedy(self, changes, setting, value, remedy):
        with pytest.raises(SettingError) as caught:
            parse(values(**changes))
        error = caught.value
        assert (error.setting, error.value) == (setting, value) and remedy in error.remedy
        assert str(error) == f"{setting} = {value!r}: {error.remedy}"
        assert isinstance(error, UserError) and isinstance(error, ValueError)

    def test_it_can_be_pickled(self):
        """Worker processes send their errors this way."""
        with pytest.raises(SettingError) as caught:
            parse(values(**{"data.image_size": 0}))
        error = pickle.loads(pickle.dumps(caught.value))
        assert type(error) is SettingError and str(error) == str(caught.value)
        assert (error.setting, error.value, error.remedy) == ("config.data.image_size", 0, caught.value.remedy)


SMALL = {"model.entry_widths": (8,), "model.middle_blocks": 0, "data.image_size": 40}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data.min_area": 0.9, "data.max_area": 0.5}, ["config.data.min_area = 0.9", "max_area = 0.5"]),
        ({"data.min_aspect": 2.0}, ["config.data.min_aspect = 2.0", f"max_aspect = {4 / 3}"]),
        ({"augment.color": "jitter"}, ["config.augment.color = 'jitter'", "digits", "set it to none"]),
        ({"data.root": "/data"}, ["config.data.root = '/data'", "'digits'", "None"]),
        ({"data.name": "digit"}, ["config.data.name = 'digit'", "did you mean 'digits'"]),
        ({"data.image_size": 4}, ["config.data.image_size = 4", "at least", "stem_padding"]),
        ({"model.num_classes": 7}, ["config.model.num_classes = 7", "(digits) has 10; pass"]),
        ({"model.in_channels": 3}, ["config.model.in_channels = 3", "(digits) has 1; pass"]),
        (
            {"model.num_classes": 10, "data.label_offset": 1},
            ["config.model.num_classes = 10", "has 11", "--config.model.num_classes=11"],
        ),
        (
            {"data.name": "digits_multilabel", "label_smoothing": 0.1},
            ["config.label_smoothing = 0.1", "digits_multilabel has several", "--config.label_smoothing=0"],
        ),
    ],
    ids=lambda x: ", ".join(x) if isinstance(x, dict) else "",
)
def test_what_does_not_fit_the_data_is_one_line_before_anything_is_computed(changes, words):
    with pytest.raises(SettingError) as error:
        task.build(parse(values(**SMALL | changes)))
    message = str(error.value)
    assert "\n" not in message and [word for word in words if word not in message] == [], message


def test_encoded_images_have_three_channels(tmp_path):
    for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (40, 40)).save(tmp_path / name)
    folder = {"data.name": "folder", "data.root": str(tmp_path), "data.holdout": 0.5}
    with pytest.raises(SettingError, match=r"config\.model\.in_channels = 1: .* has 3; pass"):
        task.build(parse(values(**SMALL | folder | {"model.in_channels": 1})))


def test_outputs_that_stand_for_no_class_come_on_top_of_the_datas_classes():
    built = task.build(parse(values(**SMALL | {"data.label_offset": 1})))
    assert built.recipe.model["num_classes"] == built.objective.num_classes == 11
    assert built.objective.label_offset == built.inputs.label_offset == 1


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"batch_size": 33}, ["config.batch_size = 33", "mixed", "even", "a multiple of 2"]),
        (
            {"batch_size": 6, "accumulation_steps": 2},
            ["batch_size = 6", "= 3 must be even", "multiple of 4"],
        ),
        (
            {"batch_size": 60, "accumulation_steps": 2, "model.bn_group_size": 15},
            ["config.model.bn_group_size = 15", "mixed", "even"],
        ),
    ],
    ids=lambda x: ", ".join(x) if isinstance(x, dict) else "",
)
def test_pairs_of_mixed_images_must_not_be_separated(changes, words):
    built = task.build(parse(values(**SMALL | {"augment.mixup_alpha": 0.2} | changes)))
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1], axis_types=(AxisType.Auto,))
    with pytest.raises(SettingError) as error:
        loop.make_training(dataclasses.replace(built, layout=sharding.Layout(mesh, 10)))
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)


@pytest.mark.filterwarnings("ignore:the load_module")  # which ml_collections calls
class TestRemedies:
    """What a message says to pass is what the command line takes."""

    @pytest.fixture
    def read_flags(self, tmp_path):
        """read_flags(model, settings, flags) -> the config of a file with these settings, after the flags."""

        def read_flags(model, settings, flags):
            file = tmp_path / "recipe.py"
            file.write_text(
                "from configs import common\n\n\n"
                "def get_config():\n"
                f"    config = common.default({model!r})\n"
                f"    config.update_from_flattened_dict({settings!r})\n"
                "    return config\n"
            )
            return command_line.read_config([f"--config={file}", *flags], example="")

        return read_flags

    @pytest.mark.parametrize("name", ["xception", "resnet50", "vgg16"])
    @pytest.mark.parametrize("back", [False, True], ids=["away", "back"])
    def test_every_setting_can_be_written_as_messages_show_it(self, name, back, read_flags):
        old = {key: value for key, value in flat(default_config(name).to_dict()).items() if key != "model.name"}
        new = {row.name: other_value(old[row.name], row.values) for row in settings_table(name)}
        start, end = (new, old) if back else (old, new)
        config = read_flags(name, start, [f"--config.{key}={value}" for key, value in end.items()])
        found = flat(config.to_dict())
        assert {key: (found[key], end[key]) for key in end if repr(found[key]) != repr(end[key])} == {}

    @pytest.mark.parametrize(
        "changes",
        [
            {"optimizer.momentum": 0.5},
            {"data.eval_preset": "slim"},
            {"data.train_split": "train[:9]"},
            {"model.segments": 1},
            {"model.exit_widths": (8, 16, 24)},
            {"model.fc_layers": (10,)},
            {"model.residual": False},
            {"model.intermediate_activation": "elu"},
            {"averaging.decay": 0.0},
            {"schedule.base_lr": 1e-5},
            {"schedule.name": "piecewise", "schedule.boundaries_epochs": (1.0,), "schedule.factors": (0.5,)},
            {"optimizer.weight_decay_paths": "^entry/.*(kernel|bias)$"},
            {"model.name": "vgg16", "model.stages": ((8,), (8, 16)), "model.image_size": 32},
        ],
        ids=", ".join,
    )
    @pytest.mark.parametrize("back", [False, True], ids=["away", "back"])
    def test_the_flags_that_continue_a_run_do(self, changes, back, read_flags, tmp_path):
        """A message may name one setting at a time, or all of them."""
        model = changes.get("model.name", "xception")
        length = {"total_epochs": 10.0, "schedule.decay_every_epochs": 2.0}
        start, end = length, length | {key: value for key, value in changes.items() if key != "model.name"}
        start, end = (end, start) if back else (start, end)
        directory = tmp_path / "run"
        (directory / "checkpoints" / "1").mkdir(parents=True)
        workdir.write_config(directory, parse(read_flags(model, end, [])).model_dump())
        flags = []
        while True:
            recipe = parse(read_flags(model, start, flags))
            if not differences(recipe, read(directory)):
                break
            with pytest.raises(UserError) as error, loop.open_workdir(directory, recipe):
                pass
            flags += shlex.split(re.search(r"pass (--config.*) to continue it", str(error.value))[1])
            assert len(flags) <= len(changes)
        with loop.open_workdir(directory, recipe):
            assert flags

    @pytest.mark.parametrize(
        "changes",
        [
            {"model.num_classes": 7},
            {"model.in_channels": 3},
            {"data.name": "digits_multilabel", "label_smoothing": 0.1},
        ],
        ids=", ".join,
    )
    def test_the_flags_that_fit_the_data_do(self, changes, read_flags):
        settings = SMALL | {"total_steps": 3, "schedule.decay_every_steps": 1.0} | changes
        with pytest.raises(SettingError) as error:
            task.build(parse(read_flags("xception", settings, [])))
        (flag,) = re.findall(r"pass (--config\.\S+)$", str(error.value))
        task.build(parse(read_flags("xception", settings, [flag])))
