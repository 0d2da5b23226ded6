"""The real trainer on a modality of the tests' own: training, SIGKILL, resuming, evaluation, load and predict."""

import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import sequences
from sklearn.metrics import accuracy_score

import xception_jax
from xception_jax import __main__, loop, recipe, task
from xception_jax.errors import SettingError


@pytest.fixture(autouse=True)
def known_modality():
    """The types of whole runs, and the modality."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), sequences.registered():
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, result) of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("sequences") / "run"
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), sequences.registered():
        return workdir, loop.train(sequences.config(), workdir)


def test_it_learns_and_predicts(run):
    workdir, result = run
    assert result.step == 60 and result.evaluation["averaged"]["top1"] > 0.9
    trained = xception_jax.load(workdir, checkpoint="latest")
    held_out = sequences.Sequences.draw(50, seed=1)
    predicted = trained.predict(held_out.tokens, batch_size=16).argmax(axis=1)
    assert accuracy_score(held_out.labels, predicted) == pytest.approx(result.evaluation["averaged"]["top1"])
    assert trained.class_names == ("small", "large") and trained.inputs.record() == {"max_length": 8}
    assert trained.recipe.model["vocab_size"] == sequences.VOCABULARY


def test_padding_does_not_count(run):
    """A sequence by itself and beside longer ones has the same probabilities."""
    trained = xception_jax.load(run[0])
    short, long = np.array([3]), np.arange(8)
    np.testing.assert_allclose(trained.predict([short]), trained.predict([long, short])[1:], rtol=1e-6)


def test_a_killed_run_resumes_to_the_same_bits(run, tmp_path):
    """On 8 devices, as the run of the fixture."""
    command = [sys.executable, sequences.__file__, str(tmp_path / "run")]
    root = pathlib.Path(__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("step 50/60"):
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    resumed = loop.train(sequences.config(), tmp_path / "run")
    assert resumed.fingerprint == run[1].fingerprint and resumed.evaluation == run[1].evaluation


def test_the_evaluate_command_repeats_the_numbers(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["", "evaluate", f"--workdir={run[0]}", "--checkpoint=latest"])
    __main__.main()
    loss = run[1].evaluation["averaged"]["loss"]
    assert f"averaged weights: loss {loss:.4f}" in capsys.readouterr().out


def test_outputs_that_name_no_class_come_from_the_inputs(monkeypatch):
    monkeypatch.setattr(sequences.SequenceInputs, "label_offset", 1)
    built = task.build(recipe.parse(sequences.config()))
    assert built.objective.num_classes == built.recipe.model["num_classes"] == 3
    assert built.objective.targets(np.array([1])).tolist() == [[0, 0, 1]]


def test_settings_of_the_modality_are_checked_and_settings_of_images_are_unknown():
    with pytest.raises(SettingError, match=r"^config\.data\.max_length = 0: "):
        recipe.parse(sequences.config(**{"data.max_length": 0}))
    values = sequences.config().to_dict()
    values["data"]["image_size"] = 8
    with pytest.raises(SettingError, match=r"^config\.data\.image_size = 8: is not a setting"):
        recipe.parse(values)
    assert "augment" not in values
