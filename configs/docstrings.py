"""A recurrent classifier on English sentences of docstrings: which package is it from?

The sentences come with the installed packages numpy, scipy, scikit-learn, matplotlib, jax and optax, so nothing is
downloaded; see docs/data.md. The model is a bidirectional GRU with dropout and averaged weights.

    python train.py --config configs/docstrings.py --workdir runs/docstrings

Expected: at least 77 % top-1 on the held-out sentences, in under 2 minutes on 2 CPU cores.
"""

from configs import common


def get_config(variant: str = ""):
    """The recipe, or its "smoke" variant."""
    config = common.default("packed_lstm_classifier")
    config.data.name = "docstrings"
    config.data.min_freq = 2
    config.batch_size = 64
    config.eval_batch_size = 200
    config.total_epochs = 3.0

    config.model.cell = "gru"
    config.model.bidirectional = True
    config.model.embedding_mean, config.model.embedding_stddev = 0.0, 0.1
    config.model.embedding_size = 64
    config.model.hidden_size = 64
    config.model.readout = "max"
    config.model.embedding_dropout = 0.3
    config.model.readout_dropout = 0.3

    config.optimizer.name = "adam"
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.schedule.name = "cosine"
    config.schedule.base_lr = 0.004
    config.schedule.reference_batch = 64
    config.averaging.decay = 0.99

    config.log_every_steps = 200
    config.evaluate_every_epochs = 1.0
    return common.variant(config, variant)
