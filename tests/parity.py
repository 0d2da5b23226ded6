"""Parity with Keras: one evaluation and one training step of both packages, from the same weights."""

import contextlib
import functools
import sys
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.networks import cross_entropy, distance, dotted

BN_FIELDS = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}


class Results(NamedTuple):
    """Results of one package.

    `arrays` has the gradients of parameters, and the batch statistics after one training step, by Keras's path.
    """

    logits: jax.Array
    loss: jax.Array
    arrays: dict[str, np.ndarray]


@contextlib.contextmanager
def float64():
    """Replaces float32 by float64 everywhere in our package."""
    wide = types.SimpleNamespace(**{**vars(jnp), "float32": jnp.float64})
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("xception_jax.") and getattr(module, "jnp", None) is jnp:
                patch.setattr(module, "jnp", wide)
        yield


@contextlib.contextmanager
def keras_float64(keras):
    """Replaces float32 by float64 everywhere in Keras, and lets it promote types and ranks."""
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        pytest.MonkeyPatch.context() as patch,
    ):
        # On JAX, Keras replaces float64 by float32 wherever it resolves a type, and so in BatchNormalization.
        patch.setitem(keras.src.backend.common.dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")
        keras.config.set_floatx("float64")
        try:
            yield
        finally:
            keras.config.set_floatx("float32")


def images_and_labels(pixels):
    """Two images of patches with noise, for which a network has clearly different outputs."""
    rng = np.random.default_rng(1)
    patches = rng.uniform(-1, 1, (2, 3, 3, 3)).repeat(pixels // 3, axis=1).repeat(pixels // 3, axis=2)
    return (patches + rng.normal(0, 0.3, patches.shape)).astype(np.float32), np.array([3, 8], np.int32)


def random_weight(path, shape, rng):
    """Weights with which every normalization has an effect and the signal keeps its size over many layers."""
    match path.rpartition("/")[2]:
        case "gamma" | "moving_variance":
            return rng.uniform(0.5, 1.5, shape)
        case "beta" | "moving_mean" | "bias":
            return rng.normal(0, 0.3, shape)
        case "depthwise_kernel":
            return rng.normal(0, np.sqrt(1 / 9), shape)
        case "kernel" | "pointwise_kernel":
            return rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
    raise AssertionError(path)


def fill(model):
    """Gives a Keras model random weights that float32 holds exactly; returns them by Keras's paths."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(random_weight(variable.path, variable.shape, rng).astype(np.float32))
    return {variable.path: np.asarray(variable) for variable in model.weights}


def keras_results(model, images, labels, *, gradients=True):
    """The results of a Keras model; without `gradients`, its arrays are the statistics only."""
    trainable, fixed = (
        [v.value for v in part] for part in (model.trainable_variables, model.non_trainable_variables)
    )

    @jax.jit
    def compute(trainable, fixed):
        def loss(trainable):
            logits, moved = model.stateless_call(trainable, fixed, images, training=True)
            return cross_entropy(logits, labels), moved

        logits, _ = model.stateless_call(trainable, fixed, images, training=False)
        return logits, jax.value_and_grad(loss, has_aux=True)(trainable) if gradients else (loss(trainable), [])

    logits, ((loss, moved), gradient) = compute(trainable, fixed)
    named = [*zip(model.non_trainable_variables, moved, strict=True)]
    named += zip(model.trainable_variables, gradient, strict=True) if gradients else []
    return Results(logits, loss, {variable.path: np.asarray(array) for variable, array in named})


@functools.partial(jax.jit, static_argnums=(0, 5))
def evaluate_and_train(graph, params, stats, images, labels, gradients=True):
    """((training loss, (evaluation logits, updated statistics)), gradient, which is empty without `gradients`)."""

    def step(params):
        model = nnx.merge(graph, params, stats, copy=True)
        logits = model(images)
        loss = cross_entropy(model(images, train=True), labels)
        return loss, (logits, nnx.state(model, nnx.BatchStat))

    return jax.value_and_grad(step, has_aux=True)(params) if gradients else (step(params), nnx.State({}))


def our_results(model, names, weights, images, labels, *, gradients=True):
    """The results of our package from the same weights; `names` maps our path of every array to Keras's."""
    graph, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    dtype = model.config.dtype

    def load(path, variable):
        return variable.replace(jnp.asarray(weights[names[dotted(path)]], dtype).reshape(variable.shape))

    params, stats = (
        nnx.from_flat_state([(path, load(path, variable)) for path, variable in nnx.to_flat_state(state)])
        for state in states
    )
    images = jnp.asarray(images, dtype)
    (loss, (logits, moved)), gradient = evaluate_and_train(graph, params, stats, images, labels, gradients)
    flat = [*nnx.to_flat_state(gradient), *nnx.to_flat_state(moved)]
    arrays = {names[dotted(path)]: np.asarray(variable[...]) for path, variable in flat}
    return Results(logits, loss, {path: array.reshape(weights[path].shape) for path, array in arrays.items()})


@contextlib.contextmanager
def keras_zeros(keras):
    """Makes Keras initialize weights with zeros, since its random numbers take a compilation for every shape."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.src.backend.random, "uniform", lambda shape, *_, dtype, **__: np.zeros(shape, dtype))
        yield


class Compared(NamedTuple):
    """Both sides' results in float64, from the same weights."""

    weights: dict[str, np.ndarray]
    ours: Results
    keras: Results


def compare(model, names, build, *, pixels, gradients=True):
    """The results of our model and Keras's; `build(keras, shape of an image)` makes Keras's for 10 classes."""
    keras = pytest.importorskip("keras")
    images, labels = images_and_labels(pixels)
    with float64():
        with keras_float64(keras), keras_zeros(keras):
            keras.utils.clear_session()  # numbers unnamed layers from 0
            theirs = build(keras, images.shape[1:])
            weights = fill(theirs)
            reference = keras_results(theirs, images.astype(np.float64), labels, gradients=gradients)
        ours = our_results(model, names, weights, images, labels, gradients=gradients)
    return Compared(weights, ours, reference)


def check_names(model, names, build, *, pixels):
    """Checks that `names` pairs every array of our model with one of Keras's, and that their shapes are equal."""
    keras = pytest.importorskip("keras")
    keras.utils.clear_session()
    with keras_zeros(keras):
        theirs = {variable.path: variable.shape for variable in build(keras, (pixels, pixels, 3)).weights}
    ours = {names[dotted(path)]: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model))}
    assert ours == theirs and len(names) == len(theirs)


def is_statistic(path):
    return "/moving_" in path


def logits_error(ours, theirs):
    """The largest difference between the evaluation's logits, relative to the largest logit."""
    assert distance(theirs.logits[:1], theirs.logits[1:]) > 0.05, "the two images must not look the same"
    return np.max(np.abs(np.asarray(ours.logits) - np.asarray(theirs.logits))) / np.max(np.abs(theirs.logits))


def statistics_errors(ours, theirs, weights):
    """The relative error of the change of each batch statistic."""
    return {
        path: distance(ours.arrays[path] - weights[path], moved - weights[path])
        for path, moved in theirs.arrays.items()
        if is_statistic(path)
    }


def gradient_errors(ours, theirs):
    """The relative error of each gradient."""
    return {
        path: distance(ours.arrays[path], gradient)
        for path, gradient in theirs.arrays.items()
        if not is_statistic(path)
    }


TOLERANCES = {"logits": 1e-12, "loss": 1e-11, "statistics": 1e-10, "gradients": 1e-9}


def check(compared, *, statistics, gradients):
    """Checks that logits, loss, batch statistics and gradients agree up to rounding.

    Gradients that are 0 up to rounding on both sides, such as of a bias before normalization, are not compared.

    Args:
      compared: results of both packages.
      statistics, gradients: expected numbers of compared batch statistics and gradients.
    """
    weights, ours, theirs = compared
    moved, derived = statistics_errors(ours, theirs, weights), gradient_errors(ours, theirs)
    for path in list(derived):
        if max(np.max(np.abs(side.arrays[path])) for side in (ours, theirs)) < 1e-12:
            del derived[path]
    assert (len(moved), len(derived)) == (statistics, gradients)
    errors = {"logits": logits_error(ours, theirs), "loss": distance(ours.loss, theirs.loss)}
    errors |= {"statistics": max(moved.values(), default=0.0), "gradients": max(derived.values(), default=0.0)}
    print({name: f"{error:.1e}" for name, error in errors.items()})
    assert all(errors[name] < tolerance for name, tolerance in TOLERANCES.items()), errors
