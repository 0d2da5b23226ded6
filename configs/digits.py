"""A small Xception on scikit-learn's 1,797 handwritten digits: the whole system in minutes on a laptop.

The network of Chollet 2017, figure 5, narrower and with a stride-1 stem, trained as section 4 trains it on
ImageNet: SGD with momentum, exponential decay, dropout, Polyak averaging.

    python train.py --config configs/digits.py --workdir runs/digits

Expected: at least 97 % top-1 on the 360 held-out digits, for raw and averaged weights, in under 3 minutes on
2 CPU cores.
"""

from configs import common


def get_config(variant: str = ""):
    """The recipe, or its "smoke" variant."""
    config = common.default()
    config.batch_size = 32
    config.eval_batch_size = 90
    config.total_epochs = 30.0

    config.model.stem_widths = (16, 32)
    config.model.stem_strides = (1, 1)
    config.model.stem_padding = "SAME"
    config.model.entry_widths = (32, 64, 96)
    config.model.middle_blocks = 2
    config.model.exit_widths = (128, 160, 192)
    config.model.bn_momentum = 0.9

    config.data.name = "digits"
    config.data.image_size = 16
    config.data.train_crop = "pad"
    config.data.pad_pixels = 2
    config.data.eval_crop_fraction = 1.0
    config.augment.flip = False

    config.schedule.base_lr = 0.045
    config.schedule.reference_batch = 32
    config.schedule.decay_every_epochs = 2.0

    config.averaging.decay = 0.99

    config.log_every_steps = 90
    config.evaluate_every_epochs = 5.0
    return common.variant(config, variant)
