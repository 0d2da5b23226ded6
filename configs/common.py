"""Helpers of the recipes. docs/settings.md lists every setting with its type, range, default and meaning."""

from ml_collections import ConfigDict

from xception_jax.recipe import default_config, small_settings


def default(model: str = "xception") -> ConfigDict:
    """A model and its evaluation as its paper has them; a recipe adds data, optimizer, schedule and length.

    On the command line, None unsets a setting that may be unset, and 0 unsets a duration.
    """
    return default_config(model)


def variant(config: ConfigDict, name: str) -> ConfigDict:
    """The recipe itself for "", as in configs/NAME.py, or its `smoke` test, as in configs/NAME.py:smoke."""
    if name not in ("", "smoke"):
        raise ValueError(f"variant {name!r}: write configs/NAME.py or configs/NAME.py:smoke")
    return smoke(config) if name else config


def smoke(config: ConfigDict) -> ConfigDict:
    """The same recipe on its own data in seconds on any machine: 4 steps of 8 examples, a small network."""
    config.batch_size = 8
    config.accumulation_steps = 1
    config.eval_batch_size = 90
    config.total_epochs = config.total_samples = None
    config.total_steps = 4
    config.model.update(small_settings(config.model.name))
    if "fc_layers" in config.model:
        config.model.fc_layers = (32,) * len(config.model.fc_layers)
    if "bn_group_size" in config.model:
        config.model.bn_group_size = None
    if "image_size" in config.data:
        config.data.image_size = min(config.data.image_size, 32)
    config.log_every_steps = 1
    config.evaluate_every_epochs = config.checkpoint_every_epochs = None
    config.evaluate_every_steps = config.checkpoint_every_steps = 2
    return config
