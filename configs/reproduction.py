"""The runs behind the paper's tables and figures (Chollet 2017, section 4) and a notebook, each at three scales.

    python -m xception_jax reproduce TARGET --scale SCALE    # trains what it needs, and reports
    python train.py --config configs/reproduction.py:SCALE/RUN --workdir DIR    # one run

SCALE is
    full   the recipes of configs/imagenet_*.py and configs/jft_*.py as they are, for accelerators
    small  the same networks layer by layer, but thin, on scikit-learn's handwritten digits and on canvases of
           several digits, in the place of ImageNet and JFT: on 2 CPU cores 40 seconds for Xception
    smoke  shallow besides, 4 steps: whether it runs

The text models are those of the notebook, see configs/ag_news.py. The small scale has docstrings, not AG News.
Their names are CELL_VECTORS_READOUT, and gru, two_layers and bidirectional, which change lstm_shifted_packed.

All other small runs have the optimizers of section 4.2, VGG-16 with a lower learning rate. Xception has 192,178
parameters there, Inception V3 2.7 % more (in the paper 3.4 %), any number of segments within 0.3 % as many.
VGG-16 has an eighth of its widths and sees 32 x 32 pixels, which its five poolings need; ResNet-152 has a tenth.
"""

from configs import (
    ag_news,
    common,
    imagenet_inception_v3,
    imagenet_resnet152,
    imagenet_vgg16,
    imagenet_xception,
    jft_inception_v3,
    jft_inception_v3_fc,
    jft_xception,
    jft_xception_fc,
)

# Segments -> widths of modules 2-4, and of the last layers, that leave the number of parameters as it is: at full
# scale 22,855,952 within 0.03 %, at the others 192,178 within 0.3 %.
MATCHED = {
    "full": {
        1: ((40, 88, 256), (344, 520, 696)),
        2: ((64, 120, 336), (488, 728, 992)),
        3: ((72, 144, 392), (560, 840, 1120)),
        4: ((80, 152, 432), (616, 928, 1232)),
        8: ((88, 184, 528), (736, 1104, 1488)),
        16: ((104, 208, 608), (832, 1256, 1688)),
        32: ((112, 224, 664), (912, 1360, 1824)),
        64: ((120, 240, 696), (960, 1440, 1928)),
    },
    "small": {
        1: ((11, 17, 23), (34, 45, 63)),
        2: ((15, 23, 31), (46, 59, 66)),
        3: ((18, 27, 36), (53, 71, 82)),
        4: ((20, 30, 40), (59, 76, 87)),
        8: ((24, 36, 48), (72, 99, 128)),
        16: ((28, 41, 55), (83, 114, 145)),
        32: ((30, 45, 60), (93, 124, 156)),
        64: ((32, 48, 64), (95, 127, 152)),
    },
}

# Run -> (recipe, what is different from it).
RUNS = {
    "xception": (imagenet_xception, {}),
    "inception_v3": (imagenet_inception_v3, {}),
    "resnet152": (imagenet_resnet152, {}),
    "vgg16": (imagenet_vgg16, {}),
    "xception_without_residuals": (imagenet_xception, {"model.residual": False}),
    "xception_relu": (imagenet_xception, {"model.intermediate_activation": "relu"}),
    "xception_elu": (imagenet_xception, {"model.intermediate_activation": "elu"}),
    **{f"segments_{n}": (imagenet_xception, {"model.segments": n}) for n in MATCHED["full"]},
    "jft_xception": (jft_xception, {}),
    "jft_inception_v3": (jft_inception_v3, {}),
    "jft_xception_fc": (jft_xception_fc, {}),
    "jft_inception_v3_fc": (jft_inception_v3_fc, {}),
}

# Run of a text model -> settings of the model.
VECTORS = {"normal": 0.0, "shifted": -0.5}  # mean of the initial vectors
TEXT_RUNS = {
    f"{cell}_{vectors}_{readout}": {"cell": cell, "embedding_mean": mean, "readout": readout}
    for cell in ("rnn", "lstm")
    for vectors, mean in VECTORS.items()
    for readout in ("mean", "last", "packed")
}
TEXT_RUNS |= {
    run: TEXT_RUNS["lstm_shifted_packed"] | changes
    for run, changes in {
        "gru": {"cell": "gru"},
        "two_layers": {"layers": 2},
        "bidirectional": {"bidirectional": True},
    }.items()
}

THIN = {
    "xception": {
        "stem_widths": (8, 16),
        "stem_strides": (1, 1),
        "stem_padding": "SAME",
        "entry_widths": (32, 48, 64),
        "exit_widths": (96, 128, 160),
    },
    "inception_v3": {"width": 0.095, "stem_strides": (1, 2, 1), "padding": "SAME"},
    "resnet152": {"stem_width": 6, "stem_strides": (1, 1), "widths": (6, 12, 24, 48)},
    "vgg16": {
        "image_size": 32,
        "stages": ((8, 8), (16, 16), (32,) * 3, (64,) * 3, (64,) * 3),
        "fc_layers": (512, 512),
    },
}
THIN_FC = (320, 320)  # for the two layers of 4096

SHALLOW = {
    "xception": {"middle_blocks": 1},
    "inception_v3": {"modules": (1, 1, 1)},
    "resnet152": {"blocks": (1, 1, 1, 1)},
    "vgg16": {"stages": ((8,), (16,), (32,), (64,), (64,))},
}


def get_config(variant: str):
    """The recipe of "SCALE/RUN"."""
    scale, _, run = variant.partition("/")
    if scale not in ("full", "small", "smoke") or run not in RUNS | TEXT_RUNS:
        runs = ", ".join(RUNS | TEXT_RUNS)
        raise ValueError(f"variant {variant!r}: write SCALE/RUN, full, small or smoke / one of {runs}")
    if run in TEXT_RUNS:
        return _of_texts(scale, TEXT_RUNS[run])
    recipe, changes = RUNS[run]
    config = recipe.get_config()
    config.update_from_flattened_dict(changes)
    if scale != "full":
        _shrink(config, multilabel=run.startswith("jft_"))
    if config.model.name == "xception" and config.model.segments is not None:
        widths = MATCHED["full" if scale == "full" else "small"][config.model.segments]
        config.model.entry_widths, config.model.exit_widths = widths
    if scale == "smoke":
        config.model.update(SHALLOW[config.model.name])
        config.model.implementation = "xla"  # compiles faster
        config.total_epochs = None
        config.total_steps = 4
        config.evaluate_every_steps, config.evaluate_every_epochs = 2, None
    return config


def _of_texts(scale: str, changes: dict):
    """A recipe of the notebook: one epoch in batches of 16, Adam, no averaging."""
    config = ag_news.get_config("packed_lstm")
    config.model.update(changes)
    config.eval_batch_size = config.batch_size  # as much padding as in training, which some readouts read
    if scale != "full":
        config.data.name = "docstrings"
    if scale == "smoke":
        config.model.embedding_size = config.model.hidden_size = 8
        config.data.max_length = 16  # one length, so one program
        config.eval_batch_size = 200
        config.total_epochs, config.total_steps = None, 4
    return config


def _shrink(config, *, multilabel: bool) -> None:
    """From the paper's data to digits, and to a network of a hundredth of the parameters."""
    config.batch_size = 32
    config.total_samples = config.total_steps = None
    config.log_every_steps = 45
    config.checkpoint_every_steps = config.checkpoint_every_epochs = None

    config.model.update(THIN[config.model.name])
    config.model.dtype = "float32"
    if "bn_momentum" in config.model:
        config.model.bn_momentum, config.model.bn_group_size = 0.9, None
    if multilabel and config.model.fc_layers:
        config.model.fc_layers = THIN_FC

    config.data = common.default().data
    config.data.name = "digits_multilabel" if multilabel else "digits"
    config.data.image_size = config.model.get("image_size", 24 if multilabel else 16)
    config.data.train_crop = "none" if multilabel else "pad"
    config.data.pad_pixels = config.data.image_size // 8
    config.data.eval_crop_fraction = 1.0
    config.augment.flip = False
    config.augment.color = "none"

    paper = (jft_xception if multilabel else imagenet_xception).get_config()
    config.label_smoothing = 0.0
    decay = config.optimizer.weight_decay
    config.optimizer, config.schedule = paper.optimizer, paper.schedule
    config.optimizer.weight_decay = decay
    config.schedule.lr_rule = "none"
    if config.model.name == "vgg16":  # has no normalization, and from 0.045 does not learn
        config.schedule.base_lr = 0.01
    config.averaging.decay = 0.99
    config.eval_batch_size = 128 if multilabel else 90
    config.total_epochs = 2.0 if multilabel else 10.0
    config.evaluate_every_steps = None
    config.evaluate_every_epochs = 0.2 if multilabel else 1.0
    if multilabel:
        config.schedule.decay_every_samples = 2048.0
