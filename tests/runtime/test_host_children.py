"""Sub-orchestrations and detached orchestrations."""

from __future__ import annotations

import asyncio

import pytest
from kit import World, history, kinds, until_recorded, until_status

from perdure import (
    OrchestrationContext,
    OrchestrationFailedError,
    SubOrchestrationError,
    activity,
    orchestration,
)
from perdure.core import events


@activity
async def echo(text: str) -> str:
    return text


@orchestration
async def child(ctx: OrchestrationContext, text: str) -> str:
    return f"{ctx.instance_id}:{await echo(text)}"


@orchestration
async def failing(ctx: OrchestrationContext) -> None:
    raise LookupError("not here")


@orchestration
async def waiting(ctx: OrchestrationContext) -> str:
    return await ctx.schedule_wait("go", str)


@orchestration
async def parent(ctx: OrchestrationContext) -> list[str]:
    derived = await child("a")
    given = await child.options(instance_id="given")("b")
    return [derived, given]


@orchestration
async def catching(ctx: OrchestrationContext) -> str:
    try:
        await failing()
    except SubOrchestrationError as error:
        return f"{error.type} {error.message}"
    return "no error"


@orchestration
async def taking(ctx: OrchestrationContext) -> str:
    try:
        return await child.options(instance_id="taken")("x")
    except SubOrchestrationError as error:
        return error.type


async def test_children_have_derived_or_given_ids_and_give_their_results(world: World) -> None:
    async with world.runtime(parent, child, echo) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(parent, instance_id="p")

        assert await handle.result() == ["p::sub::2:a", "given:b"]
        row = await client.get_instance("p::sub::2")
        assert row.parent_instance == "p"
        started = (await history(client, "given"))[0]
        assert isinstance(started, events.OrchestrationStarted)
        assert (started.parent_instance, started.parent_execution, started.parent_id) == ("p", 1, 4)


async def test_a_child_id_that_is_taken_is_a_failure_and_no_hang(world: World) -> None:
    async with world.runtime(taking, child, echo) as runtime:
        client = runtime.client
        await (await client.start_orchestration(child, "first", instance_id="taken")).result()
        handle = await client.start_orchestration(taking, instance_id="t")

        assert await handle.result() == "InstanceAlreadyExists"
        assert (await client.get_instance("taken")).output == "taken:first"


@orchestration
async def two_of_a_name(ctx: OrchestrationContext) -> list[str]:
    results = await asyncio.gather(
        *(child.options(instance_id="twin")(text) for text in "ab"), return_exceptions=True
    )
    return [type(r).__name__ if isinstance(r, Exception) else str(r) for r in results]


async def test_two_children_of_one_turn_with_one_id_are_one_child_and_one_failure(
    world: World,
) -> None:
    async with world.runtime(two_of_a_name, child, echo) as runtime:
        handle = await runtime.client.start_orchestration(two_of_a_name)

        assert await handle.result() == ["twin:a", "SubOrchestrationError"]


async def test_a_failure_of_a_child_arrives_with_its_type(world: World) -> None:
    async with world.runtime(catching, failing) as runtime:
        handle = await runtime.client.start_orchestration(catching, instance_id="c")

        assert await handle.result() == "LookupError not here"
        failed = (await history(runtime.client, "c"))[2]
        assert isinstance(failed, events.SubOrchestrationFailed)
        assert 'raise LookupError("not here")' in failed.error.traceback


@orchestration
async def failing_through(ctx: OrchestrationContext) -> None:
    await failing()


async def test_a_failure_of_a_child_that_nobody_catches_fails_the_parent(world: World) -> None:
    async with world.runtime(failing_through, failing) as runtime:
        handle = await runtime.client.start_orchestration(failing_through)

        with pytest.raises(OrchestrationFailedError) as failed:
            await handle.result()
        assert failed.value.type == "SubOrchestrationError"
        assert "not here" in failed.value.message


@orchestration
async def generations(ctx: OrchestrationContext, left: int) -> str:
    if left:
        return await ctx.continue_as_new(left - 1)
    return f"after {ctx.execution_id}"


@orchestration
async def patient_parent(ctx: OrchestrationContext) -> str:
    return await generations.options(instance_id="g")(3)


async def test_a_child_that_continues_as_new_reports_once_with_its_final_result(
    world: World,
) -> None:
    async with world.runtime(patient_parent, generations) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(patient_parent, instance_id="p")

        assert await handle.result() == "after 4"
        assert kinds(await history(client, "p")) == [
            "OrchestrationStarted",
            "SubOrchestrationScheduled",
            "SubOrchestrationCompleted",
            "OrchestrationCompleted",
        ]
        assert len(await client.list_executions("g")) == 4


@orchestration
async def parent_of_waiting(ctx: OrchestrationContext) -> str:
    return await waiting.options(instance_id="w")()


async def test_a_cancelled_parent_cancels_its_open_child(world: World) -> None:
    async with world.runtime(parent_of_waiting, waiting) as runtime:
        client = runtime.client
        await client.start_orchestration(parent_of_waiting, instance_id="p")
        await until_status(client, "p", "running")
        await until_recorded(client, "p", "SubOrchestrationScheduled")

        await client.cancel_instance("p", "no longer wanted")

        assert (await client.wait_for_orchestration("p")).status == "cancelled"
        gone = await client.wait_for_orchestration("w")
        assert gone.status == "cancelled"
        assert gone.error is not None
        assert "parent p" in gone.error.message
        assert kinds(await history(client, "p"))[-2:] == [
            "SubOrchestrationCancelled",
            "OrchestrationCancelled",
        ]


@orchestration
async def failing_parent(ctx: OrchestrationContext) -> None:
    lost = child.options(instance_id="orphan")("x")
    assert not lost.done()
    await ctx.schedule_timer(0)
    raise RuntimeError("enough")


async def test_children_of_a_failed_parent_go_on(world: World) -> None:
    async with world.runtime(failing_parent, child, echo) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(failing_parent)
        with pytest.raises(OrchestrationFailedError):
            await handle.result()

        assert (await client.wait_for_orchestration("orphan")).output == "orphan:x"


@orchestration
async def racing(ctx: OrchestrationContext) -> str:
    position, _ = await ctx.select(waiting.options(instance_id="loser")(), ctx.schedule_timer(0.01))
    return "timer" if position == 1 else "child"


async def test_a_child_that_lost_a_race_is_asked_to_cancel(world: World) -> None:
    async with world.runtime(racing, waiting) as runtime:
        handle = await runtime.client.start_orchestration(racing)

        assert await handle.result() == "timer"
        assert (await runtime.client.wait_for_orchestration("loser")).status == "cancelled"


@orchestration
async def stillborn(ctx: OrchestrationContext) -> str:
    child.options(instance_id="never")("x").cancel()
    await ctx.schedule_timer(0)
    return "done"


async def test_a_child_taken_back_in_its_own_turn_is_never_started(world: World) -> None:
    async with world.runtime(stillborn, child, echo) as runtime:
        handle = await runtime.client.start_orchestration(stillborn, instance_id="s")

        assert await handle.result() == "done"
        assert [row.instance_id for row in await runtime.client.list_instances()] == ["s"]


@orchestration
async def starting_last(ctx: OrchestrationContext) -> str:
    return ctx.start_orchestration(child, "last", instance_id="detached-last")


@orchestration
async def starting_and_continuing(ctx: OrchestrationContext, again: bool = True) -> list[str]:
    if again:
        ctx.start_orchestration(child, "first", instance_id="detached-first")
        return await ctx.continue_as_new(False)
    return [ctx.start_orchestration(child, "x"), ctx.start_orchestration(child, "y")]


async def test_a_detached_start_as_the_last_act_starts(world: World) -> None:
    async with world.runtime(starting_last, child, echo) as runtime:
        handle = await runtime.client.start_orchestration(starting_last)

        assert await handle.result() == "detached-last"
        ended = await runtime.client.wait_for_orchestration("detached-last")
        assert ended.output == "detached-last:last"
        assert ended.parent_instance is None


async def test_a_detached_start_in_the_turn_of_continue_as_new_starts(world: World) -> None:
    async with world.runtime(starting_and_continuing, child, echo) as runtime:
        client = runtime.client
        handle = await client.start_orchestration(starting_and_continuing, instance_id="s")

        first, second = await handle.final_result()
        assert first.startswith("s::detached::2.2-")
        assert second.startswith("s::detached::2.3-")
        for id, text in (("detached-first", "first"), (first, "x"), (second, "y")):
            assert (await client.wait_for_orchestration(id)).output == f"{id}:{text}"


async def test_a_detached_start_whose_id_is_taken_is_dropped_and_counted(world: World) -> None:
    async with world.runtime(starting_last, child, echo) as runtime:
        client = runtime.client
        before = await client.start_orchestration(child, "before", instance_id="detached-last")
        await before.result()
        handle = await client.start_orchestration(starting_last)

        assert await handle.result() == "detached-last"
        assert runtime.counters == {"start_taken": 1}
        assert (await client.get_instance("detached-last")).output == "detached-last:before"


@orchestration
async def tree(ctx: OrchestrationContext, depth: int) -> int:
    if depth == 0:
        return 1
    return sum(await asyncio.gather(*(tree(depth - 1) for _ in range(3))))


async def test_a_tree_of_children_adds_up(world: World) -> None:
    async with world.runtime(tree) as runtime:
        handle = await runtime.client.start_orchestration(tree, 4, instance_id="t")

        assert await handle.result() == 81
        assert len(await runtime.client.list_instances(limit=1000)) == 121


@orchestration
async def nesting(ctx: OrchestrationContext, depth: int) -> str:
    try:
        return await nesting(depth + 1)
    except SubOrchestrationError as error:
        return error.message
    except Exception as error:
        return f"{type(error).__name__} at {depth}"


async def test_nesting_has_a_limit_with_a_name(world: World) -> None:
    async with world.runtime(nesting) as runtime:
        handle = await runtime.client.start_orchestration(nesting, 0)

        assert await handle.result() == "NestingTooDeep at 32"
