"""ResNet-152 on ImageNet, table 1's second line, as its own paper trains it (He et al. 2016, section 3.4).

    python train.py --config configs/imagenet_resnet152.py --workdir runs/resnet152 --config.data.root=/data

configs/imagenet_xception.py says how to prepare the data. From He et al.: SGD, batches of 256, momentum 0.9,
weight decay 1e-4, learning rate 0.1 divided by 10 when the error stops falling, 600,000 steps (120 epochs), no
dropout. Ours: it is divided after 30, 60 and 90 epochs, crops are of random size and shape, colors stay as they
are, batch statistics are those of 32 images, the initialization is Keras's, where theirs is He's, and weights are
averaged (Polyak) besides.

The paper's table 1: 77.0 % top-1, 93.3 % top-5 on one crop. This recipe has not yet been trained to the end.
"""

from configs import common


def get_config(variant: str = ""):
    """The recipe, or its "smoke" variant."""
    config = common.default("resnet152")
    config.batch_size = 256
    config.eval_batch_size = 1000
    config.total_epochs = 120.0

    config.model.bn_group_size = 32
    config.model.dtype = "bfloat16"

    config.data.name = "tfds:imagenet2012"
    config.data.num_threads = 16

    config.optimizer.weight_decay = 1e-4
    config.schedule.name = "piecewise"
    config.schedule.base_lr = 0.1
    config.schedule.reference_batch = 256
    config.schedule.boundaries_epochs = (30.0, 60.0, 90.0)
    config.schedule.factors = (0.1, 0.1, 0.1)

    config.evaluate_every_epochs = 2.0
    config.checkpoint_every_steps = 1000
    return common.variant(config, variant)
