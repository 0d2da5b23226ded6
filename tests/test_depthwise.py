"""Depthwise and segmented convolutions against plain numpy loops and hand-derived adjoints, in float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import reference
from xception_jax import ops

GRID = [
    *itertools.product([(9, 8)], [(1, 1), (3, 3), (3, 1)], [1, 2, (2, 1), 3], ["SAME", "VALID"]),
    *itertools.product([(8, 9)], [(5, 5), (7, 7)], [1, 2], ["SAME", "VALID"]),
]
EXPLICIT = [
    ((6, 7), (3, 3), 1, ((1, 1), (1, 1))),
    ((6, 7), (3, 3), 1, ((0, 2), (3, 1))),
    ((7, 6), (3, 3), 2, ((1, 0), (0, 1))),
    ((7, 7), (5, 5), 3, ((4, 0), (1, 2))),
    ((5, 6), (3, 1), (2, 1), ((5, 0), (0, 2))),
    ((5, 5), (1, 1), 2, ((3, 2), (1, 4))),
    ((3, 4), (3, 3), 2, ((4, 5), (6, 3))),
    ((2, 2), (7, 7), 1, ((9, 3), (4, 8))),
]
SMALL = [((2, 1), (5, 5), 1, "SAME"), ((1, 3), (3, 3), 2, "SAME")]


def value_and_gradients(x, kernel, dy, **options):
    """(y, dx, dkernel) of the function under test for the output gradient dy."""

    @jax.jit
    def compute(x, kernel, dy):
        y, pullback = jax.vjp(functools.partial(ops.depthwise_conv, **options), x, kernel)
        return y, *pullback(dy)

    return compute(x, kernel, dy)


@pytest.mark.parametrize("implementation", ["xla", "shift"])
class TestImplementations:
    @pytest.mark.parametrize(("size", "kernel_size", "strides", "padding"), GRID + EXPLICIT + SMALL, ids=str)
    def test_values_and_gradients_equal_numpy(self, implementation, size, kernel_size, strides, padding):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(2, *size, 3))
        kernel = rng.normal(size=(*kernel_size, 1, 3))
        steps = (strides, strides) if isinstance(strides, int) else strides
        pairs = reference.pixel_pairs(size, kernel_size, steps, padding)
        expected = reference.depthwise_conv(x, kernel, steps, pairs)
        dy = rng.normal(size=expected.shape)
        options = {"strides": strides, "padding": padding, "implementation": implementation}
        with jax.enable_x64(True):
            y, dx, dkernel = value_and_gradients(x, kernel, dy, **options)
        assert y.dtype == dx.dtype == dkernel.dtype == np.float64
        expected_dx, expected_dkernel = reference.depthwise_gradients(x, kernel, steps, pairs, dy)
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(dx, expected_dx, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(dkernel, expected_dkernel, rtol=1e-12, atol=1e-12)

    def test_bfloat16_sums_in_float32(self, implementation):
        """All sums are exact in float32, but too small in bfloat16, where 256 + 1 is 256."""
        x = jnp.ones((2, 28, 28, 2), jnp.bfloat16)
        kernel = jnp.ones((5, 5, 1, 2), jnp.bfloat16).at[2, 2].set(256)

        dy = jnp.ones((2, 24, 24, 2), jnp.bfloat16)
        y, dx, dkernel = value_and_gradients(x, kernel, dy, padding="VALID", implementation=implementation)
        assert y.dtype == dx.dtype == dkernel.dtype == jnp.bfloat16
        np.testing.assert_array_equal(y, np.full((2, 24, 24, 2), 256 + 24))
        np.testing.assert_array_equal(dx[:, 4:24, 4:24], np.full((2, 20, 20, 2), 256 + 24))
        np.testing.assert_array_equal(dkernel, np.full((5, 5, 1, 2), 2 * 24 * 24))

    def test_bfloat16_is_the_rounded_float64_result(self, implementation):
        rng = np.random.default_rng(1)
        x = jnp.asarray(rng.normal(size=(2, 9, 8, 3)), jnp.bfloat16)
        kernel = jnp.asarray(rng.normal(size=(3, 3, 1, 3)), jnp.bfloat16)
        y = ops.depthwise_conv(x, kernel, strides=2, implementation=implementation)
        pairs = reference.pixel_pairs((9, 8), (3, 3), (2, 2), "SAME")
        exact = reference.depthwise_conv(np.asarray(x, np.float64), np.asarray(kernel, np.float64), (2, 2), pairs)
        np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=2**-8, atol=1e-5)

    @pytest.mark.parametrize(
        ("x_shape", "kernel_shape"),
        [
            ((5, 5, 3), (3, 3, 1, 3)),
            ((1, 5, 5, 3), (3, 3, 3)),
            ((1, 5, 5, 3), (3, 3, 1, 4)),
            ((1, 5, 5, 3), (3, 3, 3, 1)),
            ((1, 5, 5, 3), (3, 3, 1, 6)),
        ],
    )
    def test_wrong_shapes_are_named(self, implementation, x_shape, kernel_shape):
        with pytest.raises(ValueError, match=r"kernel \[kh, kw, 1, C\]; got") as error:
            ops.depthwise_conv(jnp.zeros(x_shape), jnp.zeros(kernel_shape), implementation=implementation)
        assert str(x_shape) in str(error.value) and str(kernel_shape) in str(error.value)


def test_unknown_implementation_is_named():
    with pytest.raises(ValueError, match=r"implementation = 'cudnn': choose one of \('xla', 'shift'\) or None"):
        ops.depthwise_conv(jnp.zeros((1, 5, 5, 3)), jnp.zeros((3, 3, 1, 3)), implementation="cudnn")


def test_shift_names_a_kernel_larger_than_the_input():
    with pytest.raises(ValueError, match=r"window \(3, 3\) is larger than the input of \(2, 5\)"):
        ops.depthwise_conv(
            jnp.zeros((1, 2, 5, 3)), jnp.zeros((3, 3, 1, 3)), padding="VALID", implementation="shift"
        )


@pytest.mark.parametrize(("implementation", "grouped"), [(None, False), ("shift", False), ("xla", True)])
def test_cpu_avoids_grouped_convolution_by_default(implementation, grouped):
    def gradients(x, kernel):
        return jax.grad(
            lambda x, k: jnp.sum(ops.depthwise_conv(x, k, implementation=implementation)), argnums=(0, 1)
        )(x, kernel)

    program = jax.jit(gradients).lower(jnp.zeros((1, 5, 5, 3)), jnp.zeros((3, 3, 1, 3))).as_text()
    assert ("stablehlo.convolution" in program) == grouped


def block_diagonal(kernels):
    """The dense kernel[kh, kw, C, C] with the blocks of `kernels`, each float[kh, kw, width, n * width]."""
    channels = sum(kernel.shape[3] for kernel in kernels)
    dense, start = np.zeros((*kernels[0].shape[:2], channels, channels)), 0
    for kernel in kernels:
        width = kernel.shape[2]
        for block in np.split(kernel, kernel.shape[3] // width, axis=3):
            dense[:, :, start : start + width, start : start + width] = block
            start += width
    return dense


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param([(12, 12)], id="one segment"),
        pytest.param([(4, 12)], id="three"),
        pytest.param([(3, 12)], id="four"),
        pytest.param([(3, 6), (2, 6)], id="five near-equal"),
        pytest.param([(2, 10), (1, 2)], id="seven near-equal"),
        pytest.param([(1, 12)], id="one per channel"),
    ],
)
def test_segmented_conv_is_a_dense_conv_with_block_diagonal_kernel(shapes, padding):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 5, 12))
    kernels = [rng.normal(size=(3, 3, *shape)) for shape in shapes]
    with jax.enable_x64(True):
        y = ops.segmented_conv(jnp.asarray(x), [jnp.asarray(kernel) for kernel in kernels], padding=padding)
    pairs = reference.pixel_pairs((6, 5), (3, 3), (1, 1), padding)
    expected = reference.conv(x, block_diagonal(kernels), (1, 1), pairs)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


def test_segmented_conv_names_the_channels_that_its_kernels_miss():
    with pytest.raises(ValueError, match=r"kernels cover 10 channels, x has 12: \(1, 5, 5, 12\)"):
        ops.segmented_conv(jnp.zeros((1, 5, 5, 12)), [jnp.zeros((3, 3, 5, 10))])


@pytest.mark.parametrize(
    ("channels", "segments", "parts"),
    [
        (728, 1, [(1, 728)]),
        (728, 3, [(2, 243), (1, 242)]),
        (728, 8, [(8, 91)]),
        (728, 16, [(8, 46), (8, 45)]),
        (728, 364, [(364, 2)]),
        (728, 500, [(228, 2), (272, 1)]),
        (728, 728, [(728, 1)]),
        (64, 728, [(64, 1)]),
        (12, 5, [(2, 3), (3, 2)]),
    ],
)
def test_partition_is_near_equal_with_wide_parts_first(channels, segments, parts):
    assert ops.partition(channels, segments) == parts


def test_partition_covers_every_channel_once():
    for channels, segments in itertools.product(range(1, 40), range(1, 50)):
        widths = [width for count, width in ops.partition(channels, segments) for _ in range(count)]
        assert sum(widths) == channels and len(widths) == min(segments, channels)
        assert max(widths) - min(widths) <= 1


@pytest.mark.parametrize("segments", [0, -3])
def test_partition_needs_a_segment(segments):
    with pytest.raises(ValueError, match=f"segments = {segments}: must be at least 1"):
        ops.partition(12, segments)
