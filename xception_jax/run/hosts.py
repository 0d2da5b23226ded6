"""Agreement between hosts: an error of one host ends the run on every host, with one message and one exit code.

JAX programs on several hosts (processes) wait for each other in every collective operation. A host that leaves
alone, because its disk failed or a file is missing, would leave the others waiting. What can fail on one host
therefore goes through `agree`. Every host has to make the same calls in the same order.
"""

import json
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from xception_jax.errors import TrainingError, UserError

T = TypeVar("T")

_TOLD_IN_ONE_LINE = (UserError, TrainingError, OSError, KeyboardInterrupt)  # others are mistakes in the program


def agree(function: Callable[[], T]) -> T:
    """Calls `function` on every host and returns its result, if no host failed.

    With one process this is a plain call, and errors are not changed. Otherwise it costs one small collective
    operation.

    Raises:
      UserError: on every host, if `function` failed on some hosts, each time with a UserError.
      KeyboardInterrupt: on every host, if some host was interrupted (by a second Ctrl-C).
      TrainingError: on every host, if `function` failed in another way.
      The message names each host that failed and its error, or has the error alone if it is the same on all hosts.
    """
    if jax.process_count() == 1:
        return function()
    result, failure = None, None
    try:
        result = function()
    except BaseException as error:  # an interrupted host must not leave the others waiting either
        failure = error
    failures = {host: json.loads(text) for host, text in enumerate(gather(_encode(failure))) if text}
    if not failures:
        return result
    if failure is not None and not isinstance(failure, _TOLD_IN_ONE_LINE):
        traceback.print_exception(failure)
    raise _to_error(failures) from failure


def from_first_host(function: Callable[[], T]) -> T:
    """The result on every host of a `function` that is called on the first host alone.

    Args:
      function: returns what JSON can hold without loss, for example lists, but no tuples.

    Raises:
      UserError, TrainingError, KeyboardInterrupt: on every host, as `agree` does.
    """
    first = jax.process_index() == 0
    result = agree(lambda: function() if first else None)
    return result if jax.process_count() == 1 else json.loads(gather(json.dumps(result) if first else "")[0])


def gather(message: str) -> list[str]:
    """The messages of all hosts, in the order of their process indices.

    Costs one collective operation if all messages are empty, otherwise two.
    """
    if jax.process_count() == 1:
        return [message]
    own = np.frombuffer(message.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(own)))  # [hosts]
    if not lengths.any():
        return [""] * len(lengths)
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(own)] = own
    rows = multihost_utils.process_allgather(padded)  # [hosts, longest]
    return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]


def _encode(failure: BaseException | None) -> str:
    """A failure as a message: JSON of [class of error that all hosts raise, text]; "" for none."""
    if failure is None:
        return ""
    if isinstance(failure, UserError):
        kind = "UserError"
    else:
        kind = "TrainingError" if isinstance(failure, Exception) else "KeyboardInterrupt"
    text = str(failure)
    if not text or not isinstance(failure, _TOLD_IN_ONE_LINE):
        text = f"{type(failure).__name__}: {text}".removesuffix(": ")
    return json.dumps([kind, text])


def _to_error(failures: dict[int, Any]) -> BaseException:
    """The error that all hosts raise.

    Args:
      failures: {host: [kind, text]}.
    """
    hosts = jax.process_count()
    kinds, texts = ({failure[part] for failure in failures.values()} for part in (0, 1))
    if len(failures) == hosts and len(texts) == 1:
        (message,) = texts
    else:
        message = " | ".join(f"host {host} of {hosts}: {text}" for host, (_, text) in failures.items())
    if "KeyboardInterrupt" in kinds:
        return KeyboardInterrupt(message)
    return UserError(message) if kinds == {"UserError"} else TrainingError(message)
