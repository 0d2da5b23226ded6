"""This package's side of a race of steps. argv[1] is a JSON object: the fields of `Workload`, and "mode".

It runs by its path, with the checkout that PYTHONPATH names: of today, or of version 0.1.
"""

import protocol


def make_step(xception_jax, options):
    """A compiled step; a call runs it and waits for it."""
    try:
        from xception_jax.run import memory
    except ModuleNotFoundError:  # version 0.1
        from xception_jax import memory
    try:
        from xception_jax.commands.steps import Step, Workload
    except ModuleNotFoundError:  # version 0.1
        from xception_jax.commands.benchmark.workload import Step, Workload

    memory.keep_freed_memory()
    mode, settings = options.pop("mode"), options.pop("settings")
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}  # JSON has no tuples
    return Step(Workload(settings=settings, **options), mode)


if __name__ == "__main__":
    protocol.serve(["xception_jax"], make_step)
