"""The strictest settings for every test: 8 devices on CPU, no silent promotion of ranks or types."""

import os

# The tests compile far more than they compute: the lowest optimization level halves their time.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["KERAS_BACKEND"] = "jax"
os.environ["MPLBACKEND"] = "agg"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def failure(benchmark, capsys):
    """The one line that the command of the file's own fixture `benchmark` ends with, and exit code 2."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            benchmark(*arguments)
        assert stopped.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return run
