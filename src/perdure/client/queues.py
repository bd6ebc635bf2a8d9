"""Items for event queues, as a client gives them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from perdure.codec import ANY
from perdure.core import events, work
from perdure.names import check_name
from perdure.providers.contract import SendMessage


class QueuedEvent(NamedTuple):
    """An item for an event queue of an instance that is being started.

    event_id: text of 1 to 200 bytes that makes a repeat harmless, or None.
    """

    queue: str
    data: Any = None
    event_id: str | None = None


def enqueueing(instance_id: str, item: QueuedEvent) -> SendMessage:
    """The message that puts an item into its queue. Raises InvalidName, PayloadError."""
    name = check_name(item.queue, "queue name")
    if item.event_id is not None:
        check_name(item.event_id, "event id")
    body = work.encode(work.EventEnqueued(name, events.Payload(ANY.encode(item.data))))
    return SendMessage(instance_id, body, external=True, queue=name, event_id=item.event_id)


def enqueueing_all(
    instance_id: str, items: Iterable[QueuedEvent | tuple[Any, ...]]
) -> tuple[SendMessage, ...]:
    """Those of a start. Raises ValueError if two have the same event id."""
    sends = tuple(enqueueing(instance_id, QueuedEvent(*item)) for item in items)
    known = [send.event_id for send in sends if send.event_id is not None]
    if len(known) != len(set(known)):
        raise ValueError("two of the events have the same event id; give each its own")
    return sends
