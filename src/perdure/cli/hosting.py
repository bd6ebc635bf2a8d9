"""Hosting modules until a signal: in the command's own process, or in one of several.

`python -m perdure.cli.hosting LINK MODULE…` is one of several. LINK is a socket whose other end is
held by the process that started it, and by nobody else: it ends when that process is gone, however
it went. PERDURE_STORE is the store's URL: what is in the arguments is shown to everybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from types import ModuleType
from typing import Any

from perdure.cli.loading import load_modules
from perdure.cli.outcome import INTERRUPTED, reported
from perdure.running import note
from perdure.runtime.runtime import STOP_TIMEOUT_S, Runtime

READY = b"r"
SIGNALS = (signal.SIGTERM, signal.SIGINT)
ORPHAN_S = 2 * STOP_TIMEOUT_S
"""How long a process may take to stop after the one that started it has gone."""


def host(
    url: str, modules: Sequence[ModuleType], is_ready: Callable[[], object] = lambda: None
) -> signal.Signals:
    """Run what the modules define until SIGTERM or SIGINT; stop gracefully and return which.

    is_ready: called when the node is. A second signal ends the process at once.
    Raises RegistrationError, ProviderError.
    """
    runtime = Runtime(url, modules)

    async def run() -> None:
        async with runtime:
            name = f"node {runtime.node_id} of process {os.getpid()}"
            note(f"{name} is ready")
            is_ready()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                await runtime.stop()
                note(f"{name} has stopped")

    return asyncio.run(until_signal(run()))


async def until_signal(work: Coroutine[Any, Any, None]) -> signal.Signals:
    """Cancel `work`, which has no end of its own, at the first SIGTERM or SIGINT, and return which.

    A second signal ends the process at once. What `work` raises is raised.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    told: list[int] = []

    def tell(number: int, _: object) -> None:
        # Here and not on the loop, which user code may block.
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        told.append(number)
        loop.call_soon_threadsafe(task.cancel)

    before = {each: signal.signal(each, tell) for each in SIGNALS}
    try:
        await task
    except asyncio.CancelledError:
        if not told:
            raise
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    return signal.Signals(told[0])


def exit_by(number: signal.Signals) -> None:
    """End the command as the signal asks for."""
    raise SystemExit(INTERRUPTED if number == signal.SIGINT else 0)


def _be_one_of_several(link: socket.socket, places: Sequence[str]) -> None:
    link.set_inheritable(False)
    threading.Thread(target=_end_with, args=(link,), name="perdure-link", daemon=True).start()

    def is_ready() -> None:
        # Its loss is noticed by the thread.
        with contextlib.suppress(OSError):
            link.send(READY)

    exit_by(host(os.environ["PERDURE_STORE"], load_modules(places), is_ready))


def _end_with(link: socket.socket) -> None:
    """When the other end is gone: the signal to stop, or the second one, which ends it at once."""
    with contextlib.suppress(OSError):
        link.recv(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_S)
    os._exit(1)


if __name__ == "__main__":
    with reported(debug=False):
        _be_one_of_several(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
