"""This package's side of a race of text classifiers: its training step on batches of several lengths.

argv[1] is a JSON object with cell, hidden, vocabulary, fixed_vectors, and lengths, the tokens of each text.
"""

import protocol
import texts


def make_steps(xception_jax, jax, options):
    """A function that trains once on each batch and waits for it."""
    from xception_jax import metrics, optim, state, step
    from xception_jax.run import memory
    from xception_jax.run.compiler import Programs

    memory.keep_freed_memory()
    model = xception_jax.create_model(
        "packed_lstm_classifier",
        cell=options["cell"],
        hidden_size=options["hidden"],
        vocab_size=options["vocabulary"],
        embedding_trained=not options["fixed_vectors"],
    )
    optimizer = optim.make_optimizer("adam", 1e-3, weight_decay=0.0)
    train_step = step.make_train_step(
        state.split(model)[0],
        optimizer,
        prepare=lambda batch, targets, train: ({name: batch[name] for name in ("tokens", "length")}, targets),
        objective=metrics.Objective(num_classes=4),
    )
    key = jax.random.key(0)
    jitted = jax.jit(train_step, donate_argnums=0)
    train_state = state.create(model, optimizer, averaging=False)
    programs = Programs(lambda batch: jitted.lower(train_state, batch, key))
    batches = [
        jax.device_put(
            {"tokens": tokens, "length": lengths, "label": labels, "seed": labels, "unreadable": -1 - labels}
        )
        for tokens, lengths, labels in texts.draw(options, multiple=16)
    ]
    compiled = [programs(batch) for batch in batches]

    def steps():
        nonlocal train_state
        for program, batch in zip(compiled, batches, strict=True):
            train_state, sums = program(train_state, batch, key)
            jax.block_until_ready(sums)

    return steps


if __name__ == "__main__":
    protocol.serve(["xception_jax", "jax"], make_steps)
