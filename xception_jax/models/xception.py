"""Xception: a linear stack of depthwise separable convolutions with residual connections.

F. Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017, figure 5:
36 convolutional layers in 14 modules, residual connections around all but the first and the last.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from xception_jax import ops
from xception_jax.layers import ACTIVATIONS, KERNEL_INIT, BatchNorm, ConvBN, SeparableConvBN
from xception_jax.models.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What figure 5 fixes and the paper's experiments vary; the defaults are the paper's ImageNet network.

    Attributes:
      num_classes: outputs of the logistic regression.
      in_channels: of the images; 3 = RGB.
      dropout: rate before the logistic regression (0.5 for ImageNet, 0 for JFT; section 4.3).
      fc_layers: widths of fully connected ReLU layers before it, (4096, 4096) in figure 8.
      residual: False drops all 12 residual connections (figure 9).
      intermediate_activation: between depthwise and pointwise convolution (figure 10).
      segments: of the spatial convolutions: None = one per channel (depthwise), 1 = a regular convolution;
        where the number does not divide the channels, near-equal segments; at most one per channel.
      stem_widths, stem_strides, stem_padding: the two convolutions of module 1. Strides (1, 1) and "SAME"
        suit images of a few dozen pixels.
      entry_widths: of the halving modules 2-4; the last is the middle flow's width.
      middle_blocks: identity modules of three separable convolutions, 5-12.
      exit_widths: the last layer of module 13, then the two layers of module 14.
      bn_epsilon, bn_momentum: today's Keras values. The paper gives none; Keras had epsilon 1e-5 in 2016.
      bn_group_size: images for each set of training statistics; None = the whole batch.
      implementation: of convolutions and pooling, see `ops`; None = the fastest measured for the platform.
      remat: keep only the input of modules 2-13 for the backward pass and compute the rest again. XLA's CPU
        backend undoes it in jax 0.10, unless scan_middle is set too.
      scan_middle: compile one identity module and loop over all; the loop copies what the backward pass needs.
      dtype: of the computation; parameters and statistics stay float32.
    """

    num_classes: int = 1000
    in_channels: int = 3
    dropout: float = 0.5
    fc_layers: tuple[int, ...] = ()
    residual: bool = True
    intermediate_activation: Literal["relu", "elu"] | None = None
    segments: int | None = None
    stem_widths: tuple[int, int] = (32, 64)
    stem_strides: tuple[int, int] = (2, 1)
    stem_padding: Literal["VALID", "SAME"] = "VALID"
    entry_widths: tuple[int, ...] = (128, 256, 728)
    middle_blocks: int = 8
    exit_widths: tuple[int, int, int] = (1024, 1536, 2048)
    bn_epsilon: float = 1e-3
    bn_momentum: float = 0.99
    bn_group_size: int | None = None
    implementation: Literal["xla", "shift"] | None = None
    remat: bool = False
    scan_middle: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        positive = ("num_classes", "in_channels", "segments", "bn_group_size", "bn_epsilon")
        widths = ("fc_layers", "stem_widths", "stem_strides", "entry_widths", "exit_widths")
        rules = [(name, getattr(self, name) is None or getattr(self, name) > 0, "above 0") for name in positive]
        rules += [(name, all(w > 0 for w in getattr(self, name)), "all above 0") for name in widths]
        rules += [
            ("dropout", 0 <= self.dropout < 1, "in [0, 1)"),
            ("bn_momentum", 0 <= self.bn_momentum < 1, "in [0, 1)"),
            ("middle_blocks", self.middle_blocks >= 0, "at least 0"),
            ("entry_widths", len(self.entry_widths) > 0, "one width or more"),
            ("exit_widths", len(self.exit_widths) == 3, "three widths"),
            ("stem_strides", len(self.stem_strides) == len(self.stem_widths), "as many as stem_widths"),
            ("stem_padding", self.stem_padding in ("VALID", "SAME"), "'VALID' or 'SAME'"),
            (
                "implementation",
                self.implementation in (None, *ops.IMPLEMENTATIONS),
                f"None or in {ops.IMPLEMENTATIONS}",
            ),
            (
                "intermediate_activation",
                self.intermediate_activation in (None, *ACTIVATIONS),
                f"None or one of {sorted(ACTIVATIONS)}",
            ),
        ]
        for name, holds, rule in rules:
            if not holds:
                raise ValueError(f"{name} = {getattr(self, name)}: must be {rule}")


class Module(nnx.Module):
    """One of modules 2-13: separable convolutions, each after a ReLU, around them a residual connection.

    With `downsample` a 3x3 max-pooling of stride 2 follows them and the connection is a 1x1 convolution of
    stride 2 with batch normalization; otherwise it is the identity. Nothing comes after the addition: the
    next module's ReLU acts on the sum, its shortcut reads the sum itself.
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
        norm: functools.partial,
        implementation: str | None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        inputs = (features_in, *widths[:-1])
        self.separable = nnx.List([separable(i, o) for i, o in zip(inputs, widths, strict=True)])
        if residual and downsample:
            self.shortcut = ConvBN(
                features_in,
                widths[-1],
                1,
                strides=2,
                norm=norm,
                implementation=implementation,
                dtype=dtype,
                rngs=rngs,
            )
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


class Xception(nnx.Module):
    """The network of figure 5. State: parameters and batch statistics, nothing else."""

    PREPROCESSING = Preprocessing(
        image_size=299, mean=0.5, std=0.5, crop="central", crop_fraction=0.875, resize="bilinear"
    )
    CONFIG = Config

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        dtype = jnp.dtype(config.dtype)
        # In bfloat16 many logits would be equal.
        logits = jnp.dtype(jnp.float32) if dtype.itemsize < 4 else dtype
        norm = functools.partial(
            BatchNorm,
            momentum=config.bn_momentum,
            epsilon=config.bn_epsilon,
            group_size=config.bn_group_size,
            dtype=dtype,
        )
        shared = {"norm": norm, "implementation": config.implementation, "dtype": dtype, "rngs": rngs}
        separable = functools.partial(
            SeparableConvBN,
            segments=config.segments,
            intermediate_activation=config.intermediate_activation,
            **shared,
        )
        module = functools.partial(Module, residual=config.residual, separable=separable, **shared)

        self.stem = nnx.List()  # module 1
        width = config.in_channels
        for features, strides in zip(config.stem_widths, config.stem_strides, strict=True):
            self.stem.append(ConvBN(width, features, 3, strides=strides, padding=config.stem_padding, **shared))
            width = features
        self.entry = nnx.List()  # modules 2-4; the stem ends with a ReLU, so module 2 has none in front
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
        self.fc = nnx.List()
        linear = functools.partial(nnx.Linear, kernel_init=KERNEL_INIT, rngs=rngs)
        for features in config.fc_layers:
            self.fc.append(linear(width, features, dtype=dtype))
            width = features
        self.dropout = nnx.Dropout(config.dropout)
        self.classifier = linear(width, config.num_classes, dtype=logits)

    def features(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Normalized images float[N, H, W, in_channels] -> float[N, h, w, exit_widths[-1]] before pooling.

        Raises:
          ValueError: if the images are too small for an unpadded stem.
        """
        if x.ndim != 4 or x.shape[-1] != self.config.in_channels:
            raise ValueError(f"images must be [N, H, W, {self.config.in_channels}]; got {x.shape}")
        if min(x.shape[1:3]) < (least := self._smallest_size()):
            raise ValueError(
                f"images of {x.shape[1:3]} pixels are too small: need {least}, or stem_padding 'SAME'"
            )
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

    def _module(self, module: Module, x: jax.Array, train: bool) -> jax.Array:
        """One of modules 2-13, float[N, h, w, C] -> its output."""
        if self.config.remat:
            return nnx.remat(lambda module, x: module(x, train=train))(module, x)
        return module(x, train=train)

    def _scan_middle(self, x: jax.Array, train: bool) -> jax.Array:
        """The middle flow as a loop over its modules' stacked variables."""
        graphdefs, *states = zip(
            *(nnx.split(module, nnx.Param, nnx.BatchStat) for module in self.middle), strict=True
        )
        stacked = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *state) for state in states]  # [blocks, ...]

        def body(x, state):
            module = nnx.merge(graphdefs[0], *state)
            x = self._module(module, x, train)
            return x, nnx.state(module, nnx.BatchStat)

        with jax.named_scope("middle"):
            x, statistics = jax.lax.scan(body, x, tuple(stacked))
        for i, module in enumerate(self.middle):
            nnx.update(module, jax.tree.map(lambda leaf, i=i: leaf[i], statistics))
        return x

    def _smallest_size(self) -> int:
        """Height and width that leave one pixel after the stem."""
        size = 1
        for strides in reversed(self.config.stem_strides):
            size = (size - 1) * strides + (3 if self.config.stem_padding == "VALID" else 1)
        return size

    def __call__(self, x: jax.Array, *, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """Normalized images float[N, H, W, in_channels] -> logits float32[N, num_classes].

        Args:
          x: images, normalized as `PREPROCESSING` says.
          train: use and update batch statistics, apply dropout.
          key: PRNG key of the dropout; needed if `train` and `config.dropout` > 0.
        """
        if train and self.config.dropout and key is None:
            raise ValueError(f"key = None: training with dropout = {self.config.dropout} needs a PRNG key")
        x = self.features(x, train=train)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)  # [N, C]
        for linear in self.fc:
            x = jax.nn.relu(linear(x))  # [N, width]
        x = self.dropout(x, deterministic=not train, rngs=key)
        return self.classifier(x)  # [N, num_classes]
