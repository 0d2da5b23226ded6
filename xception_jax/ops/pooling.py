"""Max-pooling and average pooling over windows of pixels."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

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


def max_pool(
    x: jax.Array,
    window: int | Pair,
    *,
    strides: int | Pair,
    padding: str | Sequence[Pair] = "SAME",
    implementation: str | None = None,
) -> jax.Array:
    """The largest value of each channel in each window; of equal values the first gets the gradient.

    Args:
      x: float[N, H, W, C].
      window: rows and columns of a window, in pixels; at most 127 in all.
      strides: steps in pixels.
      padding: "SAME", "VALID" or ((top, bottom), (left, right)) in pixels; padded pixels never win.
      implementation: "xla" (reduce_window), "shift" (maxima of shifted copies, which keep the winner's place for
        the gradient: XLA's search for it is slow on CPU), or None: "shift" on CPU, "xla" elsewhere.

    Returns:
      float[N, H', W', C].

    Raises:
      ValueError: if no window fits or `implementation` is unknown.

    >>> max_pool(jnp.arange(9.0).reshape(1, 3, 3, 1), 2, strides=1, padding="VALID").ravel().tolist()
    [4.0, 5.0, 7.0, 8.0]
    """
    window, strides = pair(window), pair(strides)
    padding = pad_pairs(x.shape[1:3], window, strides, padding)
    if choose(implementation) == "shift":
        return _shift(x, window, strides, padding, x.shape[1:3])
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0)))


def _maxima(x: jax.Array, window: Pair, strides: Pair, padding: Pairs) -> tuple[jax.Array, list[jax.Array]]:
    """(the maxima [N, H', W', C], the shifted copies they are taken from)."""
    out = output_size(x.shape[1:3], window, strides, padding)
    padded = pad(x, padding, value=-jnp.inf)
    parts = [shifted(padded, tap, strides, out) for tap in taps(window)]
    return functools.reduce(jnp.maximum, parts), parts


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _shift(x: jax.Array, window: Pair, strides: Pair, padding: Pairs, size: Pair) -> jax.Array:
    return _maxima(x, window, strides, padding)[0]


def _shift_forward(x, window, strides, padding, size):
    """Keeps the number of the first tap that holds the maximum, int8[N, H', W', C]."""
    y, parts = _maxima(x, window, strides, padding)
    winner = jnp.full(y.shape, len(parts) - 1, jnp.int8)
    for tap in reversed(range(len(parts) - 1)):
        winner = jnp.where(parts[tap] == y, jnp.int8(tap), winner)
    return y, winner


def _shift_backward(window, strides, padding, size, winner, dy):
    """Every input pixel adds up what the windows that it won send it.

    Pixels whose places have the same remainder by the strides are met by the same taps: each such set is one
    loop without gaps, and interleaving the sets gives the image.
    """
    sets = [
        jnp.stack([_won(winner, dy, (p, q), window, strides, padding, size) for q in range(strides[1])], 3)
        for p in range(strides[0])
    ]  # each [N, rows, columns, sw, C]
    dx = jnp.stack(sets, 2)  # [N, rows, sh, columns, sw, C]
    n, rows, _, columns, _, c = dx.shape
    return (dx.reshape(n, rows * strides[0], columns * strides[1], c)[:, : size[0], : size[1]],)


def _won(winner, dy, remainder, window, strides, padding, size):
    """The gradient of pixels (p + m sh, q + l sw), m and l from 0: [N, ceil(H / sh), ceil(W / sw), C]."""
    counts = tuple(-(-n // s) for n, s in zip(size, strides, strict=True))
    total = jnp.zeros((dy.shape[0], *counts, dy.shape[-1]), dy.dtype)
    for number, tap in enumerate(taps(window)):
        offsets = [r + p[0] - t for r, p, t in zip(remainder, padding, tap, strict=True)]
        if any(o % s for o, s in zip(offsets, strides, strict=True)):
            continue
        # Pixel m is at this tap of window m + offset / stride.
        pads = tuple(
            (-(o // s), n + o // s - k) for o, s, n, k in zip(offsets, strides, counts, dy.shape[1:3], strict=True)
        )
        total += pad(jnp.where(winner == number, dy, 0), pads)
    return total


_shift.defvjp(_shift_forward, _shift_backward)


def avg_pool(
    x: jax.Array, window: int | Pair, *, strides: int | Pair, padding: str | Sequence[Pair] = "SAME"
) -> jax.Array:
    """The mean of each channel over the pixels of the image in each window; padding is not counted (Keras,
    TensorFlow; torch: count_include_pad=False).

    XLA's `reduce_window` on every platform: on CPU a sum, unlike a maximum, has a fast derivative.

    Args:
      x: float[N, H, W, C].
      window: rows and columns of a window, in pixels.
      strides: steps in pixels.
      padding: "SAME", "VALID" or ((top, bottom), (left, right)) in pixels, less than the window.

    Returns:
      float[N, H', W', C] in the dtype of `x`; sums are taken in float32 or wider.

    Raises:
      ValueError: if no window fits.

    >>> avg_pool(jnp.arange(4.0).reshape(1, 2, 2, 1), 3, strides=1).ravel().tolist()
    [1.5, 1.5, 1.5, 1.5]
    """
    window, strides = pair(window), pair(strides)
    padding = pad_pairs(x.shape[1:3], window, strides, padding)

    def sums(x: jax.Array) -> jax.Array:
        return lax.reduce_window(x, 0.0, lax.add, (1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0)))

    wide = x.astype(accumulator(x.dtype))
    pixels = sums(jnp.ones((1, *x.shape[1:3], 1), wide.dtype))  # [1, H', W', 1]
    return (sums(wide) / pixels).astype(x.dtype)  # [N, H', W', C]
