"""What one node on PostgreSQL costs its server: WAL, rows and bytes, connections, idle queries."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from stores import PostgresStores
from workloads import act, sequence

from perdure import Runtime
from perdure.providers.postgres.connections import Database, close

INSTANCES = 2_000
STEPS = 5
IDLE_S = 10
TABLES = ("instances", "executions", "history")
"""What stays of an instance that has ended."""

_WAL = "select pg_current_wal_lsn() - '0/0'"
_CONNECTIONS = """
select count(*) from pg_stat_activity
where application_name = 'perdure' and datname = current_database() and pid <> pg_backend_pid()
"""
_TRANSACTIONS = """
select xact_commit + xact_rollback from pg_stat_database where datname = current_database()
"""


def footprint(stores: PostgresStores) -> dict[str, Any]:
    """Of INSTANCES instances of STEPS sequential activities, and of a node with nothing to do."""
    with stores.fresh() as url:
        return asyncio.run(_measured(stores, url))


async def _measured(stores: PostgresStores, url: str) -> dict[str, Any]:
    looking = await Database(url).connect()
    try:
        async with Runtime(url, [act, sequence]) as runtime:
            idle = await _idle(stores, looking)
            before = await looking.fetchval(_WAL)
            handles = await asyncio.gather(
                *(runtime.client.start_orchestration(sequence, STEPS) for _ in range(INSTANCES))
            )
            await asyncio.gather(*(handle.result() for handle in handles))
            wal_bytes = await looking.fetchval(_WAL) - before
            connections = await looking.fetchval(_CONNECTIONS)
        kept = {table: await _kept(looking, table) for table in TABLES}
    finally:
        await close(looking)
    return {
        "wal_bytes_per_activity": int(wal_bytes / INSTANCES / STEPS),
        "rows_per_instance": sum(rows for rows, _ in kept.values()) / INSTANCES,
        "bytes_per_instance": round(sum(size for _, size in kept.values()) / INSTANCES),
        "connections": connections,
        **idle,
    }


async def _kept(looking: Any, table: str) -> tuple[int, int]:
    """Rows and bytes of a table with its indexes, after a vacuum."""
    await looking.execute(f"vacuum {table}")
    rows = await looking.fetchval(f"select count(*) from {table}")
    return rows, await looking.fetchval("select pg_total_relation_size($1::text::regclass)", table)


async def _idle(stores: PostgresStores, looking: Any) -> dict[str, Any]:
    """What a node asks of the server that has nothing to do; its own connections included."""
    await asyncio.sleep(2)
    cpu, transactions, began = stores.cpu_s(), await _transactions(looking), time.perf_counter()
    connections = await looking.fetchval(_CONNECTIONS)
    await asyncio.sleep(IDLE_S)
    took = time.perf_counter() - began
    figures = {
        "idle_connections": connections,
        "idle_transactions_per_s": (await _transactions(looking) - transactions) / took,
    }
    now = stores.cpu_s()
    if cpu is not None and now is not None:
        figures["idle_server_percent"] = (now - cpu) / took * 100
    return figures


async def _transactions(looking: Any) -> int:
    await looking.execute("select pg_stat_clear_snapshot()")
    number: int = await looking.fetchval(_TRANSACTIONS)
    return number
