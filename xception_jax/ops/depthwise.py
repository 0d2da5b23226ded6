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

Pairs = tuple[tuple[int, int], tuple[int, int]]

IMPLEMENTATIONS = ("xla", "shift")


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
        (results/depthwise_cpu.csv), "xla" on other platforms, where none was measured yet.

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
    if implementation is None:
        implementation = "shift" if jax.default_backend() == "cpu" else "xla"
    strides = (strides, strides) if isinstance(strides, int) else tuple(strides)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    padding = tuple((int(low), int(high)) for low, high in padding)
    if implementation == "xla":
        return _xla(x, kernel, strides, padding)
    if implementation == "shift":
        return _shift(x, kernel, strides, padding)
    raise ValueError(f"implementation={implementation!r}: choose one of {IMPLEMENTATIONS} or None")


def _xla(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Pairs) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _taps(padded: jax.Array, kernel_size: tuple[int, int], strides: tuple[int, int], out: tuple[int, int]):
    """Yields (i, j, the part of `padded` that tap (i, j) meets), each part [N, H', W', C]."""
    n, _, _, c = padded.shape
    (rows, cols), (sh, sw) = out, strides
    for i in range(kernel_size[0]):
        for j in range(kernel_size[1]):
            end = (n, i + (rows - 1) * sh + 1, j + (cols - 1) * sw + 1, c)
            yield i, j, lax.slice(padded, (0, i, j, 0), end, (1, sh, sw, 1))  # [N, H', W', C]


def _pad(x: jax.Array, padding: Pairs, dilation: tuple[int, int] = (1, 1)) -> jax.Array:
    """Pads rows and columns with zeros and puts `dilation - 1` zeros between them; negative pads crop."""
    (top, bottom), (left, right) = padding
    config = ((0, 0, 0), (top, bottom, dilation[0] - 1), (left, right, dilation[1] - 1), (0, 0, 0))
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """float32 for narrower types, else the type itself."""
    return jnp.dtype(jnp.float32) if dtype.itemsize < 4 else dtype


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shift(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Pairs) -> jax.Array:
    size = kernel.shape[:2]
    out = tuple(
        (n + sum(pads) - k) // s + 1 for n, pads, k, s in zip(x.shape[1:3], padding, size, strides, strict=True)
    )
    if min(out) < 1:
        raise ValueError(f"kernel {size} is larger than the padded input {x.shape} with padding {padding}")
    accumulator = _accumulator(x.dtype)
    weights = kernel[:, :, None, None].astype(accumulator)  # [kh, kw, 1, 1, 1, C]
    products = (
        part.astype(accumulator) * weights[i, j] for i, j, part in _taps(_pad(x, padding), size, strides, out)
    )
    return functools.reduce(jnp.add, products).astype(x.dtype)  # [N, H', W', C]


def _shift_forward(x, kernel, strides, padding):
    return _shift(x, kernel, strides, padding), (x, kernel)


def _shift_backward(strides, padding, residuals, dy):
    """The input's gradient is the same operation with the flipped kernel on the dilated output gradient;
    the kernel's gradient is one reduction over batch and space for each tap."""
    x, kernel = residuals
    size, out = kernel.shape[:2], dy.shape[1:3]

    # Full correlation: pad so that a stride-1 pass over the dilated dy has the input's height and width.
    low = tuple(k - 1 - pads[0] for k, pads in zip(size, padding, strict=True))
    high = tuple(
        n + pads[0] - (o - 1) * s - 1 for n, pads, o, s in zip(x.shape[1:3], padding, out, strides, strict=True)
    )
    dilated = _pad(dy, ((low[0], high[0]), (low[1], high[1])), strides)
    dx = _shift(dilated, kernel[::-1, ::-1], (1, 1), ((0, 0), (0, 0)))  # [N, H, W, C]

    accumulator = _accumulator(x.dtype)
    dy = dy.astype(accumulator)
    sums = [
        jnp.sum(part.astype(accumulator) * dy, axis=(0, 1, 2))  # [C]
        for _, _, part in _taps(_pad(x, padding), size, strides, out)
    ]
    dkernel = jnp.stack(sums).reshape(kernel.shape)  # [kh, kw, 1, C]
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


_shift.defvjp(_shift_forward, _shift_backward)
