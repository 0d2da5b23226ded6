"""Recurrent layers over the steps of right-padded sequences: the tanh RNN, the LSTM and the GRU."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from xception_jax.errors import SettingError
from xception_jax.ops.windows import accumulator

Arrays = tuple[jax.Array, ...]


def recurrence(
    cell: str,
    projected: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    lengths: jax.Array | None,
    *,
    reverse: bool = False,
    unroll: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """The hidden states of a recurrent layer that starts with a state of zeros.

    With x the projected inputs of a step, b the bias, U the kernel, h the hidden state before the step and h' the
    one after it, the cells are

      rnn (Elman 1990): h' = tanh(x + h U + b)
      lstm (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000), columns i, f, g, o:
        c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c'), where [i f g o] = x + h U + b
      gru (Cho et al. 2014, with the reset gate after the product), columns r, z, n, s = h U + b:
        h' = (1 - z) n + z h, r = sigmoid(x_r + s_r), z = sigmoid(x_z + s_z), n = tanh(x_n + r s_n)

    This is the order of torch's columns. Keras has the LSTM's in the same order, but the GRU's as z, r, n.

    Args:
      cell: "rnn", "lstm" or "gru", with G = 1, 4 or 3 groups of columns.
      projected: float[T, N, G H], the inputs of all steps times the input kernel, plus the input bias.
      kernel: float[H, G H], the recurrent kernel.
      bias: float[G H], the recurrent bias, which is torch's bias_hh.
      lengths: int32[N], the number of steps of each sequence; what follows them is padding, whose `projected` must
        be finite but has no effect. None: all T steps.
      reverse: from the last step of each sequence to the first, instead of from the first to the last.
      unroll: steps in each round of the compiled loop.

    Returns:
      (outputs float[T, N, H], the hidden states, which are 0 on padding; state float[N, H], the hidden state after
      the last step of each sequence, or after its first step if `reverse`, which is 0 for a length of 0), both in
      the type of `projected`. Products are accumulated and the state is kept in float32 or wider.

    Raises:
      SettingError: if the cell is unknown.
      ValueError: if the shapes do not fit.

    >>> projected = jnp.ones((3, 2, 1))
    >>> outputs, state = recurrence("rnn", projected, jnp.zeros((1, 1)), jnp.zeros(1), jnp.array([3, 1]))
    >>> print(outputs[..., 0].round(2), state[:, 0].round(2))
    [[0.76 0.76]
     [0.76 0.  ]
     [0.76 0.  ]] [0.76 0.76]
    """
    if cell not in CELLS:
        raise SettingError("cell", cell, f"choose one of {', '.join(CELLS)}")
    steps, n, _ = projected.shape
    columns = CELLS[cell].groups * len(kernel)
    if kernel.shape[1:] != (columns,) or bias.shape != (columns,) or projected.shape != (steps, n, columns):
        raise ValueError(f"{cell}: {projected.shape}, kernel {kernel.shape} and bias {bias.shape} do not fit")
    run = functools.partial(_run, cell, reverse, unroll, projected, kernel, bias)
    if lengths is None:
        outputs = run(None)
        return outputs, outputs[0 if reverse else -1]
    step = jnp.arange(steps, dtype=lengths.dtype)[:, None, None]
    lengths = lengths[None, :, None]
    if reverse:  # the state must stay 0 until the last step of the sequence
        outputs = run(step < lengths)
        return outputs, outputs[0]
    hidden = run(None)  # Padding follows the sequence, so it does no harm to compute states there as well.
    return jnp.where(step < lengths, hidden, 0), jnp.sum(jnp.where(step == lengths - 1, hidden, 0), 0)


class Cell(NamedTuple):
    """One kind of recurrent layer.

    Attributes:
      groups: number of groups of columns, each as wide as the state.
      states: number of arrays [N, H] that are carried from step to step, of which the first is the hidden state.
      forward: (projected inputs, h U + b, states) -> (new states, arrays for the derivative).
      backward: (arrays for the derivative, hidden state before, hidden state after, gradients of the new states)
        -> (gradient of the projected inputs, gradient of h U + b, gradients of the states, without h U's part).
    """

    groups: int
    states: int
    forward: Callable[[jax.Array, jax.Array, Arrays], tuple[Arrays, Arrays]]
    backward: Callable[[Arrays, jax.Array, jax.Array, Arrays], tuple[jax.Array, jax.Array, tuple[Any, ...]]]


def _rnn_forward(x, product, states):
    return (jnp.tanh(x + product),), ()


def _rnn_backward(kept, before, after, gradients):
    dz = gradients[0] * (1 - after * after)
    return dz, dz, (0,)


def _lstm_forward(x, product, states):
    i, f, g, o = jnp.split(x + product, 4, axis=-1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    c = f * states[1] + i * g
    return (o * jnp.tanh(c), c), (i, f, g, o, states[1])


def _lstm_backward(kept, before, after, gradients):
    i, f, g, o, c = kept
    dh, dc = gradients
    t = jnp.tanh(f * c + i * g)
    dc = dc + dh * o * (1 - t * t)
    parts = dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g * g), dh * t * o * (1 - o)
    dz = jnp.concatenate(parts, axis=-1)
    return dz, dz, (0, dc * f)


def _gru_forward(x, product, states):
    (xr, xz, xn), (sr, sz, sn) = jnp.split(x, 3, axis=-1), jnp.split(product, 3, axis=-1)
    r, z = jax.nn.sigmoid(xr + sr), jax.nn.sigmoid(xz + sz)
    n = jnp.tanh(xn + r * sn)
    return ((1 - z) * n + z * states[0],), (r, z, n, sn)


def _gru_backward(kept, before, after, gradients):
    r, z, n, sn = kept
    (dh,) = gradients
    dn = dh * (1 - z) * (1 - n * n)
    dr, dz = dn * sn * r * (1 - r), dh * (before - n) * z * (1 - z)
    return jnp.concatenate([dr, dz, dn], -1), jnp.concatenate([dr, dz, dn * r], -1), (dh * z,)


CELLS = {
    "rnn": Cell(1, 1, _rnn_forward, _rnn_backward),
    "lstm": Cell(4, 2, _lstm_forward, _lstm_backward),
    "gru": Cell(3, 1, _gru_forward, _gru_backward),
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _run(cell, reverse, unroll, projected, kernel, bias, valid):
    """The hidden states [T, N, H]; where valid[T, N, 1] is given and False, the states become 0."""
    return _run_forward(cell, reverse, unroll, projected, kernel, bias, valid)[0]


def _run_forward(cell, reverse, unroll, projected, kernel, bias, valid):
    wide, (width, n) = accumulator(projected.dtype), (len(kernel), projected.shape[1])
    bias = bias.astype(wide)[None]

    def step(states, inputs):
        x, keep = inputs
        product = _dot(states[0], kernel, wide) + bias  # [N, G H]
        states, kept = CELLS[cell].forward(x.astype(wide), product, states)
        states = _mask(states, keep)
        return states, _cast((states[0], kept), projected.dtype)

    zeros = (jnp.zeros((n, width), wide),) * CELLS[cell].states
    _, (outputs, kept) = lax.scan(step, zeros, (projected, valid), reverse=reverse, unroll=unroll)
    return outputs, (outputs, kept, kernel, bias, valid)


def _run_backward(cell, reverse, unroll, residuals, doutputs):
    """The kernel's gradient is one product after the loop, so that the loop adds nothing up."""
    outputs, kept, kernel, bias, valid = residuals
    wide, (steps, n, width) = bias.dtype, outputs.shape
    nothing = jnp.zeros((1, n, width), outputs.dtype)
    parts = (outputs[1:], nothing) if reverse else (nothing, outputs[:-1])
    before = jnp.concatenate(parts)  # [T, N, H], the hidden state before each step

    def step(gradients, inputs):
        dy, *arrays, keep = inputs
        arrays, dy = _cast((arrays, dy), wide)
        gradients = _mask((gradients[0] + dy, *gradients[1:]), keep)
        dx, dproduct, (dh, *others) = CELLS[cell].backward(*arrays, gradients)
        dx, dproduct = _cast((dx, dproduct), outputs.dtype)
        return (_dot(dproduct, kernel.T, wide) + dh, *others), (dx, dproduct)

    zeros = (jnp.zeros((n, width), wide),) * CELLS[cell].states
    inputs = (doutputs, kept, before, outputs, valid)
    _, (dx, dproduct) = lax.scan(step, zeros, inputs, reverse=not reverse, unroll=unroll)
    dproduct = dproduct.reshape(steps * n, -1)
    dkernel = _dot(before.reshape(steps * n, width).T, dproduct, wide)
    dbias = jnp.sum(dproduct, 0, dtype=wide)
    return dx, dkernel.astype(kernel.dtype), dbias.astype(kernel.dtype), None


_run.defvjp(_run_forward, _run_backward)


def _dot(a: jax.Array, b: jax.Array, wide: jnp.dtype) -> jax.Array:
    """The matrix product of `a`, in the type of b, with b; in a wide type."""
    return lax.dot(a.astype(b.dtype), b, preferred_element_type=wide)


def _mask(states: Arrays, keep: jax.Array | None) -> Arrays:
    """The states, with 0 where keep[N, 1] is False."""
    return states if keep is None else tuple(jnp.where(keep, state, 0) for state in states)


def _cast(arrays: Any, dtype: jnp.dtype) -> Any:
    return jax.tree.map(lambda array: array.astype(dtype), arrays)
