"""Checkpoints, the working directory and interruptions, on one host; real files, faults included."""

import errno
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from test_train import TINY, environment, launch  # noqa: F401 (fixtures)

from xception_jax.errors import TrainingError, UserError
from xception_jax.run import atomic, workdir
from xception_jax.run.checkpoint import Checkpoints, DamagedCheckpoints
from xception_jax.run.interrupt import StopRequest

GOLDEN = pathlib.Path(__file__).parent / "golden"


def trees(seed):
    """Trees of random arrays, large enough for files of their own; "averaged" is nested, and one has no leaves."""
    weights = {"dense": {"kernel": np.random.default_rng(seed).random((50, 40), np.float32)}}
    averaged = {"params": weights, "model_state": {}}
    return jax.tree.map(jax.numpy.asarray, {"params": weights, "model_state": {}, "averaged": averaged})


def spec(tree):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), tree)


def assert_trees_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.fixture
def saved(tmp_path):
    """A working directory with checkpoints of steps 1, 2 and 3, with arrays of their own."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, trees(step), {"evaluation": None, "step": step}, None)
    checkpoints.close()
    return tmp_path


def open_saved(directory, **options):
    return Checkpoints(directory / "checkpoints", keep=3, **options)


def folders(directory):
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


class TestSaving:
    def test_what_was_saved_is_restored(self, saved):
        checkpoints = open_saved(saved, read_only=True)
        step, restored, record = checkpoints.restore(2, spec(trees(0)))
        assert step == 2 and record == {"evaluation": None, "step": 2}
        assert_trees_equal(restored, trees(2))
        some = {"params": spec(trees(0)["params"])}
        assert_trees_equal(checkpoints.restore(3, some).trees, {"params": trees(3)["params"]})

    def test_the_latest_and_the_best_are_kept(self, tmp_path):
        checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
        # (score, steps kept after it), worked out by hand; of equal scores the later is the better.
        for step, (score, kept) in enumerate(
            [
                (0.5, [1]),
                (0.7, [1, 2]),
                (None, [2, 3]),
                (0.6, [2, 3, 4]),
                (0.7, [4, 5]),
                (None, [5, 6]),
                (None, [5, 6, 7]),
            ],
            start=1,
        ):
            checkpoints.save(step, trees(step), {}, score)
            checkpoints.wait()
            assert checkpoints.steps() == kept
        assert checkpoints.best_step() == 5
        checkpoints.close()
        assert folders(tmp_path) == ["5", "6", "7"]

    def test_without_scores_the_latest_is_the_best(self, saved, tmp_path):
        assert open_saved(saved, read_only=True).best_step() == 3
        assert Checkpoints(tmp_path / "none", read_only=True).best_step() is None
        assert not (tmp_path / "none").exists()

    def test_what_a_kill_left_unfinished_is_removed_by_a_writer_only(self, saved):
        unfinished = [saved / "checkpoints" / name for name in ("4.orbax-checkpoint-tmp-17", "1.deleted")]
        for path in unfinished:
            (path / "params").mkdir(parents=True)
        assert open_saved(saved, read_only=True).steps() == [1, 2, 3]
        assert all(path.exists() for path in unfinished)
        open_saved(saved).close()
        assert folders(saved) == ["1", "2", "3"]

    def test_a_disk_that_cannot_be_written_is_one_line(self, saved):
        checkpoints = open_saved(saved)
        shutil.rmtree(saved / "checkpoints")
        (saved / "checkpoints").write_text("no directory")
        with pytest.raises(
            TrainingError, match=r"cannot write to .*checkpoints.* run the same command"
        ) as failure:
            checkpoints.save(4, trees(4), {}, None)
            checkpoints.wait()
        assert "\n" not in str(failure.value)
        checkpoints.close()

    def test_a_step_is_not_written_twice(self, saved):
        checkpoints = open_saved(saved)
        with pytest.raises(TrainingError, match="checkpoints/3 exists already"):
            checkpoints.save(3, trees(9), {}, None)
        checkpoints.close()
        assert_trees_equal(checkpoints.restore(3, spec(trees(0))).trees, trees(3))


class TestRecords:
    def test_an_evaluation_is_recorded_after_the_save(self, saved):
        checkpoints = open_saved(saved)
        checkpoints.update_record(1, {"evaluation": {"raw": {"loss": 0.1}}}, 0.75)
        checkpoints.update_record(2, {"evaluation": {"raw": {"loss": 0.2}}}, 0.25)
        assert checkpoints.best_step() == 1
        checkpoints.close()
        reader = open_saved(saved, read_only=True)
        assert reader.best_step() == 1
        _, restored, record = reader.restore(1, spec(trees(0)))
        assert record == {"evaluation": {"raw": {"loss": 0.1}}}
        assert_trees_equal(restored, trees(1))

    def test_the_best_by_a_later_record_is_kept(self, saved):
        checkpoints = Checkpoints(saved / "checkpoints", keep=1)
        checkpoints.update_record(2, {}, 0.5)
        checkpoints.save(4, trees(4), {}, None)
        checkpoints.close()
        assert folders(saved) == ["2", "4"]

    @pytest.mark.parametrize("moment", ["fsync", "replace"])
    def test_a_kill_leaves_the_old_record_or_the_new_one(self, saved, monkeypatch, moment):
        checkpoints = open_saved(saved)
        checkpoints.update_record(2, {"evaluation": "old"}, 0.5)

        def kill(*_):
            raise SystemExit("killed")

        with monkeypatch.context() as patch:
            patch.setattr(*{"fsync": (os, "fsync"), "replace": (pathlib.Path, "replace")}[moment], kill)
            with pytest.raises(SystemExit):
                checkpoints.update_record(2, {"evaluation": "new"}, 0.9)
        reader = open_saved(saved, read_only=True)
        assert reader.restore(2, spec(trees(0))).record == {"evaluation": "old"}
        checkpoints.update_record(2, {"evaluation": "new"}, 0.9)
        assert reader.restore(2, spec(trees(0))).record == {"evaluation": "new"}
        checkpoints.close()

    def test_a_damaged_record_is_not_the_best(self, saved):
        checkpoints = open_saved(saved, sleep=lambda _: None)
        checkpoints.update_record(1, {}, 0.5)
        checkpoints.update_record(2, {}, 0.9)
        (saved / "checkpoints" / "2" / "record" / "metadata").write_text('{"record": {')
        assert checkpoints.best_step() == 1
        with pytest.raises(DamagedCheckpoints):
            checkpoints.restore(2, spec(trees(0)))
        checkpoints.close()


OLD_NAMES = {"params": "params", "model_state": "batch_stats", "averaged": "ema"}


class TestVersion01:
    @pytest.fixture(params=sorted(path.name for path in GOLDEN.glob("v0.1_*.tar.xz")))
    def golden(self, request, tmp_path):
        """The directory of a run that version 0.1 wrote."""
        with tarfile.open(GOLDEN / request.param) as archive:
            archive.extractall(tmp_path, filter="data")
        (directory,) = tmp_path.iterdir()
        return directory

    def written(self, directory, step):
        """What orbax reads without our code: {new name: tree with new names}."""
        folder = directory / "checkpoints" / str(step)
        read = {
            new: ocp.StandardCheckpointHandler().restore(folder / old, args=ocp.args.StandardRestore())
            for new, old in OLD_NAMES.items()
            if (folder / old).exists()
        }
        if "averaged" in read:
            read["averaged"] = {
                "params": read["averaged"]["params"],
                "model_state": read["averaged"]["batch_stats"],
            }
        return read

    def test_its_checkpoints_are_read_by_the_new_names(self, golden):
        checkpoints = open_saved(golden, read_only=True)
        scored = []
        for step in checkpoints.steps():
            expected = self.written(golden, step)
            assert set(expected) >= {"params", "model_state"}
            _, restored, record = checkpoints.restore(step, spec(expected))
            assert_trees_equal(restored, expected)
            folder = golden / "checkpoints" / str(step)
            assert record == json.loads((folder / "meta" / "metadata").read_text())
            if (folder / "metrics").exists():
                scored.append((*json.loads((folder / "metrics" / "metrics").read_text()).values(), step))
        assert checkpoints.best_step() == max(scored)[1]

    def test_an_interrupted_evaluation_of_it_can_be_recorded(self, golden):
        checkpoints = open_saved(golden)
        latest = checkpoints.steps()[-1]
        checkpoints.update_record(latest, {"evaluation": "new"}, 2.0)
        checkpoints.close()
        reader = open_saved(golden, read_only=True)
        assert reader.best_step() == latest
        expected = self.written(golden, latest)
        _, restored, record = reader.restore(latest, spec(expected))
        assert record == {"evaluation": "new"}
        assert_trees_equal(restored, expected)


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def unreadable(path):
    """Opening the file fails with an error of the operating system that says nothing of its content (ELOOP)."""
    path.unlink()
    path.symlink_to(path.name)


class TestFaults:
    @pytest.fixture
    def file(self, saved):
        """The file with the arrays of the latest checkpoint."""
        return largest_file(saved / "checkpoints" / "3" / "params")

    def restore(self, directory, sleep):
        warnings = []
        checkpoints = open_saved(directory, sleep=sleep)
        try:
            return checkpoints.restore_latest(spec(trees(0)), warn=warnings.append), warnings
        finally:
            checkpoints.close()

    def test_a_transient_error_does_not_rewind_the_run(self, saved, file):
        content, waits = file.read_bytes(), []

        def recover(seconds):
            waits.append(seconds)
            if len(waits) == 3:
                file.unlink()
                file.write_bytes(content)

        unreadable(file)
        restored, warnings = self.restore(saved, recover)
        assert restored.step == 3 and warnings == []
        assert_trees_equal(restored.trees, trees(3))
        assert len(waits) == 3 and waits == sorted(waits) and sum(waits) < 20
        assert folders(saved) == ["1", "2", "3"]

    def test_a_disk_that_stays_unreadable_ends_the_run_and_changes_nothing(self, saved, file):
        unreadable(file)
        with pytest.raises(
            TrainingError, match=r"cannot read checkpoint .*/3: .*symbolic links.*nothing was changed"
        ):
            self.restore(saved, lambda _: None)
        assert folders(saved) == ["1", "2", "3"] and not (saved / "damaged-3").exists()

    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.ESTALE, os.strerror(errno.ESTALE)),
            MemoryError("no room"),
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"),
            ValueError(f"UNKNOWN: Error reading: Stale file handle [os_error_code='{errno.ESTALE}']"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_what_does_not_prove_damage(self, saved, monkeypatch, error):
        """Once it is passed over; always, it ends the run."""
        restore, failures = ocp.StandardCheckpointHandler.restore, [error]

        def flaky(*args, **kwargs):
            if failures:
                wrapped = Exception("Encountered error while reading array")
                raise wrapped from failures.pop()
            return restore(*args, **kwargs)

        monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", flaky)
        assert self.restore(saved, lambda _: None)[0].step == 3
        failures.extend([error] * 99)
        with pytest.raises(TrainingError, match="cannot read checkpoint"):
            self.restore(saved, lambda _: None)
        assert folders(saved) == ["1", "2", "3"]

    @pytest.mark.parametrize(
        "damage",
        [
            lambda folder: cut(largest_file(folder / "params")),
            lambda folder: largest_file(folder / "params").unlink(),
            lambda folder: (folder / "params" / "_METADATA").write_text("{"),
            lambda folder: shutil.rmtree(folder / "averaged"),
            lambda folder: (folder / "record" / "metadata").unlink(),
        ],
        ids=["cut", "missing", "metadata", "tree", "record"],
    )
    def test_damage_is_named_and_set_aside(self, saved, damage):
        damage(saved / "checkpoints" / "3")
        (saved / "damaged-3").mkdir()  # of an earlier time
        waits = []
        restored, (warning,) = self.restore(saved, waits.append)
        assert restored.step == 2 and restored.record["step"] == 2
        assert_trees_equal(restored.trees, trees(2))
        assert len(waits) == 1  # read twice, to be sure
        assert warning.startswith(f"checkpoint {saved}/checkpoints/3 is damaged (")
        assert warning.endswith("), kept as damaged-3-2; using 2")
        assert folders(saved) == ["1", "2"] and (saved / "damaged-3-2").is_dir()

    def test_nothing_is_set_aside_if_all_are_damaged(self, saved):
        for step in (1, 2, 3):
            cut(largest_file(saved / "checkpoints" / str(step) / "params"))
        with pytest.raises(DamagedCheckpoints, match=r"none of 3 in .* can be read; 3: "):
            self.restore(saved, lambda _: None)
        assert folders(saved) == ["1", "2", "3"]

    def test_no_checkpoint_is_no_error(self, tmp_path):
        assert self.restore(tmp_path, lambda _: None) == (None, [])


class TestWorkdir:
    def finished(self, directory):
        """A directory whose run saved a checkpoint."""
        with workdir.hold(directory) as owner:
            assert owner is None
            workdir.write_config(directory, {"seed": 0})
            (directory / "checkpoints" / "20").mkdir(parents=True)

    def test_a_new_directory_is_free_and_then_it_is_owned(self, tmp_path):
        self.finished(tmp_path / "run")
        with workdir.hold(tmp_path / "run") as owner:
            assert owner == {"seed": 0}
        assert workdir.read_config(tmp_path / "run") == {"seed": 0}

    def test_a_run_that_saved_nothing_does_not_own_it(self, tmp_path):
        with workdir.hold(tmp_path):
            workdir.write_config(tmp_path, {"seed": 0})
            (tmp_path / "checkpoints" / "20.orbax-checkpoint-tmp").mkdir(parents=True)
            (tmp_path / "metrics.jsonl").write_text("{}\n")
        with workdir.hold(tmp_path) as owner:
            assert owner is None
            workdir.write_config(tmp_path, {"seed": 1})
        assert workdir.read_config(tmp_path) == {"seed": 1}

    @pytest.mark.parametrize("kept", ["damaged-20", "notes.txt"])
    def test_with_anything_else_in_it_the_run_owns_it(self, tmp_path, kept):
        with workdir.hold(tmp_path):
            workdir.write_config(tmp_path, {"seed": 0})
        (tmp_path / kept).mkdir()
        with workdir.hold(tmp_path) as owner:
            assert owner == {"seed": 0}

    def test_the_config_of_another_program_is_not_replaced(self, tmp_path):
        (tmp_path / "config.json").write_text('{"editor": "vi"}')
        with workdir.hold(tmp_path) as owner:
            assert owner == {"editor": "vi"}

    @pytest.mark.parametrize("name", ["thesis.tex", "checkpoints"])
    def test_files_of_others_are_refused(self, tmp_path, name):
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=f"holds {name} but no config.json"), workdir.hold(tmp_path):
            pass
        assert os.listdir(tmp_path) == [name]

    def test_a_second_process_is_refused(self, tmp_path):
        self.finished(tmp_path)
        with (tmp_path / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(UserError, match="another process is training here"), workdir.hold(tmp_path):
                pass
        with workdir.hold(tmp_path):
            pass

    def test_a_file_is_no_directory(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match=r"--workdir=.*file: cannot be used \(File exists\)"):
            workdir.hold(tmp_path / "file").__enter__()

    @pytest.mark.parametrize(
        "content, reason", [(None, "holds no run"), ("{", "is not JSON"), ("[1]", "no settings by name")]
    )
    def test_a_config_that_cannot_be_read_is_one_line(self, tmp_path, content, reason):
        if content:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=reason):
            workdir.read_config(tmp_path)

    def test_a_file_is_replaced_as_a_whole(self, tmp_path, monkeypatch):
        path = tmp_path / "file"
        atomic.write_text(path, "old")
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(OSError, match="full"):
            atomic.write_text(path, "new")
        assert path.read_text() == "old"


class TestStopRequest:
    def test_the_first_signal_asks_and_a_second_ctrl_c_interrupts(self):
        before = signal.getsignal(signal.SIGINT)
        with StopRequest() as stop:
            assert not stop.local() and not stop.agreed(1)
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.local() and stop.agreed(1)
            os.kill(os.getpid(), signal.SIGTERM)  # does not hurry a run that is saving
            with pytest.raises(KeyboardInterrupt, match="second Ctrl-C"):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
        assert signal.getsignal(signal.SIGINT) is before

    def test_a_second_ctrl_c_ends_a_compilation(self):
        """In a process of its own, whose other thread never ends."""
        program = (
            "import os, signal, threading\n"
            "from xception_jax.run.interrupt import StopRequest\n"
            "with StopRequest() as stop:\n"
            "    ask = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
            "    stop.agreed = stop.local = lambda: False  # as with several hosts\n"
            "    [threading.Timer(seconds, ask).start() for seconds in (0.2, 0.5)]\n"
            "    try:\n"
            "        stop.run(threading.Event().wait)\n"
            "    except KeyboardInterrupt as error:\n"
            "        print(error, flush=True)\n"
            "        os._exit(130)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (130, "")
        assert done.stdout.startswith("interrupted by a second Ctrl-C")

    def test_a_request_is_as_good_as_a_signal(self):
        with StopRequest() as stop:
            stop.request()
            assert stop.local() and stop.agreed(7) and not stop.failed
            stop.raise_failures()

    def test_a_failure_stops_the_run_and_is_raised_later(self):
        with StopRequest() as stop:
            stop.fail(UserError("first"))
            stop.fail(UserError("second"))
            assert stop.failed and stop.agreed(7)
            with pytest.raises(UserError, match="first"):
                stop.raise_failures()

    def test_a_function_in_another_thread(self):
        def fail():
            raise TimeoutError("its own")

        with StopRequest() as stop:
            assert stop.run(lambda: 5) == 5
            with pytest.raises(TimeoutError, match="its own"):
                stop.run(fail)
            stop.request()
            assert stop.run(lambda: time.sleep(60)) is None


def test_an_interrupted_last_evaluation_is_recorded_when_the_run_continues(launch, tmp_path):  # noqa: F811
    """Then the checkpoint counts for the best one, and the run is complete."""
    command = (
        *TINY,
        "--workdir",
        tmp_path / "run",
        "--config.eval_batch_size=1",
        "--config.checkpoints_to_keep=3",
    )
    code, output = launch(*command, at=("step 60/60", signal.SIGINT))
    assert code == 0 and "interrupted at step 60, which is saved" in output, output
    reader = Checkpoints(tmp_path / "run" / "checkpoints", read_only=True)
    assert reader.best_step() in (20, 40)
    code, output = launch(*command)
    assert code == 0 and "step 60: evaluated 360" in output, output
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = {row["step"]: row["top1"] for row in rows if row["kind"] == "averaged"}
    assert set(scores) == {20, 40, 60}
    assert reader.best_step() == max(scores, key=lambda step: (scores[step], step))
    code, output = launch(*command)
    assert code == 0 and "nothing to do: the run is complete" in output, output
