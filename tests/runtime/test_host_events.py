"""External events and timers."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from kit import World, history, kinds, until, until_recorded, until_status

from perdure import (
    InvalidTimer,
    OrchestrationContext,
    OrchestrationFailedError,
    activity,
    orchestration,
)
from perdure.core import events
from perdure.providers.contract import Provider


@activity
async def echo(text: str) -> str:
    return text


@orchestration
async def late_listener(ctx: OrchestrationContext) -> str:
    await ctx.schedule_wait("first")
    return await ctx.schedule_wait("second", str)


async def test_an_event_that_nobody_waits_for_is_dropped_and_counted(world: World) -> None:
    async with world.runtime(late_listener) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(late_listener, instance_id="l")
        await client.raise_event("l", "second", "too early")
        await until(lambda: runtime.counters.get("no_subscription") == 1)
        await client.raise_event("l", "first")
        await until_recorded(client, "l", number=4)
        await client.raise_event("l", "second", "in time")

        assert await handle.result() == "in time"
        assert runtime.counters == {"no_subscription": 1}


@orchestration
async def early_listener(ctx: OrchestrationContext) -> str:
    return await ctx.schedule_wait("go", str)


async def test_an_event_raised_right_after_the_start_is_not_missed(world: World) -> None:
    async with world.runtime(early_listener) as runtime, world.client() as other:
        for number in range(30):
            client = runtime.client if number % 2 else other
            handle = await client.start_orchestration(early_listener, instance_id=f"e{number}")
            await client.raise_event(f"e{number}", "go", str(number))
            assert await handle.result() == str(number)
        assert not runtime.counters


@orchestration
async def several(ctx: OrchestrationContext) -> list[str]:
    first, second, third = (ctx.schedule_wait("say", str) for _ in range(3))
    ctx.schedule_wait("other")
    first.cancel()
    await ctx.schedule_wait("ready")
    return [await third, await second]


async def test_an_event_goes_to_the_oldest_subscription_that_is_open(world: World) -> None:
    async with world.runtime(several) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(several, instance_id="s")
        await client.raise_event("s", "ready")
        await client.raise_event("s", "say", "one")
        await client.raise_event("s", "say", "two")

        assert await handle.result() == ["two", "one"]


async def test_events_are_taken_in_the_order_of_their_acceptance(world: World) -> None:
    async with world.client() as client:
        handle = await client.start_orchestration(listing, instance_id="l")
        for number in range(40):
            await client.raise_event("l", "say", number)
        async with world.runtime(listing):
            assert await handle.result() == list(range(40))


@orchestration
async def listing(ctx: OrchestrationContext) -> list[int]:
    waits = [ctx.schedule_wait("say", int) for _ in range(40)]
    return await asyncio.gather(*waits)


RESUMED_MS: dict[str, int] = {}
CLOCKS: list[Provider] = []


@orchestration
async def sleeping(ctx: OrchestrationContext, seconds: float) -> float:
    before = ctx.now()
    await asyncio.sleep(seconds)
    RESUMED_MS[ctx.instance_id] = CLOCKS[-1].now_ms() if CLOCKS else 0
    return (ctx.now() - before).total_seconds()


async def test_a_timer_is_never_early(world: World) -> None:
    seconds = [world.s(number * 7.3 + 1.1) for number in range(40)]
    async with world.runtime(sleeping) as runtime:
        client = runtime.client
        CLOCKS.append(client.provider)
        handles = [
            await client.start_orchestration(sleeping, delay, instance_id=f"s{number}")
            for number, delay in enumerate(seconds)
        ]
        slept = await asyncio.gather(*(handle.result() for handle in handles))

        assert all(
            found is not None and found >= wanted - 1e-6
            for found, wanted in zip(slept, seconds, strict=True)
        )
        for number in range(40):
            _, created, fired, _ = await history(client, f"s{number}")
            assert isinstance(created, events.TimerCreated)
            assert isinstance(fired, events.TimerFired)
            assert fired.timestamp_ms >= created.fire_at_ms == fired.fire_at_ms
            assert fired.source_event_id == created.event_id
            assert RESUMED_MS[f"s{number}"] >= created.fire_at_ms
        CLOCKS.clear()


async def test_a_timer_fires_on_time(memory: World) -> None:
    async with memory.runtime(sleeping) as runtime:
        handle = await runtime.client.start_orchestration(sleeping, 100)

        slept = await handle.result()

        assert slept is not None
        assert slept < 100.1


async def test_a_timer_that_was_due_while_everything_was_down_fires(world: World) -> None:
    async with world.runtime(sleeping) as runtime:
        await runtime.client.start_orchestration(sleeping, world.s(500), instance_id="s")
        await until_status(runtime.client, "s", "running")
    await asyncio.sleep(world.s(600))
    async with world.runtime(sleeping) as runtime:
        assert (await runtime.client.wait_for_orchestration("s")).output >= world.s(600)
        assert kinds(await history(runtime.client, "s")).count("TimerFired") == 1


@orchestration
async def timing_out(ctx: OrchestrationContext) -> str:
    for number in range(20):
        async with asyncio.timeout(3600):
            await echo(str(number))
    await ctx.schedule_wait("end")
    return "done"


async def test_cancelled_timers_leave_no_row(world: World) -> None:
    async with world.runtime(timing_out, echo) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(timing_out, instance_id="t")
        await until_recorded(client, "t", "ExternalSubscribed")

        row = (await client.provider.get_instances(["t"]))["t"]
        assert row.due_ms is None
        assert kinds(await history(client, "t")).count("TimerCancelled") == 20
        await client.raise_event("t", "end")
        assert await handle.result() == "done"


@orchestration
async def deadline(ctx: OrchestrationContext) -> str:
    position, _ = await ctx.select(
        ctx.schedule_wait("approve"), ctx.schedule_timer(timedelta(seconds=5))
    )
    return "too late" if position else "approved"


async def test_an_approval_accepted_before_its_deadline_counts_after_an_outage(
    memory: World,
) -> None:
    async with memory.runtime(deadline) as runtime:
        await runtime.client.start_orchestration(deadline, instance_id="in time")
        await runtime.client.start_orchestration(deadline, instance_id="late")
        await until_status(runtime.client, "late", "running")
    async with memory.client() as client:
        await asyncio.sleep(3)
        await client.raise_event("in time", "approve")
        await asyncio.sleep(10)
        await client.raise_event("late", "approve")
        async with memory.runtime(deadline):
            assert (await client.wait_for_orchestration("in time")).output == "approved"
            assert (await client.wait_for_orchestration("late")).output == "too late"


@orchestration
async def odd_timers(ctx: OrchestrationContext) -> list[str]:
    found = []
    for delay in (float("nan"), float("inf"), 4000 * 86_400, "5", True):
        try:
            ctx.schedule_timer(delay)  # type: ignore[arg-type]  # that is the test
        except InvalidTimer as error:
            found.append(str(error))
    await ctx.schedule_timer(-5)
    await ctx.schedule_timer(0)
    await asyncio.sleep(-1)
    return found


async def test_durations_that_make_no_sense_are_refused_at_the_call(world: World) -> None:
    async with world.runtime(odd_timers) as runtime:
        handle = await runtime.client.start_orchestration(odd_timers, instance_id="o")

        assert len(await handle.result() or ()) == 5
        assert kinds(await history(runtime.client, "o")).count("TimerFired") == 2


@orchestration
async def bad_data(ctx: OrchestrationContext) -> int:
    return await ctx.schedule_wait("go", int)


async def test_event_data_that_does_not_fit_its_subscription(world: World) -> None:
    """What a client sends must not block the instance for ever; see the reason it is given."""
    async with world.runtime(bad_data) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(bad_data, instance_id="b")
        await until_status(client, "b", "running")
        await client.raise_event("b", "go", "no number")

        with pytest.raises(OrchestrationFailedError) as failed:
            await handle.result(timeout=world.s(60) + 3)
        assert failed.value.type == "PayloadError"
