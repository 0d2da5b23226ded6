"""The training step: equal on 1 and 8 devices, equal when accumulated, and what its devices tell each other."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from xception_jax import create_model, metrics, optim, state
from xception_jax.data.images.augment import Augmentation
from xception_jax.data.images.inputs import of_model
from xception_jax.data.sources.builtin import digits
from xception_jax.models.xception import Xception
from xception_jax.step import make_eval_step, make_train_step

SMALL = {
    "num_classes": 10,
    "in_channels": 1,
    "stem_widths": (4, 8),
    "stem_strides": (1, 1),
    "stem_padding": "SAME",
    "entry_widths": (8,),
    "middle_blocks": 1,
    "exit_widths": (8, 16, 24),
}


def prepare(channels=1, augmentation=None):
    """`prepare` of images that reach the model in [-1, 1]."""
    inputs = of_model(Xception.PREPROCESSING, channels=channels, image_size=12)
    return dataclasses.replace(inputs, augmentation=augmentation).prepare


COMMON = {"prepare": prepare(), "objective": metrics.Objective(num_classes=10)}
AVERAGING = optim.Averaging(decay=0.9)


def shardings(devices):
    mesh = jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))


def batch_of(seed, size=32):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (size, 12, 12, 1), dtype=np.uint8)
    return {"image": image, "label": rng.integers(0, 10, size, dtype=np.int32), **train_only(size, rng)}


def train_only(size, rng):
    """Seeds of the augmentation; all images could be read."""
    seeds = rng.integers(2**32, size=size, dtype=np.uint32)
    return {"seed": seeds, "unreadable": np.full(size, -1, np.int32)}


@functools.cache
def run(*, devices=1, steps=3, group=None, dropout=0.0, **options):
    """Trains the small model; (state, losses)."""
    settings = SMALL | {"bn_group_size": group, "dropout": dropout}
    replicated, by_image = shardings(devices)
    optimizer = optim.make_optimizer("sgd", 0.05, weight_decay=1e-4)

    def make_model(key):
        return create_model("xception", rngs=nnx.Rngs(key), **settings)

    def init(key):
        return state.create(make_model(key), optimizer, averaging=True)

    graphdef = state.split(nnx.eval_shape(lambda: make_model(jax.random.key(0))))[0]
    step = make_train_step(
        graphdef, optimizer, **COMMON | {"accumulation_block": group or 1, "averaging": AVERAGING} | options
    )
    step = jax.jit(step, donate_argnums=0, out_shardings=replicated)
    train_state = jax.jit(init, out_shardings=replicated)(jax.random.key(0))
    key = jax.device_put(jax.random.key(1), replicated)
    losses = []
    for i in range(steps):
        batch = jax.device_put(batch_of(i), by_image)
        with jax.transfer_guard("disallow"):
            train_state, sums = step(train_state, batch, key)
        losses.append(float(sums["loss"] / sums["count"]))
    return jax.device_get(train_state), np.array(losses)


def assert_close(actual, expected, *, rtol):
    """Every tensor within `rtol` of the other's norm."""
    paths = jax.tree_util.tree_leaves_with_path(expected)
    for (path, b), a in zip(paths, jax.tree.leaves(actual), strict=True):
        error = np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-3)
        assert error < rtol, f"{jax.tree_util.keystr(path)}: {error:.2e}"


def weights(train_state):
    return state.weight_sets(train_state)


@pytest.mark.parametrize("group", [None, 2, 8])
def test_one_and_eight_devices_train_alike(group):
    """Each device has 4 images: groups of 8 span two devices."""
    one, losses_one = run(devices=1, group=group)
    eight, losses_eight = run(devices=8, group=group)
    np.testing.assert_allclose(losses_eight, losses_one, rtol=1e-5)
    assert_close(weights(eight), weights(one), rtol=1e-3)


def test_dropout_draws_the_same_on_any_number_of_devices():
    _, losses_one = run(devices=1, dropout=0.5)
    _, losses_eight = run(devices=8, dropout=0.5)
    np.testing.assert_allclose(losses_eight, losses_one, rtol=1e-5)
    assert abs(losses_one[0] - run(steps=1)[1][0]) > 1e-3


@pytest.mark.parametrize("devices, parts", [(1, 2), (8, 4)])
def test_accumulation_equals_the_large_batch(devices, parts):
    whole, losses = run(devices=devices, group=2)
    summed, losses_summed = run(devices=devices, group=2, accumulation_steps=parts)
    np.testing.assert_allclose(losses_summed, losses, rtol=1e-5)
    assert_close(weights(summed), weights(whole), rtol=1e-3)


def test_statistics_of_the_whole_batch_differ_from_those_of_its_parts():
    """Without groups the parts of an accumulated batch are normalized by themselves."""
    _, whole = run(steps=1)
    _, parts = run(steps=1, accumulation_steps=4)
    assert abs(whole[0] - parts[0]) > 1e-3


def test_mixed_pairs_stay_together_in_the_parts_of_an_accumulated_batch():
    options = {"group": 2, "prepare": prepare(augmentation=Augmentation(mixup_alpha=1.0, cutmix_alpha=1.0))}
    whole, losses = run(**options)
    summed, losses_summed = run(**options, devices=8, accumulation_steps=2)
    np.testing.assert_allclose(losses_summed, losses, rtol=1e-5)
    assert_close(weights(summed), weights(whole), rtol=1e-3)
    assert (np.abs(losses - run(group=2)[1]) > 1e-3).all()


def test_images_that_had_to_be_replaced_are_counted():
    train_state, _ = run(steps=0)
    graphdef = state.split(nnx.eval_shape(lambda: create_model("xception", **SMALL)))[0]
    step = make_train_step(graphdef, optim.make_optimizer("sgd", 0.05, weight_decay=1e-4), **COMMON)
    batch = batch_of(0) | {"unreadable": np.where(np.arange(32) % 8 == 3, 17, -1).astype(np.int32)}
    _, sums = jax.jit(step)(train_state, batch, jax.random.key(0))
    assert (sums["unreadable"], sums["count"]) == (4, 32)


def test_several_labels_train_and_evaluate():
    settings = SMALL | {"dropout": 0.0, "middle_blocks": 0, "implementation": "xla"}
    objective = metrics.Objective(num_classes=10, multilabel=True, class_weights=(1.0,) * 9 + (2.0,))
    options = COMMON | {"objective": objective}
    optimizer = optim.make_optimizer("rmsprop_keras1", 5e-3)
    model = create_model("xception", **settings)
    graphdef = state.split(model)[0]
    train_state = state.create(model, optimizer, averaging=False)
    step = jax.jit(make_train_step(graphdef, optimizer, **options))
    evaluate = jax.jit(make_eval_step(graphdef, **options))
    labels = np.eye(10, dtype=np.uint8)[np.arange(32) % 10] | np.eye(10, dtype=np.uint8)[np.arange(32) % 3]
    batch = batch_of(0) | {"label": labels}
    losses = []
    for _ in range(12):
        train_state, sums = step(train_state, batch, jax.random.key(0))
        losses.append(float(sums["loss"] / sums["count"]))
    assert losses[-1] < 0.8 * losses[0]
    sums = evaluate(state.weight_sets(train_state), batch | {"mask": np.ones(32, np.float32)})["raw"]
    assert sums.keys() == {"loss", "top1", "exact", "map100", "map100_count", "count"} and sums["count"] == 32
    assert 0.3 < sums["map100"] / sums["map100_count"] <= 1 and sums["map100_count"] == 32


def test_average_follows_parameters_and_statistics():
    """Without warm-up, after one step: 0.9 of the initial weights and 0.1 of the new ones."""
    start, _ = run(steps=0)
    end, _ = run(steps=1, averaging=optim.Averaging(decay=0.9, warmup=False))
    for name in ("params", "model_state"):
        expected = jax.tree.map(
            lambda a, b: 0.9 * a + 0.1 * b, weights(start)["raw"][name], weights(end)["raw"][name]
        )
        assert_close(end.averaged[name], expected, rtol=1e-6)
        assert any(
            np.abs(a - b).max() > 1e-5
            for a, b in zip(
                jax.tree.leaves(end.averaged[name]), jax.tree.leaves(start.averaged[name]), strict=True
            )
        )


def test_fingerprint_sees_a_single_bit():
    train_state, _ = run(steps=0)
    before = state.fingerprint(train_state)
    assert state.fingerprint(jax.tree.map(np.copy, train_state)) == before
    changed = jax.tree.map(np.array, train_state)
    jax.tree.leaves(changed.averaged["model_state"])[0].view(np.int32)[0] ^= 1
    assert state.fingerprint(changed) != before


def test_evaluation_ignores_padding_and_tells_weights_apart():
    train_state, _ = run(steps=2)
    graphdef = state.split(nnx.eval_shape(lambda: create_model("xception", **SMALL)))[0]
    step = jax.jit(make_eval_step(graphdef, **COMMON))
    batch = batch_of(0)
    mask = np.ones(32, np.float32)
    all_images = step(weights(train_state), batch | {"mask": mask})
    first = step(weights(train_state), batch | {"mask": np.where(np.arange(32) < 10, mask, 0)})
    rest = step(weights(train_state), batch | {"mask": np.where(np.arange(32) < 10, 0, mask)})
    for name in ("raw", "averaged"):
        assert (first[name]["count"], rest[name]["count"]) == (10, 22)
        for metric in ("loss", "top1", "top5"):
            total = first[name][metric] + rest[name][metric]
            np.testing.assert_allclose(total, all_images[name][metric], rtol=1e-5)
    assert all_images["raw"]["loss"] != all_images["averaged"]["loss"]


def digits_batch(number, size=64):
    images, labels = digits().train.images, digits().train.labels.astype(np.int32)
    places = np.arange(number * size, (number + 1) * size) % len(images)
    return {"image": images[places], "label": labels[places], **train_only(size, np.random.default_rng(number))}


@functools.cache
def digits_init():
    return jax.jit(digits_program("float32")[0])


def digits_program(dtype):
    """(init(key) -> state, step) of the small model without middle flow; "xla" takes less time to compile."""
    settings = SMALL | {"dtype": dtype, "dropout": 0.0, "middle_blocks": 0, "implementation": "xla"}
    optimizer = optim.make_optimizer("sgd", 0.02)

    def make_model(key):
        return create_model("xception", rngs=nnx.Rngs(key), **settings)

    def init(key):
        return state.create(make_model(key), optimizer, averaging=True)

    graphdef = state.split(nnx.eval_shape(lambda: make_model(jax.random.key(0))))[0]
    return init, make_train_step(graphdef, optimizer, **COMMON, averaging=AVERAGING)


@functools.cache
def digits_step(dtype):
    """The training step, compiled; the state is donated."""
    init, step = digits_program(dtype)
    key = jax.random.key(0)
    return jax.jit(step, donate_argnums=0).lower(jax.eval_shape(init, key), digits_batch(0), key).compile()


def train_on_digits(dtype, *, seed=0, steps=25):
    """(state, losses) of steps on batches of real digits, in order."""
    train_state, losses = digits_init()(jax.random.key(seed)), []
    for number in range(steps):
        train_state, sums = digits_step(dtype)(train_state, digits_batch(number), jax.random.key(1))
        losses.append(sums["loss"] / sums["count"])
    return train_state, np.array(losses)


def test_bfloat16_learns_like_float32():
    """Losses differ by less than a third of what another initialization changes; measured: a fifth or less."""
    _, exact = train_on_digits("float32")
    _, other = train_on_digits("float32", seed=1)
    train_state, rounded = train_on_digits("bfloat16")
    assert rounded.dtype == np.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(weights(train_state))} == {jnp.dtype("float32")}
    difference = np.mean(np.abs(rounded - exact))
    assert 1e-4 < difference < np.mean(np.abs(other - exact)) / 3
    for losses in (exact, rounded):
        assert np.mean(losses[-5:]) < 0.75 * losses[0], losses


def test_a_step_writes_every_array_of_the_state_in_place():
    """Output i of the program has the memory of input i, for each array of the state."""
    leaves = jax.tree.leaves(jax.eval_shape(digits_program("float32")[0], jax.random.key(0)))
    compiled = digits_step("float32")
    pairs = re.findall(r"{(\d+)}: \((\d+), {}, \w+-alias\)", compiled.as_text())  # (output, input)
    assert {(int(output), int(source)) for output, source in pairs} == {(i, i) for i in range(len(leaves))}
    assert compiled.memory_analysis().alias_size_in_bytes == sum(
        leaf.size * leaf.dtype.itemsize for leaf in leaves
    )


def test_a_donated_state_is_gone():
    start = digits_init()(jax.random.key(0))
    end, _ = digits_step("float32")(start, digits_batch(0), jax.random.key(1))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(start))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(end))


COLLECTIVE = re.compile(
    r"= (?P<shape>.*?) (?P<name>all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    r"|collective-broadcast|ragged-all-to-all)(?:-start)?\("
)


def collectives(*, images, pixels, **settings):
    """The collective operations, {"name", "shape"} each, of the compiled training step on 8 devices."""
    replicated, by_image = shardings(8)
    optimizer = optim.make_optimizer("sgd", 0.045, weight_decay=1e-5)

    def make_model(key):
        return create_model("xception", rngs=nnx.Rngs(key), **settings)

    def init(key):
        return state.create(make_model(key), optimizer, averaging=True)

    def spec(tree, sharding):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    train_state = spec(jax.eval_shape(init, jax.random.key(0)), replicated)
    graphdef = state.split(nnx.eval_shape(lambda: make_model(jax.random.key(0))))[0]
    objective = metrics.Objective(num_classes=settings.get("num_classes", 1000))
    augmentation = Augmentation(mixup_alpha=0.2, cutmix_alpha=1.0)
    options = {"objective": objective, "prepare": prepare(settings.get("in_channels", 3), augmentation)}
    step = make_train_step(graphdef, optimizer, **options, averaging=optim.Averaging())
    image = jax.ShapeDtypeStruct((images, pixels, pixels, settings.get("in_channels", 3)), jnp.uint8)
    types = {"label": jnp.int32, "seed": jnp.uint32, "unreadable": jnp.int32}
    others = {name: jax.ShapeDtypeStruct((images,), dtype) for name, dtype in types.items()}
    batch = spec({"image": image, **others}, by_image)
    key = spec(jax.eval_shape(lambda: jax.random.key(0)), replicated)
    compiled = jax.jit(step, donate_argnums=0, out_shardings=replicated).lower(train_state, batch, key).compile()
    return [match.groupdict() for match in COLLECTIVE.finditer(compiled.as_text())]


def test_devices_exchange_only_gradients_statistics_and_metrics():
    """The full network at 299 px, images mirrored and mixed on the device: all-reduces alone, and together they
    carry each gradient, two batch statistics a channel, and a few metrics. The two sums that the backward pass of
    batch normalization needs are the gradients of its scale and bias: they travel once."""
    found = collectives(images=16, pixels=299)
    assert {collective["name"] for collective in found} == {"all-reduce"}
    carried = sum(
        int(np.prod([int(n) for n in shape.split(",") if n]))
        for collective in found
        for shape in re.findall(r"f32\[([\d,]*)\]", collective["shape"])
    )
    parameters, channels = 22_855_952, 27_264
    assert parameters + 2 * channels <= carried <= parameters + 2 * channels + 8, carried


def test_groups_within_a_device_move_no_activations():
    found = collectives(images=32, pixels=12, bn_group_size=2, **SMALL)
    assert {collective["name"] for collective in found} == {"all-reduce"}


class Counting(nnx.Module):
    """A model with two arrays of its own kinds: a temperature that stays, and a counter of training calls."""

    def __init__(self):
        self.kernel = nnx.Param(jnp.linspace(-1, 1, 12 * 12 * 10).reshape(12 * 12, 10))
        self.temperature = nnx.Variable(jnp.float32(2.0))
        self.calls = nnx.Variable(jnp.int32(0))

    def __call__(self, x, *, train=False, key=None):
        if train:
            self.calls.set_value(self.calls[...] + 1)
        return x.reshape(len(x), -1) @ self.kernel[...] / self.temperature[...]  # [N, 10]


@pytest.mark.parametrize("parts", [1, 4])
def test_a_model_may_keep_arrays_that_are_not_trained(parts):
    """They are stepped, accumulated, averaged, evaluated and fingerprinted like batch statistics."""
    optimizer, model = optim.make_optimizer("sgd", 0.1, weight_decay=0.0), Counting()
    graphdef, params, model_state = state.split(model)
    assert set(params) == {"kernel"} and set(model_state) == {"temperature", "calls"}
    step = jax.jit(make_train_step(graphdef, optimizer, **COMMON, averaging=AVERAGING, accumulation_steps=parts))
    train_state = state.create(model, optimizer, averaging=True)
    before = state.fingerprint(train_state)
    for i in range(3):
        train_state, _ = step(train_state, batch_of(i), jax.random.key(0))
    for weights in state.weight_sets(train_state).values():
        assert weights["model_state"]["calls"] == 3 and weights["model_state"]["calls"].dtype == np.int32
        assert weights["model_state"]["temperature"] == 2.0
    assert state.fingerprint(train_state) != before
    sums = make_eval_step(graphdef, **COMMON)(state.weight_sets(train_state), batch_of(0) | {"mask": np.ones(32)})
    assert sums["raw"]["count"] == 32
