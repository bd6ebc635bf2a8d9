"""The tables of the store: those in memory, whose every change can be recorded and repeated."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, assert_never

from perdure.errors import ProviderError
from perdure.providers.contract import ORDER, Operation, Outcome
from perdure.providers.filesystem import records
from perdure.providers.filesystem.indexed import IndexedTables
from perdure.providers.filesystem.records import Batch, Counters, Entry, Events, Forgotten, Row
from perdure.providers.memory.rows import Instance

KEYS = 4_000
"""How many keys are reserved at once."""
EVENTS_BYTES = 1 << 20
"""About how much of a history one record holds."""


class JournaledTables(IndexedTables):
    """clock: the store's. While a batch is applied its time stands still, so that the batch can be
    repeated from the record of it.

    keys_to: keys up to this one are known to the journal as given out. gone: the ids of instances
    that the last batch has deleted. has_traces: something of a deleted instance is in the journal.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        super().__init__(self._time, self._next_token)
        self._clock = clock
        self._frozen_ms: int | None = None
        self._issued: list[str] = []
        self._recorded: list[str] | None = None
        self.keys_to = 0
        self.gone: list[str] = []
        self.has_traces = False

    def _time(self) -> int:
        return self._clock() if self._frozen_ms is None else self._frozen_ms

    def _next_token(self) -> str:
        if self._recorded is None:
            self._issued.append(secrets.token_hex(16))
        elif len(self._issued) < len(self._recorded):
            self._issued.append(self._recorded[len(self._issued)])
        else:
            raise ProviderError("a recorded batch claims more than it did")
        return self._issued[-1]

    def begin(self) -> None:
        super().begin()
        self.gone = []

    def drop(self, table: dict[Any, Any], key: Any) -> None:
        if table is self.keys:
            self.gone.append(key)
        super().drop(table, key)

    @property
    def _changes(self) -> int:
        # The first thing to undo is always the counter of messages.
        return len(self._undo) - 1

    def reserve_key(self) -> int:
        return super().reserve_key() if self.last_key < self.keys_to else 0

    # Changes, and the records of them. The caller holds the lock.

    def perform(
        self, batch: Sequence[Operation], reserve: bool = False
    ) -> tuple[list[Outcome], Batch | None]:
        """Apply the batch; its outcomes, and what is to be recorded: None if it changed nothing.

        reserve: record more keys as given out, too. Raises ProviderError, and then nothing was
        applied.
        """
        operations = records.pack(batch)
        now, last_key = self._clock(), self.last_key
        outcomes = self._run(batch, now, None)
        if not (self._changes or reserve):
            return outcomes, None
        wanted = reserve or (self.nodes and self.keys_to - self.last_key < KEYS // 2)
        keys_to = self.last_key + KEYS if wanted else self.keys_to
        return outcomes, Batch(now, last_key, keys_to, self._issued, self._changes, operations)

    def confirm(self, entry: Batch | Forgotten) -> None:
        """The record is durable."""
        if isinstance(entry, Batch):
            self.keys_to = entry.keys_to

    def forget(self, node_ids: Collection[str] | None) -> Forgotten | None:
        """Free what these nodes hold (None: all nodes); what is to be recorded."""
        self.begin()
        for instance in self.instances.values():
            if _is_held(instance.owner, node_ids):
                self.set(instance, owner=None, token=None)
        for activity in self.all_activities():
            if _is_held(activity.owner, node_ids):
                self.set(activity, owner=None)
        if not self._changes:
            return None
        return Forgotten(None if node_ids is None else sorted(node_ids), self._changes)

    def _run(
        self, batch: Sequence[Operation], now: int, recorded: list[str] | None
    ) -> list[Outcome]:
        self._frozen_ms, self._issued, self._recorded = now, [], recorded
        self.begin()
        outcomes: dict[int, Outcome] = {}
        try:
            for place in sorted(range(len(batch)), key=lambda at: ORDER[type(batch[at])]):
                outcomes[place] = self._apply(batch[place])
        except (ValueError, TypeError) as error:
            self.revert()
            raise ProviderError(f"a value in the batch cannot be stored: {error}") from error
        finally:
            self._frozen_ms = self._recorded = None
        self.has_traces = self.has_traces or bool(self.gone)
        return [outcomes[place] for place in range(len(batch))]

    # Reading the journal, and writing it anew.

    def repeat(self, entry: Entry) -> None:
        """Do again what a record says. Raises ProviderError if it has another effect now."""
        match entry:
            case Batch():
                self.last_key, self.keys_to = entry.last_key, entry.keys_to
                self._run(records.unpack(entry.operations), entry.now_ms, entry.tokens)
                self._check(entry.changes)
            case Forgotten():
                self.forget(entry.node_ids)
                self._check(entry.changes)
            case Row(instance):
                self.instances[instance.key] = instance
                self.keys[instance.instance_id] = instance.key
                self.enlist(instance)
            case Events():
                execution = self.instances[entry.key].executions[entry.execution_id]
                execution.history.update(entry.events)
            case Counters():
                self.last_key, self.last_seq = entry.last_key, entry.last_seq
                self.keys_to = entry.keys_to
            case _:
                assert_never(entry)

    def _check(self, changes: int) -> None:
        if self._changes != changes:
            raise ProviderError(
                f"a recorded batch made {changes} changes and would make {self._changes} now; "
                "open the store with the version of Perdure that wrote it"
            )

    def recovered(self) -> Forgotten | None:
        """All records were repeated: every node died with its process, and no key that may have
        been given out is given out again."""
        self.last_key = max(self.last_key, self.keys_to)
        return self.forget(None)

    def entries(self) -> Iterator[Entry]:
        """All rows, as the beginning of a new journal."""
        for instance in self.instances.values():
            executions = {
                number: dataclasses.replace(execution, history={})
                for number, execution in instance.executions.items()
            }
            yield Row(dataclasses.replace(instance, executions=executions))
            yield from _histories(instance)
        yield Counters(self.last_key, self.last_seq, max(self.last_key, self.keys_to))


def _histories(instance: Instance) -> Iterator[Events]:
    for number, execution in instance.executions.items():
        part: dict[int, bytes] = {}
        size = 0
        for event_id, data in execution.history.items():
            part[event_id] = data
            size += len(data)
            if size >= EVENTS_BYTES:
                yield Events(instance.key, number, part)
                part, size = {}, 0
        if part:
            yield Events(instance.key, number, part)


def _is_held(owner: str | None, node_ids: Collection[str] | None) -> bool:
    return owner is not None and (node_ids is None or owner in node_ids)
