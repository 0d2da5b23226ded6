"""Host memory of a program that computes on CPU."""

import ctypes
import platform

import jax

# malloc.h of glibc
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Makes malloc keep freed memory for the next allocation, instead of returning it to the system.

    A training step on CPU allocates its activations, gigabytes, anew each time. By default the system maps, clears
    and unmaps them page by page, which takes about as long as half of the computation. Once set, for the rest
    of the process: no allocation is a mapping of its own, the heap does not shrink, and there is one heap.

    Returns:
      Whether it took effect: on CPU, with glibc, the C library of most Linux systems.
    """
    if jax.default_backend() != "cpu" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_ARENA_MAX: 1}
    results = [mallopt(name, value) for name, value in settings.items()]
    return all(results)
