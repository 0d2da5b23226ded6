"""The tokens that a model knows, each with its id."""

import collections
import dataclasses
import functools
import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np

PAD, UNKNOWN = "<pad>", "<unk>"

_HEADER = re.compile(r"(\d+) tokens, padding (\d+), unknown (\d+)")
_ESCAPE = re.compile(r"\\(?:(\\)|u([0-9a-f]{4})|U([0-9a-f]{8})|)")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Tokens and their ids.

    Attributes:
      tokens: by id.
      pad: id that fills a text up to the length of its batch.
      unknown: id of every token that is not in the vocabulary.
    """

    tokens: tuple[str, ...]
    pad: int
    unknown: int

    def __len__(self) -> int:
        return len(self.tokens)

    def __reduce__(self):  # not the dictionary, which a worker process makes itself
        return Vocabulary, (self.tokens, self.pad, self.unknown)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        ids = {token: index for index, token in enumerate(self.tokens)}
        if self.pad != self.unknown:
            del ids[self.tokens[self.pad]]
        return ids

    def encode(self, tokens: Sequence[str]) -> np.ndarray:
        """The id of each token, int32[n].

        A token that a text has in common with the padding is unknown, unless both have the same id.
        """
        known, unknown = self._ids, self.unknown
        return np.fromiter((known.get(token, unknown) for token in tokens), np.int32, len(tokens))

    def digest(self) -> str:
        """16 hexadecimal digits that change with the tokens and ids."""
        return hashlib.sha256(self.to_text().encode()).hexdigest()[:16]

    def to_text(self) -> str:
        r"""A head line, and a line for each token; a backslash, blanks and what cannot be printed are escaped.

        >>> print(Vocabulary(("<pad>", "<unk>", "né", " ", "\n", "\\"), pad=0, unknown=1).to_text(), end="")
        6 tokens, padding 0, unknown 1
        <pad>
        <unk>
        né
        \u0020
        \u000a
        \\
        """
        head = f"{len(self)} tokens, padding {self.pad}, unknown {self.unknown}"
        return "\n".join([head, *map(_escape, self.tokens), ""])

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The vocabulary that `to_text` wrote; ValueError names the line that is damaged."""
        head, _, rest = text.partition("\n")
        lines = rest.split("\n")
        numbers = _HEADER.fullmatch(head)
        if numbers is None:
            raise ValueError(f"line 1: {head[:80]!r} is not '<number> tokens, padding <id>, unknown <id>'")
        count, pad, unknown = map(int, numbers.groups())
        cut_off = lines.pop()  # empty, behind the last line break
        if cut_off or len(lines) != count:
            number = len(lines) + 1 + bool(cut_off)
            raise ValueError(f"line {number} is the last; line 1 says {count} tokens, each with a line break")
        if max(pad, unknown) >= count:
            raise ValueError(f"line 1: padding and unknown must be below {count}, the number of tokens")
        tokens: dict[str, int] = {}
        for number, line in enumerate(lines, 2):
            token = _unescape(line, number)
            if tokens.setdefault(token, number) != number:
                raise ValueError(f"line {number}: token {token!r} is on line {tokens[token]} already")
        return cls(tuple(tokens), pad, unknown)

    def record(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {"tokens": list(self.tokens), "pad": self.pad, "unknown": self.unknown}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The vocabulary that `record` describes."""
        return cls(tuple(record["tokens"]), record["pad"], record["unknown"])


def build(
    token_lists: Iterable[Sequence[str]],
    *,
    min_freq: int = 1,
    max_size: int | None = None,
    order: Literal["pad_first", "notebook"] = "pad_first",
) -> Vocabulary:
    """The tokens of some texts, the most frequent first, and those of equal frequency by their code points.

    Args:
      token_lists: of each text.
      min_freq: rarer tokens are left out.
      max_size: largest number of tokens, without the two special ones.
      order: "pad_first": <pad> has id 0, <unk> 1. "notebook": as in torchtext 0.9, <unk> has id 0, which the
        notebook pads with as well, and <pad> has id 1,
        which only a text with this token has.
    """
    counts = collections.Counter(itertools.chain.from_iterable(token_lists))
    for special in (PAD, UNKNOWN):
        counts.pop(special, None)
    frequent = sorted((-count, token) for token, count in counts.items() if count >= min_freq)
    tokens = [token for _, token in frequent[:max_size]]
    if order == "pad_first":
        return Vocabulary((PAD, UNKNOWN, *tokens), pad=0, unknown=1)
    return Vocabulary((UNKNOWN, PAD, *tokens), pad=0, unknown=0)


def _escape(token: str) -> str:
    return token if token.isalnum() else "".join(map(_escape_character, token))


def _escape_character(character: str) -> str:
    if character == "\\":
        return r"\\"
    if character.isprintable() and character != " ":
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 2**16 else f"\\U{code:08x}"


def _unescape(line: str, number: int) -> str:
    """The token of a line."""

    def character(match: re.Match) -> str:
        backslash, short, long = match.groups()
        code = int(short or long or "110000", 16)
        if not backslash and code >= 0x110000:
            raise ValueError(
                f"line {number}: {line!r} has a backslash that begins no \\\\, \\uXXXX or \\UXXXXXXXX"
            )
        return backslash or chr(code)

    if not line or any(_escape_character(c) != c for c in line if c != "\\"):
        raise ValueError(f"line {number}: {line!r} is empty or has a blank or a character that cannot be printed")
    return _ESCAPE.sub(character, line) if "\\" in line else line
