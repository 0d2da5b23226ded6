"""This package's side of `benchmark step --against`: a step for each line read."""

import json
import os
import sys
import time

import jax

from xception_jax.commands.benchmark import workload
from xception_jax.run import memory


def main() -> None:
    """argv[1] is a JSON object: the fields of `Workload`, and "mode"."""
    start = time.perf_counter()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what else is printed must not come between the answers
    options = json.loads(sys.argv[1])
    mode = options.pop("mode")
    settings = options["settings"]
    options["settings"] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()
    }  # as in JSON
    memory.keep_freed_memory()
    step = workload.Step(workload.Workload(**options), mode)
    for _ in range(workload.WARM_UP):
        step()
    ready = {"setup_seconds": time.perf_counter() - start, "versions": {"jax": jax.__version__}}
    print(json.dumps(ready), file=answers)
    for _ in sys.stdin:
        print(json.dumps({"seconds": step()[1]}), file=answers)


if __name__ == "__main__":
    main()
