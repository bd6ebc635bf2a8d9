"""A process with a store in a folder, for tests that kill it: `filesystem_process.py PATH COMMAND`.

`hold` says "ready" and waits for its end. `fork`: a child of it inherits everything and lives on;
the line gives its process id. A probe's place: dies there in its second commit.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from provider_world import claim, new, note, start

from perdure.errors import ForkedStoreError
from perdure.providers.filesystem import FilesystemProvider


def say(line: str) -> None:
    """In one write, because a child may speak at the same time."""
    os.write(1, f"{line}\n".encode())


class Death:
    """place: where to die, in the second commit."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._left = 2

    def __call__(self, place: str) -> None:
        if place == self._place:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)


def fork(provider: FilesystemProvider) -> str:
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
    provider = FilesystemProvider(path, probe=Death(command))
    await provider.open()
    await start(provider)
    if command == "fork":
        say(fork(provider))
    elif command == "hold":
        await claim(provider)
        say("ready")
    else:
        await provider.commit([new("i-2"), note("i-1", b"acknowledged")])
    signal.pause()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
