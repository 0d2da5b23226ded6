"""Datasets by name, image transforms, and batches in an order that depends on (seed, step) only."""

from xception_jax.data.pipeline import evaluation_batches as evaluation_batches
from xception_jax.data.pipeline import train_batches as train_batches
from xception_jax.data.sources import SOURCES as SOURCES
from xception_jax.data.sources import Dataset as Dataset
from xception_jax.data.sources import load as load
from xception_jax.data.transforms import EvaluationTransform as EvaluationTransform
from xception_jax.data.transforms import TrainTransform as TrainTransform
