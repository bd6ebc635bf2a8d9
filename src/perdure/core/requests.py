"""The open requests of one execution: asked for, and neither answered nor withdrawn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from perdure.core import actions
from perdure.core.futures import DurableFuture, DurableTimer
from perdure.core.journal import Journal
from perdure.durations import to_ms
from perdure.errors import TooManyPending
from perdure.limits import PENDING_MAX

Request = DurableFuture[Any] | DurableTimer


class Requests:
    """By the id of the event that records each, oldest first."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._open: dict[int, Request] = {}
        self._waits: dict[str, deque[DurableFuture[Any]]] = {}
        self.dequeues: dict[str, deque[DurableFuture[Any]]] = {}
        """Those that wait for an item of an event queue, by queue."""

    def check_room(self) -> None:
        """Raises TooManyPending if 10,000 are open."""
        # What is being thrown away must get its refusal, whatever is open.
        if len(self._open) >= PENDING_MAX and not self._journal.closed:
            raise TooManyPending(
                f"{PENDING_MAX:,} activities, timers, waits and children are open; "
                "await some of them before starting more"
            )

    def add(self, request: Request) -> None:
        """Keep a request that the journal has taken."""
        if self._journal.closed:
            return
        self._open[request.event_id] = request
        waits = self._waits_of(request)
        if waits is not None and isinstance(request, DurableFuture):
            waits.setdefault(request.name, deque()).append(request)

    def _waits_of(self, request: Request) -> dict[str, deque[DurableFuture[Any]]] | None:
        if request.kind is actions.WaitExternal:
            return self._waits
        return self.dequeues if request.kind is actions.DequeueEvent else None

    def create_timer(self, delay_s: float, fire: Callable[[], object]) -> DurableTimer:
        """A durable timer for the loop's call_later, `delay_s` seconds from now."""
        journal = self._journal
        delay_ms = to_ms(delay_s)
        self.check_room()
        when = (journal.timestamp_ms + delay_ms) / 1000
        timer = DurableTimer(self, journal.next_id, when, fire)
        journal.decide(actions.CreateTimer(timer.event_id, delay_ms))
        self.add(timer)
        return timer

    def get(self, event_id: int) -> Request | None:
        return self._open.get(event_id)

    def take(self, event_id: int) -> Request | None:
        """The request, which is then no longer open."""
        request = self._open.pop(event_id, None)
        by_name = self._waits_of(request) if request is not None else None
        if by_name is None:
            return request
        assert isinstance(request, DurableFuture)
        waits = by_name[request.name]
        waits.remove(request)
        if not waits:
            del by_name[request.name]
        return request

    def withdraw(self, request: Request) -> None:
        """Record that a request was cancelled, unless it is settled or the execution is over."""
        journal = self._journal
        if journal.closed or request.event_id not in self._open:
            return
        journal.check_inside()
        self.take(request.event_id)
        is_child = request.kind is actions.StartSubOrchestration
        child = request.name if isinstance(request, DurableFuture) and is_child else ""
        journal.decide(actions.Cancel(journal.next_id, request.event_id, request.kind, child))

    def oldest_wait(self, name: str) -> DurableFuture[Any] | None:
        """The oldest open subscription to an event name."""
        waits = self._waits.get(name)
        return waits[0] if waits else None

    def children(self) -> list[DurableFuture[Any]]:
        """Sub-orchestrations that have not reported yet, oldest first."""
        return [
            request
            for request in self._open.values()
            if isinstance(request, DurableFuture) and request.kind is actions.StartSubOrchestration
        ]

    def forget(self) -> None:
        """Let go of everything, after the end."""
        self._open.clear()
        self._waits.clear()
        self.dequeues.clear()
