"""Stopping cleanly: SIGTERM, Ctrl-C, and the preemption notices of a cluster."""

import concurrent.futures
import os
import signal
import threading
from collections.abc import Callable
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

T = TypeVar("T")


class StopRequest:
    """A context in which SIGTERM and Ctrl-C set a flag, to be looked at between steps.

    With several hosts JAX's own service takes SIGTERM, and all hosts see the request at the same step.
    A second Ctrl-C interrupts at once.
    """

    def __init__(self):
        self._flag = threading.Event()
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
            raise KeyboardInterrupt
        self._flag.set()
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX's service tells the other hosts

    def local(self) -> bool:
        """True once this process got a signal."""
        return self._flag.is_set()

    def agreed(self, step: int) -> bool:
        """True if all hosts are to stop after `step`; every host calls it after every step."""
        if jax.process_count() == 1:
            return self.local()
        return multihost_utils.reached_preemption_sync_point(step)

    def run(self, function: Callable[[], T]) -> T | None:
        """function() in another thread, or None as soon as a stop is requested on a single host.

        A compilation can take minutes and hears no signal; it is left behind to end with the process.
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
                if result.done():  # a TimeoutError of the function's own
                    raise
        return None
