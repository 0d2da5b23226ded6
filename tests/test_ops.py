"""Convolution, pooling and normalization against numpy in float64, at shapes that hypothesis draws."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests import reference
from xception_jax import ops

BFLOAT16 = 2.0**-8  # the largest relative error of one rounding
FLOAT32 = 2.0**-24
EPSILON = 1e-2

each_implementation = pytest.mark.parametrize("implementation", ops.IMPLEMENTATIONS)
# Examples are few and are not shrunk after a failure, because each of them takes a compilation.
drawn = functools.partial(settings, derandomize=True, deadline=None, phases=[Phase.explicit, Phase.generate])


class Case(NamedTuple):
    """Settings of a sliding window that fits into its input at least once."""

    batch: int
    size: tuple[int, int]
    channels: int
    window: tuple[int, int]
    strides: tuple[int, int]
    padding: str

    @property
    def pairs(self):
        return reference.pixel_pairs(self.size, self.window, self.strides, self.padding)

    @property
    def shape(self):
        return (self.batch, *self.size, self.channels)


@st.composite
def cases(draw):
    padding = draw(st.sampled_from(["SAME", "VALID"]))
    size = draw(st.tuples(*[st.integers(1, 12)] * 2))
    window = tuple(draw(st.integers(1, min(n, 5) if padding == "VALID" else 5)) for n in size)
    strides = draw(st.tuples(*[st.sampled_from([1, 2, 3])] * 2))
    return Case(draw(st.integers(1, 3)), size, draw(st.integers(1, 5)), window, strides, padding)


@st.composite
def cases_that_do_not_fit(draw):
    axis, short = draw(st.integers(0, 1)), draw(st.integers(1, 4))
    size, window = [7, 7], [3, 3]
    size[axis], window[axis] = short, draw(st.integers(short + 1, 9))
    strides = draw(st.tuples(*[st.sampled_from([1, 2, 3])] * 2))
    return Case(1, tuple(size), 2, tuple(window), strides, "VALID")


class Convolution(NamedTuple):
    """A convolution, its numpy reference and adjoints, and the last two sizes of the kernel for C channels."""

    function: callable
    value: callable
    gradients: callable
    kernel_ends: callable


CONVOLUTIONS = {
    "regular": Convolution(ops.conv, reference.conv, reference.conv_gradients, lambda c: (c, 4)),
    "depthwise": Convolution(
        ops.depthwise_conv, reference.depthwise_conv, reference.depthwise_gradients, lambda c: (1, c)
    ),
}
each_convolution = pytest.mark.parametrize("convolution", CONVOLUTIONS.values(), ids=CONVOLUTIONS)


def random_problem(convolution, case, dtype=np.float64):
    """(x, kernel, output gradient): normal numbers in float64 that `dtype` represents exactly."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(*case.window, *convolution.kernel_ends(case.channels)))
    x = rng.normal(size=case.shape)
    dy = rng.normal(size=convolution.value(x, kernel, case.strides, case.pairs).shape)
    return tuple(array.astype(dtype).astype(np.float64) for array in (x, kernel, dy))


def expected_results(convolution, case, x, kernel, dy):
    """(y, dx, dkernel) by numpy."""
    options = (case.strides, case.pairs)
    return convolution.value(x, kernel, *options), *convolution.gradients(x, kernel, *options, dy)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(function, dy, *inputs):
    """(y, gradient of each input) of `function` for the output gradient dy."""
    y, pullback = jax.vjp(function, *inputs)
    return y, *pullback(dy)


def rounded_sum(case):
    """The error of a sum over a window in bfloat16, relative to the sum of the absolute values of its terms."""
    return (1 + BFLOAT16) ** np.prod(case.window) - 1


def bind(function, case, implementation):
    return functools.partial(function, strides=case.strides, padding=case.padding, implementation=implementation)


@each_implementation
@each_convolution
class TestConvolutions:
    @drawn(max_examples=20)
    @given(case=cases())
    def test_values_and_gradients_equal_numpy(self, convolution, implementation, case):
        x, kernel, dy = random_problem(convolution, case)
        with jax.enable_x64(True):
            results = value_and_gradients(bind(convolution.function, case, implementation), dy, x, kernel)
        for actual, expected in zip(results, expected_results(convolution, case, x, kernel, dy), strict=True):
            assert actual.dtype == np.float64
            np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)

    @drawn(max_examples=5)
    @given(case=cases())
    def test_bfloat16_rounds_the_float64_result_once(self, convolution, implementation, case):
        """Errors are one rounding to bfloat16 and the roundings of a sum in float32. Only the input's gradient of
        the shifted regular convolution is summed over the taps in bfloat16."""
        problem = random_problem(convolution, case, jnp.bfloat16)
        x, kernel, dy = (jnp.asarray(array, jnp.bfloat16) for array in problem)
        results = value_and_gradients(bind(convolution.function, case, implementation), dy, x, kernel)
        exact = expected_results(convolution, case, *problem)
        sizes = expected_results(convolution, case, *map(np.abs, problem))  # sums of the products' sizes
        for name, actual, expected, size in zip(("y", "dx", "dkernel"), results, exact, sizes, strict=True):
            assert actual.dtype == jnp.bfloat16, name
            bound = BFLOAT16 * np.abs(expected) + 500 * FLOAT32 * size
            if (name, convolution.function, implementation) == ("dx", ops.conv, "shift"):
                bound = rounded_sum(case) * size
            assert np.all(np.abs(np.asarray(actual, np.float64) - expected) <= bound), name

    @drawn(max_examples=10)
    @given(case=cases_that_do_not_fit())
    def test_a_window_larger_than_the_input_is_named(self, convolution, implementation, case):
        kernel = jnp.zeros((*case.window, *convolution.kernel_ends(case.channels)))
        with pytest.raises(ValueError, match=r"window .* is larger than the input of ") as error:
            bind(convolution.function, case, implementation)(jnp.zeros(case.shape), kernel)
        assert str(case.window) in str(error.value) and str(case.size) in str(error.value)


def pool(case, implementation):
    """ops.max_pool as a function of its input alone."""
    return lambda x: bind(ops.max_pool, case, implementation)(x, case.window)


def pooled(case, implementation, x, dy):
    return value_and_gradients(pool(case, implementation), dy, x)


def ties(case):
    """(x, output gradient): integers that bfloat16 represents exactly, and float32 their sums; x has many ties."""
    rng = np.random.default_rng(1)
    x = rng.integers(-4, 0, case.shape).astype(np.float64)
    shape = reference.max_pool(x, case.window, case.strides, case.pairs).shape
    return x, rng.integers(-50, 50, shape).astype(np.float64)


def expected_pool(case, x, dy):
    options = (case.window, case.strides, case.pairs)
    return reference.max_pool(x, *options), reference.max_pool_gradient(x, *options, dy)


# Windows and strides that no model uses.
UNUSUAL = [
    Case(2, (7, 8), 3, (2, 2), (2, 2), "SAME"),
    Case(2, (7, 8), 3, (3, 3), (1, 1), "SAME"),
    Case(2, (7, 8), 3, (3, 2), (2, 1), "SAME"),
    Case(2, (7, 8), 3, (3, 2), (2, 1), "VALID"),
    Case(2, (8, 7), 3, (2, 2), (3, 3), "VALID"),
]


@each_implementation
class TestMaxPool:
    @drawn(max_examples=20)
    @given(case=cases())
    def test_values_equal_numpy_and_of_equal_ones_the_first_gets_the_gradient(self, implementation, case):
        x, dy = ties(case)
        with jax.enable_x64(True):
            results = pooled(case, implementation, x, dy)
        for actual, expected in zip(results, expected_pool(case, x, dy), strict=True):
            assert actual.dtype == np.float64
            np.testing.assert_array_equal(actual, expected)

    @drawn(max_examples=5)
    @given(case=cases())
    def test_bfloat16_rounds_sums_of_gradients_only(self, implementation, case):
        x, dy = ties(case)
        y, dx = pooled(case, implementation, jnp.asarray(x, jnp.bfloat16), jnp.asarray(dy, jnp.bfloat16))
        assert y.dtype == dx.dtype == jnp.bfloat16
        expected_y, expected_dx = expected_pool(case, x, dy)
        np.testing.assert_array_equal(y, expected_y)
        bound = rounded_sum(case) * expected_pool(case, x, np.abs(dy))[1]
        assert np.all(np.abs(np.asarray(dx, np.float64) - expected_dx) <= bound)

    @pytest.mark.parametrize("case", UNUSUAL, ids=str)
    def test_windows_and_strides_that_the_model_does_not_use(self, implementation, case):
        x, dy = ties(case)
        results = pooled(case, implementation, x.astype(np.float32), dy.astype(np.float32))
        for actual, expected in zip(results, expected_pool(case, x, dy), strict=True):
            np.testing.assert_array_equal(actual, expected)

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_padding_never_wins(self, implementation, dtype):
        largest_negative = jnp.finfo(dtype).min
        x = jnp.full((1, 3, 3, 1), largest_negative, dtype)
        y = ops.max_pool(x, 5, strides=1, implementation=implementation)
        np.testing.assert_array_equal(y, np.full((1, 3, 3, 1), largest_negative))

    def test_not_a_number_spreads_to_every_window_that_has_it(self, implementation):
        x = jnp.zeros((1, 6, 6, 2)).at[0, 2, 3, 0].set(jnp.nan)
        y = ops.max_pool(x, 3, strides=1, padding="VALID", implementation=implementation)
        expected = np.zeros((1, 4, 4, 2), bool)
        expected[0, 0:3, 1:4, 0] = True
        np.testing.assert_array_equal(np.isnan(y), expected)

    @drawn(max_examples=10)
    @given(case=cases_that_do_not_fit())
    def test_a_window_larger_than_the_input_is_named(self, implementation, case):
        with pytest.raises(ValueError, match=r"window .* is larger than the input of ") as error:
            pool(case, implementation)(jnp.zeros(case.shape))
        assert str(case.window) in str(error.value) and str(case.size) in str(error.value)


def average(case):
    """ops.avg_pool as a function of its input alone."""
    return lambda x: ops.avg_pool(x, case.window, strides=case.strides, padding=case.padding)


class TestAvgPool:
    @drawn(max_examples=20)
    @given(case=cases())
    def test_values_and_gradients_equal_numpy(self, case):
        rng = np.random.default_rng(0)
        options = (case.window, case.strides, case.pairs)
        x = rng.normal(size=case.shape)
        dy = rng.normal(size=reference.avg_pool(x, *options).shape)
        with jax.enable_x64(True):
            results = value_and_gradients(average(case), dy, x)
        expected = reference.avg_pool(x, *options), reference.avg_pool_gradient(x, *options, dy)
        for actual, values in zip(results, expected, strict=True):
            assert actual.dtype == np.float64
            np.testing.assert_allclose(actual, values, rtol=1e-12, atol=1e-12)

    def test_bfloat16_rounds_the_mean_only(self):
        """The mean of 1024 and 63 ones is 16.98, in bfloat16 17. A sum in bfloat16 would give 1024 / 64 = 16."""
        x = jnp.ones((1, 8, 8, 1), jnp.bfloat16).at[0, 0, 0].set(1024.0)
        y = ops.avg_pool(x, 8, strides=1, padding="VALID")
        assert y.dtype == jnp.bfloat16 and y.item() == 17.0

    @drawn(max_examples=10)
    @given(case=cases_that_do_not_fit())
    def test_a_window_larger_than_the_input_is_named(self, case):
        with pytest.raises(ValueError, match=r"window .* is larger than the input of "):
            average(case)(jnp.zeros(case.shape))


def normalize(x, scale, bias, dtype=None):
    return ops.normalize(x, scale, bias, epsilon=EPSILON, dtype=dtype or x.dtype)


def random_groups(groups, *shape, seed=0):
    """(x[G, ..., C], scale[C], bias[C], output gradient like x)."""
    rng = np.random.default_rng(seed)
    x, dy = rng.normal(2, 3, (groups, *shape)), rng.normal(size=(groups, *shape))
    return x, *rng.uniform(0.5, 2, (2, shape[-1])), dy


class TestNormalize:
    @pytest.mark.parametrize("shape", [(1, 2, 3, 2, 3), (3, 2, 3, 2), (2, 1, 1), (1, 5, 1)], ids=str)
    def test_values_and_gradients_equal_numpy(self, shape):
        *inputs, dy = random_groups(*shape)
        with jax.enable_x64(True):
            function = functools.partial(normalize, dtype=np.float64)
            zeros = (np.zeros((shape[0], shape[-1])),) * 2
            results, *gradients = value_and_gradients(function, (dy, *zeros), *inputs)
        for actual, expected in zip(results, reference.normalize(*inputs, EPSILON), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)
        for i, (value, actual) in enumerate(zip(inputs, gradients, strict=True)):

            def loss(value, i=i):
                changed = [*inputs[:i], value, *inputs[i + 1 :]]
                return np.sum(dy * reference.normalize(*changed, EPSILON)[0])

            np.testing.assert_allclose(actual, reference.numeric_gradient(loss, value), rtol=1e-6, atol=1e-7)

    def test_no_gradient_flows_through_the_statistics(self):
        x, scale, bias, _ = map(jnp.float32, random_groups(2, 3, 4, 3))
        gradients = jax.grad(lambda *inputs: sum(map(jnp.sum, normalize(*inputs)[1:])), (0, 1, 2))(x, scale, bias)
        assert not any(np.any(gradient) for gradient in gradients)

    @pytest.mark.parametrize("groups", [1, 3])
    def test_a_large_mean_loses_no_variance(self, groups):
        x = np.random.default_rng(0).normal(1e4, 1, (groups, 4, 16, 16, 3)).astype(np.float32)
        _, means, variances = reference.normalize(x, 1, 0, EPSILON)
        _, mean, var = normalize(jnp.asarray(x), jnp.ones(3), jnp.zeros(3))
        np.testing.assert_allclose(mean, means, rtol=1e-6)
        np.testing.assert_allclose(var, variances, rtol=1e-3)
        axes = (1, 2, 3)
        single_pass = np.mean(x * x, axes, dtype=np.float32) - np.mean(x, axes, dtype=np.float32) ** 2
        assert np.all(np.abs(single_pass / variances - 1) > 0.1), "the test must tell the two apart"

    def test_groups_agree_with_separate_calls(self):
        x, scale, bias, dy = map(jnp.float32, random_groups(3, 2, 4, 5, 3))

        def run(x, dy):
            statistics = jnp.zeros((len(x), 3))
            (y, mean, var), *gradients = value_and_gradients(
                normalize, (dy, statistics, statistics), x, scale, bias
            )
            return y, mean, var, *gradients

        together = run(x, dy)
        *separate, dscale, dbias = zip(*(run(x[g : g + 1], dy[g : g + 1]) for g in range(3)), strict=True)
        expected = [*map(np.concatenate, separate), sum(dscale), sum(dbias)]
        for actual, value in zip(together, expected, strict=True):
            np.testing.assert_allclose(actual, value, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("groups", [1, 2])
    def test_bfloat16_rounds_the_results_of_float32(self, groups):
        """Statistics and gradients in float32 stay; only the outputs in bfloat16 are rounded."""
        x, scale, bias, dy = random_groups(groups, 4, 5, 3)
        x, dy = (jnp.asarray(array, jnp.bfloat16) for array in (x, dy))
        scale, bias = jnp.float32(scale), jnp.float32(bias)
        function = functools.partial(normalize, dtype=jnp.bfloat16)
        zeros = (jnp.zeros((groups, 3)),) * 2
        (y, mean, var), dx, dscale, dbias = value_and_gradients(function, (dy, *zeros), x, scale, bias)
        wide = (dy.astype(jnp.float32), *zeros), x.astype(jnp.float32), scale, bias
        exact, exact_dx, exact_dscale, exact_dbias = value_and_gradients(normalize, *wide)
        assert y.dtype == dx.dtype == jnp.bfloat16
        assert mean.dtype == var.dtype == dscale.dtype == dbias.dtype == jnp.float32
        for actual, expected in ((y, exact[0]), (dx, exact_dx)):
            expected = np.asarray(expected, np.float64)
            np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=1.001 * BFLOAT16, atol=1e-6)
        for actual, expected in ((mean, exact[1]), (var, exact[2]), (dscale, exact_dscale), (dbias, exact_dbias)):
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
