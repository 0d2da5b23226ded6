"""Models by name."""

from typing import Any

from flax import nnx

from xception_jax.errors import SettingError
from xception_jax.models.inception_v3 import InceptionV3
from xception_jax.models.network import ImageSizeError as ImageSizeError
from xception_jax.models.recurrent import RecurrentClassifier
from xception_jax.models.resnet import ResNet
from xception_jax.models.vgg import VGG, SeparableVGG
from xception_jax.models.xception import Xception
from xception_jax.settings import Section

# The class of each model, and the settings in which it differs from the defaults of the class.
MODELS: dict[str, tuple[type[nnx.Module], dict[str, Any]]] = {
    "xception": (Xception, {}),
    "inception_v3": (InceptionV3, {}),
    "resnet50": (ResNet, {}),
    "resnet101": (ResNet, {"blocks": (3, 4, 23, 3)}),
    "resnet152": (ResNet, {"blocks": (3, 8, 36, 3)}),
    "vgg16": (VGG, {}),
    "vgg16_separable": (SeparableVGG, {}),
    "rnn_classifier": (RecurrentClassifier, {"cell": "rnn", "readout": "mean"}),
    "lstm_classifier": (RecurrentClassifier, {"readout": "last", "embedding_mean": -0.5}),
    "packed_lstm_classifier": (RecurrentClassifier, {"embedding_mean": -0.5}),
}


def model_class(name: str) -> type[nnx.Module]:
    """The class of a model.

    Raises:
      SettingError: for an unknown name; lists the known ones.
    """
    if name not in MODELS:
        raise SettingError("name", name, f"is not a model; choose one of {', '.join(MODELS)}")
    return MODELS[name][0]


def model_config(name: str, **settings: Any) -> Section:
    """The settings of a model: those of its paper, with `settings` in place of some.

    Raises:
      SettingError: for an unknown model or setting, or a value out of range.

    >>> model_config("resnet101", num_classes=10).blocks
    (3, 4, 23, 3)
    """
    config = model_class(name).CONFIG
    return config(**MODELS[name][1] | settings)


def create_model(name: str, *, rngs: nnx.Rngs | None = None, **settings: Any) -> nnx.Module:
    """Builds a model with fresh parameters.

    Args:
      name: a key of `MODELS`.
      rngs: keys for the initial parameters; `nnx.Rngs(0)` if not given.
      **settings: fields of the model's `CONFIG` that differ from its paper.

    Raises:
      SettingError: for an unknown model or setting, or a value out of range.

    >>> model = nnx.eval_shape(lambda: create_model("xception", num_classes=10))
    >>> model.classifier.kernel.shape
    (2048, 10)
    """
    config = model_config(name, **settings)
    return model_class(name)(config, rngs=rngs if rngs is not None else nnx.Rngs(0))
