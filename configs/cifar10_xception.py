"""Xception on CIFAR-10: 32 x 32 pixels, so with a stem of stride 1 and two halvings less.

    python train.py --config configs/cifar10_xception.py --workdir runs/cifar10 --config.data.root=DATA_DIR

DATA_DIR holds cifar10 as TFDS prepares it, in array_record format. The paper has no such experiment: network
and optimizer are its own, width and schedule are ours, the augmentation (4 pixels of padding, crop, mirror) is
the common one of He et al. 2016, section 4.2. Not yet trained to the end.
"""

from configs import common


def get_config(variant: str = "", name: str = "tfds:cifar10"):
    """The recipe, or its "smoke" variant."""
    config = common.default()
    config.batch_size = 128
    config.eval_batch_size = 500
    config.total_epochs = 200.0

    config.model.stem_widths = (32, 64)
    config.model.stem_strides = (1, 1)
    config.model.stem_padding = "SAME"
    config.model.entry_widths = (128, 256)
    config.model.exit_widths = (384, 512, 768)

    config.data.name = name
    config.data.image_size = 32
    config.data.train_crop = "pad"
    config.data.pad_pixels = 4
    config.data.eval_crop_fraction = 1.0
    config.data.num_threads = 8

    config.optimizer.weight_decay = 1e-4
    config.schedule.name = "cosine"
    config.schedule.base_lr = 0.1
    config.schedule.reference_batch = 128
    config.schedule.warmup_epochs = 5.0
    config.averaging.decay = 0.999

    config.log_every_steps = 100
    config.evaluate_every_epochs = 10.0
    return common.variant(config, variant)
