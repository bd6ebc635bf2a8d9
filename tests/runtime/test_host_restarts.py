"""Runtimes whose PostgreSQL server is restarted: while they idle, and while they start."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator

import pytest
from kit import until, until_async, until_recorded

from perdure import Client, Options, OrchestrationContext, Runtime, activity, orchestration
from perdure.errors import StoreUnavailable
from postgres_server import Server, new_schema, with_schema

pytestmark = pytest.mark.slow

OUTAGE_S = 1.5
CPU_SHARE_MAX = 0.5
"""Of one core, by all that waits for the server in this process."""
RESTARTS = 3
NODES = 3
SHORT_LEASE = Options(lease_s=2)


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server that a test may stop."""
    server = Server()
    try:
        yield server
    finally:
        server.close()


@activity
async def echo(text: str) -> str:
    return text


@orchestration
async def waiting(ctx: OrchestrationContext) -> str:
    return await echo(await ctx.schedule_wait("go", str))


async def test_an_idle_node_waits_for_its_server_without_being_busy_and_goes_on_as_itself(
    own_server: Server,
) -> None:
    url = with_schema(own_server.url, new_schema())
    async with (
        Runtime(url, [waiting, echo]) as runtime,
        Runtime(url, [waiting, echo]) as other,
        Client(url) as client,
    ):
        node_ids = {runtime.node_id, other.node_id}
        handle = await client.start_orchestration(waiting, instance_id="w")
        await until_recorded(client, "w", "ExternalSubscribed")
        await asyncio.to_thread(own_server.stop, signal.SIGQUIT)
        began_s, used_s = time.monotonic(), time.process_time()

        raising = asyncio.create_task(client.raise_event("w", "go", "on"))
        starting = asyncio.create_task(runtime.client.start_orchestration(waiting))
        await until(lambda: client.degraded and runtime.client.degraded)
        await asyncio.sleep(OUTAGE_S)
        assert time.process_time() - used_s < CPU_SHARE_MAX * (time.monotonic() - began_s)
        assert not raising.done()
        assert not starting.done()

        await asyncio.to_thread(own_server.start)
        await raising
        assert await handle.result() == "on"
        await client.raise_event((await starting).instance_id, "go", "too")
        assert await (await starting).result() == "too"
        assert client.degraded is None
        assert {runtime.node_id, other.node_id} == node_ids
        assert {row.node_id for row in await client.provider.nodes()} == node_ids


async def test_a_node_starts_whatever_its_server_does_or_says_why_not_and_leaves_nothing(
    own_server: Server,
) -> None:
    url = with_schema(own_server.url, new_schema())
    refused = 0
    over = False

    async def start_again_and_again(number: int) -> int:
        nonlocal refused
        served = 0
        while not over or served == 0:
            runtime = Runtime(url, [waiting, echo], options=SHORT_LEASE)
            try:
                await runtime.start()
            except StoreUnavailable:
                refused += 1
                await asyncio.sleep(0.005)
                continue
            client = runtime.client
            handle = await client.start_orchestration(waiting, instance_id=f"{number}-{served}")
            await client.raise_event(handle.instance_id, "go", "on")
            served += 1
            await runtime.stop()
        return served

    starting = [asyncio.create_task(start_again_and_again(number)) for number in range(NODES)]
    for _ in range(RESTARTS):
        await asyncio.sleep(0.3)
        await asyncio.to_thread(own_server.stop, signal.SIGQUIT)
        await asyncio.to_thread(own_server.start)
    over = True
    served = await asyncio.gather(*starting)
    assert refused > 0

    async with Runtime(url, [waiting, echo], options=SHORT_LEASE) as runtime:
        client = runtime.client
        # Those that could not say good-bye are found out.
        await until_async(lambda: is_alone(client))
        counts: dict[str, int] = {}

        async def all_done() -> bool:
            counts.update(await client.provider.count_instances())
            return counts.get("completed") == sum(served)

        await until_async(all_done)


async def is_alone(client: Client) -> bool:
    return len(await client.provider.nodes()) == 1
