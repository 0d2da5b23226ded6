"""From a text to its tokens."""

from collections.abc import Callable

# What torchtext puts in place of a character or tag, in torchtext's order, after lower-casing. A double quote
# vanishes without a space, so <b"r /> counts as a line break too.
_BASIC_ENGLISH = (
    ("'", " ' "),
    ('"', ""),
    (".", " . "),
    ("<br />", " "),
    (",", " , "),
    ("(", " ( "),
    (")", " ) "),
    ("!", " ! "),
    ("?", " ? "),
    (";", " "),
    (":", " "),
)


def basic_english(text: str) -> list[str]:
    """The tokens of torchtext's tokenizer of the same name (`torchtext.data.utils.get_tokenizer`).

    >>> basic_english('The "Oil-rich" state: it\\'s up 3.5%!')
    ['the', 'oil-rich', 'state', 'it', "'", 's', 'up', '3', '.', '5%', '!']
    """
    text = text.lower()
    for pattern, replacement in _BASIC_ENGLISH:
        text = text.replace(pattern, replacement)
    return text.split()


TOKENIZERS: dict[str, Callable[[str], list[str]]] = {
    "basic_english": basic_english,
    "whitespace": str.split,
    "characters": list,  # Unicode code points
}
