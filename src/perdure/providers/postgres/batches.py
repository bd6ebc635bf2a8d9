"""A batch inside its transaction: lock and look, decide, put; then the claims.

One round trip each for deletes, the look, the put and each claim, whatever the size of the batch.
With BEGIN and COMMIT a batch of turns costs four, a claim in it one more.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import asyncpg
import msgspec

from perdure.limits import CLAIMS_SHARED_MAX
from perdure.providers.contract import (
    ORDER,
    Acquired,
    ActivityClaim,
    ClaimActivities,
    Claimed,
    ClaimedActivities,
    ClaimInstances,
    Deleted,
    DeleteInstance,
    Message,
    NewTimer,
    NotFound,
    Operation,
    Outcome,
    Pruned,
    Undeletable,
)
from perdure.providers.postgres.decisions import decide
from perdure.providers.postgres.hints import Hint
from perdure.providers.postgres.rows import Instance
from perdure.providers.postgres.sheet import PUT, Sheet
from perdure.providers.postgres.wanted import LOOK, Wanted

_encode = msgspec.msgpack.Encoder().encode
_CLAIMS_ENDLESS = 1 << 62

_REMOVE = """
select r.what, r.other, r.gone from unnest($1::text[], $2::text[], $3::boolean[])
    with ordinality as w (id, incarnation, force, place)
cross join lateral remove(w.id, w.incarnation, w.force) as r order by w.place
"""
_STATUS = "select coalesce(pg_xact_status($1::text::xid8), 'aborted')"
_GIVE_UP = """
insert into writers as w (writer, batch, at_ms, fence) values ($1, 0, $3, $2)
    on conflict (writer) do update set fence = excluded.fence returning batch
"""
_CLAIM_INSTANCES = "select * from claim_instances($1, $2, $3, $4, $5, $6, $7, $8)"
_CLAIM_ACTIVITIES = "select * from claim_activities($1, $2, $3, $4, $5, $6)"


@dataclass
class Applied:
    """What became of a batch, as long as its transaction is committed. xid: the transaction's id,
    or None if nothing was written. seen_at_s: when now_ms arrived here, by the monotonic clock.
    marked: whether the writer's row has the number of the batch.
    keys: fresh ones. hint: what others are to be told."""

    outcomes: list[Outcome]
    now_ms: int
    seen_at_s: float
    xid: str | None = None
    marked: bool = False
    keys: list[int] = field(default_factory=list)
    hint: Hint = field(default_factory=Hint)


class Mark(NamedTuple):
    """A writer, of which there is one at a time of that name, and the number of its batch."""

    writer: str
    batch: int


async def apply(
    connection: Any, batch: Sequence[Operation], mark: Mark, now_ms: int | None, more_keys: int
) -> Applied:
    """Do the work of a batch in the transaction that is open on the connection. Its values have
    been checked.

    now_ms: the time, or None for the server's. more_keys: how many keys to reserve.
    """
    order = ORDER
    ordered = sorted(enumerate(batch), key=lambda item: order[type(item[1])])
    found: dict[int, Any] = {}
    deletes = [(place, op) for place, op in ordered if type(op) is DeleteInstance]
    if deletes:
        await _remove(connection, deletes, found)
    wanted = Wanted(op for _, op in ordered)
    looked = await connection.fetchrow(LOOK, *wanted.parameters(now_ms, more_keys))
    seen_at_s = time.monotonic()
    sheet = Sheet(looked)
    for place, operation in ordered:
        if place not in found:
            found[place] = decide(sheet, operation)
    done = Applied([], sheet.now_ms, seen_at_s, hint=sheet.hint)
    done.hint.ended |= bool(deletes)
    lists = sheet.parameters()
    if deletes or any(lists):
        pruned, done.xid = await connection.fetchrow(PUT, *lists, *mark, sheet.now_ms)
        done.marked = True
        _note_pruned(pruned, found)
    for place, operation in ordered:
        await _claim(connection, place, operation, found, done, sheet.now_ms)
    if done.xid is not None and not done.marked:
        await connection.execute(marking(mark, sheet.now_ms))
        done.marked = True
    done.keys = sheet.fresh[::-1]
    done.outcomes = [found[place] for place in range(len(batch))]
    return done


def is_claim(operation: Operation) -> bool:
    return type(operation) is ClaimInstances or type(operation) is ClaimActivities


def marking(mark: Mark, now_ms: int) -> str:
    """The statement that marks a transaction of claims, for the round trip that begins it. After a
    crash another transaction may have the number of one that was lost with it, and two nodes would
    then believe that they have the same work."""
    return (
        "insert into writers as w (writer, batch, at_ms) "
        f"values ('{mark.writer}', {mark.batch}, {now_ms}) on conflict (writer) "
        "do update set batch = excluded.batch, at_ms = excluded.at_ms"
    )


async def claim(connection: Any, batch: Sequence[Operation], now_ms: int | None) -> Applied:
    """Do the work of a batch of claims, for which nothing need be looked at first. Its mark is
    there.

    now_ms: the time, or None for the server's.
    """
    found: dict[int, Any] = {}
    done = Applied([], 0, 0.0, marked=True)
    for place, operation in sorted(enumerate(batch), key=lambda item: ORDER[type(item[1])]):
        await _claim(connection, place, operation, found, done, now_ms)
    done.outcomes = [found[place] for place in range(len(batch))]
    return done


def check_values(batch: Sequence[Operation]) -> None:
    """Raises one of VALUE for what cannot be stored, also where it would not have been written."""
    _encode(batch)


async def _remove(
    connection: Any, deletes: list[tuple[int, DeleteInstance]], found: dict[int, Any]
) -> None:
    operations = [operation for _, operation in deletes]
    rows = await connection.fetch(
        _REMOVE,
        [operation.instance_id for operation in operations],
        [operation.incarnation for operation in operations],
        [operation.force for operation in operations],
    )
    for (place, _), (what, other, gone) in zip(deletes, rows, strict=True):
        if what == "deleted":
            found[place] = Deleted(gone)
        else:
            found[place] = NotFound() if what == "missing" else Undeletable(what, other)


def _note_pruned(pruned: list[Any], found: dict[int, Any]) -> None:
    for place, outcome in found.items():
        if type(outcome) is int:
            _, executions, events = pruned[outcome]
            found[place] = Pruned(executions, events)


async def _claim(
    connection: Any,
    place: int,
    operation: Operation,
    found: dict[int, Any],
    done: Applied,
    now_ms: int | None,
) -> None:
    if isinstance(operation, ClaimInstances):
        found[place], xid = await _claim_instances(connection, operation, now_ms)
    elif isinstance(operation, ClaimActivities):
        found[place], xid = await _claim_activities(connection, operation, now_ms)
    else:
        return
    done.xid = xid or done.xid


def _range(claim: ClaimInstances | ClaimActivities) -> tuple[int, int, int]:
    """Attempts from, attempts below, and how many at most."""
    if claim.alone:
        return CLAIMS_SHARED_MAX, _CLAIMS_ENDLESS, min(claim.limit, 1)
    return 0, CLAIMS_SHARED_MAX, claim.limit


async def _claim_instances(
    connection: Any, claim: ClaimInstances, now_ms: int | None
) -> tuple[Claimed, str | None]:
    pairs = sorted(claim.capabilities)
    taken, current, messages, timers, xid = await connection.fetchrow(
        _CLAIM_INSTANCES,
        claim.node_id,
        [name for name, _ in pairs],
        [version for _, version in pairs],
        sorted({name for name, _ in pairs}),
        now_ms,
        *_range(claim),
    )
    inputs = {values[0]: values["input"] for values in current or ()}
    mail: defaultdict[int, list[Message]] = defaultdict(list)
    for seq, key, accepted_ms, body, _ in messages or ():
        mail[key].append(Message(seq, accepted_ms, body))
    waiting: defaultdict[int, list[NewTimer]] = defaultdict(list)
    for key, _, event_id, fire_at_ms in timers or ():
        waiting[key].append(NewTimer(event_id, fire_at_ms))
    instances = [Instance(*values) for values in taken or ()]
    acquired = [_acquired(i, inputs[i.key], mail[i.key], waiting[i.key]) for i in instances]
    return Claimed(tuple(acquired)), xid


def _acquired(
    instance: Instance, data: bytes, messages: list[Message], timers: list[NewTimer]
) -> Acquired:
    assert instance.token is not None
    return Acquired(
        key=instance.key,
        instance_id=instance.instance_id,
        incarnation=instance.incarnation,
        name=instance.name,
        version=instance.version,
        execution_id=instance.execution_id,
        token=instance.token,
        attempt=instance.attempt,
        input=data,
        parent=instance.parent,
        nesting=instance.nesting,
        mail=instance.mail,
        external=instance.external,
        messages=tuple(messages),
        timers=tuple(timers),
        queued=instance.queued,
    )


async def _claim_activities(
    connection: Any, claim: ClaimActivities, now_ms: int | None
) -> tuple[ClaimedActivities, str | None]:
    taken, holders, more, xid = await connection.fetchrow(
        _CLAIM_ACTIVITIES, claim.node_id, sorted(claim.names), now_ms, *_range(claim)
    )
    owners = {values["key"]: values for values in holders or ()}
    activities = tuple(
        ActivityClaim(
            key=item["key"],
            instance_id=owners[item["key"]]["instance_id"],
            incarnation=owners[item["key"]]["incarnation"],
            execution_id=item["execution_id"],
            event_id=item["event_id"],
            name=item["name"],
            input=item["input"],
            attempt=item["attempt"],
            claims=item["claims"],
            options=item["options"],
        )
        for item in taken or ()
    )
    return ClaimedActivities(activities, more=more), xid


async def became_of(connection: Any, xid: str, mark: Mark | None) -> str:
    """What became of a transaction: "committed", "aborted" or "in progress".

    After a crash the server may give a number again that it gave to a transaction of which nothing
    had reached its disk. So a batch counts as committed only if the writer's row says so too.
    """
    try:
        status: str = await connection.fetchval(_STATUS, xid)
    except asyncpg.InvalidParameterValueError:
        # A number that it has not given yet.
        return "aborted"
    if mark is None or status == "in progress":
        return status
    known = await connection.fetchval("select batch from writers where writer = $1", mark.writer)
    return "committed" if known == mark.batch else "aborted"


async def give_up(connection: Any, mark: Mark) -> str:
    """What became of a batch that went in one statement: "committed" or "aborted".

    It waits for the statement if that is running, and one that has yet to arrive will do nothing.
    """
    now_ms = int(time.time() * 1000)
    known = await connection.fetchval(_GIVE_UP, mark.writer, mark.batch, now_ms)
    return "committed" if known == mark.batch else "aborted"
