"""A primary with a synchronous standby dies under load; the standby takes its place."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from kit import history, until, until_async

from perdure import Client, Options, OrchestrationContext, Runtime, activity, orchestration
from perdure.providers.postgres.connections import Database
from postgres_proxy import Proxy
from postgres_server import Server, new_schema, with_schema

pytestmark = pytest.mark.slow

LEASE_S = 5.0
"""A heartbeat comes every two seconds."""


@activity
async def add(left: int, right: int) -> int:
    await asyncio.sleep(0.01)
    return left + right


@orchestration
async def adding(ctx: OrchestrationContext, number: int) -> int:
    for each in range(5):
        number = await add(number, each)
    return number


EVENTS = 12


@pytest.fixture
def pair() -> Iterator[tuple[Server, Server]]:
    """A primary, and a standby that has whatever the primary has acknowledged."""
    primary = Server()
    try:
        standby = Server(primary)
        try:
            asyncio.run(make_synchronous(primary))
            yield primary, standby
        finally:
            standby.close()
    finally:
        primary.close()


@contextlib.asynccontextmanager
async def admin(server: Server) -> AsyncIterator[Any]:
    connection = await Database(server.url).connect()
    try:
        yield connection
    finally:
        await connection.close()


async def make_synchronous(primary: Server) -> None:
    async with admin(primary) as connection:
        # Not before the copy was made: the standby will be a primary without one.
        await connection.execute("alter system set synchronous_standby_names = 'standby'")
        await connection.execute("select pg_reload_conf()")
        query = "select sync_state = 'sync' from pg_stat_replication"
        await until_async(lambda: connection.fetchval(query))


async def promote(standby: Server) -> None:
    async with admin(standby) as connection:
        assert await connection.fetchval("select pg_promote()")


class Load:
    """Starts one instance after the other as long as it is let; started: what was acknowledged."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.started: list[str] = []
        self.over = False

    async def run(self, name: str) -> None:
        for number in range(10**6):
            if self.over:
                return
            instance_id = f"{name}-{number}"
            handle = await self._client.start_orchestration(adding, number, instance_id=instance_id)
            self.started.append(instance_id)
            assert await handle.result() == number + 10

    async def more(self, number: int) -> None:
        enough = len(self.started) + number
        await until(lambda: len(self.started) >= enough)


async def check(client: Client, started: list[str]) -> None:
    for instance_id in started:
        ended = await client.wait_for_orchestration(instance_id)
        assert ended.output == int(instance_id.partition("-")[2]) + 10
        assert len(await history(client, instance_id)) == EVENTS


async def fail_over(url: str, kill: Any) -> None:
    """Two nodes under load while `kill` ends the primary and promotes the standby."""
    options = Options(lease_s=LEASE_S)
    async with (
        Runtime(url, (add, adding), options=options) as first,
        Runtime(url, (add, adding), options=options) as second,
    ):
        nodes = first.node_id, second.node_id
        loads = [Load(first.client), Load(second.client)]
        async with asyncio.TaskGroup() as group:
            for name, load in zip("ab", loads, strict=True):
                for number in range(6):
                    group.create_task(load.run(f"{name}{number}"))
            for load in loads:
                await load.more(20)
            await kill()
            for load in loads:
                await load.more(20)
                load.over = True
        await check(first.client, [each for load in loads for each in load.started])
        assert (first.node_id, second.node_id) == nodes
        assert await known_nodes(url) == sorted(nodes)


async def known_nodes(url: str) -> list[str]:
    connection = await Database(url).connect()
    try:
        rows = await connection.fetch("select node_id from nodes order by node_id")
        return [row["node_id"] for row in rows]
    finally:
        await connection.close()


async def test_after_a_promotion_nothing_acknowledged_is_lost_and_no_node_counts_as_dead(
    pair: tuple[Server, Server],
) -> None:
    primary, standby = pair
    schema = new_schema()
    async with Proxy(with_schema(primary.url, schema)) as proxy:

        async def kill() -> None:
            async with admin(standby) as connection:
                query = f'select max(lease_until_ms) from "{schema}".nodes'
                await asyncio.to_thread(primary.stop, signal.SIGKILL)
                over_ms = await connection.fetchval(query)
            # So long that every lease is over: nobody could renew it.
            await until(lambda: time.time_ns() / 1e6 > over_ms + 100)
            await promote(standby)
            proxy.move(standby.url)

        await fail_over(proxy.url, kill)


async def test_of_several_hosts_the_one_that_was_promoted_is_found(
    pair: tuple[Server, Server],
) -> None:
    primary, standby = pair
    hosts = f"127.0.0.1:{standby.port},127.0.0.1:{primary.port}"
    url = with_schema(f"postgresql://postgres@{hosts}/postgres", new_schema())

    async def kill() -> None:
        await asyncio.to_thread(primary.stop, signal.SIGKILL)
        await promote(standby)

    await fail_over(url, kill)
