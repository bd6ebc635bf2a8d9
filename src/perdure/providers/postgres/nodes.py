"""Which other nodes are dead."""

from __future__ import annotations

from typing import Any, NamedTuple

from perdure.providers.postgres.reads import NOW

LOOKS_APART_MS = 2_000

# A missing lock says something only if it was taken on this very server, and not while all are
# still coming back after its start.
_OTHERS = f"""
select n.node_id, n.lease_until_ms, clock.now, n.lease_until_ms < clock.now,
    n.server = pg_postmaster_start_time()::text
    and clock_timestamp() > pg_postmaster_start_time() + n.lease_ms * interval '1 ms'
    and not exists (
        select 1 from pg_locks as l
        where l.locktype = 'advisory' and l.granted and l.objsubid = 1
            and l.classid = ((n.lock_id >> 32) & 4294967295)::oid
            and l.objid = (n.lock_id & 4294967295)::oid
            and l.database = (select oid from pg_database where datname = current_database())
    )
from nodes as n, {NOW} as clock (now) where n.node_id <> $2 order by n.node_id
"""


class _Look(NamedTuple):
    at_ms: int
    lease_until_ms: int


class Watcher:
    """Looks after the other nodes, and remembers what it saw."""

    def __init__(self) -> None:
        self._missing: dict[str, _Look] = {}

    async def reap(self, connection: Any, node_id: str, now_ms: int | None) -> list[str]:
        """Forget and free the others that are dead: those whose lease is over, and those whose
        lock was missing at two looks with no heartbeat between. Returns their ids."""
        missing: dict[str, _Look] = {}
        dead: list[tuple[str, int]] = []
        for other, lease_until_ms, now, is_over, is_unlocked in await connection.fetch(
            _OTHERS, now_ms, node_id
        ):
            before = self._missing.get(other)
            if is_over:
                dead.append((other, lease_until_ms))
            elif is_unlocked and before is not None and before.lease_until_ms == lease_until_ms:
                if now - before.at_ms >= LOOKS_APART_MS:
                    dead.append((other, lease_until_ms))
                missing[other] = before
            elif is_unlocked:
                missing[other] = _Look(now, lease_until_ms)
        self._missing = missing
        return [
            other
            for other, lease_until_ms in dead
            if await connection.fetchval("select forget($1, $2)", other, lease_until_ms)
        ]
