"""The strictest settings for every test: 8 devices on CPU, no silent promotion of ranks or types."""

import os
import pathlib
import subprocess
import sys

# The tests compile far more than they compute: the lowest optimization level halves their time.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["KERAS_BACKEND"] = "jax"
os.environ["MPLBACKEND"] = "agg"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


SLOW_FIXTURES = ("outcomes", "reproduced", "results", "run", "unbroken")  # made once: their tests share a process


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Groups for pytest-xdist, which this must come before."""
    for item in items:
        for name in set(SLOW_FIXTURES).intersection(getattr(item, "fixturenames", ())):  # doctests have none
            item.add_marker(pytest.mark.xdist_group(name))


@pytest.fixture
def failure(benchmark, capsys):
    """The one line that the command of the file's own fixture `benchmark` ends with, and exit code 2."""

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            benchmark(*arguments)
        assert stopped.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return run


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory):
    """A folder with runs/ and results/ of figure 9 at the smallest scale."""
    folder = tmp_path_factory.mktemp("reproduced")
    command = [sys.executable, "-m", "xception_jax", "reproduce", "fig9", "--scale=smoke"]
    command += [f"--workdir={folder / 'runs'}", f"--out={folder / 'results'}"]
    root = pathlib.Path(__file__).parent.parent
    one_device = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    subprocess.run(command, cwd=root, env=one_device, check=True)
    return folder
