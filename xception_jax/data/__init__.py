"""Datasets by name, image transforms, and batches in an order that depends on (seed, step) only."""

from xception_jax.data.dataset import ArraySource as ArraySource
from xception_jax.data.dataset import Dataset as Dataset
from xception_jax.data.dataset import ImageFiles as ImageFiles
from xception_jax.data.dataset import Source as Source
from xception_jax.data.images.decoding import UnreadableImage as UnreadableImage
from xception_jax.data.images.resizing import METHODS as METHODS
from xception_jax.data.images.resizing import PRESETS as PRESETS
from xception_jax.data.images.transforms import CROPS as CROPS
from xception_jax.data.images.transforms import EvaluationTransform as EvaluationTransform
from xception_jax.data.images.transforms import TrainTransform as TrainTransform
from xception_jax.data.pipeline import Reader as Reader
from xception_jax.data.pipeline import evaluation_batches as evaluation_batches
from xception_jax.data.pipeline import train_batches as train_batches
from xception_jax.data.sources import load as load
