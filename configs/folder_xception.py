"""Xception on 1,000 to 100,000 images of your own, from scratch on one GPU.

    python train.py --config configs/folder_xception.py --workdir runs/mine --config.data.root=FOLDER

FOLDER holds a folder of images for each class (a tenth of them is held out for validation), or such folders
below train/ and val/. Images much larger than 299 pixels are read faster after

    python -m xception_jax prepare folder --root FOLDER --out DATA_DIR --name mine --short-side 352
    python train.py ... --config.data.name=tfds:mine --config.data.root=DATA_DIR

Against overfitting there are dropout, strong crops, colors, RandAugment and mixup. Images are turned as the
camera was held, and shrunk with antialiasing. Ours, not the paper's; what it reaches depends on the images.
"""

from configs import common


def get_config(variant: str = ""):
    """The recipe, or its "smoke" variant."""
    config = common.default()
    config.batch_size = 64
    config.eval_batch_size = 128
    config.total_epochs = 100.0
    config.label_smoothing = 0.1

    config.model.dtype = "bfloat16"

    config.data.name = "folder"
    config.data.train_resize = "area"
    config.data.eval_resize = "area"
    config.data.min_area = 0.2
    config.data.exif_orientation = True
    config.data.randaugment_ops = 2
    config.data.randaugment_magnitude = 5.0
    config.data.num_threads = 16
    config.augment.color = "jitter"
    config.augment.mixup_alpha = 0.2

    config.schedule.name = "cosine"
    config.schedule.base_lr = 0.045
    config.schedule.reference_batch = 64
    config.schedule.warmup_epochs = 5.0
    config.averaging.decay = 0.999

    config.evaluate_every_epochs = 5.0
    return common.variant(config, variant)
