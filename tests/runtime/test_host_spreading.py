"""Work spreads over the nodes of a store."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

from kit import World

from perdure import Client, OrchestrationContext, activity, orchestration

INSTANCES = 240
NODES = 3

RAN: Counter[int] = Counter()
"""How many activities each node has run."""


def hosted(node: int) -> list[Any]:
    """What node `node` hosts: the same for all, but that it notes who ran it."""

    @activity(name="work")
    async def work() -> int:
        RAN[node] += 1
        await asyncio.sleep(0.01)
        return node

    return [work, job]


@orchestration
async def job(ctx: OrchestrationContext) -> int:
    return int(await ctx.schedule_activity("work"))


async def start_all(client: Client) -> list[str]:
    ids = [f"job-{number}" for number in range(INSTANCES)]
    await asyncio.gather(*(client.start_orchestration(job, instance_id=one) for one in ids))
    return ids


async def results(client: Client, ids: list[str]) -> None:
    handles = [await client.get_handle(one) for one in ids]
    await asyncio.gather(*(handle.result() for handle in handles))


async def test_no_node_takes_everything_that_is_started_elsewhere(world: World) -> None:
    RAN.clear()
    async with world.client() as client, AsyncExitStack() as nodes:
        for node in range(NODES):
            await nodes.enter_async_context(world.runtime(*hosted(node)))

        await results(client, await start_all(client))

    assert sum(RAN.values()) == INSTANCES
    assert max(RAN.values()) <= INSTANCES * 3 // 4, RAN


async def test_what_a_full_node_cannot_run_goes_to_the_others(world: World) -> None:
    RAN.clear()
    async with (
        world.runtime(*hosted(0), max_activities=5) as busy,
        world.runtime(*hosted(1), max_activities=5),
    ):
        await results(busy.client, await start_all(busy.client))

    assert RAN[1] >= INSTANCES // 10, RAN
