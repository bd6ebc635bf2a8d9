"""Starting instances: idempotence, names, and what a start by hand gets back."""

from __future__ import annotations

import asyncio

import pytest
from kit import World, history, kinds, until_status

from perdure import (
    InstanceAlreadyExists,
    OrchestrationContext,
    OrchestrationFailedError,
    activity,
    orchestration,
)


@activity
async def double(number: int) -> int:
    return 2 * number


@orchestration
async def doubled(ctx: OrchestrationContext, number: int) -> int:
    return await double(number)


@orchestration
async def waiting(ctx: OrchestrationContext) -> str:
    return await ctx.schedule_wait("go", str)


async def test_a_started_instance_gives_its_result(world: World) -> None:
    async with world.runtime(doubled, double) as runtime:
        handle = await runtime.client.start_orchestration(doubled, 21, instance_id="d")

        assert await handle.result() == 42
        assert handle.created
        assert kinds(await history(runtime.client, "d")) == [
            "OrchestrationStarted",
            "ActivityScheduled",
            "ActivityCompleted",
            "OrchestrationCompleted",
        ]


async def test_fifty_concurrent_starts_of_one_id_give_one_instance(world: World) -> None:
    async with world.runtime(doubled, double) as runtime, world.client() as other:
        handles = await asyncio.gather(
            *(
                (runtime.client if number % 2 else other).start_orchestration(
                    doubled, 21, instance_id="d", if_exists="return"
                )
                for number in range(50)
            )
        )

        assert sum(handle.created for handle in handles) == 1
        assert await asyncio.gather(*(handle.result() for handle in handles)) == [42] * 50
        assert len(await runtime.client.list_instances()) == 1
        assert len(await history(runtime.client, "d")) == 4


async def test_a_second_start_says_that_the_id_is_taken_and_how_it_stands(world: World) -> None:
    async with world.runtime(waiting) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(waiting, instance_id="w")
        await until_status(client, "w", "running")

        with pytest.raises(InstanceAlreadyExists) as taken:
            await client.start_orchestration(waiting, instance_id="w")
        assert (taken.value.instance_id, taken.value.status) == ("w", "running")

        await client.raise_event("w", "go", "on")
        assert await handle.result() == "on"
        with pytest.raises(InstanceAlreadyExists) as ended:
            await client.start_orchestration(waiting, instance_id="w")
        assert ended.value.status == "completed"


async def test_if_exists_return_gives_the_handle_of_the_existing_instance(world: World) -> None:
    async with world.runtime(doubled, double) as runtime:
        client = runtime.client
        await (await client.start_orchestration(doubled, 21, instance_id="d")).result()

        again = await client.start_orchestration(doubled, 100, instance_id="d", if_exists="return")

        assert not again.created
        assert await again.result() == 42


async def test_a_caller_that_goes_away_does_not_take_its_instance_along(world: World) -> None:
    async with world.runtime(doubled, double) as runtime:
        start = asyncio.ensure_future(
            runtime.client.start_orchestration(doubled, 21, instance_id="d")
        )
        await asyncio.sleep(0)
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)

        again = await runtime.client.start_orchestration(
            doubled, 100, instance_id="d", if_exists="return"
        )
        assert await again.result() == 42


async def test_an_instance_started_without_a_runtime_runs_once_there_is_one(world: World) -> None:
    async with world.client() as client:
        handle = await client.start_orchestration("doubled", 21, instance_id="d", result_type=int)
        assert (await client.get_instance("d")).status == "pending"

        async with world.runtime(doubled, double):
            assert await handle.result() == 42


async def test_a_start_by_name_with_input_that_does_not_fit_fails_that_instance(
    world: World,
) -> None:
    async with world.runtime(doubled, double) as runtime:
        client = runtime.client
        bad = await client.start_orchestration("doubled", {"no": "number"}, instance_id="bad")
        good = await client.start_orchestration("doubled", 4, instance_id="good")

        with pytest.raises(OrchestrationFailedError) as failed:
            await bad.result()

        assert failed.value.type == "PayloadError"
        assert "number" in failed.value.message
        assert kinds(await history(client, "bad")) == [
            "OrchestrationStarted",
            "OrchestrationFailed",
        ]
        assert await good.result() == 8


@orchestration(name="greeting", version="1.9")
async def older() -> str:
    return "1.9"


@orchestration(name="greeting", version="1.10")
async def newer() -> str:
    return "1.10"


async def test_a_start_takes_the_latest_version_unless_one_is_asked_for(world: World) -> None:
    async with world.runtime(older, newer) as runtime:
        client = runtime.client
        latest = await client.start_orchestration("greeting", instance_id="latest")
        exact = await client.start_orchestration("greeting", instance_id="exact", version="1.9")

        assert await latest.result() == "1.10"
        assert await exact.result() == "1.9"
        assert (await client.get_instance("latest")).version == "1.10"
        assert (await client.get_instance("exact")).version == "1.9"


async def test_a_version_that_nobody_has_waits_and_does_not_run_as_another(world: World) -> None:
    async with world.client() as client:
        handle = await client.start_orchestration("greeting", instance_id="g", version="1.9")
        async with world.runtime(newer):
            await asyncio.sleep(world.s(60))
            assert (await client.get_instance("g")).status == "pending"
        async with world.runtime(older, newer):
            assert await handle.result() == "1.9"
