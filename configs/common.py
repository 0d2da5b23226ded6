"""Every setting of a recipe, with the value that holds where a recipe says nothing.

What each may be is written in xception_jax/config.py; a wrong name, type or value stops the launch.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def default() -> ConfigDict:
    """The paper's Xception; a recipe adds data, optimizer, schedule and length."""
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 32  # images in a gradient step, all devices together
    config.accumulation_steps = 1  # parts a batch is computed in
    config.eval_batch_size = 100
    config.total_epochs = placeholder(float)  # one of the three; None and 0 = not this one
    config.total_steps = placeholder(int)
    config.total_samples = placeholder(int)
    config.label_smoothing = 0.0

    config.model = ConfigDict()
    config.model.name = "xception"
    config.model.num_classes = 1000
    config.model.in_channels = 3
    config.model.dropout = 0.5
    config.model.fc_layers = ()
    config.model.residual = True
    config.model.intermediate_activation = placeholder(str)
    config.model.segments = placeholder(int)
    config.model.stem_widths = (32, 64)
    config.model.stem_strides = (2, 1)
    config.model.stem_padding = "VALID"
    config.model.entry_widths = (128, 256, 728)
    config.model.middle_blocks = 8
    config.model.exit_widths = (1024, 1536, 2048)
    config.model.bn_epsilon = 1e-3
    config.model.bn_momentum = 0.99
    config.model.bn_group_size = placeholder(int)
    config.model.dtype = "float32"

    config.data = ConfigDict()
    config.data.source = "digits"
    config.data.root = placeholder(str)
    config.data.image_size = 299
    config.data.resize = "bilinear"
    config.data.crop_fraction = 0.875
    config.data.train_crop = "random_resized"
    config.data.pad_pixels = 4
    config.data.min_area = 0.08
    config.data.flip = True
    config.data.num_threads = 2
    config.data.num_workers = 0

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"
    config.optimizer.momentum = placeholder(float)  # None = the optimizer's own
    config.optimizer.nesterov = False
    config.optimizer.decay = placeholder(float)
    config.optimizer.epsilon = placeholder(float)
    config.optimizer.weight_decay = 1e-5
    config.optimizer.weight_decay_mode = "coupled"
    config.optimizer.weight_decay_paths = "kernel"
    config.optimizer.clip_norm = placeholder(float)

    config.schedule = ConfigDict()
    config.schedule.name = "exponential"
    config.schedule.base_lr = 0.045
    config.schedule.reference_batch = 1920
    config.schedule.lr_rule = "linear"
    config.schedule.decay_rate = 0.94
    config.schedule.decay_every_epochs = placeholder(float)  # one of the three
    config.schedule.decay_every_steps = placeholder(float)
    config.schedule.decay_every_samples = placeholder(float)
    config.schedule.staircase = True
    config.schedule.boundaries_epochs = ()
    config.schedule.factors = ()
    config.schedule.end_fraction = 0.0
    config.schedule.warmup_epochs = placeholder(float)  # at most one of the three
    config.schedule.warmup_steps = placeholder(float)
    config.schedule.warmup_samples = placeholder(float)

    config.polyak = ConfigDict()
    config.polyak.decay = 0.9999
    config.polyak.warmup = True

    config.log_every_steps = 100
    config.evaluate_every_epochs = placeholder(float)  # neither = at the end only
    config.evaluate_every_steps = placeholder(int)
    config.checkpoint_every_epochs = placeholder(float)
    config.checkpoint_every_steps = placeholder(int)
    config.checkpoints_to_keep = 3  # the latest ones; the best is kept besides
    return config


def variant(config: ConfigDict, name: str) -> ConfigDict:
    """The recipe itself for "", as in configs/NAME.py, or its `smoke` test, as in configs/NAME.py:smoke."""
    if name not in ("", "smoke"):
        raise ValueError(f"variant {name!r}: write configs/NAME.py or configs/NAME.py:smoke")
    return smoke(config) if name else config


def smoke(config: ConfigDict) -> ConfigDict:
    """The same recipe in seconds on any machine: 4 steps of 8 images, few blocks, the built-in digits."""
    config.batch_size = 8
    config.accumulation_steps = 1
    config.eval_batch_size = 90
    config.total_epochs = config.total_samples = None
    config.total_steps = 4
    config.model.num_classes = 10
    config.model.in_channels = 1
    config.model.middle_blocks = 1
    config.model.bn_group_size = None
    config.data.source = "digits"
    config.data.root = None
    config.data.image_size = min(config.data.image_size, 32)
    config.log_every_steps = 1
    config.evaluate_every_epochs = config.checkpoint_every_epochs = None
    config.evaluate_every_steps = config.checkpoint_every_steps = 2
    return config
