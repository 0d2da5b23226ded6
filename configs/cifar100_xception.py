"""Xception on CIFAR-100: the network and training of configs/cifar10_xception.py, on 100 classes.

    python train.py --config configs/cifar100_xception.py --workdir runs/cifar100 --config.data.root=DATA_DIR

DATA_DIR holds cifar100 as TFDS prepares it, in array_record format. Its images have two labels; the fine one is
learnt. Not yet trained to the end.
"""

from configs import cifar10_xception


def get_config(variant: str = ""):
    """The recipe, or its "smoke" variant."""
    return cifar10_xception.get_config(variant, name="tfds:cifar100")
