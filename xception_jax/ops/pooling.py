"""Max-pooling and average pooling over windows of pixels."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from xception_jax.ops.windows import Pair, Pairs, accumulator, as_pairs, choose, output_size, pad, shifted, taps


def max_pool(
    x: jax.Array,
    window: int | Pair,
    *,
    strides: int | Pair,
    padding: str | Sequence[Pair] = "SAME",
    implementation: str | None = None,
) -> jax.Array:
    """The largest value of each channel in each window.

    The gradient goes to the pixel with the largest value; if several are equal, to the first of them, row by row.

    Args:
      x: float[N, H, W, C].
      window: height and width of a window in pixels, one number or (rows, columns); at most 127 pixels in total.
      strides, padding: as in `conv`; padding is never the largest value.
      implementation: "xla" (reduce_window) or "shift"; None: "shift" on CPU, "xla" elsewhere. "shift" takes the
        maximum of shifted copies and keeps its position for the gradient, for which XLA's search is slow on CPU.

    Returns:
      float[N, H', W', C].

    Raises:
      SettingError: if `implementation` is unknown.
      ValueError: if the window is larger than the padded input.

    >>> max_pool(jnp.arange(9.0).reshape(1, 3, 3, 1), 2, strides=1, padding="VALID").ravel().tolist()
    [4.0, 5.0, 7.0, 8.0]
    """
    window, strides, padding = as_pairs(x.shape[1:3], window, strides, padding)
    if choose(implementation) == "shift":
        return _shift(x, window, strides, padding, x.shape[1:3])
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0)))


def _maxima(x: jax.Array, window: Pair, strides: Pair, padding: Pairs) -> tuple[jax.Array, list[jax.Array]]:
    """(the maxima [N, H', W', C], the shifted copies of x from which they are taken)."""
    out = output_size(x.shape[1:3], window, strides, padding)
    padded = pad(x, padding, value=-jnp.inf)
    parts = [shifted(padded, tap, strides, out) for tap in taps(window)]
    return functools.reduce(jnp.maximum, parts), parts


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _shift(x: jax.Array, window: Pair, strides: Pair, padding: Pairs, size: Pair) -> jax.Array:
    return _maxima(x, window, strides, padding)[0]


def _shift_forward(x, window, strides, padding, size):
    """Keeps the number of the first tap with the maximum, int8[N, H', W', C], for the gradient."""
    y, parts = _maxima(x, window, strides, padding)
    winner = jnp.full(y.shape, len(parts) - 1, jnp.int8)
    for tap in reversed(range(len(parts) - 1)):
        winner = jnp.where(parts[tap] == y, jnp.int8(tap), winner)
    return y, winner


def _shift_backward(window, strides, padding, size, winner, dy):
    """The input's gradient: each pixel gets the sum of the gradients of all windows whose maximum it is.

    Pixels are grouped by their position modulo the strides. Each group sees a fixed set of taps, so that its
    gradient is one dense loop; interleaving the groups gives the gradient of the image.
    """
    groups = [
        jnp.stack([_won(winner, dy, (p, q), window, strides, padding, size) for q in range(strides[1])], 3)
        for p in range(strides[0])
    ]  # each [N, rows, columns, sw, C]
    dx = jnp.stack(groups, 2)  # [N, rows, sh, columns, sw, C]
    n, rows, _, columns, _, c = dx.shape
    return (dx.reshape(n, rows * strides[0], columns * strides[1], c)[:, : size[0], : size[1]],)


def _won(winner, dy, remainder, window, strides, padding, size):
    """The gradient of one group of pixels, float[N, ceil(H / sh), ceil(W / sw), C].

    With remainder (p, q) and strides (sh, sw), the group has the pixels (p + m sh, q + l sw) for all m, l >= 0.
    """
    counts = tuple(-(-n // s) for n, s in zip(size, strides, strict=True))
    total = jnp.zeros((dy.shape[0], *counts, dy.shape[-1]), dy.dtype)
    for number, tap in enumerate(taps(window)):
        offsets = [r + p[0] - t for r, p, t in zip(remainder, padding, tap, strict=True)]
        if any(o % s for o, s in zip(offsets, strides, strict=True)):
            continue
        # Pixel m of the group is at this tap of window m + offset / stride.
        pads = tuple(
            (-(o // s), n + o // s - k) for o, s, n, k in zip(offsets, strides, counts, dy.shape[1:3], strict=True)
        )
        total += pad(jnp.where(winner == number, dy, 0), pads)
    return total


_shift.defvjp(_shift_forward, _shift_backward)


def avg_pool(
    x: jax.Array, window: int | Pair, *, strides: int | Pair, padding: str | Sequence[Pair] = "SAME"
) -> jax.Array:
    """The mean of each channel in each window.

    Padding is not counted, as in Keras and TensorFlow (in torch: count_include_pad=False). XLA's `reduce_window`
    computes it on every platform: on CPU a sum, unlike a maximum, has a fast derivative.

    Args:
      x: float[N, H, W, C].
      window: height and width of a window in pixels, one number or (rows, columns).
      strides, padding: as in `conv`; padding is less than the window.

    Returns:
      float[N, H', W', C] in the dtype of `x`; sums are computed in float32 or wider.

    Raises:
      ValueError: if the window is larger than the padded input.

    >>> avg_pool(jnp.arange(4.0).reshape(1, 2, 2, 1), 3, strides=1).ravel().tolist()
    [1.5, 1.5, 1.5, 1.5]
    """
    window, strides, padding = as_pairs(x.shape[1:3], window, strides, padding)

    def sums(x: jax.Array) -> jax.Array:
        return lax.reduce_window(x, 0.0, lax.add, (1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0)))

    wide = x.astype(accumulator(x.dtype))
    pixels = sums(jnp.ones((1, *x.shape[1:3], 1), wide.dtype))  # [1, H', W', 1]: those that are no padding
    return (sums(wide) / pixels).astype(x.dtype)  # [N, H', W', C]
