"""Host memory of a program that computes on CPU."""

import ctypes
import platform

import jax

# malloc.h of glibc: (parameter of mallopt, value that keeps freed memory, default)
_MMAP_MAX = (-4, 0, 65536)  # blocks that are mappings of their own
_TRIM_THRESHOLD = (-1, -1, 128 * 1024)  # bytes free at the top of the heap before it shrinks; -1 = never
_ARENA_MAX = (-8, 1, 0)  # heaps; 0 = eight for each core

_kept = False


def keep_freed_memory() -> bool:
    """On CPU, makes malloc keep freed memory for the next allocation instead of returning it to the system.

    A training step allocates its activations, gigabytes, anew each time. By default the system maps, clears and
    unmaps them page by page, which takes a quarter of the step and more. To be called before JAX first looks at
    its devices: its threads stay with the heap that they begin with.

    Returns:
      Whether it took effect: JAX computes on CPU, and the C library is glibc, as on most Linux systems.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    _set(keep=True)
    if jax.default_backend() != "cpu":
        _set(keep=False)
    return is_kept()


def is_kept() -> bool:
    """Whether `keep_freed_memory` took effect."""
    return _kept


def _set(*, keep: bool) -> None:
    global _kept
    mallopt = ctypes.CDLL(None).mallopt
    results = [
        mallopt(name, value if keep else default)
        for name, value, default in (_MMAP_MAX, _TRIM_THRESHOLD, _ARENA_MAX)
    ]
    _kept = keep and all(results)
