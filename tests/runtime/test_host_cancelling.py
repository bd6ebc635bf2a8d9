"""Cancelling instances, and what an orchestration can do about it."""

from __future__ import annotations

import asyncio

import pytest
from kit import World, history, kinds, until, until_status

from perdure import (
    OrchestrationContext,
    OrchestrationFailedError,
    activity,
    activity_context,
    orchestration,
)
from perdure.core import events

UNDONE: list[str] = []


@activity
async def undo(what: str) -> str:
    UNDONE.append(what)
    return what


@orchestration
async def waiting(ctx: OrchestrationContext) -> str:
    return await ctx.schedule_wait("go", str)


@orchestration
async def cleaning_up(ctx: OrchestrationContext) -> None:
    try:
        await ctx.schedule_timer(3600)
    finally:
        await undo(f"{ctx.instance_id} step 1")
        await undo(f"{ctx.instance_id} step 2")


@orchestration
async def giving_in(ctx: OrchestrationContext) -> str:
    try:
        await ctx.schedule_timer(3600)
    except asyncio.CancelledError as error:
        await undo(ctx.instance_id)
        return f"gave in: {error}"
    return "not reached"


@orchestration
async def running_on(ctx: OrchestrationContext) -> str:
    try:
        await ctx.schedule_timer(3600)
    except asyncio.CancelledError:
        return await ctx.schedule_wait("go", str)
    return "not reached"


async def test_a_cancelled_instance_says_so_and_why(world: World) -> None:
    async with world.runtime(waiting) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(waiting, instance_id="w")
        await until_status(client, "w", "running")
        await client.cancel_instance("w", "not needed")

        with pytest.raises(OrchestrationFailedError) as cancelled:
            await handle.result()
        assert cancelled.value.status == "cancelled"
        assert cancelled.value.message == "not needed"
        row = await client.get_instance("w")
        assert row.status == "cancelled"
        assert kinds(await history(client, "w"))[-3:] == [
            "CancelRequested",
            "ExternalUnsubscribed",
            "OrchestrationCancelled",
        ]


async def test_cleanup_may_await_activities(world: World) -> None:
    UNDONE.clear()
    async with world.runtime(cleaning_up, undo) as runtime:
        client = runtime.client
        await client.start_orchestration(cleaning_up, instance_id="c")
        await until_status(client, "c", "running")
        await client.cancel_instance("c")

        assert (await client.wait_for_orchestration("c")).status == "cancelled"
        assert UNDONE == ["c step 1", "c step 2"]


async def test_an_instance_that_handles_its_cancellation_completes(world: World) -> None:
    async with world.runtime(giving_in, undo) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(giving_in, instance_id="g")
        await until_status(client, "g", "running")
        await client.cancel_instance("g", "please")

        assert await handle.result() == "gave in: please"
        assert (await client.get_instance("g")).status == "completed"


async def test_a_second_cancel_request_has_no_further_effect(world: World) -> None:
    async with world.runtime(running_on) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(running_on, instance_id="r")
        await until_status(client, "r", "running")
        await client.cancel_instance("r", "one")
        await client.cancel_instance("r", "two")
        await until(lambda: runtime.counters.get("duplicate_cancel") == 1)
        await client.raise_event("r", "go", "on")

        assert await handle.result() == "on"
        requests = [
            event
            for event in await history(client, "r")
            if isinstance(event, events.CancelRequested)
        ]
        assert [request.reason for request in requests] == ["one"]


async def test_an_instance_cancelled_before_its_first_turn_never_gets_far(world: World) -> None:
    async with world.client() as client:
        await client.start_orchestration(waiting, instance_id="w")
        await client.cancel_instance("w", "early")
        async with world.runtime(waiting):
            assert (await client.wait_for_orchestration("w")).status == "cancelled"


TOLD: list[str] = []


@activity
async def listening() -> None:
    context = activity_context()
    await context.cancelled()
    TOLD.append(f"{context.instance_id} {context.is_cancelled}")


@activity
def listening_in_thread() -> None:
    context = activity_context()
    assert not context.is_cancelled
    if context.wait_cancelled(10):
        TOLD.append(f"{context.instance_id} in thread")


@orchestration
async def racing(ctx: OrchestrationContext) -> str:
    position, _ = await ctx.select(
        listening(), listening_in_thread(), ctx.schedule_wait("go"), ctx.schedule_timer(0.05)
    )
    # Stays alive: the losers are told because they lost, not because everything is over.
    await ctx.schedule_wait("end")
    return f"{position}"


async def test_activities_that_lost_a_race_are_told(world: World) -> None:
    TOLD.clear()
    async with world.runtime(racing, listening, listening_in_thread) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(racing, instance_id="r")
        await until(lambda: len(TOLD) == 2)
        await client.raise_event("r", "end")

        assert await handle.result() == "3"
        assert sorted(TOLD) == ["r True", "r in thread"]
        assert kinds(await history(client, "r")).count("ActivityCancelled") == 2
        assert kinds(await history(client, "r")).count("ExternalUnsubscribed") == 1
        assert not {"ActivityCompleted", "ActivityFailed"} & set(kinds(await history(client, "r")))


@orchestration
async def ending_early(ctx: OrchestrationContext) -> str:
    listening()
    await ctx.schedule_timer(0.1)
    return "ended"


async def test_activities_of_an_execution_that_ends_are_told(world: World) -> None:
    TOLD.clear()
    async with world.runtime(ending_early, listening) as runtime:
        handle = await runtime.client.start_orchestration(ending_early, instance_id="e")

        assert await handle.result() == "ended"
        await until(lambda: TOLD == ["e True"])


async def test_an_activity_on_another_node_is_told_too(world: World) -> None:
    TOLD.clear()
    async with world.runtime(ending_early) as runtime, world.runtime(listening):
        handle = await runtime.client.start_orchestration(ending_early, instance_id="e")

        assert await handle.result() == "ended"
        await until(lambda: TOLD == ["e True"])


@orchestration
async def raising_alone(ctx: OrchestrationContext) -> None:
    raise asyncio.CancelledError("nobody asked")


async def test_a_cancelled_error_that_nobody_requested_is_a_failure(world: World) -> None:
    async with world.runtime(raising_alone) as runtime:
        handle = await runtime.client.start_orchestration(raising_alone)

        with pytest.raises(OrchestrationFailedError) as failed:
            await handle.result()
        assert (failed.value.status, failed.value.type) == ("failed", "CancelledError")
