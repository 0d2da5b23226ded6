"""A second, tiny modality: integer sequences of unequal length. Run as a script, it trains on them.

A sequence of class 0 has mostly small tokens, one of class 1 mostly large ones. The model embeds the tokens and
takes the mean over those that the mask does not leave out.
"""

import contextlib
import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xception_jax import loop, recipe
from xception_jax.data.dataset import Dataset
from xception_jax.data.inputs import Inputs
from xception_jax.data.modalities import INPUTS
from xception_jax.data.pipeline import Reading
from xception_jax.models import MODELS
from xception_jax.settings import Section, setting

VOCABULARY = 20


@dataclasses.dataclass(frozen=True)
class Sequences:
    """A source: int32[length] each, and their labels."""

    tokens: tuple[np.ndarray, ...]
    labels: np.ndarray

    @classmethod
    def draw(cls, count, seed):
        rng = np.random.default_rng(seed)
        labels = rng.integers(2, size=count).astype(np.int32)
        lengths = rng.integers(1, 9, size=count)
        high = [10 * label + rng.integers(0, 10, size=n) for label, n in zip(labels, lengths, strict=True)]
        return cls(tuple(tokens.astype(np.int32) for tokens in high), labels)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"tokens": self.tokens[index], "label": self.labels[index]}

    def name(self, index):
        return f"sequence {index}"


class SequenceData(Reading):
    """The "data" section of the modality."""

    name: str = setting("drawn", "the only dataset")
    max_length: int = setting(8, "longer sequences are cut, shorter ones padded", gt=0)
    shift: int = setting(0, "largest random shift of all tokens in training", ge=0)


@dataclasses.dataclass(frozen=True)
class SequenceInputs(Inputs):
    """The `Inputs` of sequences."""

    SETTINGS = {"data": SequenceData}  # noqa: RUF012

    max_length: int
    shift: int = 0

    @staticmethod
    def load(settings):
        dataset = Dataset(Sequences.draw(256, seed=0), Sequences.draw(50, seed=1), ("small", "large"))
        return dataclasses.replace(dataset, model_settings={"vocab_size": VOCABULARY})

    @staticmethod
    def data_defaults(defaults):
        return {"max_length": defaults["max_length"]}

    @classmethod
    def from_sections(cls, sections, dataset, defaults):
        return cls(sections["data"].max_length, sections["data"].shift)

    @classmethod
    def from_record(cls, record):
        return cls(record["max_length"])

    def record(self):
        return {"max_length": self.max_length}

    def decode(self, example):
        return {"tokens": example["tokens"]}

    def train_transform(self, example, rng):
        moved = (example["tokens"] + rng.integers(self.shift + 1)) % VOCABULARY
        return example | self._pad(moved)

    def eval_transform(self, example):
        return example | self._pad(example["tokens"])

    def _pad(self, tokens):
        tokens = tokens[: self.max_length]
        padding = (0, self.max_length - len(tokens))
        return {
            "tokens": np.pad(tokens, padding).astype(np.int32),
            "known": np.pad(np.ones(len(tokens), np.float32), padding),
        }

    def spec(self, batch_size, length):
        shape = (batch_size, self.max_length)
        return {
            "tokens": jax.ShapeDtypeStruct(shape, np.int32),
            "known": jax.ShapeDtypeStruct(shape, np.float32),
        }

    def prepare(self, batch, targets, *, train):
        return {"tokens": batch["tokens"], "known": batch["known"]}, targets

    def from_user(self, raw):
        padded = [self._pad(np.asarray(tokens, np.int32)) for tokens in raw]
        return {name: np.stack([example[name] for example in padded]) for name in ("tokens", "known")}


class MeanConfig(Section):
    """Settings of the model."""

    num_classes: int = setting(2, "outputs", gt=0)
    vocab_size: int = setting(VOCABULARY, "tokens", gt=0)
    width: int = setting(4, "of the embedding", gt=0)


class MeanEmbedding(nnx.Module):
    """An embedding, the mean over the known tokens, a linear classifier; it counts its training steps."""

    CONFIG = MeanConfig
    INPUTS = "sequences"
    PREPROCESSING = {"max_length": 8}  # noqa: RUF012

    def __init__(self, config, *, rngs):
        self.embedding = nnx.Embed(config.vocab_size, config.width, rngs=rngs)
        self.classifier = nnx.Linear(config.width, config.num_classes, rngs=rngs)
        self.steps = nnx.Variable(jnp.int32(0))

    def __call__(self, x, *, train=False, key=None):
        if train:
            self.steps.set_value(self.steps[...] + 1)
        known = x["known"][..., None]  # [N, T, 1]
        total = jnp.sum(self.embedding(x["tokens"]) * known, axis=1)  # [N, width]
        return self.classifier(total / jnp.sum(known, axis=1))  # [N, classes]


@contextlib.contextmanager
def registered():
    """A context in which the package knows the modality and its model."""
    INPUTS["sequences"] = SequenceInputs
    MODELS["mean_embedding"] = (MeanEmbedding, {})
    try:
        yield
    finally:
        del INPUTS["sequences"], MODELS["mean_embedding"]


def config(**changes):
    """A recipe of 60 steps, with changes such as {"data.shift": 1}."""
    config = recipe.default_config("mean_embedding")
    config.update_from_flattened_dict(
        {
            "batch_size": 16,
            "eval_batch_size": 16,
            "total_steps": 60,
            "evaluate_every_steps": 20,
            "log_every_steps": 10,
            "optimizer.weight_decay_paths": "embedding|kernel",
            "schedule.name": "constant",
            "schedule.base_lr": 0.5,
            "schedule.lr_rule": "none",
            "averaging.decay": 0.9,
            **changes,
        }
    )
    return config


if __name__ == "__main__":
    with registered():
        print(loop.train(config(), sys.argv[1]))
