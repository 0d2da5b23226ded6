"""Augmentation of batches on the device, inside the jitted training step.

What happens to an image is a function of the key and of the image's own seed, so it is the same at any place of
any batch, on any number of devices and hosts. Nothing moves between devices. Where pairs of images are mixed, this
holds if each device has an even number of them.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from xception_jax.settings import Section, setting

_FLIP, _AMOUNTS, _ORDER, _KIND, _MIXUP, _CUTMIX, _BOX = range(7)  # purposes of random numbers
_BLACK = 1e-12  # below any difference of visible channels; keeps quotients finite


class Augmentation(Section):
    """Random changes of a batch: horizontal flips, then colors, then mixtures of two images."""

    flip: bool = setting(True, "mirror half of the images horizontally")
    color: Literal["none", "inception", "inception_fast", "jitter"] = setting(
        "none", "color changes: TensorFlow's Inception, TF-Slim's fast mode, or torchvision's ColorJitter"
    )
    brightness: float = setting(0.4, "jitter: strength, 0 = unchanged", ge=0)
    contrast: float = setting(0.4, "jitter: strength, 0 = unchanged", ge=0)
    saturation: float = setting(0.4, "jitter: strength, 0 = unchanged", ge=0)
    hue: float = setting(0.0, "jitter: largest turn of the hue, 0 = unchanged", ge=0, le=0.5)
    mixup_alpha: float = setting(0.0, "mixup: parameter of the Beta distribution of the shares, 0 = off", ge=0)
    cutmix_alpha: float = setting(0.0, "cutmix: parameter of the Beta distribution of the shares, 0 = off", ge=0)

    @property
    def mixes(self) -> bool:
        """Whether pairs of images are mixed, so that the batch must have an even size."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    def __call__(
        self, images: jax.Array, targets: jax.Array, seeds: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Augments a batch.

        Args:
          images: float32[N, H, W, C] in [0, 1].
          targets: float32[N, classes], one-hot, smoothed or of several labels.
          seeds: uint32[N], of the images; for other changes in another epoch, other seeds or another key.
          key: of the default kind, threefry; others give numbers that depend on the batch.

        Returns:
          (images, targets) of the same shapes.

        Raises:
          ValueError: for colors of images without three channels, or mixtures of an odd batch.
        """
        if self.color != "none" and images.shape[-1] != 3:
            raise ValueError(f"color = {self.color!r}: must be 'none' for images of {images.shape[-1]} channels")
        if self.mixes and len(images) % 2:
            raise ValueError(f"batch size = {len(images)}: must be even, since mixup and cutmix pair the images")
        keys = _fold_in(key, seeds)
        if self.flip:
            images = random_flip(images, keys)
        if self.color == "jitter":
            images = color_jitter(images, keys, self.brightness, self.contrast, self.saturation, self.hue)
        elif self.color != "none":
            images = inception_color(images, keys, fast=self.color == "inception_fast")
        if self.mixes:
            keys = _fold_in(key, seeds.reshape(-1, 2)[:, 0])
            alphas = {"mixup_alpha": self.mixup_alpha, "cutmix_alpha": self.cutmix_alpha}
            images, targets = mix_pairs(images, targets, keys, **alphas)
        return images, targets


def _fold_in(key: jax.Array, seeds: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, seeds)


def _uniform(keys: jax.Array, purpose: int, low: Sequence[float], high: Sequence[float]) -> jax.Array:
    """K numbers for each of N keys, the k-th between low[k] and high[k]: float32[K, N]."""
    low, high = jnp.array(low, jnp.float32), jnp.array(high, jnp.float32)

    def draw(key):
        return jax.random.uniform(jax.random.fold_in(key, purpose), low.shape, minval=low, maxval=high)

    return jax.vmap(draw, out_axes=1)(keys)


def _per_image(x: jax.Array) -> jax.Array:
    """[N] -> [N, 1, 1, 1]."""
    return x[:, None, None, None]


def random_flip(images: jax.Array, keys: jax.Array) -> jax.Array:
    """Mirrors each image left and right with probability 1/2: float[N, H, W, C], keys [N]."""
    (draw,) = _uniform(keys, _FLIP, [0], [1])
    return jnp.where(_per_image(draw < 0.5), images[:, :, ::-1], images)


def inception_color(images: jax.Array, keys: jax.Array, *, fast: bool = False) -> jax.Array:
    """The colors of TensorFlow's Inception training.

    Brightness +- 32/255, saturation times [0.5, 1.5], hue +- 0.2 turns, contrast times [0.5, 1.5]; contrast comes
    last or, with probability 1/2, before saturation. In between nothing is clipped.

    Args:
      images: float32[N, H, W, 3] in [0, 1].
      keys: [N].
      fast: brightness and saturation only, in this order, as TF-Slim's fast mode.

    Returns:
      float32[N, H, W, 3] in [0, 1].
    """
    low, high = (-32 / 255, 0.5, -0.2, 0.5), (32 / 255, 1.5, 0.2, 1.5)
    delta, saturation, shift, contrast = _uniform(keys, _AMOUNTS, low, high)
    images = adjust_brightness(images, delta)
    if fast:
        return jnp.clip(adjust_saturation(images, saturation), 0, 1)
    (draw,) = _uniform(keys, _ORDER, [0], [1])
    contrast_first = draw < 0.5
    images = adjust_contrast(images, jnp.where(contrast_first, contrast, 1))  # a factor of 1 changes no bit
    images = adjust_hue(adjust_saturation(images, saturation), shift)
    images = adjust_contrast(images, jnp.where(contrast_first, 1, contrast))
    return jnp.clip(images, 0, 1)


def adjust_brightness(images: jax.Array, delta: jax.Array) -> jax.Array:
    """Adds delta[N] to the pixels, as TensorFlow; not clipped."""
    return images + _per_image(delta)


def adjust_contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales by factor[N] the distance of a channel from its mean over the image, as TensorFlow; not clipped."""
    return _blend(images, jnp.mean(images, axis=(1, 2), keepdims=True), factor)


def adjust_saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales the saturation of HSV by factor[N] and clips it at 1, as TensorFlow.

    Hue and value stay, so all channels move away from the largest, which is the value. A pixel without a positive
    channel becomes gray.

    >>> adjust_saturation(jnp.array([[[[1.0, 0.5, 0.0]]]]), jnp.array([0.5])).tolist()
    [[[[1.0, 0.75, 0.5]]]]
    """
    red, green, blue = jnp.split(images, 3, axis=-1)  # each [N, H, W, 1]
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    most = jnp.maximum(value, 0) / jnp.maximum(chroma, _BLACK)  # makes the saturation 1
    return value - (value - images) * jnp.minimum(_per_image(factor), most)


def adjust_hue(images: jax.Array, shift: jax.Array) -> jax.Array:
    """Turns the hue of HSV by shift[N] turns; the largest and the smallest channel keep their values.

    >>> adjust_hue(jnp.array([[[[1.0, 0.0, 0.0]]]]), jnp.array([0.5])).tolist()
    [[[[0.0, 1.0, 1.0]]]]
    """
    # Split, not moved to the front: an earlier version that moved the axis gave wrong values on CPU (jax 0.10.2).
    red, green, blue = jnp.split(images, 3, axis=-1)  # each [N, H, W, 1]
    least = jnp.minimum(jnp.minimum(red, green), blue)
    chroma = jnp.maximum(jnp.maximum(red, green), blue) - least
    scale = 1 / jnp.maximum(chroma, _BLACK)
    # Channels are compared with each other, not with the maximum: XLA may compute it anew and round it apart.
    hue = jnp.where(green >= blue, (blue - red) * scale + 2, (red - green) * scale + 4)
    hue = jnp.where((red >= green) & (red >= blue), (green - blue) * scale, hue)
    hue = hue + 6 * _per_image(shift)  # in sixths of a turn
    hue = hue - 6 * jnp.floor(hue / 6)
    pure = (jnp.abs(hue - 3) - 1, 2 - jnp.abs(hue - 2), 2 - jnp.abs(hue - 4))
    return jnp.concatenate([least + chroma * jnp.clip(channel, 0, 1) for channel in pure], axis=-1)  # [N, H, W, 3]


def color_jitter(
    images: jax.Array, keys: jax.Array, brightness: float, contrast: float, saturation: float, hue: float
) -> jax.Array:
    """The colors of torchvision's ColorJitter: in random order the four functions below, clipped after each.

    The factors are uniform in [max(0, 1 - strength), 1 + strength], the shift of the hue in [-hue, hue]. As in
    torchvision, what has the strength 0 is left out.

    Args:
      images: float32[N, H, W, 3] in [0, 1].
      keys: [N].
      brightness, contrast, saturation, hue: strengths.

    Returns:
      float32[N, H, W, 3] in [0, 1].
    """
    strengths = (brightness, contrast, saturation)
    low = [max(0.0, 1 - strength) for strength in strengths] + [-hue]
    high = [1 + strength for strength in strengths] + [hue]
    amounts = _uniform(keys, _AMOUNTS, low, high)  # [4, N]
    functions = (jitter_brightness, jitter_contrast, jitter_saturation, adjust_hue)
    used = [i for i, strength in enumerate((*strengths, hue)) if strength > 0]
    operations = [(functions[i], amounts[i]) for i in used]
    return _in_random_order(images, operations, keys) if used else images


def _in_random_order(
    images: jax.Array, operations: Sequence[tuple[Callable, jax.Array]], keys: jax.Array
) -> jax.Array:
    """Applies each of K (function, amounts [N]) once and clips; computes all K times, since the orders differ."""
    count = len(operations)
    order = jnp.argsort(_uniform(keys, _ORDER, [0] * count, [1] * count), axis=0)  # [K, N]

    def apply_next(images, chosen):
        conditions = [_per_image(chosen == i) for i in range(count)]
        results = [jnp.clip(function(images, amount), 0, 1) for function, amount in operations]
        return jnp.select(conditions, results), None

    return jax.lax.scan(apply_next, images, order)[0]


def grayscale(images: jax.Array) -> jax.Array:
    """Luma of ITU-R 601-2: [N, H, W, 3] -> [N, H, W, 1]."""
    red, green, blue = jnp.split(images, 3, axis=-1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def jitter_brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales the pixels by factor[N], as torchvision; not clipped."""
    return images * _per_image(factor)


def jitter_contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales by factor[N] the distance from the mean of the gray image, as torchvision; not clipped."""
    return _blend(images, jnp.mean(grayscale(images), axis=(1, 2, 3), keepdims=True), factor)


def jitter_saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales by factor[N] the distance from the gray image, as torchvision; not clipped."""
    return _blend(images, grayscale(images), factor)


def _blend(images: jax.Array, base: jax.Array, factor: jax.Array) -> jax.Array:
    factor = _per_image(factor)
    return factor * images + (1 - factor) * base


def mix_pairs(
    images: jax.Array, targets: jax.Array, keys: jax.Array, *, mixup_alpha: float, cutmix_alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Mixes image 2j with image 2j + 1, and their targets in the same shares.

    mixup (Zhang et al. 2018): share * own + (1 - share) * other. cutmix (Yun et al. 2019): a box of the other
    image, of area 1 - share, its centre anywhere; the share is then that of the pixels that are left.

    Args:
      images: float32[N, H, W, C], N even.
      targets: float32[N, classes].
      keys: [N / 2], of the pairs.
      mixup_alpha, cutmix_alpha: of the share's distribution Beta(alpha, alpha), 0 = off; not both 0. If both are
        on, a pair has either with probability 1/2.

    Returns:
      (images, targets) of the same shapes.
    """
    weight = _pixel_weights(keys, images.shape[1:3], mixup_alpha, cutmix_alpha)  # [N / 2, H, W]
    share = jnp.mean(weight, axis=(1, 2))  # [N / 2]
    return _mix(images, weight[:, None, :, :, None]), _mix(targets, share[:, None, None])


def _mix(x: jax.Array, own: jax.Array) -> jax.Array:
    """x[N, ...], of each pair the share `own` [N / 2, 1, ...] and the rest of the other one."""
    pairs = x.reshape(-1, 2, *x.shape[1:])  # [N / 2, 2, ...]
    return (own * pairs + (1 - own) * pairs[:, ::-1]).reshape(x.shape)


def _pixel_weights(keys: jax.Array, size: tuple[int, int], mixup_alpha: float, cutmix_alpha: float) -> jax.Array:
    """What each pixel keeps of its own image: float32[N / 2, H, W]."""
    if mixup_alpha > 0:
        share = symmetric_beta(keys, mixup_alpha, purpose=_MIXUP)
        mixup = jnp.broadcast_to(share[:, None, None], (len(keys), *size))
    if cutmix_alpha > 0:
        share = symmetric_beta(keys, cutmix_alpha, purpose=_CUTMIX)
        cutmix = 1 - _box(keys, size, share)
    if mixup_alpha > 0 and cutmix_alpha > 0:
        (draw,) = _uniform(keys, _KIND, [0], [1])
        return jnp.where((draw < 0.5)[:, None, None], mixup, cutmix)
    return mixup if mixup_alpha > 0 else cutmix


def _box(keys: jax.Array, size: tuple[int, int], share: jax.Array) -> jax.Array:
    """1 on the pixels whose centre is in the box, float32[N / 2, H, W]."""
    scale = jnp.sqrt(1 - share)[:, None]  # [N / 2, 1]
    inside = []
    for length, center in zip(size, _uniform(keys, _BOX, (0, 0), size), strict=True):
        pixels = jnp.arange(length, dtype=jnp.float32)[None] + 0.5  # [1, length]
        inside.append(jnp.abs(pixels - center[:, None]) < scale * length / 2)  # [N / 2, length]
    rows, columns = inside
    return (rows[:, :, None] & columns[:, None, :]).astype(jnp.float32)


def symmetric_beta(keys: jax.Array, alpha: float, *, purpose: int = 0) -> jax.Array:
    """A number from Beta(alpha, alpha) for each key, float32[N].

    In closed form: T / sqrt(2 alpha + T^2) / 2 + 1/2, with Student's T of 2 alpha degrees of freedom, from two
    uniform numbers by the polar method (Bailey 1994). `jax.random.beta` rejects and draws again; in a batch this
    loop ends when all images have a number, which the devices would have to tell each other.
    """
    u, v = _uniform(keys, purpose, (0, 0), (1, 1))
    tail, cosine = u ** (1 / alpha), jnp.cos(2 * jnp.pi * v)
    number = cosine * jnp.sqrt((1 - tail) / (tail + (1 - tail) * cosine**2))
    return jnp.clip(0.5 + 0.5 * number, 0, 1)
