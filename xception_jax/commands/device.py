"""Facts about the machine and the program that measurements depend on."""

import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
import time

import jax

BUSY = 0.1  # share of the processors' time that other programs may use before a warning is printed
BUSY_SECONDS = 0.2


def facts() -> dict[str, str]:
    """What JAX computes on: "device" (its kind), "cpu" (name of the processor if JAX uses it) and "cores"."""
    return {
        "device": jax.devices()[0].device_kind,
        "cpu": _cpu_model() if jax.default_backend() == "cpu" else "",
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
    }


def name() -> str:
    """The device in words, such as "AMD EPYC, 2 cores"."""
    found = facts()
    return f"{found['cpu']}, {found['cores']} cores" if found["cpu"] else found["device"]


def describe() -> str:
    """The device in words, with a warning if other programs use it."""
    busy = busy_share()
    if busy is None or busy <= BUSY:
        return name()
    return f"{name()}\nwarning: other programs use {busy:.0%} of the processors: these times cannot be repeated"


def command() -> str:
    """The command line that started this program, from the root of the repository."""
    path = pathlib.Path(sys.argv[0])
    program = f"{path.parent.name}/{path.name}" if path.parent.name == "tools" else "-m xception_jax"
    return f"python {program} {shlex.join(sys.argv[1:])}"


def commit(folder: pathlib.Path = pathlib.Path(__file__).parent) -> str:
    """The commit of the source tree around a folder, of this one by default; empty if it is not a git checkout."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(git, cwd=folder, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git
        return ""


def busy_share() -> float | None:
    """The share of the processors' time that programs use now; None where there is no /proc/stat.

    Call it while this program does nothing. Libraries whose threads wait for each other by spinning can take ten
    times as long beside another program, so a comparison on a busy machine says nothing.
    """
    samples = []
    for pause in (BUSY_SECONDS, 0):
        try:
            first = pathlib.Path("/proc/stat").read_text().partition("\n")[0]
        except OSError:
            return None
        times = [int(text) for text in first.split()[1:9]]  # user nice system idle iowait irq softirq steal
        samples.append((sum(times), times[3] + times[4]))
        time.sleep(pause)
    (total, idle), (later_total, later_idle) = samples
    elapsed = later_total - total
    return 1 - (later_idle - idle) / elapsed if elapsed else None


def _cpu_model() -> str:
    """The processor's name as Linux gives it, else as Python does."""
    info = pathlib.Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", info.read_text() if info.exists() else "", re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()
