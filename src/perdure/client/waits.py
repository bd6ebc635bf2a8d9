"""What an instance waits for: its open requests, with what the store knows of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from perdure.core import events
from perdure.core.events import AnyEvent, Failure
from perdure.core.waiting import open_requests
from perdure.providers.contract import ActivityRow

_failure = msgspec.json.Decoder(Failure)


@dataclass(frozen=True, slots=True)
class Wait:
    """One thing that an instance waits for, since it was asked for by event `event_id`.

    kind: what it is. name: of the activity, external event, event queue or orchestration; "" for
    a timer. since_ms, due_ms: milliseconds since the epoch, UTC. due_ms: when a timer fires, or
    when an activity that is not running may be tried (again). attempt: how often an activity was
    begun; error: how its last attempt ended, if that failed; running_on: the node that runs it.
    instance_id: of a child.
    """

    kind: Literal["activity", "timer", "event", "queue", "child"]
    event_id: int
    name: str
    since_ms: int
    due_ms: int | None = None
    attempt: int | None = None
    error: Failure | None = None
    running_on: str | None = None
    instance_id: str | None = None


def waits_of(history: Sequence[AnyEvent], activities: Sequence[ActivityRow]) -> list[Wait]:
    """What the execution with this history waits for. activities: those of it in the store."""
    rows = {row.event_id: row for row in activities}
    return [
        wait
        for request in open_requests(history)
        if (wait := _wait(request, rows.get(request.event_id))) is not None
    ]


def _wait(request: AnyEvent, row: ActivityRow | None) -> Wait | None:
    event_id, since_ms = request.event_id, request.timestamp_ms
    match request:
        case events.ActivityScheduled(name=name):
            return _activity(Wait("activity", event_id, name, since_ms), row)
        case events.TimerCreated(fire_at_ms=fire_at_ms):
            return Wait("timer", event_id, "", since_ms, due_ms=fire_at_ms)
        case events.ExternalSubscribed(name=name):
            return Wait("event", event_id, name, since_ms)
        case events.QueueSubscribed(name=name):
            return Wait("queue", event_id, name, since_ms)
        case events.SubOrchestrationScheduled(name=name, instance=instance_id):
            return Wait("child", event_id, name, since_ms, instance_id=instance_id)
        case _:
            return None


def _activity(wait: Wait, row: ActivityRow | None) -> Wait:
    if row is None:
        # It is over, and its completion has not been taken yet.
        return wait
    return Wait(
        wait.kind,
        wait.event_id,
        wait.name,
        wait.since_ms,
        due_ms=row.due_ms if row.owner is None else None,
        attempt=row.attempt,
        error=None if row.error is None else _failure.decode(row.error),
        running_on=row.owner,
    )
