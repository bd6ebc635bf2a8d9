"""The engine on a provider of the suite: hosts, clients, and waiting for what they bring about.

The clock of a harness stands still; `time_passes` moves it while the engine sleeps.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from perdure.client.client import Client
from perdure.core import events
from perdure.registry import Listed
from perdure.runtime.options import Options
from perdure.runtime.runtime import Runtime
from perdure.testing.conformance.harness import Harness

LEASE_S = 3_600
LOOK_S = 0.002

EventT = TypeVar("EventT", bound=events.AnyEvent)


def host(store: Harness, *functions: Listed) -> Runtime:
    """A runtime on a view of the store of its own, not yet started."""
    return Runtime(store.unopened(), functions, options=Options(lease_s=LEASE_S))


def client_of(store: Harness) -> Client:
    """A client on a view of the store of its own, not yet open."""
    return Client(store.unopened())


@contextlib.asynccontextmanager
async def time_passes(store: Harness) -> AsyncIterator[None]:
    """Let the store's clock run."""

    async def run() -> None:
        while True:
            await asyncio.sleep(0.001)
            store.clock.advance(1)

    running = asyncio.create_task(run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.wait([running])


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something holds that is only to be seen from outside."""
    while True:
        if await holds():
            return
        await asyncio.sleep(LOOK_S)


async def until_recorded(
    client: Client, instance_id: str, kind: type[EventT], execution_id: int | None = None
) -> None:
    """Wait until the history of an execution has an event of this kind."""

    async def recorded() -> bool:
        return bool(await recorded_of(client, instance_id, kind, execution_id))

    await until(recorded)


async def recorded_of(
    client: Client, instance_id: str, kind: type[EventT], execution_id: int | None = None
) -> list[EventT]:
    """The events of one kind in the history of an execution, in order."""
    history = await client.read_history(instance_id, execution_id)
    return [event for event in history if isinstance(event, kind)]
