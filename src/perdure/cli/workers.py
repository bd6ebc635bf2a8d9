"""`perdure worker`: modules hosted by this process, or by several that it looks after."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Sequence
from typing import Self

from perdure.cli.hosting import exit_by, host, until_signal
from perdure.cli.loading import load_modules
from perdure.cli.outcome import UNEXPECTED, USAGE, Refusal
from perdure.cli.settings import FOLDER, store_to_write_to
from perdure.client.client import Client
from perdure.registry import Registry
from perdure.running import note

PAUSE_S_MIN = 0.2
PAUSE_S_MAX = 10.0
"""Before a process that has died is replaced; longer each time."""
STEADY_S = 30.0
"""One that has lived so long does not count as one that keeps dying."""
UNREADY_MAX = 5
"""So many in a row that die before they are ready show that no other will do better."""

Command = Callable[[int], Sequence[str]]
"""What starts a process, given the number of its socket; see perdure.cli.hosting."""


def work(places: Sequence[str], processes: int, store: str | None) -> None:
    """Run until a signal. Refuses what cannot work before anything is started."""
    url = store_to_write_to(store)
    if processes > 1 and url.startswith(FOLDER):
        hint = "leave out --processes, or use sqlite:///… or postgresql://…"
        raise Refusal(USAGE, f"{url} is a store for one process", hint)
    places = list(dict.fromkeys(places))
    modules = load_modules(places)
    if processes == 1:
        exit_by(host(url, modules))
    Registry(modules)

    def command(link: int) -> Sequence[str]:
        return [sys.executable, "-m", "perdure.cli.hosting", str(link), *places]

    async def supervise() -> None:
        async with Client(url):
            pass
        await keep(command, processes, {**os.environ, "PERDURE_STORE": url})

    exit_by(asyncio.run(until_signal(supervise())))


async def keep(command: Command, processes: int, environment: dict[str, str]) -> None:
    """Keep so many processes running until cancelled; stop them gracefully then.

    Raises Refusal, with the exit code of the last, if they keep dying before they are ready.
    """
    keepers = [asyncio.create_task(_keep_one(command, environment)) for _ in range(processes)]
    try:
        done, _ = await asyncio.wait(keepers, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
    for keeper in done:
        keeper.result()


async def _keep_one(command: Command, environment: dict[str, str]) -> None:
    pause_s, unready = PAUSE_S_MIN, 0
    while True:
        started_s = time.monotonic()
        async with await _Child.start(command, environment) as child:
            code = await child.process.wait()
            unready = 0 if child.was_ready() else unready + 1
        what = f"process {child.process.pid} {_manner(code)}"
        if unready == UNREADY_MAX:
            message = f"{what} before it was ready, as did {unready - 1} before it; giving up"
            raise Refusal(code if code > 0 else UNEXPECTED, message)
        if time.monotonic() - started_s > STEADY_S:
            pause_s = PAUSE_S_MIN
        note(f"{what}; another is started in {pause_s:g} s")
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, PAUSE_S_MAX)


def _manner(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


class _Child:
    """A process, and the socket that tells either side when the other is gone. Leaving the block
    stops it gracefully, if it still runs."""

    def __init__(self, process: Process, link: socket.socket) -> None:
        self.process = process
        self._link = link

    @classmethod
    async def start(cls, command: Command, environment: dict[str, str]) -> Self:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command(theirs.fileno()),
                    stdin=DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env=environment,
                    # Ctrl-C is for the supervising process, which then stops its own.
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        return cls(process, ours)

    def was_ready(self) -> bool:
        """Whether it ever was, once it has ended."""
        self._link.setblocking(False)
        try:
            return bool(self._link.recv(1))
        except BlockingIOError:
            # Something that it has started has the other end.
            return False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        await self.process.wait()
        self._link.close()
