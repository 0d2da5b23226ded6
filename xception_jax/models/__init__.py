"""Models by name."""

import difflib
import inspect

from flax import nnx

from xception_jax.models import inception_v3, resnet, vgg, xception
from xception_jax.models.preprocessing import Preprocessing as Preprocessing

MODELS = {
    "inception_v3": inception_v3.InceptionV3,
    "resnet101": resnet.ResNet101,
    "resnet152": resnet.ResNet152,
    "resnet50": resnet.ResNet50,
    "vgg16": vgg.VGG,
    "vgg16_separable": vgg.SeparableVGG,
    "xception": xception.Xception,
}


def model_class(name: str) -> type[nnx.Module]:
    """The class of a model; ValueError names the known ones."""
    if name not in MODELS:
        raise ValueError(f"model name = {name!r}: choose one of {sorted(MODELS)}")
    return MODELS[name]


def create_model(name: str, *, rngs: nnx.Rngs | None = None, **config) -> nnx.Module:
    """Builds a model with fresh parameters.

    Args:
      name: a key of `MODELS`.
      rngs: keys for the initial parameters; `nnx.Rngs(0)` if not given.
      **config: fields of the model's `Config`; what is not given is the paper's.

    Raises:
      ValueError: for an unknown model, or a value out of range.
      TypeError: for an unknown field.

    >>> model = nnx.eval_shape(lambda: create_model("xception", num_classes=10))
    >>> model.classifier.kernel.shape
    (2048, 10)
    """
    cls = model_class(name)
    known = inspect.signature(cls.CONFIG).parameters
    for field in config:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            raise TypeError(f"{name} has no setting {field!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return cls(cls.CONFIG(**config), rngs=rngs if rngs is not None else nnx.Rngs(0))
