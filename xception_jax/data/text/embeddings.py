"""Word vectors that others have trained, from text files."""

import dataclasses
import functools
import itertools
import os
import re
from collections.abc import Iterable, Mapping

import numpy as np

from xception_jax.data.sources.folder import Refusal
from xception_jax.data.text.vocabulary import Vocabulary
from xception_jax.errors import SettingError

_NUMBER = re.compile(rb"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


@dataclasses.dataclass(frozen=True)
class Vectors:
    """A vector for each token of a vocabulary.

    Attributes:
      values: float32[V, D]; the rows of tokens that the file does not have are NaN.
      found: bool[V].
    """

    values: np.ndarray
    found: np.ndarray

    @property
    def coverage(self) -> float:
        """Share of the vocabulary that has a vector."""
        return float(np.mean(self.found))


def read(path: str | os.PathLike, vocabulary: Vocabulary) -> Vectors:
    """The vectors of a vocabulary's tokens in a text file of GloVe, word2vec or fastText.

    Each line is a word and its numbers, separated by blanks; in the latter two formats the first line has the
    number of words and that of dimensions. A word may have blanks in it, as in GloVe 840B. Of a word that comes
    twice, the first line counts. The file may be larger than the memory.

    Raises:
      SettingError: for the setting "embeddings": a file that is missing or not of this form (naming the line; the
        numbers of words that are not in the vocabulary are not read), or has none of the tokens.
    """
    refusal = functools.partial(SettingError, "embeddings", os.fspath(path))
    ids = {token.encode(errors="surrogatepass"): index for index, token in enumerate(vocabulary.tokens)}
    try:
        with open(path, "rb") as file:
            width, header = _find_width(file.readline(), refusal)
            values = np.full((len(vocabulary), width), np.nan, np.float32)  # [V, D]
            if not header:
                file.seek(0)
            found = _fill(values, ids, file, 1 + header, refusal)
    except OSError as error:
        raise refusal(f"{error.strerror}; name a text file of GloVe, word2vec or fastText") from None
    if not found.any():
        raise refusal("has none of the vocabulary's tokens; name vectors of the same language and tokenizer")
    return Vectors(values, found)


def _find_width(line: bytes, refusal: Refusal) -> tuple[int, bool]:
    """(number of dimensions, whether the first line is a header)."""
    fields = line.split()
    header = len(fields) == 2 and all(field.isdigit() for field in fields)
    numbers = itertools.takewhile(_NUMBER.fullmatch, reversed(fields[1:]))
    width = int(fields[1]) if header else len(list(numbers))
    if width == 0:
        raise refusal(f"line 1: needs a word and its numbers, or two whole numbers; it has {_show(line)}")
    return width, header


def _fill(
    values: np.ndarray, ids: Mapping[bytes, int], lines: Iterable[bytes], start: int, refusal: Refusal
) -> np.ndarray:
    """Writes the vectors of the words in `ids` to their rows; gives which rows were found, bool[V].

    Args:
      start: number of the first line.
    """
    found = np.zeros(len(values), bool)
    for number, line in enumerate(lines, start):
        word, numbers = _split(line.rstrip(), values.shape[1], number, refusal)
        index = ids.get(word)
        if index is not None and not found[index]:
            values[index], found[index] = _parse(numbers, number, refusal), True
    return found


def _split(line: bytes, width: int, number: int, refusal: Refusal) -> tuple[bytes, bytes]:
    """(word, numbers) of a line."""
    if line.count(b" ") == width:
        word, _, numbers = line.partition(b" ")
    else:
        parts = line.rsplit(b" ", width)
        word, numbers = parts[0], b" ".join(parts[1:])
        if len(parts) <= width or _NUMBER.fullmatch(word.split(b" ")[-1]):
            raise refusal(f"line {number}: needs a word and {width} numbers, as line 1 says; it has {_show(line)}")
    if not word.isascii():
        try:
            word.decode()
        except UnicodeDecodeError:
            reason = f"line {number}: is not UTF-8: {_show(line)}"
            raise refusal(f"{reason}; name a text file of GloVe, word2vec or fastText") from None
    return word, numbers


def _parse(numbers: bytes, number: int, refusal: Refusal) -> np.ndarray:
    """The vector float64[D] of a line; its numbers are finite in float32 too."""
    try:
        vector = np.array([float(field) for field in numbers.split(b" ")])  # [D]
    except ValueError as error:
        raise refusal(f"line {number}: {error}; download the file again") from None
    if not np.all(np.abs(vector) <= np.finfo(np.float32).max):
        raise refusal(f"line {number}: has a number that is not finite; download the file again")
    return vector


def _show(line: bytes) -> str:
    """The beginning of a line, for messages."""
    text = line.decode(errors="replace").rstrip()
    return repr(text if len(text) <= 60 else text[:60] + "...")
