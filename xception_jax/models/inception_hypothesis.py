"""The Inception hypothesis as four modules: figures 1-4 of Chollet 2017, from an Inception module to its extreme.

Each module maps float[N, H, W, features_in] to float[N, H, W, features]. The modules have no batch normalization,
so that their common structure is easy to see. `activation` follows every convolution: "relu" (as in Inception),
"elu" or None. Another activation, and fewer than one tower or segment, raise SettingError.

    figure 1  CanonicalModule   towers of 1x1, 1x1 - 3x3, 1x1 - 3x3 - 3x3 and average pooling - 1x1
    figure 2  SimplifiedModule  towers of 1x1 - 3x3 only
    figure 3  SegmentedModule   one 1x1, then a 3x3 on each segment of its channels: the same function as figure 2
    figure 4  ExtremeModule     one 1x1, then a 3x3 on each channel
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from xception_jax import ops
from xception_jax.errors import SettingError
from xception_jax.layers import ACTIVATIONS, Conv, SpatialConv


def _activation(name: str | None) -> Callable[[jax.Array], jax.Array]:
    if name is not None and name not in ACTIVATIONS:
        raise SettingError("activation", name, f"choose one of {sorted(ACTIVATIONS)} or None")
    return (lambda x: x) if name is None else ACTIVATIONS[name]


class CanonicalModule(nnx.Module):
    """Figure 1, as in Inception V3: towers with zero, one and two 3x3 convolutions, and one with average pooling.

    Args:
      widths: output channels of the four towers.
      reduced: channels after the 1x1 convolutions of the second and the third tower.
    """

    def __init__(
        self,
        features_in: int,
        widths: tuple[int, int, int, int],
        *,
        reduced: tuple[int, int],
        activation: str | None = "relu",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        conv = functools.partial(Conv, dtype=dtype, rngs=rngs)
        first, second, third, last = widths
        towers = (
            [conv(features_in, first, 1)],
            [conv(features_in, reduced[0], 1), conv(reduced[0], second, 3)],
            [conv(features_in, reduced[1], 1), conv(reduced[1], third, 3), conv(third, third, 3)],
            [conv(features_in, last, 1)],
        )
        self.towers = nnx.List([nnx.List(tower) for tower in towers])
        self.activation = _activation(activation)

    def __call__(self, x: jax.Array) -> jax.Array:
        pooled = ops.avg_pool(x, 3, strides=1)  # [N, H, W, features_in]
        outputs = []
        for tower, y in zip(self.towers, (x, x, x, pooled), strict=True):
            for conv in tower:
                y = self.activation(conv(y))
            outputs.append(y)  # [N, H, W, width]
        return jnp.concatenate(outputs, axis=-1)  # [N, H, W, sum of widths]


class SimplifiedModule(nnx.Module):
    """Figure 2: parallel towers of a 1x1 and a 3x3 convolution, whose widths add up to `features`."""

    def __init__(
        self,
        features_in: int,
        features: int,
        *,
        towers: int,
        activation: str | None = "relu",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if towers < 1:
            raise SettingError("towers", towers, "must be at least 1")
        conv = functools.partial(Conv, dtype=dtype, rngs=rngs)
        widths = [width for count, width in ops.partition(features, towers) for _ in range(count)]
        self.pointwise = nnx.List([conv(features_in, width, 1) for width in widths])
        self.spatial = nnx.List([conv(width, width, 3) for width in widths])
        self.activation = _activation(activation)

    def __call__(self, x: jax.Array) -> jax.Array:
        towers = zip(self.pointwise, self.spatial, strict=True)
        outputs = [self.activation(spatial(self.activation(pointwise(x)))) for pointwise, spatial in towers]
        return jnp.concatenate(outputs, axis=-1)  # [N, H, W, features]


class SegmentedModule(nnx.Module):
    """Figure 3: one 1x1 convolution, then a 3x3 convolution on each of `segments` parts of its channels.

    With one segment, this is a 1x1 convolution followed by a regular convolution; with one segment per channel
    (`segments` = None), it is figure 4. All other modules of this form lie between the two (section 1.2).
    """

    def __init__(
        self,
        features_in: int,
        features: int,
        *,
        segments: int | None,
        activation: str | None = "relu",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.pointwise = Conv(features_in, features, 1, dtype=dtype, rngs=rngs)
        self.spatial = SpatialConv(features, segments, dtype=dtype, rngs=rngs)
        self.activation = _activation(activation)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.activation(self.pointwise(x))  # [N, H, W, features]
        return self.activation(self.spatial(x))


class ExtremeModule(SegmentedModule):
    """Figure 4: a 1x1 convolution, then one segment per channel.

    A depthwise separable convolution has the two convolutions in the opposite order.
    """

    def __init__(self, features_in: int, features: int, **options):
        super().__init__(features_in, features, segments=None, **options)


def merge_towers(module: SimplifiedModule, *, rngs: nnx.Rngs) -> SegmentedModule:
    """The module of figure 3 that computes the same function as a module of figure 2.

    The 1x1 convolutions of the towers become one 1x1 convolution, and their 3x3 convolutions become the segments.
    All initial parameters that `rngs` makes are replaced by copies of the module's.
    """
    pointwise = [conv.kernel[...] for conv in module.pointwise]  # each [1, 1, features_in, width]
    spatial = [conv.kernel[...] for conv in module.spatial]  # each [3, 3, width, width]
    features_in, features = pointwise[0].shape[2], sum(kernel.shape[3] for kernel in pointwise)
    merged = SegmentedModule(
        features_in, features, segments=len(spatial), dtype=module.spatial[0].dtype, rngs=rngs
    )
    merged.activation = module.activation
    merged.pointwise.kernel = nnx.Param(jnp.concatenate(pointwise, axis=3))  # [1, 1, features_in, features]
    by_width = itertools.groupby(spatial, lambda kernel: kernel.shape[2])  # wider ones come first
    merged.spatial.kernels = nnx.List(
        [nnx.Param(jnp.concatenate([*kernels], axis=3)) for _, kernels in by_width]  # [3, 3, width, count * width]
    )
    return merged
