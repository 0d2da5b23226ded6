"""Xception: the counts of the paper, parity with Keras in values and gradients, and effects of its settings."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import networks, parity
from tests.networks import cross_entropy, distance, dotted, run, tiny_images
from tests.parity import float64
from xception_jax import layers
from xception_jax.models import ImageSizeError, create_model, xception

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

TINY = networks.TINY["xception"]
abstract = functools.partial(networks.abstract, "xception")
shapes = functools.partial(networks.shapes, "xception")
tiny = functools.partial(networks.tiny, "xception")


class TestLayers:
    @pytest.mark.parametrize(("segments", "params", "giga_macs"), SEGMENTS)
    def test_counts_between_regular_and_depthwise_convolution(self, segments, params, giga_macs):
        *counts, macs, _ = networks.census("xception", segments=segments)
        assert counts == [params, 54_528] and round(macs / 1e9, 2) == giga_macs

    def test_36_convolutional_layers_in_14_modules(self):
        model = abstract()
        nodes = [node for _, node in nnx.iter_modules(model)]
        residual = [node for node in nodes if isinstance(node, xception.ResidualModule)]
        assert 1 + len(residual) + 1 == 14 and all(module.residual for module in residual)
        assert sum(isinstance(node, layers.SeparableConvBN) for node in nodes) == 34
        assert len(model.stem) == 2
        assert sum(isinstance(node, layers.ConvBN) for node in nodes) == 2 + 4  # stem, shortcuts
        assert sum(isinstance(node, layers.BatchNorm) for node in nodes) == 36 + 4


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


@pytest.fixture(scope="module")
def results():
    keras = pytest.importorskip("keras")
    images, labels = parity.images_and_labels(96)

    def ours(dtype, implementation):
        model = abstract(num_classes=10, dropout=0.0, dtype=dtype, implementation=implementation)
        return parity.our_results(model, keras_names(), weights, images, labels)

    with float64():
        with parity.keras_float64(keras), parity.keras_zeros(keras):
            keras.utils.clear_session()  # numbers unnamed layers from 0
            model = keras.applications.Xception(
                weights=None, input_shape=images.shape[1:], classes=10, classifier_activation=None
            )
            weights = parity.fill(model)
            reference = parity.keras_results(model, images.astype(np.float64), labels)
        double, double_xla = (ours("float64", name) for name in ("shift", "xla"))
    return types.SimpleNamespace(
        weights=weights, keras=reference, single=ours("float32", "shift"), double=double, double_xla=double_xla
    )


def by_precision(single, double):
    """One tolerance for float32 and one for float64, which both implementations must meet."""
    cases = [("single", single), ("double", double), ("double_xla", double)]
    return pytest.mark.parametrize(("precision", "tolerance"), cases)


class TestParityWithKeras:
    """One training step and one evaluation of the full network on 96 x 96 pixels, so that poolings of stride 2
    read odd (45, 23) and even (12, 6) sizes.

    Gradients are compared in float64, with a tolerance that detects every mistake. In float32, the order of a sum
    decides the sign of ReLU inputs very close to 0, and each changed sign changes the gradients of all earlier
    layers by about 1 %. With these weights the gradients differ by at most 7e-6 under jax 0.10.2, where no sign
    changes, and by 2e-2 under jax 0.12.0.
    """

    def test_names_pair_every_array_once(self, results):
        names = keras_names()
        assert sorted(names.values()) == sorted(results.weights)
        assert set(names) == {dotted(path) for path, _ in nnx.to_flat_state(nnx.state(abstract()))}

    @by_precision(1e-5, 1e-12)
    def test_evaluation_logits(self, results, precision, tolerance):
        error = parity.logits_error(getattr(results, precision), results.keras)
        print(message := f"evaluation logits, {precision}: {error:.1e}")
        assert error < tolerance, message

    @by_precision(1e-5, 1e-12)
    def test_training_loss(self, results, precision, tolerance):
        error = distance(getattr(results, precision).loss, results.keras.loss)
        print(message := f"training loss, {precision}: {error:.1e}")
        assert error < tolerance, message

    @by_precision(1e-4, 1e-10)
    def test_how_far_each_batch_statistic_moves(self, results, precision, tolerance):
        errors = parity.statistics_errors(getattr(results, precision), results.keras, results.weights)
        worst = max(errors, key=errors.get)
        print(message := f"{len(errors)} statistics, {precision}: at most {errors[worst]:.1e} ({worst})")
        assert len(errors) == 80 and errors[worst] < tolerance, message

    @by_precision(0.1, 1e-9)
    def test_every_gradient(self, results, precision, tolerance):
        errors = parity.gradient_errors(getattr(results, precision), results.keras)
        worst = max(errors, key=errors.get)
        print(message := f"{len(errors)} gradients, {precision}: at most {errors[worst]:.1e} ({worst})")
        assert len(errors) == 156 and errors[worst] < tolerance, message


class TestSettings:
    def test_batch_norm_groups_are_batches_of_their_own(self):
        images = tiny_images()
        grouped = run(tiny(bn_group_size=4, dropout=0.0), images, train=True)
        halves = [run(tiny(dropout=0.0), half, train=True) for half in (images[:4], images[4:])]
        np.testing.assert_allclose(grouped, np.concatenate(halves), rtol=1e-4, atol=1e-5)
        assert not np.allclose(grouped, run(tiny(dropout=0.0), images, train=True), rtol=1e-3)

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
        results = parity.evaluate_and_train(
            graph, params, stats, tiny_images().astype(jnp.float64), jnp.arange(8) % 5
        )
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
    """Remat and scan, with "xla", which compiles in less time; the tests of parity cover both implementations."""

    @pytest.mark.parametrize(
        "options", [{"remat": True}, {"scan_middle": True}, {"scan_middle": True, "remat": True}], ids=str
    )
    def test_logits_loss_gradients_and_statistics_stay(self, options):
        """Up to rounding, since the order of sums may change."""
        expected, actual = double_step(), double_step(**options)
        assert actual.keys() == expected.keys()
        for path, array in actual.items():
            assert array.dtype == np.float64, path
            assert distance(array, expected[path]) < 1e-12, path

    @pytest.mark.parametrize("scan_middle", [False, True])
    def test_other_variables_than_parameters_and_statistics_are_kept(self, scan_middle, monkeypatch):
        call = xception.ResidualModule.__call__

        def counted(module, x, *, train):
            if hasattr(module, "calls"):
                module.calls.set_value(module.calls[...] + 1)
            return call(module, x, train=train)

        monkeypatch.setattr(xception.ResidualModule, "__call__", counted)
        model = tiny(middle_blocks=2, scan_middle=scan_middle, implementation="xla")
        for module, start in zip(model.middle, (0, 10), strict=True):
            module.calls = nnx.Variable(jnp.int32(start))
        run(model, tiny_images())
        assert [module.calls[...].item() for module in model.middle] == [1, 11]

    def test_scan_compiles_one_identity_module(self):
        """With a scan, the program with eight modules is hardly longer than with two, and shorter than without."""
        loop, short_loop, plain = (
            len(lowered(**options).as_text().splitlines())
            for options in ({"scan_middle": True}, {"scan_middle": True, "middle_blocks": 2}, {})
        )
        assert loop < 0.7 * plain and loop - short_loop < 0.2 * plain, (loop, short_loop, plain)

    def test_remat_in_a_scan_keeps_less_in_memory(self):
        """Remat is tested in a scan, because alone it saves nothing on CPU under jax 0.10, where XLA merges equal
        computations of the forward and backward pass. Under jax 0.12 it halves this memory without a scan too."""
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
    @pytest.mark.parametrize(("entry_widths", "least"), [((8,), 3), ((8, 8), 5), ((8, 8, 8), 9)])
    def test_no_module_halves_a_single_pixel(self, entry_widths, least):
        """With a padded stem of stride 1; each module of the entry flow, and one of the exit flow, halves."""
        assert shapes((2, least, least, 3), entry_widths=entry_widths).shape == (2, 5)
        with pytest.raises(ImageSizeError, match=f"at least {least} pixels each way; enlarge the images"):
            shapes((2, least - 1, least, 3), entry_widths=entry_widths)

    @pytest.mark.parametrize("pixels", [1, 2, 7, 10])
    @pytest.mark.parametrize("train", [False, True])
    def test_images_too_small_for_an_unpadded_stem(self, pixels, train):
        unpadded = {"stem_strides": (2, 1), "stem_padding": "VALID", "dropout": 0.0}
        assert shapes((2, 11, 11, 3), **unpadded).shape == (2, 5)  # 11 pixels become 5, 3, 2 and 1
        remedy = "the model needs at least 11 pixels each way; enlarge the images, or set stem_padding = 'SAME'"
        with pytest.raises(ImageSizeError) as error:
            shapes((2, pixels, pixels, 3), train=train, **unpadded)
        assert str(error.value) == f"images of {pixels} x {pixels} pixels: {remedy}" and error.value.smallest == 11
