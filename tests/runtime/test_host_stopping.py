"""Graceful stop, outages, stuck turns: what is under way is neither lost nor charged."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Awaitable, Sequence

import pytest
from kit import (
    Gate,
    Through,
    World,
    history,
    kinds,
    until,
    until_blocked,
    until_recorded,
    until_status,
)
from mixed import ATTEMPTS, HOSTED, add, expected, run_mixed, sequence, start_mixed

from perdure import (
    Client,
    OrchestrationContext,
    PerdureError,
    ProviderError,
    StoreClosed,
    activity,
    activity_context,
    orchestration,
)
from perdure.errors import StoreUnavailable
from perdure.providers.contract import (
    ClaimActivities,
    ClaimInstances,
    Operation,
    RowFilter,
    SendMessage,
)
from perdure.runtime import intake, watchdog

GATES: dict[str, Gate] = {}
TRIES: list[tuple[str, int]] = []


@activity
async def gated(name: str) -> str:
    TRIES.append((name, activity_context().attempt))
    await GATES[name].wait()
    return name


@orchestration
async def waiting_on(ctx: OrchestrationContext, name: str) -> str:
    return await gated(name)


async def test_activities_may_finish_while_the_runtime_stops(world: World) -> None:
    TRIES.clear()
    gate = GATES["finishing"] = Gate()
    async with world.runtime(waiting_on, gated) as runtime:
        await runtime.client.start_orchestration(waiting_on, "finishing", instance_id="w")
        await gate.has(1)
        stopping = asyncio.create_task(runtime.stop(5))
        await asyncio.sleep(0.01)
        assert not stopping.done()
        gate.open()
        await stopping
    async with world.runtime(waiting_on, gated) as runtime:
        assert (await runtime.client.wait_for_orchestration("w")).output == "finishing"
    assert TRIES == [("finishing", 1)]


async def test_activities_that_take_too_long_are_cancelled_and_given_back_uncharged(
    world: World,
) -> None:
    TRIES.clear()
    gate = GATES["too long"] = Gate()
    for number in range(4):
        async with world.runtime(waiting_on, gated) as runtime:
            await runtime.client.start_orchestration(
                waiting_on, "too long", instance_id="w", if_exists="return"
            )
            await gate.has(number + 1)
            await runtime.stop(0)
    gate.open()
    async with world.runtime(waiting_on, gated) as runtime:
        assert (await runtime.client.wait_for_orchestration("w")).output == "too long"
    assert TRIES == [("too long", 1)] * 5


async def test_stopping_again_and_again_charges_nothing_and_loses_nothing(world: World) -> None:
    ATTEMPTS.clear()
    async with world.client() as client:
        handles = await start_mixed(client, f"{world.kind} stops", range(3))
        generator = random.Random(4)
        for _ in range(25):
            runtime = world.runtime(*HOSTED, max_residents=generator.choice([0, 3, 1000]))
            await runtime.start()
            await asyncio.sleep(generator.uniform(0, 0.02))
            await runtime.stop(generator.choice([0, 1]))
            rows = await client.provider.list_instances(RowFilter(), limit=1000)
            assert {row.attempt for row in rows} == {0}
        async with world.runtime(*HOSTED):
            results = await asyncio.gather(*(handle.final_result() for handle in handles))
        found = {h.instance_id: result for h, result in zip(handles, results, strict=True)}
        assert found == expected(range(3))
        assert set(ATTEMPTS) == {1}
        assert await client.provider.nodes() == []


@activity
def stubborn(name: str) -> str:
    TRIES.append((name, activity_context().attempt))
    STUBBORN.wait(5)
    return name


STUBBORN = threading.Event()


@orchestration
async def waiting_on_thread(ctx: OrchestrationContext) -> str:
    return await stubborn("stubborn")


async def test_a_thread_that_goes_on_regardless_is_left_behind(sqlite: World) -> None:
    TRIES.clear()
    STUBBORN.clear()
    async with sqlite.runtime(waiting_on_thread, stubborn) as runtime:
        await runtime.client.start_orchestration(waiting_on_thread, instance_id="w")
        await until(lambda: TRIES)
        began = time.monotonic()
        await runtime.stop(0)
        assert time.monotonic() - began < 2
    STUBBORN.set()
    async with sqlite.runtime(waiting_on_thread, stubborn) as runtime:
        assert (await runtime.client.wait_for_orchestration("w")).output == "stubborn"
    assert TRIES == [("stubborn", 1)] * 2


async def test_a_stopped_runtime_says_so(world: World) -> None:
    runtime = world.runtime(waiting_on, gated)
    with pytest.raises(PerdureError, match="not started"):
        _ = runtime.node_id
    with pytest.raises(StoreClosed):
        await runtime.client.start_orchestration(waiting_on, "x")
    await runtime.stop()
    async with runtime:
        with pytest.raises(PerdureError, match="started already"):
            await runtime.start()
    await runtime.stop()
    with pytest.raises(StoreClosed):
        await runtime.client.get_instance("x")


async def test_waiting_for_a_result_ends_with_the_client(world: World) -> None:
    gate = GATES["waiting"] = Gate()
    async with world.runtime(waiting_on, gated) as runtime:
        handle = await runtime.client.start_orchestration(waiting_on, "waiting", instance_id="w")
        results = [asyncio.create_task(handle.result()) for _ in range(3)]
        await gate.has(1)
        await runtime.stop(0)
        for error in await asyncio.gather(*results, return_exceptions=True):
            assert isinstance(error, StoreClosed)


async def test_an_outage_of_the_store_is_waited_out(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    through = Through(world.provider())
    generator = random.Random(5)
    failures = 0

    def fail(batch: Sequence[Operation]) -> None:
        nonlocal failures
        if generator.random() < 0.2:
            failures += 1
            raise StoreUnavailable("the test's own outage")

    ATTEMPTS.clear()
    through.before = fail
    with caplog.at_level(logging.WARNING, "perdure"):
        async with world.runtime(*HOSTED, provider=through, max_residents=5) as runtime:
            found = await run_mixed(runtime.client, f"{world.kind} outage", range(2))
    assert found == expected(range(2))
    assert failures > 3
    assert set(ATTEMPTS) == {1}
    assert "degraded: the test's own outage" in caplog.text
    assert "available again" in caplog.text


async def test_reads_that_fail_for_a_while_stop_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "RETRY_S", 0.01)
    provider = world.provider()
    generator = random.Random(6)
    failures = 0

    def unreliable(name: str) -> None:
        inner = getattr(provider, name)

        async def read(*args: object) -> object:
            nonlocal failures
            if generator.random() < 0.3:
                failures += 1
                raise StoreUnavailable("the test's own outage")
            return await inner(*args)

        setattr(provider, name, read)

    for name in ("survey", "histories", "reap_nodes", "lost_activities", "unrunnable"):
        unreliable(name)
    async with world.runtime(*HOSTED, provider=provider, max_residents=0) as runtime:
        found = await run_mixed(runtime.client, f"{world.kind} reads", range(1))
    assert found == expected(range(1))
    assert failures > 3


async def test_who_waits_for_a_result_looks_less_often_the_longer_an_outage_lasts(
    memory: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = GATES["unseen"] = Gate()
    provider = memory.provider()
    looks = 0

    async def fail(instance_ids: object) -> object:
        nonlocal looks
        looks += 1
        raise StoreUnavailable("the test's own outage")

    async with memory.runtime(waiting_on, gated) as runtime, Client(provider) as client:
        started = await runtime.client.start_orchestration(waiting_on, "unseen", instance_id="w")
        waiting = asyncio.create_task((await client.get_handle("w")).result())
        await gate.has(1)
        with monkeypatch.context() as outage:
            outage.setattr(provider, "get_instances", fail)
            gate.open()
            await started.result()
            await asyncio.sleep(60)
        assert await waiting == "unseen"
        assert 1 < looks < 100


async def test_a_heartbeat_that_an_outage_has_stopped_is_repeated_at_once_and_not_with_the_next(
    sqlite: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watchdog, "TICK_S", 0.01)
    provider = sqlite.provider()
    beat, beats = provider.beat, 0

    def fail_at_first(node_id: str) -> bool:
        nonlocal beats
        beats += 1
        if beats < 4:
            raise StoreUnavailable("the test's own outage")
        return beat(node_id)

    monkeypatch.setattr(provider, "beat", fail_at_first)
    async with sqlite.runtime(waiting_on, gated, provider=provider, lease_s=3_600):
        await until(lambda: beats == 4)
    assert caplog.text.count("the heartbeat failed: the test's own outage") == 3
    assert "Traceback" not in caplog.text


async def test_a_runtime_stops_during_an_outage_without_waiting_for_its_end(
    world: World,
) -> None:
    through = Through(world.provider())
    gate = GATES["down"] = Gate()
    async with world.runtime(waiting_on, gated, provider=through) as runtime:
        await runtime.client.start_orchestration(waiting_on, "down", instance_id="w")
        await gate.has(1)

        def fail(batch: Sequence[Operation]) -> None:
            raise StoreUnavailable("the test's own outage")

        through.before = fail
        gate.open()
        began = asyncio.get_running_loop().time()
        await runtime.stop(1)
        assert asyncio.get_running_loop().time() - began < 3
    async with world.runtime(waiting_on, gated) as runtime:
        assert (await runtime.client.wait_for_orchestration("w")).output == "down"


async def test_a_bad_value_in_a_batch_fails_alone(world: World) -> None:
    async with world.runtime(sequence, *HOSTED[:2]) as runtime:
        client = runtime.client
        await client.start_orchestration(sequence, 0, instance_id="target")
        bad = [
            client.committer.write(SendMessage("target", value))  # type: ignore[arg-type]
            for value in ("text", 5, None, ["list"])
        ]
        good = [client.start_orchestration(sequence, seed) for seed in range(20)]
        found = await asyncio.gather(*bad, *good, return_exceptions=True)

        assert all(isinstance(error, ProviderError) for error in found[:4]), found[:4]
        results = [await handle.result() for handle in found[4:]]  # type: ignore[union-attr]
        assert results == [seed + 11 for seed in range(20)]


async def test_a_fault_in_one_callback_does_not_hold_up_its_neighbours(sqlite: World) -> None:
    async with sqlite.runtime(sequence, *HOSTED[:2]) as runtime:
        loop = asyncio.get_running_loop()
        reported: list[str] = []
        loop.set_exception_handler(lambda _, context: reported.append(context["message"]))

        def broken(outcome: object) -> None:
            raise LookupError("broken")

        told: list[object] = []
        runtime.client.committer.submit(SendMessage("nobody", b"{}"), broken)
        for _ in range(5):
            runtime.client.committer.submit(SendMessage("nobody", b"{}"), told.append)
        await until(lambda: len(told) == 5)
        assert len(reported) == 1
        handle = await runtime.client.start_orchestration(sequence, 1)
        assert await handle.result() == 12
        loop.set_exception_handler(None)


SPINNING = True


@orchestration
async def spinning(ctx: OrchestrationContext) -> str:
    await add(1, 1)
    while SPINNING:
        pass
    return "freed"


@orchestration
async def spinning_and_catching(ctx: OrchestrationContext) -> str:
    try:
        while SPINNING:
            pass
    except BaseException:
        return "caught it"
    return "freed"


@pytest.fixture
def attentive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "TICK_S", 0.05)
    monkeypatch.setattr(watchdog, "REPORT_S", 0.1)
    monkeypatch.setattr("perdure.runtime.leaving.RETRY_MS_MIN", 50)


@pytest.mark.usefixtures("attentive")
@pytest.mark.parametrize("kind", [spinning, spinning_and_catching])
async def test_a_stuck_turn_is_interrupted_and_reported_and_others_go_on(
    sqlite: World, kind: object, caplog: pytest.LogCaptureFixture
) -> None:
    global SPINNING
    SPINNING = True
    async with sqlite.runtime(kind, *HOSTED, turn_timeout_s=0.3) as runtime:  # type: ignore[arg-type]
        client = runtime.client
        others = [await client.start_orchestration(sequence, seed) for seed in range(5)]
        handle = await client.start_orchestration(kind, instance_id="s")  # type: ignore[call-overload]

        assert await until_blocked(client, "s") == "stuck"
        assert "did not yield" in ((await client.get_instance("s")).blocked_detail or "")
        assert "blocks the loop" in caplog.text
        assert "in spinning" in caplog.text, "the report says where it hangs"
        assert [await other.result() for other in others] == [11, 12, 13, 14, 15]
        assert "OrchestrationCompleted" not in kinds(await client.read_history("s"))
        SPINNING = False
        assert await handle.result() == "freed"
        await history(client, "s")


@orchestration
async def hanging_in_finally(ctx: OrchestrationContext) -> None:
    try:
        await ctx.schedule_wait("never")
    finally:
        while SPINNING:
            pass


@pytest.mark.usefixtures("attentive")
async def test_cleanup_that_hangs_while_it_is_thrown_away_is_interrupted_too(
    sqlite: World, caplog: pytest.LogCaptureFixture
) -> None:
    global SPINNING
    SPINNING = True
    try:
        async with sqlite.runtime(
            hanging_in_finally, *HOSTED, turn_timeout_s=0.3, max_residents=0
        ) as runtime:
            client = runtime.client
            await client.start_orchestration(hanging_in_finally, instance_id="h")
            await until_status(client, "h", "running")
            await until(lambda: "blocks the loop" in caplog.text)
            other = await client.start_orchestration(sequence, 1)
            assert await other.result() == 12
    finally:
        SPINNING = False


@pytest.mark.parametrize("what", [ClaimInstances, ClaimActivities])
async def test_what_is_claimed_while_the_runtime_stops_is_given_back_uncharged(
    world: World, what: type
) -> None:
    TRIES.clear()
    GATES["claimed"] = Gate()
    through = Through(world.provider())
    claiming, go_on = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        claiming.set()
        await go_on.wait()

    def look(batch: Sequence[Operation]) -> Awaitable[None] | None:
        return hold() if any(isinstance(op, what) for op in batch) else None

    async with world.runtime(waiting_on) as elsewhere:
        if what is ClaimInstances:
            await elsewhere.stop()
        async with world.client() as client:
            await client.start_orchestration(waiting_on, "claimed", instance_id="w")
            if what is ClaimActivities:
                await until_recorded(client, "w", "ActivityScheduled")
            through.before = look
            runtime = world.runtime(waiting_on, gated, provider=through)
            await runtime.start()
            await claiming.wait()
            stopping = asyncio.create_task(runtime.stop(1))
            await asyncio.sleep(0.01)
            go_on.set()
            await stopping

            assert TRIES == []
            (row,) = await client.provider.list_instances(RowFilter())
            assert row.attempt == 0
            GATES["claimed"].open()
            async with world.runtime(waiting_on, gated):
                assert (await client.wait_for_orchestration("w")).output == "claimed"
            assert TRIES == [("claimed", 1)]
