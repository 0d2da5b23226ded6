"""Every setting of a recipe, with the value that holds where a recipe says nothing.

What each may be is written in xception_jax/config.py; a wrong name, type or value stops the launch. A
`placeholder` is None; on the command line 0 sets a number back to that.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def default(model: str = "xception") -> ConfigDict:
    """A model as its paper has it; a recipe adds data, optimizer, schedule and length."""
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
    config.model = MODELS[model](model)
    config.data = _data()
    if model in ("vgg16", "resnet50", "resnet101", "resnet152"):  # the others see 299 pixels
        config.data.image_size, config.data.eval_crop = 224, "shorter_side"
    config.augment = _augment()
    config.optimizer = _optimizer()
    config.schedule = _schedule()
    config.polyak = _polyak()
    config.mesh = _mesh()

    config.log_every_steps = 100
    config.evaluate_every_epochs = placeholder(float)  # neither = at the end only
    config.evaluate_every_steps = placeholder(int)
    config.checkpoint_every_epochs = placeholder(float)
    config.checkpoint_every_steps = placeholder(int)
    config.checkpoints_to_keep = 3  # the latest ones; the best is kept besides
    return config


def _network(name: str, *, dropout: float, fc_layers: tuple[int, ...] = ()) -> ConfigDict:
    """What every model has."""
    config = ConfigDict()
    config.name = name
    config.num_classes = placeholder(int)  # None = what the data has
    config.in_channels = placeholder(int)
    config.dropout = dropout
    config.fc_layers = fc_layers
    config.implementation = placeholder(str)  # "xla" or "shift"; None = the fastest measured for the platform
    config.dtype = "float32"
    return config


def _normalized(name: str, *, dropout: float, epsilon: float = 1e-3) -> ConfigDict:
    """What every model with batch normalization has."""
    config = _network(name, dropout=dropout)
    config.bn_epsilon = epsilon
    config.bn_momentum = 0.99
    config.bn_group_size = placeholder(int)
    return config


def _xception(name: str) -> ConfigDict:
    """Fields of `xception_jax.models.xception.Config`."""
    config = _normalized(name, dropout=0.5)
    config.residual = True
    config.intermediate_activation = placeholder(str)
    config.segments = placeholder(int)
    config.stem_widths = (32, 64)
    config.stem_strides = (2, 1)
    config.stem_padding = "VALID"
    config.entry_widths = (128, 256, 728)
    config.middle_blocks = 8
    config.exit_widths = (1024, 1536, 2048)
    config.remat = False
    config.scan_middle = False
    return config


def _inception_v3(name: str) -> ConfigDict:
    """Fields of `xception_jax.models.inception_v3.Config`."""
    config = _normalized(name, dropout=0.5)
    config.reading = "canonical"
    config.width = 1.0
    config.modules = (3, 4, 2)
    config.stem_strides = (2, 2, 2)
    config.padding = "VALID"
    return config


def _resnet(name: str) -> ConfigDict:
    """Fields of `xception_jax.models.resnet.Config`."""
    config = _normalized(name, dropout=0.0, epsilon=1.001e-5)
    config.blocks = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}[name]
    config.widths = (64, 128, 256, 512)
    config.stem_width = 64
    config.stem_strides = (2, 2)
    config.use_bias = True
    return config


def _vgg16(name: str) -> ConfigDict:
    """Fields of `xception_jax.models.vgg.Config`."""
    config = _network(name, dropout=0.5, fc_layers=(4096, 4096))
    config.image_size = 224
    config.stages = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
    return config


def _vgg16_separable(name: str) -> ConfigDict:
    """Fields of `xception_jax.models.vgg.SeparableConfig`."""
    config = _normalized(name, dropout=0.5)
    config.stages = ((233,) * 2, (465,) * 2, (931,) * 3, (1862,) * 3, (1862,) * 3)
    return config


MODELS = {
    "xception": _xception,
    "inception_v3": _inception_v3,
    "resnet50": _resnet,
    "resnet101": _resnet,
    "resnet152": _resnet,
    "vgg16": _vgg16,
    "vgg16_separable": _vgg16_separable,
}


def _data() -> ConfigDict:
    """Images and what the host makes of them; see `xception_jax.data`."""
    config = ConfigDict()
    config.name = "digits"  # digits, digits_multilabel, synthetic, folder, manifest, tfds:NAME
    config.root = placeholder(str)  # the folder; the manifest's file; TFDS's data_dir
    config.train_split = placeholder(str)  # of tfds: None = train
    config.eval_split = placeholder(str)  # of tfds: None = validation, or else test
    config.label = placeholder(str)  # of tfds: the feature with the classes, where a set has several
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
    """What the device makes of training images; see `xception_jax.data.images.augment.Augmentation`."""
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
    config.boundaries_epochs = ()  # of "piecewise": from each on, the rate is multiplied by the factor beside it
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


def _mesh() -> ConfigDict:
    """How the devices share the work."""
    config = ConfigDict()
    config.model = 1  # devices that split the classes of the last layer, where these are too many for each one
    return config


def variant(config: ConfigDict, name: str) -> ConfigDict:
    """The recipe itself for "", as in configs/NAME.py, or its `smoke` test, as in configs/NAME.py:smoke."""
    if name not in ("", "smoke"):
        raise ValueError(f"variant {name!r}: write configs/NAME.py or configs/NAME.py:smoke")
    return smoke(config) if name else config


SMALL = {  # by model: the settings of a network that is trained in seconds
    "xception": {"entry_widths": (32, 64), "middle_blocks": 1, "exit_widths": (64, 96, 128)},
    "inception_v3": {"width": 0.1, "modules": (1, 0, 0), "padding": "SAME"},
    "resnet50": {"blocks": (1, 2), "widths": (4, 8), "stem_width": 8},
    "resnet101": {"blocks": (1, 2), "widths": (4, 8), "stem_width": 8},
    "resnet152": {"blocks": (1, 2), "widths": (4, 8), "stem_width": 8},
    "vgg16": {"image_size": 32, "stages": ((8,), (16,), (32,))},
    "vgg16_separable": {"stages": ((8,), (16,), (32,))},
}


def smoke(config: ConfigDict) -> ConfigDict:
    """The same recipe on its own data in seconds on any machine: 4 steps of 8 images, a small network."""
    config.batch_size = 8
    config.accumulation_steps = 1
    config.eval_batch_size = 90
    config.total_epochs = config.total_samples = None
    config.total_steps = 4
    config.model.update(SMALL[config.model.name])
    config.model.fc_layers = (32,) * len(config.model.fc_layers)
    if "bn_group_size" in config.model:
        config.model.bn_group_size = None
    config.data.image_size = min(config.data.image_size, 32)
    config.log_every_steps = 1
    config.evaluate_every_epochs = config.checkpoint_every_epochs = None
    config.evaluate_every_steps = config.checkpoint_every_steps = 2
    return config
