"""Trains a network: python train.py --config configs/NAME.py --workdir DIR [--config.KEY=VALUE ...]."""

import os
import pathlib
import socket
import sys
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, configs/NAME.py or configs/NAME.py:smoke.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the run, seen by all hosts; continues what is there."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "With several hosts: HOST:PORT of the first, or 'auto' on cloud TPUs and Slurm."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of hosts, if the coordinator is HOST:PORT.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this host, if the coordinator is HOST:PORT.")


def _fail(message: object, code: int) -> NoReturn:
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    sys.exit(code)


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, but every mistake is one line and exit code 2."""
    from xception_jax import errors
    from xception_jax.commands import command_line

    example = "python train.py --config configs/digits.py --workdir runs/digits"
    if {"--help", "-h"} & set(argv):
        print(
            f"{__doc__}\n{flags.FLAGS.main_module_help()}\n\nsettings of a recipe:\n{command_line.settings_help()}"
        )
        sys.exit(0)
    try:
        command_line.parse(flags.FLAGS, argv, required=("config", "workdir"), example=example)
    except errors.UserError as error:
        _fail(error, 2)
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.FATAL)  # orbax tells of every file; its errors reach us as exceptions
    alone = _COORDINATOR.value in (None, "auto")
    if any((flag.value is None) != alone for flag in (_NUM_PROCESSES, _PROCESS_ID)):
        _fail(
            "--num_processes and --process_id go with --coordinator=HOST:PORT, and only with it: pass all three", 2
        )
    return argv[:1]


def _connect() -> None:
    """Joins the other hosts, before JAX looks at its devices."""
    import jax

    address = _COORDINATOR.value
    if address is None:
        return
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            _fail(f"--coordinator={address}: write HOST:PORT, such as 10.0.0.1:8476, or 'auto'", 2)
        try:
            socket.getaddrinfo(host, int(port))
        except OSError as error:  # JAX would end the process without a Python exception
            _fail(f"--coordinator={address}: {error.strerror}; name a host that this one can find", 2)
    try:
        jax.distributed.initialize(None if address == "auto" else address, _NUM_PROCESSES.value, _PROCESS_ID.value)
    except Exception as error:  # what JAX raises depends on the cluster that it looks for
        _fail(f"--coordinator={address}: {error}", 2)


def main(_: list[str]) -> None:
    """Trains, and says what the run left and how to go on."""
    import jax

    from xception_jax import errors, loop
    from xception_jax.run import memory

    try:
        _connect()
        memory.keep_freed_memory()
        result = loop.train(_CONFIG.value, _WORKDIR.value)
    except errors.UserError as error:
        _fail(error, 2)
    except errors.TrainingError as error:
        _fail(error, 1)
    except OSError as error:
        _fail(f"{error}; what was saved stays in {_WORKDIR.value}", 1)
    if jax.process_index() == 0 and result.fingerprint is not None:
        print(f"fingerprint of step {result.step}: {result.fingerprint}", flush=True)
    if result.evaluation is None:
        sys.stdout.flush()
        if jax.process_count() == 1:
            os._exit(0)  # everything is saved; a compilation that was left behind must not hold the process
        return
    if jax.process_index() == 0:
        _print_summary(result, pathlib.Path(_WORKDIR.value))


def _print_summary(result, workdir: pathlib.Path) -> None:
    """Draws the training profile, and prints what the run left."""
    from xception_jax import plots, report
    from xception_jax.run import writers

    profile = workdir / "training_profile.png"
    python = pathlib.Path(sys.executable)
    python = python.relative_to(pathlib.Path.cwd()) if python.is_relative_to(pathlib.Path.cwd()) else python
    try:
        plots.training_profile(writers.read_jsonl(workdir / "metrics.jsonl"), profile)
    except OSError as error:
        print(f"warning: the training profile was not drawn: {error}", file=sys.stderr)
    print(
        f"\n{report.describe(result.evaluation, result.num_examples)}\n\n"
        f"checkpoints       {workdir / 'checkpoints'}\n"
        f"metrics           {workdir / 'metrics.jsonl'}, {workdir / 'tensorboard'}\n"
        f"resolved config   {workdir / 'config.json'}\n"
        f"training profile  {profile}\n\n"
        f"next: {python} -m xception_jax evaluate --workdir {workdir}\n"
        f"      {python} -m xception_jax predict --workdir {workdir} EXAMPLE ...\n"
        f"      or in Python: xception_jax.load('{workdir}').predict([...])"
    )


if __name__ == "__main__":
    try:
        app.run(main, flags_parser=_parse_flags)
    except KeyboardInterrupt as error:
        print(f"error: {error or 'interrupted by Ctrl-C'}", file=sys.stderr, flush=True)
        os._exit(130)  # as shells do; a compilation that was left behind must not hold the process
