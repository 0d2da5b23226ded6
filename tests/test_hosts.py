"""Two hosts, as two processes of this machine: what fails on one of them ends both, with the same error."""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from test_text import write_table

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """images/ has two classes of 12 images to train on and 2 to evaluate.

    In unreadable/ the training images of one class are cut short, in evaluated/ one image to evaluate.
    """
    folder = tmp_path_factory.mktemp("two_hosts")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 2)):
        for name in ("dark", "light"):
            (folder / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
                image.save(folder / "images" / split / name / f"{number:02}.png")
    write_table(folder / "texts.csv", 300)
    for copy, broken in (("unreadable", "train/light/*"), ("evaluated", "val/light/01.png")):
        shutil.copytree(folder / "images", folder / copy)
        for path in (folder / copy).glob(broken):
            path.write_bytes(path.read_bytes()[:60])
    return folder


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """launch(command(port, host)) -> [(exit code, output, errors) of each host]."""

    def run(command):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = os.environ | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.getbasetemp() / "compiled_for_two_hosts"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT),
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with contextlib.ExitStack() as stack:
            processes = [
                stack.enter_context(subprocess.Popen(command(port, host), cwd=ROOT, env=environment, **pipes))
                for host in (0, 1)
            ]
            for process in processes:
                stack.callback(process.kill)
            return [(*process.communicate(timeout=240), process.returncode) for process in processes]

    return run


@pytest.fixture(scope="module")
def outcomes(launch, folder):
    """{scenario: [outcome of each host]} of two_hosts.py."""
    program = pathlib.Path(__file__).with_name("two_hosts.py")
    ended = launch(lambda port, host: [sys.executable, str(program), str(port), str(host), str(folder)])
    assert [code for _, _, code in ended] == [0, 0], ended
    printed = [json.loads(output.splitlines()[-1]) for output, _, _ in ended]
    return {name: [outcome[name] for outcome in printed] for name in printed[0]}


def error(outcomes, name):
    """(class, message) of the error that a scenario ended with on both hosts, soon."""
    first, second = outcomes[name]
    assert (first["error"], first["text"]) == (second["error"], second["text"])
    assert max(first["seconds"], second["seconds"]) < 60
    return first["error"], first["text"]


AGREEMENTS = {
    "one_user_error": ("UserError", "host 1 of 2: no such file; name another"),
    "two_kinds_of_errors": (
        "TrainingError",
        "host 0 of 2: no such file | host 1 of 2: [Errno 28] No space left on device",
    ),
    "the_same_error": ("UserError", "no such file"),
    "an_interrupted_host": ("KeyboardInterrupt", "host 0 of 2: interrupted"),
    "a_mistake_in_the_program": ("TrainingError", "host 1 of 2: ZeroDivisionError: division by zero"),
    "the_first_host_fails": ("UserError", "host 0 of 2: no such file"),
}


@pytest.mark.parametrize("name", AGREEMENTS)
def test_all_hosts_raise_the_errors_of_all_hosts(outcomes, name):
    assert error(outcomes, name) == AGREEMENTS[name]


def test_without_errors_results_and_messages_are_exchanged(outcomes):
    assert outcomes["nobody_fails"] == [{"result": 10}, {"result": 11}]
    assert outcomes["the_first_host_tells"] == [{"result": {"host": 0, "list": [1, 0.1 + 0.2, "é"]}}] * 2
    expected = [["", ""], ["", "x"], ["", "é" * 5000]]
    assert outcomes["messages_of_all_lengths"] == [{"result": expected}] * 2


def test_the_first_host_saves_and_all_hosts_restore(outcomes):
    saved = [3, {"of": 3, "evaluation": 0.5}, [True] * 4, [], 3]
    assert outcomes["checkpoints_are_saved_and_restored"] == [{"result": saved}] * 2


def test_a_checkpoint_that_all_hosts_find_damaged_is_set_aside(outcomes, folder):
    first, second = outcomes["a_checkpoint_damaged_for_all_hosts"]
    assert first == second
    step, record, equal, (warning,) = first["result"]
    assert (step, record, equal) == (2, {"of": 2}, [True] * 4)
    assert warning == f"checkpoint {folder}/all/checkpoints/3 is damaged"
    assert (folder / "all" / "damaged-3").is_dir()


def test_a_checkpoint_that_one_host_finds_damaged_ends_both(outcomes):
    for outcome in outcomes["a_checkpoint_damaged_for_one_host"]:  # each names its own folder
        assert outcome["error"] == "TrainingError" and "nothing was changed" in outcome["text"]
        assert "can be read on some hosts only (host 1: DATA_LOSS: " in outcome["text"]


def test_a_checkpoint_that_one_host_cannot_read_ends_both(outcomes):
    kind, text = error(outcomes, "a_checkpoint_unreadable_for_one_host")
    assert kind == "TrainingError" and text.startswith("host 0 of 2: cannot read checkpoint ")
    assert "symbolic links" in text


def test_a_save_that_fails_on_the_first_host_ends_both(outcomes):
    kind, text = error(outcomes, "a_disk_that_only_the_first_host_writes")
    assert kind == "TrainingError" and text.startswith("host 0 of 2: cannot write to ")


def test_a_dataset_that_one_host_does_not_have_ends_both(outcomes):
    kind, text = error(outcomes, "a_dataset_missing_on_one_host")
    assert kind == "UserError" and text.startswith("host 1 of 2: config.data.root = '/nowhere': no such folder")


def test_a_run_of_two_hosts_ends_with_equal_weights(outcomes, folder):
    first, second = outcomes["a_run_of_two_hosts"]
    assert first == second
    step, fingerprint, count = first["result"]
    assert (step, count) == (4, 4) and len(fingerprint) == 16
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["kind"]) for row in rows if row["kind"] != "averaged"] == [
        *[(1, "train"), (2, "train"), (2, "raw")],
        *[(3, "train"), (4, "train"), (4, "raw")],
    ]


def test_a_run_on_texts_is_the_same_on_one_host_with_as_many_devices(outcomes, folder):
    """Each host makes its share of a batch as long as the longest text of the whole batch."""
    first, second = outcomes["a_run_on_texts"]
    assert first == second
    step, _, count, evaluation = first["result"]
    program = (
        "import json, test_text; from xception_jax import loop;"
        f"c = test_text.config('{folder}/texts.csv', total_steps=6, evaluate_every_steps=6, log_every_steps=2);"
        f"r = loop.train(c, '{folder}/alone'); print(json.dumps([r.step, r.num_examples, r.evaluation]))"
    )
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    alone = json.loads(ended.stdout.splitlines()[-1])
    assert alone[:2] == [step, count] == [6, 57]
    assert evaluation["loss"] == pytest.approx(alone[2]["raw"]["loss"], rel=1e-5)
    assert evaluation["top1"] == alone[2]["raw"]["top1"]


def test_hosts_that_read_different_word_vectors_end_both(outcomes):
    kind, text = error(outcomes, "word_vectors_that_differ")
    assert kind == "UserError" and text.startswith("config.data: the hosts read different initial values;")


def test_a_training_image_that_one_host_cannot_read_ends_both(outcomes, folder):
    kind, text = error(outcomes, "a_training_image_that_one_host_cannot_read")
    assert kind == "TrainingError"
    assert text.startswith(f"host 1 of 2: cannot read {folder}/unreadable/train/light/")
    assert os.listdir(folder / "stopped" / "checkpoints") == []  # of steps with a batch of the wrong images


def train(port, host, *arguments):
    tiny = {
        "total_epochs": 0,
        "total_steps": 4,
        "evaluate_every_epochs": 0,
        "evaluate_every_steps": 2,
        "log_every_steps": 1,
        "model.stem_widths": "(2,2)",
        "model.entry_widths": "(2,)",
        "model.exit_widths": "(2,2,4)",
        "model.middle_blocks": 0,
        "batch_size": 8,
        "eval_batch_size": 4,
        "data.name": "folder",
        "data.image_size": 8,
        "data.max_unreadable": 0.9,
    }
    distributed = (f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={host}")
    settings = (f"--config.{name}={value}" for name, value in tiny.items())
    return [sys.executable, "train.py", "--config=configs/digits.py", *settings, *distributed, *arguments]


def errors_of(ended):
    """(exit codes, the lines that tell of an error) of both hosts."""
    lines = [[line for line in errors.splitlines() if line.startswith("error: ")] for _, errors, _ in ended]
    assert all("Traceback" not in errors for _, errors, _ in ended), ended
    return [code for _, _, code in ended], lines


def test_a_workdir_that_fails_on_one_host(launch, folder):
    """A launch as it is done on each host; the other tests need no process of their own."""
    (folder / "file").touch()
    workdirs = (folder / "free", folder / "file")
    root = f"--config.data.root={folder / 'images'}"
    ended = launch(lambda port, host: train(port, host, root, f"--workdir={workdirs[host]}"))
    reason = f"--workdir={folder}/file: cannot be used (File exists); name a directory that can be written"
    assert errors_of(ended) == ([2, 2], [[f"error: host 1 of 2: {reason}"]] * 2)


def test_an_evaluation_image_that_one_host_cannot_read(launch, folder, outcomes):
    roots = (folder / "images", folder / "evaluated")
    run = f"--workdir={folder / 'evaluating'}"
    ended = launch(lambda port, host: train(port, host, run, f"--config.data.root={roots[host]}"))
    codes, lines = errors_of(ended)
    assert codes == [1, 1] and lines[0] == lines[1]
    (line,) = lines[0]
    assert line.startswith(f"error: host 1 of 2: cannot read {folder}/evaluated/val/light/01.png")
    assert os.listdir(folder / "evaluating" / "checkpoints") == ["2"]  # the steps before it are saved
