"""Labelled texts by name."""

from xception_jax.data import sources
from xception_jax.data.sources import RECORDS
from xception_jax.data.text import ag_news, docstrings, folders, tables
from xception_jax.data.text.examples import Corpus as Corpus
from xception_jax.data.text.examples import Part as Part
from xception_jax.settings import Section, setting

NAMES = ("docstrings", "ag_news", "table", "text_folder")
NEED_ROOT = {  # and what it is
    "ag_news": "folder with train.csv and test.csv",
    "table": ".csv or .jsonl file",
    "text_folder": "folder of the texts",
}


class TextSources(Section):
    """Where the texts come from; see `load`."""

    name: str = setting("docstrings", f"dataset: {', '.join(NAMES)}, or {RECORDS}NAME")
    root: str | None = setting(None, "ag_news, text_folder: folder; table: the file; tfds: data_dir", free=True)
    train_split: str | None = setting(None, "tfds: split to train on; None = train")
    eval_split: str | None = setting(None, "tfds: split to evaluate; None = validation, else test")
    text_column: str = setting("text", "table: column of the texts")
    label_column: str = setting("label", "table: column of the labels; one called labels holds several")
    eval_root: str | None = setting(None, "table: a second file, with the validation texts", free=True)
    holdout: float = setting(0.1, "share for validation, by a hash of the text, if none is given", ge=0, lt=1)


def load(settings: TextSources) -> Corpus:
    """The texts that the settings name: "docstrings", "ag_news", "table", "text_folder", or "tfds:" and a name.

    All of them are read and checked here.

    Raises:
      SettingError: for an unknown name, settings that do not belong together, or files that are not as they should
        be.
    """
    s = settings
    is_table, is_records = s.name == "table", s.name.startswith(RECORDS)
    belongs = {"root": s.name in NEED_ROOT or is_records, "holdout": s.name != "ag_news" and not is_records}
    belongs |= dict.fromkeys(("text_column", "label_column", "eval_root"), is_table)
    belongs |= dict.fromkeys(("train_split", "eval_split"), is_records)
    sources.check(s, names=NAMES, need_root=NEED_ROOT, belongs=belongs)
    match s.name:
        case "docstrings":
            return docstrings.load(holdout=s.holdout)
        case "ag_news":
            return ag_news.load(s.root)
        case "table":
            columns = {"text_column": s.text_column, "label_column": s.label_column}
            return tables.load(s.root, **columns, eval_root=s.eval_root, holdout=s.holdout)
        case "text_folder":
            return folders.load(s.root, holdout=s.holdout)
    from xception_jax.data.text import records  # imports TFDS, which takes a second

    splits = {"train_split": s.train_split, "eval_split": s.eval_split}
    return records.load(s.name.removeprefix(RECORDS), root=s.root, **splits)
