"""Sliding windows: padding, output sizes, and the shifted copies that the implementations called "shift" use."""

import typing
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from xception_jax.errors import SettingError

Implementation = Literal["xla", "shift"]
IMPLEMENTATIONS: tuple[str, ...] = typing.get_args(Implementation)

Pair = tuple[int, int]
Pairs = tuple[Pair, Pair]


def as_pairs(
    size: Pair, window: int | Pair, strides: int | Pair, padding: str | Sequence[Pair]
) -> tuple[Pair, Pair, Pairs]:
    """Window and strides as (rows, columns), and padding as ((top, bottom), (left, right)), all in pixels.

    One number stands for both directions. "SAME" follows the rule of XLA and TensorFlow: an odd pixel is added at
    the end.

    Raises:
      ValueError: if the window is larger than the padded input.
    """
    window, strides = ((v, v) if isinstance(v, int) else tuple(v) for v in (window, strides))
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, window, strides, padding)
    (top, bottom), (left, right) = padding
    pairs = (int(top), int(bottom)), (int(left), int(right))
    if min(output_size(size, window, strides, pairs)) < 1:
        raise ValueError(f"window {window} is larger than the input of {size} with padding {pairs}")
    return window, strides, pairs


def output_size(size: Pair, window: Pair, strides: Pair, padding: Pairs) -> Pair:
    """The height and width of the output: the number of windows that fit into each column and row."""
    return tuple((n + sum(p) - k) // s + 1 for n, p, k, s in zip(size, padding, window, strides, strict=True))


def pad(x: jax.Array, padding: Pairs, *, value: float = 0, dilation: Pair = (1, 1)) -> jax.Array:
    """Pads the height and width of x[N, H, W, C]; negative numbers crop.

    With `dilation`, dilation - 1 copies of `value` are inserted between neighboring pixels.
    """
    (top, bottom), (left, right) = padding
    config = ((0, 0, 0), (top, bottom, dilation[0] - 1), (left, right, dilation[1] - 1), (0, 0, 0))
    return lax.pad(x, jnp.asarray(value, x.dtype), config)


def shifted(padded: jax.Array, tap: Pair, strides: Pair, size: Pair) -> jax.Array:
    """The pixel under tap (i, j) of each window: [N, *size, C], where `size` is the number of windows each way."""
    n, _, _, c = padded.shape
    end = [t + (k - 1) * s + 1 for t, k, s in zip(tap, size, strides, strict=True)]
    return lax.slice(padded, (0, *tap, 0), (n, *end, c), (1, *strides, 1))


def taps(window: Pair) -> Iterator[Pair]:
    """All positions (i, j) in a window, row by row."""
    return ((i, j) for i in range(window[0]) for j in range(window[1]))


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """The type in which sums of `dtype` are computed: at least float32."""
    return jnp.dtype(jnp.float32) if dtype.itemsize < 4 else dtype


def choose(implementation: str | None) -> str:
    """The implementation itself; for None, the fastest measured one for the platform (results/speed.csv).

    Raises:
      SettingError: if it is unknown.
    """
    if implementation is None:
        return "shift" if jax.default_backend() == "cpu" else "xla"
    if implementation not in IMPLEMENTATIONS:
        raise SettingError("implementation", implementation, f"choose one of {IMPLEMENTATIONS} or None")
    return implementation
