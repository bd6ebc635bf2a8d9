"""Deleting what is under way: it is fenced off and dropped, and a later holder of the id is a
stranger to it."""

from __future__ import annotations

import asyncio

import pytest
from kit import World, until, until_status

from perdure import (
    InstanceNotFound,
    OrchestrationContext,
    activity,
    activity_context,
    orchestration,
)

GATES: dict[str, asyncio.Event] = {}
TOLD: list[str] = []


@pytest.fixture(autouse=True)
def nothing_yet() -> None:
    GATES.clear()
    TOLD.clear()


@activity
async def held(name: str) -> str:
    GATES[name] = asyncio.Event()
    told = asyncio.ensure_future(activity_context().cancelled())
    gate = asyncio.ensure_future(GATES[name].wait())
    await asyncio.wait([told, gate], return_when=asyncio.FIRST_COMPLETED)
    if told.done():
        TOLD.append(name)
    for waiting in (told, gate):
        waiting.cancel()
    return f"result of {name}"


@orchestration
async def holding(ctx: OrchestrationContext, name: str) -> str:
    return await held(name)


async def test_a_late_result_does_not_reach_a_later_instance_of_the_same_id(world: World) -> None:
    async with world.runtime(holding, held) as runtime, world.client() as other:
        await runtime.client.start_orchestration(holding, "first", instance_id="same")
        await until(lambda: "first" in GATES)
        assert await other.delete_instance("same", force=True) == 1
        handle = await runtime.client.start_orchestration(holding, "second", instance_id="same")
        await until(lambda: "second" in GATES)
        GATES["first"].set()
        GATES["second"].set()

        assert await handle.result() == "result of second"
        await until(lambda: runtime.counters.get("late_completion") == 1)


async def test_an_activity_of_a_deleted_instance_is_told(memory: World) -> None:
    async with memory.runtime(holding, held) as runtime, memory.client() as other:
        handle = await runtime.client.start_orchestration(holding, "told", instance_id="t")
        await until(lambda: "told" in GATES)
        await other.delete_instance("t", force=True)
        with pytest.raises(InstanceNotFound):
            await handle.result()

        await until(lambda: TOLD == ["told"])


@orchestration
async def renewing(ctx: OrchestrationContext, number: int) -> int:
    await ctx.schedule_timer(0.001)
    return await ctx.continue_as_new(number + 1)


async def test_what_renews_itself_at_full_speed_can_be_deleted(world: World) -> None:
    async with world.runtime(renewing, holding, held) as runtime, world.client() as other:
        await runtime.client.start_orchestration(renewing, 1, instance_id="r")
        await until_status(other, "r", "running")
        await other.delete_instance("r", force=True)
        with pytest.raises(InstanceNotFound):
            await other.get_instance("r")

        handle = await runtime.client.start_orchestration(holding, "after", instance_id="r")
        await until(lambda: "after" in GATES)
        GATES["after"].set()
        assert await handle.result() == "result of after"
        assert (await other.get_instance("r")).execution_id == 1


@orchestration
async def family(ctx: OrchestrationContext, depth: int) -> str:
    return await (family(depth - 1) if depth else held("deep"))


async def test_children_under_way_go_with_their_parent_and_nothing_is_left(world: World) -> None:
    async with world.runtime(family, held) as runtime, world.client() as other:
        await runtime.client.start_orchestration(family, 3, instance_id="f")
        await until(lambda: "deep" in GATES)
        assert await other.delete_instance("f", force=True) == 4
        GATES["deep"].set()

        assert len(await other.list_instances()) == 0
        depths = await other.get_queue_depths()
        assert (depths.messages, depths.timers, depths.activities) == (0, 0, {})
