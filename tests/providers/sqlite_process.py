"""A process with a store, for tests that kill it: `sqlite_process.py PATH COMMAND`.

Says "ready" when the command has done its part, then waits for its end. `fork`: a child of it
inherits everything and lives on, with its own process id on the line.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from provider_world import claim, new, note, one, start

from perdure.errors import ForkedStoreError
from perdure.providers.sqlite import SqliteProvider


def die_at(place: str) -> object:
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
        for use in (provider.commit, provider.beat):
            try:
                use([])  # type: ignore[arg-type]
            except ForkedStoreError:
                refused += 1
        os.write(1, f"refused {refused}\n".encode())
        signal.pause()
    return f"ready {child}"


async def main(path: str, command: str) -> None:
    provider = SqliteProvider(path)
    if command in ("before_commit", "after_commit"):
        await start_quietly(path)
        provider = SqliteProvider(path, probe=die_at(command))  # type: ignore[arg-type]
    await provider.open()
    match command:
        case "hold":
            print(await hold(provider), flush=True)
        case "fork":
            print(await fork(provider), flush=True)
        case "start":
            print(await start(provider, f"i-{os.getpid()}"), flush=True)
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
