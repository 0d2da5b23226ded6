"""The spectrum between a regular and a depthwise convolution (Chollet 2017, section 1.2).

The channels are cut into contiguous segments, and each segment is convolved separately. One segment gives a
regular convolution, one segment per channel a depthwise convolution.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from xception_jax.errors import SettingError
from xception_jax.ops.convolution import conv
from xception_jax.ops.depthwise import depthwise_conv


def partition(channels: int, segments: int) -> list[tuple[int, int]]:
    """Cuts `channels` into `segments` parts whose widths differ by at most 1.

    Args:
      channels: number of channels.
      segments: number of parts; more parts than channels give one part per channel.

    Returns:
      [(number of parts, width of each), ...], wider parts first.

    Raises:
      SettingError: if there is less than one segment.

    >>> partition(728, 8)
    [(8, 91)]
    >>> partition(728, 3)
    [(2, 243), (1, 242)]
    >>> partition(64, 728)
    [(64, 1)]
    """
    if segments < 1:
        raise SettingError("segments", segments, "must be at least 1")
    segments = min(segments, channels)
    width, wider = divmod(channels, segments)
    parts = [(wider, width + 1), (segments - wider, width)]
    return [(count, size) for count, size in parts if count]


def segmented_conv(
    x: jax.Array, kernels: Sequence[jax.Array], *, padding: str = "SAME", implementation: str | None = None
) -> jax.Array:
    """Convolves each segment of the channels of `x` separately, with stride 1; the number of channels stays.

    Args:
      x: features, float[N, H, W, C].
      kernels: for each (count, width) of `partition(C, segments)`, one array float[kh, kw, width, count * width].
      padding: "SAME" or "VALID".
      implementation: as in `depthwise_conv`, which convolves segments of width 1, and `conv`, which convolves the
        others.

    Returns:
      float[N, H', W', C].

    Raises:
      SettingError: if `implementation` is unknown.
      ValueError: if the kernels do not cover exactly C channels.
    """
    channels = [kernel.shape[3] for kernel in kernels]
    if sum(channels) != x.shape[-1]:
        raise ValueError(f"kernels cover {sum(channels)} channels, x has {x.shape[-1]}: {x.shape}")
    outputs, start = [], 0
    for kernel, size in zip(kernels, channels, strict=True):
        part = x[..., start : start + size]  # [N, H, W, count * width]
        start += size
        if kernel.shape[2] == 1:
            outputs.append(depthwise_conv(part, kernel, padding=padding, implementation=implementation))
        else:
            groups = size // kernel.shape[2]
            outputs.append(conv(part, kernel, padding=padding, groups=groups, implementation=implementation))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=-1)  # [N, H', W', C]
