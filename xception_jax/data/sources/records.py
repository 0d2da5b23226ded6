"""Data sets in record files: those of TFDS, and what `python -m xception_jax prepare` writes."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from google.protobuf import json_format

from xception_jax.data.dataset import Dataset, UnreadableExample

# tensorflow_datasets takes a second to import; each function that needs it does so itself. None needs TensorFlow.

FORMAT = "array_record"
METADATA = "xception_jax"  # key of what `prepare` adds to a set's metadata.json
OBJECTS = ("objects_trainable", "objects")  # image-level labels of open_images_v4
FILE_NAMES = ("file_name", "filename", "image/filename")
VERIFIED = 10  # confidence in open_images_v4, of 10


def load(
    name: str,
    *,
    root: str | None,
    train_split: str | None = None,
    eval_split: str | None = None,
    label: str | None = None,
) -> Dataset:
    """Encoded images with one label or several.

    The image is the only feature of TFDS's type Image. One label is a ClassLabel called "label"; several are a
    sequence of ClassLabel (the one called "labels", if there are many), or, in open_images_v4, the classes that
    people verified to be in the picture: of confidence 10, and not from a machine.

    Args:
      name: as in TFDS ("cifar10", "open_images_v4/200k", "imagenet2012:5.1.0"), or the name given to `prepare`; of
        several versions, the highest.
      root: TFDS's data_dir; None = its own choice, ~/tensorflow_datasets.
      train_split, eval_split: as in TFDS, parts too ("train[:90%]"). None = "train"; "validation", else "test".
      label: the feature with the classes, where a set has several ("coarse_label" of cifar100, "objects" of
        open_images_v4); None = the one described above.

    Raises:
      ValueError: for a set that is not there, is damaged or of another file format; for splits that it lacks or
        that share images; for features of other kinds.
    """
    builder = _find(name, root)
    layout = Layout.of(builder.info.features, f"name = 'tfds:{name}'", label)
    train = train_split or "train"
    evaluation = eval_split or ("validation" if "validation" in builder.info.splits else "test")
    train_ranges = _ranges(builder, "train_split", train_split, train)
    if shared := _count_shared(train_ranges, _ranges(builder, "eval_split", eval_split, evaluation)):
        raise ValueError(
            f"eval_split = {eval_split!r}: {shared} images of {evaluation!r} are in train_split = {train!r} too;"
            " name splits that share none, as train[:90%] and train[90%:]"
        )
    sources = [Records(builder.data_dir, split, layout.label) for split in (train, evaluation)]
    for source in sources:
        _check_files(builder, source, f"root = {root!r}: {builder.data_dir}: split {source.split!r}")
    weights = (builder.info.metadata or {}).get(METADATA, {}).get("settings", {}).get("class_weights")
    return Dataset(
        *sources,
        class_names=layout.class_names,
        multilabel=layout.kind != "one",
        class_weights=tuple(weights) if weights else None,
        notes=("labels: those that people verified",) if layout.kind == "objects" else (),
    )


@dataclasses.dataclass(frozen=True)
class Records:
    """Records of one split, read when asked for.

    Attributes:
      directory: of one version of a set; TFDS's builder_dir.
      split: as in TFDS.
      label: the feature with the classes; None as in `load`.
    """

    directory: str
    split: str
    label: str | None = None

    def __reduce__(self):  # a worker process gets these words and opens the files itself
        return Records, (self.directory, self.split, self.label)

    @functools.cached_property
    def _opened(self) -> tuple[Any, "Layout", str]:
        """The serialized records, how to parse one, and the name of the set."""
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(self.directory, file_format=FORMAT)
        serialized = tfds.decode.DeserializeMethod.RAW_BYTES
        records = builder.as_data_source(self.split, deserialize_method=serialized, file_format=FORMAT)
        title = "/".join(filter(None, (builder.info.name, builder.info.config_name)))
        return records, Layout.of(builder.info.features, self.directory, self.label), title

    def __len__(self) -> int:
        return len(self._opened[0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": bytes, "label": int, or a tuple of ints in ascending order}.

        Raises:
          UnreadableExample: for a file of records that is missing or damaged.
          ValueError: for a label -1, with which TFDS means none.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        records, layout, _ = self._opened
        try:
            example = layout.parse(records[index])
        except Exception as error:  # RuntimeError of array_record; whatever TFDS makes of a record that is none
            reason = str(error).split(";")[0] if isinstance(error, RuntimeError) else "is no record of TFDS"
            raise UnreadableExample(self.name(index), reason) from error
        if example["label"] == -1:
            raise ValueError(f"{self.name(index)}: has no label; name another split")
        return example

    def name(self, index: int) -> str:
        """Its number, and its file if the record tells; this reads the record."""
        number, file = f"record {index} of {self._opened[2]} {self.split}", self.file_name(index)
        return number if file is None else f"{number} ({file})"

    def file_name(self, index: int) -> str | None:
        """The file that the picture came from; None if the record does not tell or cannot be read."""
        records, layout, _ = self._opened
        try:
            return layout.parse_file_name(records[index]) if layout.file_name else None
        except Exception:  # as above
            return None


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which features of a record are the image, the labels and the name of the file.

    Attributes:
      image, label, file_name: keys of features; the last may be None.
      kind: of the label: "one", "many", or "objects" that have a label, a confidence and a source each.
      class_names: in the order of the labels.
      sources: of objects, by number.
      parsers: TFDS's feature dictionaries of (image, label), and of the file's name; parsing all takes longer.
    """

    image: str
    label: str
    file_name: str | None
    kind: str
    class_names: tuple[str, ...]
    sources: tuple[str, ...]
    parsers: tuple[Any, Any]

    @classmethod
    def of(cls, features: Mapping[str, Any], where: str, label: str | None = None) -> "Layout":
        """Finds them among a set's features; `label` as in `load`.

        Raises:
          ValueError: beginning with `where`, if there is not one image, or no label as in `load`.
        """
        import tensorflow_datasets as tfds

        image, (kind, label) = _find_image(features, where), _find_label(features, where, label)
        file_name = next((key for key in FILE_NAMES if key in features), None)
        inner = features[label] if kind == "one" else features[label].feature
        names = (inner["label"] if kind == "objects" else inner).names
        sources = tuple(inner["source"].names) if kind == "objects" else ()
        parts = ({key: features[key] for key in keys if key} for keys in ((image, label), (file_name,)))
        parsers = tuple(tfds.features.FeaturesDict(part) for part in parts)
        return cls(image, label, file_name, kind, tuple(names), sources, parsers)

    def parse(self, record: bytes) -> dict[str, Any]:
        """{"image": bytes, "label": int, or a tuple of ints in ascending order}."""
        import tensorflow_datasets as tfds

        decoders = {self.image: tfds.decode.SkipDecoding()}
        example = self.parsers[0].deserialize_example_np(record, decoders=decoders)
        image, label = example[self.image], example[self.label]
        if self.kind == "one":
            return {"image": image, "label": int(label)}
        labels = label if self.kind == "many" else self._verified(label)
        return {"image": image, "label": tuple(sorted({int(number) for number in labels}))}

    def _verified(self, objects: Mapping[str, Any]) -> Iterator[int]:
        found = zip(objects["label"], objects["confidence"], objects["source"], strict=True)
        for label, confidence, source in found:
            if confidence == VERIFIED and self.sources[source] != "machine":
                yield label

    def parse_file_name(self, record: bytes) -> str:
        """The name of the file that the picture came from."""
        return self.parsers[1].deserialize_example_np(record)[self.file_name].decode(errors="replace")


def _find_image(features: Mapping[str, Any], where: str) -> str:
    import tensorflow_datasets as tfds

    kind, masks = tfds.features.Image, tfds.features.LabeledImage
    found = [key for key, x in features.items() if isinstance(x, kind) and not isinstance(x, masks)]
    if len(found) != 1:
        raise ValueError(
            f"{where}: must have one feature of type Image; has {len(found)} among {sorted(features)}"
        )
    if features[found[0]].np_dtype == np.float32:  # TFDS stores their bytes as the four channels of a PNG
        raise ValueError(f"{where}: its images are float32, which is no picture; name another set")
    return found[0]


def _find_label(features: Mapping[str, Any], where: str, label: str | None) -> tuple[str, str]:
    """(kind, key); see `Layout`."""
    kinds = {key: kind for key, feature in features.items() if (kind := _kind(feature)) is not None}
    if label is not None:
        if label not in kinds:
            raise ValueError(f"{where}: label = {label!r}: has no classes; choose one of {sorted(kinds)}")
        return kinds[label], label
    if kinds.get("label") == "one":
        return "one", "label"
    many = [key for key, kind in kinds.items() if kind == "many"]
    if len(many) == 1 or "labels" in many:
        return "many", "labels" if "labels" in many else many[0]
    for key in OBJECTS:
        if kinds.get(key) == "objects":
            return "objects", key
    raise ValueError(
        f"{where}: must have a ClassLabel 'label' or one sequence of ClassLabel; it has {sorted(features)}; name"
        f" the classes by --config.data.label=KEY, one of {sorted(kinds)}"
    )


def _kind(feature: Any) -> str | None:
    """Of a label, see `Layout`; None for any other feature."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.ClassLabel):
        return "one"
    if not isinstance(feature, tfds.features.Sequence):
        return None
    inner = feature.feature
    if isinstance(inner, tfds.features.ClassLabel):
        return "many"
    of_objects = isinstance(inner, tfds.features.FeaturesDict) and {"label", "confidence", "source"} <= set(inner)
    return "objects" if of_objects else None


def _find(name: str, root: str | None) -> Any:
    """TFDS's builder of a set that lies below `root`."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import constants, naming, read_only_builder

    if not naming.is_valid_dataset_name(name):
        raise ValueError(f"name = 'tfds:{name}': is no name of a TFDS set; write NAME, NAME/CONFIG or NAME:1.2.3")
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=root and os.path.expanduser(root))
        formats = builder.info.available_file_formats()
    except tfds.core.DatasetNotFoundError:
        folder = pathlib.Path(root or constants.DATA_DIR).expanduser()
        raise ValueError(
            f"root = {root!r}: {folder} holds no set {name!r}, but {_list(folder) or 'none at all'}; name another"
            " data.root or data.name, or write the set with python -m xception_jax prepare"
        ) from None
    except (OSError, ValueError, json_format.Error) as error:
        raise ValueError(f"root = {root!r}: its set {name!r} is damaged: {error}; write it again") from error
    if tfds.core.FileFormat.ARRAY_RECORD not in formats:
        raise ValueError(
            f"root = {root!r}: {builder.data_dir} holds {builder.info.file_format.value} files, which have no"
            f" random access; write the set again, in TFDS with file_format={FORMAT!r}"
        )
    return tfds.builder_from_directory(builder.data_dir, file_format=FORMAT)


def _list(folder: pathlib.Path) -> str:
    """The sets below a data_dir, each with its configuration and version."""
    files = [path for depth in ("[!.]*/*", "[!.]*/*/*") for path in folder.glob(f"{depth}/features.json")]
    return ", ".join(sorted(str(path.parent.relative_to(folder)) for path in files))


def _ranges(builder: Any, setting: str, value: str | None, split: str) -> dict[str, list[tuple[int, int]]]:
    """The records of a split, as (first, end) in each file."""
    where = f"{setting} = {value!r}"
    try:
        parts = builder.info.splits[split].file_instructions
    except (KeyError, ValueError):
        splits = ", ".join(builder.info.splits)
        raise ValueError(f"{where}: the set has no split {split!r}, but {splits}; name one, or a part") from None
    if not parts:
        raise ValueError(f"{where}: {split!r} has no records; name a larger part")
    ranges: dict[str, list[tuple[int, int]]] = {}
    for part in parts:
        ranges.setdefault(part.filename, []).append((part.skip, part.skip + part.take))
    return ranges


def _count_shared(some: dict[str, list[tuple[int, int]]], others: dict[str, list[tuple[int, int]]]) -> int:
    """Number of records in both."""
    return sum(
        max(0, min(end, other_end) - max(start, other_start))
        for file, ranges in some.items()
        for start, end in ranges
        for other_start, other_end in others.get(file, [])
    )


def _check_files(builder: Any, source: Records, where: str) -> None:
    """That all are there, and one can be read: to be told of before training begins."""
    import tensorflow_datasets as tfds

    files = [part.filename for part in builder.info.splits[source.split].file_instructions]
    if missing := [file for file in files if not tfds.core.Path(file).exists()]:
        raise ValueError(f"{where} lacks {len(missing)} files, the first is {missing[0]}; write the set again")
    try:
        source[0]
    except UnreadableExample as error:
        raise ValueError(f"{where} cannot be read: {error.reason}; write the set again") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
