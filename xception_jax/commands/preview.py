"""Draws what the network sees: training images as they are augmented, and images as they are evaluated."""

import argparse
import contextlib
import itertools
import pathlib

import jax
import numpy as np
from matplotlib.figure import Figure

from xception_jax import recipe, task
from xception_jax.commands import command_line
from xception_jax.data import pipeline
from xception_jax.data.images.inputs import Images
from xception_jax.errors import TrainingError, UserError

EXAMPLE = "python -m xception_jax preview --config configs/digits.py --out preview.png"
COLUMNS = 8
TITLE_LENGTH = 27  # characters that fit above an image
Titled = tuple[np.ndarray, list[str]]  # images float[N, H, W, C] in [0, 1], and a title for each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags; those of the recipe are passed through."""
    parser.usage = "python -m xception_jax preview --config FILE [--config.KEY=VALUE ...] [--out FILE] [--rows N]"
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("preview.png"), help="PNG to write")
    parser.add_argument("--rows", type=int, default=3, help="of eight training images each (default: 3)")
    parser.set_defaults(settings_of_recipe=[])


def run(arguments: argparse.Namespace) -> None:
    """Writes the figure and says where."""
    if arguments.rows < 1:
        raise UserError(f"--rows={arguments.rows}: must be at least 1")
    checked = recipe.parse(command_line.read_config(arguments.settings_of_recipe, example=EXAMPLE))
    built = task.build(checked)
    if not isinstance(built.inputs, Images):
        raise UserError(f"--config: {checked.model_name} does not read images, so there is nothing to draw")
    count = arguments.rows * COLUMNS
    try:
        train, evaluation = training_images(built, count), evaluated_images(built)
    except ValueError as error:
        raise TrainingError(str(error)) from None
    title = f"{checked.data.name}, {built.inputs.preprocessing.image_size} px"
    try:
        draw(train, evaluation, arguments.out, title=title)
    except (OSError, ValueError) as error:  # matplotlib raises ValueError for an unknown suffix
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--out={arguments.out}: cannot be written ({reason}); name another file") from None
    print(f"{arguments.out}: {count} training images as augmented, {len(evaluation[0])} images as evaluated")


def training_images(built: task.Task, count: int) -> Titled:
    """The first `count` images of training as the network gets them, but before normalization."""
    reader = built.reader(built.dataset.train, substitute=True)
    settings = {"batch_size": count, "seed": built.recipe.seed}
    with contextlib.closing(pipeline.train_batches(reader, built.inputs.train_transform, **settings)) as batches:
        batch = next(batches)
    for index in batch["unreadable"][batch["unreadable"] >= 0].tolist():
        print(f"warning: {reader.why_unreadable(index)}; another image takes its place")

    @jax.jit
    def augment(batch):
        return built.inputs.augment(batch, built.objective.targets(batch["label"]))

    images, targets = jax.device_get(augment({name: batch[name] for name in ("image", "label", "seed")}))
    return images, _titles(built, targets)


def evaluated_images(built: task.Task) -> Titled:
    """Validation images, evenly spaced over the set."""
    reader = built.reader(built.dataset.validation)
    indices = np.linspace(0, len(reader) - 1, COLUMNS).astype(int)
    examples = [built.inputs.eval_transform(reader[index]) for index in dict.fromkeys(indices.tolist())]
    targets = jax.device_get(built.objective.targets(np.stack([example["label"] for example in examples])))
    images = np.stack([example["image"] for example in examples]) / 255  # [N, H, W, C]
    return images, _titles(built, targets)


def _titles(built: task.Task, targets: np.ndarray) -> list[str]:
    names = [""] * built.inputs.label_offset + list(built.dataset.class_names)
    return [_title(target, names) for target in targets]


def _title(target: np.ndarray, names: list[str]) -> str:
    """The classes of a target, a line each, with their shares where these are not 1; at most three."""
    order = [int(i) for i in np.argsort(-target, kind="stable") if target[i] >= 0.005]
    lines = [names[i] if target[i] > 0.995 else f"{target[i]:.2f} {names[i]}" for i in order[:3]]
    short = [line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1] + "…" for line in lines]
    return "\n".join(short) or "(none)"


def draw(train: Titled, evaluation: Titled, path: pathlib.Path, *, title: str) -> None:
    """Writes a PNG: rows of training images, then a row of evaluated ones, each with its title."""
    rows = len(train[0]) // COLUMNS
    figure = Figure(figsize=(2 * COLUMNS, 2.5 * (rows + 1)), layout="constrained")
    axes = figure.subplots(rows + 1, COLUMNS)
    for axis in axes.flat:
        axis.set_axis_off()
    places = itertools.chain(zip(axes[:-1].flat, *train, strict=True), zip(axes[-1], *evaluation, strict=False))
    for axis, image, text in places:
        axis.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
        axis.set_title(text, fontsize=8, parse_math=False)
    figure.suptitle(f"{title}: training images as augmented; in the last row, images as evaluated")
    figure.savefig(path, dpi=100)
