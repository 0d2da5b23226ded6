"""ResNet-50, 101 and 152: residual networks of bottleneck blocks, as first published.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, table 1. A block
that halves the image does so in its first 1x1 convolution. With biases in the convolutions, as in Keras, the three
networks have 25,583,592, 44,601,832 and 60,268,520 parameters.
"""

import functools
from typing import ClassVar, Self

import jax
import pydantic
from flax import nnx
from pydantic import PositiveInt

from xception_jax import ops
from xception_jax.errors import SettingError
from xception_jax.layers import ConvBN
from xception_jax.models import network
from xception_jax.models.network import NormalizedConfig, Pair
from xception_jax.settings import setting

EXPANSION = 4  # a block's last layer has this many times the features of its other layers


class Config(NormalizedConfig):
    """The defaults are ResNet-50, with Keras's constants of batch normalization."""

    dropout: float = setting(0.0, "dropout rate before the classifier", ge=0, lt=1)
    bn_epsilon: float = setting(1.001e-5, "added to the variance, inside the root", gt=0)
    blocks: tuple[PositiveInt, ...] = setting(
        (3, 4, 6, 3), "number of blocks in each stage; every stage but the first halves the image", min_length=1
    )
    widths: tuple[PositiveInt, ...] = setting(
        (64, 128, 256, 512), "features inside the blocks of each stage; a block's output has 4 times as many"
    )
    stem_width: int = setting(64, "features of the 7x7 convolution", gt=0)
    stem_strides: Pair = setting(
        (2, 2), "strides of the 7x7 convolution and of the max-pooling; a pooling of stride 1 is left out"
    )
    use_bias: bool = setting(True, "biases in the convolutions, as in Keras, though batch normalization follows")

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.widths) != len(self.blocks):
            raise SettingError("widths", self.widths, f"must have as many numbers as blocks = {self.blocks}")
        return self


class Bottleneck(nnx.Module):
    """A 1x1, a 3x3 and a 1x1 convolution with a residual connection around them; ReLU follows the addition.

    With `projection`, the residual connection is a 1x1 convolution with batch normalization; otherwise it is the
    identity.
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


class ResNet(network.Network):
    """The residual network that its config describes, ResNet-50 by default."""

    # He et al. subtract the mean image of the training set instead.
    PREPROCESSING = network.preprocessing(image_size=224, crop="shorter_side")
    SMALL: ClassVar = {"blocks": (1, 2), "widths": (4, 8), "stem_width": 8}
    CONFIG = Config

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        conv = functools.partial(ConvBN, use_bias=config.use_bias, **network.layer_options(config, rngs=rngs))
        # Three pixels on each side for every image size; "SAME" would put two at the top and left of even sizes.
        features, strides = config.stem_width, config.stem_strides[0]
        self.stem = conv(config.in_channels, features, 7, strides=strides, padding=((3, 3), (3, 3)))
        self.stages = nnx.List()
        for i, (blocks, width) in enumerate(zip(config.blocks, config.widths, strict=True)):
            first = Bottleneck(features, width, strides=1 if i == 0 else 2, projection=True, conv=conv)
            features = EXPANSION * width
            others = [Bottleneck(features, width, projection=False, conv=conv) for _ in range(blocks - 1)]
            self.stages.append(nnx.List([first, *others]))
        self._add_head(features, rngs=rngs)

    def features(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Normalized images float[N, H, W, in_channels] -> float[N, h, w, 4 widths[-1]] before pooling."""
        config = self.config
        pool_strides = config.stem_strides[1]
        halvings = sum(strides > 1 for strides in config.stem_strides) + len(config.blocks) - 1
        self._check_images(x, smallest=network.smallest_input(halvings=halvings))
        with jax.named_scope("stem"):
            x = jax.nn.relu(self.stem(x, train=train))  # 224: [N, 112, 112, 64]
            if pool_strides > 1:
                pads = ((1, 1), (1, 1))
                # 224: [N, 56, 56, 64]
                x = ops.max_pool(x, 3, strides=pool_strides, padding=pads, implementation=config.implementation)
        for i, stage in enumerate(self.stages):
            for j, block in enumerate(stage):
                with jax.named_scope(f"stage_{i}_block_{j}"):
                    # 224: [N, 56, 56, 256], [N, 28, 28, 512], [N, 14, 14, 1024], [N, 7, 7, 2048]
                    x = block(x, train=train)
        return x
