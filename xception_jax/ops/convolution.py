"""Regular convolution."""

import jax
import jax.numpy as jnp
from jax import lax

from xception_jax.ops.windows import Pair, choose, output_size, pad, pad_pairs, pair, shifted, taps


def conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int | Pair = 1,
    padding: str = "SAME",
    implementation: str | None = None,
) -> jax.Array:
    """Convolution without bias (cross-correlation, as in all frameworks).

    Args:
      x: images or features, float[N, H, W, C].
      kernel: float[kh, kw, C, features].
      strides: steps in pixels.
      padding: "SAME" or "VALID".
      implementation: "xla"; "shift": the shifted copies of x that the taps meet, side by side, times the kernel as
        a matrix, which costs kh kw times the memory of x and is faster on CPU for the few channels of a
        stem; or None: "shift" on CPU, "xla" elsewhere.

    Returns:
      float[N, H', W', features] in the dtype of `x`.

    >>> conv(jnp.ones((1, 3, 3, 2)), jnp.ones((3, 3, 2, 4)), padding="VALID").ravel().tolist()
    [18.0, 18.0, 18.0, 18.0]
    """
    strides, window = pair(strides), kernel.shape[:2]
    padding = pad_pairs(x.shape[1:3], window, strides, padding)
    if choose(implementation) == "shift":
        out = output_size(x.shape[1:3], window, strides, padding)
        padded = pad(x, padding)
        patches = jnp.concatenate([shifted(padded, tap, strides, out) for tap in taps(window)], axis=-1)
        matrix = kernel.reshape(-1, kernel.shape[-1])  # [kh kw C, features]
        return (patches.reshape(-1, len(matrix)) @ matrix).reshape(-1, *out, kernel.shape[-1])
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
