"""configs/jft_inception_v3.py with two fully connected layers of 4,096 before the classes (Chollet 2017, table 2).

    python train.py --config configs/jft_inception_v3_fc.py --workdir runs/jft_fc --config.data.root=/data

The paper's result: MAP@100 6.50. This recipe has not yet been trained to the end.
"""

from configs import common, jft_inception_v3


def get_config(variant: str = ""):
    """The recipe, or its "smoke" variant."""
    config = jft_inception_v3.get_config()
    config.model.fc_layers = (4096, 4096)
    return common.variant(config, variant)
