"""Xception: a linear stack of depthwise separable convolutions with residual connections.

F. Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017, figure 5:
36 convolutional layers in 14 modules; all modules but the first and the last have residual connections.
"""

import functools
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from pydantic import PositiveInt

from xception_jax import ops
from xception_jax.layers import ConvBN, SeparableConvBN
from xception_jax.models import network
from xception_jax.models.network import NormalizedConfig, Pair, Triple
from xception_jax.settings import setting, zero_is_none


class Config(NormalizedConfig):
    """The network of figure 5, and what the paper's experiments vary; the defaults are the paper's on ImageNet.

    The paper trains with dropout 0.5 on ImageNet and without on JFT (section 4.3), and with fully connected layers
    (4096, 4096) in figure 8. It gives no constants of batch normalization; Keras had epsilon 1e-5 in 2016.
    """

    residual: bool = setting(True, "residual connections; False removes all 12 of them (figure 9)")
    intermediate_activation: Literal["relu", "elu"] | None = setting(
        None, "activation between depthwise and pointwise convolution (figure 10)"
    )
    segments: Annotated[int | None, zero_is_none] = setting(
        None,
        "channel segments of spatial convolutions; 1: regular convolution, None: one per channel (depthwise)",
        gt=0,
    )
    stem_widths: Pair = setting((32, 64), "features of the two convolutions of module 1")
    stem_strides: Pair = setting(
        (2, 1), "strides of both convolutions of module 1; (1, 1) suits images of a few dozen pixels"
    )
    stem_padding: Literal["VALID", "SAME"] = setting(
        "VALID", "padding of both convolutions of module 1; SAME suits images of a few dozen pixels"
    )
    entry_widths: tuple[PositiveInt, ...] = setting(
        (128, 256, 728),
        "features of modules 2-4, which halve the image; the last number is the width of the middle flow",
        min_length=1,
    )
    middle_blocks: int = setting(8, "number of modules in the middle flow; the paper's 8 are modules 5-12", ge=0)
    exit_widths: Triple = setting(
        (1024, 1536, 2048), "features of the last layer of module 13 and of both layers of module 14"
    )
    remat: bool = setting(
        False,
        "recompute modules 2-13 in the backward pass; on CPU under jax 0.10 this needs scan_middle too",
        free=True,
    )
    scan_middle: bool = setting(
        False,
        "compile one module of the middle flow and loop over all, which takes less time to compile",
        free=True,
    )


class ResidualModule(nnx.Module):
    """One of modules 2-13: separable convolutions, each preceded by a ReLU, and a residual connection around them.

    With `downsample`, the convolutions are followed by a 3x3 max-pooling of stride 2, and the residual connection
    is a 1x1 convolution of stride 2 with batch normalization; otherwise it is the identity. No activation follows
    the addition: the next module applies its ReLU to the sum, while its residual connection reads the sum itself.
    """

    def __init__(
        self,
        features_in: int,
        widths: tuple[int, ...],
        *,
        downsample: bool,
        leading_relu: bool = True,
        residual: bool,
        separable: functools.partial,
        conv: functools.partial,
        implementation: str | None,
    ):
        inputs = (features_in, *widths[:-1])
        self.separable = nnx.List([separable(i, o) for i, o in zip(inputs, widths, strict=True)])
        if residual and downsample:
            self.shortcut = conv(features_in, widths[-1], 1, strides=2)
        self.downsample, self.leading_relu, self.residual = downsample, leading_relu, residual
        self.implementation = implementation

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        shortcut = x
        for i, separable in enumerate(self.separable):
            if i > 0 or self.leading_relu:
                x = jax.nn.relu(x)
            with jax.named_scope(f"separable_{i}"):
                x = separable(x, train=train)
        if self.downsample:
            x = ops.max_pool(x, 3, strides=2, implementation=self.implementation)  # [N, H / 2, W / 2, C]
        if not self.residual:
            return x
        if self.downsample:
            with jax.named_scope("shortcut"):
                shortcut = self.shortcut(shortcut, train=train)  # [N, H / 2, W / 2, C]
        return x + shortcut


class Xception(network.Network):
    """The network of figure 5."""

    PREPROCESSING = network.preprocessing(image_size=299, crop="central")
    SMALL: ClassVar = {"entry_widths": (32, 64), "middle_blocks": 1, "exit_widths": (64, 96, 128)}
    CONFIG = Config

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        shared = network.layer_options(config, rngs=rngs)
        conv = functools.partial(ConvBN, **shared)
        separable = functools.partial(
            SeparableConvBN,
            segments=config.segments,
            intermediate_activation=config.intermediate_activation,
            **shared,
        )
        module = functools.partial(
            ResidualModule,
            residual=config.residual,
            separable=separable,
            conv=conv,
            implementation=config.implementation,
        )

        self.stem = nnx.List()  # module 1
        width = config.in_channels
        for features, strides in zip(config.stem_widths, config.stem_strides, strict=True):
            self.stem.append(conv(width, features, 3, strides=strides, padding=config.stem_padding))
            width = features
        self.entry = nnx.List()  # modules 2-4; the stem ends with a ReLU, so module 2 does not begin with one
        for i, features in enumerate(config.entry_widths):
            self.entry.append(module(width, (features,) * 2, downsample=True, leading_relu=i > 0))
            width = features
        self.middle = nnx.List(  # modules 5-12
            [module(width, (width,) * 3, downsample=False) for _ in range(config.middle_blocks)]
        )
        reduced, *last = config.exit_widths
        self.exit = module(width, (width, reduced), downsample=True)  # module 13
        self.final = nnx.List()  # module 14
        width = reduced
        for features in last:
            self.final.append(separable(width, features))
            width = features
        self._add_head(width, rngs=rngs)

    def features(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Normalized images float[N, H, W, in_channels] -> float[N, h, w, exit_widths[-1]] before pooling."""
        unpadded = self.config.stem_padding == "VALID"
        windows = [(3 if unpadded else 1, strides) for strides in self.config.stem_strides]
        smallest = network.smallest_input(*windows, halvings=len(self.entry) + 1)
        self._check_images(x, smallest=smallest, alternative="stem_padding = 'SAME'" if unpadded else "")
        for i, conv in enumerate(self.stem):
            with jax.named_scope(f"stem_{i}"):
                x = jax.nn.relu(conv(x, train=train))  # 299: [N, 149, 149, 32], [N, 147, 147, 64]
        for i, module in enumerate(self.entry):
            with jax.named_scope(f"entry_{i}"):
                x = self._module(module, x, train)  # 299: [N, 74, 74, 128], [N, 37, 37, 256], [N, 19, 19, 728]
        if self.config.scan_middle and len(self.middle):
            x = self._scan_middle(x, train)  # 299: [N, 19, 19, 728]
        else:
            for i, module in enumerate(self.middle):
                with jax.named_scope(f"middle_{i}"):
                    x = self._module(module, x, train)  # 299: [N, 19, 19, 728]
        with jax.named_scope("exit"):
            x = self._module(self.exit, x, train)  # 299: [N, 10, 10, 1024]
        for i, separable in enumerate(self.final):
            with jax.named_scope(f"final_{i}"):
                x = jax.nn.relu(separable(x, train=train))  # 299: [N, 10, 10, 1536], [N, 10, 10, 2048]
        return x

    def _module(self, module: ResidualModule, x: jax.Array, train: bool) -> jax.Array:
        """Applies one of modules 2-13 to x, float[N, h, w, C]; with `remat`, the backward pass recomputes it."""
        if self.config.remat:
            return nnx.remat(lambda module, x: module(x, train=train))(module, x)
        return module(x, train=train)

    def _scan_middle(self, x: jax.Array, train: bool) -> jax.Array:
        """Applies the middle flow as a loop over its modules, whose variables are stacked on a new first axis.

        The loop returns all variables that are no parameters, since a module may change them.
        """
        graphdefs, *states = zip(*(nnx.split(module, nnx.Param, ...) for module in self.middle), strict=True)
        stacked = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *state) for state in states]  # [blocks, ...]

        def body(x, state):
            module = nnx.merge(graphdefs[0], *state)
            x = self._module(module, x, train)
            return x, nnx.state(module, nnx.Not(nnx.Param))

        with jax.named_scope("middle"):
            x, others = jax.lax.scan(body, x, tuple(stacked))
        for i, module in enumerate(self.middle):
            nnx.update(module, jax.tree.map(lambda leaf, i=i: leaf[i], others))
        return x
