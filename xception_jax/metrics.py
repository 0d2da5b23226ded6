"""Metrics as sums and counts under a mask: add over batches, divide once."""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

Sums = dict[str, jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy of each example in nats, float32[N].

    Args:
      logits: float[N, classes].
      labels: int[N].
      label_smoothing: share of the target spread evenly over all classes (Szegedy et al. 2016, section 7).
    """
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)  # [N, classes]
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), optax.smooth_labels(targets, label_smoothing))


def classification_sums(
    loss: jax.Array, logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None
) -> Sums:
    """Sums over the examples whose mask is 1: loss, top1, top5 hits, count.

    Args:
      loss: float[N], of each example.
      logits: float[N, classes].
      labels: int[N].
      mask: float[N], 0 on padding; None counts all.
    """
    mask = jnp.ones_like(loss) if mask is None else mask
    rank = _rank(logits, labels)  # [N]
    return {
        "loss": jnp.sum(jnp.where(mask > 0, loss, 0.0)),
        "top1": jnp.sum((rank < 1).astype(jnp.float32) * mask),
        "top5": jnp.sum((rank < 5).astype(jnp.float32) * mask),
        "count": jnp.sum(mask),
    }


def _rank(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """How many classes come before the label's, int32[N]; of equal logits the first class does, NaN always.

    Unlike a sort, comparing needs no communication between the devices that hold the examples.
    """
    classes = jnp.arange(logits.shape[-1])[None]  # [1, classes]
    labels = labels[:, None]  # [N, 1]
    target = jnp.take_along_axis(logits, labels, axis=1)  # [N, 1]
    behind = (logits < target) | ((logits == target) & (classes > labels))  # [N, classes]
    return logits.shape[-1] - 1 - jnp.sum(behind, axis=1)


def total(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Sums of several batches together, in double precision.

    >>> total([{"top1": 3.0, "count": 4.0}, {"top1": 1.0, "count": 2.0}])
    {'top1': 4.0, 'count': 6.0}
    """
    return {name: math.fsum(float(part[name]) for part in parts) for name in parts[0]}


def compute(sums: Mapping[str, float]) -> dict[str, float]:
    """Means over the counted examples: loss in nats, top1 and top5 in [0, 1].

    >>> compute({"loss": 6.0, "top1": 3.0, "top5": 4.0, "count": 4.0})
    {'loss': 1.5, 'top1': 0.75, 'top5': 1.0}
    """
    return {name: float(value) / float(sums["count"]) for name, value in sums.items() if name != "count"}
