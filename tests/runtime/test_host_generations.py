"""ContinueAsNew: one commit, what its handles give, and what happens at the boundary."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence

import pytest
from kit import Through, World, history, kinds, until_execution, until_recorded, until_status

from perdure import (
    InstanceNotFound,
    OrchestrationContext,
    activity,
    orchestration,
)
from perdure.core import events
from perdure.providers.contract import CommitTurn, Operation


@activity
async def echo(text: str) -> str:
    return text


@orchestration
async def countdown(ctx: OrchestrationContext, left: int) -> str:
    if left:
        await echo(str(left))
        return await ctx.continue_as_new(left - 1)
    return f"execution {ctx.execution_id}"


async def test_the_first_execution_gives_none_and_the_chain_its_final_result(
    world: World,
) -> None:
    async with world.runtime(countdown, echo) as runtime, world.client() as other:
        client = runtime.client
        handle = await client.start_orchestration(countdown, 3, instance_id="c")
        elsewhere = await other.get_handle("c", 1)

        assert await handle.result() is None
        assert await handle.final_result() == "execution 4"
        assert await elsewhere.result() is None
        assert await elsewhere.final_result() == "execution 4"
        assert await (await client.get_handle("c")).result() == "execution 4"
        assert (await client.wait_for_orchestration("c")).execution_id == 4
        with pytest.raises(InstanceNotFound):
            await client.get_handle("c", 5)


async def test_every_execution_keeps_its_own_history(world: World) -> None:
    async with world.runtime(countdown, echo) as runtime:
        client = runtime.client
        await (await client.start_orchestration(countdown, 2, instance_id="c")).final_result()

        ended = await client.list_executions("c")
        assert [(one.execution_id, one.status) for one in ended] == [
            (1, "continued_as_new"),
            (2, "continued_as_new"),
            (3, "completed"),
        ]
        for number in (1, 2):
            assert kinds(await history(client, "c", number)) == [
                "OrchestrationStarted",
                "ActivityScheduled",
                "ActivityCompleted",
                "OrchestrationContinuedAsNew",
            ]
        last = await history(client, "c", 2)
        first = await history(client, "c", 3)
        assert isinstance(first[0], events.OrchestrationStarted)
        assert bytes(first[0].input) == b"0"
        assert first[0].timestamp_ms >= last[-1].timestamp_ms


@orchestration
async def spinning(ctx: OrchestrationContext, left: int) -> int:
    if left:
        return await ctx.continue_as_new(left - 1)
    return ctx.execution_id


async def test_continuing_without_an_await_is_one_commit_each(world: World) -> None:
    through = Through(world.provider())
    most = 0

    def look(batch: Sequence[Operation]) -> None:
        nonlocal most
        turns = [op for op in batch if isinstance(op, CommitTurn)]
        assert len({turn.key for turn in turns}) == len(turns), "two turns of one instance"
        most = max(most, len(turns))

    through.before = look
    async with world.runtime(spinning, countdown, echo, provider=through) as runtime:
        client = runtime.client
        spin = await client.start_orchestration(spinning, 50, instance_id="s")
        others = await asyncio.gather(
            *(client.start_orchestration(countdown, 2) for _ in range(10))
        )

        assert (
            await asyncio.gather(*(other.final_result() for other in others))
            == ["execution 3"] * 10
        )
        assert await spin.final_result() == 51
        assert most > 1


@orchestration
async def gathering(ctx: OrchestrationContext, heard: list[str]) -> list[str]:
    """Takes one event an execution, and continues without having read what comes after it."""
    text = await ctx.schedule_wait("say", str)
    if text == "stop":
        return heard
    return await ctx.continue_as_new([*heard, text])


async def test_events_at_the_boundary_reach_the_next_execution(world: World) -> None:
    async with world.client() as client:
        handle = await client.start_orchestration(gathering, [], instance_id="g")
        for text in "abcdefgh":
            await client.raise_event("g", "say", text)

        async with world.runtime(gathering) as runtime:
            for text in "ijklmnop":
                await runtime.client.raise_event("g", "say", text)
            await client.raise_event("g", "say", "stop")
            assert await handle.final_result() == list("abcdefghijklmnop")
            assert not runtime.counters
            assert (await client.get_instance("g")).execution_id == 17


@orchestration
async def cancelled_later(ctx: OrchestrationContext, first: bool = True) -> str:
    if first:
        await ctx.schedule_wait("go")
        return await ctx.continue_as_new(False)
    try:
        await ctx.schedule_timer(3600)
    except asyncio.CancelledError:
        return "told in execution 2"
    return "not told"


async def test_a_cancel_request_at_the_boundary_reaches_the_next_execution(
    world: World,
) -> None:
    async with world.client() as client:
        handle = await client.start_orchestration(cancelled_later, instance_id="c")
        await client.raise_event("c", "go")
        await client.cancel_instance("c", "enough")

        async with world.runtime(cancelled_later):
            assert await handle.final_result() == "told in execution 2"


@orchestration(name="job", version="1")
async def job_v1(ctx: OrchestrationContext, left: int) -> str:
    await ctx.schedule_wait("go")
    return await ctx.continue_as_new(left - 1)


@orchestration(name="job", version="2")
async def job_v2(ctx: OrchestrationContext, left: int) -> str:
    if left:
        return await ctx.continue_as_new(left - 1, version="1" if left == 5 else None)
    return f"version {ctx.version}"


async def test_continue_as_new_takes_the_latest_version(world: World) -> None:
    async with world.runtime(job_v1) as old:
        handle = await old.client.start_orchestration(job_v1, 1, instance_id="j")
        await until_status(old.client, "j", "running")
        assert not handle.created or handle.execution_id == 1
    async with world.runtime(job_v1, job_v2) as new:
        await new.client.raise_event("j", "go")
        assert (await new.client.wait_for_orchestration("j")).output == "version 2"
        assert [one.version for one in await new.client.list_executions("j")] == ["1", "2"]


async def test_a_version_that_only_another_node_has_is_handed_over(world: World) -> None:
    async with world.runtime(job_v1), world.runtime(job_v2) as new:
        client = new.client
        handle = await client.start_orchestration(job_v2, 5, instance_id="j")
        await until_execution(client, "j", 2)
        await until_recorded(client, "j", "ExternalSubscribed", execution=2)
        await client.raise_event("j", "go")
        await until_execution(client, "j", 3)
        await until_recorded(client, "j", "ExternalSubscribed", execution=3)
        await client.raise_event("j", "go")
        # Version 1 continues as the latest that its own node knows, which is version 1.
        await until_execution(client, "j", 4)
        assert [one.version for one in await client.list_executions("j")] == ["2", "1", "1", "1"]
        await client.cancel_instance("j")
        assert (await client.wait_for_orchestration("j")).status == "cancelled"
        assert await handle.result() is None


@activity
async def slow(text: str) -> str:
    await asyncio.sleep(0.002)
    return text


@orchestration
async def leaving_things_open(ctx: OrchestrationContext, again: bool = True) -> str:
    """Its executions ask for different things under the same event ids."""
    if again:
        for number in range(3):
            slow(f"old {number}")
            ctx.schedule_timer(0.002)
        await ctx.schedule_wait("on")
        return await ctx.continue_as_new(False)
    said = [slow(f"new {number}") for number in range(3)]
    timers = [ctx.schedule_timer(0.05) for _ in range(3)]
    await asyncio.gather(*timers)
    return " ".join(await asyncio.gather(*said))


async def test_what_ends_while_an_execution_ends_does_not_touch_the_next(world: World) -> None:
    through = Through(world.provider())
    rows: list[int] = []

    def hold(batch: Sequence[Operation]) -> Awaitable[None] | None:
        for op in batch:
            if isinstance(op, CommitTurn) and op.execution_id == 2 and op.activities:
                rows.extend(set(op.activities_gone) | set(op.timers_gone))
        ends = any(isinstance(op, CommitTurn) and op.next is not None for op in batch)
        # The activities and timers of the first execution end while its last commit is on its way.
        return asyncio.sleep(0.02) if ends else None

    through.before = hold
    async with world.runtime(leaving_things_open, slow, provider=through) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(leaving_things_open, instance_id="l")
        await client.raise_event("l", "on")

        assert await handle.final_result(timeout=5) == "new 0 new 1 new 2"
        assert kinds(await history(client, "l", 2)).count("TimerFired") == 3
        assert rows == []
        assert runtime.counters["stale_execution"] >= 3
