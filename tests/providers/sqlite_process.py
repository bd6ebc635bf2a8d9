"""A process with a store, for tests that kill it: `sqlite_process.py PATH COMMAND`.

Says "ready" when the command has done its part, then waits for its end. `fork`: a child of it
inherits everything and lives on, with its own process id on the line.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable

from provider_world import claim, new, note, one, start

from perdure.errors import ForkedStoreError
from perdure.providers.sqlite import SqliteProvider


def say(line: str) -> None:
    """In one write, because a child may speak at the same time."""
    os.write(1, f"{line}\n".encode())


def die_at(place: str) -> Callable[[str], None]:
    def probe(now_at: str) -> None:
        if now_at == place:
            os.kill(os.getpid(), signal.SIGKILL)

    return probe


async def hold(provider: SqliteProvider) -> str:
    await provider.register_node("n-1", 3_600_000)
    await start(provider)
    await claim(provider)
    return "ready"


async def fork(provider: SqliteProvider) -> str:
    await hold(provider)
    child = os.fork()
    if child == 0:
        refused = 0
        for use in (lambda: provider.commit([]), lambda: provider.beat("n-1")):
            try:
                use()
            except ForkedStoreError:
                refused += 1
        say(f"refused {refused}")
        signal.pause()
    return f"ready {child}"


async def main(path: str, command: str) -> None:
    provider = SqliteProvider(path)
    if command in ("before_commit", "after_commit"):
        await start_quietly(path)
        provider = SqliteProvider(path, probe=die_at(command))
    await provider.open()
    match command:
        case "hold":
            say(await hold(provider))
        case "fork":
            say(await fork(provider))
        case "start":
            say(str(await start(provider, f"i-{os.getpid()}")))
            await provider.close()
            return
        case _:
            await provider.commit([new("i-2"), note("i-1", b"acknowledged")])
    signal.pause()


async def start_quietly(path: str) -> None:
    provider = SqliteProvider(path)
    await provider.open()
    await one(provider, new("i-1"))
    await provider.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
