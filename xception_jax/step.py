"""The training step and the evaluation step: pure functions of (state, batch)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding

from xception_jax import metrics, optim
from xception_jax.data.images.augment import Augmentation
from xception_jax.state import TrainState

PyTree = Any
Batch = dict[str, jax.Array]


def normalize(image: jax.Array, *, mean: float, std: float) -> jax.Array:
    """Pixels uint8[...] -> (pixels / 255 - mean) / std, float32[...]."""
    return (_to_unit(image) - mean) / std


def _to_unit(image: jax.Array) -> jax.Array:
    """Pixels uint8[...] -> float32[...] in [0, 1]."""
    return image.astype(jnp.float32) / 255


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    *,
    mean: float,
    std: float,
    objective: metrics.Objective,
    augmentation: Augmentation | None = None,
    accumulation_steps: int = 1,
    accumulation_block: int = 1,
    polyak_decay: float | None = None,
    polyak_warmup: bool = True,
    logits_sharding: NamedSharding | None = None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, metrics.Sums]]:
    """Builds step(state, batch, key) -> (state, sums): one update on one global batch.

    The batch has "image" uint8[B, H, W, C], "label" as the objective wants it, "seed" uint32[B] of each image's
    augmentation, and "unreadable" int32[B], -1 but where an image had to be replaced; `key` is the run's, the same
    for every step. The sums are those of the objective, the number of replaced images and, times the count, the
    global norms of the gradient and of the parameters.

    Args:
      graphdef: of the model, from `state.split`.
      optimizer: of the parameters.
      mean, std: normalization of pixels in [0, 1].
      objective: loss and measures.
      augmentation: of the images on the device; None = none.
      accumulation_steps: K > 1 takes the gradient as the mean over K parts of the batch, one after the
        other, so that activations of B / K images are in memory at a time. Batch statistics are then those
        of the parts.
      accumulation_block: consecutive images that stay together in a part: even, where images are mixed in pairs.
        With the model's `bn_group_size` here, and no dropout, the update equals that of the whole batch.
      polyak_decay, polyak_warmup: see `optim.polyak_update`; None = no averaging.
      logits_sharding: of the logits [N, classes], over devices that have the classifier split in the same way. The
        features of an image, their gradient, and sums over its classes then move between those that share its
        classes; no logits do. None, or images split alone, leave it to XLA.
    """

    gradient = _make_gradient(
        graphdef, objective, augmentation, mean=mean, std=std, logits_sharding=logits_sharding
    )
    if accumulation_steps > 1:
        gradient = _accumulated(gradient, accumulation_steps, accumulation_block)

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, metrics.Sums]:
        key = jax.random.fold_in(key, state.step)
        means, sums = gradient(state, batch, key)
        updates, opt_state = optimizer.update(means["grads"], state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step, ema = state.step + 1, state.ema
        if polyak_decay is not None:
            new = {"params": params, "batch_stats": means["batch_stats"]}
            ema = optim.polyak_update(ema, new, step=step, decay=polyak_decay, warmup=polyak_warmup)
        sums |= {
            "grad_norm": optax.tree.norm(means["grads"]) * sums["count"],
            "param_norm": optax.tree.norm(params) * sums["count"],
        }
        return TrainState(step, params, means["batch_stats"], opt_state, ema), sums

    return train_step


def _make_gradient(
    graphdef: nnx.GraphDef,
    objective: metrics.Objective,
    augmentation: Augmentation | None,
    *,
    mean: float,
    std: float,
    logits_sharding: NamedSharding | None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[dict[str, PyTree], metrics.Sums]]:
    """gradient(state, batch, key) -> ({"grads", "batch_stats"}, sums) of one batch; `key` is the dropout's."""

    def loss_fn(params, batch_stats, image, target, batch, key):
        model = nnx.merge(graphdef, params, batch_stats)
        logits = _split_classes(model((image - mean) / std, train=True, key=key), logits_sharding)  # [N, classes]
        loss = objective.loss(logits, target)  # [N]
        sums = objective.sums(loss, logits, batch["label"])
        sums["unreadable"] = jnp.sum((batch["unreadable"] >= 0).astype(jnp.float32))
        return jnp.mean(loss), (nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)), sums)

    def gradient(state, batch, key):
        image, target = _to_unit(batch["image"]), objective.targets(batch["label"])
        if augmentation is not None:
            key0 = jax.random.key(0)  # the seeds depend on the run's already
            image, target = augmentation(image, target, batch["seed"], key0)
        target = _split_classes(target, logits_sharding)
        grads, (batch_stats, sums) = jax.grad(loss_fn, has_aux=True)(
            state.params, state.batch_stats, image, target, batch, key
        )
        return {"grads": grads, "batch_stats": batch_stats}, sums

    return gradient


def _split_classes(x: jax.Array, sharding: NamedSharding | None) -> jax.Array:
    """[N, classes] as `sharding` has it, if that splits the classes: XLA then computes each part in its place."""
    if sharding is None or len(sharding.spec) < 2:
        return x
    return jax.lax.with_sharding_constraint(x, sharding)


def _accumulated(gradient: Callable, parts: int, block: int) -> Callable:
    """`gradient` of one part of the batch after the other: its first result's mean, its second's sum."""

    def compute(state, batch, key):
        batches = jax.tree.map(lambda x: _split_batch(x, parts, block), batch)  # [parts, B / parts, ...]
        keys = jax.random.split(key, parts)
        shapes = jax.eval_shape(gradient, state, *jax.tree.map(lambda x: x[0], (batches, keys)))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add_part(total, part):
            return jax.tree.map(jnp.add, total, gradient(state, *part)), None

        (means, sums), _ = jax.lax.scan(add_part, zeros, (batches, keys))
        return jax.tree.map(lambda x: x / parts, means), sums

    return compute


def _split_batch(x: jax.Array, parts: int, block: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...]: blocks of consecutive images are dealt to the parts in turn.

    So every part has images of every device, and none has to move if B / (parts block) divides over the devices.
    """
    x = x.reshape(-1, parts, block, *x.shape[1:])  # [B / (parts block), parts, block, ...]
    return jnp.swapaxes(x, 0, 1).reshape(parts, -1, *x.shape[3:])  # [parts, B / parts, ...]


def make_eval_step(
    graphdef: nnx.GraphDef,
    *,
    mean: float,
    std: float,
    objective: metrics.Objective,
    logits_sharding: NamedSharding | None = None,
) -> Callable[[dict[str, PyTree], Batch], dict[str, metrics.Sums]]:
    """Builds step(weight_sets, batch) -> sums for each set of weights, from one reading of the batch.

    The batch has "image" uint8[B, H, W, C], "label" as the objective wants it and "mask" float32[B], 0 on padding;
    the sets are those of `state.weight_sets`. The loss has no label smoothing.

    Args:
      graphdef, mean, std, objective: see `make_train_step`.
      logits_sharding: see `make_train_step`. MAP@100 wants it even if it splits the images alone, and moves an
        image's best 100 classes of each device besides (see `metrics.ranking_sums`).
    """
    objective = dataclasses.replace(objective, label_smoothing=0.0)

    def eval_step(weight_sets, batch):
        image = normalize(batch["image"], mean=mean, std=std)

        def sums(weights):
            logits = nnx.merge(graphdef, weights["params"], weights["batch_stats"])(image)  # [B, classes]
            logits = _split_classes(logits, logits_sharding)
            label, mask = batch["label"], batch["mask"]
            loss = objective.loss(logits, objective.targets(label))
            return objective.evaluation_sums(loss, logits, label, mask, logits_sharding=logits_sharding)

        return {name: sums(weights) for name, weights in weight_sets.items()}

    return eval_step
