"""Whether what an export says can be: every rule that an instance in a store keeps to.

An instance that breaks one would be blocked for ever, wait for something that never comes, or
stop another's import half-way; so it is refused before anything is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from perdure import retries
from perdure.client.transfer_format import (
    InstanceRecord,
    MessageRecord,
    ReadInstance,
    at,
    refuse,
)
from perdure.client.transfer_histories import (
    check_any_id,
    check_execution,
    check_made_id,
    check_payloads,
    check_succession,
)
from perdure.core import events, work
from perdure.core.events import AnyEvent, Failure, Payload
from perdure.core.marked import Info
from perdure.core.waiting import open_requests
from perdure.limits import NESTING_MAX, PENDING_MAX
from perdure.names import check_name
from perdure.providers.contract import EVENT_IDS_KEPT, TERMINAL

_failure = msgspec.json.Decoder(Failure)


def check_trees(trees: Sequence[Sequence[ReadInstance]]) -> None:
    """Raises InvalidImport, naming the line, for the first thing that is wrong."""
    seen: set[str] = set()
    for tree in trees:
        for one in tree:
            if one.record.instance_id in seen:
                refuse(one.line, f"instance {one.record.instance_id!r} is there twice")
            seen.add(one.record.instance_id)
            _check_instance(one)
        _check_links(tree)
        for one in tree:
            _check_requests(one, tree)


def _check_instance(one: ReadInstance) -> None:
    record = one.record
    with at(one.line):
        _check_id(record, one.line)
        check_name(record.incarnation, "incarnation")
        check_name(record.name, "orchestration name")
    current, missing = record.execution_id, record.execution_id - len(one.executions)
    numbers = [execution.record.execution_id for execution in one.executions]
    if not numbers or missing < 0 or numbers != list(range(missing + 1, current + 1)):
        refuse(one.line, f"its executions are not the last ones up to {current}, the current one")
    for execution in one.executions:
        check_execution(execution, record)
    for before, after in zip(one.executions, one.executions[1:], strict=False):
        check_succession(before, after)
    _check_status(one)
    for line, message in one.messages:
        with at(line):
            _check_message(line, message)
    _check_event_ids(one)


def _check_id(record: InstanceRecord, line: int) -> None:
    link = record.parent
    parent = None
    if link is not None:
        check_name(link.incarnation, "incarnation")
        check_any_id(link.instance_id, line)
        if link.execution_id < 1 or link.event_id < 1:
            refuse(line, "executions and events are counted from 1")
        parent = Info(link.instance_id, link.incarnation, link.execution_id)
    check_made_id(record.instance_id, line, parent, link.event_id if link else 0)
    if record.nesting > NESTING_MAX or (link is None) != (record.nesting == 0):
        refuse(line, f"nesting {record.nesting} does not go with its parent, or is too deep")


def _check_status(one: ReadInstance) -> None:
    record, last = one.record, one.executions[-1].record
    ended = record.status in TERMINAL
    if record.status != last.status:
        refuse(one.line, f"it is {record.status}, its current execution is {last.status}")
    if record.version != last.version:
        refuse(one.line, f"it has version {record.version}, its execution has {last.version}")
    if (record.finished_ms is not None) != ended:
        refuse(one.line, "an instance has a time of its end if it has ended, and only then")
    if ended and (one.messages or one.activities or one.timers or one.event_ids):
        refuse(one.line, "an instance that has ended waits for nothing and has no messages")


def _check_message(line: int, message: MessageRecord) -> None:
    item = work.decode(bytes(message.body))
    if isinstance(item, work.Unreadable) or work.encode(item) != bytes(message.body):
        refuse(line, "its body is no work item")
    check_payloads(item)
    queue = item.name if isinstance(item, work.EventEnqueued) else None
    if queue != message.queue:
        refuse(line, "its queue is not the one that its body names")
    if isinstance(item, work.EventEnqueued | work.ExternalRaised):
        check_name(item.name, "name")


def _check_event_ids(one: ReadInstance) -> None:
    if len(one.event_ids) > EVENT_IDS_KEPT:
        refuse(one.line, f"an instance remembers at most {EVENT_IDS_KEPT:,} event ids")
    seen: set[str] = set()
    for line, sent in one.event_ids:
        with at(line):
            check_name(sent.id, "event id")
        if sent.id in seen:
            refuse(line, f"event id {sent.id!r} is there twice")
        seen.add(sent.id)


def _check_requests(one: ReadInstance, tree: Iterable[ReadInstance]) -> None:
    """What the current execution waits for is under way, and nothing else is."""
    current = one.executions[-1]
    asked = {request.event_id: request for request in open_requests(current.events)}
    if len(asked) > PENDING_MAX:
        refuse(one.line, f"at most {PENDING_MAX:,} requests may be open at once")
    coming = _coming(one) | _check_activities(one, asked) | _check_timers(one, asked)
    link = (one.record.instance_id, one.record.incarnation, current.record.execution_id)
    for child in tree:
        if child.record.parent is not None and child.record.status not in TERMINAL:
            *parent, event_id = msgspec.structs.astuple(child.record.parent)
            if tuple(parent) == link:
                coming.add((events.SubOrchestrationScheduled, event_id))
    for event_id, request in asked.items():
        by_others = isinstance(request, events.ExternalSubscribed | events.QueueSubscribed)
        if not by_others and (type(request), event_id) not in coming:
            refuse(current.line + event_id, "it is open, and nothing will ever answer it")


def _coming(one: ReadInstance) -> set[tuple[type[AnyEvent], int]]:
    """The requests of the current execution whose answers are in the inbox."""
    found: set[tuple[type[AnyEvent], int]] = set()
    for _, message in one.messages:
        item = work.decode(bytes(message.body))
        match item:
            case work.ActivityCompleted() | work.ActivityFailed():
                kind: type[AnyEvent] = events.ActivityScheduled
            case work.TimerFired():
                kind = events.TimerCreated
            case work.SubOrchCompleted() | work.SubOrchFailed():
                kind = events.SubOrchestrationScheduled
            case _:
                continue
        if item.execution_id == one.record.execution_id:
            found.add((kind, item.source_event_id))
    return found


def _check_activities(
    one: ReadInstance, asked: dict[int, AnyEvent]
) -> set[tuple[type[AnyEvent], int]]:
    found: set[tuple[type[AnyEvent], int]] = set()
    for line, row in one.activities:
        request = asked.get(row.event_id)
        place = (events.ActivityScheduled, row.event_id)
        if not isinstance(request, events.ActivityScheduled) or place in found:
            refuse(line, f"event {row.event_id} is no open activity, or is there twice")
        if (row.name, bytes(row.input)) != (request.name, bytes(request.input)):
            refuse(line, f"it is not the activity that event {row.event_id} asked for")
        with at(line):
            if isinstance(row.options, Payload):
                retries.decode(row.options)
            if isinstance(row.error, Payload):
                check_payloads(_failure.decode(row.error))
        found.add(place)
    return found


def _check_timers(one: ReadInstance, asked: dict[int, AnyEvent]) -> set[tuple[type[AnyEvent], int]]:
    found: set[tuple[type[AnyEvent], int]] = set()
    for line, row in one.timers:
        request = asked.get(row.event_id)
        place = (events.TimerCreated, row.event_id)
        if not isinstance(request, events.TimerCreated) or place in found:
            refuse(line, f"event {row.event_id} is no open timer, or is there twice")
        if row.fire_at_ms != request.fire_at_ms:
            refuse(line, f"it is not the timer that event {row.event_id} asked for")
        found.add(place)
    return found


def _check_links(tree: Sequence[ReadInstance]) -> None:
    """All but the first are sub-orchestrations of one that comes before them."""
    known: dict[str, ReadInstance] = {}
    for one in tree:
        record, link = one.record, one.record.parent
        parent = known.get(link.instance_id) if link else None
        if known and (not link or not parent or link.incarnation != parent.record.incarnation):
            refuse(one.line, f"the parent of {record.instance_id!r} is not before it")
        if link and parent:
            if record.nesting != parent.record.nesting + 1:
                refuse(one.line, "it is not nested in its parent")
            if link.execution_id > parent.record.execution_id:
                refuse(one.line, f"its parent has no execution {link.execution_id}")
            _check_scheduled(one, parent)
        known[record.instance_id] = one


def _check_scheduled(one: ReadInstance, parent: ReadInstance) -> None:
    """Its parent's history, as far as it is there, says that it was started so."""
    link, first = one.record.parent, one.executions[0].record
    assert link is not None
    histories = {execution.record.execution_id: execution.events for execution in parent.executions}
    history = histories.get(link.execution_id)
    if history is None:
        return
    scheduled = history[link.event_id - 1] if link.event_id <= len(history) else None
    if not isinstance(scheduled, events.SubOrchestrationScheduled):
        refuse(one.line, f"event {link.event_id} of its parent starts nothing")
    if (scheduled.instance, scheduled.name) != (one.record.instance_id, one.record.name):
        refuse(one.line, f"event {link.event_id} of its parent starts another one")
    if first.execution_id == 1 and bytes(first.input) != bytes(scheduled.input):
        refuse(one.line, f"event {link.event_id} of its parent starts it with another input")
