"""The last layer split between devices: the same numbers as on each of them, and no logits that travel."""

import argparse
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from test_step import COLLECTIVE, assert_close

import xception_jax
from configs import digits
from xception_jax import data, evaluation, loop, metrics, report, sharding, state, task
from xception_jax import recipe as recipe_lib
from xception_jax.commands import evaluate
from xception_jax.errors import UserError

CLASSES = 24


@pytest.fixture(autouse=True)
def plain_types():
    """As in the tests of whole runs."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def noise(monkeypatch):
    """noise(classes, multilabel) makes every recipe's data 80 images of noise."""

    def use(classes, multilabel):
        rng = np.random.default_rng(0)
        images = rng.integers(256, size=(80, 8, 8, 1), dtype=np.uint8)
        several = [tuple(sorted({*rng.integers(classes, size=3).tolist()})) for _ in images]
        single = rng.integers(classes, size=80).astype(np.int32)
        source = data.ArraySource(images, several if multilabel else single)
        dataset = data.Dataset(
            train=source,
            validation=source,
            class_names=tuple(map(str, range(classes))),
            model_settings={"in_channels": 1},
            multilabel=multilabel,
            class_weights=tuple(np.linspace(0, 2, classes).tolist()),
        )
        monkeypatch.setattr(task, "load_dataset", lambda *_: dataset)

    return use


def recipe(model, **changes):
    """A tiny network's, with `model` devices along "model"; four steps with a gradient that is an update old."""
    config = digits.get_config()
    config.total_epochs, config.total_steps, config.log_every_steps = 0, 4, 1
    config.evaluate_every_epochs, config.evaluate_every_steps, config.eval_batch_size = 0, 2, 32
    config.data.image_size = 8
    config.model = ConfigDict({"name": "vgg16_separable", "stages": ((8,), (16,)), "fc_layers": ()})
    config.model.update(num_classes=None, in_channels=None, implementation="xla")
    config.optimizer.replicas, config.mesh.model = 2, model
    config.update_from_flattened_dict(changes)
    return config


def rows(workdir):
    """{(step, kind): measures} of a run, without times."""
    parsed = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = {"step", "kind", "examples_per_second", "data_wait"}
    return {(row["step"], row["kind"]): {k: row[k] for k in row.keys() - timed} for row in parsed}


def weights(workdir):
    trained = xception_jax.load(workdir, checkpoint="latest", weights="averaged")
    return state.split(trained.model)[1:]


def test_devices_that_share_the_classes_train_alike(noise, tmp_path, capsys):
    noise(CLASSES, multilabel=True)
    whole, halves, quarters = (tmp_path / name for name in ("whole", "halves", "quarters"))
    loop.train(recipe(1), whole)
    result = loop.train(recipe(4), quarters)
    expected = rows(whole)
    assert rows(quarters).keys() == expected.keys() and len(expected) == 4 + 2 * 2
    for key, row in rows(quarters).items():
        assert row == pytest.approx(expected[key], rel=1e-4), key
    assert_close(weights(quarters), weights(whole), rtol=1e-4)
    assert "map100" in expected[4, "raw"]

    # Gradients that wait are saved and restored: a run of two halves ends as one without a break.
    loop.train(recipe(4, total_steps=2), halves)
    assert loop.train(recipe(4), halves).fingerprint == result.fingerprint

    # The same bits on another mesh, and the same numbers from the command.
    assert loop.train(recipe(1), halves) == result
    capsys.readouterr()
    arguments = {"checkpoint": "latest", "batch_size": None, "data_root": None, "exclude": None}
    evaluate.run(argparse.Namespace(workdir=quarters, **arguments))
    assert capsys.readouterr().out.strip().endswith(report.describe(result.evaluation, 80))


@pytest.mark.parametrize("settings", [{}, {"multilabel": True}, {"label_smoothing": 0.1}], ids=", ".join)
@pytest.mark.parametrize("shape", [(4, 2), (2, 4)])
def test_loss_gradient_and_measures_of_a_shared_layer(shape, settings):
    """As on one device, where tests of the metrics say what they should be; two classes always tie."""
    rng = np.random.default_rng(3)
    x, kernel = rng.normal(size=(16, 6)), rng.normal(size=(6, CLASSES))
    kernel[:, 17] = kernel[:, 3]
    multilabel = settings.get("multilabel", False)
    labels = rng.integers(2, size=(16, CLASSES)) if multilabel else rng.integers(CLASSES, size=16)
    weights = tuple(np.linspace(0, 2, CLASSES).tolist())
    objective = metrics.Objective(num_classes=CLASSES, class_weights=weights, **settings)
    arrays = (np.float32(kernel), np.float32(x), labels.astype(np.int32), np.float32(np.arange(16) < 13))

    def run(sharding):
        def loss(kernel, x, labels, mask):
            logits = x @ kernel  # [N, classes]
            if sharding is not None:
                logits = jax.lax.with_sharding_constraint(logits, sharding)
            loss = objective.loss(logits, objective.targets(labels))
            return jnp.mean(loss), objective.evaluation_sums(loss, logits, labels, mask, logits_sharding=sharding)

        (_, sums), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(*arrays)
        return {name: float(value) for name, value in sums.items()}, np.asarray(gradient)

    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    sums, gradient = run(NamedSharding(mesh, PartitionSpec("data", "model")))
    expected, expected_gradient = run(None)
    assert sums == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_what_the_state_has_for_each_class_is_split(noise):
    noise(CLASSES, multilabel=True)
    changes = {"optimizer.name": "rmsprop_tf", "model.fc_layers": (CLASSES,)}
    built = task.build(recipe_lib.parse(recipe(2, **changes)))
    abstract = loop.abstract_state(built, loop.make_training(built).optimizer)
    split = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        if not leaf.sharding.is_fully_replicated:
            split[jax.tree_util.keystr(path)] = leaf.sharding.shard_shape(leaf.shape)
    kernel, bias = (CLASSES, CLASSES // 2), (CLASSES // 2,)
    assert sorted(split.values()) == sorted(
        [kernel, bias] * 4 + [(2, *kernel), (2, *bias)]  # parameters, averages, two slots; the queue
    )
    assert all("['classifier']" in path for path in split)


@pytest.mark.parametrize(
    "model, multilabel, changes",
    [
        (2, True, {"augment.mixup_alpha": 0.2, "model.fc_layers": (8, 16), "optimizer.clip_norm": 1.0}),
        (4, False, {"label_smoothing": 0.1, "accumulation_steps": 2}),
    ],
    ids=["several labels", "one label"],
)
def test_devices_exchange_features_and_candidates_but_no_logits(model, multilabel, changes, noise):
    """The largest things that move: features of 16 numbers, an image's best 100 of each device, and gradients."""
    classes, images = 4096, 32
    noise(classes, multilabel)
    built = task.build(recipe_lib.parse(recipe(model, **changes)))
    optimizer = loop.make_training(built).optimizer
    abstract = loop.abstract_state(built, optimizer)
    train = loop.make_train_step(built, optimizer, abstract)(built.batch_spec(train=True)).as_text()
    evaluate = evaluation.make_eval_step(built, state.weight_sets(abstract))
    evaluate = evaluate(built.batch_spec(train=False)).as_text()
    part, rows = classes // model, images * model // 8  # of the classes on a device; images of a group of devices

    def moved(program, *, gradients):
        """Shapes of what the collective operations result in; all-reduces of gradients may be left out."""
        for collective in COLLECTIVE.finditer(program):
            for shape in re.findall(r"\w\[([\d,]*)\]", collective["shape"]):
                shape = tuple(int(n) for n in shape.split(",") if n)
                if gradients or collective["name"] != "all-reduce":
                    yield shape

    assert {shape for shape in moved(train, gradients=True) if part in shape or classes in shape} <= {
        (part,),
        (16, part),
        (part, 16),
    }
    assert max(map(np.prod, moved(train, gradients=False))) <= rows * 16
    candidates = rows * model * 100 if multilabel else 0
    assert max(map(np.prod, moved(evaluate, gradients=True))) <= max(candidates, rows * 16)
    assert rows * classes / model > max(candidates, rows * 16)  # a device's logits are more than that


@pytest.mark.parametrize("model", [3, 4, 16])
def test_a_mesh_that_does_not_fit_is_refused(model, noise):
    noise(18, multilabel=False)
    with pytest.raises(UserError) as error:
        task.build(recipe_lib.parse(recipe(model)))
    message = f"config.mesh.model = {model}: must divide the number of devices of a host, 8, and of classes, 18"
    assert str(error.value) == f"{message}; choose one of [1, 2]"


class FakeDevice:
    """What `in_host_order` looks at."""

    def __init__(self, process_index, id):
        self.process_index, self.id = process_index, id


@pytest.mark.parametrize(
    "devices",
    [
        [
            (0, 0),
            (1, 4),
            (0, 1),
            (1, 5),
            (0, 2),
            (1, 6),
        ],  # hosts interleaved, as a physical mesh of a TPU may have them
        [(3, 1), (2, 0), (3, 0), (2, 1), (0, 7), (1, 2)],
    ],
)
def test_the_devices_of_a_host_are_neighbors_in_the_mesh(devices):
    """A host reads consecutive examples; so the global batch is the one that the data order promises."""
    ordered = sharding.in_host_order([FakeDevice(*device) for device in devices])
    assert [(device.process_index, device.id) for device in ordered] == sorted(devices)


@pytest.mark.parametrize("model", [1, 2])
def test_both_kinds_of_mesh_have_the_devices_in_that_order(model, monkeypatch):
    devices = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: devices[::-1])
    mesh = sharding.make_layout(model, num_classes=CLASSES).mesh
    assert mesh.devices.ravel().tolist() == devices
    assert mesh.axis_names == (("data",) if model == 1 else ("data", "model"))
