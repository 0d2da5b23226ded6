"""Layers that several models share: batch normalization, convolution + BN, separable convolution + BN."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from xception_jax import ops
from xception_jax.ops.windows import Pair

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"relu": jax.nn.relu, "elu": jax.nn.elu}

# Keras's default initialization, with which the published Xception was trained.
KERNEL_INIT = nnx.initializers.glorot_uniform()


class BatchNorm(nnx.Module):
    """Batch normalization over all axes but the last (Ioffe and Szegedy 2015), with statistics in float32.

    The biased variance is used both for normalization and in the running average. With `group_size`, training
    statistics are computed over groups of that many consecutive images, as each replica of a data-parallel run
    would compute them, and the running statistics move towards the mean over the groups. The result depends on the
    order of the images in the batch, but not on the number of devices.

    Args:
      features: number of channels C.
      momentum: decay of the running statistics in each step (Keras's convention; torch's momentum = 1 - this).
      epsilon: added to the variance, inside the root.
      group_size: number of images that share training statistics; None: the whole batch, over all devices.
      dtype: type of the output.

    Attributes:
      scale, bias: trained parameters, float[C]; scale is None without `use_scale`.
      mean, var: running statistics, float[C].
    """

    def __init__(
        self,
        features: int,
        *,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        group_size: int | None = None,
        use_scale: bool = True,
        dtype: jnp.dtype = jnp.float32,
    ):
        self.scale = nnx.Param(jnp.ones(features)) if use_scale else None
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))
        self.momentum, self.epsilon, self.group_size, self.dtype = momentum, epsilon, group_size, dtype

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalizes x, float[N, ..., C], by the running statistics.

        With `train`, normalizes by the statistics of x itself and updates the running statistics.

        Raises:
          ValueError: if N is no multiple of `group_size` in training.
        """
        scale = jnp.ones_like(self.bias[...]) if self.scale is None else self.scale[...]  # [C]
        if train:
            group = self.group_size or len(x)
            if len(x) % group:
                raise ValueError(f"a batch of {len(x)} images does not divide into groups of {group}")
            groups = x.reshape(len(x) // group, group, *x.shape[1:])  # [G, group, ..., C]
            y, mean, var = ops.normalize(groups, scale, self.bias[...], epsilon=self.epsilon, dtype=self.dtype)
            for running, batch in ((self.mean, mean), (self.var, var)):  # batch: [G, C]
                # `running[...] = value` would ask a traced value for its sharding, and search the whole program.
                running.set_value(self.momentum * running[...] + (1 - self.momentum) * jnp.mean(batch, 0))
            return y.reshape(x.shape)
        factor = scale * jax.lax.rsqrt(self.var[...] + self.epsilon)  # [C]
        shape = (1,) * (x.ndim - 1) + (-1,)
        mean, factor, bias = (v.reshape(shape) for v in (self.mean[...], factor, self.bias[...]))
        return ((x.astype(factor.dtype) - mean) * factor + bias).astype(self.dtype)


class Conv(nnx.Module):
    """Convolution with kernel float[kh, kw, features_in, features] and, with `use_bias`, a bias float[features].

    Args:
      features_in, features: numbers of channels of the input and the output.
      kernel_size: one number, or (rows, columns).
      strides, padding, implementation: as in `ops.conv`.
      kernel_init: initializer of the kernel; the bias starts at 0.
      dtype: type of the computation; parameters are float32.
    """

    def __init__(
        self,
        features_in: int,
        features: int,
        kernel_size: int | Pair,
        *,
        strides: int = 1,
        padding: str | Sequence[Pair] = "SAME",
        use_bias: bool = False,
        kernel_init: nnx.Initializer = KERNEL_INIT,
        implementation: str | None = None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        window = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        self.kernel = nnx.Param(kernel_init(rngs.params(), (*window, features_in, features)))
        self.bias = nnx.Param(jnp.zeros(features)) if use_bias else None
        self.strides, self.padding, self.implementation, self.dtype = strides, padding, implementation, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        x = ops.conv(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            strides=self.strides,
            padding=self.padding,
            implementation=self.implementation,
        )  # [N, H / strides, W / strides, features]
        return x if self.bias is None else x + self.bias[...].astype(self.dtype)[None, None, None]


class ConvBN(nnx.Module):
    """Convolution followed by batch normalization.

    Args:
      features_in, features, kernel_size: as in `Conv`.
      norm: makes the normalization from its number of channels.
      **conv: other arguments of `Conv`.
    """

    def __init__(
        self, features_in: int, features: int, kernel_size: int | Pair, *, norm: Callable[[int], BatchNorm], **conv
    ):
        self.conv = Conv(features_in, features, kernel_size, **conv)
        self.bn = norm(features)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.bn(self.conv(x), train=train)  # [N, H / strides, W / strides, features]


class SpatialConv(nnx.Module):
    """3x3 convolution within each of `segments` segments of the channels.

    None means one segment per channel, which is the depthwise convolution.
    """

    def __init__(
        self,
        features: int,
        segments: int | None,
        *,
        implementation: str | None = None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        parts = ops.partition(features, features if segments is None else segments)
        self.kernels = nnx.List(
            [nnx.Param(KERNEL_INIT(rngs.params(), (3, 3, width, n * width))) for n, width in parts]
        )
        self.implementation, self.dtype = implementation, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        kernels = [kernel[...].astype(self.dtype) for kernel in self.kernels]
        return ops.segmented_conv(
            x.astype(self.dtype), kernels, implementation=self.implementation
        )  # [N, H, W, features]


class SeparableConvBN(nnx.Module):
    """Depthwise (or segmented) 3x3 convolution, pointwise 1x1 convolution and batch normalization.

    There is no activation between the two convolutions (Chollet 2017, section 1.2), unless
    `intermediate_activation` is set (figure 10). The pointwise convolution is a matrix product over the channels.

    Args:
      features_in, features: numbers of channels of the input and the output.
      segments, implementation: of the depthwise convolution, as in `SpatialConv` and `ops.depthwise_conv`.
      intermediate_activation: a key of `ACTIVATIONS`, or None.
      norm: makes the normalization from its number of channels.
      dtype: type of the computation; parameters are float32.
    """

    def __init__(
        self,
        features_in: int,
        features: int,
        *,
        segments: int | None = None,
        implementation: str | None = None,
        intermediate_activation: str | None = None,
        norm: Callable[[int], BatchNorm],
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.depthwise = SpatialConv(features_in, segments, implementation=implementation, dtype=dtype, rngs=rngs)
        self.pointwise = nnx.Linear(
            features_in, features, use_bias=False, kernel_init=KERNEL_INIT, dtype=dtype, rngs=rngs
        )
        self.bn = norm(features)
        self.intermediate_activation = intermediate_activation

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = self.depthwise(x)  # [N, H, W, features_in]
        if self.intermediate_activation is not None:
            x = ACTIVATIONS[self.intermediate_activation](x)
        n, height, width, channels = x.shape
        # On two dimensions the backward pass needs no transposition.
        x = self.pointwise(x.reshape(-1, channels))  # [N H W, features]
        return self.bn(x.reshape(n, height, width, -1), train=train)  # [N, H, W, features]
