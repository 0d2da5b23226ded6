"""Sliding windows as shifted copies of a padded array: what the implementations called "shift" have in common."""

import typing
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

Implementation = Literal["xla", "shift"]
IMPLEMENTATIONS: tuple[str, ...] = typing.get_args(Implementation)

Pair = tuple[int, int]
Pairs = tuple[Pair, Pair]


def pair(value: int | Sequence[int]) -> Pair:
    """One number for rows and columns, or both."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def pad_pairs(size: Pair, window: Pair, strides: Pair, padding: str | Sequence[Pair]) -> Pairs:
    """((top, bottom), (left, right)) in pixels; "SAME" is XLA's and TensorFlow's: the odd pixel at the end.

    Raises:
      ValueError: if no window fits.
    """
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, window, strides, padding)
    (top, bottom), (left, right) = padding
    pairs = (int(top), int(bottom)), (int(left), int(right))
    if min(output_size(size, window, strides, pairs)) < 1:
        raise ValueError(f"window {window} is larger than the input of {size} with padding {pairs}")
    return pairs


def output_size(size: Pair, window: Pair, strides: Pair, padding: Pairs) -> Pair:
    """Rows and columns of windows that fit."""
    return tuple((n + sum(p) - k) // s + 1 for n, p, k, s in zip(size, padding, window, strides, strict=True))


def pad(x: jax.Array, padding: Pairs, *, value: float = 0, dilation: Pair = (1, 1)) -> jax.Array:
    """Pads the rows and columns of x[N, H, W, C], with `dilation - 1` values between them; negative pads crop."""
    (top, bottom), (left, right) = padding
    config = ((0, 0, 0), (top, bottom, dilation[0] - 1), (left, right, dilation[1] - 1), (0, 0, 0))
    return lax.pad(x, jnp.asarray(value, x.dtype), config)


def shifted(padded: jax.Array, tap: Pair, strides: Pair, size: Pair) -> jax.Array:
    """What tap (i, j) of all windows meets: [N, *size, C], where `size` counts windows down and across."""
    n, _, _, c = padded.shape
    end = [t + (k - 1) * s + 1 for t, k, s in zip(tap, size, strides, strict=True)]
    return lax.slice(padded, (0, *tap, 0), (n, *end, c), (1, *strides, 1))


def taps(window: Pair) -> Iterator[Pair]:
    """All (i, j) of a window, row by row."""
    return ((i, j) for i in range(window[0]) for j in range(window[1]))


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """The type to sum in: float32 for narrower types, else the type itself."""
    return jnp.dtype(jnp.float32) if dtype.itemsize < 4 else dtype


def choose(implementation: str | None) -> str:
    """The implementation itself, or the fastest one that was measured for the platform (results/speed.csv).

    Raises:
      ValueError: if it is unknown.
    """
    if implementation is None:
        return "shift" if jax.default_backend() == "cpu" else "xla"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r}: choose one of {IMPLEMENTATIONS} or None")
    return implementation
