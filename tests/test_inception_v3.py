"""Inception V3: parity with Keras, with Keras as it was in 2016, and what its settings change."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests import parity
from tests.networks import abstract, shapes
from xception_jax.layers import ConvBN
from xception_jax.models import ImageSizeError, create_model

QUARTER = {"num_classes": 10, "dropout": 0.0, "width": 0.25, "dtype": "float64", "implementation": "xla"}


def convolutions(model):
    """Paths of all convolutions, in the order in which Keras creates and numbers them."""
    paths = [f"stem.{i}.{j}" for i, part in enumerate(model.stem) for j in range(len(part))]
    for i, mixed in enumerate(model.mixed):
        for j, tower in enumerate(mixed.towers):
            paths += [f"mixed.{i}.towers.{j}.convs.{k}" for k in range(len(tower.convs))]
            paths += [f"mixed.{i}.towers.{j}.fork.{k}" for k in range(len(tower.fork))]
    return paths


def keras_names(model):
    """Our path of every parameter and statistic -> Keras's path of the same array."""
    names = {"classifier.kernel": "predictions/kernel", "classifier.bias": "predictions/bias"}
    paper = model.config.reading == "paper"
    for number, path in enumerate(convolutions(model)):
        suffix = f"_{number}" if number else ""
        names |= {f"{path}.conv.{field}": f"conv2d{suffix}/{field}" for field in ("kernel", "bias")[: 1 + paper]}
        norm = f"batch_normalization{suffix}"
        names |= {f"{path}.bn.{a}": f"{norm}/{b}" for a, b in parity.BN_FIELDS.items() if paper or a != "scale"}
    return names


def keras_model(keras, shape, **functions):
    """Keras's network; `functions` replace those of its module by their names."""
    module = keras.src.applications.inception_v3
    with pytest.MonkeyPatch.context() as patch:
        for name, function in functions.items():
            patch.setattr(module, name, function)
        return module.InceptionV3(weights=None, input_shape=shape, classes=10, classifier_activation=None)


def keras_quarter(keras, shape):
    """Keras's network with a quarter of the features."""
    conv2d_bn = keras.src.applications.inception_v3.conv2d_bn

    def narrow(x, features, *arguments, **options):
        return conv2d_bn(x, features // 4, *arguments, **options)

    return keras_model(keras, shape, conv2d_bn=narrow)


def keras_2016(keras, shape, *, divisor=1):
    """Keras's network before March 2017: other layers, and other features in three convolutions."""
    layers, features_then = keras.layers, {18: 32, 25: 32, 64: 160}
    convs, max_pools = itertools.count(), itertools.count()

    def conv2d_bn(x, features, rows, columns, padding="same", strides=(1, 1)):
        features = features_then.get(next(convs), features) // divisor
        conv = layers.Conv2D(features, (rows, columns), strides=strides, padding=padding, activation="relu")
        return layers.BatchNormalization()(conv(x))

    def max_pool(*arguments, **options):
        pool = layers.AveragePooling2D if next(max_pools) == 3 else layers.MaxPooling2D
        return pool(*arguments, **options)

    patched = types.SimpleNamespace(**vars(layers) | {"MaxPooling2D": max_pool})
    return keras_model(keras, shape, conv2d_bn=conv2d_bn, layers=patched)


class TestParityWithKeras:
    """Names are compared on the full network. Values are compared in float64 on all layers with a quarter of the
    features, which takes less time, on 108 x 108 pixels, which leave 2 x 2 in the last features."""

    def test_every_array_of_the_network(self):
        model = abstract("inception_v3", num_classes=10)
        parity.check_names(model, keras_names(model), keras_model, pixels=108)

    def test_every_array_of_the_network_of_2016(self):
        model = abstract("inception_v3", num_classes=10, reading="paper")
        parity.check_names(model, keras_names(model), keras_2016, pixels=108)

    def test_logits_loss_statistics_and_gradients(self):
        model = abstract("inception_v3", **QUARTER)
        compared = parity.compare(model, keras_names(model), keras_quarter, pixels=108)
        parity.check(compared, statistics=2 * 94, gradients=2 * 94 + 2)

    def test_logits_loss_and_statistics_of_the_network_of_2016(self):
        model = abstract("inception_v3", **QUARTER, reading="paper")
        build = functools.partial(keras_2016, divisor=4)
        compared = parity.compare(model, keras_names(model), build, pixels=108, gradients=False)
        parity.check(compared, statistics=2 * 94, gradients=0)


class TestSettings:
    def test_94_convolutions(self):
        nodes = [node for _, node in nnx.iter_modules(abstract("inception_v3"))]
        assert sum(isinstance(node, ConvBN) for node in nodes) == 94

    @pytest.mark.parametrize(
        ("config", "features"),
        [
            ({}, (4, 4, 203)),  # 16, 16, 16, 8, 4 pixels; 32 + 4 x 38 + 19 features, tenths of 320, 384 and 192
            ({"stem_strides": (2, 1, 1)}, (2, 2, 203)),
            ({"stem_strides": (1, 2, 2)}, (1, 1, 203)),
            ({"modules": (1, 1, 0)}, (4, 4, 127)),  # 32 + 19, of mixed4 4 x 19
            ({"modules": (0, 0, 0)}, (4, 4, 118)),  # 32 + 19, of mixed3 38 + 10, of the stem 19
            ({"in_channels": 1}, (4, 4, 203)),
        ],
        ids=str,
    )
    def test_feature_shapes_at_16_pixels(self, config, features):
        config = {"width": 0.1, "stem_strides": (1, 1, 1), "padding": "SAME"} | config
        images = jax.ShapeDtypeStruct((2, 16, 16, config.get("in_channels", 3)), jnp.float32)
        actual = nnx.eval_shape(lambda images: create_model("inception_v3", **config).features(images), images)
        assert actual.shape == (2, *features)

    @pytest.mark.parametrize(("strides", "least"), [((2, 2, 2), 75), ((1, 1, 1), 13)])
    def test_images_too_small_without_padding(self, strides, least):
        config = {"stem_strides": strides, "padding": "VALID"}
        assert shapes("inception_v3", (2, least, least, 3), **config).shape == (2, 5)
        with pytest.raises(ImageSizeError, match=r"; enlarge the images, or set padding = 'SAME'") as error:
            shapes("inception_v3", (2, least, least - 1, 3), **config)
        assert (error.value.size, error.value.smallest) == ((least, least - 1), least)
