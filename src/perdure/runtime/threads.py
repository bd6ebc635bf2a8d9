"""The threads of plain `def` activities.

They are daemons, unlike those of `concurrent.futures`: an activity that goes on regardless must
not keep its process from ending.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

JOIN_S = 0.1


class Threads(Executor):
    """A thread for each call that runs, kept for the next one. Whoever submits bounds them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._idle = 0
        self._threads: list[threading.Thread] = []
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            if self._idle:
                self._idle -= 1
            else:
                number = len(self._threads) + 1
                thread = threading.Thread(
                    target=self._run, name=f"{self._name}-{number}", daemon=True
                )
                self._threads.append(thread)
                thread.start()
        self._queue.put(call)
        return future

    def close(self) -> None:
        """End the idle threads; each of the others ends after its call."""
        for _ in self._threads:
            self._queue.put(None)
        give_up = time.monotonic() + JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, give_up - time.monotonic()))

    def _run(self) -> None:
        while True:
            call = self._queue.get()
            if call is None:
                return
            call()
            # A waiting thread must not keep its last call alive.
            del call
            with self._lock:
                self._idle += 1
