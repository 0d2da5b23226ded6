"""ResNet: parity with Keras, and what its settings change."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests import parity
from tests.networks import TINY, abstract
from xception_jax.models import create_model

EXACT = {"num_classes": 10, "dropout": 0.0, "dtype": "float64", "implementation": "xla"}


def keras_names(blocks):
    """Our path of every parameter and statistic -> Keras's path of the same array."""
    layers = {"stem": "conv1"}
    for i, count in enumerate(blocks):
        layers[f"stages.{i}.0.shortcut"] = f"conv{i + 2}_block1_0"
        for j in range(count):
            layers |= {f"stages.{i}.{j}.convs.{k}": f"conv{i + 2}_block{j + 1}_{k + 1}" for k in range(3)}
    names = {"classifier.kernel": "predictions/kernel", "classifier.bias": "predictions/bias"}
    for ours, theirs in layers.items():
        names |= {f"{ours}.conv.{field}": f"{theirs}_conv/{field}" for field in ("kernel", "bias")}
        names |= {f"{ours}.bn.{a}": f"{theirs}_bn/{b}" for a, b in parity.BN_FIELDS.items()}
    return names


def keras_model(name):
    def build(keras, shape):
        cls = getattr(keras.applications, name)
        return cls(weights=None, input_shape=shape, classes=10, classifier_activation=None)

    return build


def keras_quarter(keras, shape):
    """Keras's ResNet-50 with a quarter of the features in all blocks."""
    resnet = keras.src.applications.resnet

    def stages(x):
        for i, blocks in enumerate((3, 4, 6, 3)):
            x = resnet.stack_residual_blocks_v1(x, 16 * 2**i, blocks, min(i, 1) + 1, name=f"conv{i + 2}")
        return x

    return resnet.ResNet(
        stages,
        preact=False,
        use_bias=True,
        weights=None,
        input_shape=shape,
        classes=10,
        classifier_activation=None,
        weights_name="",
    )


class TestParityWithKeras:
    """On images of 60 x 60 pixels, so that the inputs of the stem's convolution and pooling have even sizes."""

    @pytest.mark.parametrize("depth", [50, 152])
    def test_every_array_of_the_network(self, depth):
        model = abstract(f"resnet{depth}", num_classes=10)
        parity.check_names(model, keras_names(model.config.blocks), keras_model(f"ResNet{depth}"), pixels=60)

    def test_logits_loss_statistics_and_gradients(self):
        """For ResNet-50 with a quarter of the features, which takes less time."""
        model = abstract("resnet50", **EXACT, widths=(16, 32, 64, 128))
        compared = parity.compare(model, keras_names(model.config.blocks), keras_quarter, pixels=60)
        parity.check(compared, statistics=2 * 53, gradients=3 * 53 + 2)


class TestSettings:
    @pytest.mark.parametrize(
        ("config", "features"),
        [
            ({"stem_strides": (2, 2)}, (2, 2, 20)),  # 8, 4, 4, 2 pixels
            ({"stem_strides": (2, 1)}, (4, 4, 20)),
            ({"stem_strides": (1, 1)}, (8, 8, 20)),
            ({"stem_strides": (1, 1), "blocks": (1,), "widths": (3,)}, (16, 16, 12)),
            ({"in_channels": 1}, (2, 2, 20)),
        ],
        ids=str,
    )
    def test_feature_shapes_at_16_pixels(self, config, features):
        images = jax.ShapeDtypeStruct((2, 16, 16, config.get("in_channels", 3)), jnp.float32)
        config = TINY["resnet50"] | config
        actual = nnx.eval_shape(lambda images: create_model("resnet50", **config).features(images), images)
        assert actual.shape == (2, *features)
