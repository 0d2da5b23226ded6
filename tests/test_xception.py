"""Xception: the counts of the paper, parity with Keras in values and gradients, and the contract of a model."""

import contextlib
import functools
import math
import re
import sys
import types
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from xception_jax import layers
from xception_jax.models import MODELS, create_model, xception

# (model, config, trainable parameters, batch statistics, multiply-adds of one image of 299 x 299 pixels): plain
# arithmetic over figure 5, done without this package. 22,855,952 is in table 3 of the paper.
CENSUS = [
    ("xception", {}, 22_855_952, 54_528, 8_357_403_496),
    ("xception", {"num_classes": 17_000}, 55_639_952, 54_528, 8_390_171_496),
    ("xception", {"fc_layers": (4096, 4096)}, 50_077_968, 54_528, 8_384_617_320),
    ("xception", {"num_classes": 17_000, "fc_layers": (4096, 4096)}, 115_629_968, 54_528, 8_450_153_320),
    ("xception", {"residual": False}, 21_878_880, 50_256, 8_125_858_664),
    ("xception", {"intermediate_activation": "relu"}, 22_855_952, 54_528, 8_357_403_496),
    ("xception", {"intermediate_activation": "elu"}, 22_855_952, 54_528, 8_357_403_496),
    ("inception_v3", {}, 23_817_352, 34_432, 5_713_216_096),
    ("inception_v3", {"num_classes": 17_000}, 56_601_352, 34_432, 5_745_984_096),
    ("inception_v3", {"num_classes": 17_000, "fc_layers": (4096, 4096)}, 116_591_368, 34_432, 5_805_965_920),
    ("inception_v3", {"reading": "paper"}, 23_626_728, 34_240, 5_623_817_312),
    ("inception_v3", {"reading": "paper", "num_classes": 17_000}, 56_410_728, 34_240, 5_656_585_312),
    (
        "inception_v3",
        {"reading": "paper", "num_classes": 17_000, "fc_layers": (4096, 4096)},
        116_400_744,
        34_240,
        5_716_567_136,
    ),
    ("resnet101", {}, 44_601_832, 105_344, 7_570_194_432),
    ("resnet152", {}, 60_268_520, 151_424, 11_282_415_616),
    ("resnet50", {}, 25_583_592, 53_120, 3_857_973_248),
    ("resnet50", {"use_bias": False}, 25_557_032, 53_120, 3_857_973_248),
    ("vgg16", {}, 138_357_544, 0, 15_470_264_320),
    ("vgg16_separable", {}, 23_629_977, 30_722, 39_740_637_933),
]

# (segments of every spatial convolution, trainable parameters, 10^9 multiply-adds to two places)
SEGMENTS = [
    (1, 183_616_904, 71.42),
    (2, 103_132_712, 39.82),
    (3, 76_304_846, 29.29),
    (4, 62_890_616, 24.02),
    (8, 42_769_568, 16.12),
    (13, 35_030_828, 13.09),
    (26, 28_839_836, 10.66),
    (52, 25_744_664, 9.45),
    (91, 24_418_460, 8.93),
    (182, 23_535_596, 8.59),
    (364, 23_095_136, 8.43),
    (1536, 22_855_952, 8.36),
]

TINY = {
    "num_classes": 5,
    "stem_widths": (4, 6),
    "stem_strides": (1, 1),
    "stem_padding": "SAME",
    "entry_widths": (8,),
    "middle_blocks": 1,
    "exit_widths": (10, 12, 14),
}


def abstract(name="xception", **config):
    """The model without its arrays: shapes and types only."""
    return nnx.eval_shape(lambda: create_model(name, **config))


def size(node, *kind):
    return sum(array.size for array in jax.tree.leaves(nnx.state(node, *kind)))


def census(name, config):
    """(parameters, statistics, multiply-adds): of each kernel, its weights times the pixels of its output."""
    macs = 0

    def counted(cls):
        call = cls.__call__

        def wrapper(layer, x, **options):
            nonlocal macs
            y = call(layer, x, **options)
            kernels = [array for array in jax.tree.leaves(nnx.state(layer, nnx.Param)) if array.ndim > 1]
            macs += sum(kernel.size for kernel in kernels) * math.prod(y.shape[:-1])
            return y

        return wrapper

    def run_model():
        model = create_model(name, **config)
        size = model.PREPROCESSING.image_size
        model(jnp.zeros((1, size, size, 3)))
        return model

    with pytest.MonkeyPatch.context() as patch:
        for cls in (layers.Conv, layers.SpatialConv, nnx.Linear):
            patch.setattr(cls, "__call__", counted(cls))
        model = nnx.eval_shape(run_model)
    assert size(model) == size(model, nnx.Param) + size(model, nnx.BatchStat)
    return size(model, nnx.Param), size(model, nnx.BatchStat), macs


class TestCensus:
    def test_every_model_is_counted(self):
        assert {name for name, *_ in CENSUS} == set(MODELS)

    @pytest.mark.parametrize(("name", "config", "params", "stats", "macs"), CENSUS, ids=str)
    def test_counts(self, name, config, params, stats, macs):
        assert census(name, config) == (params, stats, macs)

    @pytest.mark.parametrize(("segments", "params", "giga_macs"), SEGMENTS)
    def test_counts_between_regular_and_depthwise_convolution(self, segments, params, giga_macs):
        *counts, macs = census("xception", {"segments": segments})
        assert counts == [params, 54_528] and round(macs / 1e9, 2) == giga_macs

    def test_36_convolutional_layers_in_14_modules(self):
        model = abstract()
        nodes = [node for _, node in nnx.iter_modules(model)]
        residual = [node for node in nodes if isinstance(node, xception.Module)]
        assert 1 + len(residual) + 1 == 14 and all(module.residual for module in residual)
        assert sum(isinstance(node, layers.SeparableConvBN) for node in nodes) == 34
        assert len(model.stem) == 2
        assert sum(isinstance(node, layers.ConvBN) for node in nodes) == 2 + 4  # stem, shortcuts
        assert sum(isinstance(node, layers.BatchNorm) for node in nodes) == 36 + 4

    def test_features_of_the_paper_are_10_by_10_by_2048(self):
        features = nnx.eval_shape(lambda: create_model("xception").features(jnp.zeros((1, 299, 299, 3))))
        assert features.shape == (1, 10, 10, 2048)


def keras_names():
    """Our path of every parameter and statistic -> Keras's path of the same array."""
    separable = {f"entry.{i}.separable.{j}": f"block{i + 2}_sepconv{j + 1}" for i in range(3) for j in range(2)}
    separable |= {f"middle.{i}.separable.{j}": f"block{i + 5}_sepconv{j + 1}" for i in range(8) for j in range(3)}
    separable |= {f"exit.separable.{j}": f"block13_sepconv{j + 1}" for j in range(2)}
    separable |= {f"final.{j}": f"block14_sepconv{j + 1}" for j in range(2)}
    names = {"classifier.kernel": "predictions/kernel", "classifier.bias": "predictions/bias"}
    norms = {f"{ours}.bn": f"{theirs}_bn" for ours, theirs in separable.items()}
    for ours, theirs in separable.items():
        names[f"{ours}.depthwise.kernels.0"] = f"{theirs}/depthwise_kernel"
        names[f"{ours}.pointwise.kernel"] = f"{theirs}/pointwise_kernel"
    for i in range(2):
        names[f"stem.{i}.conv.kernel"] = f"block1_conv{i + 1}/kernel"
        norms[f"stem.{i}.bn"] = f"block1_conv{i + 1}_bn"
    for module, suffix in zip(("entry.0", "entry.1", "entry.2", "exit"), ("", "_1", "_2", "_3"), strict=True):
        names[f"{module}.shortcut.conv.kernel"] = f"conv2d{suffix}/kernel"
        norms[f"{module}.shortcut.bn"] = f"batch_normalization{suffix}"
    fields = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}
    return names | {f"{ours}.{a}": f"{theirs}/{b}" for ours, theirs in norms.items() for a, b in fields.items()}


def random_weight(path, shape, rng):
    """Values at which every normalization matters and the signal survives 36 layers."""
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


def dotted(path):
    return ".".join(map(str, path))


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def keras_results(keras, images, labels):
    """Random weights that float32 holds exactly, and what Keras computes with them, by Keras's paths."""
    keras.utils.clear_session()  # numbers unnamed layers from 0
    shape = images.shape[1:]
    model = keras.applications.Xception(weights=None, input_shape=shape, classes=10, classifier_activation=None)
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(random_weight(variable.path, variable.shape, rng).astype(np.float32))
    weights = {variable.path: np.asarray(variable) for variable in model.weights}

    @jax.jit
    def compute(trainable, fixed):
        def loss(trainable):
            logits, moved = model.stateless_call(trainable, fixed, images, training=True)
            return cross_entropy(logits, labels), moved

        logits, _ = model.stateless_call(trainable, fixed, images, training=False)
        return logits, jax.value_and_grad(loss, has_aux=True)(trainable)

    trainable, fixed = model.trainable_variables, model.non_trainable_variables
    logits, ((loss, moved), gradients) = compute([v.value for v in trainable], [v.value for v in fixed])
    named = {v.path: np.asarray(a) for v, a in zip([*trainable, *fixed], [*gradients, *moved], strict=True)}
    return weights, Results(logits, loss, named)


@functools.partial(jax.jit, static_argnums=0)
def evaluate_and_train(graph, params, stats, images, labels):
    """((training loss, (evaluation logits, moved statistics)), gradient)."""

    def step(params):
        model = nnx.merge(graph, params, stats, copy=True)
        logits = model(images)
        loss = cross_entropy(model(images, train=True), labels)
        return loss, (logits, nnx.state(model, nnx.BatchStat))

    return jax.value_and_grad(step, has_aux=True)(params)


def our_results(weights, images, labels, dtype, implementation):
    """The same by our package, from the same weights."""
    model = abstract(num_classes=10, dropout=0.0, dtype=dtype, implementation=implementation)
    graph, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
    names = keras_names()

    def load(path, variable):
        return variable.replace(jnp.asarray(weights[names[dotted(path)]], dtype).reshape(variable.shape))

    params, stats = (
        nnx.from_flat_state([(path, load(path, variable)) for path, variable in nnx.to_flat_state(state)])
        for state in states
    )

    images = jnp.asarray(images, dtype)
    (loss, (logits, moved)), gradient = evaluate_and_train(graph, params, stats, images, labels)
    flat = [*nnx.to_flat_state(gradient), *nnx.to_flat_state(moved)]
    arrays = {names[dotted(path)]: np.asarray(variable[...]) for path, variable in flat}
    return Results(logits, loss, {path: array.reshape(weights[path].shape) for path, array in arrays.items()})


class Results(NamedTuple):
    """`arrays`: gradients of the parameters and batch statistics after one training step, by Keras's path."""

    logits: jax.Array
    loss: jax.Array
    arrays: dict[str, np.ndarray]


@contextlib.contextmanager
def float64():
    """Our package with float64 wherever it says float32."""
    wide = types.SimpleNamespace(**{**vars(jnp), "float32": jnp.float64})
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("xception_jax.") and getattr(module, "jnp", None) is jnp:
                patch.setattr(module, "jnp", wide)
        yield


@contextlib.contextmanager
def keras_float64(keras):
    """Keras with float64 wherever it says float32."""
    with pytest.MonkeyPatch.context() as patch:
        # On JAX, Keras replaces float64 by float32 wherever it resolves a type, and so in BatchNormalization.
        patch.setitem(keras.src.backend.common.dtypes.BIT64_TO_BIT32_DTYPE, "float64", "float64")
        keras.config.set_floatx("float64")
        try:
            yield
        finally:
            keras.config.set_floatx("float32")


def distance(ours, theirs):
    """Norm of the difference relative to the norm."""
    ours, theirs = np.asarray(ours, np.float64).ravel(), np.asarray(theirs, np.float64).ravel()
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def is_statistic(path):
    return "/moving_" in path


@pytest.fixture(scope="module")
def results():
    keras = pytest.importorskip("keras")
    rng = np.random.default_rng(1)
    patches = rng.uniform(-1, 1, (2, 3, 3, 3)).repeat(32, axis=1).repeat(32, axis=2)
    images = (patches + rng.normal(0, 0.3, patches.shape)).astype(np.float32)
    labels = np.array([3, 8], np.int32)
    with float64(), keras_float64(keras):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            weights, reference = keras_results(keras, images.astype(np.float64), labels)
        double, double_xla = (our_results(weights, images, labels, "float64", name) for name in ("shift", "xla"))
    single = our_results(weights, images, labels, "float32", "shift")
    return types.SimpleNamespace(
        weights=weights, keras=reference, single=single, double=double, double_xla=double_xla
    )


def by_precision(single, double):
    """One tolerance for float32 and one for float64, which both implementations must meet."""
    cases = [("single", single), ("double", double), ("double_xla", double)]
    return pytest.mark.parametrize(("precision", "tolerance"), cases)


@pytest.mark.xdist_group("parity")  # its fixture takes a minute
class TestParityWithKeras:
    """One training step and one evaluation of the full network on 96 x 96 pixels, so that the maps that are
    halved have odd (45, 23) and even (12, 6) sizes.

    Gradients are compared in float64, with a tolerance that lets no mistake through. In float32 the order of a sum
    decides on which side of 0 a ReLU input very near to it falls, and each such pixel changes the gradients of all
    layers before it by about 1 %: with these weights they differ by at most 7e-6 under jax 0.10.2, where no pixel
    falls so, and by 2e-2 under jax 0.12.0.
    """

    def test_names_pair_every_array_once(self, results):
        names = keras_names()
        assert sorted(names.values()) == sorted(results.weights)
        assert set(names) == {dotted(path) for path, _ in nnx.to_flat_state(nnx.state(abstract()))}

    @by_precision(1e-5, 1e-12)
    def test_evaluation_logits(self, results, precision, tolerance):
        ours, theirs = np.asarray(getattr(results, precision).logits), np.asarray(results.keras.logits)
        error = np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))
        print(message := f"evaluation logits, {precision}: {error:.1e}")
        assert error < tolerance, message
        assert distance(theirs[:1], theirs[1:]) > 0.05, "the two images must not look the same to the network"

    @by_precision(1e-5, 1e-12)
    def test_training_loss(self, results, precision, tolerance):
        error = distance(getattr(results, precision).loss, results.keras.loss)
        print(message := f"training loss, {precision}: {error:.1e}")
        assert error < tolerance, message

    @by_precision(1e-4, 1e-10)
    def test_how_far_each_batch_statistic_moves(self, results, precision, tolerance):
        ours = getattr(results, precision).arrays
        errors = {
            path: distance(ours[path] - results.weights[path], moved - results.weights[path])
            for path, moved in results.keras.arrays.items()
            if is_statistic(path)
        }
        worst = max(errors, key=errors.get)
        print(message := f"{len(errors)} statistics, {precision}: at most {errors[worst]:.1e} ({worst})")
        assert len(errors) == 80 and errors[worst] < tolerance, message

    @by_precision(0.1, 1e-9)
    def test_every_gradient(self, results, precision, tolerance):
        errors = {
            path: distance(getattr(results, precision).arrays[path], gradient)
            for path, gradient in results.keras.arrays.items()
            if not is_statistic(path)
        }
        worst = max(errors, key=errors.get)
        print(message := f"{len(errors)} gradients, {precision}: at most {errors[worst]:.1e} ({worst})")
        assert len(errors) == 156 and errors[worst] < tolerance, message


def tiny(**changes):
    """A model of 11 layers, filled by numpy: to compile its many initializers takes longer than these tests.

    Each array depends on its path and shape only, so two models differ by their settings alone.
    """
    graph, state = nnx.split(abstract(**TINY | changes))

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


def shapes(images_shape, *, train=False, **config):
    """The logits' shape and type, without computing them."""
    return nnx.eval_shape(lambda: create_model("xception", **TINY | config)(jnp.zeros(images_shape), train=train))


def copies(model, kind):
    return [np.array(array) for array in jax.tree.leaves(nnx.state(model, kind))]


class TestContract:
    @pytest.mark.parametrize("config", [{}, {"residual": False, "segments": 3, "fc_layers": (7,)}], ids=str)
    def test_every_parameter_gets_a_gradient(self, config):
        graph, params, stats = nnx.split(tiny(**config), nnx.Param, nnx.BatchStat)

        @jax.jit
        @jax.grad
        def gradient(params):
            model = nnx.merge(graph, params, stats, copy=True)
            return cross_entropy(model(tiny_images(), train=True, key=jax.random.key(0)), jnp.arange(8) % 5)

        for path, leaf in nnx.to_flat_state(gradient(params)):
            values = np.asarray(leaf[...])
            assert np.all(np.isfinite(values)) and np.any(values != 0), dotted(path)

    def test_batch_statistics_move_in_training_only(self):
        model = tiny()
        start = copies(model, nnx.BatchStat)
        run(model, tiny_images())
        np.testing.assert_equal(copies(model, nnx.BatchStat), start)
        run(model, tiny_images(), train=True, key=jax.random.key(0))
        moved = copies(model, nnx.BatchStat)
        assert all(np.all(now != before) for now, before in zip(moved, start, strict=True))

    def test_batch_norm_groups_are_batches_of_their_own(self):
        images = tiny_images()
        grouped = run(tiny(bn_group_size=4, dropout=0.0), images, train=True)
        halves = [run(tiny(dropout=0.0), half, train=True) for half in (images[:4], images[4:])]
        np.testing.assert_allclose(grouped, np.concatenate(halves), rtol=1e-4, atol=1e-5)
        assert not np.allclose(grouped, run(tiny(dropout=0.0), images, train=True), rtol=1e-3)

    def test_evaluation_treats_every_image_by_itself(self):
        model, images = tiny(), tiny_images()
        np.testing.assert_allclose(run(model, images)[:1], run(model, images[:1]), rtol=1e-4, atol=1e-5)

    def test_dropout_follows_its_key_in_training_only(self):
        images, keys = tiny_images(), jax.random.split(jax.random.key(0))
        first, again, other = (run(tiny(), images, train=True, key=key) for key in (keys[0], keys[0], keys[1]))
        np.testing.assert_array_equal(first, again)
        assert not np.allclose(first, other)
        assert not np.allclose(first, run(tiny(dropout=0.0), images, train=True))
        np.testing.assert_array_equal(run(tiny(), images, key=keys[0]), run(tiny(dropout=0.0), images))

    def test_dropout_needs_a_key(self):
        with pytest.raises(ValueError, match="needs a PRNG key"):
            shapes(tiny_images().shape, train=True)

    def test_the_state_is_parameters_and_batch_statistics_only(self):
        model = tiny()
        run(model, tiny_images(), train=True, key=jax.random.key(0))
        kinds = {type(leaf) for _, leaf in nnx.to_flat_state(nnx.state(model))}
        assert kinds == {nnx.Param, nnx.BatchStat}

    @pytest.mark.parametrize("train", [False, True])
    def test_bfloat16_changes_the_computation_only(self, train):
        exact, rounded = (tiny(dtype=dtype, dropout=0.0) for dtype in ("float32", "bfloat16"))
        expected, logits = (run(model, tiny_images(), train=train) for model in (exact, rounded))
        features = nnx.eval_shape(lambda model, x: model.features(x), rounded, tiny_images())
        assert features.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
        assert {array.dtype for array in jax.tree.leaves(nnx.state(rounded))} == {jnp.dtype("float32")}
        assert 1e-4 < distance(logits, expected) < 0.05

    def test_the_seed_decides_the_parameters(self):
        def kernel(*seed):
            rngs = nnx.Rngs(*seed) if seed else None
            return create_model("xception", rngs=rngs, **TINY).classifier.kernel[...]

        default, first, second = (jax.jit(functools.partial(kernel, *seed))() for seed in [(), (0,), (1,)])
        np.testing.assert_array_equal(default, first)
        assert not np.any(first == second)

    def test_intermediate_activations_differ(self):
        none, relu, elu = (
            run(tiny(intermediate_activation=name), tiny_images()) for name in (None, "relu", "elu")
        )
        assert not np.allclose(none, relu) and not np.allclose(none, elu) and not np.allclose(relu, elu)

    def test_residual_connections_matter(self):
        assert not np.allclose(run(tiny(), tiny_images()), run(tiny(residual=False), tiny_images()))

    def test_segments_are_at_most_one_per_channel(self):
        np.testing.assert_array_equal(run(tiny(), tiny_images()), run(tiny(segments=99), tiny_images()))
        assert not np.allclose(run(tiny(), tiny_images()), run(tiny(segments=3), tiny_images()))

    @pytest.mark.parametrize(
        ("config", "side"),
        [
            ({"stem_strides": (1, 1), "stem_padding": "SAME"}, 8),  # 32, 32, pooled to 16, 8
            ({"stem_strides": (2, 1), "stem_padding": "SAME"}, 4),  # 16, 16, 8, 4
            ({"stem_strides": (1, 1), "stem_padding": "VALID"}, 7),  # 30, 28, 14, 7
            ({"stem_strides": (2, 1), "stem_padding": "VALID"}, 4),  # 15, 13, 7, 4
            ({"entry_widths": (8, 9, 10)}, 2),  # 32, 32, 16, 8, 4, 2
            ({"middle_blocks": 0}, 8),
            ({"in_channels": 1}, 8),
        ],
        ids=str,
    )
    def test_feature_shapes_at_32_pixels(self, config, side):
        images = jax.ShapeDtypeStruct((2, 32, 32, config.get("in_channels", 3)), jnp.float32)
        features = nnx.eval_shape(
            lambda images: create_model("xception", **TINY | config).features(images), images
        )
        assert features.shape == (2, side, side, 14)


@functools.cache
def double_step(**options):
    """{path: array} of `evaluate_and_train` on the tiny model with two identity modules, in float64."""
    with float64():
        model = tiny(dropout=0.0, middle_blocks=2, implementation="xla", dtype="float64", **options)
        graph, *states = nnx.split(model, nnx.Param, nnx.BatchStat)
        params, stats = jax.tree.map(lambda array: array.astype(jnp.float64), states)
        results = evaluate_and_train(graph, params, stats, tiny_images().astype(jnp.float64), jnp.arange(8) % 5)
    return {jax.tree_util.keystr(path): array for path, array in jax.tree_util.tree_leaves_with_path(results)}


@functools.cache
def lowered(**options):
    """The training gradient of the tiny model with eight identity modules."""
    model = abstract(**TINY | {"dropout": 0.0, "middle_blocks": 8, "implementation": "xla"} | options)
    graph, *states = nnx.split(model, nnx.Param, nnx.BatchStat)

    @jax.jit
    @jax.grad
    def gradient(params, stats):
        model = nnx.merge(graph, params, stats, copy=True)
        return cross_entropy(model(tiny_images(), train=True), jnp.arange(8) % 5)

    return gradient.lower(*states)


class TestWaysToComputeTheSame:
    """Remat and scan, with "xla", which compiles in less time; both implementations are compared with Keras."""

    @pytest.mark.parametrize(
        "options", [{"remat": True}, {"scan_middle": True}, {"scan_middle": True, "remat": True}], ids=str
    )
    def test_logits_loss_gradients_and_statistics_stay(self, options):
        """Only the order of sums may change."""
        expected, actual = double_step(), double_step(**options)
        assert actual.keys() == expected.keys()
        for path, array in actual.items():
            assert array.dtype == np.float64, path
            assert distance(array, expected[path]) < 1e-12, path

    def test_scan_compiles_one_identity_module(self):
        """The program with eight of them is little longer than the one with two, and shorter than without."""
        loop, short_loop, plain = (
            len(lowered(**options).as_text().splitlines())
            for options in ({"scan_middle": True}, {"scan_middle": True, "middle_blocks": 2}, {})
        )
        assert loop < 0.7 * plain and loop - short_loop < 0.2 * plain, (loop, short_loop, plain)

    def test_remat_in_a_scan_keeps_less_in_memory(self):
        """In a scan, since remat alone saves nothing on CPU under jax 0.10: there XLA merges equal computations of
        the forward and the backward pass. Under 0.12 it halves this memory too."""
        kept, computed_again = (
            lowered(scan_middle=True, remat=remat).compile().memory_analysis().temp_size_in_bytes
            for remat in (False, True)
        )
        assert computed_again < 0.75 * kept, (computed_again, kept)

    def test_an_empty_middle_flow_needs_no_scan(self):
        model = nnx.eval_shape(
            lambda: create_model("xception", **TINY | {"middle_blocks": 0, "scan_middle": True})
        )
        assert nnx.eval_shape(lambda model, x: model(x), model, tiny_images()).shape == (8, 5)


class TestErrors:
    @pytest.mark.parametrize("shape", [(2, 12, 12, 1), (2, 12, 12, 4), (12, 12, 3)])
    def test_images_of_a_wrong_shape(self, shape):
        with pytest.raises(ValueError, match=rf"images must be \[N, H, W, 3\]; got {re.escape(str(shape))}"):
            shapes(shape)

    @pytest.mark.parametrize("pixels", [1, 2, 4, 6])
    @pytest.mark.parametrize("train", [False, True])
    def test_images_too_small_for_an_unpadded_stem(self, pixels, train):
        unpadded = {"stem_strides": (2, 1), "stem_padding": "VALID", "dropout": 0.0}
        assert shapes((2, 7, 7, 3), **unpadded).shape == (2, 5)
        with pytest.raises(ValueError, match=rf"images of \({pixels}, {pixels}\) pixels are too small: need 7"):
            shapes((2, pixels, pixels, 3), train=train, **unpadded)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("num_classes", 0),
            ("in_channels", 0),
            ("segments", 0),
            ("bn_group_size", 0),
            ("bn_epsilon", 0.0),
            ("fc_layers", (8, 0)),
            ("stem_widths", (4, -1)),
            ("stem_strides", (0, 1)),
            ("entry_widths", ()),
            ("entry_widths", (8, 0)),
            ("exit_widths", (10, 0, 14)),
            ("dropout", 1.0),
            ("dropout", -0.1),
            ("bn_momentum", 1.0),
            ("middle_blocks", -1),
        ],
    )
    def test_values_out_of_range(self, field, value):
        with pytest.raises(ValueError, match=rf"{field} = {re.escape(str(value))}: must be "):
            create_model("xception", **{field: value})

    def test_an_unknown_setting_gets_a_suggestion(self):
        with pytest.raises(TypeError, match=r"xception has no setting 'droput'; did you mean 'dropout'\?"):
            create_model("xception", droput=0.5)

    def test_an_unknown_model_gets_the_known_ones(self):
        with pytest.raises(ValueError, match=r"model name = 'exception': choose one of \[.*'xception'.*\]"):
            create_model("exception")
