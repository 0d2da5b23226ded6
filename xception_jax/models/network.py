"""What the image models share: common settings, the check of their input, and the classification head."""

import functools
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import PositiveInt

from xception_jax.layers import KERNEL_INIT, BatchNorm
from xception_jax.ops import Implementation
from xception_jax.ops.windows import accumulator
from xception_jax.settings import Section, setting, zero_is_none

Pair = tuple[PositiveInt, PositiveInt]
Triple = tuple[PositiveInt, PositiveInt, PositiveInt]


class NetworkConfig(Section):
    """Settings of every image model."""

    num_classes: int = setting(1000, "number of classes, the outputs of the classifier", gt=0)
    in_channels: int = setting(3, "channels of the images; 3 for RGB", gt=0)
    dropout: float = setting(0.5, "dropout rate before the classifier", ge=0, lt=1)
    fc_layers: tuple[PositiveInt, ...] = setting((), "widths of fully connected ReLU layers before the classifier")
    implementation: Implementation | None = setting(
        None,
        "implementation of convolutions and max-pooling; None: the fastest one measured for the platform",
        free=True,
    )
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "type of the computation; parameters and statistics stay float32"
    )


class NormalizedConfig(NetworkConfig):
    """Settings of every image model with batch normalization; the defaults are those of Keras today."""

    bn_epsilon: float = setting(1e-3, "added to the variance, inside the root", gt=0)
    bn_momentum: float = setting(0.99, "decay of the running statistics in each step", ge=0, lt=1)
    bn_group_size: Annotated[int | None, zero_is_none] = setting(
        None, "images that share training statistics; None: the whole batch, over all devices", gt=0
    )


class ImageSizeError(ValueError):
    """Images whose height or width the model cannot take.

    Attributes:
      size: height and width of the images in pixels.
      smallest: least height and width that the model takes.
      remedy: what the model needs, and what to do.

    >>> print(ImageSizeError((32, 32), 71, "the model needs at least 71 pixels each way; enlarge the images"))
    images of 32 x 32 pixels: the model needs at least 71 pixels each way; enlarge the images
    """

    def __init__(self, size: tuple[int, int], smallest: int, remedy: str):
        super().__init__(size, smallest, remedy)
        self.size, self.smallest, self.remedy = size, smallest, remedy

    def __str__(self) -> str:
        height, width = self.size
        return f"images of {height} x {width} pixels: {self.remedy}"


def preprocessing(*, image_size: int, crop: str) -> dict[str, Any]:
    """How images become a model's input, unless a recipe says otherwise; pixels reach the models in [-1, 1].

    Returns:
      `image_size` in pixels; `mean` and `std`, by which pixels in [0, 1] are normalized as (value - mean) / std;
      and `crop`, `crop_fraction` and `resize`, which say what part of an image is evaluated and how it is scaled.
    """
    scaling = {"mean": 0.5, "std": 0.5, "crop_fraction": 0.875, "resize": "bilinear"}
    return {"image_size": image_size, "crop": crop, **scaling}


def smallest_input(*layers: tuple[int, int], halvings: int = 0) -> int:
    """The least height and width of an input from which unpadded layers leave enough pixels to halve.

    Args:
      *layers: (window, strides) of each unpadded layer, from the input to the output.
      halvings: number of padded layers of stride 2 after them. Each must read two pixels or more: a network that
        "halves" a single pixel has nothing to learn from, and its training can diverge.

    >>> smallest_input((3, 2), (3, 1))
    7
    >>> smallest_input(halvings=4)  # 9 pixels become 5, 3, 2 and 1
    9
    """
    size = 1 if halvings == 0 else 2 ** (halvings - 1) + 1
    for window, strides in reversed(layers):
        size = (size - 1) * strides + window
    return size


def layer_options(config: NetworkConfig, *, rngs: nnx.Rngs, use_scale: bool = True) -> dict[str, Any]:
    """The arguments that all layers of a model share, with `norm` if the model has batch normalization."""
    options = {"implementation": config.implementation, "dtype": jnp.dtype(config.dtype), "rngs": rngs}
    if isinstance(config, NormalizedConfig):
        options["norm"] = functools.partial(
            BatchNorm,
            momentum=config.bn_momentum,
            epsilon=config.bn_epsilon,
            group_size=config.bn_group_size,
            use_scale=use_scale,
            dtype=options["dtype"],
        )
    return options


class Network(nnx.Module):
    """Base class of all image models: checks of the input, and the classification head.

    A subclass defines `features` and the class attributes, keeps its settings as `self.config`, and ends its
    `__init__` with `_add_head`. Its state is its parameters (`nnx.Param`) and any other `nnx.Variable` that it
    keeps, such as batch statistics; random keys are arguments of the call.

    Attributes:
      CONFIG: class of the model's settings.
      INPUTS: name of the modality that the model reads.
      PREPROCESSING: how images become the model's input, see `preprocessing`.
      SMALL: settings of a network that trains in seconds, for smoke tests.
    """

    CONFIG: ClassVar[type[NetworkConfig]]
    INPUTS: ClassVar[str] = "images"
    PREPROCESSING: ClassVar[dict[str, Any]]
    SMALL: ClassVar[dict[str, Any]]

    def _add_head(self, width: int, *, kernel_init: nnx.Initializer = KERNEL_INIT, rngs: nnx.Rngs) -> None:
        """Adds fully connected layers, dropout and the classifier, which read `width` features."""
        config = self.config
        dtype = jnp.dtype(config.dtype)
        linear = functools.partial(nnx.Linear, kernel_init=kernel_init, rngs=rngs)
        self.fc = nnx.List()
        for features in config.fc_layers:
            self.fc.append(linear(width, features, dtype=dtype))
            width = features
        self.dropout = nnx.Dropout(config.dropout)
        # Rounded to bfloat16, the logits of different classes would often be equal.
        self.classifier = linear(width, config.num_classes, dtype=accumulator(dtype))

    def _check_images(self, x: jax.Array, *, smallest: int = 1, alternative: str = "") -> None:
        """Raises the errors of `features`; `alternative` is a setting that admits images below `smallest`."""
        if x.ndim != 4 or x.shape[-1] != self.config.in_channels:
            raise ValueError(f"images must be [N, H, W, {self.config.in_channels}]; got {x.shape}")
        if min(x.shape[1:3]) < smallest:
            remedy = f"the model needs at least {smallest} pixels each way; enlarge the images"
            remedy += f", or set {alternative}" if alternative else ""
            raise ImageSizeError(x.shape[1:3], smallest, remedy)

    def features(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Normalized images float[N, H, W, in_channels] -> features float[N, h, w, C] before pooling.

        Raises:
          ImageSizeError: for images whose height or width the model cannot take.
          ValueError: for images of another rank or number of channels.
        """
        raise NotImplementedError

    def logits(self, x: jax.Array, *, train: bool, key: jax.Array | None) -> jax.Array:
        """Features float[N, h, w, C] -> logits float32[N, num_classes]; `train` and `key` as in `__call__`."""
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)  # [N, C]
        for linear in self.fc:
            x = jax.nn.relu(linear(x))  # [N, width]
        x = self.dropout(x, deterministic=not train, rngs=key)
        return self.classifier(x)  # [N, num_classes]

    def __call__(self, x: jax.Array, *, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """Normalized images float[N, H, W, in_channels] -> logits float32[N, num_classes].

        Args:
          x: images, normalized as `PREPROCESSING` says.
          train: normalizes by the statistics of the batch, updates the running ones, and applies dropout.
          key: PRNG key of the dropout; required if `train` is set and `config.dropout` > 0.

        Raises:
          ImageSizeError, ValueError: as `features`; also if the key is missing.
        """
        if train and self.config.dropout and key is None:
            raise ValueError(f"key = None: training with dropout = {self.config.dropout} needs a PRNG key")
        return self.logits(self.features(x, train=train), train=train, key=key)
