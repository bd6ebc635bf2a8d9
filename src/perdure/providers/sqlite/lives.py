"""Instances as a whole: deleted with their children, taken out as snapshots, and put in again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import apsw
import msgspec

from perdure.providers.contract import (
    ActivitySnapshot,
    Deleted,
    DeleteInstance,
    ExecutionSnapshot,
    Imported,
    ImportInstances,
    MessageSnapshot,
    NewTimer,
    NotFound,
    Operation,
    Outcome,
    ParentLink,
    Snapshot,
    Taken,
    Undeletable,
)
from perdure.providers.sqlite.packing import query
from perdure.providers.sqlite.reads import TREE, get_instances

_TABLES = ("event_ids", "inbox", "timers", "activities", "history", "executions", "instances")


def write(
    connection: apsw.Connection, ordered: Sequence[tuple[int, Operation]]
) -> dict[int, Outcome]:
    """Carry out the deletes and imports of a batch, inside its transaction; outcome by place."""
    found: dict[int, Outcome] = {}
    for place, operation in ordered:
        match operation:
            case DeleteInstance():
                found[place] = _delete(connection, operation)
            case ImportInstances():
                found[place] = _insert(connection, operation)
            case _:
                break
    return found


_INCARNATION = "select incarnation from instances where instance_id = ?"
_PARENT = """
select parent.instance_id from instances as child join instances as parent
    on parent.instance_id = child.parent_instance
    and parent.incarnation = child.parent_incarnation
where child.instance_id = ?
"""
_RUNNING = f"""
select instance_id from instances where key in ({TREE}) and finished_ms is null
order by key limit 1
"""


def _delete(
    connection: apsw.Connection, operation: DeleteInstance
) -> Deleted | NotFound | Undeletable:
    asked = (operation.instance_id,)
    incarnation = connection.execute(_INCARNATION, asked).get
    if operation.incarnation not in (None, incarnation):
        return NotFound()
    keys: str = connection.execute(f"select json_group_array(key) from ({TREE})", asked).get
    if keys == "[]":
        return NotFound()
    parent = connection.execute(_PARENT, asked).get
    if parent is not None:
        return Undeletable("child", parent)
    running = None if operation.force else connection.execute(_RUNNING, asked).get
    if running is not None:
        return Undeletable("running", running)
    for table in _TABLES:
        connection.execute(
            f"delete from {table} where key in (select value from json_each(?))", (keys,)
        )
    return Deleted(connection.changes())


_INSTANCE = """
insert into instances (
    instance_id, incarnation, name, version, status, execution_id, parent_instance,
    parent_incarnation, parent_execution, parent_event, nesting, created_ms, finished_ms, attempt,
    due_ms, mail, external, queued
) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, 0, ?)
"""


def _insert(connection: apsw.Connection, operation: ImportInstances) -> Imported | Taken:
    known = get_instances(connection, [one.instance_id for one in operation.instances])
    for one in operation.instances:
        if one.instance_id in known:
            return Taken(known[one.instance_id])
    for one in operation.instances:
        _insert_one(connection, one)
    return Imported()


def _insert_one(connection: apsw.Connection, one: Snapshot) -> None:
    parent = one.parent
    link = (None,) * 4 if parent is None else msgspec.structs.astuple(parent)
    items = sum(message.queue is not None for message in one.messages)
    connection.execute(
        _INSTANCE,
        (
            *(one.instance_id, one.incarnation, one.name, one.version, one.status),
            *(one.execution_id, *link, one.nesting, one.created_ms, one.finished_ms),
            *(one.due_ms, len(one.messages), items),
        ),
    )
    key = connection.last_insert_rowid()
    for ex in one.executions:
        _put(connection, "executions", (key, *msgspec.structs.astuple(ex)[:-1]), _EXECUTION)
        for event_id, data in enumerate(ex.events, 1):
            _put(connection, "history", (key, ex.execution_id, event_id, data))
    for message in one.messages:
        connection.execute(
            "insert into inbox (key, accepted_ms, body, queue) values (?, ?, ?, ?)",
            (key, message.accepted_ms, message.body, message.queue),
        )
    for item in one.activities:
        values = (key, one.execution_id, *msgspec.structs.astuple(item))
        _put(connection, "activities", values, _ACTIVITY)
    for timer in one.timers:
        _put(connection, "timers", (key, one.execution_id, timer.event_id, timer.fire_at_ms))
    for number, known in enumerate(one.event_ids, 1):
        _put(connection, "event_ids", (key, known, number))


_EXECUTION = "key, execution_id, version, status, started_ms, ended_ms, input, output, error"
_ACTIVITY = "key, execution_id, event_id, name, input, options, attempt, due_ms, error"


def _put(
    connection: apsw.Connection, table: str, values: tuple[Any, ...], columns: str = ""
) -> None:
    named = f"({columns})" if columns else ""
    marks = ", ".join("?" * len(values))
    connection.execute(f"insert into {table} {named} values ({marks})", values)


# Taking out.

_INSTANCES = query(
    "i.key, i.instance_id, i.incarnation, i.name, i.version, i.status, i.execution_id, i.nesting, "
    "i.created_ms, i.finished_ms, i.due_ms, i.parent_instance, i.parent_incarnation, "
    "i.parent_execution, i.parent_event",
    "",
    f"from instances as i where i.key in ({TREE}) order by i.key",
)
_WANTED = "in (select value from json_each(?))"
_EXECUTIONS = query(
    "e.key, e.execution_id, e.version, e.status, e.started_ms, e.ended_ms",
    "e.input, e.output, e.error",
    f"from executions as e where e.key {_WANTED} order by e.key, e.execution_id",
)
_EVENTS = query(
    "h.key, h.execution_id",
    "h.data",
    f"from history as h where h.key {_WANTED} order by h.key, h.execution_id, h.event_id",
)
_MESSAGES = query(
    "m.key, m.accepted_ms, m.queue",
    "m.body",
    f"from inbox as m where m.key {_WANTED} order by m.key, m.seq",
)
_ACTIVITIES = query(
    "a.key, a.event_id, a.name, a.attempt, a.due_ms",
    "a.input, a.options, a.error",
    f"from activities as a where a.key {_WANTED} order by a.key, a.event_id",
)
_TIMERS = query(
    "t.key, t.event_id, t.fire_at_ms",
    "",
    f"from timers as t where t.key {_WANTED} order by t.key, t.event_id",
)
_EVENT_IDS = query(
    "d.key, d.event_id", "", f"from event_ids as d where d.key {_WANTED} order by d.key, d.number"
)


def snapshots(connection: apsw.Connection, instance_id: str) -> list[Snapshot]:
    # One transaction, so that all of it is of one moment.
    connection.execute("begin")
    try:
        instances = _INSTANCES.rows(connection, (instance_id,))
        keys = (msgspec.json.encode([row[0] for row in instances]).decode(),)
        events = _grouped(_EVENTS.rows(connection, keys), 2)
        executions = _grouped(_EXECUTIONS.rows(connection, keys))
        messages = _grouped(_MESSAGES.rows(connection, keys))
        activities = _grouped(_ACTIVITIES.rows(connection, keys))
        timers = _grouped(_TIMERS.rows(connection, keys))
        event_ids = _grouped(_EVENT_IDS.rows(connection, keys))
    finally:
        connection.execute("rollback")
    return [
        _snapshot(
            own,
            tuple(_execution(ex, events[key, ex[0]]) for ex in executions[key,]),
            tuple(MessageSnapshot(at, body, queue) for at, queue, body in messages[key,]),
            tuple(
                ActivitySnapshot(event_id, name, input, options, attempt, due_ms, error)
                for event_id, name, attempt, due_ms, input, options, error in activities[key,]
            ),
            tuple(NewTimer(*timer) for timer in timers[key,]),
            tuple(known for (known,) in event_ids[key,]),
        )
        for key, *own in instances
    ]


def _execution(values: list[Any], lines: list[list[Any]]) -> ExecutionSnapshot:
    return ExecutionSnapshot(*[*values, tuple(data for (data,) in lines)])


def _snapshot(own: list[Any], *parts: Any) -> Snapshot:
    link = own[10:]
    parent = None if link[0] is None else ParentLink(*link)
    return Snapshot(*[*own[:6], parent, *own[6:10], *parts])


def _grouped(
    rows: list[list[Any]], width: int = 1
) -> defaultdict[tuple[Any, ...], list[list[Any]]]:
    """The rows by their first columns, without them."""
    found: defaultdict[tuple[Any, ...], list[list[Any]]] = defaultdict(list)
    for row in rows:
        found[tuple(row[:width])].append(row[width:])
    return found
