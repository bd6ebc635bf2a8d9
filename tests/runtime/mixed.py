"""A mixed load whose results are known: every durable verb, and what they do to each other."""

from __future__ import annotations

import asyncio
from typing import Any

from perdure import (
    Client,
    OrchestrationContext,
    OrchestrationHandle,
    SubOrchestrationError,
    activity,
    activity_context,
    orchestration,
)

CLIENTS: dict[str, Client] = {}
ATTEMPTS: list[int] = []


@activity
async def add(left: int, right: int) -> int:
    ATTEMPTS.append(activity_context().attempt)
    await asyncio.sleep(0)
    return left + right


@activity
def add_in_thread(left: int, right: int) -> int:
    ATTEMPTS.append(activity_context().attempt)
    return left + right


@activity
async def slow_add(left: int, right: int) -> int:
    ATTEMPTS.append(activity_context().attempt)
    await asyncio.sleep(0.01)
    return left + right


@activity
async def refuse(what: str) -> None:
    raise ValueError(what)


@activity
async def say(client: str, name: str, data: int) -> None:
    await CLIENTS[client].raise_event(activity_context().instance_id, name, data)


@orchestration
async def sequence(ctx: OrchestrationContext, seed: int) -> int:
    total = seed
    for number in range(5):
        total = await add(total, number)
    return await add_in_thread(total, 1)


@orchestration
async def fan(ctx: OrchestrationContext, seed: int) -> list[int]:
    return await asyncio.gather(*(slow_add(seed, number) for number in range(8)))


@orchestration
async def timing(ctx: OrchestrationContext, seed: int) -> str:
    try:
        async with asyncio.timeout(0.005):
            await ctx.schedule_wait("never")
    except TimeoutError:
        pass
    async with asyncio.timeout(600):
        total = await slow_add(seed, 1)
    winner, _ = await ctx.select(asyncio.sleep(300), ctx.schedule_timer(0.001), slow_add(1, 1))
    return f"{total} {winner}"


@orchestration
async def family(ctx: OrchestrationContext, seed: int) -> list[Any]:
    one, other = await asyncio.gather(sequence(seed), countdown(3, seed))
    try:
        await failing(seed)
    except SubOrchestrationError as error:
        return [one, other, error.message]
    return []


@orchestration
async def failing(ctx: OrchestrationContext, seed: int) -> None:
    await refuse(f"seed {seed}")


@orchestration
async def countdown(ctx: OrchestrationContext, left: int, total: int) -> int:
    if left == 0:
        return total
    return await ctx.continue_as_new(left - 1, await add(total, left))


@orchestration
async def talking(ctx: OrchestrationContext, client: str, seed: int) -> list[int]:
    heard = []
    for number in range(3):
        note = ctx.schedule_wait("note", int)
        await say(client, "note", seed + number)
        heard.append(await note)
    return heard


@orchestration
async def random_numbers(ctx: OrchestrationContext, seed: int) -> bool:
    one = [ctx.random.random(), str(ctx.new_guid())]
    await add(seed, 1)
    other = [ctx.random.random(), str(ctx.new_guid())]
    await slow_add(seed, 1)
    return one != other


HOSTED = (
    *(add, add_in_thread, slow_add, refuse, say),
    *(sequence, fan, timing, family, failing, countdown, talking, random_numbers),
)


async def start_mixed(client: Client, name: str, seeds: range) -> list[OrchestrationHandle[Any]]:
    """Start everything. name: under which the activities find the client."""
    CLIENTS[name] = client
    handles: list[OrchestrationHandle[Any]] = []
    for seed in seeds:
        for kind in (sequence, fan, timing, family, random_numbers):
            handles.append(
                await client.start_orchestration(kind, seed, instance_id=f"{kind.name}-{seed}")
            )
        handles.append(
            await client.start_orchestration(countdown, 4, seed, instance_id=f"countdown-{seed}")
        )
        handles.append(
            await client.start_orchestration(talking, name, seed, instance_id=f"talking-{seed}")
        )
    return handles


async def run_mixed(client: Client, name: str, seeds: range) -> dict[str, Any]:
    """Start everything at once; the result of each instance by its id."""
    handles = await start_mixed(client, name, seeds)
    results = await asyncio.gather(*(handle.final_result() for handle in handles))
    return {handle.instance_id: found for handle, found in zip(handles, results, strict=True)}


def expected(seeds: range) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for seed in seeds:
        found[f"sequence-{seed}"] = seed + 11
        found[f"fan-{seed}"] = [seed + number for number in range(8)]
        found[f"timing-{seed}"] = f"{seed + 1} 1"
        found[f"family-{seed}"] = [seed + 11, seed + 6, f"ValueError: seed {seed}"]
        found[f"random_numbers-{seed}"] = True
        found[f"countdown-{seed}"] = seed + 10
        found[f"talking-{seed}"] = [seed, seed + 1, seed + 2]
    return found
