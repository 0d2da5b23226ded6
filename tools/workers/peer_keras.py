"""Keras's side of a race of steps. Runs by its path in any python that has keras and jax.

argv[1] is a JSON object with model, mode, batch, image_size, classes and amp (bfloat16 computation). The steps are
Keras's own for JAX, jitted, with images that are on the device already and a loss that stays there: `fit` would
add the transfers.
"""

import os

import keras_step
import protocol


def make_step(keras, jax, options):
    """A function that runs one step and waits for it."""
    return (train_step if options["mode"] == "train" else inference_step)(jax, keras, options)


def make_model(jax, keras, options):
    """(model, images uint8[N, H, W, 3], labels int32[N]), on the device."""
    if options["amp"]:
        keras.config.set_dtype_policy("mixed_bfloat16")
    n, size, classes = options["batch"], options["image_size"], options["classes"]
    model = getattr(keras.applications, options["model"])(
        weights=None, input_shape=(size, size, 3), classes=classes, classifier_activation=None
    )
    image_key, label_key = jax.random.split(jax.random.key(0))
    image = jax.random.randint(image_key, (n, size, size, 3), 0, 256).astype("uint8")
    return model, image, jax.random.randint(label_key, (n,), 0, classes)


def train_step(jax, keras, options):
    """A function that updates the model once and waits for it."""
    model, image, label = make_model(jax, keras, options)
    update, state = keras_step.make(keras, jax, model, keras.optimizers.SGD(0.01, momentum=0.9), normalize)

    def step():
        nonlocal state
        state, value = update(state, image, label)
        jax.block_until_ready((state, value))

    return step


def inference_step(jax, keras, options):
    """A function that computes the logits once and waits for them."""
    model, image, _ = make_model(jax, keras, options)

    @jax.jit
    def predict(trainable, others, image):
        return model.stateless_call(trainable, others, normalize(image), training=False)[0]

    trainable = [variable.value for variable in model.trainable_variables]
    others = [variable.value for variable in model.non_trainable_variables]
    return lambda: jax.block_until_ready(predict(trainable, others, image))


def normalize(image):
    """Pixels uint8 -> [-1, 1]."""
    return (image.astype("float32") / 255 - 0.5) / 0.5


if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "jax"
    protocol.serve(["keras", "jax"], make_step)
