"""Runs of every recipe on 8 devices, and what can be done with what they leave."""

import io
import json
import pathlib
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from flax import nnx
from PIL import Image
from sklearn.metrics import accuracy_score
from test_records import write_set

import xception_jax
from configs import common, digits
from xception_jax import data, loop, report
from xception_jax.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
# test_reproduce.py trains reproduction, test_text.py the recipes of texts; the other two are, but for their fully
# connected layers, one that is here.
ELSEWHERE = ("__init__", "common", "reproduction", "ag_news", "docstrings", "jft_inception_v3", "jft_xception_fc")
RECIPES = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem not in ELSEWHERE)


@pytest.fixture(autouse=True)
def plain_types():
    """The evaluation's host side and Pillow mix types freely; the strict ones are for the step's tests."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, result) of two epochs of a tiny network on 8 devices, evaluated in batches of 7."""
    config = digits.get_config()
    config.total_epochs, config.evaluate_every_epochs = 0, 0
    config.total_steps, config.evaluate_every_steps = 90, 30
    config.eval_batch_size, config.checkpoints_to_keep = 7, 1
    config.model.entry_widths, config.model.middle_blocks, config.model.exit_widths = (8, 12), 1, (12, 16, 16)
    workdir = tmp_path_factory.mktemp("trained") / "run"
    return workdir, loop.train(config, workdir)


COLORS = {"red": (250, 10, 20), "green": (30, 200, 40), "blue": (60, 70, 180)}
SPLITS = {"train": 8, "validation": 3}  # images of each color


def color_images(size):
    """(split, color, number, image) of noise around three colors."""
    rng = np.random.default_rng(0)
    for split, count in SPLITS.items():
        for name, color in COLORS.items():
            for number in range(count):
                pixels = np.clip(np.array(color) + rng.normal(0, 20, (size, size + 4, 3)), 0, 255)
                yield split, name, number, Image.fromarray(pixels.astype(np.uint8))


def write_folder(root):
    for split, name, number, pil_image in color_images(40):
        folder = root / {"validation": "val"}.get(split, split) / name
        folder.mkdir(parents=True, exist_ok=True)
        pil_image.save(folder / f"{number}.{'jpg' if number % 2 else 'png'}")
    return root


def write_manifest(root):
    rows = ["path,labels,split"]
    for split, name, number, pil_image in color_images(40):
        pil_image.save(root / f"{split}-{name}-{number}.jpg")
        labels = [name, "odd"] if number % 2 else [name]
        rows.append(f"{split}-{name}-{number}.jpg,{';'.join(labels)},{split.replace('validation', 'val')}")
    (root / "images.csv").write_text("\n".join(rows) + "\n")
    return root / "images.csv"


def write_tfds(root, name, eval_split, features, make):
    """Record files as TFDS's own builder writes them, of images and what `make(color)` gives."""
    splits = {"train": [], eval_split: []}
    for split, color, _, pil_image in color_images(32):
        buffer = io.BytesIO()
        pil_image.save(buffer, "PNG")
        splits["train" if split == "train" else eval_split].append({"image": buffer.getvalue(), **make(color)})
    name, _, config = name.partition("/")
    write_set(root, name, {"image": tfds.features.Image(), **features}, splits, config=config)
    return root


def write_one_label(root, name, eval_split, **others):
    features = {"label": LABEL, **others}
    return write_tfds(root, name, eval_split, features, lambda color: {"label": color, **dict.fromkeys(others, 0)})


def write_open_images(root):
    """People verified the color and that it is no other; a machine found green."""
    source = tfds.features.ClassLabel(names=("verification", "machine"))
    features = tfds.features.Sequence({"label": LABEL, "confidence": np.int32, "source": source})

    def make(color):
        found = [(name, 10 * (name == color), "verification") for name in COLORS] + [("green", 10, "machine")]
        keys = ("label", "confidence", "source")
        return {"objects": [dict(zip(keys, values, strict=True)) for values in found]}

    return write_tfds(root, "open_images_v4/original", "validation", {"objects": features}, make)


def write_imagenet(root):
    return write_one_label(root, "imagenet2012", "validation")


LABEL = tfds.features.ClassLabel(names=tuple(COLORS))
OTHER = tfds.features.ClassLabel(num_classes=2)
DATA = {
    "cifar100_xception": lambda root: write_one_label(root, "cifar100", "test", coarse_label=OTHER),
    "cifar10_xception": lambda root: write_one_label(root, "cifar10", "test"),
    "digits": lambda root: None,
    "folder_xception": write_folder,
    **{f"imagenet_{model}": write_imagenet for model in ("inception_v3", "resnet152", "vgg16", "xception")},
    "jft_inception_v3_fc": write_open_images,
    "jft_xception": write_open_images,
    "multilabel_xception": write_manifest,
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_runs_its_smoke_variant(path, tmp_path):
    """On data in the format that it is for."""
    config = runpy.run_path(str(path))["get_config"]("smoke")
    if path.stem != "digits":
        config.model.implementation = "xla"  # compiles faster
    if path.stem == "folder_xception":  # as for weights from elsewhere
        config.data.label_offset, config.data.channel_order = 1, "bgr"
    root = DATA[path.stem](tmp_path)
    config.data.root = None if root is None else str(root)
    result = loop.train(config, tmp_path / "run")
    assert (result.step, result.num_examples) == (4, 360 if root is None else 9)
    assert all(np.isfinite(v) for values in result.evaluation.values() for v in values.values())
    trained = xception_jax.load(tmp_path / "run")
    expected = {"digits": tuple("0123456789"), "multilabel_xception": ("blue", "green", "odd", "red")}
    names = ("blue", "green", "red") if path.stem == "folder_xception" else tuple(COLORS)
    assert trained.class_names == expected.get(path.stem, names)
    assert trained.inputs.preprocessing.exif_orientation == (path.stem == "folder_xception")
    if path.stem == "folder_xception":
        probabilities = trained.predict([np.zeros((9, 9, 3), np.uint8)])
        assert probabilities.shape == (1, 3) and 0 < probabilities.sum() < 1  # the fourth output names no class
        assert trained.recipe.model["num_classes"] == 4 and trained.inputs.preprocessing.channel_order == "bgr"
    if trained.multilabel:
        assert all(0 < values["map100"] <= 1 for values in result.evaluation.values())
        assert report.describe(result.evaluation, 9).count("MAP@100") == 2
    if path.stem == "multilabel_xception":
        image = np.zeros((9, 9, 3), np.uint8)
        pixels = trained.inputs.from_user([image])["image"]
        normalized = jnp.asarray(pixels / 127.5 - 1, jnp.float32)
        logits = np.asarray(nnx.jit(lambda model, x: model(x))(trained.model, normalized))
        np.testing.assert_allclose(trained.predict([image]), 1 / (1 + np.exp(-logits)), atol=1e-2)  # bfloat16


@pytest.mark.parametrize("weights", ["raw", "averaged"])
def test_loaded_weights_give_the_accuracy_the_run_measured(run, weights):
    workdir, _ = run
    trained = xception_jax.load(workdir, checkpoint="latest", weights=weights)
    held_out = data.load("digits").validation
    predicted = trained.predict(held_out.images, batch_size=50).argmax(axis=1)
    measured = trained.evaluation[weights]["top1"]
    assert accuracy_score(held_out.labels, predicted) == pytest.approx(measured, abs=1e-6)
    # After 90 steps one of the two sets can still be at chance: batch statistics lag behind the raw weights.
    assert max(values["top1"] for values in trained.evaluation.values()) > 0.2
    assert trained.step == 90 and trained.class_names == tuple("0123456789")


def test_probabilities_add_up_and_sizes_may_differ(run):
    trained = xception_jax.load(run[0])
    images = [np.zeros((8, 8), np.uint8), np.full((20, 31, 1), 200, np.uint8)]
    probabilities = trained.predict(images)
    assert probabilities.shape == (2, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_predicting_any_number_of_images_compiles_few_programs(run):
    trained = xception_jax.load(run[0])
    images = data.load("digits").validation.images[:9]
    whole = trained.predict(images)
    for count in range(1, 10):
        np.testing.assert_allclose(trained.predict(images[:count]), whole[:count], rtol=1e-5)
    programs, _ = trained._programs
    sizes = [shape[0] for shapes in programs._compiled for _, shape in shapes]
    assert sorted(sizes) == [1, 2, 4, 8, 16]  # images


def test_best_is_the_highest_top1_of_the_averaged_weights(run):
    workdir, _ = run
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    scores = {row["step"]: row["top1"] for row in rows if row["kind"] == "averaged"}
    assert sorted(scores) == [30, 60, 90]
    best = xception_jax.load(workdir, checkpoint="best")
    assert scores[best.step] == max(scores.values())
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
    assert kept == {90, best.step}


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((1, 8, 8, 1)), "float64"),
        (np.zeros((1, 8, 8, 3), np.uint8), "[height, width, 1]"),
        ([], "empty"),
    ],
)
def test_unfit_images_are_refused(run, images, message):
    trained = xception_jax.load(run[0])
    with pytest.raises(ValueError) as error:
        trained.predict(images)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"checkpoint": "17"}, "checkpoint = '17': choose 'best', 'latest' or one of"),
        ({"checkpoint": "last"}, "checkpoint = 'last'"),
        ({"weights": "ema"}, "weights = 'ema': choose 'averaged' or 'raw'"),
    ],
)
def test_unknown_checkpoints_and_weights_are_refused(run, arguments, message):
    with pytest.raises(UserError) as error:
        xception_jax.load(run[0], **arguments)
    assert message in str(error.value)


def test_no_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        xception_jax.load(tmp_path / "nowhere")


def test_evaluate_command_repeats_the_run_s_numbers(run):
    """On one device, with another batch size."""
    workdir, result = run
    command = [sys.executable, "-m", "xception_jax", "evaluate", f"--workdir={workdir}", "--checkpoint=latest"]
    command += ["--batch_size=100"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(report.describe(result.evaluation, 360))
    assert done.stderr == ""


def test_evaluate_command_explains_a_missing_run(tmp_path):
    command = [sys.executable, "-m", "xception_jax", "evaluate", f"--workdir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: workdir {tmp_path}: holds no run") and done.stderr.count("\n") == 1


def test_common_defaults_name_no_dataset_of_their_own():
    """A recipe must say its length; the defaults alone are not one."""
    with pytest.raises(UserError, match="set it, or total_steps or total_samples"):
        loop.train(common.default(), "/nonexistent")
