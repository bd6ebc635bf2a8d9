"""A thread that owns one connection and does one piece of work after another.

Work is handed over with one queue put and its result with one `call_soon_threadsafe`: two thread
hops, the fewest there can be.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
Work = Callable[[], Any]


class Worker:
    """`poll` is called about every `poll_s` while nothing is queued, once `polling` is True."""

    def __init__(self, name: str, poll: Callable[[], None] | None = None) -> None:
        self.polling = False
        self._poll = poll
        self._poll_s = 0.025
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[tuple[asyncio.Future[Any], Work] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run `work` in the thread, after all that was submitted before."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put((future, work))
        return future

    def stop(self, last: Callable[[], T]) -> asyncio.Future[T]:
        """Run `last` after everything submitted, then end the thread."""
        future = self.submit(last)
        self._queue.put(None)
        return future

    def _run(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=self._poll_s if self.polling else None)
            except queue.Empty:
                if self._poll is not None:
                    self._poll()
                continue
            if item is None:
                return
            future, work = item
            error: BaseException | None = None
            result: Any = None
            try:
                result = work()
            except BaseException as raised:
                error = raised
            self.post(_settle, future, result, error)
            # A waiting thread must not keep the last batch alive.
            del item, future, work, error, result

    def post(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function on the loop, from any thread."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The loop is closed: nobody is left who could be told.
            return


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
