"""The process that is killed: hosts the load on a SQLite file, and starts instances.

    kill_worker.py FOLDER RESIDENTS UNTIL [PLACE KIND NUMBER]

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

from perdure import Client, Options, OrchestrationFailedError, Runtime
from perdure.providers.contract import (
    ClaimActivities,
    ClaimInstances,
    CommitTurn,
    Operation,
    Outcome,
    StartInstance,
)
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


class MortalProvider(SqliteProvider):
    """Tells `death` what each transaction is about."""

    def __init__(self, path: Path, death: Death) -> None:
        super().__init__(path, probe=self._probe)
        self._death = death
        self._kinds: list[str] = []

    def commit(self, batch: Sequence[Operation]) -> Awaitable[list[Outcome]]:
        # The committer has one batch under way at a time.
        self._kinds = kinds_of(batch)
        return super().commit(batch)

    def _probe(self, place: str) -> None:
        self._death.at(place, self._kinds)


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


async def main(folder: Path, residents: int, until: int, death: Death) -> None:
    lines = read_ledger(folder / "ledger")
    ledger, path = Ledger(folder / "ledger"), folder / "store.db"
    provider = MortalProvider(path, death)
    options = Options(max_activities=15, max_threads=4, max_residents=residents)
    async with Client(f"sqlite:///{path}") as own:
        # Before the runtime starts: activities begin as soon as it does.
        use(Site(ledger, own, functools.partial(death.at, "end", ["any"])))
        async with Runtime(provider, [*KINDS, *ACTIVITIES], options=options) as runtime:
            await Worker(runtime.client, ledger, until).run(*instances_so_far(lines))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    folder, residents, until, *place = sys.argv[1:]
    death = Death(place[0], place[1], int(place[2])) if place else Death()
    asyncio.run(main(Path(folder), int(residents), int(until), death))
