"""The `Inputs` of texts: settings, token ids, and padding to the longest text of a batch."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import jax
import numpy as np

from xception_jax.data.dataset import Dataset
from xception_jax.data.inputs import Inputs
from xception_jax.data.pipeline import Example, Reading
from xception_jax.data.text import corpus, embeddings, vocabulary
from xception_jax.data.text.tokenizers import TOKENIZERS
from xception_jax.data.text.vocabulary import Vocabulary
from xception_jax.errors import SettingError
from xception_jax.settings import Section, setting, zero_is_none

VOCABULARY = "vocabulary.txt"  # among the files of a run


class TextData(Reading, corpus.TextSources):
    """Where texts come from, and how they become token ids."""

    tokenizer: Literal[tuple(TOKENIZERS)] = setting("basic_english", "rule that splits a text into tokens")
    min_freq: int = setting(1, "vocabulary: least number of times that a token occurs in the training texts", ge=1)
    max_size: Annotated[int | None, zero_is_none] = setting(
        None, "vocabulary: most tokens, the most frequent ones", gt=0
    )
    vocabulary_order: Literal["pad_first", "notebook"] = setting(
        "pad_first", "pad_first: 0 pads, 1 is unknown; notebook: 0 is both, as in torchtext"
    )
    vocabulary: str | None = setting(
        None, "file of the vocabulary, inputs/vocabulary.txt of a run; None = from the training texts", free=True
    )
    embeddings: str | None = setting(
        None, "initial word vectors: a text file of GloVe, word2vec or fastText; None = random", free=True
    )
    max_length: int = setting(256, "tokens of a text that are read; the rest is cut off", gt=0)
    length_multiple: int = setting(
        16, "batches are padded to a multiple of it; one program is compiled for each length", gt=0
    )


@dataclasses.dataclass(frozen=True)
class TokenSource:
    """A source of texts as token ids.

    Attributes:
      tokens: ids of all texts, int32[total].
      starts: where each text begins in `tokens`, int64[N + 1].
      labels: int32[N], or tuples of ints.
      where: index -> name of the text for messages.
      vocabulary: of the ids.
      vectors: initial vectors of the vocabulary; None = random.
      without_tokens: number of texts that have no token; each is read as one unknown token.
    """

    tokens: np.ndarray
    starts: np.ndarray
    labels: Sequence[int] | Sequence[tuple[int, ...]]
    where: Callable[[int], str]
    vocabulary: Vocabulary
    vectors: np.ndarray | None = dataclasses.field(default=None, repr=False)
    without_tokens: int = 0

    @classmethod
    def make(cls, part: corpus.Part, tokenize: Callable[[str], list[str]], known: Vocabulary) -> Self:
        """The texts of a part in ids."""
        ids, unknown, empty = [], np.array([known.unknown], np.int32), 0
        for text in part.texts:
            tokens = tokenize(text)
            ids.append(known.encode(tokens) if tokens else unknown)
            empty += not tokens
        starts = np.concatenate([[0], np.cumsum([len(text) for text in ids], dtype=np.int64)])
        return cls(np.concatenate(ids), starts, part.labels, part.name, known, without_tokens=empty)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"tokens": self.tokens[self.starts[index] : self.starts[index + 1]], "label": self.labels[index]}

    def name(self, index: int) -> str:
        return self.where(index)

    def digest(self) -> bytes:
        """Bytes that change with the ids or the vocabulary."""
        arrays = self.tokens.tobytes() + self.starts.tobytes()
        return hashlib.sha256(arrays + self.vocabulary.digest().encode()).digest()

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each text, int64[N]."""
        return np.diff(self.starts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts(Inputs):
    """The `Inputs` of texts; the docstrings of `Inputs` hold for the members that have none here.

    Attributes:
      tokenizer: a key of `TOKENIZERS`.
      vocabulary: token -> id.
      max_length: longer texts are cut off.
      length_multiple: the length of a batch is a multiple of it.
      vectors: initial embeddings float32[V, D]; NaN = not known.
      named: the file of the vocabulary, if the settings name one.
    """

    SETTINGS: ClassVar[Mapping[str, type[Section]]] = {"data": TextData}
    counted: ClassVar[Mapping[str, str]] = {"tokens": "length"}

    tokenizer: str
    vocabulary: Vocabulary
    max_length: int
    length_multiple: int
    vectors: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
    named: str | None = dataclasses.field(default=None, compare=False)

    @staticmethod
    def load(settings: TextData) -> Dataset:
        texts = corpus.load(settings)
        tokenize = TOKENIZERS[settings.tokenizer]
        known = _vocabulary(settings, map(tokenize, texts.train.texts))
        parts = [TokenSource.make(part, tokenize, known) for part in (texts.train, texts.validation)]
        told = {"vocab_size": len(known)}
        notes = [*texts.notes, f"vocabulary of {len(known):,} tokens", *_about_lengths(parts, settings)]
        if settings.embeddings is not None:
            found = embeddings.read(settings.embeddings, known)
            parts[0] = dataclasses.replace(parts[0], vectors=found.values)
            told["embedding_size"] = found.values.shape[1]
            notes.append(f"{found.coverage:.1%} of the vocabulary has a vector in {settings.embeddings}")
        return Dataset(*parts, texts.class_names, told, texts.multilabel, notes=tuple(notes))

    @staticmethod
    def continued(settings: TextData, files: pathlib.Path) -> TextData:
        """Takes the vocabulary of the run, so its texts may have changed, and reads no initial vectors."""
        path = files / VOCABULARY
        if settings.vocabulary is None and path.exists():
            settings = settings.replace(vocabulary=str(path))
        return settings.replace(embeddings=None)

    @staticmethod
    def data_defaults(defaults: Mapping[str, Any]) -> dict[str, Any]:
        return dict(defaults)

    @classmethod
    def from_sections(cls, sections: Mapping[str, Section], dataset: Dataset, defaults: Mapping[str, Any]) -> Self:
        data, source = sections["data"], dataset.train
        return cls(
            tokenizer=data.tokenizer,
            vocabulary=source.vocabulary,
            max_length=data.max_length,
            length_multiple=data.length_multiple,
            vectors=source.vectors,
            named=data.vocabulary,
        )

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        return cls(**{**record, "vocabulary": Vocabulary.from_record(record["vocabulary"])})

    def record(self) -> dict[str, Any]:
        names = ("tokenizer", "max_length", "length_multiple")
        return {"vocabulary": self.vocabulary.record()} | {name: getattr(self, name) for name in names}

    def check_record(self, record: Mapping[str, Any]) -> None:
        ours, theirs = self.vocabulary, Vocabulary.from_record(record["vocabulary"])
        if theirs != ours:
            differ = next(
                (pair for pair in zip(ours.tokens, theirs.tokens, strict=False) if pair[0] != pair[1]),
                (len(ours), len(theirs)),
            )
            remedy = "name inputs/vocabulary.txt of the run, as it was written"
            reason = (
                f"is not the vocabulary that the run was trained with, which has {differ[1]!r} for {differ[0]!r}"
            )
            raise SettingError("data.vocabulary", self.named, f"{reason}; {remedy}")

    def files(self) -> Mapping[str, str]:
        return {VOCABULARY: self.vocabulary.to_text()}

    def initial_values(self) -> Mapping[str, np.ndarray]:
        return {} if self.vectors is None else {"embedding": self.vectors}

    def decode(self, example: Example) -> Example:
        return {"tokens": example["tokens"]}

    def train_transform(self, example: Example, rng: np.random.Generator) -> Example:
        return self.eval_transform(example)

    def eval_transform(self, example: Example) -> Example:
        """Cuts off what is beyond `max_length`, and adds "length" int32[]."""
        tokens = example["tokens"][: self.max_length]
        return example | {"tokens": tokens, "length": np.int32(len(tokens))}

    def lengths(self, source: TokenSource) -> np.ndarray:
        """Multiples of `length_multiple`."""
        multiple = self.length_multiple
        return -(-np.minimum(source.lengths, self.max_length) // multiple) * multiple

    def pad(self, example: Example, length: int) -> Example:
        tokens = example["tokens"]
        padded = np.pad(tokens, (0, length - len(tokens)), constant_values=self.vocabulary.pad)
        return example | {"tokens": padded}

    def spec(self, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """{"tokens": int32[B, length], "length": int32[B]}."""
        shapes = {"tokens": (batch_size, length), "length": (batch_size,)}
        return {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in shapes.items()}

    def prepare(
        self, batch: Mapping[str, jax.Array], targets: jax.Array, *, train: bool
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """The model's input has "tokens" int32[B, T], padded at the end, and "length" int32[B], at least 1."""
        return {name: batch[name] for name in ("tokens", "length")}, targets

    def from_user(self, raw: Sequence[str]) -> dict[str, np.ndarray]:
        """Splits texts into tokens, and pads the ids to the longest one.

        Args:
          raw: any Unicode texts; one without any token is read as one unknown token.

        Returns:
          {"tokens": int32[N, T], "length": int32[N]}.

        Raises:
          ValueError: for no texts, or what is no text.
        """
        if isinstance(raw, str):
            raise ValueError("texts is one text: pass a list, [text]")
        if len(raw) == 0:
            raise ValueError("texts is empty: pass one text or more")
        if wrong := [text for text in raw if not isinstance(text, str)]:
            raise ValueError(f"texts must be strings; one is of type {type(wrong[0]).__name__}")
        part = corpus.Part(raw, np.zeros(len(raw), np.int32), [""] * len(raw))
        source = TokenSource.make(part, TOKENIZERS[self.tokenizer], self.vocabulary)
        longest = int(self.lengths(source).max())
        padded = [self.pad(self.eval_transform(source[index]), longest) for index in range(len(source))]
        return {name: np.stack([example[name] for example in padded]) for name in ("tokens", "length")}


def _vocabulary(settings: TextData, token_lists: Any) -> Vocabulary:
    """The vocabulary of the file that the settings name, else that of the tokens."""
    if settings.vocabulary is None:
        limits = {"min_freq": settings.min_freq, "max_size": settings.max_size}
        return vocabulary.build(token_lists, order=settings.vocabulary_order, **limits)
    try:
        return Vocabulary.from_text(pathlib.Path(settings.vocabulary).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        remedy = f"is no vocabulary ({error}); name inputs/vocabulary.txt of a run"
        raise SettingError("vocabulary", settings.vocabulary, remedy) from None


def _about_lengths(parts: Sequence[TokenSource], settings: TextData) -> list[str]:
    """Notes on the lengths of the texts, and on those that are cut off or have no tokens."""
    lengths = np.concatenate([part.lengths for part in parts])
    low, middle, high = np.percentile(lengths, (5, 50, 95))
    notes = [f"texts have {low:.0f} (5th percentile), {middle:.0f} (median) and {high:.0f} (95th) tokens"]
    if long := int(np.sum(lengths > settings.max_length)):
        notes.append(
            f"texts with more than max_length = {settings.max_length} tokens, which are cut off: {long:,}"
        )
    if empty := sum(part.without_tokens for part in parts):
        notes.append(f"texts without tokens, which are read as one unknown token: {empty:,}")
    unknown = np.mean(parts[-1].tokens == parts[-1].vocabulary.unknown)
    return [*notes, f"{unknown:.1%} of the tokens of the validation texts are unknown"]
