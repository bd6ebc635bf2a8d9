"""Instances that cannot go on: shown with the reason, untouched, and healed by the right code."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import pytest
from kit import (
    World,
    history,
    kinds,
    until,
    until_async,
    until_blocked,
    until_recorded,
    until_status,
)

from perdure import (
    Client,
    InstanceFilter,
    OrchestrationContext,
    OrchestrationFailedError,
    Runtime,
    activity,
    orchestration,
)
from perdure.providers.contract import CommitTurn
from perdure.runtime import leaving, turns


@pytest.fixture(autouse=True)
def _impatient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "sqlite" in request.node.name:
        monkeypatch.setattr(leaving, "RETRY_MS_MIN", 50)


@activity
async def echo(text: str) -> str:
    return text


@orchestration(name="changing")
async def as_deployed(ctx: OrchestrationContext) -> list[str]:
    first = await echo("one")
    await ctx.schedule_wait("go")
    return [first, await echo("two")]


@orchestration(name="changing")
async def another_input(ctx: OrchestrationContext) -> list[str]:
    first = await echo("uno")
    await ctx.schedule_wait("go")
    return [first]


@orchestration(name="changing")
async def another_order(ctx: OrchestrationContext) -> list[str]:
    await ctx.schedule_wait("go")
    return [await echo("one")]


@orchestration(name="changing")
async def one_call_less(ctx: OrchestrationContext) -> list[str]:
    await ctx.schedule_wait("go")
    return []


@orchestration(name="changing")
async def over_at_once(ctx: OrchestrationContext) -> list[str]:
    return []


@orchestration(name="changing")
async def one_call_more(ctx: OrchestrationContext) -> list[str]:
    first = await echo("one")
    echo("more")
    await ctx.schedule_wait("go")
    return [first]


@orchestration(name="changing")
async def catching_everything(ctx: OrchestrationContext) -> list[str]:
    try:
        return [await echo("uno")]
    except BaseException:
        return ["fallback"]


@orchestration(name="changing")
async def forbidden(ctx: OrchestrationContext) -> list[str]:
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, time.sleep, 0)
    return []


@orchestration(name="changing")
async def decoding_otherwise(ctx: OrchestrationContext) -> list[str]:
    number = await ctx.schedule_activity("echo", "one", result_type=int)
    return [str(number)]


@orchestration(name="changing")
async def taking_input(ctx: OrchestrationContext, number: int) -> list[str]:
    return [str(number)]


@orchestration
async def healthy(ctx: OrchestrationContext, text: str) -> str:
    return await echo(text)


async def prepare(world: World) -> list[bytes]:
    """An instance of the deployed code that waits for its event; returns its history."""
    async with world.runtime(as_deployed, echo) as runtime:
        client = runtime.client
        await client.start_orchestration(as_deployed, instance_id="c")
        await until_recorded(client, "c", "ExternalSubscribed")
        return await client.provider.read_history("c")


@pytest.mark.parametrize(
    ("wrong", "reason", "detail"),
    [
        (another_input, "nondeterminism", ['input="one"', 'input="uno"', "another_input"]),
        (
            another_order,
            "nondeterminism",
            ["ActivityScheduled", "ExternalSubscribed", "another_order"],
        ),
        (one_call_less, "nondeterminism", ["ActivityScheduled"]),
        (over_at_once, "nondeterminism", ["ActivityScheduled", "OrchestrationCompleted"]),
        (one_call_more, "nondeterminism", ["ExternalSubscribed", '"more"', "one_call_more"]),
        (catching_everything, "nondeterminism", ['input="uno"']),
        (forbidden, "forbidden_operation", ["run_in_executor", "forbidden", "activity"]),
        (decoding_otherwise, "incompatible_payload", ["int"]),
        (taking_input, "incompatible_payload", ["int"]),
    ],
)
async def test_changed_code_blocks_the_instance_and_the_right_code_heals_it(
    world: World, wrong: object, reason: str, detail: list[str]
) -> None:
    before = await prepare(world)
    async with world.client() as client:
        await client.raise_event("c", "go")
        async with world.runtime(wrong, healthy, echo) as runtime:  # type: ignore[arg-type]
            assert await until_blocked(client, "c") == reason

            blocked = await client.get_instance("c")
            assert blocked.status == "running"
            assert blocked.retry_ms is not None
            for part in detail:
                assert part in (blocked.blocked_detail or ""), blocked.blocked_detail
            page = await client.list_instances(InstanceFilter(blocked=True))
            assert [row.instance_id for row in page] == ["c"]
            assert await client.provider.read_history("c") == before
            other = await runtime.client.start_orchestration(healthy, "fine")
            assert await other.result() == "fine"
        async with world.runtime(as_deployed, healthy, echo):
            healed = await client.wait_for_orchestration("c")

            assert healed.output == ["one", "two"]
            assert healed.blocked is None
            assert (await client.provider.read_history("c"))[: len(before)] == before


async def test_a_blocked_instance_is_tried_again_by_itself(memory: World) -> None:
    await prepare(memory)
    async with memory.runtime(another_input, echo) as wrong:
        client = wrong.client
        await client.raise_event("c", "go")
        await until_blocked(client, "c")
        first = (await client.get_instance("c")).retry_ms
        assert first is not None

        async def tried_again() -> bool:
            return (await client.get_instance("c")).retry_ms != first

        await until_async(tried_again)
        second = (await client.get_instance("c")).retry_ms or 0
        assert second - first > 1_500, "the time between tries grows"


async def test_events_and_cancels_for_a_blocked_instance_are_kept(world: World) -> None:
    await prepare(world)
    async with world.runtime(another_input, echo) as wrong:
        await wrong.client.raise_event("c", "go")
        await until_blocked(wrong.client, "c")
        await wrong.client.cancel_instance("c", "stop it")
    async with world.runtime(as_deployed, echo) as right:
        # Both were waiting; the cancel request came while the second activity was not yet begun.
        ended = await right.client.wait_for_orchestration("c")
        assert ended.status == "cancelled"
        assert "ExternalEvent" in kinds(await history(right.client, "c"))


async def test_a_completion_for_an_instance_that_blocked_is_kept(world: World) -> None:
    release = asyncio.Event()

    @activity(name="slow")
    async def slow() -> str:
        await release.wait()
        return "kept"

    @orchestration(name="o")
    async def right(ctx: OrchestrationContext) -> str:
        wait = ctx.schedule_wait("go")
        said = await ctx.schedule_activity(slow)
        await wait
        return said

    @orchestration(name="o")
    async def wrong(ctx: OrchestrationContext) -> str:
        await ctx.schedule_timer(1)
        return "wrong"

    ran = 0

    async with world.runtime(right, slow, max_residents=0) as runtime:
        client = runtime.client
        await client.start_orchestration(right, instance_id="o")
        await until_status(client, "o", "running")
        await until_recorded(client, "o", number=3)
        ran += 1
        # The copy in memory goes, the activity runs on; the message makes the node replay.
        await block_by_mutation(runtime, wrong)
        await client.raise_event("o", "go")
        await until_blocked(client, "o")
        release.set()
    async with world.runtime(right, slow) as runtime:
        assert (await runtime.client.wait_for_orchestration("o")).output == "kept"
        assert ran == 1


async def block_by_mutation(runtime: Runtime, wrong: object) -> None:
    """As if the code had been reloaded in place."""
    registry = runtime._registry
    registry.orchestrations[("o", "1")] = wrong  # type: ignore[assignment]
    registry._latest["o"] = wrong  # type: ignore[assignment]


async def test_an_orchestration_that_nobody_lists_is_shown_and_waits(world: World) -> None:
    async with world.client() as client:
        handle = await client.start_orchestration("healthy", "in the end", instance_id="h")
        async with world.runtime(echo):
            assert await until_blocked(client, "h") == "not_registered"
            assert "healthy" in ((await client.get_instance("h")).blocked_detail or "")
            assert (await client.get_instance("h")).status == "pending"
        async with world.runtime(healthy, echo):
            assert await handle.result() == "in the end"
            assert (await client.get_instance("h")).blocked is None


async def test_an_unlisted_orchestration_is_reported_at_start_up(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.client() as client:
        await client.start_orchestration("nobody", instance_id="n")
        async with world.runtime(echo):
            await until(lambda: "nobody" in caplog.text)
    (said,) = [record for record in caplog.records if "nobody" in record.getMessage()]
    assert "1 unfinished instance" in said.getMessage()


async def test_an_activity_that_nobody_lists_waits_for_a_node_that_has_it(world: World) -> None:
    async with world.runtime(healthy) as runtime:
        handle = await runtime.client.start_orchestration(healthy, "found", instance_id="h")
        await asyncio.sleep(world.s(20))
        assert (await runtime.client.get_instance("h")).status == "running"
        async with world.runtime(echo):
            assert await handle.result() == "found"


@orchestration
async def exiting(ctx: OrchestrationContext) -> None:
    raise SystemExit(3)


@orchestration
async def interrupted(ctx: OrchestrationContext) -> None:
    await echo("x")
    raise KeyboardInterrupt


@orchestration
async def never_idle(ctx: OrchestrationContext) -> None:
    for _ in itertools.count():
        await asyncio.sleep(0)


@orchestration
async def deep(ctx: OrchestrationContext) -> None:
    def down() -> None:
        down()

    down()


@pytest.mark.parametrize(
    ("bad", "type_"),
    [
        (exiting, "SystemExit"),
        (interrupted, "KeyboardInterrupt"),
        (never_idle, "TurnLimitExceeded"),
        (deep, "RecursionError"),
    ],
)
async def test_whatever_an_orchestration_raises_fails_it_and_no_other(
    world: World, bad: object, type_: str
) -> None:
    async with world.runtime(bad, healthy, echo) as runtime:  # type: ignore[arg-type]
        client = runtime.client
        failing = await client.start_orchestration(bad)  # type: ignore[call-overload]
        fine = await client.start_orchestration(healthy, "fine")

        with pytest.raises(OrchestrationFailedError) as failed:
            await failing.result()
        assert failed.value.type == type_
        assert await fine.result() == "fine"


EXITS: list[str] = []


@orchestration
async def innocent(ctx: OrchestrationContext) -> str:
    await echo("x")
    EXITS.append(ctx.instance_id)
    if EXITS.count(ctx.instance_id) == 1:
        raise MemoryError
    return await echo("went on")


async def test_a_turn_that_ran_out_of_memory_once_is_run_again(world: World) -> None:
    EXITS.clear()
    async with world.runtime(innocent, echo) as runtime:
        client: Client = runtime.client
        handle = await client.start_orchestration(innocent, instance_id="i")

        assert await handle.result() == "went on"
        assert kinds(await history(client, "i")).count("ActivityCompleted") == 2


async def test_a_fault_of_the_engine_itself_blocks_one_instance_and_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = turns.plan_turn

    def broken(resident: Any, *others: Any) -> CommitTurn:
        if resident.instance_id == "bad":
            raise LookupError("a fault in Perdure")
        return plan(resident, *others)

    monkeypatch.setattr(turns, "plan_turn", broken)
    async with world.runtime(healthy, echo) as runtime:
        client = runtime.client
        bad = await client.start_orchestration(healthy, "healed", instance_id="bad")
        fine = [await client.start_orchestration(healthy, str(number)) for number in range(5)]

        assert [await one.result() for one in fine] == list("01234")
        assert await until_blocked(client, "bad") == "internal"
        assert "please report it" in ((await client.get_instance("bad")).blocked_detail or "")
        monkeypatch.setattr(turns, "plan_turn", plan)
        assert await bad.result() == "healed"
