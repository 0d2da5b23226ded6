"""Batch normalization against numpy in float64, by hand from Ioffe and Szegedy 2015; a convolution's bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import reference
from xception_jax.layers import BatchNorm, Conv

EPSILON, MOMENTUM = 1e-2, 0.9


def normalize(x, scale, bias, group_size=None):
    """(y, means [G, C], variances [G, C]) of consecutive groups of images, all in float64."""
    groups = x.reshape(-1, group_size or len(x), *x.shape[1:])
    y, means, variances = reference.normalize(groups, scale, bias, EPSILON)
    return y.reshape(x.shape), means, variances


def random_layer(channels=3, *, seed=0, **options):
    """A layer whose four variables are all random, and their values."""
    rng = np.random.default_rng(seed)
    layer = BatchNorm(channels, epsilon=EPSILON, momentum=MOMENTUM, **options)
    values = {name: rng.uniform(0.5, 2, channels).astype(np.float32) for name in ("scale", "bias", "mean", "var")}
    for name, value in values.items():
        getattr(layer, name)[...] = jnp.asarray(value)
    return layer, values


def random_images(*shape, seed=1):
    return np.random.default_rng(seed).normal(2, 3, size=shape).astype(np.float32)


@pytest.mark.parametrize("group_size", [None, 6, 3, 2, 1])
@pytest.mark.parametrize("shape", [(6, 4, 5, 3), (6, 7, 3)])
def test_training_normalizes_each_group_and_moves_the_statistics(shape, group_size):
    layer, start = random_layer(group_size=group_size)
    x = random_images(*shape)
    expected, means, variances = normalize(x, start["scale"], start["bias"], group_size)
    np.testing.assert_allclose(layer(jnp.asarray(x), train=True), expected, rtol=1e-5, atol=1e-5)
    moved_mean = MOMENTUM * start["mean"] + (1 - MOMENTUM) * means.mean(0)
    moved_var = MOMENTUM * start["var"] + (1 - MOMENTUM) * variances.mean(0)
    np.testing.assert_allclose(layer.mean[...], moved_mean, rtol=1e-6)
    np.testing.assert_allclose(layer.var[...], moved_var, rtol=1e-6)


def test_a_group_equals_a_batch_of_its_own():
    x = random_images(6, 4, 5, 3)
    whole = random_layer(group_size=2)[0](jnp.asarray(x), train=True)
    parts = [random_layer()[0](jnp.asarray(part), train=True) for part in np.split(x, 3)]
    np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("group_size", [4, 12])
def test_a_group_that_does_not_divide_the_batch_is_named(group_size):
    layer, _ = random_layer(group_size=group_size)
    with pytest.raises(ValueError, match=f"a batch of 6 images does not divide into groups of {group_size}"):
        layer(jnp.zeros((6, 2, 2, 3)), train=True)


@pytest.mark.parametrize("group_size", [None, 4])
def test_evaluation_uses_the_running_statistics_and_leaves_them(group_size):
    layer, start = random_layer(group_size=group_size)
    x = random_images(6, 4, 5, 3)
    expected = (x - start["mean"]) / np.sqrt(start["var"] + EPSILON) * start["scale"] + start["bias"]
    np.testing.assert_allclose(layer(jnp.asarray(x), train=False), expected, rtol=1e-5, atol=1e-5)
    for name, value in start.items():
        np.testing.assert_array_equal(getattr(layer, name)[...], value)


@pytest.mark.parametrize("train", [True, False])
def test_bfloat16_rounds_the_output_only(train):
    (layer, start), (exact, _) = random_layer(dtype=jnp.bfloat16), random_layer()
    x = jnp.asarray(random_images(6, 4, 5, 3), jnp.bfloat16)
    y, expected = layer(x, train=train), exact(x.astype(jnp.float32), train=train)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, expected.astype(jnp.bfloat16))
    for name in start:
        assert getattr(layer, name)[...].dtype == jnp.float32
        np.testing.assert_array_equal(getattr(layer, name)[...], getattr(exact, name)[...])


@pytest.mark.parametrize("group_size", [None, 2])
def test_training_gradients_equal_central_differences(group_size):
    layer, start = random_layer(group_size=group_size)
    x = random_images(4, 3, 2, 3)
    weights = np.random.default_rng(2).normal(size=x.shape).astype(np.float32)
    scale, bias = start["scale"].astype(np.float64), start["bias"].astype(np.float64)

    def loss(x, scale, bias):
        return np.sum(weights * normalize(x, scale, bias, group_size)[0] ** 2)

    graph, params, stats = nnx.split(layer, nnx.Param, nnx.BatchStat)

    def model_loss(params, x):
        y = nnx.merge(graph, params, stats, copy=True)(x, train=True)
        return jnp.sum(weights * y**2)

    d_params, dx = jax.grad(model_loss, argnums=(0, 1))(params, jnp.asarray(x))
    x = x.astype(np.float64)
    for gradient, expected in (
        (dx, reference.numeric_gradient(lambda value: loss(value, scale, bias), x)),
        (d_params["scale"][...], reference.numeric_gradient(lambda value: loss(x, value, bias), scale)),
        (d_params["bias"][...], reference.numeric_gradient(lambda value: loss(x, scale, value), bias)),
    ):
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("group_size", [None, 4])
def test_a_large_offset_loses_no_variance(group_size):
    """In float32, the mean of squares minus the square of the mean has an error of several units here."""
    x = (np.random.default_rng(3).normal(size=(8, 16, 16, 3)) + 1e4).astype(np.float32)
    layer, start = random_layer(group_size=group_size)
    expected, _, variances = normalize(x, start["scale"], start["bias"], group_size)
    np.testing.assert_allclose(layer(jnp.asarray(x), train=True), expected, atol=5e-3)
    moved_var = MOMENTUM * start["var"] + (1 - MOMENTUM) * variances.mean(0)
    np.testing.assert_allclose(layer.var[...], moved_var, rtol=1e-4)


def test_a_constant_channel_becomes_its_bias():
    layer, start = random_layer()
    y = layer(jnp.full((4, 5, 5, 3), 1024.0), train=True)
    np.testing.assert_array_equal(y, np.broadcast_to(start["bias"], (4, 5, 5, 3)))
    np.testing.assert_allclose(layer.var[...], MOMENTUM * start["var"], rtol=1e-6)


@pytest.mark.parametrize("train", [True, False])
def test_without_scale_it_is_1_and_no_parameter(train):
    layer, start = random_layer()
    layer.scale[...] = jnp.ones(3)
    plain = BatchNorm(3, epsilon=EPSILON, momentum=MOMENTUM, use_scale=False)
    for name in ("bias", "mean", "var"):
        getattr(plain, name)[...] = jnp.asarray(start[name])
    x = jnp.asarray(random_images(6, 4, 5, 3))
    np.testing.assert_array_equal(plain(x, train=train), layer(x, train=train))
    assert [path for path, _ in nnx.to_flat_state(nnx.state(plain, nnx.Param))] == [("bias",)]


@pytest.mark.parametrize("implementation", ["xla", "shift"])
def test_a_convolution_adds_its_bias_to_every_pixel(implementation):
    options = {"padding": "VALID", "implementation": implementation, "dtype": jnp.float32, "rngs": nnx.Rngs(0)}
    layer = Conv(2, 3, (3, 1), use_bias=True, **options)
    assert layer.kernel.shape == (3, 1, 2, 3)
    x, bias = jnp.asarray(random_images(2, 5, 4, 2)), np.array([1.0, -2.0, 3.0], np.float32)
    without = layer(x)
    layer.bias[...] = jnp.asarray(bias)
    np.testing.assert_allclose(layer(x), np.asarray(without) + bias, rtol=1e-6)
    assert layer(x).shape == (2, 3, 4, 3)
