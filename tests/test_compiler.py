"""Programs that XLA's compiler for CPU gets wrong under some versions of jax, against numpy.

With `jax.jit` alone, "projected" was wrong under 0.10.0, 0.10.1 and 0.10.2, "squared"
(https://github.com/jax-ml/jax/issues/39103) under 0.10.2, and "filled" under 0.10.2 and 0.12.0.1.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xception_jax.run.compiler import compile_lowered

ROWS = (40_000, 3)  # in "projected" and "squared", those from number 32,768 on were wrong
CASES = {  # name: (program, the same in numpy, shapes of the arguments)
    "projected": (
        lambda x, matrix: jnp.sum(matrix @ x.T, axis=0),
        lambda x, matrix: (x @ matrix.T).sum(-1),
        (ROWS, (3, 3)),
    ),
    "squared": (
        lambda x, matrix: jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))(x),
        lambda x, matrix: np.square(x @ matrix.T).sum(-1),
        (ROWS, (3, 3)),
    ),
    "filled": (
        lambda x, value: jnp.sum((x @ jnp.full_like(x, value)) * x, axis=-1),
        lambda x, value: value * x.sum(-1) ** 2,
        ((5, 60, 60), ()),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_sums_of_products_are_right(name):
    program, in_numpy, shapes = CASES[name]
    rng = np.random.default_rng(0)
    arguments = [np.float32(rng.standard_normal(shape)) for shape in shapes]
    actual = compile_lowered(jax.jit(program).lower(*arguments))(*arguments)
    expected = in_numpy(*map(np.float64, arguments))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "program",
    [
        lambda x, y: jnp.sum(x * y, axis=0),
        lambda x, y: x @ y,
        lambda x, y: jnp.sum(x.reshape(8, 8, 64), axis=1) @ y,  # a sum that feeds a product
    ],
)
def test_other_programs_are_compiled_once(program, monkeypatch):
    """Sums are slower without YNNPACK."""
    options, compile_once = [], jax.stages.Lowered.compile

    def compile_and_note(self, compiler_options=None):
        options.append(compiler_options)
        return compile_once(self, compiler_options)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_and_note)
    x = jnp.ones((64, 64))
    compile_lowered(jax.jit(program).lower(x, x))
    assert options == [None]
