"""Every setting of a recipe, with the value that holds where a recipe says nothing.

What each may be is written in xception_jax/config.py; a wrong name, type or value stops the launch. A
`placeholder` is None; on the command line 0 sets a number back to that.
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
    config.weighted_loss = True  # by the data's weights of classes, if it has any; False = only MAP@100 is
    config.model = _model()
    config.data = _data()
    config.augment = _augment()
    config.optimizer = _optimizer()
    config.schedule = _schedule()
    config.polyak = _polyak()

    config.log_every_steps = 100
    config.evaluate_every_epochs = placeholder(float)  # neither = at the end only
    config.evaluate_every_steps = placeholder(int)
    config.checkpoint_every_epochs = placeholder(float)
    config.checkpoint_every_steps = placeholder(int)
    config.checkpoints_to_keep = 3  # the latest ones; the best is kept besides
    return config


def _model() -> ConfigDict:
    """Fields of `xception_jax.models.xception.Config`."""
    config = ConfigDict()
    config.name = "xception"
    config.num_classes = placeholder(int)  # None = what the data has
    config.in_channels = placeholder(int)
    config.dropout = 0.5
    config.fc_layers = ()
    config.residual = True
    config.intermediate_activation = placeholder(str)
    config.segments = placeholder(int)
    config.stem_widths = (32, 64)
    config.stem_strides = (2, 1)
    config.stem_padding = "VALID"
    config.entry_widths = (128, 256, 728)
    config.middle_blocks = 8
    config.exit_widths = (1024, 1536, 2048)
    config.bn_epsilon = 1e-3
    config.bn_momentum = 0.99
    config.bn_group_size = placeholder(int)
    config.implementation = placeholder(str)  # "xla" or "shift"; None = the fastest measured for the platform
    config.remat = False
    config.scan_middle = False
    config.dtype = "float32"
    return config


def _data() -> ConfigDict:
    """Images and what the host makes of them; see `xception_jax.data`."""
    config = ConfigDict()
    config.name = "digits"  # digits, digits_multilabel, synthetic, folder, manifest, tfds:NAME
    config.root = placeholder(str)  # the folder; the manifest's file; TFDS's data_dir
    config.train_split = placeholder(str)  # of tfds: None = train
    config.eval_split = placeholder(str)  # of tfds: None = validation, or else test
    config.eval_exclude = placeholder(str)  # file that lists validation images to leave out
    config.holdout = 0.1  # share for validation of a folder or manifest without such pictures
    config.classes = placeholder(str)  # of a manifest: file with the classes' order and weights
    config.image_size = 299
    config.train_crop = "random_resized"  # none, pad, random_resized
    config.train_resize = "bilinear"  # a method of data/resizing.py, or "inception": one of four at random
    config.pad_pixels = 4  # of "pad"
    config.min_area = 0.08  # of "random_resized": share of the image's area, and width / height
    config.max_area = 1.0
    config.min_aspect = 3 / 4
    config.max_aspect = 4 / 3
    config.randaugment_ops = 0
    config.randaugment_magnitude = 9.0
    config.eval_preset = placeholder(str)  # keras, slim or timm: replaces the three below
    config.eval_crop = "central"  # central, shorter_side
    config.eval_crop_fraction = 0.875
    config.eval_resize = "bilinear"
    config.exif_orientation = False  # True turns pictures as the camera was held; TFDS, Keras and torch do not
    config.max_unreadable = 0.01  # share of images that training may replace before it stops
    config.num_threads = 2
    config.num_workers = 0
    return config


def _augment() -> ConfigDict:
    """What the device makes of training images; see `xception_jax.augment.Augmentation`."""
    config = ConfigDict()
    config.flip = True
    config.color = "none"  # none, inception, inception_fast, jitter
    config.brightness = 0.4  # these four: of "jitter"
    config.contrast = 0.4
    config.saturation = 0.4
    config.hue = 0.0
    config.mixup_alpha = 0.0  # 0 = off
    config.cutmix_alpha = 0.0
    return config


def _optimizer() -> ConfigDict:
    """See `xception_jax.optim.make_optimizer`."""
    config = ConfigDict()
    config.name = "sgd"
    config.momentum = placeholder(float)  # None = the optimizer's own
    config.nesterov = False
    config.decay = placeholder(float)
    config.epsilon = placeholder(float)
    config.weight_decay = 1e-5
    config.weight_decay_mode = "coupled"
    config.weight_decay_paths = "kernel"
    config.clip_norm = placeholder(float)
    config.workers = 1  # more = as so many asynchronous ones, which takes the memory of a gradient for each
    return config


def _schedule() -> ConfigDict:
    """See `xception_jax.optim.make_schedule`."""
    config = ConfigDict()
    config.name = "exponential"
    config.base_lr = 0.045
    config.reference_batch = 1920
    config.lr_rule = "linear"
    config.decay_rate = 0.94
    config.decay_every_epochs = placeholder(float)  # one of the three
    config.decay_every_steps = placeholder(float)
    config.decay_every_samples = placeholder(float)
    config.staircase = True
    config.boundaries_epochs = ()
    config.factors = ()
    config.end_fraction = 0.0
    config.warmup_epochs = placeholder(float)  # at most one of the three
    config.warmup_steps = placeholder(float)
    config.warmup_samples = placeholder(float)
    return config


def _polyak() -> ConfigDict:
    """Polyak averaging."""
    config = ConfigDict()
    config.decay = 0.9999
    config.warmup = True
    return config


def variant(config: ConfigDict, name: str) -> ConfigDict:
    """The recipe itself for "", as in configs/NAME.py, or its `smoke` test, as in configs/NAME.py:smoke."""
    if name not in ("", "smoke"):
        raise ValueError(f"variant {name!r}: write configs/NAME.py or configs/NAME.py:smoke")
    return smoke(config) if name else config


def smoke(config: ConfigDict) -> ConfigDict:
    """The same recipe on its own data in seconds on any machine: 4 steps of 8 images, a small network."""
    config.batch_size = 8
    config.accumulation_steps = 1
    config.eval_batch_size = 90
    config.total_epochs = config.total_samples = None
    config.total_steps = 4
    config.model.entry_widths = (32, 64)
    config.model.middle_blocks = 1
    config.model.exit_widths = (64, 96, 128)
    config.model.bn_group_size = None
    config.data.image_size = min(config.data.image_size, 32)
    config.log_every_steps = 1
    config.evaluate_every_epochs = config.checkpoint_every_epochs = None
    config.evaluate_every_steps = config.checkpoint_every_steps = 2
    return config
