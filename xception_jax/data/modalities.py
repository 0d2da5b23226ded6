"""The modalities by name."""

from xception_jax.data.images.inputs import Images
from xception_jax.data.inputs import Inputs
from xception_jax.data.text.inputs import Texts

INPUTS: dict[str, type[Inputs]] = {"images": Images, "text": Texts}  # by the name in a model's INPUTS
