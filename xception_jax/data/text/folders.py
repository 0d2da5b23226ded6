"""A folder of text files: root/CLASS/*.txt, or root/train/CLASS/*.txt and root/val/CLASS/*.txt."""

import functools
import pathlib

from xception_jax.data.sources import folder
from xception_jax.data.text.examples import Corpus, Example, make_corpus
from xception_jax.errors import SettingError

TEXTS = folder.Kind("text", frozenset({".txt"}))


def load(root: str, *, holdout: float) -> Corpus:
    """Each file is a text in UTF-8, and each folder a class, as in `data.sources.folder.load`.

    Args:
      holdout: without val/, share of the texts that goes to validation, chosen by a hash of the text.

    Raises:
      SettingError: as `data.sources.folder.load`, and for a file that is not UTF-8.
    """
    refusal = functools.partial(SettingError, "root", root)
    found = folder.find(root, TEXTS, refusal)
    examples = []
    for path, label, split in found.entries:
        file = found.folders[split or "train"] / path
        examples.append(Example(_read(file, refusal), label, str(file), split))
    return make_corpus(examples, found.class_names, refusal, holdout=holdout, notes=found.notes)


def _read(path: pathlib.Path, refusal: folder.Refusal) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise refusal(f"{path} is not UTF-8; save the file in this encoding") from None
    except OSError as error:
        raise refusal(f"{path}: {error.strerror}; repair or remove the file") from None
