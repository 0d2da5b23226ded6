"""English sentences of six scientific Python packages, which every installation has.

They are the docstrings of the installed packages, which are read without importing them. The task is to tell which
package a sentence comes from. The words that would give it away are masked.
"""

import ast
import functools
import importlib.metadata
import importlib.util
import inspect
import pathlib
import re
import warnings
from collections.abc import Iterator

from xception_jax.data.text.examples import Corpus, Example, make_corpus
from xception_jax.errors import SettingError

PACKAGES = {  # name to import -> name to install
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
    "jax": "jax",
    "optax": "optax",
}
MASK = "package"  # stands for a word that names one of them
WORDS = range(6, 61)  # of a sentence
PLAIN = 0.8  # least share of a sentence's words that have letters only

_NAMES = re.compile(
    rf"\b(?:[\w-]*(?:{'|'.join(PACKAGES)}|scikit)[\w-]*|np|jnp|plt|pyplot|pylab|mpl\w*|lax|xla)\b", re.IGNORECASE
)
_LEFT_OUT = {"tests", "testing", "externals", "_external", "_vendored", "extern"}  # folders
_STRING_OR_COMMENT = re.compile(
    r'''#[^\n]*+|((?<!\w)[rRuU]?"""(?:[^"\\]++|\\.|"(?!""))*+""")|"""(?:[^"\\]++|\\.|"(?!""))*+"""'''
    r"""|'''(?:[^'\\]++|\\.|'(?!''))*+'''|"(?:[^"\\\n]++|\\.)*+"|'(?:[^'\\\n]++|\\.)*+'""",
    re.DOTALL,
)  # the group is a string that may be a docstring

_PROSE = {"note", "warning", "important", "tip", "hint", "caution", "admonition", "seealso", "deprecated"}
_PROSE |= {"versionadded", "versionchanged"}  # directives whose contents are sentences
_MARKER = re.compile(r"\.\. (?:([\w-]+)::)?")  # of a directive, with its name, or of a footnote or comment
_ITEM = re.compile(  # of a list, "name (type): ", or a directive
    r"(?:[-*+•]|\d+[.)]|\(\w\)|#\.)\s+|\*{0,2}[\w.`]+(?: \([^)]*\))?:\s+|\.\. [\w-]+::\s*[\d.]*\s*"
)
_RULE = re.compile(r"[^\w\s]{3,}[^\w]*$")  # under a headline, and in tables
_MARKUP = [  # of reStructuredText and Markdown: characters that it has, a pattern, and what it becomes
    (":`", re.compile(r":[\w:+-]+:`[~.!]*([^`<]*?)(?:\s*<[^>]*>)?`"), r"\1"),  # roles
    ("`", re.compile(r"`+[~.!]*([^`<]*?)(?:\s*<[^>]*>)?`+_{0,2}"), r"\1"),  # code and links
    ("]_", re.compile(r"\s*\[[\w#*]+\]_"), ""),  # references to footnotes
    ("*", re.compile(r"(?<!\w)\*{1,2}(\S(?:[^*]*\S)?)\*{1,2}(?!\w)"), r"\1"),  # stress
]
_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!et al\.)\s+(?=[\"'(]?[A-Z])")
_SENTENCE = re.compile(r"[A-Z][^\[\]{}=\\|<>^~$@#]*[.!?]")
_WORD = re.compile(r"[(\"']*[A-Za-z]+(?:['’/-][A-Za-z]+)*[)\"'.,;:!?]*")


def load(*, holdout: float) -> Corpus:
    """Sentences of 6 to 60 words, each once, labelled with their package.

    A sentence that two packages share is left out. The order is that of the packages, files and lines.

    Args:
      holdout: share of the sentences that goes to validation, chosen by a hash of the sentence.

    Raises:
      SettingError: if a package is not installed.
    """
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES.values())
    refusal = functools.partial(SettingError, "name", "docstrings")
    notes = [f"docstrings of {versions}"]
    return make_corpus(_collect(), tuple(PACKAGES.values()), refusal, holdout=holdout, notes=notes)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # a copy in the path that was not installed
        return "of unknown version"


@functools.cache
def _collect() -> tuple[Example, ...]:
    """The sentences of all packages; takes seconds, so a process does it once."""
    found: dict[str, Example] = {}
    shared = set()
    for label, name in enumerate(PACKAGES):
        for text, where in _sentences(_find(name)):
            if found.setdefault(text, Example(text, label, where)).label != label:
                shared.add(text)
    return tuple(example for text, example in found.items() if text not in shared)


def _find(name: str) -> pathlib.Path:
    """The folder of a package, which is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        remedy = f"needs the package {name}; run pip install {PACKAGES[name]}, or choose another dataset"
        raise SettingError("name", "docstrings", remedy)
    return pathlib.Path(spec.submodule_search_locations[0])


def _sentences(package: pathlib.Path) -> Iterator[tuple[str, str]]:
    """(sentence, where) of all docstrings of a package."""
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package.parent)
        if not _LEFT_OUT & set(file.parts) and not path.stem.endswith("_test"):
            for line, docstring in find_docstrings(path.read_text("utf-8", errors="replace")):
                for text in sentences(docstring):
                    yield text, f"{file.as_posix()}, line {line}"


def find_docstrings(code: str) -> Iterator[tuple[int, str]]:
    """(line, docstring) of a module and of all that it defines: the strings in triple double quotes after a colon.

    Parsing the packages finds hardly more and takes five times as long.
    """
    last, end, line = ":", 0, 1  # the last character of the code before a string; a module's own has none
    for match in _STRING_OR_COMMENT.finditer(code):
        last = (code[end : match.start()].rstrip() or last)[-1]
        line += code.count("\n", end, match.start())
        if match[1] and last == ":":
            with warnings.catch_warnings(action="ignore"):  # of escapes that Python does not know, such as "\\s"
                docstring = ast.literal_eval(match[1])
            yield line, inspect.cleandoc(docstring)
        last = last if match[0][0] == "#" else '"'
        end = match.end()
        line += match[0].count("\n")


def sentences(docstring: str) -> Iterator[str]:
    """Its English sentences of `WORDS` words, without markup and with names of packages masked.

    >>> text = "Adds up along ``axis`` without overflow.\\n\\n>>> add(x)\\n3"
    >>> list(sentences(text + "\\n\\nArgs:\\n  x: An array that NumPy can add."))
    ['Adds up along axis without overflow.', 'An array that package can add.']
    """
    for block in _blocks(docstring):
        if block.count(" ") < WORDS.start - 1:
            continue
        for sign, pattern, replacement in _MARKUP:
            if sign in block:
                block = pattern.sub(replacement, block)
        for text in _END.split(block):
            words = text.split()
            if len(words) not in WORDS or sum(map(_is_plain, words)) < PLAIN * len(words):
                continue
            if _SENTENCE.fullmatch(" ".join(words)):
                yield " ".join(map(_mask, words))


@functools.cache
def _is_plain(word: str) -> bool:
    return _WORD.fullmatch(word) is not None


@functools.cache
def _mask(word: str) -> str:
    return _NAMES.sub(MASK, word)


def _blocks(docstring: str) -> Iterator[str]:
    """Its paragraphs and list items, each as one line; without examples, code, footnotes and most directives."""
    left_out = None  # indentation of the line whose indented contents are left out
    for paragraph in re.split(r"\n\s*\n", docstring):
        if ">>>" in paragraph:
            continue
        kept = []
        for line in paragraph.splitlines():
            text = line.strip()
            indent = len(line) - len(line.lstrip())
            if left_out is not None and indent > left_out:
                continue
            marker = _MARKER.match(text)
            left_out = indent if (marker and marker[1] not in _PROSE) or text.endswith("::") else None
            if not marker or marker[1] in _PROSE:
                kept.append((indent, text))
        yield from _join(kept)


def _join(lines: list[tuple[int, str]]) -> Iterator[str]:
    """Joins lines of a paragraph that belong together: equally indented, or the continuation of a list item."""
    block, inside = [], None
    for indent, text in lines:
        item = _ITEM.match(text)
        if item or _RULE.match(text) or (inside is not None and indent != inside):
            yield " ".join(block)
            block = []
        block.append(text[item.end() :] if item else text)
        inside = None if item else indent
    yield " ".join(block)
