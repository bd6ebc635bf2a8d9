"""The client that writes to mailboxes and cancels sleepers, as soon as their start is acknowledged.

On SQLite it lives on outside of the workers. A store in a folder has one process at a time: there
each worker has one of its own, which goes on where that of an earlier worker was when it died.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from kill_ledger import Ledger, Line, Tail
from kill_load import LAST

from perdure import Client, InstanceTerminal

LOOK_S = 0.005


class Outside:
    """seed: of its choices. accepted: whether the store has a note of an instance, asked about
    notes that an earlier one has sent and of which it did not live to see the answer; None if
    there is no earlier one."""

    def __init__(
        self,
        client: Client,
        ledger: Path,
        seed: int,
        accepted: Callable[[str, str], bool] | None = None,
    ) -> None:
        self._client = client
        self._ledger = Ledger(ledger)
        self._tail = Tail(ledger)
        self._seed = seed
        self._accepted = accepted
        self._intended: set[str] = set()
        self._acknowledged: set[str] = set()

    async def serve(self) -> None:
        """Until it is cancelled."""
        known: set[str] = set()
        first = self._tail.new()
        self._take_up(first)
        async with asyncio.TaskGroup() as group:
            lines = first
            while True:
                for line in lines:
                    if line.word != "ok" or line.args[0] != "start" or line.args[1] in known:
                        continue
                    instance_id = line.args[1]
                    known.add(instance_id)
                    if instance_id.startswith("mailbox"):
                        group.create_task(self._write_to(instance_id))
                    elif instance_id.startswith("letters"):
                        group.create_task(self._send_letters_to(instance_id))
                    elif instance_id.startswith("sleeper"):
                        group.create_task(self._cancel(instance_id))
                await asyncio.sleep(LOOK_S)
                lines = self._tail.new()

    def _take_up(self, lines: Sequence[Line]) -> None:
        """What has been done already: notes by their data, cancel requests by instance."""
        for line in lines:
            if line.word in ("intent", "ok") and line.args[0] in ("event", "cancel"):
                done = self._intended if line.word == "intent" else self._acknowledged
                done.add(line.args[-1])

    async def _write_to(self, instance_id: str) -> None:
        random = Random(f"{self._seed} {instance_id}")
        notes = [f"{number}-{instance_id}" for number in range(random.randint(0, 6))]
        for data in [*notes, LAST + instance_id]:
            if data in self._acknowledged:
                continue
            if data not in self._intended:
                await asyncio.sleep(random.choice([0, 0, 0.01, 0.05]))
                self._ledger.write("intent", "event", instance_id, "note", data)
                await self._client.raise_event(instance_id, "note", data)
            elif self._accepted is not None and not self._accepted(instance_id, data):
                await self._client.raise_event(instance_id, "note", data)
            self._ledger.write("ok", "event", instance_id, "note", data)

    async def _send_letters_to(self, instance_id: str) -> None:
        """Each with an id of its own, and some twice."""
        random = Random(f"{self._seed} {instance_id}")
        letters = [f"{number}-{instance_id}" for number in range(random.randint(0, 6))]
        for data in [*letters, LAST + instance_id]:
            times = random.randint(1, 2)
            if data in self._acknowledged:
                continue
            await asyncio.sleep(random.choice([0, 0, 0.01, 0.05]))
            if data not in self._intended:
                self._ledger.write("intent", "event", instance_id, "letter", data)
            for number in range(times):
                try:
                    await self._client.enqueue_event(instance_id, "letter", data, event_id=data)
                except InstanceTerminal:
                    # It ends with its last letter, which was then accepted before.
                    assert data.startswith(LAST)
                    assert number > 0 or data in self._intended
            self._ledger.write("ok", "event", instance_id, "letter", data)

    async def _cancel(self, instance_id: str) -> None:
        if instance_id in self._acknowledged:
            return
        await asyncio.sleep(Random(f"{self._seed} {instance_id}").uniform(0, 0.2))
        self._ledger.write("intent", "cancel", instance_id)
        try:
            await self._client.cancel_instance(instance_id, "enough")
        except InstanceTerminal:
            # Only a request that was accepted before can have ended it.
            assert instance_id in self._intended
        self._ledger.write("ok", "cancel", instance_id)
