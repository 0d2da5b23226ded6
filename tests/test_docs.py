"""The documentation: links lead somewhere, commands and code run, numbers are those that were measured.

What "run" means depends on the command that a page shows:

* `summary`, `settings`, `evaluate`, `preview`, `prepare folder`, `benchmark table` and `reproduce` run as shown,
  in a folder that has the finished digits run of version 0.1 as runs/digits and some images as photos/.
  `reproduce` gets `--list`.
* Trainings, other benchmarks, races and the preparation of ImageNet need hours, other libraries or other data.
  Their command lines are parsed by the programs themselves; a recipe is also checked as a whole.
* `make` prints what it would do. Of pip's command lines, the extras and the files must exist.

Python code runs in the same folder; of the networks that it creates, only the shapes are computed.
"""

import ast
import contextlib
import csv
import io
import pathlib
import pkgutil
import re
import shlex
import subprocess
import sys
import tarfile
import tomllib

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from flax import nnx
from PIL import Image
from test_imports import ALLOWED

import train  # noqa: F401 - declares the flags
from xception_jax import __main__, models, recipe
from xception_jax.commands import command_line
from xception_jax.commands.benchmark import rows, table
from xception_jax.commands.steps import MODES

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "tools/README.md",
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.md"))
CODE = [
    ROOT / "train.py",
    *(path for room in ("xception_jax", "configs", "tools") for path in (ROOT / room).rglob("*.py")),
]
RUN = ("summary", "settings", "evaluate", "preview", "prepare folder", "benchmark table", "reproduce")


# Names in files that version 0.1 wrote.
OLD_NAMES = {"xception_jax/recipe.py": {"polyak"}, "xception_jax/run/checkpoint.py": {"ema"}}

LOADS_RECIPES = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections


def name(path):
    return str(path.relative_to(ROOT))


def blocks(path):
    """(language, lines) of every block of code; the language is "" where a page does not say it."""
    fence, language, block = None, "", []
    for line in path.read_text().splitlines():
        opening = re.match(r"\s*```(\w*)$", line)
        if opening and fence is None:
            fence, language, block = True, opening[1], []
        elif opening:
            yield language, block
            fence = None
        elif fence:
            block.append(line)
        elif line.startswith("    "):
            yield "", [line.strip()]


def commands(path):
    """The command lines that a page shows, as lists of words, without what is redirected to a file."""
    for language, lines in blocks(path):
        for line in "\n".join(lines).replace("\\\n", "").splitlines():
            words = shlex.split(line, comments=True)
            if language == "sh" or words[:1] in (["python"], ["make"]):
                yield words[: words.index(">")] if ">" in words else words


COMMANDS = {shlex.join(words): words for path in [*PAGES, *NOTEBOOKS] for words in commands(path)}


def plain(path):
    """The text of a page without blocks of code."""
    return re.sub(r"^\s*```.*?^\s*```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(path):
    """The fragments that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", plain(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def csv_rows(path):
    with (ROOT / path).open(newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS, *sorted((ROOT / "results").rglob("*.md"))], ids=name)
def test_links_and_images_lead_somewhere(path):
    for link in re.findall(r"\]\(\s*([^)\s]+)\s*\)", plain(path)):
        if link.startswith(("https://", "http://")):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_paths_and_settings_exist(path):
    text = path.read_text()
    for found in re.findall(r"`((?:configs|xception_jax|tests|results|docs|tools|notebooks)/[\w./*]+)", text):
        assert "NAME" in found or any(ROOT.glob(found.rstrip("/"))), found
    known = {row.name for model in models.MODELS for row in recipe.settings_table(model)} | {"model.name"}
    sections = {setting.partition(".")[0] for setting in known if "." in setting}
    used = re.findall(r"--config\.([a-z_.]+)", text)
    used += [
        word for word in re.findall(r"`([a-z]+\.[a-z_]+)(?:=[^`]*)?`", text) if word.split(".")[0] in sections
    ]
    assert set(used) - known == set()


def test_the_readme_fits_on_a_few_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands run: the repository's files, a finished run, a folder of images."""
    folder = tmp_path_factory.mktemp("docs")
    for part in ("configs", "docs", "results", "constraints.txt"):
        (folder / part).symlink_to(ROOT / part)
    with tarfile.open(ROOT / "tests/golden/v0.1_xception_digits_finished.tar.xz") as archive:
        archive.extractall(folder / "runs", filter="data")
    (folder / "runs/xception_digits").rename(folder / "runs/digits")
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(30):
            pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"photos/{label}/{number}.jpg")
    return folder


@LOADS_RECIPES
class TestCommands:
    @pytest.fixture(autouse=True)
    def inside(self, folder, monkeypatch):
        monkeypatch.chdir(folder)

    @pytest.mark.parametrize("words", [pytest.param(words, id=line) for line, words in COMMANDS.items()])
    def test_command(self, words, monkeypatch, capsys):
        match words:
            case ["make", *rest]:
                subprocess.run(["make", "--dry-run", *rest], cwd=ROOT, check=True, capture_output=True)
            case [".venv/bin/pip", "install", *rest]:
                check_installation(rest)
            case [".venv/bin/pre-commit", "install"]:
                assert (ROOT / ".pre-commit-config.yaml").exists()
            case ["python", "train.py", *rest]:
                parse_training(rest, monkeypatch)
            case ["python", "-m", "xception_jax", *rest]:
                run_command(rest, monkeypatch)
            case ["python", "tools/race.py", *rest]:
                parse_race(rest, monkeypatch)
            case _:
                pytest.fail("no test knows this command")
        if words[3:] == ["settings"]:
            assert capsys.readouterr().out == (ROOT / "docs/settings.md").read_text()

    @pytest.mark.parametrize("path", PAGES, ids=name)
    def test_code_runs(self, path, monkeypatch):
        create = models.create_model
        monkeypatch.setattr(
            models, "create_model", lambda *args, **kw: nnx.eval_shape(lambda: create(*args, **kw))
        )
        shown = list(blocks(path))
        assert {language for language, _ in shown} <= {"sh", "python", "text", ""}
        names = {}
        for language, lines in shown:
            if language == "python":
                exec("\n".join(lines), names)
        if path == ROOT / "README.md":
            assert names["probabilities"].shape == (2, 10) and names["probabilities"].dtype == np.float32
            np.testing.assert_allclose(names["probabilities"].sum(axis=1), 1, rtol=1e-5)


def check_installation(words):
    """Every extra is declared, every file of constraints exists."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert words[:1] == ["-c"] and pathlib.Path(words[1]).exists()
    assert words[2] == "-e" and re.fullmatch(r"\.\[(\w+)\]", words[3])[1] in extras and len(words) == 4


def parse_training(words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", *words])  # where the overrides of the recipe are looked for
    saved = flagsaver.save_flag_values()
    try:
        command_line.parse(flags.FLAGS, sys.argv, required=("config", "workdir"), example="")
        recipe.parse(flags.FLAGS["config"].value)
    finally:
        flagsaver.restore_flag_values(saved)


def run_command(words, monkeypatch):
    """Runs `python -m xception_jax`, or only its parser for what takes too long."""
    if " ".join(words).startswith(RUN):
        words = words + ["--list"] * (words[0] == "reproduce" and "--list" not in words)
    else:
        monkeypatch.setattr(__main__.COMMANDS[words[0]], "run", lambda arguments: None)
    monkeypatch.setattr(sys, "argv", ["xception_jax", *words])
    __main__.main()


def parse_race(words, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import race

    monkeypatch.setattr(race.RACES[words[0]], "run", lambda arguments: None)
    monkeypatch.setattr(sys, "argv", ["race.py", *words])
    race.main()


class TestNumbers:
    def test_demo(self):
        measured = csv_rows("results/digits.csv")
        raw, averaged = (
            [f"{float(row[f'{kind}_top1']):.1%}"[:-1] for row in measured] for kind in ("raw", "averaged")
        )
        text = (ROOT / "docs/reproduction.md").read_text()
        for row, *accuracies in zip(measured, raw, averaged, strict=True):
            assert f"| {row['seed']} | {accuracies[0]} % | {accuracies[1]} % | {row['seconds']}" in text
        readme = (ROOT / "README.md").read_text()
        for kind, values in {"raw": raw, "averaged": averaged}.items():
            assert f"{min(values, key=float)} to {max(values, key=float)} % with the {kind} weights" in readme

    def test_docstrings(self):
        (row,) = csv_rows("results/docstrings.csv")
        values = (float(row[name]) for name in ("raw_top1", "averaged_top1", "logistic_regression"))
        raw, averaged, linear = (f"{value:.1%}"[:-1] for value in values)
        text = (
            f"GRU {raw} %, with averaged weights {averaged} %; logistic regression on TF-IDF of one and two words"
        )
        assert f"{text} {linear} % |" in (ROOT / "README.md").read_text()

    def test_whole_steps(self):
        found = [row for row in table.latest(rows.read(ROOT / "results/speed.csv")) if row["what"] in MODES]
        page, readme = ((ROOT / path).read_text() for path in ("docs/speed.md", "README.md"))
        assert table.markdown(found) in page
        steps = [row for row in found if (row["what"], row["inputs"]) == ("train", "299 px, float32")]
        alone = {row["by"]: float(row["seconds"]) for row in steps if not row["reference"]}
        assert f"| {1000 * alone['xception']:,.0f} ms;" in readme
        assert f"{alone['xception (implementation=xla)'] / alone['xception']:.1f} times as long" in page
        ratios = {row["reference"]: float(row["ratio"]) for row in steps if row["reference"]}
        for peer, text in {"timm legacy_xception": "timm's", "keras Xception": "Keras's"}.items():
            assert f"{ratios[peer]:.3f} times as long as {text}" in readme

    def test_text_classifiers(self):
        """The ratios on the quiet machine, the rows since 23:28, are between those that docs/speed.md names."""
        measured = [
            r for r in csv_rows("results/text_speed.csv") if r["reference"] and r["date"] > "2026-11-24T23:28"
        ]

        def spread(vectors, peer, chosen=lambda row: True):
            kinds = (row for row in measured if f"{vectors} vectors" in row["inputs"] and chosen(row))
            ratios = [float(row["ratio"]) for row in kinds if row["reference"].startswith(peer)]
            return f"{min(ratios):.2f}", f"{max(ratios):.2f}"

        def large(row):
            return "state 256" in row["inputs"]

        def slow(row):
            return large(row) and (row["by"], row["images"]) == ("lstm", "16")

        text = " ".join((ROOT / "docs/speed.md").read_text().split())
        for part in (
            "takes {} to {} times as long; and".format(*spread("fixed", "torch", slow)),
            "and {} to {} times as long as packed torch".format(*spread("fixed", "packed", large)),
            "{} to {} times as long as Keras, whose".format(*spread("fixed", "keras")),
            "takes {} to {} times as long as padded torch's".format(*spread("trained", "torch")),
            "and {} to {} times as long as Keras's".format(*spread("trained", "keras")),
        ):
            assert part in text
        assert float(spread("fixed", "torch", lambda row: not slow(row))[1]) <= 1
        assert float(spread("fixed", "packed", lambda row: not large(row))[1]) < 1 / 3

    def test_reading(self):
        measured = csv_rows("results/data.csv")
        photographs = [row for row in measured if row["inputs"].startswith("photographs")]
        made = {row["by"]: row for row in photographs if row["what"] == "prepare"}
        (decode,) = [row for row in photographs if row["what"] == "decode"]
        stored = {
            re.match(r"tfds:p(\d+)", row["inputs"])[1]: row
            for row in measured
            if row["by"] == "pipeline" and row["inputs"].startswith("tfds")
        }
        per_second = {side: f"{1 / float(row['seconds']):,.0f}" for side, row in stored.items()}
        pipeline = made["pipeline"]
        text = " ".join((ROOT / "docs/data.md").read_text().split())
        for part in (
            f"takes {1000 * float(pipeline['seconds']):.2f} ms from its file to a batch",
            f"which is {1 / float(pipeline['seconds']):.0f} images/s",
            f"{100 * float(decode['ratio']):.0f} % of the work is decoding",
            f"Grain takes {100 - 100 / float(pipeline['ratio']):.0f} % of the time",
            f"Pillow takes {float(made['Pillow']['ratio']):.2f} times as long",
            f"tf.data {float(made['tf.data']['ratio']):.2f} times",
            f"prepares {per_second['0']} images/s, and {per_second['352']} or {per_second['299']} images/s",
        ):
            assert part in text
        readme = (ROOT / "README.md").read_text()
        assert (
            f"| {1000 * float(pipeline['seconds']):.2f} ms; Pillow takes {float(made['Pillow']['ratio']):.2f} "
            in readme
        )

    def test_the_small_scale(self):
        """Every number of the table is on the page that its row links to, which `reproduce` wrote."""
        text = (ROOT / "docs/reproduction.md").read_text()
        lines = re.findall(
            r"^\| \[.*?\]\(\.\./(results/reproduce/small/\w+\.md)\) \| .*? \| (.*) \|$", text, re.MULTILINE
        )
        assert len(lines) == 6
        for page, found in lines:
            numbers = re.findall(r"\d+\.\d+", found)
            assert [number for number in numbers if number not in (ROOT / page).read_text()] == [], page
        fig9 = (ROOT / "results/reproduce/small/fig9.md").read_text()
        readme = re.search(r"reaches ([\d.]+) % instead of ([\d.]+) %", (ROOT / "README.md").read_text())
        assert all(number in fig9 for number in readme.groups())
        section = re.search(r"^## The notebook's text models$(.*?)^## ", text, re.MULTILINE | re.DOTALL)[1]
        notebook = (ROOT / "results/reproduce/small/rnn_notebook.md").read_text()
        numbers = re.findall(r"\d+\.\d\d", section)
        assert len(numbers) > 20 and [number for number in numbers if number not in notebook] == []

    def test_parameters(self):
        """Every count in docs/networks.md is one that the tests of the models hold."""
        tests = "".join(
            (ROOT / "tests" / f"test_{module}.py").read_text() for module in ("models", "xception", "recurrent")
        )
        counts = re.findall(r"\| ([\d,]{9,}) \|", (ROOT / "docs/networks.md").read_text())
        assert len(counts) == 14
        assert [count for count in counts if count.replace(",", "_") not in tests] == []
        assert counts[0] in (ROOT / "README.md").read_text()


class TestInternals:
    def test_the_table_of_rooms_is_the_one_that_is_tested(self):
        text = (ROOT / "docs/internals.md").read_text()
        table_rows = re.findall(r"^\| (`\w+`.*?) \| .*? \| (.*) \|$", text, re.MULTILINE)
        shown, above = {}, set()
        for rooms, imports in table_rows:
            own = set(re.findall(r"`(\w+)`", rooms))
            may = above | own if imports.startswith("all of the above") else set(re.findall(r"`(\w+)`", imports))
            shown |= dict.fromkeys(own, may)
            above = above | own
        assert shown == {room: may for room, may in ALLOWED.items() if not room.startswith("__")}

    def test_names_in_the_text_exist(self):
        rooms = {path.stem for path in (ROOT / "xception_jax").iterdir()}
        for page in ("docs/internals.md", "CONTRIBUTING.md"):
            names = re.findall(r"`(\w+(?:\.\w+)+)(?:\([^`]*)?`", (ROOT / page).read_text())
            names = [
                found for found in names if found.split(".")[0] in rooms and not found.endswith((".py", ".jsonl"))
            ]
            assert names
            for found in names:
                pkgutil.resolve_name(f"xception_jax.{found}")

    @LOADS_RECIPES
    def test_the_error_reads_as_shown(self, monkeypatch):
        shown = next(lines for language, lines in blocks(ROOT / "docs/internals.md") if language == "text")
        monkeypatch.chdir(ROOT)
        arguments = ["--config=configs/folder_xception.py", "--config.data.root=/nowhere"]
        monkeypatch.setattr(sys, "argv", ["xception_jax", "preview", *arguments])
        printed = io.StringIO()
        with pytest.raises(SystemExit), contextlib.redirect_stderr(printed):
            __main__.main()
        assert printed.getvalue().strip() == shown[0].strip()


class TestGlossary:
    def test_words_that_are_not_used(self):
        glossary = (ROOT / "CONTRIBUTING.md").read_text().partition("## Glossary")[2]
        cells = re.findall(r"^\| .* \| ([^|]*) \|$", glossary, re.MULTILINE)
        refused = {word for cell in cells for word in re.findall(r"`(\w+)`", cell)}
        assert {"picture", "plan", "polyak", "ema"} <= refused
        for path in CODE:
            words = set(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", path.read_text())))
            wrong = {word for word in refused if {word, f"{word}s"} & words}
            assert wrong - OLD_NAMES.get(name(path), set()) == set(), name(path)

    def test_no_name_hides_another(self):
        for path in CODE:
            assert path.stem not in sys.stdlib_module_names - {"__main__"} or path.stem.startswith("__"), name(
                path
            )
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    bases = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
                    assert node.name not in bases, f"{name(path)}: {node.name}"
