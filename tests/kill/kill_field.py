"""Workers on one store, their deaths, and the client that lives on outside of them."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from kill_ledger import Ledger, Line, Tail
from kill_load import LAST

from perdure import Client

WORKER = Path(__file__).with_name("kill_worker.py")
LOOK_S = 0.005
PATIENCE_S = 60.0
WITHOUT_END = 10**9


class Field:
    """Use as `async with Field(folder, seed) as field`.

    lines: what has been read of the ledger so far; `look` reads on.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.store = folder / "store.db"
        self.random = Random(seed)
        self.lines: list[Line] = []
        self._seed = seed
        self._log = folder / "worker.log"
        self._tail = Tail(folder / "ledger")
        self._worker: subprocess.Popen[bytes] | None = None
        self._outside: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Field:
        self._ledger = Ledger(self.folder / "ledger")
        self._outside = asyncio.create_task(self._serve())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._worker is not None and self._worker.poll() is None:
            self._worker.kill()
            self._worker.wait()
        assert self._outside is not None
        self._outside.cancel()
        await asyncio.gather(self._outside, return_exceptions=True)
        self._ledger.close()

    @property
    def log(self) -> str:
        """What the workers have logged."""
        return self._log.read_text()

    def look(self) -> list[Line]:
        """Read on in the ledger; returns what is new."""
        new = self._tail.new()
        self.lines += new
        return new

    # The life of a worker.

    def spawn(self, until: int, *place: object) -> None:
        """Start a worker; see kill_worker for the meaning of `until` and `place`."""
        self._ledger.write("spawn")
        with self._log.open("ab") as log:
            self._worker = subprocess.Popen(
                [sys.executable, str(WORKER), str(self.folder), str(self._seed), str(until)]
                + [str(word) for word in place],
                stderr=log,
            )

    async def busy(self, effects: int) -> None:
        """Wait until the present worker has noted so many effects."""
        assert self._worker is not None
        pid, seen = self._worker.pid, len(self.lines)

        def is_busy() -> bool:
            self.look()
            return (
                sum(line.pid == pid and line.word == "end" for line in self.lines[seen:]) >= effects
            )

        await self._until(is_busy)

    def kill(self) -> None:
        """End the worker with SIGKILL, wherever it is."""
        assert self._worker is not None
        self._worker.kill()
        assert self._worker.wait() == -signal.SIGKILL, self.log
        self._ledger.write("kill", self._worker.pid)
        self.look()

    async def killed_itself(self) -> None:
        """Wait for the death that the worker was given on its way."""
        worker = self._worker
        assert worker is not None
        await self._until(lambda: worker.poll() is not None, may_end=True)
        self.kill()

    async def finished(self) -> None:
        """Wait until the worker has seen everything through and has left."""
        worker = self._worker
        assert worker is not None
        await self._until(lambda: worker.poll() is not None, may_end=True)
        assert worker.returncode == 0, self.log
        self.look()

    async def _until(self, holds: Callable[[], bool], may_end: bool = False) -> None:
        assert self._worker is not None
        give_up = time.monotonic() + PATIENCE_S
        while not holds():
            assert self._outside is not None
            if self._outside.done():
                self._outside.result()
            assert may_end or self._worker.poll() is None, f"the worker has ended:\n{self.log}"
            assert time.monotonic() < give_up, f"nothing happens any more:\n{self.log}"
            await asyncio.sleep(LOOK_S)

    # The client outside.

    async def _serve(self) -> None:
        """Write to mailboxes and cancel sleepers, as soon as their start is acknowledged."""
        known: set[str] = set()
        tail = Tail(self.folder / "ledger")
        async with Client(f"sqlite:///{self.store}") as client, asyncio.TaskGroup() as group:
            while True:
                for line in tail.new():
                    if line.word != "ok" or line.args[0] != "start" or line.args[1] in known:
                        continue
                    instance_id = line.args[1]
                    known.add(instance_id)
                    if instance_id.startswith("mailbox"):
                        group.create_task(self._write_to(client, instance_id))
                    elif instance_id.startswith("sleeper"):
                        group.create_task(self._cancel(client, instance_id))
                await asyncio.sleep(LOOK_S)

    async def _write_to(self, client: Client, instance_id: str) -> None:
        notes = [f"{number}-{instance_id}" for number in range(self.random.randint(0, 6))]
        for data in [*notes, LAST + instance_id]:
            await asyncio.sleep(self.random.choice([0, 0, 0.01, 0.05]))
            self._ledger.write("intent", "event", instance_id, "note", data)
            await client.raise_event(instance_id, "note", data)
            self._ledger.write("ok", "event", instance_id, "note", data)

    async def _cancel(self, client: Client, instance_id: str) -> None:
        await asyncio.sleep(self.random.uniform(0, 0.2))
        self._ledger.write("intent", "cancel", instance_id)
        await client.cancel_instance(instance_id, "enough")
        self._ledger.write("ok", "cancel", instance_id)
