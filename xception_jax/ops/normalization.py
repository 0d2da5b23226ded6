"""Normalization by the statistics of a batch, with a derivative of its own."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from xception_jax.ops.windows import accumulator


def normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, epsilon: float, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """scale (x - mean) / sqrt(var + epsilon) + bias, by statistics over all axes but the first and the last
    (Ioffe and Szegedy 2015).

    Statistics and sums are taken in float32 or wider, the variance (the biased one) in a second pass: a single
    pass loses it when the mean is large.

    Args:
      x: float[G, ..., C], groups with statistics of their own.
      scale, bias: float[C].
      epsilon: added to the variance inside the root.
      dtype: of the result.

    Returns:
      (y like x in `dtype`, mean float[G, C], var float[G, C]); no gradient flows through mean and var.
    """
    apply = functools.partial(_normalize, epsilon=epsilon, dtype=jnp.dtype(dtype))
    rows = x.reshape(x.shape[0], -1, x.shape[-1])  # [G, M, C]
    if len(rows) == 1:  # XLA's CPU backend is ten times slower at the same sums with an axis in front
        y, mean, var = (out[None] for out in apply(rows[0], scale, bias))
    else:
        y, mean, var = jax.vmap(apply, (0, None, None))(rows, scale, bias)
    return y.reshape(x.shape), lax.stop_gradient(mean), lax.stop_gradient(var)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(accumulator(x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnames=("epsilon", "dtype"))
def _normalize(x, scale, bias, epsilon, dtype):
    return _normalize_forward(x, scale, bias, epsilon, dtype)[0]


def _normalize_forward(x, scale, bias, epsilon, dtype):
    """x: [M, C]."""
    wide = _wide(x)
    mean = jnp.mean(wide, 0)  # [C]
    var = jnp.mean(jnp.square(wide - mean[None]), 0)  # [C]
    factor = lax.rsqrt(var + epsilon)  # [C]
    y = (wide - _again(mean)[None]) * (factor * scale)[None] + bias[None]  # [M, C]
    return (y.astype(dtype), mean, var), (x, mean, factor, scale)


def _again(mean: jax.Array) -> jax.Array:
    """The same numbers, which XLA does not recognize: it would keep x - mean in memory for its three uses."""
    return lax.optimization_barrier(mean)


def _normalize_backward(epsilon, dtype, residuals, cotangents):
    """Ioffe and Szegedy 2015, section 3, as dx = a dy + b (x - mean) + c with a, b, c per channel."""
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
