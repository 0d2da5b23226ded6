"""Compilation, which avoids a known mistake of XLA's compiler for CPU.

XLA hands sums to its CPU library YNNPACK. A matrix product that only feeds a sum goes along in the same kernel,
and some of these kernels give wrong values without any error: `tests/test_compiler.py` has three such programs, of
which each of jax 0.10.0, 0.10.1, 0.10.2 and 0.12.0.1 gets at least one wrong. Without YNNPACK's sums all of them
are right, but a training step of configs/digits.py takes one and a half times as long. Therefore only affected
programs are compiled without.
"""

import re
from collections.abc import Callable, Mapping

import jax
import numpy as np

_SUMS_WITHOUT_YNNPACK = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}


def compile_lowered(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles a program, and once more, without YNNPACK's sums, if a matrix product was fused into one of them.

    Other programs, and all programs for other devices, are compiled once, as `lowered.compile()` does.
    """
    compiled = lowered.compile()
    if jax.default_backend() == "cpu" and _fuses_product_into_sum(compiled.as_text()):
        compiled = lowered.compile(compiler_options=_SUMS_WITHOUT_YNNPACK)
    return compiled


class Programs:
    """The programs of one function of a batch, one for each set of shapes that batches have.

    Args:
      lower: batch, or its shapes, types and shardings -> the function, ready to be compiled.
    """

    def __init__(self, lower: Callable[[Mapping[str, jax.Array | np.ndarray]], jax.stages.Lowered]):
        self._lower = lower
        self._compiled: dict[tuple, jax.stages.Compiled] = {}

    def __call__(self, batch: Mapping[str, jax.Array | np.ndarray | jax.ShapeDtypeStruct]) -> jax.stages.Compiled:
        """The program for a batch, which is compiled when these shapes come for the first time."""
        shapes = tuple((name, batch[name].shape) for name in sorted(batch))
        if shapes not in self._compiled:
            self._compiled[shapes] = compile_lowered(self._lower(batch))
        return self._compiled[shapes]


def _fuses_product_into_sum(program: str) -> bool:
    """Whether some YNNPACK kernel of an optimized program, given as XLA's text, reduces the result of a product.

    A kernel lists each operation after those that it depends on. Sums that feed a product are computed right.
    """
    kernels = set(re.findall(r'calls=%([^\s,]+).*"kind":"__ynn_fusion"', program))
    for name, body in re.findall(r"^%(\S+) [^\n]*\{\n(.*?)^\}", program, re.MULTILINE | re.DOTALL):
        if name in kernels and re.search(r" (dot|convolution)\(.* reduce(-window)?\(", body, re.DOTALL):
            return True
    return False
