"""VGG-16 and its separable counterpart: parity with Keras, and what their settings change."""

import types

import jax
import numpy as np
import pytest
from flax import nnx

from tests import parity
from tests.networks import abstract, shapes, tiny, tiny_images
from xception_jax.models import ImageSizeError, model_config

EXACT = {"num_classes": 10, "dropout": 0.0, "dtype": "float64", "implementation": "xla"}


def keras_names():
    """Our path of every parameter of VGG-16 -> Keras's path of the same array."""
    layers = {"fc.0": "fc1", "fc.1": "fc2", "classifier": "predictions"}
    for i, count in enumerate((2, 2, 3, 3, 3)):
        layers |= {f"stages.{i}.{j}": f"block{i + 1}_conv{j + 1}" for j in range(count)}
    return {f"{a}.{field}": f"{b}/{field}" for a, b in layers.items() for field in ("kernel", "bias")}


def keras_model(keras, shape):
    return keras.applications.VGG16(weights=None, input_shape=shape, classes=10, classifier_activation=None)


def keras_narrow(keras, shape):
    """Keras's network with an eighth of the features in all layers except the last."""
    layers, vgg16 = keras.layers, keras.src.applications.vgg16

    def conv(features, *arguments, **options):
        return layers.Conv2D(features // 8, *arguments, **options)

    def dense(features, **options):
        return layers.Dense(features if options["name"] == "predictions" else features // 8, **options)

    with pytest.MonkeyPatch.context() as patch:
        patched = types.SimpleNamespace(**vars(layers) | {"Conv2D": conv, "Dense": dense})
        patch.setattr(vgg16, "layers", patched)
        return keras_model(keras, shape)


def keras_separable(keras, shape):
    """Two stages of one and two separable convolutions."""
    layers = keras.layers
    x = inputs = layers.Input(shape)
    for stage in ((5,), (6, 7)):
        for width in stage:
            x = layers.SeparableConv2D(width, 3, padding="same", use_bias=False, name=f"conv{width}")(x)
            x = layers.ReLU()(layers.BatchNormalization(name=f"bn{width}")(x))
        x = layers.MaxPooling2D()(x)
    x = layers.Dense(10, name="predictions")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, x)


def separable_names():
    names = {"classifier.kernel": "predictions/kernel", "classifier.bias": "predictions/bias"}
    for path, width in {"stages.0.0": 5, "stages.1.0": 6, "stages.1.1": 7}.items():
        names[f"{path}.depthwise.kernels.0"] = f"conv{width}/depthwise_kernel"
        names[f"{path}.pointwise.kernel"] = f"conv{width}/pointwise_kernel"
        names |= {f"{path}.bn.{a}": f"bn{width}/{b}" for a, b in parity.BN_FIELDS.items()}
    return names


class TestParityWithKeras:
    """On images of 66 x 66 pixels. The last features have 2 x 2 pixels, so that their order in a row matters."""

    def test_every_array_of_the_network(self):
        model = abstract("vgg16", num_classes=10, image_size=66)
        parity.check_names(model, keras_names(), keras_model, pixels=66)

    def test_logits_loss_and_gradients(self):
        """With an eighth of the features, which takes less time."""
        stages = ((8, 8), (16, 16), (32,) * 3, (64,) * 3, (64,) * 3)
        model = abstract("vgg16", **EXACT, image_size=66, stages=stages, fc_layers=(512, 512))
        compared = parity.compare(model, keras_names(), keras_narrow, pixels=66)
        parity.check(compared, statistics=0, gradients=2 * 16)

    def test_a_separable_stack(self):
        model = abstract("vgg16_separable", **EXACT, stages=((5,), (6, 7)))
        compared = parity.compare(model, separable_names(), keras_separable, pixels=18)
        parity.check(compared, statistics=2 * 3, gradients=4 * 3 + 2)


class TestVGG16:
    def test_dropout_follows_both_fully_connected_layers(self):
        """Each dropout sets about half of the next layer's inputs to 0 and doubles the others."""
        seen = []

        class Spy(nnx.Dropout):
            def __call__(self, x, **options):
                seen.append((x, y := super().__call__(x, **options)))
                return y

        model = tiny("vgg16", fc_layers=(400, 400))
        model.dropout = Spy(0.5)
        model(tiny_images(), train=True, key=jax.random.key(0))
        assert [x.shape for x, _ in seen] == [(8, 400), (8, 400)]
        kept = []
        for x, y in seen:
            kept.append(np.asarray(y != 0)[np.asarray(x > 0)])
            np.testing.assert_allclose(y, np.where(np.asarray(y != 0), 2 * x, 0), rtol=1e-6)
            assert 0.4 < kept[-1].mean() < 0.6

    @pytest.mark.parametrize("pixels", [11, 13, 24])
    def test_images_of_another_size(self, pixels):
        with pytest.raises(ImageSizeError, match=f"^images of {pixels} x {pixels} pixels: .* image_size is 12;"):
            shapes("vgg16", (2, pixels, pixels, 3))


class TestSeparableVGG:
    def test_widths_are_a_multiple_of_vgg16_s_with_inception_v3_s_parameters(self):
        """With this multiple, and without rounding, the number of parameters is that of table 3."""
        multiple, channels, params = 232.729, 3, 0
        for width in np.repeat([1, 2, 4, 8, 8], [2, 2, 3, 3, 3]) * multiple:
            params += 9 * channels + channels * width + 2 * width
            channels = width
        params += 1000 * channels + 1000
        assert abs(params - 23_626_728) < 100
        widths = [width for stage in model_config("vgg16_separable").stages for width in stage]
        np.testing.assert_array_equal(widths, np.round(np.repeat([1, 2, 4, 8, 8], [2, 2, 3, 3, 3]) * multiple))

    def test_images_too_small_for_its_poolings(self):
        assert shapes("vgg16_separable", (2, 4, 4, 3)).shape == (2, 5)
        with pytest.raises(ImageSizeError, match=r"images of 3 x 3 pixels: .* at least 4 pixels each way"):
            shapes("vgg16_separable", (2, 3, 3, 3))
