"""Figures 1-4 of the paper: figures 2 and 3 are the same function, and figure 4 is the extreme of figure 3."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import reference
from xception_jax.models import inception_hypothesis as hypothesis

SAME = ((1, 1), (1, 1))


def images(channels):
    return np.random.default_rng(0).normal(size=(2, 7, 6, channels))


def exact(module):
    """The module with float64 parameters that are multiples of 1/8, so that no product or sum of them is rounded.

    Two ways to compute the same function then give equal bits, independent of the order of sums.
    """
    rng = np.random.default_rng(1)
    state = jax.tree.map(lambda array: jnp.asarray(rng.integers(-8, 9, array.shape) / 8), nnx.state(module))
    return nnx.merge(nnx.graphdef(module), state)


def relu(x):
    return np.maximum(x, 0)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(("features", "towers"), [(12, 1), (12, 3), (12, 4), (12, 12), (14, 3), (13, 5)])
def test_figure_2_and_figure_3_are_the_same_function_to_the_bit(features, towers, activation):
    with jax.enable_x64(True):
        module = exact(
            hypothesis.SimplifiedModule(
                10, features, towers=towers, activation=activation, dtype=jnp.float64, rngs=nnx.Rngs(0)
            )
        )
        merged = hypothesis.merge_towers(module, rngs=nnx.Rngs(1))
        x = jnp.round(8 * jnp.asarray(images(10))) / 8
        expected = module(x)
        assert expected.dtype == jnp.float64 and expected.shape == (2, 7, 6, features)
        assert len(module.spatial) == towers and np.unique(expected).size > 100
        np.testing.assert_array_equal(merged(x), expected)


def test_figure_3_with_one_segment_is_a_regular_convolution():
    module = hypothesis.SegmentedModule(5, 4, segments=1, rngs=nnx.Rngs(0))
    x = images(5)
    (kernel,) = module.spatial.kernels
    expected = relu(
        reference.conv(relu(x @ np.asarray(module.pointwise.kernel[0, 0])), np.asarray(kernel), (1, 1), SAME)
    )
    np.testing.assert_allclose(module(jnp.asarray(x, jnp.float32)), expected, rtol=1e-4, atol=1e-5)


def test_figure_4_convolves_every_channel_by_itself():
    module = hypothesis.ExtremeModule(5, 4, activation=None, rngs=nnx.Rngs(0))
    x = images(5)
    (kernel,) = module.spatial.kernels
    assert kernel.shape == (3, 3, 1, 4)
    expected = reference.depthwise_conv(
        x @ np.asarray(module.pointwise.kernel[0, 0]), np.asarray(kernel), (1, 1), SAME
    )
    np.testing.assert_allclose(module(jnp.asarray(x, jnp.float32)), expected, rtol=1e-4, atol=1e-5)


def test_figure_1_has_a_tower_of_each_kind():
    module = hypothesis.CanonicalModule(6, (2, 3, 4, 5), reduced=(2, 3), rngs=nnx.Rngs(0))
    x = images(6)

    def conv(conv, x):
        return relu(
            reference.conv(
                x, np.asarray(conv.kernel), (1, 1), SAME if conv.kernel.shape[0] == 3 else ((0, 0),) * 2
            )
        )

    ones = reference.conv(np.ones((1, 7, 6, 1)), np.ones((3, 3, 1, 1)), (1, 1), SAME)  # pixels in each window
    pooled = reference.depthwise_conv(x, np.ones((3, 3, 1, 6)), (1, 1), SAME) / ones
    outputs = []
    for tower, y in zip(module.towers, (x, x, x, pooled), strict=True):
        for layer in tower:
            y = conv(layer, y)
        outputs.append(y)
    assert [len(tower) for tower in module.towers] == [1, 2, 3, 1]
    np.testing.assert_allclose(
        module(jnp.asarray(x, jnp.float32)), np.concatenate(outputs, -1), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hypothesis.ExtremeModule(5, 4, activation="gelu", rngs=nnx.Rngs(0)), "activation = 'gelu'"),
        (lambda: hypothesis.SimplifiedModule(5, 4, towers=0, rngs=nnx.Rngs(0)), "towers = 0: must be at least 1"),
        (
            lambda: hypothesis.SegmentedModule(5, 4, segments=0, rngs=nnx.Rngs(0)),
            "segments = 0: must be at least 1",
        ),
    ],
)
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
