"""Runs that earlier versions wrote must load, evaluate, predict and resume; tests/golden/ holds them.

VERSION_RUN_finished.tar.xz was trained to its end, VERSION_RUN_unfinished.tar.xz was interrupted at step 3 of 6.
VERSION_RUN.json says what that version measured and predicted, on the first three validation images.
"""

import json
import pathlib
import tarfile

import jax
import numpy as np
import pytest

import xception_jax
from xception_jax import __main__, data, loop, recipe

GOLDEN = pathlib.Path(__file__).parent / "golden"
RUNS = sorted(path.stem for path in GOLDEN.glob("*.json"))


@pytest.fixture(autouse=True)
def plain_types():
    """As in the tests of whole runs."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def unpack(tmp_path):
    """unpack(run, state) -> its working directory."""

    def extract(run, state):
        with tarfile.open(GOLDEN / f"{run}_{state}.tar.xz") as archive:
            archive.extractall(tmp_path, filter="data")
        return tmp_path / run.partition("_")[2]

    return extract


def expected(run):
    return json.loads((GOLDEN / f"{run}.json").read_text())


def assert_same_measures(actual, measured):
    assert actual.keys() == measured.keys()
    for weights, values in measured.items():
        assert actual[weights] == pytest.approx(values, rel=1e-4), weights


@pytest.mark.parametrize("state", ["finished", "unfinished"])
@pytest.mark.parametrize("run", RUNS)
def test_it_loads_and_predicts(run, state, unpack):
    workdir, then = unpack(run, state), expected(run)[state]
    for weights in {"raw", "averaged"} & then.keys():
        trained = xception_jax.load(workdir, checkpoint="latest", weights=weights)
        assert (trained.step, trained.evaluation) == (then["step"], then["evaluation"])
        assert trained.inputs.preprocessing.background == "black"
        images = data.load(trained.recipe.data.name).validation.images[:3]
        np.testing.assert_allclose(trained.predict(images), then[weights], rtol=1e-4)


@pytest.mark.parametrize("run", RUNS)
def test_it_evaluates(run, unpack, capsys, monkeypatch):
    workdir, then = unpack(run, "finished"), expected(run)["finished"]
    monkeypatch.setattr("sys.argv", ["", "evaluate", f"--workdir={workdir}", "--checkpoint=latest"])
    __main__.main()
    line = capsys.readouterr().out.splitlines()[-1]
    for weights, values in then["evaluation"].items():
        assert f"{weights} weights: loss {values['loss']:.4f}" in line


@pytest.mark.parametrize("run", RUNS)
def test_it_resumes_to_what_the_unbroken_run_measured(run, unpack, capsys):
    """And a finished run has nothing to do."""
    workdir = unpack(run, "unfinished")
    config = recipe.read(workdir).model_dump()
    result = loop.train(config, workdir)
    assert "continuing from step 3" in capsys.readouterr().out and result.step == 6
    assert_same_measures(result.evaluation, expected(run)["finished"]["evaluation"])
    assert loop.train(config, workdir).fingerprint == result.fingerprint
    assert "nothing to do" in capsys.readouterr().out
