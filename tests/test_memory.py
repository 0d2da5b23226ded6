"""Freed memory stays with the process, as page faults show; each count is taken in a process of its own."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
if sys.argv[1] == "keep":
    from xception_jax.run import memory
    assert memory.keep_freed_memory()
np.ones(50_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(50_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode):
    command = [sys.executable, "-c", PROGRAM, mode]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_used_again_without_page_faults():
    """Five arrays of 400 MB: by default each is mapped again, in pages of at most 2 MB."""
    assert page_faults("default") >= 5 * 400 // 4
    assert page_faults("keep") < 100


def test_other_c_libraries_are_left_alone(monkeypatch):
    from xception_jax.run import memory

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not memory.keep_freed_memory()
