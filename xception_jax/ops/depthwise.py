"""Depthwise convolution: one spatial kernel per channel."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from xception_jax.ops.convolution import conv
from xception_jax.ops.windows import Pair, Pairs, accumulator, as_pairs, choose, output_size, pad, shifted, taps


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int | Pair = 1,
    padding: str | Sequence[Pair] = "SAME",
    implementation: str | None = None,
) -> jax.Array:
    """Convolves every channel of `x` with its own kernel.

    Args:
      x: images or features, float[N, H, W, C].
      kernel: float[kh, kw, 1, C], XLA's layout for a convolution with C groups.
      strides, padding: as in `conv`.
      implementation: "xla" is the reference, a convolution with one group per channel. "shift" adds shifted copies
        of the input, multiplied by the kernel's taps, and defines its own derivative. None: "shift" on CPU, where
        XLA has no fast grouped convolution (results/speed.csv), "xla" elsewhere, where it was not measured yet.

    Returns:
      float[N, H', W', C] in the dtype of `x`; "shift" accumulates in float32 or wider.

    Raises:
      SettingError, ValueError: as in `conv`.

    >>> x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    >>> depthwise_conv(x, jnp.ones((3, 3, 1, 1)), padding="VALID").item()
    36.0
    """
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[2:] != (1, x.shape[-1]):
        raise ValueError(
            f"depthwise_conv needs x [N, H, W, C] and kernel [kh, kw, 1, C]; got {x.shape} and {kernel.shape}"
        )
    _, strides, padding = as_pairs(x.shape[1:3], kernel.shape[:2], strides, padding)
    if choose(implementation) == "shift":
        return _shift(x, kernel, strides, padding)
    return conv(x, kernel, strides=strides, padding=padding, groups=x.shape[-1], implementation="xla")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shift(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Pairs) -> jax.Array:
    out = output_size(x.shape[1:3], kernel.shape[:2], strides, padding)
    return _weighted_sum(pad(x, padding), kernel, strides, out)


def _weighted_sum(padded: jax.Array, kernel: jax.Array, strides: Pair, out: Pair) -> jax.Array:
    """The sum of shifted copies of `padded` times the kernel's taps; XLA compiles it to one loop."""
    dtype = accumulator(padded.dtype)
    weights = kernel.astype(dtype)
    products = (
        shifted(padded, (i, j), strides, out).astype(dtype) * weights[i, j][None, None]
        for i, j in taps(kernel.shape[:2])
    )
    return functools.reduce(jnp.add, products).astype(padded.dtype)  # [N, H', W', C]


def _blocks(rows: int) -> tuple[int, int]:
    """Splits rows into the blocks of `_kernel_gradient`: (rows per block, number of blocks).

    A block has 6 to 10 rows, or all rows if there are fewer. The product exceeds `rows` by as little as possible.
    """
    size = min(range(min(rows, 6), min(rows, 10) + 1), key=lambda size: (-(-rows // size) * size, -size))
    return size, -(-rows // size)


def _shift_forward(x, kernel, strides, padding):
    """Keeps the padded input, which is in memory anyway, with extra rows below that complete the blocks."""
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
    missing = size * count - out[0]  # rows that dy lacks to complete the blocks
    extra = (missing * strides[0], 0)  # rows and columns that the forward pass added for them
    image = [n - sum(p) - m for n, p, m in zip(padded.shape[1:3], padding, extra, strict=True)]

    # Full correlation: dy is dilated and padded such that a pass with stride 1 has the input's height and width.
    (top, bottom), (left, right) = (
        (k - 1 - p[0], n + p[0] - (o - 1) * s - 1)
        for n, k, p, o, s in zip(image, window, padding, out, strides, strict=True)
    )
    share = strides == (1, 1) and top >= 0 and left >= 0 and min(bottom, right) >= 0
    dilated = pad(dy, ((top, bottom + missing * share), (left, right)), dilation=strides)
    dx = _weighted_sum(dilated, kernel[::-1, ::-1], (1, 1), tuple(image))  # [N, H, W, C]

    if share:  # both gradients use the same padded copy of dy
        rows, first = dilated, (top, left)
    else:
        rows, first = pad(dy, ((0, missing), (0, 0))), (0, 0)
    dkernel = _kernel_gradient(padded, rows, first, window, strides, (size, count, out[1]))
    return dx.astype(padded.dtype), dkernel.astype(kernel.dtype)


def _kernel_gradient(padded, dy, first, window, strides, blocks):
    """The kernel's gradient [kh, kw, 1, C]: for each tap, the sum of shifted(padded) * dy over images and pixels.

    XLA's CPU backend is slow at one long reduction, so the sum is taken in two steps. The first step adds the rows
    of each block, in one loop that is vectorized over the channels; block i has the rows i, i + count, i + 2 count
    and so on, where count is the number of blocks. The second step adds the remaining [N, count, W', C] numbers by
    a matrix product with ones.

    The output gradient begins at row and column `first` of `dy` and is followed by zeros that complete the blocks;
    `blocks` is (rows per block, number of blocks, columns of the output gradient).
    """
    size, count, columns = blocks
    dtype = accumulator(padded.dtype)
    sums = []
    for i, j in taps(window):
        total = 0
        for r in range(0, size * count, count):
            part = shifted(padded, (i + r * strides[0], j), strides, (count, columns))
            rows = shifted(dy, (first[0] + r, first[1]), (1, 1), (count, columns))
            total += part.astype(dtype) * rows.astype(dtype)  # [N, count, W', C]
        total = total.reshape(-1, total.shape[-1])
        sums.append(jnp.dot(jnp.ones(len(total), dtype), total, precision=lax.Precision.HIGHEST))  # [C]
    return jnp.stack(sums).reshape(*window, 1, -1)  # [kh, kw, 1, C]


_shift.defvjp(_shift_forward, _shift_backward)
