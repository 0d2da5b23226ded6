"""Keras's side of a race of text classifiers, as in text_step.py; runs in any python that has keras and jax.

The step is Keras's own for JAX, jitted, with batches that are on the device already.
"""

import keras_step
import protocol
import texts

LAYERS = {"rnn": "SimpleRNN", "lstm": "LSTM", "gru": "GRU"}


def make_steps(keras, jax, options):
    """A function that trains once on each batch and waits for it."""
    vectors = keras.layers.Embedding(
        options["vocabulary"], 64, mask_zero=True, trainable=not options["fixed_vectors"]
    )
    layer = getattr(keras.layers, LAYERS[options["cell"]])(options["hidden"])
    model = keras.Sequential([vectors, layer, keras.layers.Dense(4)])
    batches = [
        (jax.device_put(tokens), jax.device_put(labels)) for tokens, _, labels in texts.draw(options, multiple=16)
    ]
    model.build(batches[0][0].shape)
    update, state = keras_step.make(keras, jax, model, keras.optimizers.Adam(1e-3))

    def steps():
        nonlocal state
        for tokens, labels in batches:
            state, value = update(state, tokens, labels)
            value.block_until_ready()

    return steps


if __name__ == "__main__":
    protocol.serve(["keras", "jax"], make_steps)
