"""Labelled texts in memory, which every source of texts gives."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from xception_jax.data.sources.folder import Label, Refusal, in_share, missing_classes


class Example(NamedTuple):
    """A text, its label or its labels in ascending order, its name, and its part if that is settled."""

    text: str
    label: Label
    where: str
    split: str | None = None  # "train" or "val"


@dataclasses.dataclass(frozen=True)
class Part:
    """The training or the validation texts.

    Attributes:
      labels: int32[N], or a tuple of ints in ascending order for each text.
      where: names the texts in messages, such as "train.csv, line 17".
    """

    texts: Sequence[str]
    labels: np.ndarray | Sequence[tuple[int, ...]]
    where: Sequence[str]

    @property
    def name(self) -> Callable[[int], str]:
        """Index -> name of the text. It can be pickled, without the texts."""
        return self.where.__getitem__


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The texts of one task.

    Attributes:
      class_names: in the order of the labels.
      multilabel: a text has any number of labels instead of one.
      notes: what the user should know about how the texts were found, a line each.
    """

    train: Part
    validation: Part
    class_names: tuple[str, ...]
    multilabel: bool = False
    notes: tuple[str, ...] = ()


def make_corpus(
    examples: Iterable[Example],
    class_names: Sequence[str],
    refusal: Refusal,
    *,
    holdout: float = 0.0,
    multilabel: bool = False,
    notes: Iterable[str] = (),
) -> Corpus:
    """The texts in two parts, with notes on classes that one part lacks and on texts in both.

    Args:
      holdout: share of the texts without `split` that goes to validation, chosen by a hash of the text.

    Raises:
      SettingError: if one of the parts has no texts.
    """
    parts: dict[str, list[Example]] = {"train": [], "val": []}
    undecided = 0
    for example in examples:
        undecided += example.split is None
        part = "val" if is_held_out(example.text, holdout) else "train"
        parts[example.split or part].append(example)
    for name, found in parts.items():
        if not found:
            reason = f"; a hash of the text chooses them: change holdout = {holdout}, or add texts" * (
                undecided > 0
            )
            raise refusal(f"no texts for {name}{reason or '; add some'}")
    train, validation = map(_make_part, parts.values())
    notes = [*notes, *missing_classes(class_names, train, validation, "text")]
    if undecided:
        notes.append(f"{holdout:.0%} of {undecided:,} texts held out, chosen by a hash of the text")
    if shared := len(set(train.texts).intersection(validation.texts)):
        notes.append(f"{shared:,} texts are in the training and in the validation part")
    return Corpus(train, validation, tuple(class_names), multilabel, tuple(notes))


def _make_part(examples: Sequence[Example]) -> Part:
    texts, labels, where, _ = zip(*examples, strict=True)
    return Part(texts, labels if isinstance(labels[0], tuple) else np.array(labels, np.int32), where)


def is_held_out(text: str, share: float) -> bool:
    """Whether a text belongs to the share that is held out.

    The SHA-256 of the text alone decides, so other texts change nothing, and equal texts stay together.
    """
    return in_share(text.encode(), share)
