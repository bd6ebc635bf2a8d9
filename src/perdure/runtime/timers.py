"""The timers of resident instances: one heap, one wake-up."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

from perdure.core import work
from perdure.providers.contract import Provider
from perdure.runtime.residents import Delivery, Resident

LATE_S_MAX = 60.0
"""Longest sleep: a store clock that jumps is noticed after at most this."""


class Timers:
    """fire: given a resident and the delivery of its timer, once the store's clock has reached it.

    Timers of residents that are gone, or that were cancelled, are skipped when they come up.
    """

    def __init__(self, provider: Provider, fire: Callable[[Resident, Delivery], None]) -> None:
        self._provider = provider
        self._fire = fire
        self._loop = asyncio.get_running_loop()
        self._heap: list[tuple[int, int, int, int, Resident]] = []
        self._pushed = 0
        self._wake: asyncio.TimerHandle | None = None
        self._wake_at_ms = 0

    def add(self, resident: Resident, event_id: int, fire_at_ms: int) -> None:
        """Watch a timer that is in the store."""
        resident.timers[event_id] = fire_at_ms
        self._pushed += 1
        entry = (fire_at_ms, self._pushed, resident.execution_id, event_id, resident)
        heapq.heappush(self._heap, entry)
        if self._wake is None or fire_at_ms < self._wake_at_ms:
            self._sleep_until(fire_at_ms)

    def stop(self) -> None:
        """Fire nothing more."""
        self._heap.clear()
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None

    def _sleep_until(self, at_ms: int) -> None:
        if self._wake is not None:
            self._wake.cancel()
        self._wake_at_ms = at_ms
        delay_s = max(0, at_ms - self._provider.now_ms()) / 1000
        self._wake = self._loop.call_later(min(delay_s, LATE_S_MAX), self._due)

    def fire_due(self) -> None:
        """Fire what is due, without waiting for the wake-up: a turn that takes messages in must
        also see the timers that came before them."""
        if self._heap and self._heap[0][0] <= self._provider.now_ms():
            self._due()

    def _due(self) -> None:
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        now_ms = self._provider.now_ms()
        heap = self._heap
        while heap and heap[0][0] <= now_ms:
            fire_at_ms, _, execution_id, event_id, resident = heapq.heappop(heap)
            if _is_open(resident, execution_id, event_id):
                item = work.TimerFired(execution_id, event_id, fire_at_ms)
                self._fire(resident, Delivery(item, fire_at_ms))
        self._compact()
        if heap:
            self._sleep_until(heap[0][0])

    def _compact(self) -> None:
        """Drop dead entries when a loop of time-outs has left many."""
        if self._pushed < 10_000:
            return
        self._pushed = len(self._heap)
        self._heap = [entry for entry in self._heap if _is_open(entry[4], entry[2], entry[3])]
        heapq.heapify(self._heap)


def _is_open(resident: Resident, execution_id: int, event_id: int) -> bool:
    return (
        not resident.released
        and resident.execution_id == execution_id
        and event_id in resident.timers
    )
