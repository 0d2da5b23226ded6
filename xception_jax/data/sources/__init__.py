"""Datasets by name."""

import difflib

from xception_jax.data.dataset import Dataset
from xception_jax.data.sources import builtin, folder, manifest, records
from xception_jax.data.sources.exclusion import exclude

NAMES = ("digits", "digits_multilabel", "synthetic", "folder", "manifest")
RECORDS = "tfds:"  # before the name of a TFDS data set


def load(
    name: str,
    *,
    root: str | None = None,
    image_size: int = 299,
    train_split: str | None = None,
    eval_split: str | None = None,
    label: str | None = None,
    holdout: float = 0.1,
    classes: str | None = None,
    eval_exclude: str | None = None,
) -> Dataset:
    """The dataset called `name`.

    Args:
      name: "digits", "digits_multilabel", "synthetic", "folder", "manifest", or "tfds:" and the name of a set
        that TFDS or `python -m xception_jax prepare` wrote.
      root: the folder; the manifest's file; TFDS's data_dir.
      image_size: of "synthetic", in pixels.
      train_split, eval_split, label: of "tfds:", see `records.load`.
      holdout: of "folder" and "manifest" without validation pictures of their own.
      classes: of "manifest", see there.
      eval_exclude: file that lists validation images to leave out, see `exclusion.exclude`.

    Raises:
      ValueError: for an unknown name, settings that do not belong together, or files not as they should be.
    """
    needs_root = name in ("folder", "manifest")
    is_records = name.startswith(RECORDS)
    if name not in NAMES and not is_records:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {NAMES} or 'tfds:NAME'"
        raise ValueError(f"name = {name!r}: no such dataset; {hint}")
    if needs_root and root is None:
        kind = "folder of the pictures" if name == "folder" else ".csv or .jsonl file"
        raise ValueError(f"root = None: dataset {name!r} needs it; name the {kind}")
    if root is not None and not (needs_root or is_records):
        raise ValueError(f"root = {root!r}: dataset {name!r} comes without files; set root to None")
    _refuse_needless("classes", classes, name, name == "manifest")
    of_records = {"train_split": train_split, "eval_split": eval_split, "label": label}
    for key, value in of_records.items():
        _refuse_needless(key, value, name, is_records)
    if is_records:
        dataset = records.load(name.removeprefix(RECORDS), root=root, **of_records)
    else:
        dataset = _load_named(name, root=root, image_size=image_size, holdout=holdout, classes=classes)
    return dataset if eval_exclude is None else exclude(dataset, eval_exclude)


def _load_named(name: str, *, root: str | None, image_size: int, holdout: float, classes: str | None) -> Dataset:
    return {
        "digits": builtin.digits,
        "digits_multilabel": builtin.digits_multilabel,
        "synthetic": lambda: builtin.synthetic(image_size),
        "folder": lambda: folder.load(root, holdout=holdout),
        "manifest": lambda: manifest.load(root, classes=classes, holdout=holdout),
    }[name]()


def _refuse_needless(key: str, value: str | None, name: str, belongs: bool) -> None:
    if value is not None and not belongs:
        raise ValueError(f"{key} = {value!r}: does not belong to dataset {name!r}; set it to None")
