"""The state of training: one pytree of arrays, without keys or modules."""

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental import multihost_utils

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a step reads and writes.

    Attributes:
      step: updates done, int32[].
      params, batch_stats: nested dictionaries of float32 arrays.
      opt_state: optax's.
      ema: {"params": ..., "batch_stats": ...}, their Polyak averages; None without averaging.
    """

    step: jax.Array
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    ema: PyTree | None


def split(model: nnx.Module) -> tuple[nnx.GraphDef, PyTree, PyTree]:
    """A model as (structure, parameters, batch statistics); `nnx.merge` puts it together again."""
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def count(tree: PyTree) -> int:
    """How many numbers the arrays of a tree hold, or their shapes say.

    >>> count({"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)})
    9
    """
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def create(model: nnx.Module, optimizer: optax.GradientTransformation, *, averaging: bool) -> TrainState:
    """The state before the first step; the averages start at the initial weights."""
    _, params, batch_stats = split(model)
    ema = {"params": params, "batch_stats": batch_stats}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        # Copies, since a donated buffer may stand in the state only once.
        ema=jax.tree.map(jnp.copy, ema) if averaging else None,
    )


def weight_sets(state: TrainState) -> dict[str, PyTree]:
    """The weights to evaluate: {"raw": ..., "averaged": ...}, each {"params": ..., "batch_stats": ...}."""
    sets = {"raw": {"params": state.params, "batch_stats": state.batch_stats}}
    return sets if state.ema is None else sets | {"averaged": state.ema}


def fingerprint(state: TrainState) -> str:
    """First 16 hex digits of a SHA-256 over names, shapes and bytes of parameters, statistics and averages.

    Two runs print the same one if and only if (but for hash collisions) their weights are equal to the bit. All
    hosts have to ask for it, since each may hold a part only.
    """
    digest = hashlib.sha256()
    leaves, _ = jax.tree_util.tree_flatten_with_path(weight_sets(state))
    for path, leaf in leaves:
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_replicated or leaf.is_fully_addressable):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
