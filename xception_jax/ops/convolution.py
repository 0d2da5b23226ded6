"""Regular convolution."""

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


def conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int | Pair = 1,
    padding: str | Sequence[Pair] = "SAME",
    groups: int = 1,
    implementation: str | None = None,
) -> jax.Array:
    """Convolution without bias (cross-correlation, as in all frameworks).

    Args:
      x: images or features, float[N, H, W, C].
      kernel: float[kh, kw, C / groups, features].
      strides: steps in pixels.
      padding: "SAME", "VALID" or ((top, bottom), (left, right)) in pixels.
      groups: contiguous parts of the channels, convolved each by itself into features / groups features.
      implementation: "xla"; "shift": one matrix product over shifted copies of x, side by side, which takes kw
        times the memory of x and is faster on CPU for the few channels of a stem; or None: "shift" on CPU,
        "xla" elsewhere.

    Returns:
      float[N, H', W', features] in the dtype of `x`.

    Raises:
      ValueError: if the shapes do not fit, no window does, or `implementation` is unknown.

    >>> conv(jnp.ones((1, 3, 3, 2)), jnp.ones((3, 3, 2, 4)), padding="VALID").ravel().tolist()
    [18.0, 18.0, 18.0, 18.0]
    """
    if x.shape[-1] != kernel.shape[2] * groups or kernel.shape[3] % groups:
        raise ValueError(f"conv in {groups} groups: x {x.shape} and kernel {kernel.shape} do not fit")
    strides, window = pair(strides), kernel.shape[:2]
    padding = pad_pairs(x.shape[1:3], window, strides, padding)
    if choose(implementation) == "shift":
        return _shift_groups(x, kernel, strides, padding, groups)
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _shift_groups(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Pairs, groups: int) -> jax.Array:
    if groups == 1:
        return _shift(x, kernel, strides, padding)
    x = jnp.moveaxis(x.reshape(*x.shape[:3], groups, -1), 3, 0)  # [groups, N, H, W, C / groups]
    kernel = jnp.moveaxis(kernel.reshape(*kernel.shape[:3], groups, -1), 3, 0)
    y = jax.vmap(lambda x, kernel: _shift(x, kernel, strides, padding))(x, kernel)
    y = jnp.moveaxis(y, 0, 3)  # [N, H', W', groups, features / groups]
    return y.reshape(*y.shape[:3], -1)


def _shift(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Pairs) -> jax.Array:
    """One matrix product over pixels. A row of the left matrix has the pixels that a row of the kernel meets, side
    by side; a column of the right one belongs to a row of the kernel and a feature; the products of the kernel's
    rows are shifted and added. With strides, to compute nothing that is thrown away, a row of the left matrix
    has the pixels of the whole window, kh times the memory.
    """
    window, features = kernel.shape[:2], kernel.shape[3]
    out = output_size(x.shape[1:3], window, strides, padding)
    inner = (window[0] if strides[0] > 1 else 1, window[1])  # taps in a row of the left matrix
    count = window[0] // inner[0]
    rows = out[0] + count - 1
    padded, dtype = pad(x, padding), accumulator(x.dtype)
    parts = [shifted(padded, tap, strides, (rows, out[1])) for tap in taps(inner)]
    left = jnp.concatenate(parts, axis=-1)  # [N, rows, W', inner C]
    right = kernel.reshape(count, left.shape[-1], features)
    right = jnp.moveaxis(right, 0, 1).reshape(left.shape[-1], -1)  # [inner C, count features]
    products = lax.dot(left.reshape(-1, len(right)), right, preferred_element_type=dtype)
    products = products.reshape(len(x), rows, out[1], -1)  # [N, rows, W', count features]
    y = functools.reduce(
        jnp.add, (products[:, i : i + out[0], :, i * features : (i + 1) * features] for i in range(count))
    )
    return y.astype(x.dtype)  # [N, H', W', features]
