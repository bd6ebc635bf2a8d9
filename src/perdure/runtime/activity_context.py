"""What an activity can know of itself, and how it learns that nobody waits for it any more."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from typing import Any

from perdure.errors import PerdureError

_waiting = threading.Lock()


class ActivityContext:
    """Of one attempt of one activity; `perdure.activity_context()` inside it, in threads too.

    attempt: 1 for the first. idempotency_key: the same for every attempt of this call, and for no
    other call: hand it to services that can tell repetitions by it.
    """

    __slots__ = (
        "_cancelled",
        "_connection",
        "_event",
        "_futures",
        "abandoned",
        "activity_name",
        "attempt",
        "event_id",
        "execution_id",
        "incarnation",
        "instance_id",
    )

    def __init__(
        self,
        instance_id: str,
        incarnation: str,
        execution_id: int,
        activity_name: str,
        event_id: int,
        attempt: int,
    ) -> None:
        self.instance_id = instance_id
        self.incarnation = incarnation
        self.execution_id = execution_id
        self.activity_name = activity_name
        self.event_id = event_id
        self.attempt = attempt
        self.abandoned = False
        self._cancelled = False
        self._connection: Any = None
        self._event: threading.Event | None = None
        self._futures: list[asyncio.Future[None]] = []

    @property
    def idempotency_key(self) -> str:
        return f"{self.incarnation}/{self.execution_id}/{self.event_id}"

    @property
    def connection(self) -> Any:
        """What a transactional activity writes with: a
        `perdure.providers.sqlite.transactions.Transaction` or a
        `perdure.providers.postgres.transactions.Transaction`, while its function runs.
        Raises PerdureError in other activities.
        """
        if self._connection is None:
            raise PerdureError(
                f"activity {self.activity_name!r} has no connection to the store: mark it with "
                "@activity(transactional=True), and use it only until it returns"
            )
        return self._connection

    def connect(self, connection: Any) -> None:
        """Called by the runtime at the beginning of such an activity, and with None at its end."""
        self._connection = connection

    @property
    def is_cancelled(self) -> bool:
        """True once the orchestration has withdrawn this activity or ended, or the node stops."""
        return self._cancelled

    async def cancelled(self) -> None:
        """Return when `is_cancelled` becomes true. For `async def` activities."""
        if not self._cancelled:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._futures.append(future)
            await future

    def wait_cancelled(self, timeout: float | None = None) -> bool:
        """Wait at most `timeout` seconds for `is_cancelled`; returns it. For plain `def` ones."""
        with _waiting:
            event = self._event = self._event or threading.Event()
        if not self._cancelled:
            event.wait(timeout)
        return self._cancelled

    def cancel(self) -> None:
        """Tell the activity. Called by the runtime, on its loop."""
        self._cancelled = True
        with _waiting:
            event = self._event
        if event is not None:
            event.set()
        for future in self._futures:
            if not future.done():
                future.set_result(None)
        self._futures.clear()

    def abandon(self) -> None:
        """The node stops: tell the activity, and take no result from it."""
        self.abandoned = True
        self.cancel()


inside: ContextVar[ActivityContext] = ContextVar("perdure_activity")


def activity_context() -> ActivityContext:
    """The context of the activity that calls this; PerdureError elsewhere."""
    found = inside.get(None)
    if found is None:
        raise PerdureError("perdure.activity_context() is for activities while a runtime runs them")
    return found
