"""The machine: what it is called, and what it can do at most."""

import dataclasses
import datetime
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

COPY_ELEMENTS = 2**26  # float32: 256 MiB read and as much written, more than caches hold
MATRIX_SIZE = {"cpu": 2048}  # 17 GFLOP, a fraction of a second on a few cores
LARGE_MATRIX_SIZE = 8192  # 1.1 TFLOP, milliseconds on an accelerator
ROUNDS = 5
BUSY = 0.1  # of the processors' time; above this a warning is printed
BUSY_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Peak:
    """The most that was measured on this device.

    Attributes:
      flops: FLOP/s of a large matrix product.
      bytes: byte/s of a large copy, read and written.
    """

    flops: float
    bytes: float


def measure_peak(dtype: str) -> Peak:
    """Times a large matrix product in `dtype` and a large copy; the best of a few rounds counts."""
    n = MATRIX_SIZE.get(jax.default_backend(), LARGE_MATRIX_SIZE)
    matrix = jnp.full((n, n), 1 / n, dtype)
    # The product of the matrix with itself is the matrix again: results can be arguments.
    product = jax.jit(jnp.matmul)
    source, target = jnp.zeros(COPY_ELEMENTS), jnp.ones(COPY_ELEMENTS)
    # Written over an array that exists: fresh memory would cost more than the copy.
    copy = jax.jit(lambda source, target: -source, donate_argnums=1, keep_unused=True)
    return Peak(
        flops=2 * n**3 / _seconds(lambda y: product(matrix, y), matrix),
        bytes=2 * source.nbytes / _seconds(lambda y: copy(source, y), target),
    )


def _seconds(call: Callable[[jax.Array], jax.Array], argument: jax.Array, *, calls: int = 4) -> float:
    """Least seconds a call, of rounds of a few calls that hand their result on without waiting for it."""
    times = []
    for _ in range(ROUNDS + 1):  # the first compiles
        start = time.perf_counter()
        for _ in range(calls):
            argument = call(argument)
        jax.block_until_ready(argument)
        times.append((time.perf_counter() - start) / calls)
    return min(times[1:])


def name(facts: Mapping[str, str]) -> str:
    """What a device is called, by the "cpu", "cores" and "device" of its `environment`."""
    return f"{facts['cpu']}, {facts['cores']} cores" if facts["cpu"] else facts["device"]


def describe() -> str:
    """The device in words, and a warning if it is not free."""
    facts = environment()
    text = name(facts)
    if (busy := float(facts["busy"] or 0)) > BUSY:
        text += f"\nwarning: other programs use {busy:.0%} of the processors: these times will not hold"
    return text


def environment() -> dict[str, str]:
    """What a measurement depends on: command, date, commit, device, processor, what else runs, versions.

    To be called right after a measurement, while this program has nothing to do.
    """
    return {
        "command": f"python -m xception_jax {shlex.join(sys.argv[1:])}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": jax.devices()[0].device_kind,
        "cpu": _cpu_model() if jax.default_backend() == "cpu" else "",
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "busy": _busy_share(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def _commit() -> str:
    """Of this source tree; empty where it is not a git checkout."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, cwd=pathlib.Path(__file__).parent, capture_output=True, text=True)
    except OSError:  # no git
        return ""
    return done.stdout.strip()


def _busy_share() -> str:
    """Share of the processors' time that programs use now; empty where there is no /proc/stat.

    Libraries whose threads wait for each other by spinning can take ten times as long beside another program, so
    that a comparison on a busy machine says nothing.
    """
    samples = []
    for pause in (BUSY_SECONDS, 0):
        try:
            first = pathlib.Path("/proc/stat").read_text().partition("\n")[0]
        except OSError:
            return ""
        times = [int(text) for text in first.split()[1:9]]  # user nice system idle iowait irq softirq steal
        samples.append((sum(times), times[3] + times[4]))
        time.sleep(pause)
    (total, idle), (later_total, later_idle) = samples
    elapsed = later_total - total
    return f"{1 - (later_idle - idle) / elapsed:.2f}" if elapsed else ""


def _cpu_model() -> str:
    """The processor's name as Linux gives it, else as Python does."""
    try:
        found = re.search(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
