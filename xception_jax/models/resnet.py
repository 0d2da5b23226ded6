"""ResNet-50, 101 and 152: residual networks of bottleneck blocks, as first published.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, table 1. A block
that halves the image does so in its first 1x1 convolution. With biases in the convolutions, as Keras has them,
they have 25,583,592, 44,601,832 and 60,268,520 parameters.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from xception_jax import ops
from xception_jax.layers import ConvBN
from xception_jax.models import network
from xception_jax.models.preprocessing import Preprocessing

EXPANSION = 4  # features of a block's last layer / of its others


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The defaults are ResNet-50.

    Attributes:
      num_classes: outputs of the logistic regression.
      in_channels: of the images; 3 = RGB.
      blocks: how many in each stage; every stage but the first halves the image.
      widths: of the blocks of each stage, inside; they put out 4 times as many features.
      stem_width: features of the 7x7 convolution.
      stem_strides: of the 7x7 convolution and the max-pooling; a pooling of stride 1 is left out. (1, 1) suits
        images of a few dozen pixels.
      use_bias: whether the convolutions have biases, though batch normalization follows: Keras's have.
      dropout: rate before the logistic regression.
      fc_layers: widths of fully connected ReLU layers before it.
      bn_epsilon, bn_momentum: Keras's values.
      bn_group_size: images for each set of training statistics; None = the whole batch.
      implementation: of convolutions and pooling, see `ops`; None = the fastest measured for the platform.
      dtype: of the computation; parameters and statistics stay float32.
    """

    num_classes: int = 1000
    in_channels: int = 3
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem_width: int = 64
    stem_strides: tuple[int, int] = (2, 2)
    use_bias: bool = True
    dropout: float = 0.0
    fc_layers: tuple[int, ...] = ()
    bn_epsilon: float = 1.001e-5
    bn_momentum: float = 0.99
    bn_group_size: int | None = None
    implementation: Literal["xla", "shift"] | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        network.check(
            self,
            positive=("stem_width",),
            all_positive=("blocks", "widths", "stem_strides"),
            rules=[
                ("blocks", len(self.blocks) > 0, "one number or more"),
                ("widths", len(self.widths) == len(self.blocks), "as many as blocks"),
                ("stem_strides", len(self.stem_strides) == 2, "two numbers"),
            ],
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config101(Config):
    """The defaults are ResNet-101; attributes as of `Config`."""

    blocks: tuple[int, ...] = (3, 4, 23, 3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config152(Config):
    """The defaults are ResNet-152; attributes as of `Config`."""

    blocks: tuple[int, ...] = (3, 8, 36, 3)


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolution, around them a residual connection; ReLU comes after the addition.

    With `projection` the connection is a 1x1 convolution with batch normalization, otherwise the identity.
    """

    def __init__(
        self, features_in: int, width: int, *, strides: int = 1, projection: bool, conv: functools.partial
    ):
        features = EXPANSION * width
        self.convs = nnx.List(
            [conv(features_in, width, 1, strides=strides), conv(width, width, 3), conv(width, features, 1)]
        )
        self.shortcut = conv(features_in, features, 1, strides=strides) if projection else None

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        shortcut = x
        if self.shortcut is not None:
            with jax.named_scope("shortcut"):
                shortcut = self.shortcut(x, train=train)  # [N, H / strides, W / strides, features]
        *inner, last = self.convs
        for conv in inner:
            x = jax.nn.relu(conv(x, train=train))  # [N, H / strides, W / strides, width]
        return jax.nn.relu(last(x, train=train) + shortcut)  # [N, H / strides, W / strides, features]


class ResNet50(network.Network):
    """The residual network of the config, ResNet-50 by default."""

    # He et al. subtract the mean image instead.
    PREPROCESSING = Preprocessing(
        image_size=224, mean=0.5, std=0.5, crop="shorter_side", crop_fraction=0.875, resize="bilinear"
    )
    CONFIG = Config

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        conv = functools.partial(
            ConvBN,
            use_bias=config.use_bias,
            norm=network.batch_norm(config),
            implementation=config.implementation,
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
        )
        # Three pixels on each side, whatever the image's size; "SAME" would begin elsewhere on even sizes.
        self.stem = conv(
            config.in_channels, config.stem_width, 7, strides=config.stem_strides[0], padding=((3, 3), (3, 3))
        )
        self.stages = nnx.List()
        features = config.stem_width
        for i, (blocks, width) in enumerate(zip(config.blocks, config.widths, strict=True)):
            first = Bottleneck(features, width, strides=1 if i == 0 else 2, projection=True, conv=conv)
            features = EXPANSION * width
            others = [Bottleneck(features, width, projection=False, conv=conv) for _ in range(blocks - 1)]
            self.stages.append(nnx.List([first, *others]))
        self._add_head(features, rngs=rngs)

    def features(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Normalized images float[N, H, W, in_channels] -> float[N, h, w, 4 widths[-1]] before pooling.

        Raises:
          ValueError: for images of another shape.
        """
        config = self.config
        self._check_images(x)
        with jax.named_scope("stem"):
            x = jax.nn.relu(self.stem(x, train=train))  # 224: [N, 112, 112, 64]
            if config.stem_strides[1] > 1:
                x = ops.max_pool(
                    x,
                    3,
                    strides=config.stem_strides[1],
                    padding=((1, 1), (1, 1)),
                    implementation=config.implementation,
                )  # 224: [N, 56, 56, 64]
        for i, stage in enumerate(self.stages):
            for j, block in enumerate(stage):
                with jax.named_scope(f"stage_{i}_block_{j}"):
                    # 224: [N, 56, 56, 256], [N, 28, 28, 512], [N, 14, 14, 1024], [N, 7, 7, 2048]
                    x = block(x, train=train)
        return x


class ResNet101(ResNet50):
    """ResNet-101."""

    CONFIG = Config101


class ResNet152(ResNet50):
    """ResNet-152."""

    CONFIG = Config152
