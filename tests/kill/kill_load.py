"""The load: orchestrations of every kind, and activities that keep the ledger of their effects.

Every value that comes to an orchestration (an activity's nonce, an event's data, a child's values)
is in the list that it returns or hands to its next execution. No orchestration ends with a request
left open. So what it did can be compared with its history to the letter.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from kill_ledger import Ledger

import perdure
from perdure import (
    ActivityError,
    ActivityLost,
    Client,
    OrchestrationContext,
    RetryPolicy,
    activity_context,
)

LAST = "last-"
"""How the data of the last note of a mailbox begins."""


class Load(msgspec.Struct):
    """left: executions or variants to come. got: what earlier executions received."""

    left: int
    got: list[str] = []


class Site(NamedTuple):
    """What the activities of this process use. ended: called when one has had its effect."""

    ledger: Ledger
    client: Client
    ended: Callable[[], None]


_site: list[Site] = []


def use(site: Site) -> None:
    _site[:] = [site]


def begin() -> str:
    """Note that the activity begins; returns a nonce for this attempt."""
    context = activity_context()
    nonce = secrets.token_hex(8)
    _site[0].ledger.write("begin", context.idempotency_key, context.attempt, nonce)
    return nonce


def end(nonce: str) -> str:
    """Note that it has had its effect; returns the nonce."""
    _site[0].ledger.write("end", activity_context().idempotency_key, nonce)
    _site[0].ended()
    return nonce


def die() -> None:
    """As if by `kill -9` from outside."""
    os.kill(os.getpid(), signal.SIGKILL)


# Activities. pause_ms: how long they take.


@perdure.activity
async def effect(pause_ms: int) -> str:
    nonce = begin()
    await asyncio.sleep(pause_ms / 1000)
    return end(nonce)


@perdure.activity
def effect_in_thread(pause_ms: int) -> str:
    nonce = begin()
    time.sleep(pause_ms / 1000)
    return end(nonce)


@perdure.activity(retry=RetryPolicy(max_attempts=1))
async def once(pause_ms: int) -> str:
    nonce = begin()
    await asyncio.sleep(pause_ms / 1000)
    return end(nonce)


@perdure.activity(retry=RetryPolicy(max_attempts=None, initial_interval=0.01, max_interval=0.05))
async def insist(pause_ms: int) -> str:
    """Fails twice before it has its effect."""
    await asyncio.sleep(pause_ms / 1000)
    if activity_context().attempt < 3:
        raise ConnectionError
    return end(begin())


@perdure.activity
async def stumble(pause_ms: int) -> str:
    nonce = begin()
    await asyncio.sleep(pause_ms / 1000)
    raise RuntimeError(end(nonce))


@perdure.activity
async def raise_back(pause_ms: int) -> str:
    """Raise an event to the own orchestration, by a connection of its own, then return at once."""
    nonce = begin()
    await asyncio.sleep(pause_ms / 1000)
    instance_id, data = activity_context().instance_id, secrets.token_hex(8)
    site = _site[0]
    site.ledger.write("intent", "event", instance_id, "back", data)
    await site.client.raise_event(instance_id, "back", data)
    site.ledger.write("ok", "event", instance_id, "back", data)
    return end(nonce)


# Orchestrations.


def _ms(ctx: OrchestrationContext, most: int = 20) -> int:
    return ctx.random.randint(0, most)


@perdure.orchestration
async def steps(ctx: OrchestrationContext, load: Load) -> list[str]:
    """One activity after the other, in coroutines and threads: one fails, one needs three attempts,
    one is made at most once."""
    got = load.got
    got.append(await effect(_ms(ctx)))
    got.append(await effect_in_thread(_ms(ctx)))
    got.append(await insist(_ms(ctx)))
    with contextlib.suppress(ActivityLost):
        got.append(await once(_ms(ctx)))
    try:
        await stumble(_ms(ctx))
    except ActivityError as error:
        got.append(error.message)
    got.append(await effect(_ms(ctx)))
    return got


@perdure.orchestration
async def fan(ctx: OrchestrationContext, load: Load) -> list[str]:
    """Fan out, fan in."""
    calls: list[Any] = [effect(_ms(ctx)) for _ in range(5)]
    calls += [effect_in_thread(_ms(ctx)) for _ in range(2)]
    return load.got + await asyncio.gather(*calls)


@perdure.orchestration
async def pause(ctx: OrchestrationContext, load: Load) -> list[str]:
    """Timers: alone, beside an activity, and as a time-out."""
    got = load.got
    got.append(await effect(_ms(ctx)))
    await asyncio.sleep(ctx.random.uniform(0.05, 0.3))
    nonce, _ = await asyncio.gather(effect(_ms(ctx)), ctx.schedule_timer(0.05))
    got.append(nonce)
    try:
        async with asyncio.timeout(0.05):
            got.append(await effect(_ms(ctx, 100)))
    except TimeoutError:
        got.append(await effect(_ms(ctx)))
    return got


@perdure.orchestration
async def family(ctx: OrchestrationContext, load: Load) -> list[str]:
    """Children awaited, and one that is only started."""
    ctx.start_orchestration(fan, Load(0))
    children = await asyncio.gather(
        steps(Load(0)), rounds(Load(1)), pause(Load(0)), effect(_ms(ctx))
    )
    return load.got + children[0] + children[1] + children[2] + [children[3]]


@perdure.orchestration
async def rounds(ctx: OrchestrationContext, load: Load) -> list[str]:
    """Continues as new as often as `left` says."""
    load.got.append(await effect(_ms(ctx, 10)))
    if load.left == 0:
        return load.got
    return await ctx.continue_as_new(Load(load.left - 1, load.got))


@perdure.orchestration
async def mailbox(ctx: OrchestrationContext, load: Load) -> list[str]:
    """Takes notes until the last one, two an execution; subscribed whenever it can be."""
    got = load.got
    beside = effect(_ms(ctx, 50))
    for _ in range(2):
        note = await ctx.schedule_wait("note", str)
        got.append(note)
        if note.startswith(LAST):
            break
    if beside.done():
        got.append(beside.result())
    else:
        beside.cancel()
    if note.startswith(LAST):
        return got
    return await ctx.continue_as_new(Load(0, got))


@perdure.orchestration
async def letters(ctx: OrchestrationContext, load: Load) -> list[str]:
    """Takes the items of its event queue until the last one, two an execution; often not waiting
    when they come, and now and then no longer."""
    got = load.got
    got.append(await effect(_ms(ctx)))
    for _ in range(2):
        waiting = ctx.dequeue_event("letter", str)
        winner, letter = await ctx.select(waiting, ctx.schedule_timer(0.02))
        if winner == 1:
            letter = await ctx.dequeue_event("letter", str)
        got.append(letter)
        if letter.startswith(LAST):
            return got
    return await ctx.continue_as_new(Load(0, got))


@perdure.orchestration
async def echo(ctx: OrchestrationContext, load: Load) -> list[str]:
    """Its own activity raises an event to it."""
    back = ctx.schedule_wait("back", str)
    nonce = await raise_back(_ms(ctx))
    return [*load.got, nonce, await back]


@perdure.orchestration
async def race(ctx: OrchestrationContext, load: Load) -> list[str]:
    """Activity, timer and event race; the losers are cancelled."""
    got = load.got
    for _ in range(2):
        winner, value = await ctx.select(
            effect(_ms(ctx, 60)), asyncio.sleep(0.03), ctx.schedule_wait("never", str)
        )
        if winner == 0:
            got.append(value)
    got.append(await effect(_ms(ctx)))
    return got


@perdure.orchestration
async def sleeper(ctx: OrchestrationContext, load: Load) -> list[str]:
    """Sleeps until it is cancelled; with `left`, has a child that does, and cleans up."""
    child = [sleeper(Load(0))] if load.left else []
    try:
        await asyncio.gather(effect(_ms(ctx)), asyncio.sleep(3_600), *child)
    except asyncio.CancelledError:
        if load.left:
            await effect(_ms(ctx))
        raise
    return load.got


KINDS = (steps, fan, pause, family, rounds, mailbox, echo, race, sleeper, letters)
ACTIVITIES = (effect, effect_in_thread, insist, once, stumble, raise_back)


def expected_status(name: str) -> str:
    """How an instance of this orchestration has to end."""
    return "cancelled" if name == "sleeper" else "completed"
