"""Xception on images with several labels each, listed in a manifest.

    python train.py --config configs/multilabel_xception.py --workdir runs/labels --config.data.root=images.csv

images.csv has the columns path and labels ("cat;sofa"), and perhaps split (train or val); --config.data.classes
names a file of the classes and their weights, in the loss and in MAP@100. Open Images in TFDS's format is
--config.data.name=tfds:open_images_v4.

After the paper's training on JFT (sections 4.1 and 4.3): RMSprop, learning rate 0.001 times 0.9 every 3,000,000
samples, no dropout, Polyak averaging. The paper says "momentum 0.9" of an optimizer whose Keras version of 2016
had no momentum but decay 0.9 and learning rate 0.001 as defaults; this is that version. Not yet trained to the
end.
"""

from configs import common


def get_config(variant: str = ""):
    """The recipe, or its "smoke" variant."""
    config = common.default()
    config.batch_size = 256
    config.eval_batch_size = 250
    config.total_epochs = 50.0

    config.model.dropout = 0.0
    config.model.dtype = "bfloat16"

    config.data.name = "manifest"
    config.data.num_threads = 16

    config.optimizer.name = "rmsprop_keras1"
    config.optimizer.momentum = None
    config.schedule.base_lr = 0.001
    config.schedule.lr_rule = "none"
    config.schedule.decay_rate = 0.9
    config.schedule.decay_every_samples = 3e6

    config.evaluate_every_epochs = 1.0
    return common.variant(config, variant)
