"""Stopping a run: SIGTERM, Ctrl-C, the preemption notice of a cluster, or a failure on one host."""

import concurrent.futures
import os
import signal
import threading
from collections.abc import Callable
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

from xception_jax.run import hosts

T = TypeVar("T")


class StopRequest:
    """A context in which SIGTERM and the first Ctrl-C ask the run to stop after a step, with everything saved.

    With several hosts JAX's preemption service takes SIGTERM, and all hosts stop after the same step. A second
    Ctrl-C raises KeyboardInterrupt at once; what was not saved by then is lost.
    """

    def __init__(self):
        self._flag = threading.Event()
        self._failure: Exception | None = None
        self._previous = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            signals = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
            self._previous = {number: signal.signal(number, self._handle) for number in signals}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame) -> None:
        if self._flag.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt(
                "interrupted by a second Ctrl-C: what is newer than the last checkpoint is lost"
            )
        self.request()

    def request(self) -> None:
        """Asks all hosts to stop, as if this process had got SIGTERM."""
        self._flag.set()
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX's preemption service tells the other hosts

    def fail(self, error: Exception) -> None:
        """Asks all hosts to stop because this one cannot go on; `raise_failures` then raises the error on all.

        Until then this host has to take part in the steps of the others. The first error counts.
        """
        if self._failure is None:
            self._failure = error
            self.request()

    @property
    def failed(self) -> bool:
        """Whether this host called `fail`: its state must not be saved."""
        return self._failure is not None

    def raise_failures(self) -> None:
        """Raises on every host what any host passed to `fail`; every host calls it before it saves and at the end.

        Raises:
          UserError, TrainingError: see `hosts.agree`.
        """

        def check():
            if self._failure is not None:
                raise self._failure

        hosts.agree(check)

    def local(self) -> bool:
        """Whether this process was asked to stop."""
        return self._flag.is_set()

    def agreed(self, step: int) -> bool:
        """Whether all hosts are to stop after `step`; every host calls it after every step."""
        if jax.process_count() == 1:
            return self.local()
        return multihost_utils.reached_preemption_sync_point(step)

    def run(self, function: Callable[[], T]) -> T | None:
        """Calls `function` in another thread; on a single host, returns None as soon as a stop is requested.

        This is for compilations, which can take minutes and cannot be interrupted: the thread is left behind and
        ends with the process.
        """
        result: concurrent.futures.Future[T] = concurrent.futures.Future()

        def work():
            try:
                result.set_result(function())
            except BaseException as error:
                result.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        while not (self.local() and jax.process_count() == 1):
            try:
                return result.result(timeout=0.1)
            except concurrent.futures.TimeoutError:
                if result.done():  # `function` itself raised TimeoutError
                    raise
        return None
