"""Draws what the network sees: training images as they are augmented, and images as they are evaluated."""

import argparse
import itertools
import pathlib

import jax
import numpy as np

from xception_jax import experiment
from xception_jax import recipe as recipe_lib
from xception_jax.commands import command_line
from xception_jax.errors import TrainingError, UserError

EXAMPLE = "python -m xception_jax preview --config configs/digits.py --out preview.png"
COLUMNS = 8
Titled = tuple[np.ndarray, list[str]]  # images float[N, H, W, C] in [0, 1], and a title for each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags; those of the recipe are passed through."""
    parser.usage = "python -m xception_jax preview --config FILE [--config.KEY=VALUE ...] [--out FILE] [--rows N]"
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("preview.png"), help="PNG to write")
    parser.add_argument("--rows", type=int, default=3, help="of eight training images each (default: 3)")
    parser.set_defaults(settings_of_recipe=[])


def run(arguments: argparse.Namespace) -> None:
    """Writes the picture and says where.

    Raises:
      UserError: for a mistake in the flags or the recipe, or a file that cannot be written.
      TrainingError: for an image that cannot be read.
    """
    if arguments.rows < 1:
        raise UserError(f"--rows={arguments.rows}: must be at least 1")
    recipe = recipe_lib.parse(command_line.read_config(arguments.settings_of_recipe, example=EXAMPLE))
    count = arguments.rows * COLUMNS
    sizes = {"batch_size": count, "eval_batch_size": COLUMNS, "accumulation_steps": 1}
    plan = experiment.build(recipe.model_copy(update=sizes), training=False)
    try:
        train, evaluation = training_images(plan), evaluated_images(plan)
    except ValueError as error:
        raise TrainingError(str(error)) from None
    try:
        title = f"{plan.recipe.data.name}, {plan.preprocessing.image_size} px"
        draw(train, evaluation, arguments.out, title=title)
    except (OSError, ValueError) as error:  # matplotlib's for an unknown suffix
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--out={arguments.out}: cannot be written ({reason}); name another file") from None
    print(f"{arguments.out}: {count} training images as augmented, {len(evaluation[0])} images as evaluated")


def training_images(plan: experiment.Experiment) -> Titled:
    """The first batch of training as the network gets it but for normalization."""
    batches = plan.train_batches(0)
    batch = next(batches)
    batches.close()
    for index in batch["unreadable"][batch["unreadable"] >= 0].tolist():
        print(f"warning: {plan.why_unreadable(index)}; another image takes its place")

    @jax.jit
    def augment(batch):
        targets = plan.objective.targets(batch["label"])
        return plan.augmentation(batch["image"] / np.float32(255), targets, batch["seed"], jax.random.key(0))

    images, targets = jax.device_get(augment({name: batch[name] for name in ("image", "label", "seed")}))
    return images, [_title(target, plan.dataset.class_names) for target in targets]


def evaluated_images(plan: experiment.Experiment) -> Titled:
    """Validation images, evenly spaced over the set."""
    reader = plan.reader(plan.dataset.validation, substitute=False)
    transform = experiment.evaluation_transform(plan.preprocessing)
    indices = np.linspace(0, len(reader) - 1, COLUMNS).astype(int)
    examples = [transform.map(reader[index]) for index in dict.fromkeys(indices.tolist())]
    targets = jax.device_get(plan.objective.targets(np.stack([example["label"] for example in examples])))
    images = np.stack([example["image"] for example in examples]) / 255  # [N, H, W, C]
    return images, [_title(target, plan.dataset.class_names) for target in targets]


def _title(target: np.ndarray, names: tuple[str, ...]) -> str:
    """The classes of a target, with their shares where these are not 1; at most three."""
    order = [int(i) for i in np.argsort(-target, kind="stable") if target[i] > 0]
    parts = [names[i] if target[i] > 0.995 else f"{target[i]:.2f} {names[i]}" for i in order[:3]]
    return " + ".join(part if len(part) <= 24 else part[:23] + "…" for part in parts) or "(none)"


def draw(train: Titled, evaluation: Titled, path: pathlib.Path, *, title: str) -> None:
    """Writes a PNG: rows of training images, then a row of evaluated ones, each with its title."""
    import matplotlib.pyplot as plt

    rows = len(train[0]) // COLUMNS
    figure, axes = plt.subplots(rows + 1, COLUMNS, figsize=(2 * COLUMNS, 2.25 * (rows + 1)), layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    places = itertools.chain(zip(axes[:-1].flat, *train, strict=True), zip(axes[-1], *evaluation, strict=False))
    for axis, image, text in places:
        axis.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
        axis.set_title(text, fontsize=8, parse_math=False)
    figure.suptitle(f"{title}: training images as augmented; in the last row, images as evaluated")
    figure.savefig(path, dpi=100)
    plt.close(figure)
