"""Normalization by the statistics of a batch, with a hand-written derivative."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from xception_jax.ops.windows import accumulator


def normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Batch normalization (Ioffe and Szegedy 2015): scale (x - mean) / sqrt(var + epsilon) + bias.

    The mean and the biased variance are computed over all axes except the first and the last, in float32 or wider.
    The variance is computed in a second pass, because the difference of two sums from a single pass would be
    inaccurate where the mean is large.

    Args:
      x: float[G, ..., C], G groups, each with its own statistics.
      scale, bias: float[C].
      epsilon: number added to the variance, inside the root.
      dtype: type of y.

    Returns:
      (y with the shape of x, mean float[G, C], var float[G, C]); no gradient flows through mean and var.
    """
    apply = functools.partial(_normalize, epsilon=epsilon, dtype=jnp.dtype(dtype))
    rows = x.reshape(x.shape[0], -1, x.shape[-1])  # [G, M, C]
    if len(rows) == 1:  # without vmap: XLA's CPU backend is ten times slower at sums with an additional first axis
        y, mean, var = (out[None] for out in apply(rows[0], scale, bias))
    else:
        y, mean, var = jax.vmap(apply, (0, None, None))(rows, scale, bias)
    return y.reshape(x.shape), lax.stop_gradient(mean), lax.stop_gradient(var)


def _wide(x: jax.Array) -> jax.Array:
    """x in float32 or wider."""
    return x.astype(accumulator(x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnames=("epsilon", "dtype"))
def _normalize(x, scale, bias, epsilon, dtype):
    return _normalize_forward(x, scale, bias, epsilon, dtype)[0]


def _normalize_forward(x, scale, bias, epsilon, dtype):
    """Normalizes x[M, C]; the residuals are x and what the derivative needs per channel."""
    wide = _wide(x)
    mean = jnp.mean(wide, 0)  # [C]
    var = jnp.mean(jnp.square(wide - mean[None]), 0)  # [C]
    factor = lax.rsqrt(var + epsilon)  # [C]
    y = (wide - _again(mean)[None]) * (factor * scale)[None] + bias[None]  # [M, C]
    return (y.astype(dtype), mean, var), (x, mean, factor, scale)


def _again(mean: jax.Array) -> jax.Array:
    """The mean itself, behind a barrier, so that XLA computes x - mean again for each use.

    Without the barrier XLA would recognize the common expression and keep x - mean in memory.
    """
    return lax.optimization_barrier(mean)


def _normalize_backward(epsilon, dtype, residuals, cotangents):
    """The gradients of Ioffe and Szegedy 2015, section 3; dx is written as a dy + b (x - mean) + c per channel."""
    x, mean, factor, scale = residuals
    dy, centered = _wide(cotangents[0]), _wide(x) - _again(mean)[None]
    dbias = jnp.sum(dy, 0)  # [C]
    dscale = jnp.sum(dy * centered, 0) * factor  # [C]
    a = factor * scale
    b = -a * factor * dscale / len(x)
    c = -a * dbias / len(x)
    dx = a[None] * dy + b[None] * centered + c[None]  # [M, C]
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(scale.dtype)


_normalize.defvjp(_normalize_forward, _normalize_backward)
