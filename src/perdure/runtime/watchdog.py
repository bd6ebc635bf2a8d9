"""The node's own thread: keeps its lease alive, and watches that turns yield.

User code that blocks the loop must not cost the node its lease silently, and must not keep its
instances for ever either: a turn that does not yield is reported after a second, interrupted after
turn_timeout, and if that does not help the lease is no longer renewed, so that others take over.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable

from perdure.errors import StoreUnavailable, TurnLimitExceeded

TICK_S = 1.0
REPORT_S = 1.0
JOIN_S = 0.02

logger = logging.getLogger("perdure")


class TurnStuck(BaseException):
    """Raised inside a turn that did not yield for turn_timeout, by the watchdog's thread."""

    def as_error(self) -> TurnLimitExceeded:
        return TurnLimitExceeded(
            "the turn did not yield in time and was interrupted; an orchestration must not block: "
            "do the work in an activity"
        )


class Watchdog:
    """beat: renews the lease; False if the node has been taken over. lost: told so, once.

    enter and leave bracket every turn on the loop's thread.
    """

    def __init__(
        self,
        beat: Callable[[], bool],
        lost: Callable[[], None],
        *,
        lease_s: float,
        turn_timeout_s: float,
    ) -> None:
        self._beat = beat
        self._lost = lost
        self._lease_s = lease_s
        self._turn_timeout_s = turn_timeout_s
        self._lock = threading.Lock()
        self._turn: str | None = None
        self._since = 0.0
        self._interrupted = False
        self._reported = False
        self._target = threading.get_ident()
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="perdure-watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        """End the thread; waits for a heartbeat under way."""
        self._stopping.set()
        if not self._thread.is_alive():
            return
        self._thread.join(JOIN_S)
        if self._thread.is_alive():
            # A heartbeat may have to wait for the store's write lock; the loop must not.
            await self._ended.wait()

    def enter(self, instance_id: str) -> None:
        """A turn of this instance begins."""
        self._since = time.monotonic()
        self._turn = instance_id

    def leave(self) -> bool:
        """The turn has ended; True if it was interrupted and is therefore void, whatever its code
        made of that. An interrupt that has not arrived yet is taken back."""
        # Always under the lock: a turn that ends while the thread is about to interrupt it must not
        # let the interrupt loose on whatever comes next.
        with self._lock:
            self._turn = None
            interrupted = self._interrupted
            if interrupted:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._target), ctypes.c_void_p(None)
                )
            self._interrupted = self._reported = False
        return interrupted

    def _run(self) -> None:
        try:
            self._watch()
        finally:
            # A loop that is closed has nobody left who waits.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._ended.set)

    def _watch(self) -> None:
        beat_at = time.monotonic()
        while not self._stopping.wait(TICK_S):
            stuck_s = self._check_turn()
            now = time.monotonic()
            # A turn that even the interrupt cannot end keeps the loop: its instances must go to
            # another node, so the lease is left to run out.
            if stuck_s > 2 * self._turn_timeout_s or now < beat_at:
                continue
            try:
                alive = self._beat()
            except StoreUnavailable as error:
                # At the next tick: an outage may have taken most of the lease.
                logger.warning("the heartbeat failed: %s; trying again", error)
                continue
            except Exception:
                logger.warning("the heartbeat failed; trying again", exc_info=True)
                continue
            beat_at = now + self._lease_s / 3
            if not alive:
                self._lost()
                return

    def _check_turn(self) -> float:
        """How long the turn that is running has not yielded, in seconds."""
        with self._lock:
            turn = self._turn
            if turn is None:
                return 0.0
            stuck_s = time.monotonic() - self._since
            if stuck_s > REPORT_S and not self._reported:
                self._reported = True
                stack = traceback.format_stack(sys._current_frames().get(self._target))
                logger.error(
                    "instance %s: its turn blocks the loop for over 1 s\n%s", turn, "".join(stack)
                )
            if stuck_s > self._turn_timeout_s and not self._interrupted:
                self._interrupted = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._target), ctypes.py_object(TurnStuck)
                )
            return stuck_s
