"""Event queues: durable, first in first out, each item taken once, across ContinueAsNew."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kit import World, history, kinds, until_async, until_recorded, until_status

from perdure import (
    InstanceNotFound,
    InstanceTerminal,
    InvalidName,
    OrchestrationContext,
    PayloadTooLarge,
    QueuedEvent,
    activity,
    orchestration,
)

every_residency = pytest.mark.parametrize("residents", [2_000, 0])


@orchestration
async def collector(ctx: OrchestrationContext, wanted: int) -> list[Any]:
    return [await ctx.dequeue_event("q") for _ in range(wanted)]


@every_residency
async def test_items_come_in_order_before_and_after_the_wait(world: World, residents: int) -> None:
    async with (
        world.runtime(collector, max_residents=residents) as runtime,
        world.client() as other,
    ):
        handle = await runtime.client.start_orchestration(collector, 6, instance_id="c")
        for number in range(6):
            client = runtime.client if number % 2 else other
            assert await client.enqueue_event("c", "q", number)
            if number == 2:
                await until_recorded(other, "c", number=7)

        assert await handle.result() == list(range(6))
        assert not runtime.counters.get("no_subscription")


async def test_items_wait_in_the_store_until_a_runtime_comes(world: World) -> None:
    async with world.client() as client:
        handle = await client.start_orchestration(collector, 300, instance_id="c")
        for number in range(300):
            await client.enqueue_event("c", "q", number)
        async with world.runtime(collector):
            assert await handle.result() == list(range(300))


@orchestration
async def counter(ctx: OrchestrationContext, seen: list[int], wanted: int) -> list[int]:
    seen.append(await ctx.dequeue_event("numbers", int))
    if len(seen) == wanted:
        return seen
    return await ctx.continue_as_new(seen, wanted)


@every_residency
async def test_items_survive_any_number_of_executions_once_each_and_in_order(
    world: World, residents: int
) -> None:
    async with (
        world.runtime(counter, max_residents=residents) as runtime,
        world.client() as other,
    ):
        handle = await runtime.client.start_orchestration(counter, [], 60, instance_id="c")
        for number in range(60):
            client = other if number % 3 else runtime.client
            await client.enqueue_event("c", "numbers", number)

        assert await handle.final_result() == list(range(60))
        assert (await other.get_instance("c")).execution_id == 60


async def test_an_event_id_makes_a_repeat_harmless_across_executions(world: World) -> None:
    async with world.runtime(counter) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(counter, [], 3, instance_id="c")
        for number in (0, 0, 1, 0, 1, 2):
            await client.enqueue_event("c", "numbers", number, f"id {number}")

        assert await handle.final_result() == [0, 1, 2]


async def test_a_repeat_says_that_it_is_one(world: World) -> None:
    async with world.client() as client:
        await client.start_orchestration(collector, 2, instance_id="c")
        assert await client.enqueue_event("c", "q", 1, event_id="x")
        assert not await client.enqueue_event("c", "q", 1, event_id="x")
        assert await client.enqueue_event("c", "q", 1)


async def test_a_start_brings_its_items_with_it(world: World) -> None:
    async with world.runtime(collector) as runtime, world.client() as other:
        for client, name in ((runtime.client, "here"), (other, "elsewhere")):
            handle = await client.start_orchestration(
                collector,
                2,
                instance_id=name,
                events=[QueuedEvent("q", 1), QueuedEvent("q", 2, "id 2")],
            )
            assert await handle.result() == [1, 2]
            again = await client.start_orchestration(
                collector, 2, instance_id=name, if_exists="return", events=[QueuedEvent("q", 3)]
            )
            assert not again.created


async def test_events_with_one_id_twice_are_refused_before_anything_is_stored(
    world: World,
) -> None:
    async with world.client() as client:
        with pytest.raises(ValueError, match="event id"):
            await client.start_orchestration(
                collector, 1, events=[QueuedEvent("q", 1, "x"), QueuedEvent("r", 1, "x")]
            )
        assert len(await client.list_instances()) == 0


@orchestration
async def hurried(ctx: OrchestrationContext, limit: float) -> list[Any]:
    try:
        async with asyncio.timeout(limit):
            return ["in time", await ctx.dequeue_event("q")]
    except TimeoutError:
        return ["later", await ctx.dequeue_event("q")]


@every_residency
async def test_a_wait_that_was_given_up_takes_nothing(world: World, residents: int) -> None:
    async with world.runtime(hurried, max_residents=residents) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(hurried, world.s(5), instance_id="h")
        await until_recorded(client, "h", number=6)
        await client.enqueue_event("h", "q", "kept")

        assert await handle.result() == ["later", "kept"]


async def test_an_item_accepted_before_a_deadline_counts_though_no_node_was_up(
    memory: World,
) -> None:
    async with memory.client() as client:
        handle = await client.start_orchestration(hurried, 60, instance_id="h")
        async with memory.runtime(hurried):
            await until_recorded(client, "h", number=3)
        await asyncio.sleep(30)
        await client.enqueue_event("h", "q", "in the night")
        await asyncio.sleep(60)
        async with memory.runtime(hurried):
            assert await handle.result() == ["in time", "in the night"]


@orchestration
async def asks(ctx: OrchestrationContext) -> list[Any]:
    item = asyncio.ensure_future(ctx.dequeue_event("answers"))
    done = asyncio.ensure_future(ctx.schedule_activity("answer", ctx.instance_id))
    position, _ = await ctx.select(item, done)
    return ["item" if position == 0 else "completion"]


async def test_an_item_that_an_activity_enqueues_comes_before_its_completion(
    world: World,
) -> None:
    async with world.client() as other:

        @activity
        async def answer(instance_id: str) -> None:
            await other.enqueue_event(instance_id, "answers", "quick")

        async with world.runtime(asks, answer) as runtime:
            for number in range(20):
                handle = await runtime.client.start_orchestration(asks, instance_id=f"a{number}")
                assert await handle.result() == ["item"]


@orchestration
async def deaf(ctx: OrchestrationContext) -> str:
    await ctx.schedule_wait("go")
    return "gone"


async def test_items_that_nobody_takes_are_counted_at_the_end(world: World) -> None:
    async with world.runtime(deaf) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(deaf, instance_id="d")
        for number in range(3):
            await client.enqueue_event("d", "nobody", number)
        assert (await client.get_queue_depths()).items == 3
        await client.raise_event("d", "go")
        assert await handle.result() == "gone"

        assert sum(runtime.counters.values()) == 3
        assert (await client.get_queue_depths()).items == 0


async def test_items_that_nobody_waits_for_do_not_keep_an_instance_awake(memory: World) -> None:
    async with memory.runtime(deaf) as runtime:
        client = runtime.client
        await client.start_orchestration(deaf, instance_id="d")
        await client.enqueue_event("d", "nobody", 1)
        provider: Any = client.provider

        async def parked() -> bool:
            row = (await provider.get_instances(["d"]))["d"]
            return row.due_ms is None and row.status == "running"

        await until_async(parked)


async def test_bad_calls_are_refused_where_they_are_made(world: World) -> None:
    async with world.runtime(collector) as runtime:
        client = runtime.client
        with pytest.raises(InstanceNotFound):
            await client.enqueue_event("nobody", "q")
        handle = await client.start_orchestration(collector, 0, instance_id="c")
        await handle.result()
        with pytest.raises(InstanceTerminal):
            await client.enqueue_event("c", "q")
        with pytest.raises(InvalidName):
            await client.enqueue_event("c", "")
        with pytest.raises(InvalidName):
            await client.enqueue_event("c", "q", event_id="")
        with pytest.raises(PayloadTooLarge):
            await client.enqueue_event("c", "q", "x" * (1 << 20))


async def test_a_cancelled_instance_leaves_its_items_alone(world: World) -> None:
    async with world.runtime(collector) as runtime:
        client = runtime.client
        await client.start_orchestration(collector, 1, instance_id="c")
        await until_status(client, "c", "running")
        await client.cancel_instance("c")
        await client.wait_for_orchestration("c")

        assert kinds(await history(client, "c")) == [
            "OrchestrationStarted",
            "QueueSubscribed",
            "CancelRequested",
            "QueueUnsubscribed",
            "OrchestrationCancelled",
        ]
