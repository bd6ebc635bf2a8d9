"""Which other nodes are dead."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from perdure.providers.postgres.reads import NOW
from perdure.providers.postgres.schema import SERVER

LOOKS_APART_MS = 2_000
GAP_S = 3.0
"""A node looks every second. Longer without a look, and there was an outage, or a pause."""
LEFT = 0
"""The end of the lease of a node that has said good-bye."""

# After a start of the server or a promotion nobody could renew a lease or has its lock yet, so that
# for the length of a lease since the first look that found another server nothing says anything,
# but that a node has left. A lock says something only on the server that it was taken on.
_OTHERS = f"""
with moved as (
    update perdure_schema set server = {SERVER}, server_since = clock_timestamp()
    where server is distinct from {SERVER}
)
select n.node_id, n.lease_until_ms, n.lease_ms, clock.now, steady.steady,
    n.lock_id is not null and n.server = {SERVER} and not exists (
        select 1 from pg_locks as l
        where l.locktype = 'advisory' and l.granted and l.objsubid = 1
            and l.classid = ((n.lock_id >> 32) & 4294967295)::oid
            and l.objid = (n.lock_id & 4294967295)::oid
            and l.database = (select oid from pg_database where datname = current_database())
    )
from nodes as n, {NOW} as clock (now), perdure_schema as p cross join lateral (
    select p.server = {SERVER} and (
        p.server_since is null
        or clock_timestamp() > p.server_since + n.lease_ms * interval '1 ms'
    )
) as steady (steady)
where n.node_id <> $2 order by n.node_id
"""


class _Look(NamedTuple):
    at_ms: int
    lease_until_ms: int


class Watcher:
    """Looks after the other nodes, and remembers what it saw.

    monotonic_s: the clock by which it notices that it has not looked for a while.
    """

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._missing: dict[str, _Look] = {}
        self._looked_at_s: float | None = None
        self._back_at_s: float | None = None

    async def reap(self, connection: Any, node_id: str, now_ms: int | None) -> list[str]:
        """Forget and free the others that are dead: those that have left, those whose lease is
        over, and those whose lock was missing at two looks with no heartbeat between. Returns
        their ids."""
        rows = await connection.fetch(_OTHERS, now_ms, node_id)
        missing: dict[str, _Look] = {}
        dead: list[tuple[str, int]] = []
        steady_s = self._look()
        for other, lease_until_ms, lease_ms, now, is_steady, is_unlocked in rows:
            before = self._missing.get(other)
            if lease_until_ms == LEFT or (
                lease_until_ms < now and is_steady and steady_s * 1000 > lease_ms
            ):
                dead.append((other, lease_until_ms))
            elif not (is_unlocked and is_steady):
                continue
            elif before is not None and before.lease_until_ms == lease_until_ms:
                if now - before.at_ms >= LOOKS_APART_MS:
                    dead.append((other, lease_until_ms))
                missing[other] = before
            else:
                missing[other] = _Look(now, lease_until_ms)
        self._missing = missing
        return [
            other
            for other, lease_until_ms in dead
            if await connection.fetchval("select forget($1, $2)", other, lease_until_ms)
        ]

    def _look(self) -> float:
        """How long looks have followed each other. What kept this process from the store may have
        kept the others from it, who then could not renew their leases either."""
        now_s = self._monotonic_s()
        if self._looked_at_s is not None and now_s - self._looked_at_s > GAP_S:
            self._back_at_s = now_s
        self._looked_at_s = now_s
        return math.inf if self._back_at_s is None else now_s - self._back_at_s
