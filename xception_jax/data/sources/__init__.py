"""Image datasets by name."""

import difflib
from typing import Any

from xception_jax.data.dataset import Dataset
from xception_jax.data.sources import builtin, folder, manifest
from xception_jax.data.sources.exclusion import exclude
from xception_jax.errors import SettingError
from xception_jax.settings import Section, setting

NAMES = ("digits", "digits_multilabel", "synthetic", "folder", "manifest")
RECORDS = "tfds:"  # before the name of a TFDS dataset


class Sources(Section):
    """Where the images come from; see `load`."""

    name: str = setting("digits", f"dataset: {', '.join(NAMES)}, or {RECORDS}NAME")
    root: str | None = setting(None, "folder: its path; manifest: the file; tfds: data_dir", free=True)
    train_split: str | None = setting(None, "tfds: split to train on; None = train")
    eval_split: str | None = setting(None, "tfds: split to evaluate; None = validation, else test")
    label: str | None = setting(None, "tfds: feature with the classes, where a set has several")
    eval_exclude: str | None = setting(None, "file that lists validation images to leave out", free=True)
    holdout: float = setting(0.1, "folder, manifest: share for validation if none is given", ge=0, lt=1)
    classes: str | None = setting(None, "manifest: CSV file with the classes' order and weights", free=True)


def load(name: str, *, image_size: int = 299, **settings: Any) -> Dataset:
    """The dataset called `name`.

    Args:
      name: "digits", "digits_multilabel", "synthetic", "folder", "manifest", or "tfds:" and the name of a set
        that TFDS or `python -m xception_jax prepare` wrote.
      image_size: of "synthetic", in pixels.
      **settings: other fields of `Sources`. `train_split`, `eval_split` and `label` belong to "tfds:" (see
        `records.load`), `classes` to "manifest", `holdout` to both "manifest" and "folder"; `eval_exclude` see
        `exclusion.exclude`.

    Raises:
      SettingError: for an unknown name, settings that do not belong together, or files that are not as they should
        be.
    """
    s = Sources(name=name, **settings)
    needs_root, is_records = name in ("folder", "manifest"), name.startswith(RECORDS)
    if name not in NAMES and not is_records:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {NAMES} or 'tfds:NAME'"
        raise SettingError("name", name, f"no such dataset; {hint}")
    if needs_root and s.root is None:
        kind = "folder of the images" if name == "folder" else ".csv or .jsonl file"
        raise SettingError("root", None, f"dataset {name!r} needs it; name the {kind}")
    belongs = {"root": needs_root or is_records, "classes": name == "manifest"}
    belongs |= dict.fromkeys(("train_split", "eval_split", "label"), is_records)
    for key, used in belongs.items():
        if getattr(s, key) is not None and not used:
            raise SettingError(key, getattr(s, key), f"does not belong to dataset {name!r}; set it to None")
    dataset = _load(s, image_size)
    return dataset if s.eval_exclude is None else exclude(dataset, s.eval_exclude)


def _load(s: Sources, image_size: int) -> Dataset:
    match s.name:
        case "digits":
            return builtin.digits()
        case "digits_multilabel":
            return builtin.digits_multilabel()
        case "synthetic":
            return builtin.synthetic(image_size)
        case "folder":
            return folder.load(s.root, holdout=s.holdout)
        case "manifest":
            return manifest.load(s.root, classes=s.classes, holdout=s.holdout)
    from xception_jax.data.sources import records  # imports TFDS, which takes a second

    splits = {"train_split": s.train_split, "eval_split": s.eval_split}
    return records.load(s.name.removeprefix(RECORDS), root=s.root, label=s.label, **splits)
