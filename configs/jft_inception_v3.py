"""Inception V3 in the experiment of configs/jft_xception.py (Chollet 2017, table 2).

    python train.py --config configs/jft_inception_v3.py --workdir runs/jft_inception --config.data.root=/data

The weight decay is 4e-5 (section 4.3), the network the one whose parameters table 3 counts.

The paper's result: MAP@100 6.36. This recipe has not yet been trained to the end.
"""

from configs import common, jft_xception


def get_config(variant: str = ""):
    """The recipe, or its "smoke" variant."""
    config = jft_xception.experiment(common.default("inception_v3"))
    config.model.reading = "paper"
    config.optimizer.weight_decay = 4e-5
    return common.variant(config, variant)
