"""What one of two hosts does, for test_hosts.py: python two_hosts.py PORT HOST FOLDER.

Each scenario is a function that returns something or raises; the outcomes are printed as one line of JSON,
{scenario: {"result": ...} or {"error": class, "text": message, "seconds": time}}.
"""

import json
import pathlib
import shutil
import sys
import time

import jax
import numpy as np
import test_text
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from configs import digits
from xception_jax import loop
from xception_jax.errors import UserError
from xception_jax.run import hosts
from xception_jax.run.checkpoint import Checkpoints

SCENARIOS = []


def scenario(function):
    SCENARIOS.append(function)
    return function


def fail(*errors):
    """Raises the error of this host, returns if it is None."""
    if (error := errors[HOST]) is not None:
        raise error


@scenario
def nobody_fails():
    return hosts.agree(lambda: 10 + HOST)


@scenario
def one_user_error():
    hosts.agree(lambda: fail(None, UserError("no such file; name another")))


@scenario
def two_kinds_of_errors():
    hosts.agree(lambda: fail(UserError("no such file"), OSError(28, "No space left on device")))


@scenario
def the_same_error():
    hosts.agree(lambda: fail(UserError("no such file"), UserError("no such file")))


@scenario
def an_interrupted_host():
    hosts.agree(lambda: fail(KeyboardInterrupt("interrupted"), None))


@scenario
def a_mistake_in_the_program():
    hosts.agree(lambda: fail(None, ZeroDivisionError("division by zero")))


@scenario
def the_first_host_tells():
    return hosts.from_first_host(lambda: {"host": HOST, "list": [1, 0.1 + 0.2, "é"]})


@scenario
def the_first_host_fails():
    hosts.from_first_host(lambda: fail(UserError("no such file"), None))


@scenario
def messages_of_all_lengths():
    return [hosts.gather(text * HOST) for text in ("", "x", "é" * 5000)]


def layout(model_axis):
    """A sharding over all devices, whose last axis is split over those of a host or not at all."""
    mesh = Mesh(np.reshape(jax.devices(), (2, 2)), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    return NamedSharding(mesh, PartitionSpec(None, "model" if model_axis else None))


def trees(factor):
    shardings = {"params": {"split": layout(True), "whole": layout(False)}}
    numbers = jax.numpy.arange(96.0).reshape(4, 24)

    def make():
        return {"params": dict.fromkeys(("split", "whole"), factor * numbers)}

    return jax.jit(make, out_shardings=shardings)()


def spec():
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), trees(0))


def restore(directory):
    checkpoints, warnings = Checkpoints(directory, keep=9, sleep=lambda _: None), []
    try:
        found = checkpoints.restore_latest(spec(), warn=warnings.append)
    finally:
        checkpoints.close()
    equal = [
        bool((np.asarray(shard.data) == found.step * np.arange(96.0).reshape(4, 24)[shard.index]).all())
        for array in jax.tree.leaves(found.trees)
        for shard in array.addressable_shards
    ]
    return [found.step, found.record, equal, [warning.partition(" (")[0] for warning in warnings]]


@scenario
def checkpoints_are_saved_and_restored():
    checkpoints = Checkpoints(FOLDER / "all" / "checkpoints", keep=9)
    for step in (1, 2, 3):
        checkpoints.save(step, trees(step), {"of": step}, None)
    checkpoints.wait()
    checkpoints.update_record(3, {"of": 3, "evaluation": 0.5}, 0.5)
    checkpoints.close()
    return [*restore(FOLDER / "all" / "checkpoints"), checkpoints.best_step()]


def for_each_host(damage, damaged):
    """Copies the checkpoints for each host, damages those of some hosts, and restores each host's own."""
    own = FOLDER / f"{damage.__name__}-{HOST}"
    shutil.copytree(FOLDER / "all", own)
    if HOST in damaged:
        damage(own / "checkpoints" / "3" / "params" / "manifest.ocdbt")
    try:
        return restore(own / "checkpoints")
    finally:
        assert sorted(path.name for path in (own / "checkpoints").iterdir()) == ["1", "2", "3"]


def cut(path):
    path.write_bytes(path.read_bytes()[:20])


def unreadable(path):
    path.unlink()
    path.symlink_to(path.name)


@scenario
def a_checkpoint_damaged_for_one_host():
    for_each_host(cut, [1])


@scenario
def a_checkpoint_unreadable_for_one_host():
    for_each_host(unreadable, [0])


@scenario
def a_checkpoint_damaged_for_all_hosts():
    if HOST == 0:
        cut(FOLDER / "all" / "checkpoints" / "3" / "params" / "manifest.ocdbt")
    hosts.agree(lambda: None)  # after the damage
    return restore(FOLDER / "all" / "checkpoints")


@scenario
def a_disk_that_only_the_first_host_writes():
    checkpoints = Checkpoints(FOLDER / "gone" / "checkpoints")
    hosts.agree(lambda: fail(shutil.rmtree(FOLDER / "gone") if HOST == 0 else None, None))
    hosts.agree(lambda: (FOLDER / "gone").write_text("a file") if HOST == 0 else None)
    try:
        checkpoints.save(1, trees(1), {}, None)
        checkpoints.wait()
    finally:
        checkpoints.close()


def recipe(root, **settings):
    """A run of a few seconds on folders of images."""
    config = digits.get_config()
    config.total_epochs, config.evaluate_every_epochs = 0.0, 0.0
    config.total_steps, config.evaluate_every_steps, config.log_every_steps = 4, 2, 1
    config.model.stem_widths, config.model.entry_widths, config.model.exit_widths = (2, 2), (2,), (2, 2, 4)
    config.model.middle_blocks = 0
    config.batch_size, config.eval_batch_size = 8, 4
    config.data.name, config.data.root, config.data.image_size = "folder", str(root), 8
    config.data.max_unreadable = 0.9
    config.update(settings)
    return config


@scenario
def a_dataset_missing_on_one_host():
    loop.train(recipe(FOLDER / "images" if HOST == 0 else "/nowhere"), FOLDER / "run")


@scenario
def a_run_of_two_hosts():
    result = loop.train(recipe(FOLDER / "images"), FOLDER / "run")
    return [result.step, result.fingerprint, result.num_examples]


@scenario
def a_run_on_texts():
    config = test_text.config(FOLDER / "texts.csv", total_steps=6, evaluate_every_steps=6, log_every_steps=2)
    result = loop.train(config, FOLDER / "run_on_texts")
    return [result.step, result.fingerprint, result.num_examples, result.evaluation["raw"]]


@scenario
def word_vectors_that_differ():
    vectors = FOLDER / f"vectors{HOST}.txt"
    vectors.write_text(f"cat {HOST} 2\noak 3 4\n")
    changes = {"data.embeddings": str(vectors), "model.embedding_size": 2}
    loop.train(test_text.config(FOLDER / "texts.csv", **changes), FOLDER / "run_on_vectors")


@scenario
def a_training_image_that_one_host_cannot_read():
    """The last of all, since JAX keeps the notice of preemption that stops the hosts."""
    root = FOLDER / ("images" if HOST == 0 else "unreadable")
    loop.train(recipe(root, total_steps=3000, evaluate_every_steps=3000, log_every_steps=3000), FOLDER / "stopped")


def outcome(function):
    start = time.monotonic()
    try:
        return {"result": function()}
    except BaseException as error:
        return {"error": type(error).__name__, "text": str(error), "seconds": time.monotonic() - start}


if __name__ == "__main__":
    HOST, FOLDER = int(sys.argv[2]), pathlib.Path(sys.argv[3])
    jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, HOST)
    outcomes = {function.__name__: outcome(function) for function in SCENARIOS}
    print(json.dumps(outcomes), flush=True)
