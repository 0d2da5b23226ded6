"""Xception on a large multi-label set, after the paper's experiment on JFT (Chollet 2017, sections 4.1 to 4.4).

    python train.py --config configs/jft_xception.py --workdir runs/jft --config.data.root=/data

JFT, 350 million images in 17,000 classes, is Google's own. The public set nearest to it is Open Images V4, of
which TFDS has 1.74 million images with 19,995 image-level labels:
tfds.builder("open_images_v4", file_format="array_record").download_and_prepare() fetches 565 GiB.
--config.data.label=objects_trainable leaves the 7,186 labels that its makers call trainable. On handwritten
digits, several on a canvas, the same experiment takes a minute or two:
--config configs/reproduction.py:small/jft_xception.

From the paper: RMSprop, learning rate 0.001 times 0.9 every 3,000,000 samples, weight decay 1e-5, no dropout,
Polyak averaging, MAP@100 with class weights, which the loss does not have. (Open Images has no weights either; a
manifest's --config.data.classes can give some.) Its "momentum 0.9" is read as the decay of Keras's RMSprop of
2016, which had no momentum and the learning rate 0.001. It gives no batch size; 60 x 32 = 1,920, the natural
reading, is here 2,048, with batch statistics of 32.

It trained asynchronously, for speed. --config.optimizer.replicas=60 --config.batch_size=32
--config.checkpoint_every_steps=60000 replays sixty workers of 32 images in turn: the parameters get the updates
that these would give; averages and batch statistics count every gradient. That takes the memory of 60 gradients,
in checkpoints too: 15 GB, or 31 GB with the fully connected layers. The default is synchronous.
--config.mesh.model=K splits the last layer over groups of K devices; K must divide the number of classes:
19,995 = 3 x 5 x 31 x 43, 7,186 = 2 x 3,593.

The paper's result: MAP@100 6.70 on FastEval14k after 30 million iterations, over a month on 60 K80 GPUs, not
converged. This recipe has not yet been trained to the end.
"""

from configs import common


def get_config(variant: str = ""):
    """The recipe, or its "smoke" variant."""
    return common.variant(experiment(common.default("xception")), variant)


def experiment(config):
    """What all four networks of the experiment have: data, optimizer, schedule, length."""
    config.batch_size = 2048
    config.eval_batch_size = 1024
    config.total_epochs = 50.0
    config.weighted_loss = False

    config.model.dropout = 0.0
    config.model.bn_group_size = 32
    config.model.dtype = "bfloat16"

    config.data.name = "tfds:open_images_v4"
    config.data.label = "objects"
    config.data.eval_preset = "slim"
    config.data.num_threads = 16

    config.optimizer.name = "rmsprop_keras1"
    config.schedule.base_lr = 0.001
    config.schedule.lr_rule = "none"
    config.schedule.decay_rate = 0.9
    config.schedule.decay_every_samples = 3e6

    config.evaluate_every_epochs = 1.0
    config.checkpoint_every_steps = 1000
    return config
