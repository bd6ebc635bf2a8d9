"""The limit program on PostgreSQL: BEGIN, one prepared statement with all the rows, COMMIT.

The settings of the connection are the engine's, those of the server are whatever they are for both.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import rows

from perdure.providers.postgres.connections import Database, close

_TURNS = """
with gone as (
    delete from activities as a using unnest($1::bigint[], $2::bigint[]) as w (key, event_id)
        where a.key = w.key and a.execution_id = 1 and a.event_id = w.event_id
), written as (
    insert into history
        select key, 1, event_id, data
        from unnest($3::bigint[], $4::bigint[], $5::bytea[]) as w (key, event_id, data)
)
insert into activities (
    key, execution_id, event_id, name, input, owner, attempt, claims, due_ms
) select key, 1, event_id, 'act', input, $8, 1, 1, $9
    from unnest($1::bigint[], $6::bigint[], $7::bytea[]) as w (key, event_id, input)
"""
_INSTANCE = """
insert into instances (
    key, instance_id, incarnation, name, version, status, execution_id, nesting, created_ms,
    attempt, mail, external, queued
) values ($1, $2, '0', 'generations', '1', 'running', 1, 0, $3, 0, 0, 0, 0)
"""
_EXECUTION = """
insert into executions (key, execution_id, version, status, input, started_ms)
    values ($1, 1, '1', 'running', '1', $2)
"""
_RENEWAL = """
with written as (
    insert into history values ($1, $2::bigint, 2, $3), ($1, $2::bigint + 1, 1, $4)
), ended as (
    update executions set status = 'continued_as_new', ended_ms = $5
        where key = $1 and execution_id = $2::bigint
), begun as (
    insert into executions (key, execution_id, version, status, input, started_ms)
        values ($1, $2::bigint + 1, '1', 'running', '1', $5)
), current as (
    update instances set execution_id = $2::bigint + 1 where key = $1
), forgotten as (
    delete from history where key = $1 and execution_id <= $6
)
delete from executions where key = $1 and execution_id <= $6
"""


class PostgresLimit:
    """A bare connection to a store that the engine has created."""

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self._connection: Any = None
        self._turns: Any = None
        self._renewal: Any = None
        self._now = int(time.time() * 1000)
        self._event_id = 2

    async def open(self) -> None:
        self._connection = await self._database.connect()
        self._turns = await self._connection.prepare(_TURNS)
        self._renewal = await self._connection.prepare(_RENEWAL)

    async def close(self) -> None:
        await close(self._connection)

    async def turns(self, keys: Sequence[int]) -> None:
        """One transaction: a middle turn of each of these instances."""
        event_id = self._event_id
        self._event_id += 2
        number = len(keys)
        values = (
            keys,
            [event_id - 1] * number,
            [key for key in keys for _ in range(2)],
            [event_id, event_id + 1] * number,
            [rows.EVENT_DONE, rows.EVENT_NEXT] * number,
            [event_id + 1] * number,
            [rows.INPUT] * number,
            rows.NODE,
            self._now,
        )
        await self._connection.execute("begin")
        await self._turns.fetch(*values)
        await self._connection.execute("commit")

    async def begin_life(self, key: int) -> None:
        """An instance with its first execution, which `renewal` is to follow."""
        await self._connection.execute(_INSTANCE, key, f"i-{key}", self._now)
        await self._connection.execute(_EXECUTION, key, self._now)

    async def renewal(self, key: int, execution_id: int) -> None:
        """One transaction: an execution ends, the next begins, and the one before the last goes."""
        gone = execution_id + 1 - rows.KEPT
        values = key, execution_id, rows.EVENT_ENDED, rows.EVENT_STARTED, self._now, gone
        await self._connection.execute("begin")
        await self._renewal.fetch(*values)
        await self._connection.execute("commit")
