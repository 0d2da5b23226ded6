"""What the models share: checks of settings and images, and the way from features to logits."""

import functools
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from xception_jax import ops
from xception_jax.layers import KERNEL_INIT, BatchNorm


def check(
    config,
    *,
    positive: Sequence[str] = (),
    all_positive: Sequence[str] = (),
    rules: Iterable[tuple[str, bool, str]] = (),
) -> None:
    """Checks the fields which most models have, those of them that `config` has, and what else is given.

    Args:
      config: a model's.
      positive: fields with a number above 0, or None.
      all_positive: fields with a tuple of such numbers.
      rules: (field, whether its value is right, what it must be).

    Raises:
      ValueError: for the first field that is out of its range.
    """
    positive = ("num_classes", "in_channels", "bn_group_size", "bn_epsilon", *positive)
    values = {name: getattr(config, name, None) for name in positive}
    checked = [(name, value is None or value > 0, "above 0") for name, value in values.items()]
    checked += [
        (name, all(value > 0 for value in getattr(config, name)), "all above 0")
        for name in ("fc_layers", *all_positive)
    ]
    checked += [(name, 0 <= getattr(config, name, 0) < 1, "in [0, 1)") for name in ("dropout", "bn_momentum")]
    known = (None, *ops.IMPLEMENTATIONS)
    checked.append(("implementation", config.implementation in known, f"None or in {ops.IMPLEMENTATIONS}"))
    for name, holds, rule in [*checked, *rules]:
        if not holds:
            raise ValueError(f"{name} = {getattr(config, name)}: must be {rule}")


def smallest_input(*layers: tuple[int, int]) -> int:
    """Height and width that leave one pixel after unpadded layers of (window, strides), the first one first.

    >>> smallest_input((3, 2), (3, 1))
    7
    """
    size = 1
    for window, strides in reversed(layers):
        size = (size - 1) * strides + window
    return size


def batch_norm(config, **options) -> functools.partial:
    """`BatchNorm` as the config says; takes the number of channels."""
    return functools.partial(
        BatchNorm,
        momentum=config.bn_momentum,
        epsilon=config.bn_epsilon,
        group_size=config.bn_group_size,
        dtype=jnp.dtype(config.dtype),
        **options,
    )


class Network(nnx.Module):
    """A model: its `features` are defined by the subclass, their way to the logits here.

    State: parameters and batch statistics, nothing else. A subclass has the class attributes `CONFIG` and
    `PREPROCESSING`, keeps its config as `self.config`, and its `__init__` ends with `_add_head`.
    """

    def _add_head(self, width: int, *, kernel_init: nnx.Initializer = KERNEL_INIT, rngs: nnx.Rngs) -> None:
        """Fully connected layers, dropout and classifier on `width` features."""
        config = self.config
        dtype = jnp.dtype(config.dtype)
        linear = functools.partial(nnx.Linear, kernel_init=kernel_init, rngs=rngs)
        self.fc = nnx.List()
        for features in config.fc_layers:
            self.fc.append(linear(width, features, dtype=dtype))
            width = features
        self.dropout = nnx.Dropout(config.dropout)
        # In bfloat16 many logits would be equal.
        logits = jnp.dtype(jnp.float32) if dtype.itemsize < 4 else dtype
        self.classifier = linear(width, config.num_classes, dtype=logits)

    def _check_images(self, x: jax.Array, *, smallest: int = 1, remedy: str = "") -> None:
        """Raises ValueError unless x is float[N, H, W, in_channels] of at least `smallest` pixels each way."""
        if x.ndim != 4 or x.shape[-1] != self.config.in_channels:
            raise ValueError(f"images must be [N, H, W, {self.config.in_channels}]; got {x.shape}")
        if min(x.shape[1:3]) < smallest:
            raise ValueError(f"images of {x.shape[1:3]} pixels are too small: need {smallest}{remedy}")

    def features(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Normalized images float[N, H, W, in_channels] -> float[N, h, w, C] before pooling."""
        raise NotImplementedError

    def logits(self, x: jax.Array, *, train: bool, key: jax.Array | None) -> jax.Array:
        """Features float[N, h, w, C] -> logits float32[N, num_classes]; arguments as of `__call__`."""
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)  # [N, C]
        for linear in self.fc:
            x = jax.nn.relu(linear(x))  # [N, width]
        x = self.dropout(x, deterministic=not train, rngs=key)
        return self.classifier(x)  # [N, num_classes]

    def __call__(self, x: jax.Array, *, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """Normalized images float[N, H, W, in_channels] -> logits float32[N, num_classes].

        Args:
          x: images, normalized as `PREPROCESSING` says.
          train: use and update batch statistics, apply dropout.
          key: PRNG key of the dropout; needed if `train` and `config.dropout` > 0.

        Raises:
          ValueError: for images of another shape or too small, or a missing key.
        """
        if train and self.config.dropout and key is None:
            raise ValueError(f"key = None: training with dropout = {self.config.dropout} needs a PRNG key")
        return self.logits(self.features(x, train=train), train=train, key=key)
