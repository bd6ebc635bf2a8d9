"""From work items to the events that record them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from perdure.core import actions, events, work

REQUEST_OF: dict[type[Any], type[actions.Action]] = {
    work.ActivityCompleted: actions.CallActivity,
    work.ActivityFailed: actions.CallActivity,
    work.TimerFired: actions.CreateTimer,
    work.SubOrchCompleted: actions.StartSubOrchestration,
    work.SubOrchFailed: actions.StartSubOrchestration,
}
"""What must have been asked for, for each completion."""

EVENT_OF: dict[type[Any], Callable[[int, int, Any], events.AnyEvent]] = {
    work.ActivityCompleted: lambda id, at, item: events.ActivityCompleted(
        id, at, item.source_event_id, item.result
    ),
    work.ActivityFailed: lambda id, at, item: events.ActivityFailed(
        id, at, item.source_event_id, item.error, item.attempts
    ),
    # Never before its time, whatever the clocks say.
    work.TimerFired: lambda id, at, item: events.TimerFired(
        id, max(at, item.fire_at_ms), item.source_event_id, item.fire_at_ms
    ),
    work.SubOrchCompleted: lambda id, at, item: events.SubOrchestrationCompleted(
        id, at, item.source_event_id, item.result
    ),
    work.SubOrchFailed: lambda id, at, item: events.SubOrchestrationFailed(
        id, at, item.source_event_id, item.error
    ),
}
"""The event of each completion, given its id and time."""

Completion = (
    events.ActivityCompleted
    | events.ActivityFailed
    | events.TimerFired
    | events.ExternalEvent
    | events.QueueEvent
    | events.SubOrchestrationCompleted
    | events.SubOrchestrationFailed
)
"""The events that answer a request."""
