"""The `Inputs` of images: settings, transforms of the host, normalization and augmentation on the device."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from xception_jax.data import sources
from xception_jax.data.dataset import Dataset, UnreadableExample
from xception_jax.data.images import transforms
from xception_jax.data.images.augment import Augmentation
from xception_jax.data.images.resizing import METHODS, PRESETS
from xception_jax.data.inputs import Inputs
from xception_jax.data.pipeline import Reading
from xception_jax.errors import SettingError
from xception_jax.settings import Section, setting


class ImageData(Reading, sources.Sources):
    """Where images come from, and what the host makes of them."""

    image_size: int = setting(299, "height and width of the model's input in pixels", gt=0)
    background: Literal["white", "black"] = setting(
        "white", "what shows through transparent pixels; black = transparency is ignored, as in version 0.1"
    )
    exif_orientation: bool = setting(False, "turn images as their EXIF data say; TFDS, Keras and torch do not")
    channel_order: Literal["rgb", "bgr"] = setting("rgb", "order of the model's input channels")
    label_offset: int = setting(0, "leading outputs of the model that stand for no class", ge=0)
    train_crop: Literal[transforms.TRAIN_CROPS] = setting("random_resized", "which part of an image is trained on")
    train_resize: Literal[(*METHODS, "inception")] = setting("bilinear", "interpolation; inception = one of four")
    pad_pixels: int = setting(4, "train_crop pad: pixels of padding on each side", ge=0)
    min_area: float = setting(0.08, "train_crop random_resized: smallest share of the area", gt=0, le=1)
    max_area: float = setting(1.0, "train_crop random_resized: largest share of the area", gt=0, le=1)
    min_aspect: float = setting(3 / 4, "train_crop random_resized: smallest width / height", gt=0)
    max_aspect: float = setting(4 / 3, "train_crop random_resized: largest width / height", gt=0)
    randaugment_ops: int = setting(0, "RandAugment: number of operations, 0 = off", ge=0)
    randaugment_magnitude: float = setting(9.0, "RandAugment: their strength", ge=0, le=10)
    eval_preset: Literal[tuple(PRESETS)] | None = setting(
        None, "replaces eval_crop, eval_crop_fraction, eval_resize"
    )
    eval_crop: Literal["central", "shorter_side"] = setting("central", "which part of an image is evaluated")
    eval_crop_fraction: float = setting(0.875, "share of the image that is evaluated", gt=0, le=1)
    eval_resize: Literal[tuple(METHODS)] = setting("bilinear", "interpolation of the evaluation")

    @property
    def evaluation(self) -> dict[str, Any]:
        """`crop`, `crop_fraction` and `resize` of the evaluation: those of the preset, or the three settings."""
        if self.eval_preset is not None:
            return dict(PRESETS[self.eval_preset])
        return {"crop": self.eval_crop, "crop_fraction": self.eval_crop_fraction, "resize": self.eval_resize}


# Settings of the data: those of `sources.load`, and those that `Preprocessing` has under the same name.
_SOURCES = set(sources.Sources.model_fields)
_SHARED = {"image_size", "channel_order", "label_offset", "exif_orientation", "background"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From any image to the input of one model: what an evaluation does, and what checkpoints record.

    Attributes:
      image_size: height and width of the input in pixels.
      mean, std: of each channel; pixel values in [0, 1] are normalized as (value - mean) / std, so 0.5 and 0.5
        give [-1, 1].
      channel_order: "rgb" or "bgr"; mean and std follow this order.
      label_offset: see `metrics.Objective`.
      exif_orientation, background: see `decoding.decode`.
      crop, crop_fraction, resize: which part of an image is evaluated; see `resizing.evaluation_image`.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channel_order: str = "rgb"
    label_offset: int = 0
    exif_orientation: bool = False
    background: str = "black"
    crop: str
    crop_fraction: float
    resize: str

    @property
    def channels(self) -> int:
        """Number of channels of the input."""
        return len(self.mean)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(Inputs):
    """The `Inputs` of images; the docstrings of `Inputs` hold for the members that have none here.

    Attributes:
      preprocessing: what happens to every image.
      training: settings of the crops; None where nothing is trained.
      augmentation: on the device; None = none.
    """

    SETTINGS: ClassVar[Mapping[str, type[Section]]] = {"data": ImageData, "augment": Augmentation}

    preprocessing: Preprocessing
    training: ImageData | None = None
    augmentation: Augmentation | None = None

    @staticmethod
    def load(settings: ImageData) -> Dataset:
        dataset = sources.load(image_size=settings.image_size, **settings.model_dump(include=_SOURCES))
        channels = {"in_channels": 3, **dataset.model_settings}  # decoding gives three channels
        return dataclasses.replace(dataset, model_settings=channels)

    @staticmethod
    def data_defaults(defaults: Mapping[str, Any]) -> dict[str, Any]:
        names = {"eval_crop": "crop", "eval_crop_fraction": "crop_fraction", "eval_resize": "resize"}
        return {"image_size": defaults["image_size"], **{ours: defaults[name] for ours, name in names.items()}}

    @classmethod
    def from_sections(cls, sections: Mapping[str, Section], dataset: Dataset, defaults: Mapping[str, Any]) -> Self:
        data, augmentation, channels = sections["data"], sections["augment"], dataset.model_settings["in_channels"]
        for name in ("area", "aspect"):
            least, most = getattr(data, f"min_{name}"), getattr(data, f"max_{name}")
            if least > most:
                raise SettingError(f"data.min_{name}", least, f"must not be above max_{name} = {most}")
        if data.train_crop == "pad" and data.pad_pixels >= data.image_size:
            remedy = f"must be below image_size = {data.image_size}, or a crop can show nothing but padding"
            raise SettingError("data.pad_pixels", data.pad_pixels, remedy)
        if augmentation.color != "none" and channels != 3:
            remedy = f"the images ({data.name}) have no colors; set it to none"
            raise SettingError("augment.color", augmentation.color, remedy)
        record = dict(defaults) | data.model_dump(include=_SHARED) | data.evaluation
        return cls(preprocessing=_preprocessing(record, channels), training=data, augmentation=augmentation)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        values = dict(record)
        channels = values.pop("channels")
        return of_model(values, channels=channels)

    def record(self) -> dict[str, Any]:
        return dataclasses.asdict(self.preprocessing) | {"channels": self.preprocessing.channels}

    @property
    def label_offset(self) -> int:
        return self.preprocessing.label_offset

    @property
    def block(self) -> int:
        """Two if mixup or cutmix mix pairs of images, else one."""
        return 2 if self.augmentation is not None and self.augmentation.mixes else 1

    @property
    def decode(self) -> transforms.Decode:
        record = self.preprocessing
        return transforms.Decode(orientation=record.exif_orientation, background=record.background)

    @property
    def train_transform(self) -> transforms.TrainTransform:
        """Random crop, resizing and RandAugment."""
        s = self.training
        return transforms.TrainTransform(
            image_size=s.image_size,
            resize=s.train_resize,
            crop=s.train_crop,
            pad_pixels=s.pad_pixels,
            area=(s.min_area, s.max_area),
            aspect=(s.min_aspect, s.max_aspect),
            randaugment_ops=s.randaugment_ops,
            randaugment_magnitude=s.randaugment_magnitude,
        )

    @property
    def eval_transform(self) -> transforms.EvaluationTransform:
        record = dataclasses.asdict(self.preprocessing)
        names = [field.name for field in dataclasses.fields(transforms.EvaluationTransform)]
        return transforms.EvaluationTransform(**{name: record[name] for name in names})

    def spec(self, batch_size: int, length: int = 0) -> dict[str, jax.ShapeDtypeStruct]:
        """{"image": uint8[B, size, size, C]}."""
        size = self.preprocessing.image_size
        return {"image": jax.ShapeDtypeStruct((batch_size, size, size, self.preprocessing.channels), np.uint8)}

    def augment(self, batch: Mapping[str, jax.Array], targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Traced: images in [0, 1] after the augmentation, float32[B, size, size, C], and targets[B, classes]."""
        images = batch["image"].astype(jnp.float32) / 255
        if self.augmentation is None:
            return images, targets
        return self.augmentation(images, targets, batch["seed"], jax.random.key(0))  # the seeds tell runs apart

    def prepare(
        self, batch: Mapping[str, jax.Array], targets: jax.Array, *, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        if train:
            images, targets = self.augment(batch, targets)
        else:
            images = batch["image"].astype(jnp.float32) / 255
        return self.normalize(images), targets

    def normalize(self, images: jax.Array) -> jax.Array:
        """Traced: images float32[B, H, W, C] in [0, 1], red first -> the model's input of the same shape."""
        record = self.preprocessing
        if record.channel_order == "bgr":
            images = images[..., ::-1]
        mean, std = (np.asarray(values, np.float32)[None, None, None] for values in (record.mean, record.std))
        return (images - mean) / std

    def from_argument(self, text: str) -> np.ndarray:
        """The pixels of an image file, uint8[H, W, C]."""
        try:
            return self.decode({"image": pathlib.Path(text).read_bytes()})["image"]
        except (OSError, UnreadableExample) as error:
            reason = error.reason if isinstance(error, UnreadableExample) else error.strerror
            raise ValueError(f"cannot read {text!r}: {reason}; the run reads images: name image files") from None

    def from_user(self, raw: Sequence[np.ndarray] | np.ndarray) -> dict[str, np.ndarray]:
        """Crops and resizes images as an evaluation does.

        Args:
          raw: uint8 arrays [H, W, C] or, for grey images, [H, W], with pixels in 0..255; sizes may differ.
            `decode` reads a file as the run did.

        Returns:
          {"image": uint8[N, size, size, C]}.

        Raises:
          ValueError: for another type of pixels, shape, or number of channels.
        """
        channels = self.preprocessing.channels
        if len(raw) == 0:
            raise ValueError("images is empty: pass one image or more")
        if isinstance(raw, np.ndarray) and raw.ndim == 3 and raw.shape[2] == channels:
            raise ValueError(f"images has shape {raw.shape}, as one image has: pass [image]")
        images = [self.eval_transform({"image": _check_image(image, channels)})["image"] for image in raw]
        return {"image": np.stack(images)}  # [N, size, size, C]


def of_model(defaults: Mapping[str, Any], *, channels: int, **changes: Any) -> Images:
    """The inputs that a model class names in PREPROCESSING, with some fields of `Preprocessing` changed."""
    return Images(preprocessing=_preprocessing(dict(defaults) | changes, channels))


def _preprocessing(values: Mapping[str, Any], channels: int) -> Preprocessing:
    """`Preprocessing`, with mean and std from one number for each channel or, as in version 0.1, one for all."""

    def per_channel(value):
        numbers = (float(value),) * channels if isinstance(value, int | float) else tuple(map(float, value))
        if len(numbers) != channels:
            raise ValueError(f"mean and std need one number, or one for each of {channels} channels; got {value}")
        return numbers

    return Preprocessing(**(values | {name: per_channel(values[name]) for name in ("mean", "std")}))


def _check_image(image: np.ndarray, channels: int) -> np.ndarray:
    """uint8[H, W] or [H, W, C] -> uint8[H, W, C], or ValueError."""
    image = np.asarray(image)
    if image.dtype != np.uint8:
        raise ValueError(f"pixels are {image.dtype}: pass uint8 in 0..255, for example (255 * x).astype('uint8')")
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[2] != channels or min(image.shape) < 1:
        raise ValueError(f"an image has shape {image.shape}: this model takes [height, width, {channels}]")
    return image
