"""The history events: a closed set of frozen values, one JSON object each, readable with jq.

An execution's history is one total order of stimuli (what happened to it) and decisions (what
its code asked for). Event ids are 1, 2, 3… within the execution. `source_event_id` of a stimulus
or a withdrawal names the event that asked for it. Payloads are raw JSON: they are carried, not
interpreted.
"""

from __future__ import annotations

from typing import Union

import msgspec

Payload = msgspec.Raw
NULL = msgspec.Raw(b"null")


class Event(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", gc=False):
    event_id: int
    timestamp_ms: int


class Failure(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An exception as recorded: class name, text, traceback; `args` if its class was declared."""

    type: str
    message: str
    traceback: str = ""
    truncated: bool = False
    args: Payload | msgspec.UnsetType = msgspec.UNSET


class OrchestrationStarted(Event, frozen=True, tag=True):
    name: str
    version: str
    input: Payload
    incarnation: str
    python: str
    engine: int
    parent_instance: str | None = None
    parent_incarnation: str | None = None
    parent_execution: int | None = None
    parent_id: int | None = None
    nesting: int = 0


class OrchestrationCompleted(Event, frozen=True, tag=True):
    output: Payload


class OrchestrationFailed(Event, frozen=True, tag=True):
    error: Failure


class OrchestrationContinuedAsNew(Event, frozen=True, tag=True):
    input: Payload
    version: str | None = None


class CancelRequested(Event, frozen=True, tag=True):
    reason: str = ""


class OrchestrationCancelled(Event, frozen=True, tag=True):
    reason: str = ""


class ActivityScheduled(Event, frozen=True, tag=True):
    name: str
    input: Payload


class ActivityCompleted(Event, frozen=True, tag=True):
    source_event_id: int
    result: Payload


class ActivityFailed(Event, frozen=True, tag=True):
    """attempts: how often it was tried; error: of the last attempt."""

    source_event_id: int
    error: Failure
    attempts: int = 1


class ActivityCancelled(Event, frozen=True, tag=True):
    source_event_id: int


class TimerCreated(Event, frozen=True, tag=True):
    fire_at_ms: int


class TimerFired(Event, frozen=True, tag=True):
    source_event_id: int
    fire_at_ms: int


class TimerCancelled(Event, frozen=True, tag=True):
    source_event_id: int


class ExternalSubscribed(Event, frozen=True, tag=True):
    name: str


class ExternalEvent(Event, frozen=True, tag=True):
    source_event_id: int
    name: str
    data: Payload


class ExternalUnsubscribed(Event, frozen=True, tag=True):
    source_event_id: int


class QueueSubscribed(Event, frozen=True, tag=True):
    name: str


class QueueEvent(Event, frozen=True, tag=True):
    source_event_id: int
    name: str
    data: Payload


class QueueUnsubscribed(Event, frozen=True, tag=True):
    source_event_id: int


class SubOrchestrationScheduled(Event, frozen=True, tag=True):
    name: str
    instance: str
    input: Payload
    version: str | None = None


class SubOrchestrationCompleted(Event, frozen=True, tag=True):
    source_event_id: int
    result: Payload


class SubOrchestrationFailed(Event, frozen=True, tag=True):
    source_event_id: int
    error: Failure


class SubOrchestrationCancelled(Event, frozen=True, tag=True):
    source_event_id: int


class OrchestrationChained(Event, frozen=True, tag=True):
    name: str
    instance: str
    input: Payload
    version: str | None = None


class ParentLinked(Event, frozen=True, tag=True):
    """Kept readable in old histories; new ones carry the link in OrchestrationStarted."""

    parent_instance: str
    parent_id: int


AnyEvent = Union[  # noqa: UP007 - msgspec needs a runtime union of a long list
    OrchestrationStarted,
    OrchestrationCompleted,
    OrchestrationFailed,
    OrchestrationContinuedAsNew,
    CancelRequested,
    OrchestrationCancelled,
    ActivityScheduled,
    ActivityCompleted,
    ActivityFailed,
    ActivityCancelled,
    TimerCreated,
    TimerFired,
    TimerCancelled,
    ExternalSubscribed,
    ExternalEvent,
    ExternalUnsubscribed,
    QueueSubscribed,
    QueueEvent,
    QueueUnsubscribed,
    SubOrchestrationScheduled,
    SubOrchestrationCompleted,
    SubOrchestrationFailed,
    SubOrchestrationCancelled,
    OrchestrationChained,
    ParentLinked,
]

STIMULI = (
    OrchestrationStarted,
    CancelRequested,
    ActivityCompleted,
    ActivityFailed,
    TimerFired,
    ExternalEvent,
    QueueEvent,
    SubOrchestrationCompleted,
    SubOrchestrationFailed,
)
ENDINGS = (
    OrchestrationCompleted,
    OrchestrationFailed,
    OrchestrationCancelled,
    OrchestrationContinuedAsNew,
)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AnyEvent)

encode = _encoder.encode
"""One event as one line of JSON, without the newline."""


def decode(line: bytes) -> AnyEvent:
    """The event of one line; raises msgspec.DecodeError if it is not one of this set."""
    decoded: AnyEvent = _decoder.decode(line)
    return decoded
