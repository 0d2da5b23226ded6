"""The training objective, and metrics as sums and counts under a mask: add over batches, then divide once."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

Sums = dict[str, jax.Array]

TOP = 100  # predictions that MAP@100 looks at


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Loss and metrics: softmax cross-entropy for one label per example, sigmoid cross-entropy for several.

    Attributes:
      num_classes: number of logits.
      multilabel: labels are uint8[N, classes] of 0 and 1 instead of int32[N].
      label_offset: number of leading logits that stand for no class of the dataset, such as the background class
        of TensorFlow's Inception models; label i belongs to logit i + label_offset.
      label_smoothing: share of the target spread evenly over all classes (Szegedy et al. 2016, section 7); only
        with one label per example.
      class_weights: float per logit; None = all 1. They weight MAP@100 (see `average_precision`).
      weighted_loss: whether the class weights apply to the loss too. With one label per example, the loss is
        multiplied by the weight of its class; with several, each class's term by the weight of that class.
    """

    num_classes: int
    multilabel: bool = False
    label_offset: int = 0
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    weighted_loss: bool = True

    @property
    def best_measure(self) -> str:
        """Name of the metric that decides which checkpoint is the best; higher is better."""
        return "map100" if self.multilabel else "top1"

    def _logit_labels(self, labels: jax.Array) -> jax.Array:
        """Labels of the dataset's classes -> labels of the logits."""
        if self.multilabel:
            return jnp.pad(labels, ((0, 0), (self.label_offset, 0)))  # [N, num_classes]
        return labels + self.label_offset

    def targets(self, labels: jax.Array) -> jax.Array:
        """Labels as a probability or a 0/1 indicator for each logit, float32[N, num_classes]."""
        labels = self._logit_labels(labels)
        if self.multilabel:
            return labels.astype(jnp.float32)
        return jax.nn.one_hot(labels, self.num_classes, dtype=jnp.float32)

    def loss(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """Loss of each example in nats, float32[N]; logits and targets are float[N, num_classes].

        For several labels, it is summed over the classes.
        """
        logits = logits.astype(jnp.float32)
        weights = self.class_weights if self.weighted_loss else None
        if self.multilabel:
            loss = optax.sigmoid_binary_cross_entropy(logits, targets)  # [N, num_classes]
            if weights is not None:
                loss = loss * jnp.asarray(weights, jnp.float32)[None]
            return jnp.sum(loss, axis=1)
        loss = optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, self.label_smoothing))  # [N]
        if weights is not None:
            loss = loss * jnp.sum(targets * jnp.asarray(weights, jnp.float32)[None], axis=1)
        return loss

    def sums(self, loss: jax.Array, logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None) -> Sums:
        """`multilabel_sums` for several labels, else `classification_sums`."""
        function = multilabel_sums if self.multilabel else classification_sums
        return function(loss, logits, self._logit_labels(labels), mask)

    def evaluation_sums(
        self,
        loss: jax.Array,
        logits: jax.Array,
        labels: jax.Array,
        mask: jax.Array,
        *,
        logits_sharding: NamedSharding | None = None,
    ) -> Sums:
        """`sums` and, for several labels, `ranking_sums`, which cost too much for every training step."""
        sums = self.sums(loss, logits, labels, mask)
        if not self.multilabel:
            return sums
        weights = (1.0,) * self.num_classes if self.class_weights is None else self.class_weights
        return sums | ranking_sums(
            logits,
            self._logit_labels(labels),
            mask,
            class_weights=jnp.asarray(weights, jnp.float32),
            logits_sharding=logits_sharding,
        )

    def probabilities(self, logits: jax.Array) -> jax.Array:
        """Probabilities of the dataset's classes, float32[N, num_classes - label_offset]."""
        probabilities = (jax.nn.sigmoid if self.multilabel else jax.nn.softmax)(logits)
        return probabilities[:, self.label_offset :]


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
    with a probability above one half, neither more nor fewer. The arguments are those of `classification_sums`,
    but the labels are uint8[N, classes] of 0 and 1.
    """
    first = jax.nn.one_hot(jnp.argmax(logits, axis=1), logits.shape[1], dtype=jnp.bool_)  # [N, classes]
    present = labels > 0
    return _masked_sums(
        mask, loss=loss, top1=jnp.any(first & present, axis=1), exact=jnp.all((logits > 0) == present, axis=1)
    )


def ranking_sums(
    logits: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    *,
    class_weights: jax.Array,
    logits_sharding: NamedSharding | None = None,
) -> Sums:
    """Sums over the examples whose mask is 1: map100, the average precision, and map100_count.

    Mean average precision for the top 100 predictions, MAP@100, is Chollet 2017's measure for JFT (section 4.1),
    where a score of how common a class is weighs what it contributes. The paper gives no formula; this one is in
    `average_precision`. An image without a label of positive weight does not count.

    Args:
      logits, labels, class_weights: as in `average_precision`.
      mask: float32[N], 0 on padding.
      logits_sharding: of logits and labels over devices, images along its first axis and classes along its second
        if it has two. Then each device ranks its own classes, and only an image's best 100 of each device move
        between them. (XLA by itself gives all logits to all devices before it ranks them.)
    """
    if logits_sharding is None:
        precision, counted = average_precision(logits, labels, class_weights)
    else:
        images, classes = (*logits_sharding.spec, None)[:2]
        precision, counted = jax.shard_map(
            functools.partial(average_precision, axis_name=classes),
            mesh=logits_sharding.mesh,
            in_specs=(PartitionSpec(images, classes), PartitionSpec(images, classes), PartitionSpec(classes)),
            out_specs=PartitionSpec(images),
        )(logits, labels, class_weights)
    counted = counted & (mask > 0)  # [N]
    return {
        "map100": jnp.sum(jnp.where(counted, precision, 0.0)),
        "map100_count": jnp.sum(counted.astype(jnp.float32)),
    }


def average_precision(
    logits: jax.Array, labels: jax.Array, class_weights: jax.Array, *, k: int = TOP, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """Weighted average precision of each image's `k` highest logits.

    With c(1), c(2), ... the classes by falling logit, w their weights, y their labels of 0 and 1:

      AP = sum over i <= k of w[c(i)] y[c(i)] precision(i) / (sum of the k largest of w[c] y[c])
      precision(i) = (y[c(1)] + ... + y[c(i)]) / i

    The divisor is what the best order would reach, so AP is in [0, 1] for any number of labels. Weights weigh what
    a class contributes, not the precision. With weights of 1, k = classes and no two logits equal it is
    scikit-learn's `average_precision_score`. Of equal logits the first class comes first. A logit of NaN ranks as
    -inf and counts as wrong.

    Args:
      logits: float[N, classes].
      labels: uint8[N, classes] of 0 and 1.
      class_weights: float32[classes], at least 0.
      axis_name: of the devices between which `jax.shard_map` splits the classes; None = they are all here.

    Returns:
      (AP float32[N], bool[N]: whether the image has a label of positive weight; if not, its AP is 0).
    """
    present, undefined = labels > 0, jnp.isnan(logits)
    gains = jnp.where(present, class_weights[None], 0.0)  # [N, classes]
    scores = jnp.where(undefined, -jnp.inf, jnp.where(logits == 0, 0.0, logits))  # top_k puts 0 before -0
    _, hits, gained = _top_k(k, axis_name, scores, present & ~undefined, gains)  # [N, k]
    (best,) = _top_k(k, axis_name, gains)  # [N, k]
    places = jnp.arange(1, hits.shape[1] + 1, dtype=jnp.float32)[None]  # [1, k]
    precision = jnp.cumsum(hits, axis=1, dtype=jnp.float32) / places  # [N, k]
    ideal = jnp.sum(best, axis=1)  # [N]
    reached = jnp.sum(jnp.where(hits, gained * precision, 0.0), axis=1)  # [N]
    return reached / jnp.where(ideal > 0, ideal, 1.0), ideal > 0


def _top_k(k: int, axis_name: str | None, scores: jax.Array, *others: jax.Array) -> list[jax.Array]:
    """The `k` highest scores of each row (the first ones of equals), and what `others` have in their places."""
    if axis_name is not None:
        gather = functools.partial(jax.lax.all_gather, axis_name=axis_name, axis=1, tiled=True, to="invarying")
        scores, *others = map(gather, _top_k(k, None, scores, *others))  # equal ones still by class
    scores, places = jax.lax.top_k(scores, min(k, scores.shape[1]))
    return [scores, *(jnp.take_along_axis(x, places, axis=1) for x in others)]


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

    Their number is "count", or a measure's own, as "map100_count"; a measure without any examples is left out.

    >>> compute({"loss": 6.0, "top1": 3.0, "top5": 4.0, "count": 4.0})
    {'loss': 1.5, 'top1': 0.75, 'top5': 1.0}
    >>> compute({"loss": 6.0, "map100": 1.5, "count": 4.0, "map100_count": 3.0})
    {'loss': 1.5, 'map100': 0.5}
    """
    means = {}
    for name, value in sums.items():
        count = float(sums.get(f"{name}_count", sums["count"]))
        if count and not name.endswith("count"):
            means[name] = float(value) / count
    return means
