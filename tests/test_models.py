"""What holds for every model: exact counts, and the contract of a model."""

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
from xception_jax.models import MODELS, create_model, model_class, model_config
from xception_jax.models.network import NormalizedConfig

WIDE = {"num_classes": 17_000}
DEEP = WIDE | {"fc_layers": (4096, 4096)}

# (model, config, trainable parameters, batch statistics, multiply-adds of one image of the model's own size, shape
# of the features): plain arithmetic over the papers' tables, done without this package. 22,855,952 and 23,626,728
# are in table 3 of Chollet 2017; Keras counts the parameters of the other networks so that it has.
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


class TestCensus:
    def test_every_model_is_counted(self):
        assert {name for name, *_ in CENSUS} == set(MODELS)

    @pytest.mark.parametrize(("name", "config", "params", "stats", "macs", "features"), CENSUS, ids=str)
    def test_counts(self, name, config, params, stats, macs, features):
        assert census(name, **config) == (params, stats, macs, features)


# Without biases in resnet50: batch normalization takes the mean away, and a bias before it has no gradient.
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
    """(a model's name, settings); of XLA's implementation, which compiles in less time."""
    name, settings = CASES[request.param]
    return name, {"implementation": "xla"} | settings


class TestContract:
    def test_every_class_is_tried(self):
        assert {model_class(name) for name, _ in CASES.values()} == {model_class(name) for name in MODELS}

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

    def test_the_state_is_parameters_and_batch_statistics_only(self, case):
        name, settings = case

        def trained():
            model = create_model(name, **TINY[name] | settings)
            model(tiny_images(), train=True, key=jax.random.key(0))
            return model

        kinds = {type(leaf) for _, leaf in nnx.to_flat_state(nnx.state(nnx.eval_shape(trained)))}
        assert kinds <= {nnx.Param, nnx.BatchStat}

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


class TestErrors:
    @pytest.mark.parametrize("shape", [(2, 12, 12, 1), (2, 12, 12, 4), (12, 12, 3)])
    @pytest.mark.parametrize("name", TINY)
    def test_images_of_a_wrong_shape(self, name, shape):
        with pytest.raises(ValueError, match=rf"images must be \[N, H, W, 3\]; got {re.escape(str(shape))}"):
            shapes(name, shape)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("num_classes", 0),
            ("in_channels", 0),
            ("bn_group_size", -1),
            ("bn_epsilon", 0.0),
            ("bn_momentum", 1.0),
            ("fc_layers", (8, 0)),
            ("dropout", 1.0),
            ("dropout", -0.1),
            ("implementation", "fast"),
        ],
    )
    @pytest.mark.parametrize("name", MODELS)
    def test_values_out_of_range(self, name, field, value):
        if field in model_class(name).CONFIG.model_fields:
            with pytest.raises(SettingError, match=rf"^{field}\S* = .*: input should be ") as error:
                model_config(name, **{field: value})
            assert error.value.value in (value, *np.atleast_1d(value))

    @pytest.mark.parametrize("name", MODELS)
    def test_an_unknown_setting_gets_a_suggestion(self, name):
        with pytest.raises(SettingError, match=r"^droput = 0.5: is not a setting; did you mean 'dropout'\?$"):
            create_model(name, droput=0.5)

    def test_an_unknown_model_gets_the_known_ones(self):
        message = f"name = 'exception': is not a model; choose one of {', '.join(MODELS)}"
        with pytest.raises(SettingError, match=f"^{message}$"):
            create_model("exception")
