"""The modalities by name."""

from xception_jax.data.images.inputs import Images
from xception_jax.data.inputs import Inputs

INPUTS: dict[str, type[Inputs]] = {"images": Images}  # by the name in a model's INPUTS
