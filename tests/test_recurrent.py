"""Recurrent text classifiers: counts of parameters, readouts, what padding may change, dropout, fixed vectors."""

import jax
import numpy as np
import pytest
from flax import nnx

from xception_jax import optim, state
from xception_jax.models import MODELS, create_model, model_class, model_config
from xception_jax.models.recurrent import READOUTS

NAME = "packed_lstm_classifier"
VOCABULARY = 95812
# Parameters of a classifier of 4 classes with 64 numbers a vector, without the vectors, as in torch.nn.
COUNTS = {
    ("rnn", 1, False): 3268,
    ("rnn", 1, True): 6532,
    ("rnn", 2, False): 5380,
    ("rnn", 2, True): 12804,
    ("gru", 1, False): 9540,
    ("gru", 1, True): 19076,
    ("gru", 2, False): 15876,
    ("gru", 2, True): 37892,
    ("lstm", 1, False): 12676,
    ("lstm", 1, True): 25348,
    ("lstm", 2, False): 21124,
    ("lstm", 2, True): 50436,
}
LENGTHS = np.array([1, 3, 8, 5], np.int32)


def count(name, **settings):
    model = nnx.eval_shape(lambda: create_model(name, num_classes=4, **settings))
    return state.count(state.split(model)[1])


def small(**settings):
    config = {"num_classes": 3, "vocab_size": 20, "embedding_size": 4, "hidden_size": 5, **settings}
    return create_model(NAME, rngs=nnx.Rngs(0), **config)


def texts(steps=8):
    """Tokens of four texts with LENGTHS, the same for any number of padded steps."""
    tokens = np.random.default_rng(0).integers(20, size=(4, 8)).astype(np.int32)
    tokens = np.pad(tokens, ((0, 0), (0, steps - 8)))
    return {"tokens": np.where(np.arange(steps)[None] < LENGTHS[:, None], tokens, 0), "length": LENGTHS}


class TestCounts:
    def test_those_of_the_lesson(self):
        named = [name for name in MODELS if model_class(name).INPUTS == "text"]
        assert {name: count(name, vocab_size=VOCABULARY) for name in named} == {
            "rnn_classifier": 6_135_236,
            "lstm_classifier": 6_144_644,
            "packed_lstm_classifier": 6_144_644,
        }

    @pytest.mark.parametrize(("cell", "layers", "bidirectional"), COUNTS)
    def test_without_the_vectors(self, cell, layers, bidirectional):
        settings = {"cell": cell, "layers": layers, "bidirectional": bidirectional}
        assert count(NAME, vocab_size=9, **settings) == COUNTS[cell, layers, bidirectional] + 64 * 9

    def test_a_gru_of_the_lesson_s_vocabulary(self):
        assert count(NAME, cell="gru", vocab_size=VOCABULARY) == 6_141_508


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(direction, vectors):
    """States of an LSTM over the vectors [T, I] of one text, by its equations, [T, H]."""
    names = ("input_kernel", "input_bias", "recurrent_kernel", "recurrent_bias")
    w, b, u, c = (np.asarray(getattr(direction, name)[...], np.float64) for name in names)
    h, cell, states = np.zeros(len(u)), np.zeros(len(u)), []
    for x in vectors:
        i, f, g, o = np.split(x @ w + b + h @ u + c, 4)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(cell)
        states.append(h)
    return np.array(states)


def expected_logits(model, tokens, length, longest):
    """Of one text, with two layers in both directions, computed alone."""
    readout = model.config.readout
    steps = longest if readout in ("mean", "last") else length
    x = np.asarray(model.embedding[...], np.float64)[tokens[:steps]]
    for forward, backward in model.layers:
        ahead, back = lstm(forward, x), lstm(backward, x[::-1])[::-1]
        x = np.concatenate([ahead, back], axis=1)
    ends = np.concatenate([ahead[-1], back[0]])
    features = {"packed": ends, "last": ends, "max": x.max(0), "mean": x.mean(0), "masked_mean": x.mean(0)}[
        readout
    ]
    weights = model.classifier
    return features @ np.asarray(weights.kernel[...], np.float64) + np.asarray(weights.bias[...], np.float64)


@pytest.mark.parametrize("readout", READOUTS)
def test_readouts_of_two_layers_in_both_directions(readout):
    """Against each text alone; only the lesson's first two readouts also read the padding, to the longest text."""
    model = small(readout=readout, layers=2, bidirectional=True)
    batch = texts()
    actual = nnx.jit(lambda model, batch: model(batch))(model, batch)
    expected = [expected_logits(model, t, n, 8) for t, n in zip(batch["tokens"], LENGTHS, strict=True)]
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("readout", READOUTS)
def test_padding_beyond_the_longest_text_changes_nothing(readout):
    model = small(readout=readout, bidirectional=True)
    logits = nnx.jit(lambda model, batch: model(batch))
    np.testing.assert_allclose(logits(model, texts()), logits(model, texts(13)), atol=1e-6)


def test_initial_weights_are_bounded_as_in_torch():
    model = create_model("lstm_classifier", vocab_size=3000, embedding_size=30, hidden_size=25)
    direction = model.layers[0][0]
    for weight in (direction.input_kernel, direction.recurrent_kernel, model.classifier.kernel):
        values = np.abs(np.asarray(weight[...]))
        assert 0.19 < values.max() <= 0.2 and values.mean() == pytest.approx(0.1, abs=0.01)
    assert model.config.embedding_mean == model_config("packed_lstm_classifier").embedding_mean == -0.5
    assert model_config("rnn_classifier").embedding_mean == 0
    vectors = np.asarray(model.embedding[...])
    assert vectors.mean() == pytest.approx(-0.5, abs=0.02) and vectors.std() == pytest.approx(1, abs=0.02)


class TestTraining:
    def test_every_weight_gets_a_gradient(self):
        model = small(layers=2, bidirectional=True)
        gradient = nnx.grad(lambda model: (model(texts()) ** 2).sum())(model)
        assert all(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(nnx.to_pure_dict(gradient)))

    @pytest.mark.parametrize("place", ["embedding_dropout", "dropout", "readout_dropout"])
    def test_dropout_follows_its_key_in_training_only(self, place):
        model = small(layers=2, **{place: 0.5})
        plain, first, again, other = (
            np.asarray(model(texts(), train=train, key=jax.random.key(key)))
            for train, key in ((False, 0), (True, 0), (True, 0), (True, 1))
        )
        np.testing.assert_array_equal(first, again)
        assert not np.allclose(first, other) and not np.allclose(first, plain)
        with pytest.raises(ValueError, match=r"0\.5 needs a PRNG key"):
            model(texts(), train=True)

    def test_vectors_that_are_not_trained_belong_to_the_model_state(self):
        _, params, model_state = state.split(small(embedding_trained=False))
        assert "embedding" not in params and model_state["embedding"].shape == (20, 4)
        optimizer = optim.make_optimizer("adam", 0.1, weight_decay=0.0)
        assert all(x.shape != (20, 4) for x in jax.tree.leaves(optimizer.init(params)))
