"""Datasets by name, and batches in an order that depends on (seed, step) only.

`inputs` is the seam to the models, `images` the inputs of images. Worker processes import this package, so it must
not import JAX here.
"""

from xception_jax.data.dataset import ArraySource as ArraySource
from xception_jax.data.dataset import Dataset as Dataset
from xception_jax.data.dataset import ImageFiles as ImageFiles
from xception_jax.data.dataset import Source as Source
from xception_jax.data.dataset import UnreadableExample as UnreadableExample
from xception_jax.data.pipeline import Reader as Reader
from xception_jax.data.pipeline import evaluation_batches as evaluation_batches
from xception_jax.data.pipeline import train_batches as train_batches
from xception_jax.data.sources import load as load
