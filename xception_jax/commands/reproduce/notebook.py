"""The text models of the lesson on recurrent networks in Microsoft's "AI for Beginners", which is a notebook.

It trains three models on AG News for an epoch each, and reports their running accuracy on the training texts. The
two LSTMs differ in their readout alone, but the tanh RNN differs from them in cell, initial vectors and readout.
The target has all combinations of the three, and what the notebook only describes.
"""

import collections
import itertools
from collections.abc import Iterator

from xception_jax.commands.reproduce.definitions import Effect, Network, Question, Target

CELLS = {"rnn": "RNN", "lstm": "LSTM"}
VECTORS = {"normal": "N(0, 1)", "shifted": "N(-0.5, 1)"}
READOUTS = ("mean", "last", "packed")

# Run -> the notebook's name of the model, and its running accuracies at the end and where the log of the RNN ends.
PRINTED = {
    "rnn_normal_mean": ("RNNClassifier", {"running_108800": 0.80606}),
    "lstm_shifted_last": ("LSTMClassifier", {"running": 0.7728, "running_108800": 0.76016}),
    "lstm_shifted_packed": ("LSTMPackClassifier", {"running": 0.81382, "running_108800": 0.80514}),
}
PACKED = "lstm_shifted_packed"
EXTENSIONS = {"gru": "with a GRU", "two_layers": "with two layers", "bidirectional": "bidirectional"}


def _networks() -> Iterator[Network]:
    for cell, vectors, readout in itertools.product(CELLS, VECTORS, READOUTS):
        run = f"{cell}_{vectors}_{readout}"
        name, numbers = PRINTED.get(run, ("", {}))
        label = f"{CELLS[cell]}, {VECTORS[vectors]}, {readout}" + (f" ({name})" if name else "")
        yield Network(run, label, numbers)
    for run, what in EXTENSIONS.items():
        yield Network(run, f"LSTMPackClassifier, {what}")


def _between(run: str, other: str, label: str = "") -> Effect:
    """The difference between two runs; by default it has the names that the notebook has for them."""
    return Effect(label or f"{PRINTED[run][0]} against {PRINTED[other][0]}", {run: 1.0, other: -1.0})


def _shares(run: str, other: str) -> Question:
    """The shares of cell, initial vectors and readout in a difference between two runs; they add up to it.

    A share is the difference that the change of a factor makes, averaged over the six orders in which the three
    factors can be changed one after another (Shapley 1953).
    """
    ours, theirs = run.split("_"), other.split("_")
    orders = list(itertools.permutations(range(len(ours))))
    weights = [collections.Counter() for _ in ours]
    for order in orders:
        changed = list(theirs)
        for factor in order:
            weights[factor]["_".join(changed)] -= 1 / len(orders)
            changed[factor] = ours[factor]
            weights[factor]["_".join(changed)] += 1 / len(orders)
    factors = ("cell", "initial vectors", "readout")
    shares = tuple(Effect(name, dict(w)) for name, w in zip(factors, weights, strict=True))
    return Question(f"Shares in the difference between {PRINTED[run][0]} and {PRINTED[other][0]}", shares)


def _questions() -> Iterator[Question]:
    rnn, lstm, packed = PRINTED
    pairs = ((packed, lstm), (lstm, rnn), (packed, rnn))
    yield Question("The notebook's models", tuple(_between(*pair) for pair in pairs))
    yield from (_shares(lstm, rnn), _shares(packed, rnn))
    alone = tuple(
        _between(
            f"{cell}_{vectors}_packed", f"{cell}_{vectors}_{other}", f"{CELLS[cell]}, {VECTORS[vectors]}, {other}"
        )
        for cell, vectors, other in itertools.product(CELLS, VECTORS, ("last", "mean"))
    )
    yield Question('The readout alone: "packed" in the place of the one named', alone, in_verdict=False)
    alone = tuple(
        _between(f"{cell}_shifted_{readout}", f"{cell}_normal_{readout}", f"{CELLS[cell]}, {readout}")
        for cell, readout in itertools.product(CELLS, READOUTS)
    )
    title = "The initial vectors alone: N(-0.5, 1) in the place of N(0, 1)"
    yield Question(title, alone, in_verdict=False)
    alone = tuple(
        _between(f"lstm_{vectors}_{readout}", f"rnn_{vectors}_{readout}", f"{VECTORS[vectors]}, {readout}")
        for vectors, readout in itertools.product(VECTORS, READOUTS)
    )
    yield Question("The cell alone: an LSTM in the place of the tanh RNN", alone, in_verdict=False)
    extensions = tuple(_between(run, PACKED, what) for run, what in EXTENSIONS.items())
    yield Question("What the notebook only describes, against LSTMPackClassifier", extensions)


RNN_NOTEBOOK = Target(
    "The text models of a notebook on recurrent networks",
    ("top1", "running", "running_108800"),
    tuple(_networks()),
    "packed sequences are better than padded ones. Its LSTMPackClassifier has a running accuracy of 81.38 %, and"
    " its LSTMClassifier 77.28 %. Both draw their initial vectors from N(-0.5, 1): they differ in the readout"
    " alone.",
    "factors",
    note="The running accuracy is what the notebook prints: the mean over the training texts so far, each measured"
    " just before the network learns from it. It is no estimate of the accuracy on other texts, which the notebook"
    " does not measure. The readouts `mean` and `last` read the padding, so with them the held-out accuracy"
    " depends on the texts that share a batch; the batches are as large as in training. A share of a difference is"
    " what a change makes, averaged over all orders in which the three changes can be made one after another; the"
    " shares add up to the difference.",
    questions=tuple(_questions()),
    document="notebook",
    examples="texts",
    scales={
        "full": "the notebook's recipe on AG News: one epoch of 120,000 texts in batches of 16, Adam with a"
        " learning rate of 0.001",
        "small": "the notebook's recipe, but in the place of AG News on English sentences of docstrings, which are"
        " to be assigned to six packages: one epoch of about 42,000 sentences in batches of 16, and 4,600 held"
        " out. They are about a third as many as the texts of AG News, and shorter, and 32 % of them are of the"
        " largest class. It can show which choice matters on these sentences after so short a training; it does"
        " not say what AG News would show",
        "smoke": "4 steps of small networks: that everything runs, and nothing else",
    },
    seeds={"full": 5, "small": 5, "smoke": 1},
)
