"""Depthwise convolution: one spatial kernel per channel.

Two implementations behind one function. `"xla"` is the reference: XLA's grouped convolution with as many
groups as channels. `"shift"` adds up shifted, scaled copies of the input, one for each kernel tap, and brings
its own derivative; on CPU it is many times faster, because XLA's CPU backend has no fast grouped convolution.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from xception_jax.ops.convolution import conv
from xception_jax.ops.windows import (
    Pair,
    Pairs,
    accumulator,
    choose,
    output_size,
    pad,
    pad_pairs,
    pair,
    shifted,
    taps,
)


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int | tuple[int, int] = 1,
    padding: str | Sequence[tuple[int, int]] = "SAME",
    implementation: str | None = None,
) -> jax.Array:
    """Convolves every channel of `x` with its own kernel (cross-correlation, as in all frameworks).

    Args:
      x: images or features, float[N, H, W, C].
      kernel: float[kh, kw, 1, C], the layout XLA uses for a convolution with C groups.
      strides: steps in pixels, one number or (rows, columns).
      padding: "SAME" (XLA's and TensorFlow's rule: the odd pixel goes to the end), "VALID", or explicit
        ((top, bottom), (left, right)) in pixels.
      implementation: "xla", "shift", or None: "shift" on CPU, where it was measured to be the faster
        (results/speed.csv), "xla" on other platforms, where none was measured yet.

    Returns:
      float[N, H', W', C] in the dtype of `x`; "shift" accumulates in float32 or wider.

    Raises:
      ValueError: if the shapes do not fit or `implementation` is unknown.

    >>> x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    >>> depthwise_conv(x, jnp.ones((3, 3, 1, 1)), padding="VALID").item()
    36.0
    """
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[2:] != (1, x.shape[-1]):
        raise ValueError(
            f"depthwise_conv needs x [N, H, W, C] and kernel [kh, kw, 1, C]; got {x.shape} and {kernel.shape}"
        )
    strides = pair(strides)
    padding = pad_pairs(x.shape[1:3], kernel.shape[:2], strides, padding)
    if choose(implementation) == "shift":
        return _shift(x, kernel, strides, padding)
    return conv(x, kernel, strides=strides, padding=padding, groups=x.shape[-1], implementation="xla")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shift(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Pairs) -> jax.Array:
    out = output_size(x.shape[1:3], kernel.shape[:2], strides, padding)
    return _weighted_sum(pad(x, padding), kernel, strides, out)


def _weighted_sum(padded: jax.Array, kernel: jax.Array, strides: Pair, out: Pair) -> jax.Array:
    """Shifted copies of `padded` times the kernel's taps; XLA makes one loop of it."""
    dtype = accumulator(padded.dtype)
    weights = kernel.astype(dtype)
    products = (
        shifted(padded, (i, j), strides, out).astype(dtype) * weights[i, j][None, None]
        for i, j in taps(kernel.shape[:2])
    )
    return functools.reduce(jnp.add, products).astype(padded.dtype)  # [N, H', W', C]


def _blocks(rows: int) -> tuple[int, int]:
    """(rows in a block, blocks) with 6 to 10 rows in a block where there are as many, and few left over."""
    size = min(range(min(rows, 6), min(rows, 10) + 1), key=lambda size: (-(-rows // size) * size, -size))
    return size, -(-rows // size)


def _shift_forward(x, kernel, strides, padding):
    """Keeps the padded input, which is in memory anyway, with rows below that fill the last block."""
    out = output_size(x.shape[1:3], kernel.shape[:2], strides, padding)
    size, count = _blocks(out[0])
    (top, bottom), columns = padding
    padded = pad(x, ((top, bottom + (size * count - out[0]) * strides[0]), columns))
    return _weighted_sum(padded, kernel, strides, out), (padded, kernel)


def _shift_backward(strides, padding, residuals, dy):
    """The input's gradient is the same operation with the flipped kernel on the dilated output gradient."""
    padded, kernel = residuals
    window, out = kernel.shape[:2], dy.shape[1:3]
    size, count = _blocks(out[0])
    missing = size * count - out[0]
    spare = (missing * strides[0], 0)
    image = [n - sum(p) - m for n, p, m in zip(padded.shape[1:3], padding, spare, strict=True)]

    # Full correlation: pad so that a stride-1 pass over the dilated dy has the input's height and width.
    (top, bottom), (left, right) = (
        (k - 1 - p[0], n + p[0] - (o - 1) * s - 1)
        for n, k, p, o, s in zip(image, window, padding, out, strides, strict=True)
    )
    share = strides == (1, 1) and top >= 0 and left >= 0 and min(bottom, right) >= 0
    dilated = pad(dy, ((top, bottom + missing * share), (left, right)), dilation=strides)
    dx = _weighted_sum(dilated, kernel[::-1, ::-1], (1, 1), tuple(image))  # [N, H, W, C]

    if share:  # one padded copy of dy serves both gradients
        rows, first = dilated, (top, left)
    else:
        rows, first = pad(dy, ((0, missing), (0, 0))), (0, 0)
    dkernel = _kernel_gradient(padded, rows, first, window, strides, (size, count, out[1]))
    return dx.astype(padded.dtype), dkernel.astype(kernel.dtype)


def _kernel_gradient(padded, dy, first, window, strides, blocks):
    """Sums shifted(padded) * dy over batch and space for each tap -> [kh, kw, 1, C].

    First over the rows of equal place in their block, in one loop with C in the vector registers, which leaves
    the [N, blocks, W', C] numbers that a matrix product with ones adds up: XLA's CPU backend is far slower
    at one long reduction. `first` is the place of dy's first row and column in the array given as `dy`.
    """
    size, count, columns = blocks
    dtype = accumulator(padded.dtype)
    sums = []
    for i, j in taps(window):
        total = 0
        for r in range(0, size * count, count):
            part = shifted(padded, (i + r * strides[0], j), strides, (count, columns))
            rows = shifted(dy, (first[0] + r, first[1]), (1, 1), (count, columns))
            total += part.astype(dtype) * rows.astype(dtype)  # [N, blocks, W', C]
        total = total.reshape(-1, total.shape[-1])
        sums.append(jnp.dot(jnp.ones(len(total), dtype), total, precision=lax.Precision.HIGHEST))  # [C]
    return jnp.stack(sums).reshape(*window, 1, -1)  # [kh, kw, 1, C]


_shift.defvjp(_shift_forward, _shift_backward)
