"""The recurrent operation against numpy and Keras, with all gradients, and what its loops may and may not do."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import parity
from xception_jax import ops
from xception_jax.errors import SettingError
from xception_jax.ops.recurrence import CELLS

T, N, H, E = 6, 5, 3, 4
LENGTHS = np.array([6, 1, 4, 0, 3], np.int32)
EVERY_CELL = pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
BOTH_DIRECTIONS = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def next_rnn(x, s, h, c):
    return np.tanh(x + s), c


def next_lstm(x, s, h, c):
    i, f, g, o = np.split(x + s, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def next_gru(x, s, h, c):
    (xr, xz, xn), (sr, sz, sn) = np.split(x, 3), np.split(s, 3)
    z = sigmoid(xz + sz)
    return (1 - z) * np.tanh(xn + sigmoid(xr + sr) * sn) + z * h, c


NEXT = {"rnn": next_rnn, "lstm": next_lstm, "gru": next_gru}


def in_numpy(cell, projected, kernel, bias, lengths, reverse):
    """(outputs, states) of the recurrence, one sequence after the other, one step after the other."""
    outputs = np.zeros((*projected.shape[:2], len(kernel)), projected.dtype)
    states = np.zeros(outputs.shape[1:], projected.dtype)
    for n, length in enumerate(lengths):
        h = c = np.zeros(len(kernel), projected.dtype)
        for t in range(length)[:: -1 if reverse else 1]:
            h, c = NEXT[cell](projected[t, n], h @ kernel + bias, h, c)
            outputs[t, n] = h
        states[n] = h
    return outputs, states


def objective_in_numpy(cell, lengths, reverse, dy, dstate):
    """A function of (projected, kernel, bias) whose gradient is that of the results with these cotangents."""

    def objective(*arrays):
        outputs, states = in_numpy(cell, *arrays, lengths, reverse)
        return np.sum(outputs * dy) + np.sum(states * dstate)

    return objective


def derivative(function, arrays, number):
    """The gradient of a function for one of its arguments, by complex steps, in which nothing cancels."""
    result = np.zeros(arrays[number].shape)
    for place in np.ndindex(result.shape):
        moved = [array.astype(complex) for array in arrays]
        moved[number][place] += 1e-30j
        result[place] = function(*moved).imag / 1e-30
    return result


def example(cell, steps=T, n=N, width=H, seed=0, dtype=np.float64):
    """(projected, kernel, bias), (gradient of the outputs, gradient of the states), all random."""
    rng, columns = np.random.default_rng(seed), CELLS[cell].groups * width
    shapes = (steps, n, columns), (width, columns), (columns,), (steps, n, width), (n, width)
    *arrays, dy, dstate = (rng.normal(size=shape).astype(dtype) for shape in shapes)
    return arrays, (dy, dstate)


@functools.partial(jax.jit, static_argnames=("cell", "reverse", "unroll"))
def values_and_gradients(arrays, cotangents, lengths, **options):
    """(outputs, states), (gradients of projected, kernel, bias) of the operation."""
    cell = options.pop("cell")
    results, pullback = jax.vjp(lambda *arrays: ops.recurrence(cell, *arrays, lengths, **options), *arrays)
    return results, pullback(cotangents)


def assert_close(ours, expected, tolerance=1e-13):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), ours, expected)


@EVERY_CELL
@BOTH_DIRECTIONS
class TestAgainstNumpy:
    @pytest.mark.parametrize("lengths", [LENGTHS, None], ids=["ragged", "all steps"])
    def test_outputs_states_and_gradients(self, cell, reverse, lengths):
        arrays, (dy, dstate) = example(cell)
        steps = np.full(N, T) if lengths is None else lengths
        objective = objective_in_numpy(cell, steps, reverse, dy, dstate)
        with jax.enable_x64(True):
            ours = values_and_gradients(arrays, (dy, dstate), lengths, cell=cell, reverse=reverse)
        assert all(array.dtype == np.float64 for array in jax.tree.leaves(ours))
        gradients = tuple(derivative(objective, arrays, number) for number in range(3))
        assert_close(ours, (in_numpy(cell, *arrays, steps, reverse), gradients))

    def test_padding_has_no_effect(self, cell, reverse):
        arrays, cotangents = example(cell)
        padding = np.arange(T)[:, None] >= LENGTHS[None]  # [T, N]
        results = []
        with jax.enable_x64(True):
            for value in (0.0, 1e4):
                filled = [np.where(padding[..., None], value, arrays[0]), *arrays[1:]]
                results.append(values_and_gradients(filled, cotangents, LENGTHS, cell=cell, reverse=reverse))
        jax.tree.map(np.testing.assert_array_equal, *results)
        (outputs, _), (dprojected, *_) = results[0]
        assert not np.any(np.asarray(outputs)[padding]) and not np.any(np.asarray(dprojected)[padding])

    def test_a_sequence_in_a_batch_equals_the_sequence_alone_to_the_bit(self, cell, reverse):
        """Alone means a batch of its copies: for a batch of one, XLA computes the products in another order."""
        arrays, _ = example(cell, steps=20, n=3, width=32)
        lengths = np.array([20, 7, 1], np.int32)
        run = jax.jit(functools.partial(ops.recurrence, cell, reverse=reverse))
        with jax.enable_x64(True):
            outputs, states = map(np.asarray, run(*arrays, lengths))
            for n, length in enumerate(lengths):
                alone = run(np.repeat(arrays[0][:length, n : n + 1], 3, axis=1), *arrays[1:], None)
                jax.tree.map(np.testing.assert_array_equal, alone, (outputs[:length, [n] * 3], states[[n] * 3]))


class TestAgainstKeras:
    """Keras's layers on ragged sequences that a mask describes."""

    @BOTH_DIRECTIONS
    @pytest.mark.parametrize(("cell", "name"), [("rnn", "SimpleRNN"), ("lstm", "LSTM"), ("gru", "GRU")])
    def test_outputs_states_and_gradients(self, cell, name, reverse):
        keras = pytest.importorskip("keras")
        rng, lengths = np.random.default_rng(1), np.array([6, 1, 4, 2, 3], np.int32)
        x, (dy, dstate) = rng.normal(size=(N, T, E)), example(cell)[1]
        mask = np.arange(T)[None] < lengths[:, None]  # [N, T]
        with parity.float64(), parity.keras_float64(keras):
            layer = getattr(keras.layers, name)(H, return_sequences=True, return_state=True, go_backwards=reverse)
            layer.build(x.shape)
            weights = [rng.normal(size=variable.shape) for variable in layer.trainable_variables]
            fixed = [variable.value for variable in layer.non_trainable_variables]

            def theirs(weights, x):
                (outputs, states, *_), _ = layer.stateless_call(weights, fixed, x, mask=mask)
                outputs = outputs[:, ::-1] if reverse else outputs
                return jnp.moveaxis(jnp.where(mask[..., None], outputs, 0), 1, 0), states

            def ours(weights, x):
                kernel, recurrent, *biases = (in_our_order(cell, array) for array in weights)
                bias, recurrent_bias = biases[0] if cell == "gru" else (jnp.zeros_like(biases[0]), biases[0])
                projected = jnp.moveaxis(x, 1, 0) @ kernel + bias
                return ops.recurrence(cell, projected, recurrent, recurrent_bias, lengths, reverse=reverse)

            compute = jax.jit(differentiate, static_argnums=0)
            results = [compute(function, weights, x, (dy, dstate)) for function in (ours, theirs)]
        assert all(np.all(np.abs(gradient).max(-1) > 0) for gradient in results[1][1][0])
        assert_close(*results)


def differentiate(function, weights, x, cotangents):
    """(results, gradients of the weights and of x)."""
    results, pullback = jax.vjp(function, weights, x)
    return results, pullback(cotangents)


def in_our_order(cell, array):
    """A weight of Keras with its columns in our order: those of the GRU are z, r, n there."""
    if cell != "gru":
        return array
    z, r, n = jnp.split(array, 3, axis=-1)
    return jnp.concatenate([r, z, n], axis=-1)


def bodies(program):
    """The computations that the loops of an optimized program run in each step, as XLA's text."""
    names = set(re.findall(r" while\(.*body=%([^\s,]+)", program))
    assert len(names) == 2  # forward and backward
    return [re.search(rf"^%{re.escape(name)} .*?^\}}", program, re.MULTILINE | re.DOTALL)[0] for name in names]


@EVERY_CELL
@BOTH_DIRECTIONS
def test_a_step_neither_waits_for_another_device_nor_copies_what_all_steps_share(cell, reverse):
    """A batch that is spread over the devices gives the right results."""
    devices = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def put(array, *axes):
        return jax.device_put(array.astype(np.float32), jax.NamedSharding(devices, jax.P(*axes)))

    arrays, (dy, dstate) = example(cell, n=8)
    lengths = np.arange(8) % (T + 1)
    cotangents = put(dy, None, "data"), put(dstate, "data")
    inputs = [put(arrays[0], None, "data"), *map(put, arrays[1:])], cotangents, put(lengths, "data").astype(int)
    compiled = values_and_gradients.lower(*inputs, cell=cell, reverse=reverse).compile()
    results, (_, *gradients) = compiled(*inputs)

    expected = in_numpy(cell, *arrays, lengths, reverse)
    objective = objective_in_numpy(cell, lengths, reverse, dy, dstate)
    assert_close(results, expected, 1e-5)
    assert_close(gradients, [derivative(objective, arrays, number) for number in (1, 2)], 1e-4)

    program, meeting = compiled.as_text(), r" (all-|collective-|reduce-scatter)"
    assert "all-reduce" in program and "all-gather" not in program  # devices exchange gradients of weights only
    for body in bodies(program):
        assert not re.search(meeting, body)
        assert "dynamic-update-slice" in body and not re.search(rf"= \S*\[{T},\S* copy\(", body)


def test_unrolling_changes_nothing():
    arrays, cotangents = example("gru")
    compute = functools.partial(values_and_gradients, arrays, cotangents, LENGTHS, cell="gru", reverse=False)
    with jax.enable_x64(True):
        assert_close(compute(unroll=4), compute(), 1e-14)


def test_projection_and_its_gradients_equal_numpy():
    rng = np.random.default_rng(0)
    x, kernel, dy = (rng.normal(size=shape) for shape in ((T, N, E), (E, H), (T, N, H)))
    with jax.enable_x64(True):
        y, pullback = jax.vjp(ops.project, x, kernel)
        ours = y, *pullback(dy)
    expected = x @ kernel, dy @ kernel.T, np.einsum("tni,tnc->ic", x, dy)
    assert_close(ours, expected)


def test_rematerialization_gives_the_same_gradients():
    arrays, (dy, _) = example("lstm")

    def loss(*arrays):
        return jnp.sum(ops.recurrence("lstm", *arrays, LENGTHS)[0] * dy)

    with jax.enable_x64(True):
        plain, again = (jax.jit(jax.grad(f, (0, 1, 2)))(*arrays) for f in (loss, jax.checkpoint(loss)))
    assert_close(again, plain)


@EVERY_CELL
def test_bfloat16_learns_as_float32_does(cell):
    """Both learn whether the first step's input, of up to 8 steps, is positive."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 64, 1)).astype(np.float32)
    lengths, label = rng.integers(1, 9, 64).astype(np.int32), jnp.asarray(x[0, :, 0] > 0, jnp.float32)
    columns, width = CELLS[cell].groups * 8, 8
    weights = [
        rng.normal(0, 0.35, shape).astype(np.float32) for shape in ((1, columns), (width, columns), (columns,))
    ]

    def loss(weights, dtype):
        kernel, recurrent, bias = (weight.astype(dtype) for weight in weights[:3])
        _, states = ops.recurrence(cell, jnp.asarray(x, dtype) @ kernel, recurrent, bias, lengths)
        assert states.dtype == dtype
        logits = states.astype(jnp.float32) @ weights[3]
        return jnp.mean(jax.nn.softplus(logits) - label * logits)

    @functools.partial(jax.jit, static_argnums=1)
    def train(weights, dtype):
        def step(weights, _):
            value, gradients = jax.value_and_grad(loss)(weights, dtype)
            return jax.tree.map(lambda w, g: w - 0.3 * g, weights, gradients), value

        return jax.lax.scan(step, weights, length=100)[1]

    wide, narrow = (train([*weights, np.ones(width, np.float32)], dtype) for dtype in (jnp.float32, jnp.bfloat16))
    assert wide[-1] < 0.8 * wide[0]
    np.testing.assert_allclose(narrow, wide, atol=0.05)


def test_an_unknown_cell_is_refused():
    arrays, _ = example("rnn", dtype=np.float32)
    with pytest.raises(SettingError, match="cell = 'elman': choose one of rnn, lstm, gru"):
        ops.recurrence("elman", *arrays, None)


@pytest.mark.parametrize("number", range(3))
def test_shapes_that_do_not_fit_are_refused(number):
    arrays, _ = example("gru", dtype=np.float32)
    arrays[number] = arrays[number][..., :-1]
    with pytest.raises(ValueError, match=r"recurrence of gru: projected .* do not fit"):
        ops.recurrence("gru", *arrays, None)
