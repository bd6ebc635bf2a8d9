"""The format of histories and messages: one JSON object each, and nothing else is accepted."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from perdure.core import events, work

LINES = {
    events.OrchestrationStarted: (
        '{"type":"OrchestrationStarted","event_id":1,"timestamp_ms":5,"name":"n","version":"1",'
        '"input":{"x":[1]},"incarnation":"a","python":"3.11","engine":1,"parent_instance":"p",'
        '"parent_incarnation":"b","parent_execution":2,"parent_id":3,"nesting":1}'
    ),
    events.OrchestrationCompleted: (
        '{"type":"OrchestrationCompleted","event_id":2,"timestamp_ms":5,"output":null}'
    ),
    events.OrchestrationFailed: (
        '{"type":"OrchestrationFailed","event_id":2,"timestamp_ms":5,'
        '"error":{"type":"E","message":"m","traceback":"t","truncated":true,"args":[1]}}'
    ),
    events.OrchestrationContinuedAsNew: (
        '{"type":"OrchestrationContinuedAsNew","event_id":2,"timestamp_ms":5,"input":1,'
        '"version":"2"}'
    ),
    events.CancelRequested: (
        '{"type":"CancelRequested","event_id":2,"timestamp_ms":5,"reason":"r"}'
    ),
    events.OrchestrationCancelled: (
        '{"type":"OrchestrationCancelled","event_id":2,"timestamp_ms":5,"reason":"r"}'
    ),
    events.ActivityScheduled: (
        '{"type":"ActivityScheduled","event_id":2,"timestamp_ms":5,"name":"n","input":"i"}'
    ),
    events.ActivityCompleted: (
        '{"type":"ActivityCompleted","event_id":3,"timestamp_ms":5,"source_event_id":2,"result":0}'
    ),
    events.ActivityFailed: (
        '{"type":"ActivityFailed","event_id":3,"timestamp_ms":5,"source_event_id":2,'
        '"error":{"type":"E","message":"m"}}'
    ),
    events.ActivityCancelled: (
        '{"type":"ActivityCancelled","event_id":3,"timestamp_ms":5,"source_event_id":2}'
    ),
    events.TimerCreated: ('{"type":"TimerCreated","event_id":2,"timestamp_ms":5,"fire_at_ms":9}'),
    events.TimerFired: (
        '{"type":"TimerFired","event_id":3,"timestamp_ms":9,"source_event_id":2,"fire_at_ms":9}'
    ),
    events.TimerCancelled: (
        '{"type":"TimerCancelled","event_id":3,"timestamp_ms":5,"source_event_id":2}'
    ),
    events.ExternalSubscribed: (
        '{"type":"ExternalSubscribed","event_id":2,"timestamp_ms":5,"name":"n"}'
    ),
    events.ExternalEvent: (
        '{"type":"ExternalEvent","event_id":3,"timestamp_ms":5,"source_event_id":2,"name":"n",'
        '"data":{}}'
    ),
    events.ExternalUnsubscribed: (
        '{"type":"ExternalUnsubscribed","event_id":3,"timestamp_ms":5,"source_event_id":2}'
    ),
    events.QueueSubscribed: '{"type":"QueueSubscribed","event_id":2,"timestamp_ms":5,"name":"n"}',
    events.QueueEvent: (
        '{"type":"QueueEvent","event_id":3,"timestamp_ms":5,"source_event_id":2,"name":"n",'
        '"data":[1]}'
    ),
    events.QueueUnsubscribed: (
        '{"type":"QueueUnsubscribed","event_id":3,"timestamp_ms":5,"source_event_id":2}'
    ),
    events.SubOrchestrationScheduled: (
        '{"type":"SubOrchestrationScheduled","event_id":2,"timestamp_ms":5,"name":"n",'
        '"instance":"i","input":null,"version":"1"}'
    ),
    events.SubOrchestrationCompleted: (
        '{"type":"SubOrchestrationCompleted","event_id":3,"timestamp_ms":5,"source_event_id":2,'
        '"result":1.5}'
    ),
    events.SubOrchestrationFailed: (
        '{"type":"SubOrchestrationFailed","event_id":3,"timestamp_ms":5,"source_event_id":2,'
        '"error":{"type":"E","message":""}}'
    ),
    events.SubOrchestrationCancelled: (
        '{"type":"SubOrchestrationCancelled","event_id":3,"timestamp_ms":5,"source_event_id":2}'
    ),
    events.OrchestrationChained: (
        '{"type":"OrchestrationChained","event_id":2,"timestamp_ms":5,"name":"n","instance":"i",'
        '"input":[]}'
    ),
    events.ParentLinked: (
        '{"type":"ParentLinked","event_id":2,"timestamp_ms":5,"parent_instance":"p","parent_id":3}'
    ),
}


@pytest.mark.parametrize("kind", LINES, ids=lambda kind: kind.__name__)
def test_an_event_is_one_line_that_comes_back_as_it_was(kind: type[events.Event]) -> None:
    line = LINES[kind].encode()
    event = events.decode(line)

    assert type(event) is kind
    assert events.encode(event) == line


def test_every_event_has_its_line() -> None:
    assert set(LINES) == set(get_args(events.AnyEvent))


def test_what_says_nothing_is_left_out() -> None:
    event = events.CancelRequested(2, 5)

    assert events.encode(event) == b'{"type":"CancelRequested","event_id":2,"timestamp_ms":5}'


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b'{"type":"Strange","event_id":1,"timestamp_ms":5}',
        b'{"type":"TimerCancelled","event_id":1,"timestamp_ms":5}',
        b'{"type":"TimerCancelled","event_id":"1","timestamp_ms":5,"source_event_id":2}',
    ],
)
def test_another_line_is_no_event(line: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        events.decode(line)


@pytest.mark.parametrize(
    "item",
    [
        work.ActivityCompleted(1, 2, msgspec.Raw(b"[1]")),
        work.ActivityFailed(1, 2, events.Failure("E", "m")),
        work.TimerFired(1, 2, 3),
        work.ExternalRaised("n", msgspec.Raw(b"{}")),
        work.EventEnqueued("n", msgspec.Raw(b"[]")),
        work.SubOrchCompleted(1, 2, msgspec.Raw(b"null")),
        work.SubOrchFailed(1, 2, events.Failure("E", "m")),
        work.CancelInstance("r"),
    ],
    ids=lambda item: type(item).__name__,
)
def test_a_message_comes_back_as_it_was(item: work.AnyWorkItem) -> None:
    body = work.encode(item)

    assert type(work.decode(body)) is type(item)
    assert work.encode(work.decode(body)) == body


@pytest.mark.parametrize("body", [b"", b"[]", b'{"type":"Strange"}', b'{"type":"TimerFired"}'])
def test_another_message_is_unreadable(body: bytes) -> None:
    assert work.decode(body) == work.Unreadable()
