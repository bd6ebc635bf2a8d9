"""Removing: whole trees or nothing, many at once, and whoever waits learns of it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kit import World, until_execution, until_recorded, until_status

from perdure import (
    Client,
    InstanceFilter,
    InstanceIsChild,
    InstanceNotFound,
    InstanceRunning,
    OrchestrationContext,
    PruneOptions,
    PruneResult,
    StoreClosed,
    orchestration,
)
from perdure.client import upkeep


@orchestration
async def waiting(ctx: OrchestrationContext) -> str:
    return await ctx.schedule_wait("go", str)


@orchestration
async def parent(ctx: OrchestrationContext, wait: bool = True) -> str:
    if wait:
        return await waiting()
    ctx.schedule_sub_orchestration(waiting)
    return "ended before its child"


@orchestration
async def counting(ctx: OrchestrationContext, left: int) -> str:
    return await ctx.continue_as_new(left - 1) if left else "done"


FUNCTIONS = (waiting, parent, counting)


async def left(client: Client) -> list[str]:
    return [instance.instance_id for instance in await client.list_instances()]


async def with_child(client: Client, instance_id: str, wait: bool = True) -> str:
    """Start a parent and wait until its child runs; the child's id."""
    await client.start_orchestration(parent, wait, instance_id=instance_id)
    await until_recorded(client, instance_id, "SubOrchestrationScheduled")
    await until_status(client, f"{instance_id}::sub::2", "running")
    return f"{instance_id}::sub::2"


# delete_instance


async def test_an_instance_goes_with_its_sub_orchestrations(world: World) -> None:
    async with world.runtime(*FUNCTIONS) as runtime:
        client = runtime.client
        child = await with_child(client, "p")
        await client.raise_event(child, "go", "on")
        await client.wait_for_orchestration("p")
        await (await client.start_orchestration(counting, 0, instance_id="other")).result()

        assert await client.delete_instance("p") == 2
        assert await left(client) == ["other"]
        for gone in ("p", child):
            with pytest.raises(InstanceNotFound):
                await client.read_history(gone)
        with pytest.raises(InstanceNotFound):
            await client.delete_instance("p")


async def test_a_child_is_not_deleted_alone(world: World) -> None:
    async with world.runtime(*FUNCTIONS) as runtime:
        child = await with_child(runtime.client, "p")
        for force in (False, True):
            with pytest.raises(InstanceIsChild, match="sub-orchestration of 'p'") as refused:
                await runtime.client.delete_instance(child, force)
            assert (refused.value.instance_id, refused.value.parent) == (child, "p")
        assert await left(runtime.client) == ["p", child]


async def test_what_runs_is_deleted_by_force_only(world: World) -> None:
    async with world.runtime(*FUNCTIONS) as runtime:
        client = runtime.client
        await client.start_orchestration(waiting, instance_id="w")
        await until_status(client, "w", "running")
        with pytest.raises(InstanceRunning, match="cancel it and wait for its end") as refused:
            await client.delete_instance("w")
        assert refused.value.instance_id == "w"
        assert await left(client) == ["w"]

        assert await client.delete_instance("w", force=True) == 1
        assert await left(client) == []


async def test_an_ended_instance_whose_child_runs_is_deleted_by_force_only(world: World) -> None:
    async with world.runtime(*FUNCTIONS) as runtime:
        client = runtime.client
        child = await with_child(client, "p", wait=False)
        await client.wait_for_orchestration("p")
        with pytest.raises(InstanceRunning, match=f"its sub-orchestration '{child}'") as refused:
            await client.delete_instance("p")
        assert refused.value.instance_id == child
        assert sorted(await left(client)) == ["p", child]

        assert await client.delete_instance("p", force=True) == 2
        assert await left(client) == []


@pytest.mark.parametrize("instance_id", ["nobody", "", "x" * 1000, "\ud800", "a\x00b"])
async def test_an_unknown_instance_cannot_be_deleted(world: World, instance_id: str) -> None:
    async with world.client() as client:
        with pytest.raises(InstanceNotFound):
            await client.delete_instance(instance_id)


async def test_who_waits_learns_that_the_instance_was_deleted(world: World) -> None:
    async with world.runtime(*FUNCTIONS) as runtime, world.client() as other:
        client = runtime.client
        handle = await client.start_orchestration(waiting, instance_id="w")
        await until_status(client, "w", "running")
        elsewhere = await other.get_handle("w")
        waits = [asyncio.ensure_future(one.result()) for one in (handle, elsewhere)]
        waits.append(asyncio.ensure_future(other.wait_for_orchestration("w")))
        await asyncio.sleep(0)
        await other.delete_instance("w", force=True)

        for wait in waits:
            with pytest.raises(InstanceNotFound):
                await asyncio.wait_for(wait, 10)
        with pytest.raises(InstanceNotFound):
            await handle.result(timeout=10)


async def test_a_deleted_id_can_be_used_again(world: World) -> None:
    async with world.runtime(*FUNCTIONS) as runtime:
        client = runtime.client
        old = await client.start_orchestration(waiting, instance_id="w")
        await until_status(client, "w", "running")
        await client.delete_instance("w", force=True)
        new = await client.start_orchestration(waiting, instance_id="w")
        await until_status(client, "w", "running")
        await client.raise_event("w", "go", "new")

        assert await new.result() == "new"
        with pytest.raises(InstanceNotFound):
            await old.result(timeout=10)


# delete_instances_bulk


async def test_many_go_and_children_go_with_their_parents(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "PAGE", 3)
    async with world.runtime(*FUNCTIONS) as runtime:
        client = runtime.client
        for number in range(5):
            child = await with_child(client, f"p{number}")
            if number != 2:
                await client.raise_event(child, "go", "on")
                await client.wait_for_orchestration(f"p{number}")
        for number in range(3):
            started = await client.start_orchestration(counting, 0, instance_id=f"c{number}")
            await started.result()

        matching_children = InstanceFilter(name="waiting", status="completed")
        assert await client.delete_instances_bulk(matching_children) == 0
        assert await client.delete_instances_bulk(InstanceFilter(id_prefix="p")) == 8
        assert sorted(await left(client)) == ["c0", "c1", "c2", "p2", "p2::sub::2"]
        assert await client.delete_instances_bulk(InstanceFilter(name="parent"), force=True) == 2
        assert await client.delete_instances_bulk(InstanceFilter()) == 3
        assert await client.delete_instances_bulk(InstanceFilter()) == 0
        assert await left(client) == []


async def test_an_ended_parent_with_a_running_child_is_passed_over(world: World) -> None:
    async with world.runtime(*FUNCTIONS) as runtime:
        client = runtime.client
        child = await with_child(client, "p", wait=False)
        await client.wait_for_orchestration("p")

        assert await client.delete_instances_bulk(InstanceFilter()) == 0
        assert sorted(await left(client)) == ["p", child]


async def test_bulk_calls_need_a_filter_on_purpose(world: World) -> None:
    async with world.client() as client:
        anything: Any = client
        for call in (
            lambda: anything.delete_instances_bulk({"status": "failed"}),
            lambda: anything.prune_executions_bulk("failed", PruneOptions()),
            lambda: anything.delete_instances_bulk(),
        ):
            with pytest.raises(TypeError):
                await call()


# prune_executions_bulk


async def test_many_are_pruned_and_the_current_executions_stay(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "PAGE", 2)
    async with world.runtime(*FUNCTIONS) as runtime:
        client = runtime.client
        for number in range(5):
            started = await client.start_orchestration(counting, number, instance_id=f"c{number}")
            await started.final_result()

        hour_ago = PruneOptions(completed_before=timedelta(hours=1))
        everything = InstanceFilter(name="counting")
        assert await client.prune_executions_bulk(everything, hour_ago) == PruneResult(0, 0, 0)
        kept = PruneOptions(keep_last=3)
        assert await client.prune_executions_bulk(everything, kept) == PruneResult(3, 6, 2)
        one = InstanceFilter(id_prefix="c1")
        assert await client.prune_executions_bulk(one, PruneOptions()) == PruneResult(1, 2, 1)
        later = PruneOptions(completed_before=datetime(2200, 1, 1, tzinfo=UTC))
        pruned = await client.prune_executions_bulk(everything, later)
        assert pruned == PruneResult(6, 12, 3)
        for number in range(5):
            executions = await client.list_executions(f"c{number}")
            assert [one.execution_id for one in executions] == [number + 1]


async def test_what_runs_is_pruned_too_and_goes_on(world: World) -> None:
    @orchestration
    async def polling(ctx: OrchestrationContext, left: int) -> str:
        if left:
            return await ctx.continue_as_new(left - 1)
        return await ctx.schedule_wait("go", str)

    async with world.runtime(polling) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(polling, 3, instance_id="p")
        await until_execution(client, "p", 4)
        pruned = await client.prune_executions_bulk(
            InstanceFilter(status="running"), PruneOptions()
        )
        await until_status(client, "p", "running")
        await client.raise_event("p", "go", "on")

        assert pruned == PruneResult(3, 6, 1)
        assert await handle.final_result() == "on"


async def test_a_closed_client_removes_nothing(world: World) -> None:
    client = world.client()
    with pytest.raises(StoreClosed):
        await client.delete_instance("x")
    with pytest.raises(StoreClosed):
        await client.delete_instances_bulk(InstanceFilter())
    with pytest.raises(StoreClosed):
        await client.prune_executions_bulk(InstanceFilter(), PruneOptions())
