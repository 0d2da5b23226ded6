"""VGG-16, and the same stack of layers with depthwise separable convolutions.

K. Simonyan, A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
table 1, column D: 138,357,544 parameters.

Chollet 2017, section 4.6, reports that a stack like VGG, without residual connections but with every convolution
replaced by a depthwise separable convolution, was better on JFT than an Inception V3 with as many parameters. It
does not give the widths. `SeparableVGG` is such a stack: VGG-16's 13 convolutions replaced by separable
convolutions, each with batch normalization, and Xception's head. Its widths are m, 2m, 4m, 8m and 8m, rounded, for
m = 232.729. Without rounding, this m gives the 23,626,728 parameters of Inception V3 in table 3; with rounding
there are 23,629,977.
"""

import functools
from typing import Annotated, ClassVar, Self

import jax
import pydantic
from flax import nnx
from pydantic import Field, PositiveInt

from xception_jax import ops
from xception_jax.errors import SettingError
from xception_jax.layers import Conv, SeparableConvBN
from xception_jax.models import network
from xception_jax.models.network import NetworkConfig, NormalizedConfig
from xception_jax.settings import setting

# He et al. 2015: each ReLU halves the second moment of the signal, and without normalization nothing restores it.
# With Keras's default initialization this network hardly begins to learn.
KERNEL_INIT = nnx.initializers.he_normal()

Stages = tuple[Annotated[tuple[PositiveInt, ...], Field(min_length=1)], ...]


def _stack(layer: functools.partial, config: "Config | SeparableConfig") -> nnx.List:
    """The layers of every stage; `layer` makes one from its numbers of input and output channels."""
    stages, width = nnx.List(), config.in_channels
    for widths in config.stages:
        inputs = (width, *widths[:-1])
        stages.append(nnx.List([layer(i, o) for i, o in zip(inputs, widths, strict=True)]))
        width = widths[-1]
    return stages


def _apply_stack(stages: nnx.List, x: jax.Array, implementation: str | None, **options: bool) -> jax.Array:
    """Applies the layers of `_stack` to x[N, H, W, C]: ReLU follows each layer, 2x2 max-pooling each stage."""
    for i, stage in enumerate(stages):
        with jax.named_scope(f"stage_{i}"):
            for layer in stage:
                x = jax.nn.relu(layer(x, **options))  # [N, h, w, width of the layer]
            x = ops.max_pool(
                x, 2, strides=2, padding="VALID", implementation=implementation
            )  # [N, h / 2, w / 2, C]
    return x


class Config(NetworkConfig):
    """The defaults are VGG-16."""

    dropout: float = setting(0.5, "dropout rate after each fully connected layer", ge=0, lt=1)
    fc_layers: tuple[PositiveInt, ...] = setting(
        (4096, 4096), "widths of fully connected ReLU layers before the classifier"
    )
    image_size: int = setting(
        224,
        "height and width of the images in pixels; fixed, since the first fully connected layer reads all places",
        gt=0,
    )
    stages: Stages = setting(
        ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
        "features of the 3x3 convolutions; each stage ends with 2x2 max-pooling",
        min_length=1,
    )

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.image_size < (least := 2 ** len(self.stages)):
            raise SettingError("image_size", self.image_size, f"must be at least {least}; each stage halves it")
        return self


class VGG(network.Network):
    """VGG: 3x3 convolutions with bias and ReLU; no normalization."""

    # Simonyan and Zisserman subtract the mean color of the training set instead.
    PREPROCESSING = network.preprocessing(image_size=224, crop="shorter_side")
    SMALL: ClassVar = {"image_size": 32, "stages": ((8,), (16,), (32,))}
    CONFIG = Config

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        shared = network.layer_options(config, rngs=rngs)
        conv = functools.partial(Conv, kernel_size=3, use_bias=True, kernel_init=KERNEL_INIT, **shared)
        self.stages = _stack(conv, config)
        side = config.image_size >> len(config.stages)
        self._add_head(side * side * config.stages[-1][-1], kernel_init=KERNEL_INIT, rngs=rngs)

    def features(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Normalized images float[N, image_size, image_size, in_channels] -> float[N, h, w, C] before the head.

        `train` has no effect here; all models take the same arguments.
        """
        size = self.config.image_size
        self._check_images(x)
        if x.shape[1:3] != (size, size):
            remedy = f"the model's image_size is {size}; make the two equal"
            raise network.ImageSizeError(x.shape[1:3], size, remedy)
        # 224: [N, 112, 112, 64], [N, 56, 56, 128], [N, 28, 28, 256], [N, 14, 14, 512], [N, 7, 7, 512]
        return _apply_stack(self.stages, x, self.config.implementation)

    def logits(self, x: jax.Array, *, train: bool, key: jax.Array | None) -> jax.Array:
        """Features float[N, h, w, C] -> logits float32[N, num_classes]; dropout follows each layer of `fc`."""
        x = x.reshape(len(x), -1)  # [N, h w C]; 224: [N, 25088]
        for i, linear in enumerate(self.fc):
            x = jax.nn.relu(linear(x))  # [N, width]
            layer_key = None if key is None else jax.random.fold_in(key, i)
            x = self.dropout(x, deterministic=not train, rngs=layer_key)
        return self.classifier(x)  # [N, num_classes]


class SeparableConfig(NormalizedConfig):
    """The defaults have as many parameters as Inception V3, see the top of the file."""

    stages: Stages = setting(
        ((233,) * 2, (465,) * 2, (931,) * 3, (1862,) * 3, (1862,) * 3),
        "features of the separable convolutions; each stage ends with 2x2 max-pooling",
        min_length=1,
    )


class SeparableVGG(network.Network):
    """VGG-style stack of depthwise separable convolutions, each with batch normalization and ReLU."""

    PREPROCESSING = network.preprocessing(image_size=299, crop="central")
    SMALL: ClassVar = {"stages": ((8,), (16,), (32,))}
    CONFIG = SeparableConfig

    def __init__(self, config: SeparableConfig, *, rngs: nnx.Rngs):
        self.config = config
        shared = network.layer_options(config, rngs=rngs)
        self.stages = _stack(functools.partial(SeparableConvBN, **shared), config)
        self._add_head(config.stages[-1][-1], rngs=rngs)

    def features(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Normalized images float[N, H, W, in_channels] -> float[N, h, w, C] before pooling."""
        self._check_images(x, smallest=2 ** len(self.stages))
        # 299: [N, 149, 149, 233], [N, 74, 74, 465], [N, 37, 37, 931], [N, 18, 18, 1862], [N, 9, 9, 1862]
        return _apply_stack(self.stages, x, self.config.implementation, train=train)
