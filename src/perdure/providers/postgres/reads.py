"""The reads: each one statement, so that each shows one moment; a snapshot is one transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from perdure.errors import InstanceNotFound
from perdure.providers.contract import (
    ActivityRow,
    ActivitySnapshot,
    Capabilities,
    Depths,
    ExecutionRow,
    ExecutionSnapshot,
    InstanceRow,
    Mail,
    Message,
    MessageSnapshot,
    NewTimer,
    NodeRow,
    ParentLink,
    RowFilter,
    Snapshot,
    Survey,
)
from perdure.providers.postgres.rows import EXECUTION_COLUMNS, INSTANCE_COLUMNS, JOIN

NOW = "(select coalesce($1, floor(extract(epoch from clock_timestamp()) * 1000)::bigint))"
"""The store's time, where $1 is the time of a clock that is used instead, or null."""

_SURVEY = f"""
with clock as materialized (select {NOW} as now)
select
    clock.now,
    exists (
        select 1 from instances as i where i.owner = $2 and i.due_ms <= clock.now
            and exists (select 1 from inbox as m where m.key = i.key)
    ),
    (
        select min(one.due_ms) from unnest($3::text[], $4::text[]) as pair (name, version)
        cross join lateral (
            select i.due_ms from instances as i
            where i.name = pair.name and i.version = pair.version
                and i.owner is null and i.due_ms is not null
            order by i.due_ms limit 1
        ) as one
    ),
    (
        select min(one.due_ms) from unnest($3::text[]) as named (name) cross join lateral (
            select i.due_ms from instances as i
            where i.name = named.name and i.version is null
                and i.owner is null and i.due_ms is not null
            order by i.due_ms limit 1
        ) as one
    ),
    (
        select min(one.due_ms) from unnest($5::text[]) as named (name) cross join lateral (
            select a.due_ms from activities as a where a.owner is null and a.name = named.name
            order by a.due_ms limit 1
        ) as one
    ),
    (select count(*) from nodes where node_id <> $2)
from clock
"""
_MAIL = """
select i.key, i.mail, i.external, i.queued, m.seq, m.accepted_ms, m.body
from instances as i left join inbox as m on m.key = i.key and m.queue is null
where i.owner = $1 and i.due_ms <= $2 and exists (select 1 from inbox where inbox.key = i.key)
order by i.due_ms, i.key, m.seq
"""


async def survey(
    connection: Any,
    node_id: str,
    capabilities: Capabilities,
    activity_names: frozenset[str],
    now_ms: int | None,
) -> tuple[Survey, int]:
    """The survey, and the store's time."""
    pairs = sorted(capabilities)
    row = await connection.fetchrow(
        _SURVEY,
        now_ms,
        node_id,
        [name for name, _ in pairs],
        [version for _, version in pairs],
        sorted(activity_names),
    )
    now, has_mail, first_due_ms, unversioned_due_ms, activities_due_ms, others = row
    due = [due_ms for due_ms in (first_due_ms, unversioned_due_ms) if due_ms is not None]
    mail = await _mail(connection, node_id, now) if has_mail else ()
    return Survey(mail, min(due, default=None), activities_due_ms, others), now


async def _mail(connection: Any, node_id: str, now: int) -> tuple[Mail, ...]:
    counters: dict[int, tuple[int, int, int]] = {}
    messages: dict[int, list[Message]] = {}
    for key, mail, external, queued, *message in await connection.fetch(_MAIL, node_id, now):
        counters[key] = mail, external, queued
        found = messages.setdefault(key, [])
        if message[0] is not None:
            found.append(Message(*message))
    return tuple(
        Mail(key, *counters[key][:2], tuple(found), counters[key][2])
        for key, found in messages.items()
    )


_LOST = """
select w.key, w.execution_id, w.event_id from unnest($1::bigint[], $2::bigint[], $3::bigint[])
    with ordinality as w (key, execution_id, event_id, place)
where not exists (
    select 1 from activities as a
    where a.key = w.key and a.execution_id = w.execution_id and a.event_id = w.event_id
        and a.owner = $4
) order by w.place
"""


async def lost_activities(
    connection: Any, node_id: str, claims: Collection[tuple[int, int, int]]
) -> list[tuple[int, int, int]]:
    columns = [[claim[n] for claim in claims] for n in range(3)]
    return [tuple(row) for row in await connection.fetch(_LOST, *columns, node_id)]


_INSTANCES = f"select {INSTANCE_COLUMNS} from instances as i {JOIN}"

# The pairs there are first: they are few, and found in an index alone.
_UNRUNNABLE = f"""
with kinds as (
    select distinct name, version from instances where owner is null and due_ms is not null
), foreign_kinds as (
    select kinds.name, kinds.version from kinds where not exists (
        select 1 from unnest($2::text[], $3::text[]) as pair (name, version)
        where pair.name = kinds.name and (kinds.version is null or pair.version = kinds.version)
    )
)
{_INSTANCES} where i.key in (
    select one.key from foreign_kinds as kind cross join lateral (
        select j.key from instances as j
        where j.name = kind.name and j.version is not distinct from kind.version
            and j.owner is null and j.due_ms <= {NOW}
        order by j.due_ms, j.key limit $4
    ) as one
) order by i.due_ms, i.key limit $4
"""


async def unrunnable(
    connection: Any, capabilities: Capabilities, limit: int, now_ms: int | None
) -> list[InstanceRow]:
    pairs = sorted(capabilities)
    names, versions = [name for name, _ in pairs], [version for _, version in pairs]
    return await _rows(connection, _UNRUNNABLE, now_ms, names, versions, limit)


async def get_instances(connection: Any, instance_ids: Collection[str]) -> dict[str, InstanceRow]:
    query = f"{_INSTANCES} where i.instance_id = any($1::text[])"
    found = await _rows(connection, query, list(set(instance_ids)))
    return {row.instance_id: row for row in found}


async def list_tree(connection: Any, instance_id: str) -> list[InstanceRow]:
    query = f"{_INSTANCES} where i.key = any(array(select tree($1))) order by i.key"
    return await _rows(connection, query, instance_id)


_CONDITIONS = {
    "status": "i.status = {}",
    "name": "i.name = {}",
    "id_prefix": "starts_with(i.instance_id, {})",
    "version": "i.version = {}",
    "parent": "i.parent_instance = {}",
    "blocked": "(i.blocked is not null) = {}",
    "created_after_ms": "i.created_ms > {}",
    "created_before_ms": "i.created_ms < {}",
    "finished_after_ms": "i.finished_ms > {}",
    "finished_before_ms": "i.finished_ms < {}",
}


async def list_instances(
    connection: Any, wanted: RowFilter, after: int, limit: int
) -> list[InstanceRow]:
    given = [
        (field, value)
        for field, value in msgspec.structs.asdict(wanted).items()
        if value is not None
    ]
    conditions = [
        _CONDITIONS[field].format(f"${place}") for place, (field, _) in enumerate(given, 3)
    ]
    where = " and ".join(["i.key > $1", *conditions])
    query = f"{_INSTANCES} where {where} order by i.key limit $2"
    return await _rows(connection, query, after, limit, *(value for _, value in given))


async def _rows(connection: Any, query: str, *parameters: Any) -> list[InstanceRow]:
    return [InstanceRow(*row) for row in await connection.fetch(query, *parameters)]


async def count_instances(connection: Any) -> dict[str, int]:
    query = "select status, count(*) from instances group by status"
    return dict(await connection.fetch(query))


async def count_blocked(connection: Any) -> dict[str, int]:
    query = "select blocked, count(*) from instances where blocked is not null group by blocked"
    return dict(await connection.fetch(query))


_DEPTHS = f"""
with clock as materialized (select {NOW} as now)
select
    (select count(*) from instances, clock where owner is null and due_ms <= clock.now),
    (select count(*) from inbox where queue is null),
    (select count(*) from inbox where queue is not null),
    (select count(*) from timers),
    (
        select coalesce(json_object_agg(name, json_build_array(waiting, later, running)), '{{}}')
        from (
            select name,
                count(*) filter (where owner is null and due_ms <= clock.now) as waiting,
                count(*) filter (where owner is null and due_ms > clock.now) as later,
                count(*) filter (where owner is not null) as running
            from activities, clock group by name
        ) as counted
    )
"""


async def depths(connection: Any, now_ms: int | None) -> Depths:
    *counts, activities = await connection.fetchrow(_DEPTHS, now_ms)
    by_name = msgspec.json.decode(activities, type=dict[str, tuple[int, int, int]])
    return Depths(*[*counts, by_name])


async def queue_items(
    connection: Any, key: int, queue: str, after: int, limit: int
) -> list[Message]:
    query = (
        "select seq, accepted_ms, body from inbox "
        "where key = $1 and queue = $2 and seq > $3 order by seq limit $4"
    )
    return [Message(*row) for row in await connection.fetch(query, key, queue, after, limit)]


async def list_activities(connection: Any, key: int) -> list[ActivityRow]:
    query = (
        "select execution_id, event_id, name, owner, attempt, due_ms, error from activities "
        "where key = $1 order by execution_id, event_id"
    )
    return [ActivityRow(*row) for row in await connection.fetch(query, key)]


async def get_execution(connection: Any, key: int, execution_id: int) -> ExecutionRow | None:
    query = f"select {EXECUTION_COLUMNS} from executions as e where key = $1 and execution_id = $2"
    row = await connection.fetchrow(query, key, execution_id)
    return None if row is None else ExecutionRow(*row)


async def list_executions(connection: Any, instance_id: str) -> list[ExecutionRow]:
    query = (
        f"select {EXECUTION_COLUMNS} from instances as i join executions as e on e.key = i.key "
        "where i.instance_id = $1 order by e.execution_id"
    )
    return [ExecutionRow(*row) for row in await connection.fetch(query, instance_id)]


_HISTORIES = """
select w.place - 1, h.data from unnest($1::bigint[], $2::bigint[])
    with ordinality as w (key, execution_id, place)
join history as h on h.key = w.key and h.execution_id = w.execution_id
order by w.place, h.event_id
"""


async def histories(connection: Any, wanted: Sequence[tuple[int, int]]) -> list[list[bytes]]:
    found: list[list[bytes]] = [[] for _ in wanted]
    keys, executions = [key for key, _ in wanted], [execution for _, execution in wanted]
    for place, data in await connection.fetch(_HISTORIES, keys, executions):
        found[place].append(data)
    return found


_HISTORY = """
select i.key, array(
    select h.data from history as h
    where h.key = i.key and h.execution_id = coalesce($2, i.execution_id) and h.event_id > $3
    order by h.event_id limit $4
) from instances as i where i.instance_id = $1
"""


async def read_history(
    connection: Any, instance_id: str, execution_id: int | None, after: int, limit: int
) -> list[bytes]:
    row = await connection.fetchrow(_HISTORY, instance_id, execution_id, after, limit)
    if row is None:
        raise InstanceNotFound(f"there is no instance {instance_id!r}; check the id and the store")
    events: list[bytes] = row[1]
    return events


# A process that leaves lets the lease be over at once: that is no sign of life.
_NODES = """
select n.node_id, n.host, n.pid, n.started_ms, n.lease_until_ms,
    greatest(n.started_ms, n.lease_until_ms - n.lease_ms),
    (select count(*) from instances as i where i.owner = n.node_id),
    (select count(*) from activities as a where a.owner = n.node_id)
from nodes as n order by n.node_id
"""


async def nodes(connection: Any) -> list[NodeRow]:
    return [NodeRow(*row) for row in await connection.fetch(_NODES)]


# Snapshots.

_PARTS = {
    "executions": (
        "select key, execution_id, version, status, started_ms, ended_ms, input, output, error "
        "from executions where key = any($1::bigint[]) order by key, execution_id"
    ),
    "messages": (
        "select key, accepted_ms, body, queue from inbox where key = any($1::bigint[]) "
        "order by key, seq"
    ),
    "activities": (
        "select key, event_id, name, input, options, attempt, due_ms, error from activities "
        "where key = any($1::bigint[]) order by key, event_id"
    ),
    "timers": (
        "select key, event_id, fire_at_ms from timers where key = any($1::bigint[]) "
        "order by key, event_id"
    ),
    "event_ids": (
        "select key, event_id from event_ids where key = any($1::bigint[]) order by key, number"
    ),
}
_EVENTS = (
    "select key, execution_id, data from history where key = any($1::bigint[]) "
    "order by key, execution_id, event_id"
)
_OWN = (
    "select key, instance_id, incarnation, name, version, status, execution_id, nesting, "
    "created_ms, finished_ms, due_ms, parent_instance, parent_incarnation, parent_execution, "
    "parent_event from instances where key = any(array(select tree($1))) order by key"
)


async def snapshots(connection: Any, instance_id: str) -> list[Snapshot]:
    # So that all of it is of one moment.
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        instances = await connection.fetch(_OWN, instance_id)
        keys = [row["key"] for row in instances]
        parts: dict[str, defaultdict[int, list[list[Any]]]] = {}
        for name, query in _PARTS.items():
            parts[name] = defaultdict(list)
            for key, *values in await connection.fetch(query, keys):
                parts[name][key].append(values)
        events: defaultdict[tuple[int, int], list[bytes]] = defaultdict(list)
        for key, execution_id, data in await connection.fetch(_EVENTS, keys):
            events[key, execution_id].append(data)
    return [
        _snapshot(row, {n: part[row["key"]] for n, part in parts.items()}, events)
        for row in instances
    ]


def _snapshot(
    row: Any, parts: dict[str, list[list[Any]]], events: dict[tuple[int, int], list[bytes]]
) -> Snapshot:
    key, *own = row
    link = own[10:]
    parent = None if link[0] is None else ParentLink(*link)
    executions = (
        ExecutionSnapshot(*[*values, tuple(events[key, values[0]])])
        for values in parts["executions"]
    )
    belongings: list[Any] = [
        tuple(executions),
        tuple(MessageSnapshot(*message) for message in parts["messages"]),
        tuple(ActivitySnapshot(*item) for item in parts["activities"]),
        tuple(NewTimer(*timer) for timer in parts["timers"]),
        tuple(known for (known,) in parts["event_ids"]),
    ]
    return Snapshot(*[*own[:6], parent, *own[6:10], *belongings])
