"""Taking work: due instances and unclaimed activities. Runs inside the batch's transaction."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import apsw
import msgspec

from perdure.limits import CLAIMS_SHARED_MAX
from perdure.providers.contract import (
    Acquired,
    ActivityClaim,
    Capabilities,
    ClaimActivities,
    Claimed,
    ClaimedActivities,
    ClaimInstances,
    Message,
    NewTimer,
    ParentLink,
)
from perdure.providers.sqlite.packing import query

_CLAIMS_ENDLESS = 1 << 62


@lru_cache(maxsize=64)
def pairs_json(capabilities: Capabilities) -> str:
    """The pairs that an instance may have to be runnable, as JSON: with version null, any of the
    names will do."""
    names = {name for name, _ in capabilities}
    pairs = [*sorted(capabilities), *((name, None) for name in sorted(names))]
    return msgspec.json.encode(pairs).decode()


@lru_cache(maxsize=64)
def names_json(names: frozenset[str]) -> str:
    return msgspec.json.encode(sorted(names)).decode()


# One descent of the index for each pair: instances that nobody here can run cost nothing.
_DUE = """
select json_group_array(key order by due_ms, key) from (
    select i.key, i.due_ms from json_each(:pairs) as pair cross join instances as i
    where i.key in (
        select key from instances
        where name = pair.value ->> 0 and version is pair.value ->> 1
            and owner is null and due_ms <= :now and attempt >= :least and attempt < :most
        order by due_ms, key limit :limit
    )
    order by i.due_ms, i.key limit :limit
)
"""
_TAKE = """
update instances set owner = ?, token = lower(hex(randomblob(16))), attempt = attempt + 1
where key in (select value from json_each(?))
"""
_ACQUIRED = query(
    "i.key, i.instance_id, i.incarnation, i.name, i.version, i.execution_id, i.token, i.attempt, "
    "i.parent_instance, i.parent_incarnation, i.parent_execution, i.parent_event, "
    "i.nesting, i.mail, i.external, i.queued",
    "e.input",
    "from json_each(?) as taken join instances as i on i.key = taken.value "
    "join executions as e on e.key = i.key and e.execution_id = i.execution_id order by taken.id",
)
_MESSAGES = query(
    "m.key, m.seq, m.accepted_ms",
    "m.body",
    "from json_each(?) as taken join inbox as m on m.key = taken.value "
    "and m.queue is null order by taken.id, m.seq",
)
_TIMERS = query(
    "t.key, t.event_id, t.fire_at_ms",
    "",
    "from json_each(?) as taken join timers as t on t.key = taken.value "
    "order by taken.id, t.event_id",
)


def claim_instances(connection: apsw.Connection, claim: ClaimInstances, now: int) -> Claimed:
    keys: str = connection.execute(
        _DUE,
        {
            "pairs": pairs_json(claim.capabilities),
            "now": now,
            "least": CLAIMS_SHARED_MAX if claim.alone else 0,
            "most": _CLAIMS_ENDLESS if claim.alone else CLAIMS_SHARED_MAX,
            "limit": min(claim.limit, 1) if claim.alone else claim.limit,
        },
    ).get
    if keys == "[]":
        return Claimed(())
    connection.execute(_TAKE, (claim.node_id, keys))
    messages: dict[int, list[Message]] = {}
    for key, *values in _MESSAGES.rows(connection, (keys,)):
        messages.setdefault(key, []).append(Message(*values))
    timers: dict[int, list[NewTimer]] = {}
    for key, *values in _TIMERS.rows(connection, (keys,)):
        timers.setdefault(key, []).append(NewTimer(*values))
    return Claimed(
        tuple(
            _acquired(row, messages.get(row[0], ()), timers.get(row[0], ()))
            for row in _ACQUIRED.rows(connection, (keys,))
        )
    )


def _acquired(row: list[Any], messages: Any, timers: Any) -> Acquired:
    key, instance_id, incarnation, name, version, execution_id, token, attempt = row[:8]
    parent = None if row[8] is None else ParentLink(*row[8:12])
    nesting, mail, external, queued, data = row[12:]
    return Acquired(
        key,
        instance_id,
        incarnation,
        name,
        version,
        execution_id,
        token,
        attempt,
        data,
        parent,
        nesting,
        mail,
        external,
        tuple(messages),
        tuple(timers),
        queued,
    )


_QUEUED = """
select json_group_array(json_array(key, execution_id, event_id) order by due_ms, key,
    execution_id, event_id) from (
    select a.* from json_each(:names) as named cross join activities as a
    where (a.key, a.execution_id, a.event_id) in (
        select key, execution_id, event_id from activities
        where name = named.value and owner is null and due_ms <= :now
            and claims >= :least and claims < :most
        order by due_ms, key, execution_id, event_id limit :limit
    )
    order by a.due_ms, a.key, a.execution_id, a.event_id limit :limit
)
"""
_CLAIM = """
update activities set owner = ?, attempt = attempt + 1, claims = claims + 1
where (key, execution_id, event_id) in (
    select value ->> 0, value ->> 1, value ->> 2 from json_each(?)
)
"""
_CLAIMED = query(
    "a.key, i.instance_id, i.incarnation, a.execution_id, a.event_id, a.name, a.attempt, a.claims",
    "a.input, a.options",
    "from json_each(?) as taken join activities as a on a.key = taken.value ->> 0 "
    "and a.execution_id = taken.value ->> 1 and a.event_id = taken.value ->> 2 "
    "join instances as i on i.key = a.key order by taken.id",
)


def claim_activities(
    connection: apsw.Connection, claim: ClaimActivities, now: int
) -> ClaimedActivities:
    limit = min(claim.limit, 1) if claim.alone else claim.limit
    queued = msgspec.json.decode(
        connection.execute(
            _QUEUED,
            {
                "names": names_json(claim.names),
                "now": now,
                "least": CLAIMS_SHARED_MAX if claim.alone else 0,
                "most": _CLAIMS_ENDLESS if claim.alone else CLAIMS_SHARED_MAX,
                # One more than wanted tells whether there are more.
                "limit": limit + 1,
            },
        ).get
    )
    taken, more = queued[:limit], len(queued) > limit
    if not taken:
        return ClaimedActivities((), more)
    ids = msgspec.json.encode(taken).decode()
    connection.execute(_CLAIM, (claim.node_id, ids))
    return ClaimedActivities(
        tuple(
            ActivityClaim(*[*place, data, attempt, claims, options])
            for *place, attempt, claims, data, options in _CLAIMED.rows(connection, (ids,))
        ),
        more,
    )
