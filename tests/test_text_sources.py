"""Sources of texts, against files written here and against ast."""

import ast
import collections
import csv
import importlib.metadata
import importlib.util
import json
import pathlib
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from test_records import write_set

from xception_jax.data.text import corpus, docstrings
from xception_jax.data.text.examples import is_held_out
from xception_jax.data.text.records import Layout
from xception_jax.errors import SettingError


def load(name, root=None, **settings):
    return corpus.load(corpus.TextSources(name=name, root=root and str(root), **settings))


def triples(part):
    """(text, label, name) of all of its texts."""
    labels = part.labels.tolist() if isinstance(part.labels, np.ndarray) else part.labels
    return [(text, label, part.name(i)) for i, (text, label) in enumerate(zip(part.texts, labels, strict=True))]


def pairs(part):
    return [(text, label) for text, label, _ in triples(part)]


def test_names_are_pickled_without_the_texts():
    part = corpus.Part(["long " * 10_000], np.zeros(1, np.int32), ["a.csv, line 2"])
    sent = pickle.dumps(part.name)
    assert len(sent) < 200 and pickle.loads(sent)(0) == "a.csv, line 2"
    assert pairs(pickle.loads(pickle.dumps(part))) == pairs(part)


TRAIN = r""""3","Wall St. Bears (Reuters)","Short-sellers, ""ultra-cynics"", are\green"
4,No quotes,"Two
lines, and \$46\\"
"1","Été","",
""".replace('"",\n', '""\n')
TEST = '"2","Ein, zwei","a ""b"""\r\n'


class TestAGNews:
    def write(self, folder, train=TRAIN, test=TEST):
        for name, text in (("train.csv", train), ("test.csv", test)):
            if text is not None:
                (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return folder

    def test_texts_are_those_of_torchtext(self, tmp_path):
        found = load("ag_news", self.write(tmp_path))
        assert triples(found.train) == [
            (r'Wall St. Bears (Reuters) Short-sellers, "ultra-cynics", are\green', 2, "train.csv, line 1"),
            ("No quotes Two\nlines, and \\$46\\\\", 3, "train.csv, line 2"),
            ("Été ", 0, "train.csv, line 4"),
        ]
        assert triples(found.validation) == [('Ein, zwei a "b"', 1, "test.csv, line 1")]
        assert found.train.labels.dtype == np.int32 and not found.multilabel
        assert found.class_names == ("World", "Sports", "Business", "Sci/Tech")

    def test_what_is_not_the_official_set_is_told(self, tmp_path):
        notes = load("ag_news", self.write(tmp_path)).notes
        assert notes[0] == "train.csv has 3 examples, and the official one 120,000"
        assert notes[1] == "test.csv has 1 examples, and the official one 7,600"
        assert "1 classes have no training texts: Sports" in notes

    @pytest.mark.parametrize(
        "train, test, message",
        [
            (None, TEST, r"has no train\.csv; name the folder"),
            (None, None, r"has no train\.csv and no test\.csv; name the folder"),
            ("3,only a title\n", TEST, r"train\.csv, line 1: needs a class from 1 to 4, a title and"),
            (TRAIN + "5,a,b\n", TEST, r"train\.csv, line 5: needs a class from 1 to 4"),
            (TRAIN + "Class Index,Title,Description\n", TEST, r"train\.csv, line 5: needs a class"),
            (TRAIN, TEST.encode() + b"1,a,\xe9\n", r"line 2: is not UTF-8"),
            (TRAIN, "", "no texts for val; add some$"),
        ],
    )
    def test_other_files_are_refused(self, tmp_path, train, test, message):
        with pytest.raises(SettingError, match=f"^root = '{tmp_path}': {message}"):
            load("ag_news", self.write(tmp_path, train, test))


def write_table(path, rows):
    """CSV or JSONL."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            for row in rows:
                lists = {key: ";".join(value) for key, value in row.items() if isinstance(value, list)}
                writer.writerow(row | lists)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


ONE = [{"text": f'text {i},\n\n"quoted" é', "label": ("good", "bad")[i % 2]} for i in range(40)]


@pytest.fixture(params=[".csv", ".jsonl"])
def table(request, tmp_path):
    """Writes a table in both formats."""
    return lambda rows, name="texts": write_table(tmp_path / f"{name}{request.param}", rows)


class TestTable:
    def test_one_label_and_a_share_held_out(self, table):
        path = table(ONE)
        found = load("table", path, holdout=0.3)
        both = triples(found.train) + triples(found.validation)
        lines = [3 * i + 2 if path.suffix == ".csv" else i + 1 for i in range(40)]
        expected = [(row["text"], int(row["label"] == "good"), line) for row, line in zip(ONE, lines, strict=True)]
        assert sorted(both) == sorted((text, label, f"{path.name}, line {n}") for text, label, n in expected)
        assert found.class_names == ("bad", "good") and not found.multilabel
        assert all(is_held_out(text, 0.3) for text in found.validation.texts) and len(found.validation.texts) > 3
        assert found.notes == ("30% of 40 texts held out, chosen by a hash of the text",)

    def test_equal_texts_are_on_the_same_side(self, table):
        found = load("table", table(ONE * 3), holdout=0.5)
        assert not set(found.train.texts) & set(found.validation.texts)

    def test_a_column_of_splits(self, table):
        rows = [row | {"split": ("train", "val", "train")[i % 3]} for i, row in enumerate(ONE)]
        found = load("table", table(rows))
        assert [text for text, _ in pairs(found.validation)] == [row["text"] for row in ONE[1::3]]

    def test_a_second_file(self, table):
        found = load("table", table(ONE), eval_root=str(table([*ONE[:1], ONE[1] | {"text": "new"}], "eval")))
        assert pairs(found.train) == [(row["text"], int(row["label"] == "good")) for row in ONE]
        assert pairs(found.validation) == [(ONE[0]["text"], 1), ("new", 0)]
        assert (
            found.validation.name(0).startswith("eval.") and "1 texts are in the training and" in found.notes[-1]
        )

    def test_other_columns(self, table):
        rows = [{"id": str(i), "body": row["text"], "stars": row["label"]} for i, row in enumerate(ONE)]
        found = load("table", table(rows), text_column="body", label_column="stars")
        assert found.class_names == ("bad", "good")
        with pytest.raises(SettingError, match=r"^text_column = 'text': .*no such column; it has id, body, stars"):
            load("table", table(rows))
        with pytest.raises(
            SettingError, match=r"^label_column = 'star': .*no such column; it has id, body, stars"
        ):
            load("table", table(rows), text_column="body", label_column="star")

    def test_several_labels(self, table):
        labels = [["b", "a"], [], ["a", "a"], ["c"]]
        rows = [{"text": str(i), "labels": labels[i % 4], "split": "val" if i == 3 else "train"} for i in range(8)]
        found = load("table", table(rows), label_column="labels")
        assert found.multilabel and found.class_names == ("a", "b", "c")
        assert [label for _, label in pairs(found.train)] == [(0, 1), (), (0,), (0, 1), (), (0,), (2,)]
        assert [label for _, label in pairs(found.validation)] == [(2,)]

    @pytest.mark.parametrize(
        "labels, names",
        [
            (("10", "9", "-1"), ("-1", "9", "10")),
            (("3.5", "10", "3"), ("3", "3.5", "10")),
            (("10", "9", "x"), ("10", "9", "x")),
            (("b", "B", " a "), ("B", "a", "b")),
        ],
    )
    def test_classes_are_sorted_by_value_or_name(self, table, labels, names):
        rows = [{"text": str(i), "label": label} for i, label in enumerate(labels * 9)]
        assert load("table", table(rows)).class_names == names

    def test_a_line_of_ten_megabytes(self, table):
        rows = [
            {"text": "x" * 10_000_000, "label": "a", "split": "val"},
            *(row | {"split": "train"} for row in ONE),
        ]
        assert len(load("table", table(rows)).validation.texts[0]) == 10_000_000

    def test_texts_without_words_are_kept(self, table):
        rows = [
            {"text": ["", " ", "\n"][i % 3], "label": "ab"[i % 2], "split": ["train", "val"][i % 2]}
            for i in range(6)
        ]
        assert load("table", table(rows)).train.texts == ("", "\n", " ")

    def test_a_file_as_spreadsheets_save_it(self, table):
        path = table(ONE)
        path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig", newline="")
        assert load("table", path).class_names == ("bad", "good")

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"label": ""}, r"line \d+: label = ''; write a name"),
            ({"label": "  "}, r"line \d+: label = '  '; write a name"),
            ({"split": "test"}, r"line \d+: split = 'test'; write train or val"),
        ],
    )
    def test_a_faulty_row_is_named(self, table, change, message):
        rows = [row | {"split": "train"} for row in ONE]
        with pytest.raises(SettingError, match=rf"^root = '.*': {message}"):
            load("table", table([*rows, rows[0] | change]))

    def test_one_class_is_too_few(self, table):
        with pytest.raises(
            SettingError, match=r"^root = '.*': a classifier needs two classes or more.*\['good'\]"
        ):
            load("table", table(ONE[:1] * 5))

    def test_all_texts_in_one_part(self, table):
        message = r"^root = .*no texts for val; .*: change holdout = 0\.0, or add texts$"
        with pytest.raises(SettingError, match=message):
            load("table", table(ONE), holdout=0.0)

    def test_faulty_second_files(self, table, tmp_path):
        first = table(ONE)
        for rows, message in (
            (
                [{"text": "a", "label": "ugly"}],
                r"eval\..*, line \d: 'ugly' is not among the labels of root: bad, good",
            ),
            ([{"text": "a", "label": " "}], r"line \d: label = ' '; write a name"),
        ):
            with pytest.raises(SettingError, match=rf"^eval_root = '.*eval\..*': {message}"):
                load("table", first, eval_root=str(table(rows, "eval")))
        with pytest.raises(SettingError, match=r"^eval_root = .*No such file"):
            load("table", first, eval_root=str(tmp_path / f"gone{first.suffix}"))
        split = table([row | {"split": "val"} for row in ONE], "split")
        with pytest.raises(SettingError, match=r"^eval_root = .*root has a column 'split'.*set eval_root to None"):
            load("table", split, eval_root=str(first))


@pytest.mark.parametrize(
    "suffix, content, message",
    [
        (".csv", "", "has no rows"),
        (".csv", "text,label\n", "has no rows"),
        (".jsonl", "\n", "has no rows"),
        (
            ".csv",
            "text,label\na,b,c\n",
            "line 2: needs 'text', which is a string, and 'label', and no more columns",
        ),
        (".csv", "text,label\na\n", "line 2: needs 'text'"),
        (
            ".csv",
            'text,label\n"a,b\n',
            "is not a well-formed .csv file: in the row that begins in line 2: unexpected",
        ),
        (".csv", b"text,label\na,b\n\xff,c\n", "line 3: is not UTF-8"),
        (".jsonl", b'{"text": "a", "label": 1}\n{"text": "\xe9", "label": 1}\n', "line 2: is not UTF-8"),
        (
            ".jsonl",
            '{"text": "a", "label": 1}\n{"text": "a"',
            "is not a well-formed .jsonl file: line 2: Expecting",
        ),
        pytest.param(".jsonl", "[" * 100_000, "is not a well-formed .jsonl file: line 1: maximum", id="deep"),
        (".jsonl", '{"text": "a", "label": 1}\n3\n', "line 2: needs 'text'"),
        (
            ".jsonl",
            '{"text": "a", "label": 1}\n{"text": 5, "label": 1}\n',
            "line 2: needs 'text', which is a string",
        ),
        (".jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": null}\n', "line 2: needs 'text'"),
        (
            ".jsonl",
            '{"text": "a", "label": 1}\n{"text": "b", "label": ["c"]}\n',
            r"line 2: label = \['c'\]; write a name",
        ),
        (
            ".jsonl",
            '{"text": "a", "label": ["b"]}\n{"text": "b", "label": 1}\n',
            "line 2: label = 1; write a list",
        ),
        (".jsonl", '{"text": "a", "label": NaN}\n', "line 1: label = nan; write a name"),
        (".jsonl", '{"text": "\\ud83d", "label": 1}\n', r"line 1: text has '\\ud83d', one half of a pair"),
        (".txt", "a\n", r"a table is a \.csv or \.jsonl file"),
    ],
)
def test_tables_of_another_form_are_refused(tmp_path, suffix, content, message):
    path = tmp_path / f"texts{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingError, match=rf"^root = '{path}': {message}"):
        load("table", path)


def test_a_list_of_labels_needs_no_special_name(tmp_path):
    rows = [{"text": str(i), "label": ["a", "b"][: i % 3]} for i in range(1, 30)]
    found = load("table", write_table(tmp_path / "texts.jsonl", rows))
    assert found.multilabel and set(found.train.labels) == {(), (0,), (0, 1)}
    numbers = [{"text": str(i), "label": i % 3 + 0.5} for i in range(30)]
    assert load("table", write_table(tmp_path / "texts.jsonl", numbers)).class_names == ("0.5", "1.5", "2.5")


def write_folder(root, texts):
    """{path: text or bytes}."""
    for path, text in texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


class TestFolder:
    def test_a_folder_for_each_class(self, tmp_path):
        texts = {f"{name}/{i % 3}/{i}.txt": f"{name} é {i}\r\n" for name in ("neg", "pos") for i in range(30)}
        found = load("text_folder", write_folder(tmp_path, texts), holdout=0.3)
        expected = [(text, int("pos" in path), str(tmp_path / path)) for path, text in texts.items()]
        assert sorted(triples(found.train) + triples(found.validation)) == sorted(expected)
        assert found.class_names == ("neg", "pos")
        assert all(is_held_out(text, 0.3) for text in found.validation.texts) and len(found.validation.texts) > 5
        assert found.notes == ("30% of 60 texts held out, chosen by a hash of the text",)

    def test_parts(self, tmp_path):
        texts = {"train/a/1.txt": "one", "train/b/1.TXT": "\ufefftwo", "val/a/1.txt": "three", "val/b/1.txt": ""}
        found = load("text_folder", write_folder(tmp_path, texts | {"train/a/1.md": "#"}))
        assert pairs(found.train) == [("one", 0), ("two", 1)] and pairs(found.validation) == [
            ("three", 0),
            ("", 1),
        ]
        assert found.notes == ("left out 1 files without the suffix of a text: train/a/1.md",)

    @pytest.mark.parametrize(
        "texts, message",
        [
            ({"a/1.txt": b"\xff", "b/1.txt": ""}, r".*a/1\.txt is not UTF-8"),
            ({"a/1.txt": "", "b/1.md": ""}, r"class 'b': no texts \(\.txt\); add some"),
            ({"a/1.txt": ""}, "a classifier needs two classes or more"),
            ({"1.txt": ""}, ".* has no folders"),
            ({"val/a/1.txt": ""}, r"holds val and no train/"),
            ({"train/a/1.txt": "", "train/b/1.txt": "", "val/a/1.txt": ""}, "classes b are in only one of"),
        ],
    )
    def test_other_folders_are_refused(self, tmp_path, texts, message):
        with pytest.raises(SettingError, match=f"^root = '{tmp_path}': {message}"):
            load("text_folder", write_folder(tmp_path, texts))

    def test_a_missing_folder_is_named(self, tmp_path):
        with pytest.raises(SettingError, match=r"^root = '.*gone': no such folder; .* folder of texts for each"):
            load("text_folder", tmp_path / "gone")


LABEL = tfds.features.ClassLabel(names=["world", "sports"])
TEXT = tfds.features.Text()


class TestRecords:
    def test_title_and_description(self, tmp_path):
        features = {"title": TEXT, "description": TEXT, "label": LABEL}
        examples = [{"title": f"Title {i}", "description": f"é, {i}", "label": i % 2} for i in range(8)]
        write_set(tmp_path, "news", features, {"train": examples[:6], "test": examples[6:]})
        found = load("tfds:news", tmp_path)
        assert sorted(pairs(found.train)) == [(f"Title {i} é, {i}", i % 2) for i in range(6)]
        assert sorted(pairs(found.validation)) == [(f"Title {i} é, {i}", i % 2) for i in (6, 7)]
        assert found.class_names == ("world", "sports") and found.train.name(4) == "record 4 of news train"
        found = load("tfds:news", tmp_path, train_split="train[:50%]", eval_split="train[50%:]")
        assert (len(found.train.texts), len(found.validation.texts)) == (3, 3)
        with pytest.raises(SettingError, match=r"^eval_split = 'train': 3 texts of 'train' are in train_split"):
            load("tfds:news", tmp_path, train_split="train[:50%]", eval_split="train")

    def test_several_labels(self, tmp_path):
        features = {"body": TEXT, "topics": tfds.features.Sequence(LABEL)}
        examples = [{"body": str(i), "topics": [1, 0, 1][:i]} for i in range(3)]
        write_set(tmp_path, "topics", features, {"train": examples, "test": examples[:1]})
        found = load("tfds:topics", tmp_path)
        assert found.multilabel and sorted(pairs(found.train)) == [("0", ()), ("1", (1,)), ("2", (0, 1))]
        assert found.notes[-1] == "1 texts are in the training and in the validation part"

    @pytest.mark.parametrize(
        "features, chosen",
        [
            ({"sentence": TEXT, "sentiment": LABEL, "id": np.int64}, (("sentence",), "sentiment")),
            ({"text": TEXT, "id": TEXT, "label": LABEL, "coarse": LABEL}, (("text",), "label")),
            ({"description": TEXT, "id": TEXT, "label": LABEL}, (("description",), "label")),
        ],
    )
    def test_which_features(self, features, chosen):
        layout = Layout.of(tfds.features.FeaturesDict(features), "tfds:x")
        assert (layout.texts, layout.label) == chosen

    @pytest.mark.parametrize(
        "features",
        [
            {"text": TEXT},
            {"label": LABEL},
            {"a": TEXT, "b": TEXT, "label": LABEL},
            {"text": TEXT, "a": LABEL, "b": LABEL},
        ],
    )
    def test_other_features_are_refused(self, features):
        found = ", ".join(f"{key} \\({type(feature).__name__}\\)" for key, feature in features.items())
        with pytest.raises(SettingError, match=f"^name = 'tfds:x': must have one Text, .*; it has {found}$"):
            Layout.of(tfds.features.FeaturesDict(features), "tfds:x")

    def test_faulty_records_are_named(self, tmp_path):
        features = {"text": TEXT, "label": LABEL}
        good = [{"text": f"text {i}", "label": 0} for i in range(3)]
        for name, bad in (("bytes", {"text": b"\xff", "label": 0}), ("blind", {"text": "a", "label": -1})):
            write_set(tmp_path, name, features, {"train": good, "test": [bad]})
        with pytest.raises(
            SettingError, match=r"^root = .*record 0 of bytes test: is not UTF-8; write the set again"
        ):
            load("tfds:bytes", tmp_path)
        with pytest.raises(
            SettingError, match=r"^root = .*record 0 of blind test: has no label; name another split"
        ):
            load("tfds:blind", tmp_path)
        path = next((tmp_path / "bytes" / "1.0.0").glob("*train*"))
        content = bytearray(path.read_bytes())
        content[content.index(b"text 1")] ^= 1
        path.write_bytes(content)
        with pytest.raises(SettingError, match=r"^root = .*record \d of bytes train: cannot be read: .*mismatch"):
            load("tfds:bytes", tmp_path)


# Sentences of each package with the versions in constraints.txt, by that of numpy: Python 3.11, and 3.12 or later.
CLASSES = ("numpy", "scipy", "scikit-learn", "matplotlib", "jax", "optax")
COUNTS = {"2.4.6": (5397, 14803, 9991, 7448, 7524, 1258), "2.5.5": (5060, 14606, 9992, 7448, 8134, 1258)}


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Writes packages that `docstrings` reads instead of the real ones."""
    docstrings._collect.cache_clear()
    monkeypatch.setattr(docstrings, "PACKAGES", {"teapot": "tea-pot", "cup": "cup"})
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda texts: write_folder(tmp_path, texts)
    docstrings._collect.cache_clear()


class TestDocstrings:
    def test_counts(self):
        found = load("docstrings")
        counts = collections.Counter([*found.train.labels.tolist(), *found.validation.labels.tolist()])
        version = importlib.metadata.version("numpy")
        assert found.class_names == CLASSES
        assert tuple(counts[label] for label in range(len(CLASSES))) == COUNTS[version]
        assert len(found.validation.texts) == pytest.approx(sum(counts.values()) / 10, rel=0.05)
        assert f"numpy {version}" in found.notes[0]

    def test_they_are_sentences_that_tell_no_package(self):
        found = load("docstrings")
        texts = [*found.train.texts, *found.validation.texts]
        assert len(set(texts)) == len(texts)
        words = [text.split() for text in texts]
        assert min(map(len, words)) == 6 and max(map(len, words)) == 60
        assert all((text[0].isupper() or text.startswith("package")) and text[-1] in ".!?" for text in texts)
        names = ("numpy", "scipy", "sklearn", "scikit", "matplotlib", "jax", "optax")
        assert not [text for text in texts if any(name in text.lower() for name in names)]
        assert not {"np", "jnp", "plt"} & {word.strip(".,;:()").split(".")[0] for line in words for word in line}

    def test_the_docstrings_are_those_that_ast_finds(self):
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        root = pathlib.Path(importlib.util.find_spec("optax").submodule_search_locations[0])
        paths = [path for path in root.rglob("*.py") if not path.stem.endswith("_test")]
        assert len(paths) > 50
        for path in paths:
            code = path.read_text("utf-8")
            nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, kinds)]
            expected = {docstring for node in nodes if (docstring := ast.get_docstring(node))}
            assert {text for _, text in docstrings.find_docstrings(code)} == expected, path

    def test_what_is_a_docstring(self):
        code = '# """no"""\n"""Module"""\nx = """no"""\nf(\'"\', """no""")\n\n\n'
        code += 'class A:  # "a\n    r"""\\s\n      two"""\n    x = \'\'\'"""\'\'\'\n\n\n'
        code += 'def f(x: str = "a:"):\n    """F\n    g\n    """\n'
        code += 'def g():\n    f"""no {x}"""\n'
        assert list(docstrings.find_docstrings(code)) == [(2, "Module"), (8, "\\s\ntwo"), (14, "F\ng")]

    @pytest.mark.parametrize(
        "docstring, sentences",
        [
            ("Compute the sum of all\nthe elements. Too short here.", ["Compute the sum of all the elements."]),
            ("the first letter is a small one.\n\nThe full stop is missing at the end", []),
            (" ".join(["Word", *["word"] * 59]) + ".", [" ".join(["Word", *["word"] * 59]) + "."]),
            (" ".join(["Word", *["word"] * 60]) + ".", []),
            ("It works, e.g. Newton's method does so.", ["It works, e.g. Newton's method does so."]),
            (
                "See :func:`~a.b` and ``x.y`` or `z <http://a.b>`_ for *all* of it [1]_.",
                ["See a.b and x.y or z for all of it."],
            ),
            (
                "NumPy arrays and ``np.ndarray`` objects go to jnp.sin, lax ones not.",
                ["package arrays and package.ndarray objects go to package.sin, package ones not."],
            ),
            (
                "Parameters\n----------\naxis : int\n    The axis along which to\n    sum. It is last.\n",
                ["The axis along which to sum."],
            ),
            (
                "Args:\n  x: The axis along which\n    to sum all.\n  keep: Whether it keeps\n    an axis or not.",
                ["The axis along which to sum all.", "Whether it keeps an axis or not."],
            ),
            (
                "- The first item goes on\n  in a second line.\n- The second item is a short one.",
                ["The first item goes on in a second line.", "The second item is a short one."],
            ),
            (
                "The code of an example follows::\n\n    This is the code of it.\n\n    And more of it.\n\n"
                "This sentence comes after the code.",
                ["This sentence comes after the code."],
            ),
            (">>> f()\nThis is what the function prints.\n", []),
            (".. math::\n   This is a formula and no sentence.\n\n   This is one as well and no more.", []),
            ("References\n----------\n.. [1] A. Author.\n   The title of the book is left out.\n", []),
            (
                ".. note:: This is a note and\n   it goes on. This is a sentence of the note too.\n",
                ["This is a note and it goes on.", "This is a sentence of the note too."],
            ),
            (".. versionadded:: 1.3\n   This is the note of a version.", ["This is the note of a version."]),
            ("We set x = 5 and then go on.\n\nThe set {a, b} has two of them.", []),
            ("The a1 b2 c3 d4 are e5 f6.", []),
        ],
    )
    def test_sentences(self, docstring, sentences):
        assert list(docstrings.sentences(docstring)) == sentences

    def test_packages_are_read_and_not_imported(self, packages):
        packages(
            {
                "teapot/__init__.py": '"""The pot is full of tea.\n\nBoth have this one sentence too."""\n1 / 0\n',
                "teapot/a/b.py": 'def f():\n    """The pot is full of tea. Pour it with a steady hand."""\n',
                "teapot/tests/c.py": '"""Tests have no part in this set."""\n',
                "teapot/c_test.py": '"""Tests have no part in this set."""\n',
                "cup/__init__.py": '"""Both have this one sentence too. The cup is of thin china."""\n1 / 0\n',
            }
        )
        assert [(e.text, e.label, e.where) for e in docstrings._collect()] == [
            ("The pot is full of tea.", 0, "teapot/__init__.py, line 1"),
            ("Pour it with a steady hand.", 0, "teapot/a/b.py, line 2"),
            ("The cup is of thin china.", 1, "cup/__init__.py, line 1"),
        ]
        held_out = [is_held_out(example.text, 0.5) for example in docstrings._collect()]
        assert 0 < sum(held_out) < 3, "name another share"
        found = load("docstrings", holdout=0.5)
        assert len(found.validation.texts) == sum(held_out) and found.class_names == ("tea-pot", "cup")
        assert found.notes[0] == "docstrings of tea-pot of unknown version, cup of unknown version"

    def test_a_missing_package_is_named(self, packages):
        packages({"teapot/__init__.py": '"""The pot is full of tea."""\n'})
        with pytest.raises(
            SettingError, match=r"^name = 'docstrings': needs the package cup; run pip install cup"
        ):
            load("docstrings")


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("docstring", {}, "name = 'docstring': no such dataset; did you mean 'docstrings'?"),
        ("imdb", {}, r"name = 'imdb': no such dataset; choose one of .*'ag_news'.* or 'tfds:NAME'"),
        ("ag_news", {}, r"root = None: dataset 'ag_news' needs it; name the folder with train\.csv and test\.csv"),
        ("table", {}, r"root = None: dataset 'table' needs it; name the \.csv or \.jsonl file"),
        ("text_folder", {}, "root = None: dataset 'text_folder' needs it; name the folder of the texts"),
        ("docstrings", {"root": "."}, "root = '.': does not belong to dataset 'docstrings'; set it to None"),
        (
            "ag_news",
            {"root": ".", "holdout": 0.2},
            "holdout = 0.2: does not belong to .*; set it to 0.1",
        ),
        ("ag_news", {"root": ".", "eval_root": "b"}, "eval_root = 'b': does not belong to dataset 'ag_news'"),
        (
            "text_folder",
            {"root": ".", "text_column": "b"},
            "text_column = 'b': .*; set it to text",
        ),
        ("table", {"root": ".", "eval_split": "b"}, "eval_split = 'b': does not belong to dataset 'table'"),
        ("tfds:x", {"label_column": "b"}, "label_column = 'b': does not belong to dataset 'tfds:x'"),
        ("table", {"root": ".", "holdout": 1.0}, "holdout = 1.0: input should be less than 1"),
        ("tfds:no such", {}, "name = 'tfds:no such': is no name of a TFDS set"),
    ],
)
def test_a_wrong_name_or_setting_is_refused(name, settings, message):
    with pytest.raises(SettingError, match=f"^{message}"):
        load(name, **settings)
