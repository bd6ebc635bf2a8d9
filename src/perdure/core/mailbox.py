"""Items of event queues that are at hand and that no execution has taken yet.

A mailbox belongs to the instance: what one execution leaves is there for the next one. Everything
in it is in the store too, until the turn that takes it is committed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from perdure.core.work import EventEnqueued


class Mailbox:
    """By queue, oldest first."""

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        self._queues: dict[str, deque[EventEnqueued]] = {}

    def put(self, item: EventEnqueued) -> None:
        self._queues.setdefault(item.name, deque()).append(item)

    def has(self, name: str) -> bool:
        return name in self._queues

    def take_first(self, names: Iterable[str]) -> EventEnqueued | None:
        """The item that was accepted first of those in the named queues."""
        if not self._queues:
            return None
        heads = [self._queues[name][0] for name in names if name in self._queues]
        if not heads:
            return None
        first = min(heads, key=lambda item: item.seq)
        queue = self._queues[first.name]
        queue.popleft()
        if not queue:
            del self._queues[first.name]
        return first

    def clear(self) -> None:
        self._queues.clear()
