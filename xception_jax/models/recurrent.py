"""Recurrent text classifiers: an embedding, layers of a tanh RNN, LSTM or GRU, and a linear readout.

The three named models are those of the lesson on recurrent networks in Microsoft's "AI for Beginners", which
trains them on AG News. With its vocabulary of 95,812 tokens they have 6,135,236 parameters (`rnn_classifier`) and
6,144,644 (`lstm_classifier`, `packed_lstm_classifier`). As in torch, each layer has an input bias and a recurrent
bias, and all weights but the embedding are drawn from U(-1/sqrt(n), 1/sqrt(n)), where n is the size of the state
or, in the classifier, the number of its inputs.
"""

import functools
import math
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from xception_jax import ops
from xception_jax.ops.recurrence import CELLS
from xception_jax.settings import Section, setting

READOUTS = ("packed", "last", "mean", "masked_mean", "max")


class Config(Section):
    """Settings of the recurrent classifiers."""

    num_classes: int = setting(4, "number of classes, the outputs of the classifier", gt=0)
    vocab_size: int = setting(95812, "number of tokens in the vocabulary", gt=0)
    cell: Literal[tuple(CELLS)] = setting("lstm", "kind of recurrent layer")
    embedding_size: int = setting(64, "numbers of a token's vector; those of data.embeddings, else 64", gt=0)
    hidden_size: int = setting(32, "numbers of the state of a layer, in each direction", gt=0)
    layers: int = setting(1, "number of recurrent layers", gt=0)
    bidirectional: bool = setting(False, "every layer also reads the text from its end to its beginning")
    readout: Literal[READOUTS] = setting("packed", "what of the last layer is classified, see `read_out`")
    embedding_mean: float = setting(0.0, "mean of the initial vectors")
    embedding_stddev: float = setting(1.0, "standard deviation of the initial vectors", ge=0)
    embedding_trained: bool = setting(True, "train the vectors; False keeps their initial values")
    embedding_dropout: float = setting(0.0, "dropout rate of the vectors", ge=0, lt=1)
    dropout: float = setting(0.0, "dropout rate between recurrent layers", ge=0, lt=1)
    readout_dropout: float = setting(0.0, "dropout rate before the classifier", ge=0, lt=1)
    unroll: int = setting(1, "steps in each round of the compiled loop", free=True, gt=0)
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "type of the computation; parameters and states stay float32"
    )


class FixedVectors(nnx.Variable):
    """Token vectors that are not trained; they belong to the model state."""


class Direction(nnx.Module):
    """A recurrent layer that reads in one direction.

    Attributes:
      input_kernel, recurrent_kernel: float[I, G H] and float[H, G H], G groups of columns; see `ops.recurrence`.
      input_bias, recurrent_bias: float[G H].
    """

    def __init__(self, inputs: int, config: Config, *, reverse: bool, rngs: nnx.Rngs):
        self.cell, self.reverse, self.unroll = config.cell, reverse, config.unroll
        hidden = config.hidden_size
        columns = CELLS[config.cell].groups * hidden
        draw = functools.partial(_uniform, rngs, hidden)
        self.input_kernel, self.recurrent_kernel = draw((inputs, columns)), draw((hidden, columns))
        self.input_bias, self.recurrent_bias = draw((columns,)), draw((columns,))

    def __call__(self, x: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x[T, N, I], lengths int32[N] -> (outputs[T, N, H], 0 on padding; state[N, H]), as `ops.recurrence`."""
        weights = self.input_kernel, self.input_bias, self.recurrent_kernel, self.recurrent_bias
        kernel, bias, *recurrent = (weight[...].astype(x.dtype) for weight in weights)
        projected = ops.project(x, kernel) + bias[None, None]  # [T, N, G H]: one product for all steps
        return ops.recurrence(self.cell, projected, *recurrent, lengths, reverse=self.reverse, unroll=self.unroll)


class RecurrentClassifier(nnx.Module):
    """Embedding, recurrent layers, readout, dropout, classifier.

    Attributes:
      CONFIG, INPUTS, PREPROCESSING, SMALL: see `network.Network`.
      embedding: vectors of the tokens, float32[V, E].
      layers: of each layer the directions, one or two.
    """

    CONFIG: ClassVar[type[Config]] = Config
    INPUTS: ClassVar[str] = "text"
    PREPROCESSING: ClassVar[dict[str, Any]] = {"tokenizer": "basic_english"}
    SMALL: ClassVar[dict[str, Any]] = {"embedding_size": 8, "hidden_size": 8}

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        self.config = config
        drawn = jax.random.normal(rngs.params(), (config.vocab_size, config.embedding_size))  # [V, E]
        vectors = drawn * config.embedding_stddev + config.embedding_mean
        self.embedding = (nnx.Param if config.embedding_trained else FixedVectors)(vectors)
        directions = (False, True) if config.bidirectional else (False,)
        self.layers, width = nnx.List(), config.embedding_size
        for _ in range(config.layers):
            self.layers.append(nnx.List([Direction(width, config, reverse=r, rngs=rngs) for r in directions]))
            width = len(directions) * config.hidden_size
        self.classifier = nnx.Linear(
            width,
            config.num_classes,
            kernel_init=lambda key, shape, dtype: _bounded(key, width, shape),
            bias_init=lambda key, shape, dtype: _bounded(key, width, shape),
            rngs=rngs,
        )

    def features(
        self, x: dict[str, jax.Array], *, train: bool = False, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(outputs of the last layer float[T, N, D H], 0 on padding; last states float[N, D H]; lengths int32[N]).

        D is 2 if the model is bidirectional, else 1. The readouts "mean" and "last" treat padding as tokens, up to
        the longest text, so with them the lengths are those of the longest text; see `__call__` for the arguments.
        """
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        lengths = x["length"]
        if config.readout in ("mean", "last"):
            lengths = jnp.full_like(lengths, jnp.max(lengths))
        outputs = self.embedding[...].astype(dtype)[x["tokens"].T]  # [T, N, E]
        outputs = self._drop(outputs, config.embedding_dropout, train, key, 0)
        for number, directions in enumerate(self.layers):
            if number:
                outputs = self._drop(outputs, config.dropout, train, key, number)
            read = [direction(outputs, lengths) for direction in directions]
            outputs, states = (jnp.concatenate(parts, axis=-1) for parts in zip(*read, strict=True))  # [T, N, D H]
        return outputs, states, lengths

    def _drop(self, x: jax.Array, rate: float, train: bool, key: jax.Array | None, place: int) -> jax.Array:
        if not train or not rate:
            return x
        if key is None:
            raise ValueError(f"key = None: training with a dropout rate of {rate} needs a PRNG key")
        return nnx.Dropout(rate)(x, deterministic=False, rngs=jax.random.fold_in(key, place))

    def __call__(self, x: dict[str, jax.Array], *, train: bool = False, key: jax.Array | None = None) -> jax.Array:
        """Token ids -> logits float32[N, num_classes].

        Args:
          x: "tokens" int32[N, T], padded at the end, and "length" int32[N], the number of tokens, at least 1.
          train: applies dropout.
          key: PRNG key of the dropout; required if `train` is set and a dropout rate is above 0.

        Raises:
          ValueError: if the key is missing.
        """
        features = read_out(self.config.readout, *self.features(x, train=train, key=key))
        features = self._drop(features, self.config.readout_dropout, train, key, len(self.layers))
        return self.classifier(features.astype(jnp.float32))  # [N, num_classes]


def read_out(readout: str, outputs: jax.Array, states: jax.Array, lengths: jax.Array) -> jax.Array:
    """What is classified, float32[N, F].

    Args:
      readout: "packed": the state after the true last token, and after the first one in the other direction;
        "last": the state after the last step of the batch, which follows the padding; "masked_mean" and "max":
        over the tokens; "mean": over all steps of the batch, padding included.
      outputs: float[T, N, F], 0 on padding.
      states: float[N, F].
      lengths: number of steps that count, int32[N]; with "mean" and "last", that of the longest text everywhere.
    """
    if readout in ("packed", "last"):
        return states.astype(jnp.float32)
    if readout == "max":
        valid = jnp.arange(len(outputs))[:, None, None] < lengths[None, :, None]  # [T, N, 1]
        return jnp.max(jnp.where(valid, outputs, -jnp.inf), axis=0).astype(jnp.float32)
    return jnp.sum(outputs, axis=0, dtype=jnp.float32) / lengths[:, None].astype(jnp.float32)


def _uniform(rngs: nnx.Rngs, size: int, shape: tuple[int, ...]) -> nnx.Param:
    return nnx.Param(_bounded(rngs.params(), size, shape))


def _bounded(key: jax.Array, size: int, shape: tuple[int, ...]) -> jax.Array:
    """Uniform numbers between -1/sqrt(size) and 1/sqrt(size), float32."""
    bound = 1 / math.sqrt(size)
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
