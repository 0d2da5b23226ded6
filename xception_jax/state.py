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
      step: number of updates done, int32[].
      params: nested dictionary of the trained arrays.
      model_state: nested dictionary of all other arrays that the model keeps, such as batch statistics.
      opt_state: state of the optax optimizer.
      averaged: {"params": ..., "model_state": ...}, their exponential moving averages; None without averaging.
    """

    step: jax.Array
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    averaged: PyTree | None


def split(model: nnx.Module) -> tuple[nnx.GraphDef, PyTree, PyTree]:
    """(structure, parameters, model state) of a model; `nnx.merge` puts it together again."""
    graphdef, params, model_state = nnx.split(model, nnx.Param, ...)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(model_state)


def model_state(model: nnx.Module) -> PyTree:
    """All arrays of a model that are no parameters."""
    return nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))


def count(tree: PyTree) -> int:
    """Number of elements in all arrays, or abstract arrays, of a tree.

    >>> count({"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)})
    9
    """
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def create(model: nnx.Module, optimizer: optax.GradientTransformation, *, averaging: bool) -> TrainState:
    """The state before the first step; the averages start at the initial weights."""
    _, params, model_state = split(model)
    weights = {"params": params, "model_state": model_state}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=optimizer.init(params),
        # The averages are copies, since a donated buffer may occur only once in the state.
        averaged=jax.tree.map(jnp.copy, weights) if averaging else None,
    )


def weight_sets(state: TrainState) -> dict[str, PyTree]:
    """The weights to evaluate: {"raw": ..., "averaged": ...}, each {"params": ..., "model_state": ...}."""
    sets = {"raw": {"params": state.params, "model_state": state.model_state}}
    return sets if state.averaged is None else sets | {"averaged": state.averaged}


def fingerprint(state: TrainState) -> str:
    """First 16 hexadecimal digits of a SHA-256 over names, shapes and bytes of all weights.

    Two runs have the same fingerprint if and only if their raw and averaged weights are equal bit by bit (up to
    hash collisions). With several hosts, all of them must call this, since each may hold only a part.
    """
    digest = hashlib.sha256()
    # The model state is called "batch_stats" here, as in version 0.1, so that fingerprints stay comparable.
    named = {
        name: {"params": weights["params"], "batch_stats": weights["model_state"]}
        for name, weights in weight_sets(state).items()
    }
    leaves, _ = jax.tree_util.tree_flatten_with_path(named)
    for path, leaf in leaves:
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_replicated or leaf.is_fully_addressable):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
