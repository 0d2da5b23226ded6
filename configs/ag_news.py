"""Recurrent classifiers on AG News (Zhang et al. 2015): 120,000 articles to train on, 7,600 to evaluate.

The recipe itself is a bidirectional GRU with dropout and averaged weights. Three variants are the models of the
lesson on recurrent networks in Microsoft's "AI for Beginners", as it trains them: batches of 16, one epoch, Adam
with a learning rate of 0.001.

    python train.py --config configs/ag_news.py --config.data.root=ag_news --workdir runs/ag_news
    python train.py --config configs/ag_news.py:packed_lstm --config.data.root=ag_news --workdir runs/packed_lstm

`data.root` is a folder with the official train.csv and test.csv. The variants are rnn, lstm and packed_lstm.

Goal of the recipe itself, not measured yet: at least 92 % top-1 on the test set. The lesson reports the running
accuracy of its training; `reproduce rnn_notebook` compares it.
"""

from configs import common

LESSON = {"rnn": "rnn_classifier", "lstm": "lstm_classifier", "packed_lstm": "packed_lstm_classifier"}


def get_config(variant: str = ""):
    """The recipe, its "smoke" variant, or one of the lesson's models."""
    if variant in LESSON:
        return lesson(common.default(LESSON[variant]))
    config = common.default("packed_lstm_classifier")
    config.data.name = "ag_news"
    config.data.min_freq = 2
    config.batch_size = 64
    config.eval_batch_size = 200
    config.total_epochs = 5.0

    config.model.cell = "gru"
    config.model.bidirectional = True
    config.model.embedding_mean, config.model.embedding_stddev = 0.0, 0.1
    config.model.embedding_size = 128
    config.model.hidden_size = 128
    config.model.readout = "max"
    config.model.embedding_dropout = 0.3
    config.model.readout_dropout = 0.5

    config.optimizer.name = "adam"
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0
    config.schedule.name = "cosine"
    config.schedule.base_lr = 0.002
    config.schedule.reference_batch = 64
    config.schedule.warmup_epochs = 0.1
    config.averaging.decay = 0.999

    config.log_every_steps = 200
    config.evaluate_every_epochs = 1.0
    return common.variant(config, variant)


def lesson(config):
    """Training as in the lesson, with its vocabulary, where 0 is both unknown tokens and padding."""
    config.data.name = "ag_news"
    config.model.embedding_size = 64
    config.data.vocabulary_order = "notebook"
    config.batch_size = 16
    config.eval_batch_size = 100
    config.total_epochs = 1.0
    config.optimizer.name = "adam"
    config.optimizer.weight_decay = 0.0
    config.schedule.name = "constant"
    config.schedule.base_lr = 0.001
    config.schedule.lr_rule = "none"
    config.averaging.decay = None
    config.log_every_steps = 200
    return config
