"""The reads: each one statement, in the reader's thread."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import apsw
import msgspec

from perdure.errors import InstanceNotFound
from perdure.providers.contract import (
    ActivityRow,
    Capabilities,
    Depths,
    ExecutionRow,
    InstanceRow,
    Mail,
    Message,
    NodeRow,
    RowFilter,
    Survey,
)
from perdure.providers.sqlite.claims import names_json, pairs_json
from perdure.providers.sqlite.packing import INSTANCE_BLOBS, INSTANCE_COLUMNS, Query, query

HISTORIES_AT_ONCE = 500

_SURVEY = """
select
    exists (
        select 1 from instances as i where owner = :node and due_ms <= :now
            and exists (select 1 from inbox where inbox.key = i.key)
    ),
    (
        select min((
            select due_ms from instances
            where name = pair.value ->> 0 and version is pair.value ->> 1
                and owner is null and due_ms is not null
            order by due_ms limit 1
        )) from json_each(:pairs) as pair
    ),
    (
        select min((
            select due_ms from activities where owner is null and name = named.value
            order by due_ms limit 1
        )) from json_each(:names) as named
    ),
    (select count(*) from nodes where node_id <> :node)
"""
_MAIL = query(
    "i.key, i.mail, i.external, i.queued, m.seq, m.accepted_ms",
    "m.body",
    "from instances as i left join inbox as m on m.key = i.key and m.queue is null "
    "where i.owner = :node and i.due_ms <= :now "
    "and exists (select 1 from inbox where inbox.key = i.key) order by i.due_ms, i.key, m.seq",
)


def survey(
    connection: apsw.Connection,
    node_id: str,
    capabilities: Capabilities,
    activity_names: frozenset[str],
    now: int,
) -> Survey:
    has_mail, due_ms, activities_due_ms, others = connection.execute(
        _SURVEY,
        {
            "node": node_id,
            "now": now,
            "pairs": pairs_json(capabilities),
            "names": names_json(activity_names),
        },
    ).get
    mail = _mail(connection, node_id, now) if has_mail else ()
    return Survey(mail, due_ms, activities_due_ms, others)


def _mail(connection: apsw.Connection, node_id: str, now: int) -> tuple[Mail, ...]:
    counters: dict[int, tuple[int, int, int]] = {}
    messages: dict[int, list[Message]] = {}
    for row in _MAIL.rows(connection, {"node": node_id, "now": now}):
        key, mail, external, queued, seq, accepted_ms, body = row
        counters[key] = mail, external, queued
        found = messages.setdefault(key, [])
        if seq is not None:
            found.append(Message(seq, accepted_ms, body))
    return tuple(
        Mail(key, *counters[key][:2], tuple(found), counters[key][2])
        for key, found in messages.items()
    )


_LOST = """
select json_group_array(claim.key) from json_each(:claims) as claim
where not exists (
    select 1 from activities as a
    where a.key = claim.value ->> 0 and a.execution_id = claim.value ->> 1
        and a.event_id = claim.value ->> 2 and a.owner = :node
)
"""


def lost_activities(
    connection: apsw.Connection, node_id: str, claims: Collection[tuple[int, int, int]]
) -> list[tuple[int, int, int]]:
    asked = list(claims)
    lost: list[int] = msgspec.json.decode(
        connection.execute(
            _LOST, {"claims": msgspec.json.encode(asked).decode(), "node": node_id}
        ).get
    )
    return [asked[place] for place in lost]


def _instances(rest: str) -> Query:
    return query(INSTANCE_COLUMNS, INSTANCE_BLOBS, rest)


_JOIN = "join executions as e on e.key = i.key and e.execution_id = i.execution_id"

# The pairs there are first: they are few, and found in an index alone.
_UNRUNNABLE = _instances(
    "from (select distinct name, version from instances where owner is null"
    "  and due_ms is not null) as kind "
    f"cross join instances as i {_JOIN} where not exists ("
    "  select 1 from json_each(:pairs) as pair"
    "  where pair.value ->> 0 = kind.name and pair.value ->> 1 is kind.version"
    ") and i.key in ("
    "  select key from instances where name = kind.name and version is kind.version"
    "  and owner is null and due_ms <= :now order by due_ms, key limit :limit"
    ") order by i.due_ms, i.key limit :limit"
)
_BY_ID = _instances(
    f"from json_each(?) as wanted join instances as i on i.instance_id = wanted.value {_JOIN}"
)
TREE = """
with recursive tree (key) as (
    select key from instances where instance_id = ?
    union
    select child.key from tree
    join instances as parent on parent.key = tree.key
    join instances as child on child.parent_instance = parent.instance_id
        and child.parent_incarnation = parent.incarnation
)
select key from tree"""
_TREE = _instances(f"from instances as i {_JOIN} where i.key in ({TREE}) order by i.key")


def unrunnable(
    connection: apsw.Connection, capabilities: Capabilities, limit: int, now: int
) -> list[InstanceRow]:
    return _rows(
        connection,
        _UNRUNNABLE,
        {"now": now, "pairs": pairs_json(capabilities), "limit": limit},
    )


def get_instances(
    connection: apsw.Connection, instance_ids: Collection[str]
) -> dict[str, InstanceRow]:
    asked = msgspec.json.encode(list(set(instance_ids))).decode()
    return {row.instance_id: row for row in _rows(connection, _BY_ID, (asked,))}


def list_tree(connection: apsw.Connection, instance_id: str) -> list[InstanceRow]:
    return _rows(connection, _TREE, (instance_id,))


_CONDITIONS = {
    "status": "i.status = :status",
    "name": "i.name = :name",
    "id_prefix": "substr(i.instance_id, 1, length(:id_prefix)) = :id_prefix",
    "version": "i.version = :version",
    "parent": "i.parent_instance = :parent",
    "blocked": "(i.blocked is not null) = :blocked",
    "created_after_ms": "i.created_ms > :created_after_ms",
    "created_before_ms": "i.created_ms < :created_before_ms",
    "finished_after_ms": "i.finished_ms > :finished_after_ms",
    "finished_before_ms": "i.finished_ms < :finished_before_ms",
}


def list_instances(
    connection: apsw.Connection, wanted: RowFilter, after: int, limit: int
) -> list[InstanceRow]:
    given: dict[str, Any] = {
        field: value for field, value in msgspec.structs.asdict(wanted).items() if value is not None
    }
    conditions = " and ".join(["i.key > :after", *(_CONDITIONS[field] for field in given)])
    rest = f"from instances as i {_JOIN} where {conditions} order by i.key limit :limit"
    return _rows(connection, _instances(rest), {**given, "after": after, "limit": limit})


def _rows(connection: apsw.Connection, wanted: Query, parameters: Any) -> list[InstanceRow]:
    return [InstanceRow(*row) for row in wanted.rows(connection, parameters)]


def count_instances(connection: apsw.Connection) -> dict[str, int]:
    counts: dict[str, int] = msgspec.json.decode(
        connection.execute(
            "select json_group_object(status, n) from "
            "(select status, count(*) as n from instances group by status)"
        ).get
    )
    return counts


def count_blocked(connection: apsw.Connection) -> dict[str, int]:
    counts: dict[str, int] = msgspec.json.decode(
        connection.execute(
            "select json_group_object(blocked, n) from (select blocked, count(*) as n "
            "from instances where blocked is not null group by blocked)"
        ).get
    )
    return counts


_DEPTHS = """
select
    (select count(*) from instances where owner is null and due_ms <= :now),
    (select count(*) from inbox where queue is null),
    (select count(*) from inbox where queue is not null),
    (select count(*) from timers),
    (
        select json_group_object(name, json_array(waiting, later, running)) from (
            select name,
                sum(owner is null and due_ms <= :now) as waiting,
                sum(owner is null and due_ms > :now) as later,
                sum(owner is not null) as running
            from activities group by name
        )
    )
"""


def depths(connection: apsw.Connection, now: int) -> Depths:
    row: Any = connection.execute(_DEPTHS, {"now": now}).get
    by_name = msgspec.json.decode(row[4], type=dict[str, tuple[int, int, int]])
    return Depths(*[*row[:4], by_name])


_ITEMS = query(
    "m.seq, m.accepted_ms",
    "m.body",
    "from inbox as m where m.key = ? and m.queue = ? and m.seq > ? order by m.seq limit ?",
)
_ACTIVITIES = query(
    "a.execution_id, a.event_id, a.name, a.owner, a.attempt, a.due_ms",
    "a.error",
    "from activities as a where a.key = ? order by a.execution_id, a.event_id",
)


def queue_items(
    connection: apsw.Connection, key: int, queue: str, after: int, limit: int
) -> list[Message]:
    return [Message(*row) for row in _ITEMS.rows(connection, (key, queue, after, limit))]


def list_activities(connection: apsw.Connection, key: int) -> list[ActivityRow]:
    return [ActivityRow(*row) for row in _ACTIVITIES.rows(connection, (key,))]


_EXECUTION_COLUMNS = "e.execution_id, e.version, e.status, e.started_ms, e.ended_ms"
_EXECUTION = query(
    _EXECUTION_COLUMNS,
    "e.output, e.error, e.input",
    "from executions as e where key = ? and execution_id = ?",
)
_EXECUTIONS = query(
    _EXECUTION_COLUMNS,
    "e.output, e.error, e.input",
    "from instances as i join executions as e on e.key = i.key "
    "where i.instance_id = ? order by e.execution_id",
)


def get_execution(connection: apsw.Connection, key: int, execution_id: int) -> ExecutionRow | None:
    rows = _EXECUTION.rows(connection, (key, execution_id))
    return ExecutionRow(*rows[0]) if rows else None


def list_executions(connection: apsw.Connection, instance_id: str) -> list[ExecutionRow]:
    return [ExecutionRow(*row) for row in _EXECUTIONS.rows(connection, (instance_id,))]


_HISTORIES = query(
    "wanted.key",
    "h.data",
    "from json_each(?) as wanted join history as h "
    "on h.key = wanted.value ->> 0 and h.execution_id = wanted.value ->> 1 "
    "order by wanted.id, h.event_id",
)
_HISTORY = query(
    "h.event_id",
    "h.data",
    "from history as h where h.key = ? and h.execution_id = ? and h.event_id > ? "
    "order by h.event_id limit ?",
)


def histories(connection: apsw.Connection, wanted: Sequence[tuple[int, int]]) -> list[list[bytes]]:
    found: list[list[bytes]] = [[] for _ in wanted]
    for start in range(0, len(wanted), HISTORIES_AT_ONCE):
        asked = msgspec.json.encode(wanted[start : start + HISTORIES_AT_ONCE]).decode()
        for place, data in _HISTORIES.rows(connection, (asked,)):
            found[start + place].append(data)
    return found


def read_history(
    connection: apsw.Connection, instance_id: str, execution_id: int | None, after: int, limit: int
) -> list[bytes]:
    current = connection.execute(
        "select key, execution_id from instances where instance_id = ?", (instance_id,)
    ).get
    if current is None:
        raise InstanceNotFound(f"there is no instance {instance_id!r}; check the id and the store")
    key, current_execution = current
    execution = current_execution if execution_id is None else execution_id
    return [data for _, data in _HISTORY.rows(connection, (key, execution, after, limit))]


_NODES = query(
    "n.node_id, n.host, n.pid, n.started_ms, n.lease_until_ms, "
    "(select count(*) from instances as i where i.owner = n.node_id), count(a.owner)",
    "",
    "from nodes as n left join activities as a on a.owner = n.node_id "
    "group by n.node_id order by n.node_id",
)


def nodes(connection: apsw.Connection, lease_of: Callable[[str], int | None]) -> list[NodeRow]:
    """lease_of: how long the leases of a node are, in milliseconds, or None if nobody can tell."""
    found = []
    for node_id, host, pid, started_ms, lease_until_ms, *held in _NODES.rows(connection, ()):
        lease_ms = lease_of(node_id)
        beat_ms = started_ms if lease_ms is None else max(started_ms, lease_until_ms - lease_ms)
        found.append(NodeRow(node_id, host, pid, started_ms, lease_until_ms, beat_ms, *held))
    return found


def node_ids(connection: apsw.Connection) -> list[str]:
    found: list[str] = msgspec.json.decode(
        connection.execute("select json_group_array(node_id) from nodes").get
    )
    return found
