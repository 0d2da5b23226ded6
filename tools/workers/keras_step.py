"""Keras's training step for JAX, jitted, without the transfers of `fit`; all races against Keras share it."""


def make(keras, jax, model, optimizer, prepare=lambda inputs: inputs):
    """(update, state): update(state, inputs, labels) -> (new state, loss) takes over the memory of its state.

    Args:
      model: built, with logits as its output.
      optimizer: not built yet.
      prepare: traced; inputs of a step -> input of the model.
    """
    optimizer.build(model.trainable_variables)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def loss(trainable, others, inputs, labels):
        logits, others = model.stateless_call(trainable, others, prepare(inputs), training=True)
        return cross_entropy(labels, logits), others

    def update(state, inputs, labels):
        trainable, others, slots = state
        (value, others), gradients = jax.value_and_grad(loss, has_aux=True)(trainable, others, inputs, labels)
        trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
        return (trainable, others, slots), value

    variables = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
    return jax.jit(update, donate_argnums=0), tuple([variable.value for variable in group] for group in variables)
