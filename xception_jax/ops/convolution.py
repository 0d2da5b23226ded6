"""Regular convolution."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from xception_jax.ops.windows import Pair, Pairs, accumulator, as_pairs, choose, output_size, pad, shifted, taps


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
      strides: strides in pixels, one number or (rows, columns).
      padding: "SAME" (the rule of XLA and TensorFlow, which adds an odd pixel at the end), "VALID", or
        ((top, bottom), (left, right)) in pixels.
      groups: number of contiguous groups of channels; each group is convolved separately into features / groups
        features.
      implementation: "xla" or "shift"; None: "shift" on CPU, "xla" elsewhere. "shift" is one matrix product with
        the concatenation of shifted copies of x. It needs kw times the memory of x, and is faster on CPU for
        inputs with few channels, as in a stem.

    Returns:
      float[N, H', W', features] in the dtype of `x`.

    Raises:
      SettingError: if `implementation` is unknown.
      ValueError: if the shapes of x and kernel do not match, or the window is larger than the padded input.

    >>> conv(jnp.ones((1, 3, 3, 2)), jnp.ones((3, 3, 2, 4)), padding="VALID").ravel().tolist()
    [18.0, 18.0, 18.0, 18.0]
    """
    if x.shape[-1] != kernel.shape[2] * groups or kernel.shape[3] % groups:
        raise ValueError(f"conv in {groups} groups: x {x.shape} and kernel {kernel.shape} do not fit")
    _, strides, padding = as_pairs(x.shape[1:3], kernel.shape[:2], strides, padding)
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
    """Applies `_shift` to each group of channels."""
    if groups == 1:
        return _shift(x, kernel, strides, padding)
    x = jnp.moveaxis(x.reshape(*x.shape[:3], groups, -1), 3, 0)  # [groups, N, H, W, C / groups]
    kernel = jnp.moveaxis(kernel.reshape(*kernel.shape[:3], groups, -1), 3, 0)
    y = jax.vmap(lambda x, kernel: _shift(x, kernel, strides, padding))(x, kernel)
    y = jnp.moveaxis(y, 0, 3)  # [N, H', W', groups, features / groups]
    return y.reshape(*y.shape[:3], -1)


def _shift(x: jax.Array, kernel: jax.Array, strides: Pair, padding: Pairs) -> jax.Array:
    """Convolution as one matrix product.

    Each row of the left matrix concatenates the pixels under one row of the kernel; each column of the right
    matrix holds the weights of one row of the kernel for one feature. The products for the kernel's rows are then
    shifted and added. With vertical strides, many of these products would not be used; there, each row of the left
    matrix concatenates the pixels of the whole window instead, which needs kh times the memory.
    """
    window, features = kernel.shape[:2], kernel.shape[3]
    out = output_size(x.shape[1:3], window, strides, padding)
    inner = (window[0] if strides[0] > 1 else 1, window[1])  # part of the window in each row of the left matrix
    count = window[0] // inner[0]  # number of such parts in the window
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
