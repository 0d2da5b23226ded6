"""Datasets in TFDS record files, written by TFDS or by `python -m xception_jax prepare`."""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import json_format
from tensorflow_datasets.core import constants, naming, read_only_builder
from tensorflow_datasets.core.utils.shard_utils import FileInstruction

from xception_jax.data.dataset import Dataset, UnreadableExample
from xception_jax.errors import SettingError

# Importing tensorflow_datasets takes a second, so this module is imported only where records are read or written.

FORMAT = "array_record"
METADATA = "xception_jax"  # key in a set's metadata.json of what `prepare` keeps there
OBJECTS = ("objects_trainable", "objects")  # image-level labels of open_images_v4
COLUMNS = ("label", "confidence", "source")  # of each of them
FILE_NAMES = ("file_name", "filename", "image/filename")
VERIFIED = 10  # confidence in open_images_v4, of 10
SAMPLED = 32  # records that count in a fingerprint


def load(
    name: str,
    *,
    root: str | None,
    train_split: str | None = None,
    eval_split: str | None = None,
    label: str | None = None,
) -> Dataset:
    """Encoded images with one label or several.

    The image is the only feature of TFDS's type Image. A single label is a ClassLabel called "label". Several
    labels are a sequence of ClassLabel (the one called "labels", if there are many), or, in open_images_v4, the
    classes that people verified to be in the image: those of confidence 10 that do not come from a machine.

    Args:
      name: as in TFDS ("cifar10", "open_images_v4/200k", "imagenet2012:5.1.0"), or the name given to `prepare`; of
        several versions, the highest.
      root: TFDS's data_dir; None = its default, ~/tensorflow_datasets.
      train_split, eval_split: as in TFDS, including parts such as "train[:90%]". None = "train" for training, and
        "validation", or "test" if there is none, for evaluation.
      label: the feature with the classes, where a set has several ("coarse_label" of cifar100, "objects" of
        open_images_v4); None = the one described above.

    Raises:
      SettingError: for a set that is missing, damaged or of another file format; for splits that it lacks or that
        share images; for features of other kinds.
    """
    builder = find(name, root)
    layout = Layout.of(builder.info.features, f"tfds:{name}", label)
    splits = choose_splits(builder, root, train_split, eval_split)
    sources = [Records(builder.data_dir, split, layout.label) for split in splits]
    for source in sources:
        _check_first(source, root)
    weights = prepared(builder.info).get("settings", {}).get("class_weights")
    return Dataset(
        *sources,
        class_names=layout.class_names,
        multilabel=layout.kind != "one",
        class_weights=tuple(weights) if weights else None,
        notes=("labels: those that people verified",) if layout.kind == "objects" else (),
    )


def choose_splits(
    builder: tfds.core.DatasetBuilder,
    root: str | None,
    train: str | None,
    evaluation: str | None,
    word: str = "image",
) -> tuple[str, str]:
    """Splits for training and evaluation whose files are there, and which share no record; see `load`.

    Args:
      word: for a record, in messages.
    """
    train_split = train or "train"
    eval_split = evaluation or ("validation" if "validation" in builder.info.splits else "test")
    train_files = _files(builder, "train_split", train, train_split)
    eval_files = _files(builder, "eval_split", evaluation, eval_split)
    if shared := _count_shared(train_files, eval_files):
        remedy = "name splits that share none, such as train[:90%] and train[90%:]"
        reason = f"{shared} {word}s of {eval_split!r} are in train_split = {train_split!r} as well"
        raise SettingError("eval_split", evaluation, f"{reason}; {remedy}")
    for split, files in ((train_split, train_files), (eval_split, eval_files)):
        if missing := [file.filename for file in files if not tfds.core.Path(file.filename).exists()]:
            reason = f"split {split!r} lacks {len(missing)} files, the first is {missing[0]}; write the set again"
            raise SettingError("root", root, f"{builder.data_dir}: {reason}")
    return train_split, eval_split


def prepared(info: tfds.core.DatasetInfo) -> Mapping[str, Any]:
    """What `prepare` keeps in the metadata of a set, empty for other sets."""
    return (info.metadata or {}).get(METADATA, {})


def open_split(builder: tfds.core.DatasetBuilder, split: str) -> Sequence[bytes]:
    """The records of a split, which are read when they are asked for, and not parsed."""
    serialized = tfds.decode.DeserializeMethod.RAW_BYTES
    return builder.as_data_source(split, deserialize_method=serialized, file_format=FORMAT)


@dataclasses.dataclass(frozen=True)
class Records:
    """A source of the records of one split; each is read when its example is asked for."""

    directory: str  # of one version of a set; TFDS's builder_dir
    split: str  # as in TFDS
    label: str | None = None  # as in `load`

    def __reduce__(self):  # a worker process gets these strings and opens the files itself
        return Records, (self.directory, self.split, self.label)

    @functools.cached_property
    def _builder(self) -> tfds.core.DatasetBuilder:
        return tfds.builder_from_directory(self.directory, file_format=FORMAT)

    @functools.cached_property
    def _records(self) -> Sequence[bytes]:
        return open_split(self._builder, self.split)

    @functools.cached_property
    def _layout(self) -> "Layout":
        return Layout.of(self._builder.info.features, f"tfds:{self._builder.name}", self.label)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": bytes, "label": int, or a tuple of ints in ascending order}.

        Raises:
          UnreadableExample: for a record file that is missing or damaged.
          ValueError: for the label -1, which means "no label" in TFDS.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        try:
            example = self._layout.parse(self._records[index])
        except Exception as error:  # RuntimeError of array_record; TFDS raises all kinds for bytes of another form
            reason = str(error).split(";")[0] if isinstance(error, RuntimeError) else "is no record of TFDS"
            raise UnreadableExample(self.name(index), reason) from error
        if example["label"] == -1:
            raise ValueError(f"{self.name(index)}: has no label; name another split")
        return example

    def name(self, index: int) -> str:
        """Its number, and the name of its file if the record has one, which is read for this."""
        info, file = self._builder.info, self.file_name(index)
        title = "/".join(filter(None, (info.name, info.config_name)))
        return f"record {index} of {title} {self.split}" + (f" ({file})" if file is not None else "")

    def file_name(self, index: int) -> str | None:
        """Name of the file that the image came from; None if the record does not tell or cannot be read."""
        try:
            return self._layout.parse_file_name(self._records[index]) if self._layout.file_name else None
        except Exception:  # as above
            return None

    def digest(self) -> bytes:
        """32 bytes that change with the content, not with the folder; see `Dataset.fingerprint`.

        They are a hash of the names, sizes and numbers of records of the files, of some whole records at equal
        distances, and, in a set that `prepare` wrote, of its hash of all labels and images.
        """
        state = hashlib.sha256(repr(prepared(self._builder.info).get("kept")).encode())
        for part in self._builder.info.splits[self.split].file_instructions:
            size = tfds.core.Path(part.filename).stat().length
            state.update(repr((part.basename(), size, part.skip, part.take)).encode())
        for index in np.linspace(0, len(self) - 1, SAMPLED).astype(int).tolist():
            try:
                state.update(self._records[index])
            except RuntimeError:  # a damaged record, which is replaced by another one in training
                state.update(b"damaged")
        return state.digest()


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which features of a record are the image, the labels and the name of the file.

    Attributes:
      image, label, file_name: keys of features; the last may be None.
      kind: of the label: "one", "many", or "objects", which have a label, a confidence and a source each.
      class_names: in the order of the labels.
      sources: names of the sources of objects, by number.
      parsers: TFDS's feature dictionaries of (image, label) and of the file name; parsing all takes longer.
    """

    image: str
    label: str
    file_name: str | None
    kind: str
    class_names: tuple[str, ...]
    sources: tuple[str, ...]
    parsers: tuple[Any, Any]

    @classmethod
    def of(cls, features: Mapping[str, Any], name: str, label: str | None = None) -> "Layout":
        """Finds them among the features of the set called `name`; SettingError if the set is not as in `load`."""
        image, (kind, label) = _find_image(features, name), _find_label(features, name, label)
        file_name = next((key for key in FILE_NAMES if key in features), None)
        inner = features[label] if kind == "one" else features[label].feature
        names = (inner["label"] if kind == "objects" else inner).names
        sources = tuple(inner["source"].names) if kind == "objects" else ()
        parts = ({key: features[key] for key in keys if key} for keys in ((image, label), (file_name,)))
        parsers = tuple(tfds.features.FeaturesDict(part) for part in parts)
        return cls(image, label, file_name, kind, tuple(names), sources, parsers)

    def parse(self, record: bytes) -> dict[str, Any]:
        """The example, as `Records` gives it."""
        decoders = {self.image: tfds.decode.SkipDecoding()}
        example = self.parsers[0].deserialize_example_np(record, decoders=decoders)
        image, label = example[self.image], example[self.label]
        if self.kind == "one":
            return {"image": image, "label": int(label)}
        labels = label if self.kind == "many" else self._verified(label)
        return {"image": image, "label": tuple(sorted({int(number) for number in labels}))}

    def _verified(self, objects: Mapping[str, Any]) -> Iterator[int]:
        for label, confidence, source in zip(*(objects[key] for key in COLUMNS), strict=True):
            if confidence == VERIFIED and self.sources[source] != "machine":
                yield label

    def parse_file_name(self, record: bytes) -> str:
        return self.parsers[1].deserialize_example_np(record)[self.file_name].decode(errors="replace")


def _find_image(features: Mapping[str, Any], name: str) -> str:
    kind, masks = tfds.features.Image, tfds.features.LabeledImage
    found = [key for key, x in features.items() if isinstance(x, kind) and not isinstance(x, masks)]
    if len(found) != 1:
        remedy = f"must have one feature of type Image; has {len(found)} among {sorted(features)}"
        raise SettingError("name", name, remedy)
    if features[found[0]].np_dtype == np.float32:  # TFDS stores their bytes as the four channels of a PNG
        raise SettingError("name", name, "its images are float32, which cannot be decoded; name another set")
    return found[0]


def _find_label(features: Mapping[str, Any], name: str, label: str | None) -> tuple[str, str]:
    """(kind, key); see `Layout`."""
    kinds = {key: kind for key, feature in features.items() if (kind := label_kind(feature)) is not None}
    if label is not None:
        if label not in kinds:
            raise SettingError("label", label, f"has no classes in {name}; choose one of {sorted(kinds)}")
        return kinds[label], label
    many = [("many", key) for key, kind in kinds.items() if kind == "many"]
    usual = [
        ("one", "label"),
        ("many", "labels"),
        *many * (len(many) == 1),
        *(("objects", key) for key in OBJECTS),
    ]
    for kind, key in usual:
        if kinds.get(key) == kind:
            return kind, key
    reason = f"must have a ClassLabel 'label' or one sequence of ClassLabel; has {sorted(features)}"
    raise SettingError("name", name, f"{reason}; set label to one of those with classes, {sorted(kinds)}")


def label_kind(feature: Any) -> str | None:
    """Kind of a label as in `Layout`; None for other features."""
    if isinstance(feature, tfds.features.ClassLabel):
        return "one"
    if not isinstance(feature, tfds.features.Sequence):
        return None
    inner = feature.feature
    if isinstance(inner, tfds.features.ClassLabel):
        return "many"
    of_objects = isinstance(inner, tfds.features.FeaturesDict) and set(COLUMNS) <= set(inner)
    return "objects" if of_objects else None


def find(name: str, root: str | None) -> tfds.core.DatasetBuilder:
    """TFDS's builder of a set below `root`."""
    refusal = functools.partial(SettingError, "root", root)
    if not naming.is_valid_dataset_name(name):
        remedy = "is no name of a TFDS set; write NAME, NAME/CONFIG or NAME:1.2.3"
        raise SettingError("name", f"tfds:{name}", remedy)
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=root and os.path.expanduser(root))
        formats = builder.info.available_file_formats()
    except tfds.core.DatasetNotFoundError:
        folder = pathlib.Path(root or constants.DATA_DIR).expanduser()
        raise refusal(
            f"{folder} holds no set {name!r}, but {_list(folder) or 'none at all'}; change root or name, or write"
            " the set with python -m xception_jax prepare"
        ) from None
    except (OSError, ValueError, json_format.Error) as error:
        raise refusal(f"its set {name!r} is damaged: {error}; write it again") from error
    if tfds.core.FileFormat.ARRAY_RECORD not in formats:
        raise refusal(
            f"{builder.data_dir} holds {builder.info.file_format.value} files, which have no random access; write"
            f" the set again, in TFDS with file_format={FORMAT!r}"
        )
    return tfds.builder_from_directory(builder.data_dir, file_format=FORMAT)


def _list(folder: pathlib.Path) -> str:
    """The sets below a data_dir, each with its configuration and version."""
    files = [path for depth in ("[!.]*/*", "[!.]*/*/*") for path in folder.glob(f"{depth}/features.json")]
    return ", ".join(sorted(str(path.parent.relative_to(folder)) for path in files))


def _files(builder: Any, setting: str, value: str | None, split: str) -> list[FileInstruction]:
    """The files of a split, and which of their records belong to it."""
    try:
        files = builder.info.splits[split].file_instructions
    except (KeyError, ValueError):
        remedy = f"the set has no split {split!r}, but {', '.join(builder.info.splits)}; name one, or a part"
        raise SettingError(setting, value, remedy) from None
    if not files:
        raise SettingError(setting, value, f"{split!r} has no records; name a larger part")
    return files


def _count_shared(some: Sequence[FileInstruction], others: Sequence[FileInstruction]) -> int:
    """Number of records in both."""
    pairs = ((a, b) for a in some for b in others if a.filename == b.filename)
    return sum(max(0, min(a.skip + a.take, b.skip + b.take) - max(a.skip, b.skip)) for a, b in pairs)


def _check_first(source: Records, root: str | None) -> None:
    """Raises SettingError before training begins if the first record cannot be read."""

    def refusal(remedy: str) -> SettingError:
        return SettingError("root", root, f"{source.directory}: split {source.split!r} {remedy}")

    try:
        source[0]
    except UnreadableExample as error:
        raise refusal(f"cannot be read: {error.reason}; write the set again") from error
    except ValueError as error:
        raise refusal(f"cannot be used: {error}") from error
