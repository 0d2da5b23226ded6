"""Inception V3 on ImageNet as the paper trains it beside Xception (Chollet 2017, sections 4.2 and 4.3).

    python train.py --config configs/imagenet_inception_v3.py --workdir runs/inception --config.data.root=/data

Everything is as in configs/imagenet_xception.py, which says how to prepare the data, but for the weight decay of
4e-5. The network is the one whose parameters table 3 counts; --config.model.reading=canonical takes today's.
There is no auxiliary tower (section 4.3).

The paper's result: 78.2 % top-1, 94.1 % top-5 on one crop. This recipe has not yet been trained to the end.
"""

from configs import common, imagenet_xception


def get_config(variant: str = ""):
    """The recipe, or its "smoke" variant."""
    config = imagenet_xception.get_config()
    config.model = common.default("inception_v3").model
    config.model.reading = "paper"
    config.model.bn_group_size = 32
    config.model.dtype = "bfloat16"
    config.optimizer.weight_decay = 4e-5
    return common.variant(config, variant)
