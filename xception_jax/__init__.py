"""Networks of depthwise separable convolutions in JAX: `create_model` builds one, `load` opens a trained one."""

import importlib
from typing import Any

__version__ = "0.1.0"
_PUBLIC = {"create_model": "xception_jax.models", "load": "xception_jax.trained"}
__all__ = ["create_model", "load"]


def __getattr__(name: str) -> Any:
    """Imports what is asked for then: processes that only read images need no JAX."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
