"""VGG-16 on ImageNet, table 1's first line, as its own paper trains it (Simonyan and Zisserman 2015, section 3.1).

    python train.py --config configs/imagenet_vgg16.py --workdir runs/vgg16 --config.data.root=/data

configs/imagenet_xception.py says how to prepare the data. From Simonyan and Zisserman: SGD, batches of 256,
momentum 0.9, weight decay 5e-4, dropout 0.5, learning rate 0.01 divided by 10 three times when the accuracy stops
rising, 370,000 steps (74 epochs). Ours: it is divided after 25, 45 and 60 epochs, crops are of random size and
shape, colors stay as they are, the initialization is He's, where they began from a shallower network, and weights
are averaged (Polyak) besides.

The paper's table 1: 71.5 % top-1, 90.1 % top-5 on one crop. This recipe has not yet been trained to the end.
"""

from configs import common


def get_config(variant: str = ""):
    """The recipe, or its "smoke" variant."""
    config = common.default("vgg16")
    config.batch_size = 256
    config.eval_batch_size = 1000
    config.total_epochs = 74.0

    config.model.dtype = "bfloat16"

    config.data.name = "tfds:imagenet2012"
    config.data.num_threads = 16

    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "piecewise"
    config.schedule.base_lr = 0.01
    config.schedule.reference_batch = 256
    config.schedule.boundaries_epochs = (25.0, 45.0, 60.0)
    config.schedule.factors = (0.1, 0.1, 0.1)

    config.evaluate_every_epochs = 2.0
    config.checkpoint_every_steps = 1000
    return common.variant(config, variant)
