"""Work that kills its process: found out after ten claims; nothing else is condemned with it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from kit import World, until_status
from poison_worker import deadly_call, deadly_turn, healthy

from perdure import Client, OrchestrationContext, activity, orchestration
from perdure.limits import CLAIMS_MAX
from perdure.providers.contract import ClaimActivities, ClaimedActivities, ClaimInstances

WORKER = Path(__file__).with_name("poison_worker.py")
RUNS_MAX = CLAIMS_MAX + 8


def run_until_it_survives(world: World, *ids: str) -> int:
    """Start the worker again each time it dies; returns how often it did."""
    for deaths in range(RUNS_MAX):
        done = subprocess.run(
            [sys.executable, str(WORKER), world.url, *ids],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        if done.returncode == 0:
            return deaths
        assert done.returncode == -9, done.stderr
    raise AssertionError(f"the worker died {RUNS_MAX} times")


async def start_healthy(client: Client) -> list[str]:
    ids = [f"h{number}" for number in range(20)]
    for number, id in enumerate(ids):
        await client.start_orchestration(healthy, number, instance_id=id)
    return ids


async def check_healthy(client: Client, ids: list[str]) -> None:
    for number, id in enumerate(ids):
        row = await client.get_instance(id)
        assert (row.status, row.output) == ("completed", number)


@pytest.mark.slow
async def test_an_orchestration_that_kills_its_process_is_blocked_as_poison(
    sqlite: World,
) -> None:
    async with sqlite.client() as client:
        await client.start_orchestration(deadly_turn, instance_id="poison")
        ids = await start_healthy(client)

        deaths = run_until_it_survives(sqlite, *ids, "poison")

        assert deaths >= CLAIMS_MAX
        blocked = await client.get_instance("poison")
        assert (blocked.status, blocked.blocked) == ("running", "poison")
        assert str(CLAIMS_MAX) in (blocked.blocked_detail or "")
        await check_healthy(client, ids)


@pytest.mark.slow
async def test_an_activity_that_kills_its_process_fails_as_poison(sqlite: World) -> None:
    async with sqlite.client() as client:
        await client.start_orchestration(deadly_call, instance_id="poison")
        ids = await start_healthy(client)

        deaths = run_until_it_survives(sqlite, *ids, "poison")

        assert deaths >= CLAIMS_MAX
        ended = await client.get_instance("poison")
        assert ended.status == "completed"
        assert ended.output.startswith("Poison: ")
        await check_healthy(client, ids)


ACTIVE: list[int] = []
BESIDE: list[int] = []
DONE: list[str] = []


@activity
async def tick() -> None:
    ACTIVE.append(1)
    await asyncio.sleep(0.002)
    ACTIVE.pop()


@activity
async def suspect() -> str:
    BESIDE.append(len(ACTIVE))
    await asyncio.sleep(0.005)
    BESIDE.append(len(ACTIVE))
    return "innocent"


@orchestration
async def ticking(ctx: OrchestrationContext) -> int:
    ticks = 0
    while not DONE:
        await tick()
        ticks += 1
    return ticks


@orchestration
async def suspected(ctx: OrchestrationContext) -> str:
    return await ctx.schedule_activity("suspect", result_type=str)


@activity
async def suspect_for_long() -> str:
    SUSPECTS.append(1)
    await asyncio.sleep(0.02)
    SUSPECTS.pop()
    return "innocent"


SUSPECTS: list[int] = []


@orchestration
async def suspected_for_long(ctx: OrchestrationContext) -> str:
    return await ctx.schedule_activity("suspect_for_long", result_type=str)


@orchestration
async def suspected_turn(ctx: OrchestrationContext) -> int:
    return len(SUSPECTS)


async def test_an_instance_and_an_activity_under_suspicion_do_not_run_beside_each_other(
    world: World,
) -> None:
    async with world.runtime(suspected_for_long) as runtime, world.client() as client:
        calling = await client.start_orchestration(suspected_for_long, instance_id="s")
        await until_status(client, "s", "running")
        await runtime.stop()
        turning = await client.start_orchestration(suspected_turn, instance_id="t")
        for number in range(2):
            await client.provider.register_node(f"crashed {number}", 1_000_000)
            claims = (
                ClaimActivities(f"crashed {number}", frozenset({"suspect_for_long"}), 1),
                ClaimInstances(f"crashed {number}", frozenset({("suspected_turn", "1")}), 1),
            )
            for claim in claims:
                assert await client.committer.write(claim)
            await client.provider.release_node(f"crashed {number}")

        async with world.runtime(suspected_for_long, suspect_for_long, suspected_turn):
            assert await calling.result() == "innocent"
            assert await turning.result() == 0


async def test_an_activity_that_was_there_at_two_crashes_runs_alone_also_on_a_busy_node(
    world: World,
) -> None:
    DONE.clear()
    BESIDE.clear()
    async with world.runtime(suspected) as runtime, world.client() as client:
        handle = await client.start_orchestration(suspected, instance_id="s")
        await until_status(client, "s", "running")
        await runtime.stop()
        for number in range(2):
            await client.provider.register_node(f"crashed {number}", 1_000_000)
            claim = ClaimActivities(f"crashed {number}", frozenset({"suspect"}), 1)
            claimed = await client.committer.write(claim)
            assert isinstance(claimed, ClaimedActivities)
            assert [one.attempt for one in claimed.activities] == [number + 1]
            await client.provider.release_node(f"crashed {number}")

        async with world.runtime(suspected, suspect, ticking, tick, max_activities=3) as busy:
            others = [await busy.client.start_orchestration(ticking) for _ in range(6)]
            assert await handle.result(timeout=10) == "innocent"
            DONE.append("done")
            assert all([(await other.result() or 0) > 0 for other in others])
        assert BESIDE == [0, 0]
