"""Tests of every model: exact counts, the contract of a model, and errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.networks import (
    TINY,
    abstract,
    census,
    copies,
    distance,
    dotted,
    outcome,
    run,
    shapes,
    tiny,
    tiny_images,
)
from xception_jax.errors import SettingError
from xception_jax.layers import BatchNorm
from xception_jax.models import MODELS, ImageSizeError, create_model, model_class, model_config
from xception_jax.models.network import NormalizedConfig

WIDE = {"num_classes": 17_000}
DEEP = WIDE | {"fc_layers": (4096, 4096)}

# (model, settings, trainable parameters, batch statistics, multiply-adds of one image of the model's own size,
# shape of the features), computed from the papers' tables without this package. 22,855,952 and 23,626,728 are in
# table 3 of Chollet 2017; the counts of the other networks that Keras has equal Keras's.
CENSUS = [
    ("xception", {}, 22_855_952, 54_528, 8_357_403_496, (10, 10, 2048)),
    ("xception", WIDE, 55_639_952, 54_528, 8_390_171_496, (10, 10, 2048)),
    ("xception", {"fc_layers": (4096, 4096)}, 50_077_968, 54_528, 8_384_617_320, (10, 10, 2048)),
    ("xception", DEEP, 115_629_968, 54_528, 8_450_153_320, (10, 10, 2048)),
    ("xception", {"residual": False}, 21_878_880, 50_256, 8_125_858_664, (10, 10, 2048)),
    ("xception", {"intermediate_activation": "relu"}, 22_855_952, 54_528, 8_357_403_496, (10, 10, 2048)),
    ("xception", {"intermediate_activation": "elu"}, 22_855_952, 54_528, 8_357_403_496, (10, 10, 2048)),
    ("inception_v3", {}, 23_817_352, 34_432, 5_713_216_096, (8, 8, 2048)),
    ("inception_v3", WIDE, 56_601_352, 34_432, 5_745_984_096, (8, 8, 2048)),
    ("inception_v3", DEEP, 116_591_368, 34_432, 5_805_965_920, (8, 8, 2048)),
    ("inception_v3", {"reading": "paper"}, 23_626_728, 34_240, 5_623_817_312, (8, 8, 2048)),
    ("inception_v3", {"reading": "paper"} | WIDE, 56_410_728, 34_240, 5_656_585_312, (8, 8, 2048)),
    ("inception_v3", {"reading": "paper"} | DEEP, 116_400_744, 34_240, 5_716_567_136, (8, 8, 2048)),
    ("resnet50", {}, 25_583_592, 53_120, 3_857_973_248, (7, 7, 2048)),
    ("resnet50", {"use_bias": False}, 25_557_032, 53_120, 3_857_973_248, (7, 7, 2048)),
    ("resnet101", {}, 44_601_832, 105_344, 7_570_194_432, (7, 7, 2048)),
    ("resnet152", {}, 60_268_520, 151_424, 11_282_415_616, (7, 7, 2048)),
    ("vgg16", {}, 138_357_544, 0, 15_470_264_320, (7, 7, 512)),
    ("vgg16_separable", {}, 23_629_977, 30_722, 39_740_637_933, (9, 9, 1862)),
]


IMAGE_MODELS = {name for name in MODELS if model_class(name).INPUTS == "images"}


class TestCensus:
    def test_every_model_of_images_is_counted(self):
        assert {name for name, *_ in CENSUS} == IMAGE_MODELS

    @pytest.mark.parametrize(("name", "config", "params", "stats", "macs", "features"), CENSUS, ids=str)
    def test_counts(self, name, config, params, stats, macs, features):
        assert census(name, **config) == (params, stats, macs, features)


# resnet50 has no biases here, because a bias before batch normalization has no gradient.
CASES = {
    "xception": ("xception", {}),
    "xception, other settings": ("xception", {"residual": False, "segments": 3, "fc_layers": (7,)}),
    "inception_v3": ("inception_v3", {}),
    "inception_v3 of the paper": ("inception_v3", {"reading": "paper", "modules": (0, 0, 0), "fc_layers": (7,)}),
    "resnet50": ("resnet50", {"use_bias": False}),
    "vgg16": ("vgg16", {}),
    "vgg16_separable": ("vgg16_separable", {}),
}


@pytest.fixture(scope="module", params=[pytest.param(case, marks=pytest.mark.xdist_group(case)) for case in CASES])
def case(request):
    """(name of a model, settings), with XLA's implementation, which compiles in less time."""
    name, settings = CASES[request.param]
    return name, {"implementation": "xla"} | settings


class TestContract:
    def test_every_class_is_tried(self):
        assert {model_class(name) for name, _ in CASES.values()} == {model_class(name) for name in IMAGE_MODELS}

    def test_every_parameter_gets_a_gradient(self, case):
        name, settings = case
        for path, leaf in nnx.to_flat_state(outcome(tiny(name, **settings), tiny_images()).gradient):
            values = np.asarray(leaf[...])
            assert np.all(np.isfinite(values)) and np.any(values != 0), dotted(path)

    def test_batch_statistics_move_in_training_only(self, case):
        name, settings = case
        model = tiny(name, **settings)
        start, result = copies(model, nnx.BatchStat), outcome(model, tiny_images())
        np.testing.assert_equal(list(map(np.asarray, result.kept)), start)
        assert all(np.all(now != before) for now, before in zip(result.moved, start, strict=True))

    def test_evaluation_treats_every_image_by_itself(self, case):
        name, settings = case
        model, images = tiny(name, **settings), tiny_images()
        first, second = (outcome(model, batch).evaluation for batch in (images, images.at[4:].multiply(2.0)))
        np.testing.assert_array_equal(first[:4], second[:4])
        assert not np.allclose(first[4:], second[4:])

    def test_dropout_follows_its_key_in_training_only(self, case):
        name, settings = case
        first, again, other = (outcome(tiny(name, **settings), tiny_images(), seed) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first.training, again.training)
        assert not np.allclose(first.training, other.training)
        np.testing.assert_array_equal(first.evaluation, other.evaluation)

    def test_dropout_needs_a_key(self, case):
        name, settings = case
        assert shapes(name, tiny_images().shape, train=True, **settings | {"dropout": 0.0}).shape == (8, 5)
        with pytest.raises(ValueError, match="needs a PRNG key"):
            shapes(name, tiny_images().shape, train=True, **settings)

    def test_the_state_has_no_random_keys(self, case):
        name, settings = case

        def trained():
            model = create_model(name, **TINY[name] | settings)
            model(tiny_images(), train=True, key=jax.random.key(0))
            return model

        kinds = {type(leaf) for _, leaf in nnx.to_flat_state(nnx.state(nnx.eval_shape(trained)))}
        assert nnx.Param in kinds and not any(issubclass(kind, nnx.RngState) for kind in kinds)

    @pytest.mark.parametrize("name", TINY)
    def test_bfloat16_changes_the_computation_only(self, name):
        exact, rounded = (tiny(name, implementation="xla", dtype=dtype) for dtype in ("float32", "bfloat16"))
        for train in (False, True):
            features = nnx.eval_shape(lambda model, x, t=train: model.features(x, train=t), rounded, tiny_images())
            assert features.dtype == jnp.bfloat16
        logits, expected = (run(model, tiny_images()) for model in (rounded, exact))
        assert logits.dtype == jnp.float32
        assert {array.dtype for array in jax.tree.leaves(nnx.state(rounded))} == {jnp.dtype("float32")}
        assert 1e-4 < distance(logits, expected) < 0.05

    @pytest.mark.parametrize(
        "name", [name for name in TINY if issubclass(model_class(name).CONFIG, NormalizedConfig)]
    )
    def test_settings_of_batch_normalization_reach_every_layer(self, name):
        expected = {"bn_momentum": 0.7, "bn_epsilon": 0.01, "bn_group_size": 4}
        model = abstract(name, **TINY[name] | expected)
        norms = [node for _, node in nnx.iter_modules(model) if isinstance(node, BatchNorm)]
        assert {(norm.momentum, norm.epsilon, norm.group_size) for norm in norms} == {tuple(expected.values())}


COMMON_MISTAKES = {  # setting: (value, start of the message)
    "num_classes": (0, "num_classes = 0"),
    "in_channels": (0, "in_channels = 0"),
    "dropout": (1.0, "dropout = 1.0"),
    "fc_layers": ((8, 0), "fc_layers.1 = 0"),
    "implementation": ("fast", "implementation = 'fast'"),
    "dtype": ("float16", "dtype = 'float16'"),
    "bn_epsilon": (0.0, "bn_epsilon = 0.0"),
    "bn_momentum": (1.0, "bn_momentum = 1.0"),
    "bn_group_size": (-1, "bn_group_size = -1"),
}
MISTAKES = [
    ("xception", "dropout", -0.1, "dropout = -0.1: "),
    ("xception", "segments", -1, "segments = -1: "),
    ("xception", "stem_widths", (4, -1), "stem_widths.1 = -1: "),
    ("xception", "stem_strides", (0, 1), "stem_strides.0 = 0: "),
    ("xception", "entry_widths", (), "entry_widths = (): "),
    ("xception", "entry_widths", (8, 0), "entry_widths.1 = 0: "),
    ("xception", "exit_widths", (10, 0, 14), "exit_widths.1 = 0: "),
    ("xception", "middle_blocks", -1, "middle_blocks = -1: "),
    ("inception_v3", "reading", "slim", "reading = 'slim': "),
    ("inception_v3", "width", 0.0, "width = 0.0: "),
    ("inception_v3", "modules", (4, 4, 2), "modules = (4, 4, 2): can be at most (3, 4, 2)"),
    ("inception_v3", "modules", (3, -1, 2), "modules.1 = -1: "),
    ("inception_v3", "modules", (3, 4), "modules"),
    ("inception_v3", "stem_strides", (2, 0, 2), "stem_strides.1 = 0: "),
    ("inception_v3", "padding", "FULL", "padding = 'FULL': "),
    ("resnet50", "blocks", (), "blocks = (): "),
    (
        "resnet50",
        "blocks",
        (3, 4, 6),
        "widths = (64, 128, 256, 512): must have as many numbers as blocks = (3, 4, 6)",
    ),
    ("resnet50", "blocks", (3, 0, 6, 3), "blocks.1 = 0: "),
    ("resnet50", "widths", (64, 128, -1, 512), "widths.2 = -1: "),
    ("resnet50", "stem_width", 0, "stem_width = 0: "),
    ("resnet50", "stem_strides", (2, 0), "stem_strides.1 = 0: "),
    ("vgg16", "image_size", 31, "image_size = 31: must be at least 32"),
    ("vgg16", "stages", (), "stages = (): "),
    ("vgg16", "stages", ((8,), ()), "stages.1 = (): "),
    ("vgg16_separable", "stages", ((8, 0),), "stages.0.1 = 0: "),
]


class TestErrors:
    @pytest.mark.parametrize("shape", [(2, 12, 12, 1), (2, 12, 12, 4), (12, 12, 3)])
    @pytest.mark.parametrize("name", TINY)
    def test_images_of_a_wrong_shape(self, name, shape):
        message = rf"images must be \[N, H, W, 3\]; got {re.escape(str(shape))}"
        with pytest.raises(ValueError, match=message) as error:
            shapes(name, shape)
        assert not isinstance(error.value, ImageSizeError)

    @pytest.mark.parametrize("name", MODELS)
    def test_common_settings_out_of_range(self, name):
        settings = model_class(name).CONFIG.model_fields
        for setting, (value, message) in COMMON_MISTAKES.items():
            if setting in settings:
                with pytest.raises(SettingError, match=f"^{message}: "):
                    model_config(name, **{setting: value})

    @pytest.mark.parametrize(("name", "setting", "value", "message"), MISTAKES)
    def test_settings_out_of_range(self, name, setting, value, message):
        with pytest.raises(SettingError) as error:
            create_model(name, **{setting: value})
        assert str(error.value).startswith(message)

    @pytest.mark.parametrize("name", MODELS)
    def test_an_unknown_setting_gets_a_suggestion(self, name):
        with pytest.raises(SettingError, match=r"^droput = 0.5: is not a setting; did you mean 'dropout'\?$"):
            create_model(name, droput=0.5)

    def test_0_stands_for_none_where_the_command_line_cannot_say_none(self):
        config = model_config("xception", segments=0, bn_group_size=0)
        assert config == model_config("xception") and config.segments is config.bn_group_size is None

    def test_an_unknown_model_gets_the_known_ones(self):
        message = f"name = 'exception': is not a model; choose one of {', '.join(MODELS)}"
        with pytest.raises(SettingError, match=f"^{message}$"):
            create_model("exception")


def test_settings_of_a_variant_can_be_replaced():
    assert model_config("resnet101", num_classes=7).blocks == (3, 4, 23, 3)
    assert model_config("resnet101", blocks=(1, 1, 1, 1)) == model_config("resnet50", blocks=(1, 1, 1, 1))
    assert abstract("resnet152", blocks=(2, 1), widths=(4, 5)).config.blocks == (2, 1)
