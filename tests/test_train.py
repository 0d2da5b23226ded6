"""The launcher as people use it: interruptions, damage, mistakes; each run is a process of its own."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from xception_jax import loop, recipe
from xception_jax.commands import command_line
from xception_jax.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
TINY = (
    "--config=configs/digits.py",
    "--config.total_epochs=0",
    "--config.total_steps=60",
    "--config.evaluate_every_epochs=0",
    "--config.evaluate_every_steps=20",
    "--config.log_every_steps=10",
    "--config.model.stem_widths=(4,8)",
    "--config.model.entry_widths=(8,)",
    "--config.model.middle_blocks=0",
    "--config.model.exit_widths=(8,8,16)",
    "--config.data.image_size=8",
)


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """One device, and one compilation cache for all runs of the session."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return {
        **os.environ,
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(base / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture(scope="session")
def launch(environment):
    """launch(*arguments, at=(line, signal)) -> (exit code, output); the signal follows the first such line."""

    def run(*arguments, at=None):
        command = [sys.executable, "train.py", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if at and line.startswith(at[0]):
                    process.send_signal(at[1])
                    at = None
        assert at is None, f"no line began with {at[0]!r}:\n{''.join(lines)}"
        return process.returncode, "".join(lines)

    return run


@pytest.fixture(scope="session")
def unbroken(launch, tmp_path_factory):
    """(workdir, output) of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    code, output = launch(*TINY, "--workdir", workdir)
    assert code == 0, output
    return workdir, output


def fingerprint(output):
    return re.search(r"^fingerprint of step 60: (\w{16})$", output, re.MULTILINE)[1]


def metric_rows(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("examples_per_second", "data_wait")} for row in rows]


def test_a_run_leaves_what_it_promises(unbroken):
    workdir, output = unbroken
    expected = {"checkpoints", "tensorboard", "metrics.jsonl", "config.json", "training_profile.png"}
    assert expected <= {path.name for path in workdir.iterdir()}
    assert all(str(workdir / name) in output for name in expected)
    assert f"-m xception_jax evaluate --workdir {workdir}" in output.splitlines()[-3]
    assert output.count("evaluated 360 examples") == 4  # at steps 20, 40, 60, and in the summary
    assert re.search(r"^devices: 1 x cpu on 1 host; mesh \{'data': 1\}", output, re.MULTILINE)
    assert "44.9 steps per epoch" in output
    assert "= 100 steps = 2.23 epochs" in output
    assert re.search(r"\| classifier/kernel +\| \(16, 10\)", output)
    row = r"^step 20/60 \| epoch 0\.45 \| loss .* \| top-1 .* \| lr 0.045 \| .* examples/s \| data wait .* left$"
    assert re.search(row, output, re.MULTILINE)


def test_interrupted_runs_end_bit_equal(unbroken, launch, tmp_path):
    """SIGTERM while compiling, Ctrl-C while evaluating, SIGKILL between checkpoints: the same end as without."""
    command = (*TINY, "--workdir", tmp_path / "run", "--config.eval_batch_size=1")
    code, output = launch(*command, at=("averaging:", signal.SIGTERM))
    assert code == 0 and "interrupted at step 0, which is saved" in output, output
    code, output = launch(*command, at=("step 20/60", signal.SIGINT))
    assert code == 0 and "interrupted at step 20, which is saved" in output, output
    assert "step 20: evaluated" not in output
    code, output = launch(*command, at=("step 50/60", signal.SIGKILL))
    assert code == -signal.SIGKILL
    assert "continuing from step 20" in output and "step 20: evaluated" in output
    code, output = launch(*command)
    assert code == 0 and re.search("^continuing from step (20|40)$", output, re.M), output
    assert fingerprint(output) == fingerprint(unbroken[1])
    resumed, whole = metric_rows(tmp_path / "run"), metric_rows(unbroken[0])
    assert [(row["step"], row["kind"]) for row in resumed] == [(row["step"], row["kind"]) for row in whole]
    assert [r for r in resumed if r["kind"] == "train"] == [r for r in whole if r["kind"] == "train"]


def test_a_complete_run_says_so_and_changes_nothing(unbroken, launch, tmp_path):
    shutil.copytree(unbroken[0], tmp_path / "run")
    code, output = launch(*TINY, "--workdir", tmp_path / "run")
    assert code == 0 and "the run is complete" in output
    assert fingerprint(output) == fingerprint(unbroken[1])
    assert metric_rows(tmp_path / "run") == metric_rows(unbroken[0])


DEAF = """
import runpy, sys
from xception_jax.run.interrupt import StopRequest
StopRequest.local = lambda self: False  # as if the loop never looked whether it was asked to stop
sys.argv[0] = sys.argv.pop(1)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_second_ctrl_c_ends_a_run_with_one_line(environment, tmp_path):
    command = [sys.executable, "-c", DEAF, "train.py", *TINY, f"--workdir={tmp_path / 'run'}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = environment | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith(("step 30/", "step 50/")):
                process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    assert lines[-1].startswith("error: interrupted by a second Ctrl-C") and "Traceback" not in "".join(lines)


@pytest.mark.slow
def test_the_digits_recipe_reaches_its_accuracy(launch, tmp_path):
    code, output = launch("--config=configs/digits.py", "--workdir", tmp_path / "run")
    assert code == 0, output
    (summary,) = re.findall(r"^evaluated 360 examples.*", output, re.MULTILINE)
    top1 = [float(value) for value in re.findall(r"top-1 ([\d.]+) %", summary)]
    assert len(top1) == 2 and min(top1) >= 97, summary


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 40 JPEG and PNG files in two classes, one of them cut short, and 10 more to evaluate."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 5)):
        for name, mean in (("dark", 80), ("light", 170)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(rng.normal(mean, 40, (30 + number, 50 - number, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.{'jpg' if number % 2 else 'png'}")
    cut = root / "train" / "dark" / "7.jpg"
    cut.write_bytes(cut.read_bytes()[:700])
    return root


def folder_run(images, workdir):
    """Arguments of a run with worker processes; the images are mixed and mirrored on the device."""
    settings = {"root": images, "num_workers": 1, "max_unreadable": 0.05}
    return (
        *TINY,
        "--config.data.name=folder",
        *(f"--config.data.{name}={value}" for name, value in settings.items()),
        "--config.batch_size=8",
        "--config.augment.flip=True",
        "--config.augment.color=inception",
        "--config.augment.mixup_alpha=0.2",
        "--workdir",
        workdir,
    )


def test_a_run_from_image_files_survives_its_kill(launch, images, tmp_path):
    shared = set(os.listdir("/dev/shm"))
    code, output = launch(*folder_run(images, tmp_path / "unbroken"))
    assert code == 0, output
    warning = rf"^warning: cannot read {images}/train/dark/7\.jpg: .*; another example takes its place$"
    assert len(re.findall(warning, output, re.M)) == 1, output
    killed = folder_run(images, tmp_path / "killed")
    # The pipe of a killed run ends only when its workers have ended too.
    code, _ = launch(*killed, at=("step 50/60", signal.SIGKILL))
    assert code == -signal.SIGKILL
    code, resumed = launch(*killed, at=("step 50/60", signal.SIGTERM))
    assert code == 0 and re.search("^continuing from step (20|40)$", resumed, re.M), resumed
    assert "interrupted at step 5" in resumed, resumed
    code, resumed = launch(*killed)
    assert code == 0 and fingerprint(resumed) == fingerprint(output)
    assert set(os.listdir("/dev/shm")) <= shared
    rows = metric_rows(tmp_path / "unbroken")
    assert sum(row.get("unreadable", 0) for row in rows) * 80 == pytest.approx(12)  # 12 epochs of 40


def test_too_many_unreadable_images_end_the_run(launch, images, tmp_path):
    code, output = launch(*folder_run(images, tmp_path / "run"), "--config.data.max_unreadable=0.01")
    assert code == 1
    # On a busy machine Python's resource tracker may have a word after it, of memory that it then frees.
    (error,) = (line for line in output.splitlines() if line.startswith("error: "))
    assert error.startswith("error: 2 of 80 examples") and "dark/7.jpg" in error
    assert "config.data.max_unreadable = 0.01" in error
    assert "Traceback" not in output


def damage(checkpoint):
    """Changes one byte of the parameters, in the middle of their largest file."""
    path = max((checkpoint / "params").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(unbroken, launch, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(unbroken[0], workdir)
    damage(workdir / "checkpoints" / "60")
    code, output = launch(*TINY, "--config.checkpoints_to_keep=2", "--workdir", workdir)
    assert code == 0, output
    assert json.loads((workdir / "config.json").read_text())["checkpoints_to_keep"] == 2  # of the continuation
    assert re.search(rf"^warning: checkpoint {workdir}/checkpoints/60 is damaged .*; using 40$", output, re.M), (
        output
    )
    assert fingerprint(output) == fingerprint(unbroken[1])
    assert (workdir / "damaged-60" / "params").is_dir()
    assert metric_rows(workdir) == metric_rows(unbroken[0])


def test_nothing_is_overwritten_when_all_checkpoints_are_damaged(unbroken, launch, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(unbroken[0], workdir)
    for step in (20, 40, 60):
        damage(workdir / "checkpoints" / str(step))
    code, output = launch(*TINY, "--workdir", workdir)
    assert code == 2
    assert output.splitlines()[-1].startswith(f"error: --workdir={workdir}: none of 3")
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"20", "40", "60"}


def test_a_nonfinite_loss_names_step_and_last_good_checkpoint(launch, tmp_path):
    workdir = tmp_path / "run"
    options = ("--config.schedule.base_lr=1e18", "--config.evaluate_every_steps=1", "--config.log_every_steps=1")
    code, output = launch(*TINY, *options, "--workdir", workdir)
    assert code == 1
    last = output.splitlines()[-1]
    step = int(re.match(r"error: \w+ is (?:nan|inf) at step (\d+); ", last)[1])
    saved = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert saved == [] or saved[-1] < step
    expected = f"last good checkpoint: {workdir}/checkpoints/{saved[-1]}" if saved else "none saved yet"
    assert expected in last


def test_one_run_at_a_time_in_a_workdir(unbroken, launch, tmp_path):
    import fcntl

    workdir = tmp_path / "run"
    shutil.copytree(unbroken[0], workdir)
    with (workdir / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, output = launch(*TINY, "--workdir", workdir)
    assert code == 2 and "another process is training here" in output


MISTAKES = {
    "unknown key": (["--config.bach_size=3"], "--config.bach_size=3", "did you mean 'batch_size'?"),
    "wrong type": (["--config.batch_size=many"], "--config.batch_size=many", "int"),
    "out of range": (["--config.batch_size=-4"], "config.batch_size = -4", "greater than 0"),
    "not one of": (["--config.optimizer.name=adagrad"], "config.optimizer.name = 'adagrad'", "'sgd'"),
    "no such recipe": (["--config=configs/nope.py"], "configs/nope.py", "recipes are in configs/"),
    "no such variant": (["--config=configs/digits.py:smok"], "'smok'", "NAME.py:smoke"),
    "unknown flag": (["--confg.batch_size=3"], "--confg.batch_size", "--config.KEY=VALUE"),
    "loose argument": (["batch_size=3"], "'batch_size=3'", "--config.KEY=VALUE"),
    "too small an image": (
        ["--config.model.stem_padding=VALID", "--config.data.image_size=2", "--config.data.pad_pixels=0"],
        "config.data.image_size = 2",
        "'SAME'",
    ),
    "no such dataset": (["--config.data.name=digit"], "config.data.name = 'digit'", "did you mean 'digits'?"),
    "no such folder": (
        ["--config.data.name=folder", "--config.data.root=/nowhere"],
        "config.data.root = '/nowhere'",
        "name one that has",
    ),
    "no such records": (
        ["--config.data.name=tfds:cifar10", "--config.data.root=/nowhere"],
        "config.data.root = '/nowhere'",
        "python -m xception_jax prepare",
    ),
    "other classes": (["--config.model.num_classes=7"], "config.model.num_classes = 7", "has 10; pass"),
    "colors of grey": (["--config.augment.color=jitter"], "config.augment.color = 'jitter'", "none"),
    "workdir is a file": (["--workdir=/etc/passwd"], "--workdir=/etc/passwd", "name a directory"),
    "no coordinator": (
        ["--coordinator=nohost", "--num_processes=2", "--process_id=0"],
        "--coordinator=nohost",
        "HOST:PORT",
    ),
    "unknown coordinator": (
        ["--coordinator=no.host.invalid:1", "--num_processes=2", "--process_id=0"],
        "--coordinator=no.host.invalid:1",
        "name a host",
    ),
    "not enough pixels": (
        ["--config.data.image_size=1", "--config.data.train_crop=none"],
        "config.data.image_size = 1",
        "at least 9",
    ),
    "nothing but padding": (["--config.data.image_size=1"], "config.data.pad_pixels = 2", "below image_size"),
    "workdir of others": (["--workdir=/usr"], "--workdir=/usr", "name a new or empty directory"),
}


@pytest.mark.parametrize("arguments, names, remedy", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_gets_one_line(arguments, names, remedy, launch, tmp_path):
    workdir = tmp_path / "run"
    code, output = launch("--config=configs/digits.py", f"--workdir={workdir}", *arguments)
    assert code == 2
    (line,) = output.splitlines()
    assert line.startswith("error: ") and names in line and remedy in line, line
    assert not workdir.exists()


def test_another_recipe_in_the_same_workdir_is_refused(unbroken, launch):
    before = (unbroken[0] / "config.json").read_text()
    code, output = launch(*TINY, "--config.seed=1", "--workdir", unbroken[0])
    assert code == 2
    (line,) = output.splitlines()
    assert "config.seed = 1" in line and "has 0: pass --config.seed=0" in line
    assert (unbroken[0] / "config.json").read_text() == before


FAULTY = {
    "get_config returns no ConfigDict": ("def get_config():\n    return {}\n", "get_config() returns dict"),
    "does not parse": ("x = 1\ndef get_config(:\n", "line 2: "),
    "does not import": ("import nothing_here\n", "line 1: ModuleNotFoundError"),
    "raises": ("def get_config():\n    x = 1\n    return x / 0\n", "line 3: ZeroDivisionError"),
    "has no get_config": ("x = 1\n", "get_config"),
}


@pytest.mark.parametrize("source, words", FAULTY.values(), ids=FAULTY)
def test_a_faulty_config_is_named_with_file_and_line(source, words, tmp_path):
    path = tmp_path / "faulty.py"
    path.write_text(source)
    with pytest.raises(UserError) as error:
        command_line.load(str(path))
    message = str(error.value)
    assert message.startswith(f"--config={path}: ") and words in message and "\n" not in message


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
@pytest.mark.parametrize(
    "key, old, new",
    [("optimizer.momentum", None, 0.5), ("data.label", None, "fine"), ("schedule.warmup_epochs", None, 1.0)],
)
def test_following_the_remedy_for_another_recipe_is_accepted(key, old, new, tmp_path):
    """A run has None where the command says something else: the printed flag makes them equal."""
    flags = [f"--config={ROOT / 'configs/digits.py'}"]
    first = recipe.parse(command_line.read_config(flags, example=""))
    with loop.open_workdir(tmp_path, first):
        pass
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    changed = recipe.parse(command_line.read_config([*flags, f"--config.{key}={new}"], example=""))
    with pytest.raises(UserError) as error, loop.open_workdir(tmp_path, changed):
        pass
    (remedy,) = re.findall(r"pass (\S+) to continue", str(error.value))
    assert remedy == f"--config.{key}={old}"
    repaired = recipe.parse(command_line.read_config([*flags, f"--config.{key}={new}", remedy], example=""))
    assert repaired == first
    with loop.open_workdir(tmp_path, repaired):
        pass
