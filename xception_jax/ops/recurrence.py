"""Recurrent layers over the steps of right-padded sequences: the tanh RNN, the LSTM and the GRU.

With x the projected inputs of a step, b the bias, U the kernel, h the hidden state before the step and h' the one
after it, the cells are

  rnn (Elman 1990): h' = tanh(x + h U + b)
  lstm (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000), columns i, f, g, o:
    c' = sigmoid(f) c + sigmoid(i) tanh(g), h' = sigmoid(o) tanh(c'), where [i f g o] = x + h U + b
  gru (Cho et al. 2014, with the reset gate after the product), columns r, z, n, s = h U + b:
    h' = (1 - z) n + z h, r = sigmoid(x_r + s_r), z = sigmoid(x_z + s_z), n = tanh(x_n + r s_n)

This is the order of torch's columns. Keras has the LSTM's in the same order, but the GRU's as z, r, n.

The loop over the steps has a derivative of its own. On CPU it keeps what the derivative needs in the memory of the
projected inputs, and the gradients are written over that, because XLA would clear new arrays first.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

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
    """The hidden states of a recurrent layer that starts with a state of zeros; its formula stands above.

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
    columns = CELLS[cell].groups * len(kernel)
    if any(array.shape[-1] != columns for array in (projected, kernel, bias)):
        shapes = f"projected {projected.shape}, kernel {kernel.shape} and bias {bias.shape}"
        raise ValueError(f"recurrence of {cell}: {shapes} do not fit")
    run = functools.partial(_run, cell, reverse, unroll, projected, kernel, bias)
    if lengths is None:
        outputs = run(None)
        return outputs, outputs[0 if reverse else -1]
    step = jnp.arange(len(projected), dtype=lengths.dtype)[:, None, None]
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
      states: number of arrays [N, H] that are carried from step to step; the first is the hidden state.
      kept: number of arrays that `backward` needs of each step; the last is the new hidden state.
      forward: (projected inputs x, product s = h U + b, states) -> (new states, kept arrays but for the last). The
        first of the kept arrays has the shape of x, the others have the shape of the state.
      backward: (kept arrays, hidden state before the step, gradients of the new states) -> (gradients to write
        over the first kept arrays; gradient of s; gradients of the old states, without what h gets from s). The
        first gradient to write is that of x; the GRU's second one is that of the last group of columns of s, in
        which alone the gradients of s and x differ.
    """

    groups: int
    states: int
    kept: int
    forward: Callable[[jax.Array, jax.Array, Arrays], tuple[Arrays, Arrays]]
    backward: Callable[[Arrays, jax.Array, Arrays], tuple[Arrays, jax.Array, Arrays]]


def _rnn_forward(x, s, states):
    return (jnp.tanh(x + s),), ()


def _rnn_backward(kept, before, gradients):
    (h,), (dh,) = _once(kept), gradients
    dz = dh * (1 - h * h)
    return (dz,), dz, (jnp.zeros_like(dh),)


def _lstm_forward(x, s, states):
    _, c = states
    width = c.shape[1]
    # One tanh for all columns is faster than four functions: sigmoid(z) = tanh(z / 2) / 2 + 1 / 2.
    scale = jnp.repeat(jnp.array([0.5, 0.5, 1, 0.5], x.dtype), width)[None]
    gates = jnp.tanh((x + s) * scale) * scale + (1 - scale)  # [N, 4 H]
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    new = f * c + i * g
    return (o * jnp.tanh(new), new), (gates, c)


def _lstm_backward(kept, before, gradients):
    gates, c, _ = kept
    dh, dc = gradients
    i, f, g, o = _once(jnp.split(gates, 4, axis=-1))
    t = jnp.tanh(f * c + i * g)
    dc = _once(dc + dh * o * (1 - t * t))
    parts = dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g * g), dh * t * o * (1 - o)
    dz = jnp.concatenate(parts, axis=-1)  # [N, 4 H]
    return (dz,), dz, (jnp.zeros_like(dh), dc * f)


def _gru_forward(x, s, states):
    (h,) = states
    width = h.shape[1]
    gates = jnp.tanh((x + s)[:, : 2 * width] * 0.5) * 0.5 + 0.5  # [N, 2 H], the sigmoid
    r, z = _once(jnp.split(gates, 2, axis=-1))
    sn = s[:, 2 * width :]
    n = jnp.tanh(x[:, 2 * width :] + r * sn)
    return ((1 - z) * n + z * h,), (jnp.concatenate([gates, n], axis=-1), sn)


def _gru_backward(kept, before, gradients):
    gates, sn, _ = kept
    (dh,) = gradients
    r, z, n, sn = _once((*jnp.split(gates, 3, axis=-1), sn))
    dn = _once(dh * (1 - z) * (1 - n * n))
    dr, dz = dn * sn * r * (1 - r), dh * (before - n) * z * (1 - z)
    dsn = dn * r
    ds = jnp.concatenate([dr, dz, dsn], axis=-1)  # [N, 3 H]
    return (jnp.concatenate([dr, dz, dn], axis=-1), dsn), ds, (dh * z,)


CELLS = {
    "rnn": Cell(1, 1, 1, _rnn_forward, _rnn_backward),
    "lstm": Cell(4, 2, 3, _lstm_forward, _lstm_backward),
    "gru": Cell(3, 1, 3, _gru_forward, _gru_backward),
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _run(cell, reverse, unroll, projected, kernel, bias, valid):
    """The hidden states [T, N, H]; where valid[T, N, 1] is given and False, the states become 0."""
    return _run_forward(cell, reverse, unroll, projected, kernel, bias, valid)[0]


def _run_forward(cell, reverse, unroll, projected, kernel, bias, valid):
    """Each step keeps arrays for the derivative; on CPU, it writes the first over its projected inputs."""
    (steps, n, _), width, wide = projected.shape, len(kernel), accumulator(projected.dtype)
    in_place = jax.default_backend() == "cpu"
    bias = bias.astype(wide)[None]

    def step(carry, inputs):
        states, arrays = carry
        t, keep = inputs
        (x,) = _read((arrays[0] if in_place else projected,), t, wide)
        states, kept = CELLS[cell].forward(x, _dot(states[0], kernel, wide) + bias, states)
        states = _mask(states, keep)
        return (states, _write(arrays, (*kept, states[0]), t)), None

    states = (jnp.zeros((n, width), wide),) * CELLS[cell].states
    arrays = [jnp.zeros((steps, n, width), projected.dtype)] * (CELLS[cell].kept - 1)
    arrays = (projected if in_place else jnp.zeros_like(projected), *arrays)
    inputs = jnp.arange(steps), valid
    (_, kept), _ = lax.scan(step, (states, arrays), inputs, reverse=reverse, unroll=unroll)
    return kept[-1], (kept, kernel, bias, valid)


def _run_backward(cell, reverse, unroll, residuals, doutputs):
    """The kernel's gradient is one product after the loop; where XLA allows it, a step overwrites what it kept."""
    kept, kernel, bias, valid = residuals
    (steps, n, width), dtype, wide = kept[-1].shape, kept[-1].dtype, bias.dtype
    parts = [jnp.zeros((1, n, width), dtype), kept[-1][1:] if reverse else kept[-1][:-1]]
    before = jnp.concatenate(parts[::-1] if reverse else parts)  # [T, N, H], the hidden state before each step
    transposed = _once(kernel.T)  # XLA's CPU backend would transpose it in every step
    in_place = _barriers_hold()  # otherwise every step would copy the arrays that it reads and writes

    def step(carry, inputs):
        gradients, arrays = carry
        t, h, dy, keep = inputs
        gradients = _mask((gradients[0] + dy.astype(wide), *gradients[1:]), keep)
        written, ds, gradients = CELLS[cell].backward(
            _read(arrays if in_place else kept, t, wide), h.astype(wide), gradients
        )
        dh = gradients[0] + _dot(ds, transposed, wide)
        return ((dh, *gradients[1:]), _write(arrays, written, t)), None

    gradients = (jnp.zeros((n, width), wide),) * CELLS[cell].states
    inputs = jnp.arange(steps), before, doutputs, valid
    arrays = kept if in_place else tuple(map(jnp.zeros_like, kept))
    (_, arrays), _ = lax.scan(step, (gradients, arrays), inputs, reverse=not reverse, unroll=unroll)
    dx = ds = arrays[0]
    if cell == "gru":
        ds = lax.dynamic_update_slice_in_dim(dx, arrays[1], 2 * width, axis=2)  # [T, N, 3 H]
    dkernel, dbias = _weight_gradient(before, ds), jnp.sum(ds, (0, 1), dtype=wide)
    return dx, dkernel.astype(kernel.dtype), dbias.astype(kernel.dtype), None


_run.defvjp(_run_forward, _run_backward)


@jax.custom_vjp
def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The inputs of all steps times a kernel, x @ kernel, with a derivative that is faster on CPU than JAX's own.

    Args:
      x: float[T, N, I].
      kernel: float[I, C].

    Returns:
      float[T, N, C] in the type of `x`, which must be that of the kernel.
    """
    return x @ kernel


def _project_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _project_backward(residuals, dy):
    x, kernel = residuals
    return dy @ kernel.T, _weight_gradient(x, dy).astype(kernel.dtype)


project.defvjp(_project_forward, _project_backward)


def _weight_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The sum of x[t, n, :, None] dy[t, n, None, :] over steps and examples, float[I, C], in a wide type.

    The dimensions are not merged first, because each device may have other examples. With x before dy, XLA's CPU
    backend takes a third of the time.
    """
    dimensions = (((0, 1), (0, 1)), ((), ()))
    return lax.dot_general(x, dy, dimensions, preferred_element_type=accumulator(x.dtype))


def _read(arrays: Arrays, t: jax.Array, dtype: jnp.dtype) -> Arrays:
    """Step t of each array, in another type."""
    return tuple(lax.dynamic_index_in_dim(array, t, keepdims=False).astype(dtype) for array in arrays)


def _write(arrays: Arrays, values: Arrays, t: jax.Array) -> Arrays:
    """The arrays with new values of step t in the first of them."""
    put = lax.dynamic_update_index_in_dim
    written = [put(array, v.astype(array.dtype), t, 0) for array, v in zip(arrays, values, strict=False)]
    return *written, *arrays[len(written) :]


def _dot(a: jax.Array, b: jax.Array, wide: jnp.dtype) -> jax.Array:
    """The matrix product of `a`, in the type of b, with b; in a wide type."""
    return lax.dot(a.astype(b.dtype), b, preferred_element_type=wide)


def _mask(states: Arrays, keep: jax.Array | None) -> Arrays:
    """The states, with 0 where keep[N, 1] is False."""
    return states if keep is None else tuple(jnp.where(keep, state, 0) for state in states)


def _barriers_hold() -> bool:
    """Whether `_once` has an effect: XLA's CPU backend of jax 0.10 drops barriers before it fuses loops."""
    return jax.default_backend() == "cpu" and jax.__version_info__ >= (0, 12)


def _once(x):
    """x itself, which XLA's CPU backend would otherwise compute again in every loop that uses it."""
    return lax.optimization_barrier(x) if _barriers_hold() else x
