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


POLL_S = 0.05


class Worker:
    """poll: called every POLL_S while nothing is queued."""

    def __init__(self, name: str) -> None:
        self.poll: Callable[[], None] | None = None
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

    def stop(self) -> None:
        """End the thread, after all that was submitted before."""
        self._queue.put(None)

    def _run(self) -> None:
        while True:
            poll = self.poll
            try:
                item = self._queue.get(timeout=None if poll is None else POLL_S)
            except queue.Empty:
                if poll is not None:
                    poll()
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
