"""Whether the histories of an export can be: each is one that an execution may have recorded."""

from __future__ import annotations

import re

import msgspec

from perdure.client.transfer_format import (
    TIME_MAX,
    ExecutionRecord,
    InstanceRecord,
    ReadExecution,
    at,
    data_of,
    refuse,
)
from perdure.codec import ANY, check_bounds
from perdure.core import events
from perdure.core.derived import child_id
from perdure.core.events import AnyEvent, Failure, Payload
from perdure.core.marked import Info
from perdure.core.waiting import SETTLES
from perdure.limits import (
    HISTORY_EVENTS_MAX,
    INSTANCE_ID_BYTES_MAX,
    PENDING_MAX,
    TIMER_MS_MAX,
    TRACEBACK_BYTES_MAX,
)
from perdure.names import SUB, check_instance_id, check_name, check_version

# The limit stops decisions; what is open then is still answered or withdrawn.
_EVENTS_MAX = HISTORY_EVENTS_MAX + 2 * PENDING_MAX
_DETACHED = re.compile(r"(::detached::[0-9]+\.[0-9]+-[0-9a-f]{8}|::sub::[0-9a-f]{32})\Z")
_ENDING_OF: dict[str, type[AnyEvent]] = {
    "completed": events.OrchestrationCompleted,
    "failed": events.OrchestrationFailed,
    "cancelled": events.OrchestrationCancelled,
    "continued_as_new": events.OrchestrationContinuedAsNew,
}


def check_execution(execution: ReadExecution, instance: InstanceRecord) -> None:
    """One execution of an instance, by itself. Raises InvalidImport, as all of these."""
    record, history = execution.record, execution.events
    with at(execution.line):
        check_bounds(bytes(record.input))
        ANY.decode(record.input)
        if record.version is not None:
            check_version(record.version)
    is_current = record.execution_id == instance.execution_id
    if is_current == (record.status == "continued_as_new"):
        refuse(execution.line, f"its status is {record.status}")
    if (record.ended_ms is None) != (record.status in ("pending", "running")):
        refuse(execution.line, "an execution has a time of its end if it ended, and only then")
    if record.status == "pending" or not history:
        if record.status != "pending" or history or record.execution_id != 1:
            refuse(execution.line, f"it is {record.status} and has {len(history)} events")
        if (data_of(record.output), data_of(record.error)) != (None, None):
            refuse(execution.line, "a pending execution has neither output nor error")
        return
    _check_started(execution, instance)
    _check_order(execution)
    _check_answers(execution)
    _check_ending(execution)
    for line, event in enumerate(history, execution.line + 1):
        with at(line):
            _check_event(line, event, instance, record)


def check_succession(before: ReadExecution, after: ReadExecution) -> None:
    """Two checked executions of which one continued as the other."""
    ending, started = before.events[-1], after.events[0]
    assert isinstance(ending, events.OrchestrationContinuedAsNew)
    assert isinstance(started, events.OrchestrationStarted)
    if bytes(ending.input) != bytes(started.input):
        refuse(after.line, "its input is not that with which the execution before it went on")
    if ending.version not in (None, started.version):
        refuse(after.line, f"version {ending.version} was asked for")
    if started.timestamp_ms < ending.timestamp_ms:
        refuse(after.line, "it starts before the end of the execution before it")


def _check_started(execution: ReadExecution, instance: InstanceRecord) -> None:
    started, record, link = execution.events[0], execution.record, instance.parent
    line = execution.line + 1
    if not isinstance(started, events.OrchestrationStarted):
        refuse(line, "the first event of an execution is OrchestrationStarted")
    found = (started.name, started.version, started.incarnation, started.nesting)
    if found != (instance.name, record.version, instance.incarnation, instance.nesting):
        refuse(line, "name, version, incarnation or nesting differs from the instance's")
    if bytes(started.input) != bytes(record.input):
        refuse(line, "the input differs from the execution's")
    parent = (
        started.parent_instance,
        started.parent_incarnation,
        started.parent_execution,
        started.parent_id,
    )
    known = (None,) * 4 if link is None else msgspec.structs.astuple(link)
    if parent != known:
        refuse(line, "the parent differs from the instance's")


def _check_order(execution: ReadExecution) -> None:
    history = execution.events
    if len(history) > _EVENTS_MAX:
        refuse(execution.line, f"a history has at most {_EVENTS_MAX:,} events")
    now_ms = 0
    for event_id, event in enumerate(history, 1):
        line = execution.line + event_id
        if event.event_id != event_id:
            refuse(line, f"it has event id {event.event_id} in the place of {event_id}")
        if not now_ms <= event.timestamp_ms <= TIME_MAX:
            refuse(line, "its time is before that of the event before it, or out of range")
        if event_id > 1 and isinstance(event, events.OrchestrationStarted):
            refuse(line, "an execution starts once")
        now_ms = event.timestamp_ms


def _check_answers(execution: ReadExecution) -> None:
    """Each answer or withdrawal is of something asked for before, and the only one."""
    asked: dict[int, AnyEvent] = {}
    for line, event in enumerate(execution.events, execution.line + 1):
        kind = SETTLES.get(type(event))
        if kind is None:
            asked[event.event_id] = event
            continue
        source = getattr(event, "source_event_id", 0)
        request = asked.pop(source, None)
        if type(request) is not kind or not _fits(event, request):
            refuse(line, f"event {source} is nothing that it could settle")


def _fits(event: AnyEvent, request: AnyEvent | None) -> bool:
    match event, request:
        case (
            events.ExternalEvent(name=name) | events.QueueEvent(name=name),
            events.ExternalSubscribed(name=asked) | events.QueueSubscribed(name=asked),
        ):
            return name == asked
        case events.TimerFired(fire_at_ms=at_ms), events.TimerCreated(fire_at_ms=asked_ms):
            return at_ms == asked_ms <= event.timestamp_ms
    return True


def _check_ending(execution: ReadExecution) -> None:
    record, history = execution.record, execution.events
    kind = _ENDING_OF.get(record.status)
    endings = [event for event in history if isinstance(event, events.ENDINGS)]
    if [type(event) for event in endings] != ([] if kind is None else [kind]):
        refuse(execution.line, f"its history does not end as one that is {record.status}")
    last = history[-1]
    if kind is not None and last is not endings[0]:
        refuse(execution.line + last.event_id, "nothing comes after the end of an execution")
    output = error = None
    match last:
        case events.OrchestrationCompleted():
            output = bytes(last.output)
        case events.OrchestrationFailed():
            error = events.encode(last.error)
        case events.OrchestrationCancelled():
            error = events.encode(Failure("OrchestrationCancelled", last.reason))
    if (data_of(record.output), data_of(record.error)) != (output, error):
        refuse(execution.line, "its output or error differs from that in its history")


def _check_event(
    line: int, event: AnyEvent, instance: InstanceRecord, execution: ExecutionRecord
) -> None:
    check_payloads(event)
    match event:
        case events.TimerCreated(fire_at_ms=fire_at_ms):
            if not 0 <= fire_at_ms - event.timestamp_ms <= TIMER_MS_MAX:
                refuse(line, "it fires before it was made, or more than 3,650 days later")
        case events.SubOrchestrationScheduled():
            parent = Info(instance.instance_id, instance.incarnation, execution.execution_id)
            check_made_id(event.instance, line, parent, event.event_id)
        case events.OrchestrationChained():
            check_made_id(event.instance, line, None, 0)
    name, version = getattr(event, "name", None), getattr(event, "version", None)
    if name is not None:
        check_name(name, "name")
    if version is not None:
        check_version(version)


def check_payloads(struct: msgspec.Struct) -> None:
    """The payloads of an event, a work item or a record, and those in its error."""
    for field in struct.__struct_fields__:
        value = getattr(struct, field)
        if isinstance(value, Payload):
            check_bounds(bytes(value))
            ANY.decode(value)
        elif isinstance(value, Failure):
            check_payloads(value)
            if len(value.traceback.encode()) > TRACEBACK_BYTES_MAX:
                raise msgspec.ValidationError("its traceback is too long")


def check_made_id(instance_id: str, line: int, parent: Info | None, event_id: int) -> None:
    """An id that a user may give, or the one that the engine makes for a child of this parent, or
    (parent None) one that it makes for a detached orchestration."""
    check_any_id(instance_id, line)
    if SUB not in instance_id:
        return
    if parent is None and not _DETACHED.search(instance_id):
        refuse(line, f"{instance_id!r} is the id of a sub-orchestration, and it has no parent")
    if parent is not None and instance_id != child_id(parent, event_id):
        refuse(line, f"{instance_id!r} is not the id of this sub-orchestration")


def check_any_id(instance_id: str, line: int) -> None:
    """An id that some instance can have."""
    check_instance_id(instance_id.replace(SUB, "::"))
    if len(instance_id.encode()) > INSTANCE_ID_BYTES_MAX:
        refuse(line, f"an instance id has at most {INSTANCE_ID_BYTES_MAX} bytes")
