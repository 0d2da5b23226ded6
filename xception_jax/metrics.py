"""What is learnt, and metrics as sums and counts under a mask: add over batches, divide once."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

Sums = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What a network learns: one label an image by softmax cross-entropy, or several by sigmoid cross-entropy.

    Attributes:
      num_classes: of the logits.
      multilabel: labels are uint8[N, classes] of 0 and 1 instead of int32[N].
      label_smoothing: share of the target spread evenly over all classes (Szegedy et al. 2016, section 7), for one
        label an image.
      class_weights: of the classes; None = all 1. With one label an image, its loss is multiplied by the weight of
        its class; with several, each class's term by its own.
    """

    num_classes: int
    multilabel: bool = False
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def targets(self, labels: jax.Array) -> jax.Array:
        """Labels as shares of the classes, float32[N, classes]."""
        if self.multilabel:
            return labels.astype(jnp.float32)
        return jax.nn.one_hot(labels, self.num_classes, dtype=jnp.float32)

    def loss(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """Of each example in nats, float32[N]; logits and targets are float[N, classes]."""
        if self.multilabel:
            return sigmoid_cross_entropy(logits, targets, class_weights=self.class_weights)
        loss = cross_entropy(logits, targets, label_smoothing=self.label_smoothing)  # [N]
        if self.class_weights is None:
            return loss
        return loss * jnp.sum(targets * jnp.asarray(self.class_weights, jnp.float32)[None], axis=1)

    def sums(self, loss: jax.Array, logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> Sums:
        """Of the measures that fit: `classification_sums` or `multilabel_sums`."""
        function = multilabel_sums if self.multilabel else classification_sums
        return function(loss, logits, labels, mask)


def cross_entropy(logits: jax.Array, targets: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy of each example in nats, float32[N].

    Args:
      logits: float[N, classes].
      targets: float32[N, classes], each row adding up to 1.
      label_smoothing: see `Objective`.
    """
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), optax.smooth_labels(targets, label_smoothing))


def sigmoid_cross_entropy(
    logits: jax.Array, targets: jax.Array, *, class_weights: tuple[float, ...] | None = None
) -> jax.Array:
    """Sigmoid cross-entropy of each example in nats, summed over the classes, float32[N].

    Args:
      logits: float[N, classes].
      targets: float32[N, classes] in [0, 1].
      class_weights: of the classes in the sum; None = all 1.
    """
    loss = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets)  # [N, classes]
    if class_weights is not None:
        loss = loss * jnp.asarray(class_weights, jnp.float32)[None]
    return jnp.sum(loss, axis=1)


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
    rank = _rank(logits, labels)  # [N]
    return _masked_sums(mask, loss=loss, top1=rank < 1, top5=rank < 5)


def multilabel_sums(loss: jax.Array, logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> Sums:
    """Sums over the examples whose mask is 1: loss, top1, exact, count.

    top1 counts the images whose highest logit is one of their labels; exact those whose labels are the classes
    with a probability above one half, neither more nor fewer.

    Args:
      loss: float[N], of each example.
      logits: float[N, classes].
      labels: uint8[N, classes] of 0 and 1.
      mask: float[N], 0 on padding; None counts all.
    """
    first = jax.nn.one_hot(jnp.argmax(logits, axis=1), logits.shape[1], dtype=jnp.bool_)  # [N, classes]
    present = labels > 0
    return _masked_sums(
        mask, loss=loss, top1=jnp.any(first & present, axis=1), exact=jnp.all((logits > 0) == present, axis=1)
    )


def _masked_sums(mask: jax.Array | None, *, loss: jax.Array, **hits: jax.Array) -> Sums:
    """Sums of float[N] and bool[N] under a mask, and the number of examples; a masked loss may be NaN."""
    mask = jnp.ones_like(loss) if mask is None else mask
    sums = {name: jnp.sum(hit.astype(jnp.float32) * mask) for name, hit in hits.items()}
    return {"loss": jnp.sum(jnp.where(mask > 0, loss, 0.0)), **sums, "count": jnp.sum(mask)}


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
