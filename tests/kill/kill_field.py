"""Workers on one store, their deaths, and a client that lives on outside of them."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kill_ledger import Ledger, Line, Tail
from kill_outside import LOOK_S, Outside

from perdure import Client

WORKER = Path(__file__).with_name("kill_worker.py")
RESIDENTS = (5_000, 5, 0)
"""The limits that successive workers have, so that many instances come back by replay too."""
WITHOUT_END = 10**9
LEASE_S = 10.0
PATIENCE_S = 60.0


class Field:
    """Use as `async with Field(folder, seed) as field`.

    seed: of the client's choices. store: the name of a SQLite file, or, without a dot, of a folder,
    or the URL of a store in PostgreSQL. lease_s: of the workers' nodes. lines: what has been read
    of the ledger so far.
    """

    def __init__(
        self, folder: Path, seed: int, store: str = "store.db", lease_s: float = LEASE_S
    ) -> None:
        self.store = store if "://" in store else folder / store
        self.lines: list[Line] = []
        self._folder = folder
        self._log = folder / "worker.log"
        self._seed = seed
        self._lease_s = lease_s
        self._tail = Tail(folder / "ledger")
        self._workers: list[Worker] = []
        self._outside: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Field:
        self.ledger = Ledger(self._folder / "ledger")
        if isinstance(self.store, str):
            self._outside = asyncio.create_task(self._serve(self.store))
        elif self.store.suffix:
            self._outside = asyncio.create_task(self._serve(f"sqlite:///{self.store}"))
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.clear_away()
        if self._outside is not None:
            self._outside.cancel()
            await asyncio.gather(self._outside, return_exceptions=True)
        self.look()
        self.ledger.close()

    @property
    def log(self) -> str:
        """What the workers have logged."""
        return self._log.read_text()

    def look(self) -> None:
        """Read on in the ledger."""
        self.lines += self._tail.new()

    def spawn(self, until: int, *place: object) -> Worker:
        """Start a worker; see kill_worker for the meaning of `until` and `place`."""
        residents = RESIDENTS[len(self._workers) % len(RESIDENTS)]
        arguments = [self._folder, self.store, self._seed, residents, self._lease_s, until, *place]
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(WORKER), *map(str, arguments)], stderr=log
            )
        self.ledger.write("spawn", process.pid)
        worker = Worker(self, process)
        self._workers.append(worker)
        return worker

    def enough(self) -> None:
        """From now on the workers start nothing new, and leave when all is done."""
        (self._folder / "enough").touch()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something that is to be seen from outside holds."""
        give_up = time.monotonic() + PATIENCE_S
        while not holds():
            if self._outside is not None and self._outside.done():
                self._outside.result()
            assert time.monotonic() < give_up, f"nothing happens any more:\n{self.log[-2_000:]}"
            await asyncio.sleep(LOOK_S)

    async def _serve(self, url: str) -> None:
        async with Client(url) as client:
            await Outside(client, self._folder / "ledger", self._seed).serve()


class Worker:
    """One process of kill_worker."""

    def __init__(self, field: Field, process: subprocess.Popen[bytes]) -> None:
        self._field = field
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    async def busy(self, effects: int) -> None:
        """Wait until it has noted so many effects."""
        field, pid, seen = self._field, self._process.pid, len(self._field.lines)

        def is_busy() -> bool:
            assert self._process.poll() is None, f"it has ended by itself:\n{field.log[-2_000:]}"
            field.look()
            own = [line for line in field.lines[seen:] if line.pid == pid and line.word == "end"]
            return len(own) >= effects

        await field.until(is_busy)

    async def in_the_middle(self) -> None:
        """Wait until an activity runs in it (which may be over by the time of the next call)."""
        field, pid = self._field, self.pid

        def is_in_the_middle() -> bool:
            field.look()
            own = [line for line in field.lines if line.pid == pid]
            return sum((line.word == "begin") - (line.word == "end") for line in own) > 0

        await field.until(is_in_the_middle)

    def kill(self) -> None:
        """End it with SIGKILL, wherever it is."""
        # Noted before: another worker may take over at once.
        self._field.ledger.write("kill", self._process.pid)
        self._process.kill()
        self._is_dead()

    def pause(self) -> None:
        """Stop it where it is; it keeps its connections."""
        self._field.ledger.write("pause", self._process.pid)
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    async def killed_itself(self) -> None:
        """Wait for the death that it was given on its way."""
        await self._field.until(lambda: self._process.poll() is not None)
        self._field.ledger.write("kill", self._process.pid)
        self._is_dead()

    def _is_dead(self) -> None:
        assert self._process.wait() == -signal.SIGKILL, self._field.log[-2_000:]

    async def finished(self) -> None:
        """Wait until it has seen everything through and has left."""
        await self._field.until(lambda: self._process.poll() is not None)
        assert self._process.returncode == 0, self._field.log[-2_000:]

    def clear_away(self) -> None:
        """After a test that failed it may still run."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
