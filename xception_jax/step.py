"""The training step and the evaluation step: pure functions of (state, batch)."""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding

from xception_jax import metrics, optim, state
from xception_jax.state import TrainState

PyTree = Any
Batch = dict[str, jax.Array]


# Turns (batch, targets, train=...) into the model's inputs and targets, as `data.inputs.Inputs.prepare` does.
Prepare = Callable[..., tuple[PyTree, jax.Array]]


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Prepare,
    objective: metrics.Objective,
    counted: Mapping[str, str] = types.MappingProxyType({}),
    accumulation_steps: int = 1,
    accumulation_block: int = 1,
    averaging: optim.Averaging | None = None,
    logits_sharding: NamedSharding | None = None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, metrics.Sums]]:
    """Builds step(state, batch, key) -> (state, sums): one update on one global batch.

    Besides what `prepare` reads, the batch has "label" in the objective's format, "seed" uint32[B] of each
    example's augmentation, and "unreadable" int32[B], the index of the replaced example, else -1. `key` is the
    run's and the same for every step. The sums are those of the objective and of `counted`, the number of replaced
    examples, and the gradient and parameter norms, multiplied by count so that dividing by count restores them.

    Args:
      graphdef: structure of the model, from `state.split`.
      counted: see `data.inputs.Inputs`.
      accumulation_steps: K > 1 computes the gradient as the mean over K parts of the batch, one after the other,
        so that only the activations of B / K examples are in memory at a time. Batch statistics are then computed
        on each part.
      accumulation_block: number of consecutive examples that stay together in a part; an even number if examples
        are mixed in pairs. With the model's `bn_group_size` here, and no dropout, the update equals that of the
        whole batch.
      averaging: see `optim.update_average`; None = no averaging.
      logits_sharding: sharding of the logits [N, classes] over devices that split the classifier in the same way.
        Features, their gradients and sums over classes then move between devices, but logits do not. None, or a
        sharding of the examples alone, leaves the choice to XLA.
    """
    gradient = _make_gradient(graphdef, prepare, objective, counted, logits_sharding)
    if accumulation_steps > 1:
        gradient = _accumulated(gradient, accumulation_steps, accumulation_block)

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, metrics.Sums]:
        key = jax.random.fold_in(key, state.step)
        means, sums = gradient(state, batch, key)
        updates, opt_state = optimizer.update(means["grads"], state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        step, averaged = state.step + 1, state.averaged
        if averaging is not None and averaging.decay is not None:
            new = {"params": params, "model_state": means["model_state"]}
            averaged = optim.update_average(averaged, new, step=step, settings=averaging)
        sums |= {
            "grad_norm": optax.tree.norm(means["grads"]) * sums["count"],
            "param_norm": optax.tree.norm(params) * sums["count"],
        }
        return TrainState(step, params, means["model_state"], opt_state, averaged), sums

    return train_step


def _make_gradient(
    graphdef: nnx.GraphDef,
    prepare: Prepare,
    objective: metrics.Objective,
    counted: Mapping[str, str],
    logits_sharding: NamedSharding | None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[dict[str, PyTree], metrics.Sums]]:
    """Builds gradient(state, batch, key) -> ({"grads", "model_state"}, sums); `key` is for the dropout."""

    def loss_fn(params, model_state, inputs, targets, batch, key):
        model = nnx.merge(graphdef, params, model_state)
        logits = _split_classes(model(inputs, train=True, key=key), logits_sharding)  # [N, classes]
        loss = objective.loss(logits, targets)  # [N]
        sums = objective.sums(loss, logits, batch["label"])
        sums["unreadable"] = jnp.sum((batch["unreadable"] >= 0).astype(jnp.float32))
        sums |= {name: jnp.sum(batch[array].astype(jnp.float32)) for name, array in counted.items()}
        return jnp.mean(loss), (state.model_state(model), sums)

    def gradient(train_state, batch, key):
        inputs, targets = prepare(batch, objective.targets(batch["label"]), train=True)
        targets = _split_classes(targets, logits_sharding)
        grads, (model_state, sums) = jax.grad(loss_fn, has_aux=True)(
            train_state.params, train_state.model_state, inputs, targets, batch, key
        )
        return {"grads": grads, "model_state": model_state}, sums

    return gradient


def _split_classes(x: jax.Array, sharding: NamedSharding | None) -> jax.Array:
    """Constrains x[N, classes] to `sharding` if that splits the classes, so that each device computes its part."""
    if sharding is None or len(sharding.spec) < 2:
        return x
    return jax.lax.with_sharding_constraint(x, sharding)


def _accumulated(gradient: Callable, parts: int, block: int) -> Callable:
    """Runs `gradient` on one part of the batch after the other; takes the mean of its first result, the sum of its
    second."""

    def compute(state, batch, key):
        batches = jax.tree.map(lambda x: _split_batch(x, parts, block), batch)  # [parts, B / parts, ...]
        keys = jax.random.split(key, parts)
        shapes = jax.eval_shape(gradient, state, *jax.tree.map(lambda x: x[0], (batches, keys)))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add_part(total, part):
            return jax.tree.map(jnp.add, total, gradient(state, *part)), None

        (totals, sums), _ = jax.lax.scan(add_part, zeros, (batches, keys))
        return jax.tree.map(lambda x: _divide(x, parts), totals), sums

    return compute


def _divide(x: jax.Array, parts: int) -> jax.Array:
    """x / parts in the type of x; a counter in the model state stays a whole number."""
    return x / parts if jnp.issubdtype(x.dtype, jnp.inexact) else x // parts


def _split_batch(x: jax.Array, parts: int, block: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...]: blocks of consecutive examples are dealt to the parts in turn.

    So every part has examples of every device, and no example moves if B / (parts * block) divides over the
    devices.
    """
    x = x.reshape(-1, parts, block, *x.shape[1:])  # [B / (parts block), parts, block, ...]
    return jnp.swapaxes(x, 0, 1).reshape(parts, -1, *x.shape[3:])  # [parts, B / parts, ...]


def make_eval_step(
    graphdef: nnx.GraphDef,
    *,
    prepare: Prepare,
    objective: metrics.Objective,
    logits_sharding: NamedSharding | None = None,
) -> Callable[[dict[str, PyTree], Batch], dict[str, metrics.Sums]]:
    """Builds step(weight_sets, batch) -> sums for each set of weights, from one reading of the batch.

    Besides what `prepare` reads, the batch has "label" in the objective's format and "mask" float32[B], 0 on
    padding. The weight sets are those of `state.weight_sets`. The loss has no label smoothing.
    The arguments are those of `make_train_step`. MAP@100 uses `logits_sharding` even if it splits only the
    examples; in addition it moves the best 100 classes of each example and device (see `metrics.ranking_sums`).
    """
    objective = dataclasses.replace(objective, label_smoothing=0.0)

    def eval_step(weight_sets, batch):
        inputs, targets = prepare(batch, objective.targets(batch["label"]), train=False)

        def sums(weights):
            logits = nnx.merge(graphdef, weights["params"], weights["model_state"])(inputs)  # [B, classes]
            logits = _split_classes(logits, logits_sharding)
            loss = objective.loss(logits, targets)
            label, mask = batch["label"], batch["mask"]
            return objective.evaluation_sums(loss, logits, label, mask, logits_sharding=logits_sharding)

        return {name: sums(weights) for name, weights in weight_sets.items()}

    return eval_step
