"""Shared by tests of models: counts, thin networks with weights from numpy, and one program that runs them."""

import functools
import math
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from xception_jax import layers
from xception_jax.models import create_model, model_class, model_config

# Settings of thin and shallow networks for images of 12 x 12 pixels.
TINY = {
    "xception": {
        "num_classes": 5,
        "stem_widths": (4, 6),
        "stem_strides": (1, 1),
        "stem_padding": "SAME",
        "entry_widths": (8,),
        "middle_blocks": 1,
        "exit_widths": (10, 12, 14),
    },
    "inception_v3": {
        "num_classes": 5,
        "width": 0.07,
        "modules": (1, 0, 0),
        "stem_strides": (1, 1, 2),
        "padding": "SAME",
    },
    "resnet50": {
        "num_classes": 5,
        "blocks": (1, 2),
        "widths": (4, 5),
        "stem_width": 6,
        "dropout": 0.5,
    },
    "vgg16": {"num_classes": 5, "image_size": 12, "stages": ((5,), (6, 7)), "fc_layers": (30, 20)},
    "vgg16_separable": {"num_classes": 5, "stages": ((5,), (6, 7))},
}


def dotted(path):
    return ".".join(map(str, path))


def abstract(name, *, dtype="float32", **settings):
    """The model without its arrays: shapes and types only; `dtype` may be "float64", which no user can set."""
    config = model_config(name, **settings).model_copy(update={"dtype": dtype})  # which checks nothing
    return nnx.eval_shape(lambda: model_class(name)(config, rngs=nnx.Rngs(0)))


def size(node, *kind):
    return sum(array.size for array in jax.tree.leaves(nnx.state(node, *kind)))


def census(name, **config):
    """(parameters, statistics, multiply-adds, shape of the features) for one image of the model's own size.

    Statistics are all other arrays of the state. Each kernel has as many multiply-adds as it has weights, times
    the number of pixels of its output.
    """
    macs = 0

    def counted(call):
        def wrapper(layer, x, **options):
            nonlocal macs
            y = call(layer, x, **options)
            kernels = [array for array in jax.tree.leaves(nnx.state(layer, nnx.Param)) if array.ndim > 1]
            macs += sum(kernel.size for kernel in kernels) * math.prod(y.shape[:-1])
            return y

        return wrapper

    def run_model():
        model = create_model(name, **config)
        pixels = model.PREPROCESSING["image_size"]
        features = model.features(jnp.zeros((1, pixels, pixels, 3)))
        model.logits(features, train=False, key=None)
        return model, features

    with pytest.MonkeyPatch.context() as patch:
        for cls in (layers.Conv, layers.SpatialConv, nnx.Linear):
            patch.setattr(cls, "__call__", counted(cls.__call__))
        model, features = nnx.eval_shape(run_model)
    params = size(model, nnx.Param)
    return params, size(model) - params, macs, features.shape[1:]


def tiny(name, **changes):
    """A thin model for 5 classes with weights from numpy: compiling its initializers takes longer than the tests.

    Each array depends on its path and shape only, so that two models differ only in their settings.
    """
    graph, state = nnx.split(abstract(name, **TINY[name] | changes))

    def draw(path, leaf):
        rng = np.random.default_rng(zlib.crc32(dotted(path).encode()))
        values = rng.uniform(0.5, 1.5, leaf.shape)
        if len(leaf.shape) > 1:
            values = rng.normal(0, 1 / np.sqrt(np.prod(leaf.shape[:-1])), leaf.shape)
        return leaf.replace(jnp.asarray(values, leaf.dtype))

    flat = [(path, draw(path, leaf)) for path, leaf in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def tiny_images(count=8, pixels=12):
    return jnp.asarray(np.random.default_rng(0).normal(size=(count, pixels, pixels, 3)), jnp.float32)


@functools.partial(nnx.jit, static_argnames="train")
def run(model, images, *, train=False, key=None):
    return model(images, train=train, key=key)


def shapes(name, images_shape, *, train=False, **config):
    """The logits' shape and type, without computing them."""

    def logits():
        return create_model(name, **TINY[name] | config)(jnp.zeros(images_shape), train=train)

    return nnx.eval_shape(logits)


def copies(model, kind):
    return [np.array(array) for array in jax.tree.leaves(nnx.state(model, kind))]


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def distance(ours, theirs):
    """Norm of the difference relative to the norm."""
    ours, theirs = np.asarray(ours, np.float64).ravel(), np.asarray(theirs, np.float64).ravel()
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


class Outcome(NamedTuple):
    """Logits and batch statistics of an evaluation and of a training step after it, and the gradient."""

    evaluation: jax.Array
    kept: list[jax.Array]
    training: jax.Array
    moved: list[jax.Array]
    gradient: nnx.State


@functools.partial(jax.jit, static_argnums=0)
def _outcome(graph, params, others, images, key):
    def loss(params):
        model = nnx.merge(graph, params, others, copy=True)
        evaluation = model(images, key=key)
        kept = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
        training = model(images, train=True, key=key)
        moved = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
        return cross_entropy(training, jnp.arange(len(images)) % 5), (evaluation, kept, training, moved)

    gradient, rest = jax.grad(loss, has_aux=True)(params)
    return Outcome(*rest, gradient)


def outcome(model, images, seed=0):
    """An evaluation and a training step of the model as one program, which compiles faster than separate ones."""
    return _outcome(*nnx.split(model, nnx.Param, ...), images, jax.random.key(seed))
