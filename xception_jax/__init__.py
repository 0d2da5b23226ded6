"""Networks of depthwise separable convolutions in JAX: `create_model` builds one, `load` opens a trained one."""

from xception_jax.models import create_model as create_model
from xception_jax.trained import load as load

__version__ = "0.1.0"
