"""The work items that reach an orchestration through its inbox: encoded once, decoded once.

The items that a provider keeps in columns of their own (a start, an activity to execute, a timer)
are the operations and rows of `perdure.providers.contract`.
"""

from __future__ import annotations

from typing import Union

import msgspec

from perdure.core.events import Failure, Payload


class WorkItem(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", gc=False):
    pass


class ActivityCompleted(WorkItem, frozen=True, tag=True):
    execution_id: int
    source_event_id: int
    result: Payload


class ActivityFailed(WorkItem, frozen=True, tag=True):
    """attempts: how often it was tried."""

    execution_id: int
    source_event_id: int
    error: Failure
    attempts: int = 1


class TimerFired(WorkItem, frozen=True, tag=True):
    execution_id: int
    source_event_id: int
    fire_at_ms: int


class ExternalRaised(WorkItem, frozen=True, tag=True):
    name: str
    data: Payload


class EventEnqueued(WorkItem, frozen=True, tag=True):
    """seq: its number in the store, which orders it; not part of the stored item."""

    name: str
    data: Payload
    seq: int = 0


class SubOrchCompleted(WorkItem, frozen=True, tag=True):
    execution_id: int
    source_event_id: int
    result: Payload


class SubOrchFailed(WorkItem, frozen=True, tag=True):
    execution_id: int
    source_event_id: int
    error: Failure


class CancelInstance(WorkItem, frozen=True, tag=True):
    reason: str = ""


class Unreadable(WorkItem, frozen=True, tag=True):
    """Stands for a message that is none of these; it is dropped alone and counted."""


AnyWorkItem = Union[  # noqa: UP007 - msgspec needs a runtime union of a long list
    ActivityCompleted,
    ActivityFailed,
    TimerFired,
    ExternalRaised,
    EventEnqueued,
    SubOrchCompleted,
    SubOrchFailed,
    CancelInstance,
    Unreadable,
]

_decoder = msgspec.json.Decoder(AnyWorkItem)
encode = msgspec.json.Encoder().encode


def decode(body: bytes) -> AnyWorkItem:
    """The work item of a message body; Unreadable if it is none of this set."""
    try:
        decoded: AnyWorkItem = _decoder.decode(body)
    except msgspec.DecodeError:
        return Unreadable()
    return decoded
