"""Texts in TFDS record files."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from xception_jax.data.sources import records
from xception_jax.data.sources.folder import Refusal
from xception_jax.data.text.examples import Corpus, Example, make_corpus
from xception_jax.errors import SettingError

# Importing this takes a second, see `data.sources.records`.

USUAL = (("text",), ("title", "description"), ("description",))  # features with the text, where a set has several


def load(name: str, *, root: str | None, train_split: str | None, eval_split: str | None) -> Corpus:
    """Texts with one label or several.

    The text is the only feature of TFDS's type Text, or the one called "text", or "title" and "description" with a
    blank between them, as in ag_news_subset. The label is the only ClassLabel, or else as in
    `data.sources.records.load`, which describes the other arguments too.

    Raises:
      SettingError: as `data.sources.records.load`, and for a text that is not UTF-8.
    """
    builder = records.find(name, root)
    layout = Layout.of(builder.info.features, f"tfds:{name}")
    splits = records.choose_splits(builder, root, train_split, eval_split, "text")
    refusal = functools.partial(SettingError, "root", root)
    examples = [
        example
        for part, split in zip(("train", "val"), splits, strict=True)
        for example in _read(builder, layout, split, part, refusal)
    ]
    return make_corpus(examples, layout.class_names, refusal, multilabel=layout.several)


class Layout(NamedTuple):
    """Which features of a record are the text and the labels.

    Attributes:
      texts: one feature, or two that a blank joins.
      several: whether the label is a sequence.
    """

    texts: tuple[str, ...]
    label: str
    several: bool
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, features: Mapping[str, Any], name: str) -> "Layout":
        """Finds them among the features of the set called `name`; SettingError if the set is not as in `load`."""
        texts = [key for key, feature in features.items() if isinstance(feature, tfds.features.Text)]
        kinds = {key: kind for key, x in features.items() if (kind := records.label_kind(x)) in ("one", "many")}
        usual = (keys for keys in USUAL if set(keys) <= set(texts))
        chosen = tuple(texts) if len(texts) == 1 else next(usual, None)
        label = next(iter(kinds)) if len(kinds) == 1 else "label"
        if chosen is None or label not in kinds:
            needs = "must have one Text, or one called 'text' or 'description', and one ClassLabel, or a 'label'"
            found = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())
            raise SettingError("name", name, f"{needs}; it has {found}")
        several = kinds[label] == "many"
        classes = features[label].feature if several else features[label]
        return cls(chosen, label, several, tuple(classes.names))


def _read(builder: Any, layout: Layout, split: str, part: str, refusal: Refusal) -> Iterator[Example]:
    """All texts of a split."""
    parser = tfds.features.FeaturesDict({key: builder.info.features[key] for key in (*layout.texts, layout.label)})
    source = records.open_split(builder, split)
    for index in range(len(source)):
        where = f"record {index} of {builder.info.name} {split}"
        try:
            values = parser.deserialize_example_np(source[index])
            text = " ".join(values[key].decode() for key in layout.texts)
        except UnicodeDecodeError:
            raise refusal(f"{where}: is not UTF-8; write the set again") from None
        except Exception as error:  # RuntimeError of array_record; TFDS raises all kinds for bytes of another form
            reason = str(error).split(";")[0] if isinstance(error, RuntimeError) else "is no record of TFDS"
            raise refusal(f"{where}: cannot be read: {reason}; write the set again") from error
        label = values[layout.label]
        if not layout.several and label == -1:
            raise refusal(f"{where}: has no label; name another split")
        labels = tuple(sorted({int(number) for number in label})) if layout.several else int(label)
        yield Example(text, labels, where, part)
