"""What an execution waits for, read from its history alone."""

from __future__ import annotations

from collections.abc import Iterable

from perdure.core import events
from perdure.core.events import AnyEvent

REQUESTS = (
    events.ActivityScheduled,
    events.TimerCreated,
    events.ExternalSubscribed,
    events.QueueSubscribed,
    events.SubOrchestrationScheduled,
)
"""The events that ask for something and are answered or withdrawn later."""

SETTLES: dict[type[AnyEvent], type[AnyEvent]] = {
    events.ActivityCompleted: events.ActivityScheduled,
    events.ActivityFailed: events.ActivityScheduled,
    events.ActivityCancelled: events.ActivityScheduled,
    events.TimerFired: events.TimerCreated,
    events.TimerCancelled: events.TimerCreated,
    events.ExternalEvent: events.ExternalSubscribed,
    events.ExternalUnsubscribed: events.ExternalSubscribed,
    events.QueueEvent: events.QueueSubscribed,
    events.QueueUnsubscribed: events.QueueSubscribed,
    events.SubOrchestrationCompleted: events.SubOrchestrationScheduled,
    events.SubOrchestrationFailed: events.SubOrchestrationScheduled,
    events.SubOrchestrationCancelled: events.SubOrchestrationScheduled,
}
"""What each answer or withdrawal is an answer to; its `source_event_id` is the id of that one."""


def open_requests(history: Iterable[AnyEvent]) -> list[AnyEvent]:
    """The requests that are neither answered nor withdrawn, oldest first; none after the end."""
    found: dict[int, AnyEvent] = {}
    for event in history:
        if isinstance(event, REQUESTS):
            found[event.event_id] = event
        elif isinstance(event, events.ENDINGS):
            found.clear()
        else:
            found.pop(getattr(event, "source_event_id", 0), None)
    return list(found.values())
