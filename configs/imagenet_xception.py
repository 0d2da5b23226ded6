"""Xception on ImageNet as the paper trains it (Chollet 2017, sections 4.2 and 4.3).

    python -m xception_jax prepare imagenet2012 --train-tar ILSVRC2012_img_train.tar \\
        --val-tar ILSVRC2012_img_val.tar --out /data
    python train.py --config configs/imagenet_xception.py --workdir runs/imagenet --config.data.root=/data

or, with the images in train/CLASS/ and val/CLASS/, --config.data.name=folder --config.data.root=/data/imagenet.

From the paper: SGD, momentum 0.9, learning rate 0.045 times 0.94 every 2 epochs, weight decay 1e-5, dropout 0.5,
Polyak averaging. It gives neither batch size nor length nor augmentation. 60 GPUs x 32 images = 1,920, with batch
statistics of 32 images, is the natural reading of its set-up; here it is 64 x 32 = 2,048, which divides over
today's machines, with the learning rate scaled along. 120 epochs end the decay at 2.4 % of the initial rate.
Crops, interpolation and colors are those of TensorFlow's Inception training, the evaluation is TF-Slim's.

The paper's result: 79.0 % top-1, 94.5 % top-5 on one crop, in about 3 days on 60 K80 GPUs. This recipe has not yet
been trained to the end.
"""

from configs import common


def get_config(variant: str = ""):
    """The recipe, or its "smoke" variant."""
    config = common.default()
    config.batch_size = 2048
    config.eval_batch_size = 1000
    config.total_epochs = 120.0

    config.model.bn_group_size = 32
    config.model.dtype = "bfloat16"

    config.data.name = "tfds:imagenet2012"
    config.data.min_area = 0.05
    config.data.train_resize = "inception"
    config.data.eval_preset = "slim"
    config.data.num_threads = 16
    config.augment.color = "inception"

    config.schedule.base_lr = 0.045  # for 1,920 images; x batch_size / 1,920 = 0.048
    config.schedule.reference_batch = 1920
    config.schedule.lr_rule = "linear"
    config.schedule.decay_every_epochs = 2.0

    config.evaluate_every_epochs = 2.0
    config.checkpoint_every_steps = 1000
    return common.variant(config, variant)
