"""Host memory of a program that computes on CPU."""

import ctypes
import platform

import jax

# From glibc's malloc.h: (parameter of mallopt, value that keeps freed memory, default value)
_MMAP_MAX = (-4, 0, 65536)  # how many blocks may be separate memory mappings
_TRIM_THRESHOLD = (-1, -1, 128 * 1024)  # the heap shrinks when so many bytes at its top are free; -1 = never
_ARENA_MAX = (-8, 1, 0)  # how many heaps; 0 = eight for each core

_kept = False


def keep_freed_memory() -> bool:
    """On CPU, makes malloc keep freed memory for the next allocation instead of returning it to the system.

    A training step allocates gigabytes of activations each time. By default the operating system maps, clears and
    unmaps them page by page, which takes a quarter of the step or more. Call this before JAX first looks at its
    devices, because the threads of JAX keep the heap that they start with.

    Returns:
      Whether it took effect, which needs JAX on CPU and the C library glibc, as on most Linux systems.
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
