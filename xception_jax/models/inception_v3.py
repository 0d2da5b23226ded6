"""Inception V3 without its auxiliary tower: the network with which the paper compares Xception.

C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna, "Rethinking the Inception Architecture for Computer
Vision", CVPR 2016; Chollet 2017, sections 4.3 and 4.5, tables 1-3: 94 convolutional layers.

Two networks have this name. "canonical" is the network of TF-Slim, and of Keras since 2017; it has 23,817,352
parameters. "paper" is the network of Keras in 2016, the only one that has the 23,626,728 parameters of table 3.
They differ in

                                                        canonical                 paper
    features of the pooling towers on the 35x35 grid    32, 64, 64                32, 32, 32
    first features of the double 7x7 tower in the
    last module on the 17x17 grid                       192                       160
    order of layers                                     convolution,              convolution with bias,
                                                        normalization, ReLU       ReLU, normalization with scale
    pooling from the 17x17 to the 8x8 grid              maximum                   average
"""

import functools
from typing import ClassVar, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import pydantic
from flax import nnx
from pydantic import NonNegativeInt

from xception_jax import ops
from xception_jax.errors import SettingError
from xception_jax.layers import ConvBN
from xception_jax.models import network
from xception_jax.models.network import NormalizedConfig, Triple
from xception_jax.settings import setting


class Reading(NamedTuple):
    """The differences between the two networks, in the order of the table at the top of the file."""

    pool_features: tuple[int, int, int]  # by module on the 35x35 grid
    first_features: tuple[int, int, int, int]  # by module on the 17x17 grid
    relu_first: bool
    last_pool: Literal["average", "max"]


READINGS = {
    "canonical": Reading((32, 64, 64), (128, 160, 160, 192), relu_first=False, last_pool="max"),
    "paper": Reading((32, 32, 32), (128, 160, 160, 160), relu_first=True, last_pool="average"),
}
INNER_FEATURES = (128, 160, 160, 192)  # features of the other inner layers of the 7x7 towers, by module
MODULES = (3, 4, 2)  # number of modules on the 35x35, 17x17 and 8x8 grid


class Config(NormalizedConfig):
    """The defaults are the canonical network, with the dropout that Chollet 2017 uses on ImageNet (section 4.3).

    Stem strides (1, 1, 1) and padding "SAME" suit images of a few dozen pixels. All layers to which `padding` does
    not apply have padding "SAME".
    """

    reading: Literal["canonical", "paper"] = setting(
        "canonical",
        "which Inception V3: canonical = that of TF-Slim, and of Keras since 2017; paper = that of Keras in 2016",
    )
    width: float = setting(1.0, "multiplier of the features of every convolution; results are rounded", gt=0)
    modules: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt] = setting(
        MODULES, "number of modules on the 35x35, 17x17 and 8x8 grid; lower numbers leave out the last modules"
    )
    stem_strides: Triple = setting(
        (2, 2, 2),
        "strides of the stem's first convolution and its two max-poolings; stride 1 leaves the pooling out",
    )
    padding: Literal["VALID", "SAME"] = setting(
        "VALID",
        "padding of the layers that halve a grid, the stem's poolings, and its first, second and last convolution",
    )

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if any(count > most for count, most in zip(self.modules, MODULES, strict=True)):
            raise SettingError("modules", self.modules, f"can be at most {MODULES}")
        return self

    def scaled(self, features: int) -> int:
        """The number of features of a convolution that has `features` features at width 1."""
        return max(1, round(features * self.width))


class ConvBNReLU(ConvBN):
    """Convolution, batch normalization and ReLU; with `relu_first`, ReLU comes before the normalization."""

    def __init__(self, *args, relu_first: bool, **kwargs):
        super().__init__(*args, **kwargs)
        self.relu_first = relu_first

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.relu_first:
            return self.bn(jax.nn.relu(self.conv(x)), train=train)  # [N, H / strides, W / strides, features]
        return jax.nn.relu(super().__call__(x, train=train))  # [N, H / strides, W / strides, features]


class Tower(nnx.Module):
    """One branch of a module: an optional pooling, then a sequence of convolutions.

    Args:
      *layers: (features, rows of the kernel, columns of the kernel) of each convolution.
      fork: the same for parallel convolutions after the last of `layers`; their outputs are concatenated.
      pool: kind of the 3x3 pooling before the convolutions; None: no pooling.
      strides: strides of the last of `layers`, or of the pooling if there are no layers; 2 halves the grid.
      conv: makes a `ConvBNReLU` from channels, kernel size, strides and padding.

    Attributes:
      features: number of channels of the output.
    """

    def __init__(
        self,
        features_in: int,
        *layers: tuple[int, int, int],
        fork: tuple[tuple[int, int, int], ...] = (),
        pool: Literal["average", "max"] | None = None,
        strides: int = 1,
        config: Config,
        conv: functools.partial,
    ):
        last = {"strides": strides, "padding": "SAME" if strides == 1 else config.padding}
        width = features_in
        self.convs = nnx.List()
        for i, (features, *kernel_size) in enumerate(layers, 1):
            options = last if i == len(layers) else {}
            self.convs.append(conv(width, config.scaled(features), tuple(kernel_size), **options))
            width = config.scaled(features)
        self.fork = nnx.List([conv(width, config.scaled(features), tuple(size)) for features, *size in fork])
        self.features = sum(config.scaled(features) for features, *_ in fork) or width
        self.pool, self.implementation = pool, config.implementation
        self.strides, self.padding = (1, "SAME") if layers else (strides, last["padding"])

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if self.pool == "average":
            x = ops.avg_pool(x, 3, strides=self.strides, padding=self.padding)  # [N, H / strides, W / strides, C]
        elif self.pool == "max":
            x = ops.max_pool(
                x, 3, strides=self.strides, padding=self.padding, implementation=self.implementation
            )  # [N, H / strides, W / strides, C]
        for conv in self.convs:
            x = conv(x, train=train)  # [N, H / strides, W / strides, features of the layer]
        if self.fork:
            x = jnp.concatenate([conv(x, train=train) for conv in self.fork], axis=-1)  # [N, H, W, features]
        return x


class Mixed(nnx.Module):
    """Towers side by side, which read the same input; their outputs are concatenated."""

    def __init__(self, *towers: Tower):
        self.towers = nnx.List(towers)
        self.features = sum(tower.features for tower in towers)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        outputs = []
        for i, tower in enumerate(self.towers):
            with jax.named_scope(f"tower_{i}"):
                outputs.append(tower(x, train=train))
        return jnp.concatenate(outputs, axis=-1)  # [N, H / strides, W / strides, features]


# In these functions, `tower` makes a `Tower` from its layers.


def module_35(tower: functools.partial, pool_features: int) -> Mixed:
    """The Inception module on the 35x35 grid."""
    return Mixed(
        tower((64, 1, 1)),
        tower((48, 1, 1), (64, 5, 5)),
        tower((64, 1, 1), (96, 3, 3), (96, 3, 3)),
        tower((pool_features, 1, 1), pool="average"),
    )


def reduction_35(tower: functools.partial) -> Mixed:
    """The module that halves the 35x35 to the 17x17 grid."""
    return Mixed(
        tower((384, 3, 3), strides=2),
        tower((64, 1, 1), (96, 3, 3), (96, 3, 3), strides=2),
        tower(pool="max", strides=2),
    )


def module_17(tower: functools.partial, first: int, inner: int) -> Mixed:
    """The Inception module on the 17x17 grid, whose 7x7 convolutions are factorized into 1x7 and 7x1 convolutions.

    The first layer of the double 7x7 tower has `first` features; the other layers of the 7x7 towers, except their
    last, have `inner` features.
    """
    return Mixed(
        tower((192, 1, 1)),
        tower((inner, 1, 1), (inner, 1, 7), (192, 7, 1)),
        tower((first, 1, 1), (inner, 7, 1), (inner, 1, 7), (inner, 7, 1), (192, 1, 7)),
        tower((192, 1, 1), pool="average"),
    )


def reduction_17(tower: functools.partial, pool: Literal["average", "max"]) -> Mixed:
    """The module that halves the 17x17 to the 8x8 grid."""
    return Mixed(
        tower((192, 1, 1), (320, 3, 3), strides=2),
        tower((192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3), strides=2),
        tower(pool=pool, strides=2),
    )


def module_8(tower: functools.partial) -> Mixed:
    """The Inception module on the 8x8 grid; two of its towers end in parallel 1x3 and 3x1 convolutions."""
    fork = (384, 1, 3), (384, 3, 1)
    return Mixed(
        tower((320, 1, 1)),
        tower((384, 1, 1), fork=fork),
        tower((448, 1, 1), (384, 3, 3), fork=fork),
        tower((192, 1, 1), pool="average"),
    )


class InceptionV3(network.Network):
    """Inception V3; `config.reading` selects one of the two networks with this name."""

    PREPROCESSING = network.preprocessing(image_size=299, crop="central")
    SMALL: ClassVar = {"width": 0.1, "modules": (1, 0, 0), "padding": "SAME"}
    CONFIG = Config

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        reading = READINGS[config.reading]
        shared = network.layer_options(config, rngs=rngs, use_scale=reading.relu_first)
        conv = functools.partial(ConvBNReLU, relu_first=reading.relu_first, use_bias=reading.relu_first, **shared)
        width = self._add_stem(conv)
        on_35, on_17, on_8 = config.modules
        inner = zip(reading.first_features, INNER_FEATURES, strict=True)
        builders = [
            *[functools.partial(module_35, pool_features=features) for features in reading.pool_features][:on_35],
            reduction_35,
            *[functools.partial(module_17, first=first, inner=rest) for first, rest in inner][:on_17],
            functools.partial(reduction_17, pool=reading.last_pool),
            *[module_8] * on_8,
        ]
        self.mixed = nnx.List()
        for build in builders:
            self.mixed.append(build(functools.partial(Tower, width, config=config, conv=conv)))
            width = self.mixed[-1].features
        self._add_head(width, rngs=rngs)

    def _add_stem(self, conv: functools.partial) -> int:
        """Adds the stem's convolutions, two parts with a max-pooling after each; returns the output channels."""
        config = self.config
        padding = {"padding": config.padding}
        first = {"strides": config.stem_strides[0]} | padding
        parts = [(32, 3, first), (32, 3, padding), (64, 3, {})], [(80, 1, {}), (192, 3, padding)]
        width = config.in_channels
        self.stem = nnx.List()
        for part in parts:
            self.stem.append(nnx.List())
            for features, kernel_size, options in part:
                self.stem[-1].append(conv(width, config.scaled(features), kernel_size, **options))
                width = config.scaled(features)
        return width

    def features(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Normalized images float[N, H, W, in_channels] -> float[N, h, w, C] before pooling."""
        alternative = "padding = 'SAME'" if self.config.padding == "VALID" else ""
        self._check_images(x, smallest=self._smallest_input(), alternative=alternative)
        with jax.named_scope("stem"):
            x = self._stem(x, train)  # 299: [N, 35, 35, 192]
        for i, mixed in enumerate(self.mixed):
            with jax.named_scope(f"mixed_{i}"):
                # 299: [N, 35, 35, 256], [N, 35, 35, 288] twice, [N, 17, 17, 768] five times, [N, 8, 8, 1280],
                # [N, 8, 8, 2048] twice; "paper": [N, 35, 35, 256] three times, [N, 17, 17, 736], then the same
                x = mixed(x, train=train)
        return x

    def _stem(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalized images float[N, H, W, in_channels] -> features float[N, h, w, C] of the stem."""
        config = self.config
        for part, strides in zip(self.stem, config.stem_strides[1:], strict=True):
            for conv in part:
                # 299: [N, 149, 149, 32], [N, 147, 147, 32], [N, 147, 147, 64]; [N, 73, 73, 80], [N, 71, 71, 192]
                x = conv(x, train=train)
            if strides > 1:
                x = ops.max_pool(
                    x, 3, strides=strides, padding=config.padding, implementation=config.implementation
                )  # 299: [N, 73, 73, 64]; [N, 35, 35, 192]
        return x

    def _smallest_input(self) -> int:
        """The least height and width of an input that the stem and the reductions can take."""
        if self.config.padding == "SAME":
            return network.smallest_input(halvings=sum(s > 1 for s in self.config.stem_strides) + 2)
        first, *pools = self.config.stem_strides
        middle, last = ((3, strides) if strides > 1 else (1, 1) for strides in pools)
        return network.smallest_input((3, first), (3, 1), middle, (3, 1), last, (3, 2), (3, 2))
