"""The process that is killed: hosts the load on a store, and starts instances.

    kill_worker.py FOLDER STORE SEED RESIDENTS LEASE UNTIL [PLACE KIND NUMBER]

FOLDER: where the ledger is. STORE: the URL of a store in PostgreSQL, the path of a SQLite file,
or, without a dot, of a folder. A folder has one process at most: there the client that writes and
cancels lives in this process, too. SEED: of that client's choices. LEASE: of its node, in seconds.

It starts instances until there are UNTIL of them or a file `enough` is in FOLDER, a few at a time,
each noted in the ledger; those that an earlier worker has left unfinished come first. It keeps up
to RESIDENTS of them in memory, and ends when all have ended; one that starts none (UNTIL 0) stays
until no other node is known, so that the dead ones are seen through too.
PLACE, KIND, NUMBER: where it kills itself: at the NUMBERth time that an activity has had its effect
("end"), or before or after a commit ("before_commit", "after_commit") of a batch of this kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import itertools
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

from kill_ledger import Ledger, Line, read_ledger
from kill_load import ACTIVITIES, KINDS, Load, Site, die, use
from kill_outside import Outside

from perdure import Client, Options, OrchestrationFailedError, Runtime
from perdure.errors import PerdureError, StoreUnavailable
from perdure.providers.contract import (
    ClaimActivities,
    ClaimInstances,
    CommitTurn,
    Operation,
    Outcome,
    StartInstance,
)
from perdure.providers.filesystem import FilesystemProvider
from perdure.providers.postgres import PostgresProvider
from perdure.providers.sqlite import SqliteProvider

T = TypeVar("T")

AT_ONCE = 20
"""How many instances it lets run at the same time, apart from children."""
LOOK_S = 0.01
AGAIN_S = 0.05


class Death:
    """Counts what it is told of, and kills the process at the chosen time."""

    def __init__(self, place: str = "", kind: str = "", number: int = 0) -> None:
        self._place = place
        self._kind = kind
        self._left = number

    def at(self, place: str, kinds: Sequence[str]) -> None:
        if place == self._place and self._kind in kinds:
            self._left -= 1
            # Not only at 0: it is told from several threads.
            if self._left <= 0:
                die()


class Probe:
    """Tells `death` what each transaction is about."""

    def __init__(self, death: Death) -> None:
        self._death = death
        self.kinds: list[str] = []

    def __call__(self, place: str) -> None:
        self._death.at(place, self.kinds)


class MortalProvider(SqliteProvider):
    def __init__(self, path: Path, death: Death) -> None:
        self._told = Probe(death)
        super().__init__(path, probe=self._told)

    def commit(self, batch: Sequence[Operation]) -> Awaitable[list[Outcome]]:
        # The committer has one batch under way at a time.
        self._told.kinds = kinds_of(batch)
        return super().commit(batch)


class MortalFilesystemProvider(FilesystemProvider):
    def __init__(self, path: Path, death: Death) -> None:
        self._told = Probe(death)
        super().__init__(path, probe=self._told)

    def commit(self, batch: Sequence[Operation]) -> Awaitable[list[Outcome]]:
        self._told.kinds = kinds_of(batch)
        return super().commit(batch)

    def accepted(self, instance_id: str, data: str) -> bool:
        """Whether a note is in the inbox or in a history of an instance."""
        instance, note = self.store.tables.find(instance_id), f'"{data}"'.encode()
        if instance is None:
            return False
        bodies = [message.body for message in instance.inbox.values()]
        for execution in instance.executions.values():
            bodies += execution.history.values()
        return any(note in body for body in bodies)


_kinds: ContextVar[Sequence[str]] = ContextVar("_kinds", default=())
"""What the batch of the current task is about: there may be several at a time."""


class MortalPostgresProvider(PostgresProvider):
    def __init__(self, url: str, death: Death) -> None:
        async def told(place: str) -> None:
            death.at(place, _kinds.get())

        super().__init__(url, probe=told)

    def commit(self, batch: Sequence[Operation]) -> Awaitable[list[Outcome]]:
        token = _kinds.set(kinds_of(batch))
        try:
            return super().commit(batch)
        finally:
            _kinds.reset(token)


def kinds_of(batch: Sequence[Operation]) -> list[str]:
    """What the batch does, in words that a place of death can name."""
    kinds = ["any"]
    turns = [operation for operation in batch if isinstance(operation, CommitTurn)]
    for operation in batch:
        if isinstance(operation, StartInstance):
            kinds.append("start")
            turns += [operation.turn] if operation.turn else []
        elif isinstance(operation, ClaimInstances | ClaimActivities):
            kinds.append("claim")
    for turn in turns:
        kinds += ["children"] if turn.starts else []
        kinds += [turn.ending.status] if turn.ending else []
    return kinds


def digest(result: object) -> str:
    """A result in a few characters."""
    return hashlib.sha256(json.dumps(result).encode()).hexdigest()[:16]


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """The result of a call that may be repeated while the store is unavailable."""
    while True:
        try:
            return await call()
        except StoreUnavailable:
            await asyncio.sleep(AGAIN_S)


def instances_so_far(lines: Sequence[Line]) -> tuple[list[int], int]:
    """The numbers of those that some worker wanted to start and none has seen end, and the next
    number."""
    starts = [line.args[1] for line in lines if line.word == "intent" and line.args[0] == "start"]
    ended = {line.args[0] for line in lines if line.word == "result"}
    numbers = {number_of(instance_id): instance_id not in ended for instance_id in starts}
    return [number for number, is_open in numbers.items() if is_open], len(numbers)


def instance_of(number: int) -> str:
    return f"{KINDS[number % len(KINDS)].name}-{number}"


def number_of(instance_id: str) -> int:
    return int(instance_id.split("-")[1])


class Worker:
    def __init__(self, client: Client, ledger: Ledger, until: int, enough: Path) -> None:
        self._client = client
        self._ledger = ledger
        self._until = until
        self._enough = enough

    async def run(self, unfinished: Sequence[int], following: int) -> None:
        """unfinished: taken up first. following: the number of the next one that is new."""
        numbers = itertools.chain(unfinished, self._new(following))

        async def one_after_the_other() -> None:
            for number in numbers:
                await self._see_through(number)

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(one_after_the_other())
        # Detached ones, perhaps of an earlier worker, are awaited by nobody else.
        while await patiently(self._open) > 0:
            await asyncio.sleep(LOOK_S)
        while self._until == 0 and len(await patiently(self._client.provider.nodes)) > 1:
            await asyncio.sleep(LOOK_S)

    def _new(self, following: int) -> Iterator[int]:
        for number in range(following, self._until):
            if self._enough.exists():
                return
            yield number

    async def _open(self) -> int:
        counts = await self._client.provider.count_instances()
        return counts.get("pending", 0) + counts.get("running", 0)

    async def _see_through(self, number: int) -> None:
        """Start an instance, whether or not an earlier worker has, and note its result."""
        kind, instance_id = KINDS[number % len(KINDS)], instance_of(number)
        self._ledger.write("intent", "start", instance_id)
        handle = await self._client.start_orchestration(
            kind, Load(number // len(KINDS) % 4), instance_id=instance_id, if_exists="return"
        )
        self._ledger.write("ok", "start", instance_id, "new" if handle.created else "old")
        try:
            result = await patiently(handle.final_result)
        except OrchestrationFailedError as error:
            self._ledger.write("result", instance_id, error.status, digest(None))
        else:
            self._ledger.write("result", instance_id, "completed", digest(result))


async def main(
    folder: Path, store: str, seed: int, residents: int, lease_s: float, until: int, death: Death
) -> None:
    ledger = folder / "ledger"
    lines = read_ledger(ledger)
    options = Options(max_activities=15, max_threads=4, max_residents=residents, lease_s=lease_s)
    provider, second = opened(store, death)
    async with second as own, asyncio.TaskGroup() as group:
        # Before the runtime starts: activities begin as soon as it does.
        use(Site(Ledger(ledger), own, functools.partial(death.at, "end", ["any"])))
        async with Runtime(provider, [*KINDS, *ACTIVITIES], options=options) as runtime:
            worker = Worker(runtime.client, Ledger(ledger), until, folder / "enough")
            beside = [group.create_task(note_other_nodes(runtime, Ledger(ledger)))]
            if isinstance(provider, MortalFilesystemProvider):
                outside = Outside(own, ledger, seed, provider.accepted)
                beside.append(group.create_task(outside.serve()))
            await worker.run(*instances_so_far(lines))
            for task in beside:
                task.cancel()


def opened(
    store: str, death: Death
) -> tuple[MortalProvider | MortalFilesystemProvider | MortalPostgresProvider, Client]:
    """The store for the runtime, and a client with a connection of its own."""
    if "://" in store:
        return MortalPostgresProvider(store, death), Client(store)
    path = Path(store)
    if path.suffix:
        return MortalProvider(path, death), Client(f"sqlite:///{store}")
    provider = MortalFilesystemProvider(path, death)
    return provider, Client(FilesystemProvider(provider.store))


async def note_other_nodes(runtime: Runtime, ledger: Ledger) -> None:
    """Note when this process goes on as another node, because its node was lost to others."""
    node_id = runtime.node_id
    while True:
        await asyncio.sleep(LOOK_S)
        # Between two nodes it has none.
        with contextlib.suppress(PerdureError):
            if node_id != runtime.node_id:
                node_id = runtime.node_id
                ledger.write("back", node_id)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    folder, store, seed, residents, lease_s, until, *place = sys.argv[1:]
    death = Death(place[0], place[1], int(place[2])) if place else Death()
    asyncio.run(
        main(Path(folder), store, int(seed), int(residents), float(lease_s), int(until), death)
    )
