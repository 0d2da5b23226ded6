"""The notebooks: both forms hold the same cells, and they run from top to bottom."""

import json
import os
import pathlib
import re

import jupytext
import nbclient
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"
TEXTS = sorted(FOLDER.glob("*.md"))


def test_there_are_notebooks_and_each_has_both_forms():
    assert TEXTS
    assert {path.stem for path in TEXTS} == {path.stem for path in FOLDER.glob("*.ipynb")}


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_both_forms_hold_the_same_cells_and_no_outputs(text):
    notebook = jupytext.read(text.with_suffix(".ipynb"))
    nbformat.validate(notebook)
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in jupytext.read(text).cells
    ]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def execute(path, **environment):
    """The outputs of all cells of a notebook, run in its folder with one CPU device; raises where a cell does."""
    notebook = nbformat.read(path, as_version=4)
    inherited = {name: value for name, value in os.environ.items() if name not in ("MPLBACKEND", "XLA_FLAGS")}
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute(env=inherited | {"JAX_PLATFORMS": "cpu"} | environment)
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def percents(printed, row):
    """The numbers followed by % in the lines that begin with `row`, a list for each line."""
    return [[float(n) for n in re.findall(r"([\d.]+)%", line)] for line in re.findall(rf"^{row}.*", printed, re.M)]


def test_train_and_evaluate_runs(tmp_path):
    workdir = tmp_path / "run"
    outputs = execute(FOLDER / "train_and_evaluate.ipynb", XCEPTION_WORKDIR=str(workdir), XCEPTION_EPOCHS="2")
    assert [output for output in outputs if output.output_type == "error"] == []
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(figures) == 5  # predictions, mistakes, close decisions, confusion matrix, training profile
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    for weights in ("raw", "averaged"):
        (top1, _), (in_training, here) = percents(printed, weights)
        assert here == in_training == top1
    assert top1 > 50  # of the averaged weights; 73 to 87 with seeds 0 to 4
    assert percents(printed, r"\d+ of 360 right: top-1") == [[top1]]
    assert (workdir / "training_profile.png").stat().st_size > 0


def figures(outputs):
    return [output for output in outputs if "image/png" in output.get("data", {})]


def printed(outputs):
    return "".join(output.text for output in outputs if output.output_type == "stream")


def test_paper_figures_runs(reproduced):
    run = reproduced / "runs/smoke/xception/seed0"
    outputs = execute(
        FOLDER / "paper_figures.ipynb",
        XCEPTION_RESULTS=str(reproduced / "results/smoke"),
        XCEPTION_WORKDIRS=f"mine={run}",
    )
    assert len(figures(outputs)) == 2  # figure 9, and the run that was named
    assert "smoke: fig9" in printed(outputs) and "fig10: no results here" in printed(outputs)


def test_paper_figures_draws_what_comes_with_the_repository():
    assert len(figures(execute(FOLDER / "paper_figures.ipynb"))) == 6  # figures 6 to 10, the spectrum


def test_compare_runs_runs(reproduced):
    """One folder is named, the other network is trained by the notebook."""
    runs = reproduced / "runs/smoke"
    variables = {"XCEPTION_A": str(runs / "xception"), "XCEPTION_SCALE": "smoke"}
    outputs = execute(FOLDER / "compare_runs.ipynb", **variables)
    assert len(figures(outputs)) == 3  # profiles, classes, disagreements
    text = printed(outputs)
    measured = [json.loads(line) for line in (runs / "xception/seed0/metrics.jsonl").read_text().splitlines()]
    top1 = [row["top1"] for row in measured if row["kind"] == "averaged"][-1]
    assert f"xception: {top1:.2%} right" in text and "(1 seeds)" in text


def test_text_classification_runs(tmp_path):
    """The counts are those of torch's layers; batch_sizes is what its pack_padded_sequence gives."""
    variables = {"XCEPTION_WORKDIR": str(tmp_path / "run"), "XCEPTION_EPOCHS": "0.3"}
    outputs = execute(FOLDER / "text_classification.ipynb", **variables)
    assert len(figures(outputs)) == 7  # padding, gradients, gates, tokens, mistakes, confusion matrix, lengths
    text = printed(outputs)
    differences = dict(re.findall(r"^(\w+) *: alone .* largest difference ([\d.]+)$", text, re.M))
    assert float(differences["packed"]) < 1e-6
    assert float(differences["mean"]) > 0.01 and float(differences["last"]) > 0.01
    assert "data [1, 6, 9, 2, 7, 3, 8, 4, 5]\nbatch_sizes [3, 2, 2, 1, 1]\n" in text
    counts = {"rnn": "3,268 6,532 5,380 12,804", "gru": "9,540 19,076 15,876 37,892"}
    for cell, row in (counts | {"lstm": "12,676 25,348 21,124 50,436"}).items():
        assert f"{cell} {row}" in " ".join(text.split())
    assert "rnn  6,135,236 parameters" in text and "lstm 6,144,644 parameters" in text
    ((top1,),) = percents(text, r"[\d,]+ of [\d,]+ right: top-1")
    assert percents(text, "measured by the run: top-1") == [[top1]]
    ((most_frequent,),) = percents(text, "always the most frequent class: top-1")
    assert top1 > most_frequent + 5
