"""Prints every setting of a recipe: its values, its default, its meaning."""

import argparse
import itertools
from collections.abc import Iterable, Iterator, Sequence

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
setting whose default differs between models is listed with the models. `model.num_classes`, `model.in_channels`,
`model.vocab_size` and `model.embedding_size` are None at first, because the dataset determines them. `model.name`
is the argument of `common.default` and cannot be changed later.

## The run"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no flags."""


def run(arguments: argparse.Namespace) -> None:
    """Prints the page docs/settings.md."""
    print(markdown())


def markdown() -> str:
    """The settings that all models share, then those of each modality, and of each class of its models."""
    tables = {name: recipe.settings_table(name) for name in models.MODELS}
    shared = _shared(tables.values())
    parts = [INTRODUCTION, *_by_section(shared)]
    for modality in dict.fromkeys(cls.INPUTS for cls, _ in models.MODELS.values()):
        own = {name: tables[name] for name, (cls, _) in models.MODELS.items() if modality == cls.INPUTS}
        inputs = [row for row in _shared(own.values()) if row not in shared]
        parts += [f"## Models that read {modality}", *_by_section(inputs, modality)]
        for cls in dict.fromkeys(models.model_class(name) for name in own):
            name, *variants = (name for name in own if models.model_class(name) is cls)
            parts += [f"## {', '.join([name, *variants])}"]
            parts += [_table([row for row in tables[name] if row not in [*shared, *inputs]])]
            for variant in variants:
                changed = [f"`{row.name} = {row.default}`" for row in tables[variant] if row not in tables[name]]
                parts += [f"`{variant}` has {', '.join(changed)}."]
    return "\n\n".join(parts)


def _shared(tables: Iterable[Sequence[Row]]) -> list[Row]:
    """The rows that all tables have."""
    first, *others = tables
    return [row for row in first if all(row in table for table in others)]


def _by_section(rows: Iterable[Row], modality: str = "") -> Iterator[str]:
    """A heading and a table for each section of the recipe."""
    for section, members in itertools.groupby(rows, lambda row: row.name.rpartition(".")[0]):
        if section:
            yield f"### {section} ({modality})" if modality else f"## {section}"
        yield _table(members)


def _table(members: Iterable[Row]) -> str:
    """Rows as a table in Markdown."""
    lines = ["| setting | values | default | meaning |", "| --- | --- | --- | --- |"]
    lines += [f"| `{row.name}` | {row.values} | `{row.default}` | {row.meaning} |" for row in members]
    return "\n".join(lines)
