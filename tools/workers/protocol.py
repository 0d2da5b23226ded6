"""A worker's end of the protocol that racing/process.py describes, in plain Python for any python that runs it."""

import importlib
import json
import os
import sys
import time


def serve(libraries, make, *, cpu=False, warm_up=2):
    """Does the work once for each line read, and answers how long it took.

    Args:
      libraries: names of the modules to import.
      make: (*modules, options) -> function that does the work once; options come from argv[1], a JSON object.
      cpu: answer CPU seconds of all threads since the last answer, so that work done ahead counts too; otherwise
        the wall time of the call.
      warm_up: calls before the worker is ready.
    """
    start = time.perf_counter()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what else is printed must not come between the answers
    try:
        modules = [importlib.import_module(name) for name in libraries]
    except ModuleNotFoundError as error:
        print(json.dumps({"missing": error.name}), file=answers)
        return
    work = make(*modules, json.loads(sys.argv[1]))
    for _ in range(warm_up):
        work()
    greeting = {
        "setup_seconds": time.perf_counter() - start,
        "versions": {module.__name__: module.__version__ for module in modules if hasattr(module, "__version__")},
        "file": modules[0].__file__,
    }
    print(json.dumps(greeting), file=answers)
    clock = time.process_time if cpu else time.perf_counter
    before = clock()
    for _ in sys.stdin:
        if not cpu:
            before = clock()
        work()
        now = clock()
        print(json.dumps({"seconds": now - before}), file=answers)
        before = now
