"""The process that is killed: hosts the load on a store, and starts instances.

    kill_worker.py STORE SEED RESIDENTS UNTIL [PLACE KIND NUMBER]

STORE: the path of a SQLite file, or, without a dot, of a folder. A folder has one process at most:
there the client that writes and cancels lives in this process, too. SEED: of that client's choices.

It starts instances until there are UNTIL of them, a few at a time, each noted in the ledger; those
that an earlier worker has left unfinished come first. It keeps up to RESIDENTS of them in memory,
and ends when all have ended.
PLACE, KIND, NUMBER: where it kills itself: at the NUMBERth time that an activity has had its effect
("end"), or before or after a commit ("before_commit", "after_commit") of a batch of this kind.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import json
import logging
import sys
from collections.abc import Awaitable, Sequence
from pathlib import Path

from kill_ledger import Ledger, Line, read_ledger
from kill_load import ACTIVITIES, KINDS, Load, Site, die, use
from kill_outside import Outside

from perdure import Client, Options, OrchestrationFailedError, Runtime
from perdure.providers.contract import (
    ClaimActivities,
    ClaimInstances,
    CommitTurn,
    Operation,
    Outcome,
    StartInstance,
)
from perdure.providers.filesystem import FilesystemProvider
from perdure.providers.sqlite import SqliteProvider

AT_ONCE = 20
"""How many instances it lets run at the same time, apart from children."""


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
    def __init__(self, client: Client, ledger: Ledger, until: int) -> None:
        self._client = client
        self._ledger = ledger
        self._until = until

    async def run(self, unfinished: Sequence[int], following: int) -> None:
        """unfinished: taken up first. following: the number of the next one that is new."""
        numbers = itertools.chain(unfinished, range(following, self._until))

        async def one_after_the_other() -> None:
            for number in numbers:
                await self._see_through(number)

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(one_after_the_other())
        # Detached ones, perhaps of an earlier worker, are awaited by nobody else.
        while await self._open() > 0:
            await asyncio.sleep(0.01)

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
            result = await handle.final_result()
        except OrchestrationFailedError as error:
            self._ledger.write("result", instance_id, error.status, digest(None))
        else:
            self._ledger.write("result", instance_id, "completed", digest(result))


async def main(store: Path, seed: int, residents: int, until: int, death: Death) -> None:
    ledger = store.with_name("ledger")
    lines = read_ledger(ledger)
    options = Options(max_activities=15, max_threads=4, max_residents=residents)
    provider: MortalProvider | MortalFilesystemProvider
    if store.suffix:
        provider = MortalProvider(store, death)
        second = Client(f"sqlite:///{store}")
    else:
        provider = MortalFilesystemProvider(store, death)
        second = Client(FilesystemProvider(provider.store))
    async with second as own:
        # Before the runtime starts: activities begin as soon as it does.
        use(Site(Ledger(ledger), own, functools.partial(death.at, "end", ["any"])))
        async with Runtime(provider, [*KINDS, *ACTIVITIES], options=options) as runtime:
            worker = Worker(runtime.client, Ledger(ledger), until)
            if isinstance(provider, MortalFilesystemProvider):
                outside = Outside(own, ledger, seed, provider.accepted)
                serving = asyncio.create_task(outside.serve())
                serving.add_done_callback(end_with)
            await worker.run(*instances_so_far(lines))
            if isinstance(provider, MortalFilesystemProvider):
                serving.cancel()


def end_with(serving: asyncio.Task[None]) -> None:
    """Without its outside a worker would wait for ever."""
    if not serving.cancelled():
        logging.getLogger().error("the client outside has failed", exc_info=serving.exception())


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    store, seed, residents, until, *place = sys.argv[1:]
    death = Death(place[0], place[1], int(place[2])) if place else Death()
    asyncio.run(main(Path(store), int(seed), int(residents), int(until), death))
