"""Image datasets by name."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from xception_jax.data.dataset import Dataset
from xception_jax.data.sources import builtin, folder, manifest
from xception_jax.data.sources.exclusion import exclude
from xception_jax.errors import SettingError
from xception_jax.settings import Section, setting

NAMES = ("digits", "digits_multilabel", "synthetic", "folder", "manifest")
RECORDS = "tfds:"  # before the name of a TFDS dataset
NEED_ROOT = {"folder": "folder of the images", "manifest": ".csv or .jsonl file"}  # and what it is


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
    is_records = name.startswith(RECORDS)
    belongs = {"root": name in NEED_ROOT or is_records, "classes": name == "manifest"}
    belongs |= dict.fromkeys(("train_split", "eval_split", "label"), is_records)
    check(s, names=NAMES, need_root=NEED_ROOT, belongs=belongs)
    dataset = _load(s, image_size)
    return dataset if s.eval_exclude is None else exclude(dataset, s.eval_exclude)


def check(
    settings: Section, *, names: Sequence[str], need_root: Mapping[str, str], belongs: Mapping[str, bool]
) -> None:
    """Raises SettingError for an unknown name, a missing root, or a setting that the dataset does not have.

    Args:
      settings: has a `name` and a `root`.
      names: of the datasets, besides those of TFDS.
      need_root: the datasets that need a root, and what the root is.
      belongs: setting -> whether the dataset has it; one that it does not have must keep its default.
    """
    name = settings.name
    if name not in names and not name.startswith(RECORDS):
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {names} or 'tfds:NAME'"
        raise SettingError("name", name, f"no such dataset; {hint}")
    if name in need_root and settings.root is None:
        raise SettingError("root", None, f"dataset {name!r} needs it; name the {need_root[name]}")
    for key, used in belongs.items():
        value, default = getattr(settings, key), type(settings).model_fields[key].default
        if value != default and not used:
            raise SettingError(key, value, f"does not belong to dataset {name!r}; set it to {default}")


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
