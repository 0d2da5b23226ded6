"""What `benchmark data` prepares: image files, and the boxes that training would cut out of them."""

import argparse
import copy
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import grain
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from xception_jax import data
from xception_jax.data.images import decoding
from xception_jax.data.images.resizing import Box
from xception_jax.data.images.transforms import random_box
from xception_jax.errors import UserError

LENGTH = 10_000  # records at least: for a few hundred, grain takes longer to draw the order
SEED = 0


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Some image files of a data set, over and over: a source as long as a large set's.

    Attributes:
      title: what they are, for people.
      members: (source, index) of each.
      files: path of each; of pictures that come from records, a copy.
      sizes: (height, width) of each, in pixels.
      kilobytes: mean of the files.
    """

    title: str
    members: tuple[tuple[data.Source, int], ...]
    files: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    kilobytes: float

    def __len__(self) -> int:
        return len(self.members) * -(-LENGTH // len(self.members))

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, number = self.members[index % len(self.members)]
        return source[number]

    def name(self, index: int) -> str:
        """As its own source says it."""
        source, number = self.members[index % len(self.members)]
        return source.name(number)


def find_pictures(arguments: argparse.Namespace, folder: pathlib.Path) -> Pictures:
    """The pictures that the flags ask for; those that have to be written lie in `folder`.

    Reading each once, to see its size, leaves the files in the system's memory: no stage waits for a disk.

    Raises:
      UserError: if there are none, not enough for a batch, or one cannot be read.
    """
    if arguments.data_name is None:
        if arguments.root is not None:
            raise UserError(f"--root={arguments.root}: of what? say --data-name=folder, manifest or tfds:NAME")
        title, sources = "photographs made for this", (make_photographs(folder, arguments.pictures),)
    else:
        title, sources = f"{arguments.data_name} {arguments.root or ''}".strip(), load(arguments)
    starts = np.cumsum([0, *map(len, sources)])
    count = min(arguments.pictures, int(starts[-1]))
    if count < arguments.batch:
        raise UserError(f"--batch={arguments.batch}: there are only {count} pictures; choose at most {count}")
    members, files, sizes, lengths = [], [], [], []
    for number in np.linspace(0, starts[-1] - 1, count).astype(int).tolist():  # spread over the set
        part = int(np.searchsorted(starts, number, side="right")) - 1
        source, index = sources[part], number - int(starts[part])
        members.append((source, index))
        try:
            encoded = source[index]["image"]
            sizes.append(decoding.decode(encoded, name=source.name(index)).shape[:2])
        except data.UnreadableImage as error:
            raise UserError(f"--root={arguments.root}: {error}") from None
        lengths.append(len(encoded))
        files.append(source.name(index))
        if not isinstance(source, data.ImageFiles):
            files[-1] = str(folder / f"{number}.image")
            pathlib.Path(files[-1]).write_bytes(encoded)
    return Pictures(title, tuple(members), tuple(files), tuple(sizes), np.mean(lengths).item() / 1000)


def load(arguments: argparse.Namespace) -> tuple[data.Source, ...]:
    """Training and validation images of a data set; UserError if it cannot be opened."""
    name, root = arguments.data_name, arguments.root
    if name not in ("folder", "manifest") and not name.startswith("tfds:"):
        raise UserError(f"--data-name={name}: has no image files; choose folder, manifest or tfds:NAME")
    try:
        dataset = data.load(name, root=root, holdout=0.5)  # so that both parts have pictures, if there are few
    except (ValueError, OSError) as error:
        raise UserError(f"--{str(error).replace(' = ', '=', 1)}".replace("--name=", "--data-name=")) from None
    return dataset.train, dataset.validation


def make_photographs(folder: pathlib.Path, count: int) -> data.ImageFiles:
    """JPEG files like ImageNet's: 500 x 375 pixels and 90 kB on average, a quarter of them upright.

    Random parts of scikit-learn's two photographs. Enlarging made them smooth; noise as of a camera's sensor gives
    them back the bytes, most of which decoding has to go through.
    """
    rng = np.random.default_rng(SEED)
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    names = [f"{number:04}.jpg" for number in range(count)]
    for number, name in enumerate(names):
        photograph = photographs[number % len(photographs)]
        size = rng.integers((440, 330), (561, 421))[:: -1 if rng.random() < 0.25 else 1]  # width, height
        part = size * min(photograph.size / size) * rng.uniform(0.6, 1)
        left, top = rng.uniform(0, photograph.size - part)
        box = (left, top, left + part[0], top + part[1])
        pixels = np.asarray(photograph.resize(tuple(size.tolist()), Image.Resampling.LANCZOS, box), np.float32)
        pixels = pixels + rng.normal(0, 4, (*pixels.shape[:2], 1))
        picture = Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
        picture.save(folder / name, quality=94)
    return data.ImageFiles.make(folder, names, np.zeros(count, np.int32))


class Task(NamedTuple):
    """An image to prepare: its number, the box to cut out, and the random numbers that drew the box."""

    index: int
    box: Box
    rng: np.random.Generator


@dataclasses.dataclass(frozen=True)
class Work:
    """What each side does.

    Attributes:
      transform: crop and size of the training images.
      batch: images a batch.
      plan: what is prepared in each round; the first warms up.
    """

    pictures: Pictures
    transform: data.TrainTransform
    batch: int
    plan: tuple[tuple[Task, ...], ...]

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace, pictures: Pictures) -> "Work":
        """As many whole batches a round as the pictures give."""
        crop = {"crop": "random_resized", "resize": arguments.resize}
        transform = data.TrainTransform(image_size=arguments.image_size, **crop)
        batch, batches = arguments.batch, len(pictures.members) // arguments.batch
        plan = draw_plan(pictures, transform, batch=batch, batches=batches, rounds=1 + arguments.rounds)
        return cls(pictures, transform, batch, plan)

    def __str__(self) -> str:
        pictures, (height, width) = self.pictures, np.mean(self.pictures.sizes, 0)
        mean = f"{width:.0f} x {height:.0f} pixels and {pictures.kilobytes:.0f} kB"
        return (
            f"{len(pictures.members)} pictures ({pictures.title}), on average {mean},\n"
            f"to {self.size[1]} x {self.size[0]} pixels ({self.transform.resize}) in batches of {self.batch}"
        )

    @property
    def columns(self) -> dict[str, Any]:
        """Of a row of measurements."""
        return {
            "data": self.pictures.title,
            "pictures": len(self.pictures.members),
            "kilobytes": self.pictures.kilobytes,
            "batch": self.batch,
            "images": self.images,
            "image_size": self.transform.image_size,
            "resize": self.transform.resize,
        }

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the result."""
        return (self.transform.image_size, self.transform.image_size)

    @property
    def images(self) -> int:
        """Of a round."""
        return len(self.plan[0])

    @property
    def method(self) -> str:
        """What other libraries call the interpolation."""
        return self.transform.resize.rpartition("_")[2]

    @property
    def may_draft(self) -> bool:
        """Whether some box is at least twice as large as the result."""
        return any(self.scale(task) >= 2 for tasks in self.plan for task in tasks)

    def scale(self, task: Task) -> float:
        """How many times larger the box is than the result, along its shorter side."""
        left, top, right, bottom = task.box
        return min(right - left, bottom - top) / self.transform.image_size

    def batches(self, number: int) -> Iterator[tuple[Task, ...]]:
        """The tasks of a round, batch by batch."""
        tasks = self.plan[number]
        yield from (tasks[start : start + self.batch] for start in range(0, len(tasks), self.batch))


@dataclasses.dataclass(frozen=True)
class _Draw(grain.transforms.RandomMap):
    """In the place of a transform: the box that it would cut out, and the random numbers before it is drawn."""

    sizes: tuple[tuple[int, int], ...]
    area: tuple[float, float]
    aspect: tuple[float, float]

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        before = copy.deepcopy(rng)
        size = self.sizes[element["index"] % len(self.sizes)]
        return element | {"rng": before, "box": random_box(*size, rng, area=self.area, aspect=self.aspect)}


@dataclasses.dataclass(frozen=True)
class _Numbers:
    """In the place of a reader: the numbers of the images."""

    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"index": index}


def draw_plan(
    pictures: Pictures, transform: data.TrainTransform, *, batch: int, batches: int, rounds: int
) -> tuple[tuple[Task, ...], ...]:
    """The tasks that `data.train_batches` does; between the rounds a batch is left out, see `Pipeline`."""
    draw = _Draw(pictures.sizes, transform.area, transform.aspect)
    steps = data.train_batches(_Numbers(len(pictures)), draw, batch_size=batch, seed=SEED, num_threads=1)
    plan = []
    for _ in range(rounds):
        next(steps)
        columns = [next(steps) for _ in range(batches)]
        plan.append(
            tuple(
                Task(index, tuple(box), rng)
                for step in columns
                for index, box, rng in zip(*(step[key].tolist() for key in ("index", "box", "rng")), strict=True)
            )
        )
    steps.close()
    return tuple(plan)
