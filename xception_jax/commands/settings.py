"""Prints every setting of a recipe: its values, its default, its meaning."""

import argparse
import itertools
from collections.abc import Iterable

from xception_jax import models, recipe
from xception_jax.settings import Row

INTRODUCTION = """\
# Settings

This page is the output of a command, and a test compares it with the code:

```sh
python -m xception_jax settings > docs/settings.md
```

A recipe sets an attribute of its config, such as `config.optimizer.weight_decay = 1e-4`. On the command line
this is `--config.optimizer.weight_decay=1e-4`. A tuple is written in quotes, `--config.model.exit_widths="(64,
96, 128)"`. `None` unsets a setting that may be None, and 0 unsets a duration.

The defaults are those of `common.default(MODEL)` in `configs/common.py`, from which every recipe starts. A
setting whose default differs between models is listed with the models. `model.num_classes` and
`model.in_channels` are None at first, because the dataset determines them. `model.name` is the argument of
`common.default` and cannot be changed later.

## The run"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no flags."""


def run(arguments: argparse.Namespace) -> None:
    """Prints the page docs/settings.md."""
    print(markdown())


def markdown() -> str:
    """The settings that all models share, then those of each class of models."""
    tables = {name: recipe.settings_table(name) for name in models.MODELS}
    first, *others = tables.values()
    shared = [row for row in first if all(row in table for table in others)]
    parts = [INTRODUCTION]
    for section, members in itertools.groupby(shared, lambda row: row.name.rpartition(".")[0]):
        parts += [f"## {section}"] * bool(section) + [_table(members)]
    for cls in dict.fromkeys(cls for cls, _ in models.MODELS.values()):
        name, *variants = (name for name, (other, _) in models.MODELS.items() if other is cls)
        parts += [f"## {', '.join([name, *variants])}", _table([row for row in tables[name] if row not in shared])]
        for variant in variants:
            changed = [f"`{row.name} = {row.default}`" for row in tables[variant] if row not in tables[name]]
            parts += [f"`{variant}` has {', '.join(changed)}."]
    return "\n\n".join(parts)


def _table(members: Iterable[Row]) -> str:
    """Rows as a table in Markdown."""
    lines = ["| setting | values | default | meaning |", "| --- | --- | --- | --- |"]
    lines += [f"| `{row.name}` | {row.values} | `{row.default}` | {row.meaning} |" for row in members]
    return "\n".join(lines)
