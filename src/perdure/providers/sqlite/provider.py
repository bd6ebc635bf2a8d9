"""The SQLite provider: a writer's thread, a reader's thread, and a third connection for beats.

The loop's thread does no I/O. Every write goes through the writer's queue in one transaction, every
read through the reader's; only `beat` writes by itself, so that a lease does not depend on how
long the queues are.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import apsw

from perdure.errors import ForkedStoreError, StoreClosed
from perdure.providers.clock import wall_ms
from perdure.providers.contract import (
    ActivityRow,
    Capabilities,
    CompleteActivity,
    Depths,
    ExecutionRow,
    InstanceRow,
    Message,
    NodeRow,
    Operation,
    Outcome,
    RowFilter,
    Snapshot,
    Survey,
)
from perdure.providers.sqlite import lives, reads, registry
from perdure.providers.sqlite.connection import Database
from perdure.providers.sqlite.nodes import NodeLocks
from perdure.providers.sqlite.writer import Writer
from perdure.providers.worker import Worker

LOCK_WAIT_MS = 30_000

P = ParamSpec("P")
T = TypeVar("T")


class SqliteProvider:
    """A store in the file `path`, which is created if it does not exist.

    now_ms: the store's clock. lock_wait_ms: how long to wait for the write lock before
    StoreUnavailable. probe: see Writer.
    """

    batches_at_once = 1
    transactional: Literal["def", "async def"] | None = "def"

    def __init__(
        self,
        path: str | Path,
        *,
        now_ms: Callable[[], int] = wall_ms,
        lock_wait_ms: int = LOCK_WAIT_MS,
        probe: Callable[[str], None] | None = None,
    ) -> None:
        self.path = os.path.abspath(path)
        self.now_ms = now_ms
        self._database = Database(self.path, lock_wait_ms)
        self._locks = NodeLocks(f"{self.path}-nodes")
        self._probe = probe
        self._pid = os.getpid()
        self._state = "new"
        self._write: Worker
        self._writer: Writer
        self._read: Worker
        self._reading: apsw.Connection
        self._beating: apsw.Connection | None = None
        self._beat_lock = threading.Lock()
        self._leases: dict[str, int] = {}
        self._watchers: list[Callable[[], None]] = []
        self._telling = False

    async def open(self) -> None:
        self._check_process()
        if self._state != "new":
            raise StoreClosed(f"{self.path} was opened before; make a new provider")
        self._state = "opening"
        with ExitStack() as undo:
            undo.callback(setattr, self, "_state", "closed")
            self._write = Worker("perdure-sqlite-writer")
            undo.callback(self._write.stop)
            self._writer = await self._write.submit(self._new_writer)
            undo.callback(self._write.submit, self._writer.close)
            self._read = Worker("perdure-sqlite-reader")
            undo.callback(self._read.stop)
            self._reading = await self._read.submit(self._database.connect)
            undo.pop_all()
        self._state = "open"

    def _new_writer(self) -> Writer:
        return Writer(self._database, self.now_ms, self._seen_foreign, self._probe)

    async def close(self) -> None:
        self._check_process()
        if self._state != "open":
            return
        self._state = "closed"
        self._watchers.clear()
        closed = self._read.submit(self._reading.close), self._write.submit(self._close_writing)
        self._read.stop()
        self._write.stop()
        await asyncio.gather(*closed)

    def _close_writing(self) -> None:
        with self._beat_lock:
            if self._beating is not None:
                self._beating.close()
                self._beating = None
        self._writer.close()
        self._locks.close()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedStoreError(
                f"{self.path} was opened by the parent of this forked process; "
                "open a new provider in the child"
            )

    def _check_open(self) -> None:
        self._check_process()
        if self._state != "open":
            raise StoreClosed(f"{self.path} is {'not open' if self._state == 'new' else 'closed'}")

    # Writing.

    def reserve_key(self) -> int:
        self._check_open()
        keys = self._writer.keys
        return keys.popleft() if keys else 0

    def commit(self, batch: Sequence[Operation]) -> Awaitable[list[Outcome]]:
        self._check_open()
        return self._write.submit(lambda: self._writer.commit(batch))

    async def transact(
        self, claim: CompleteActivity, work: Callable[[Any], Any], limit_s: float | None
    ) -> Outcome:
        self._check_open()
        return await self._write.submit(lambda: self._writer.transact(claim, work, limit_s))

    def watch(self, changed: Callable[[], None], node_id: str | None = None) -> Callable[[], None]:
        self._check_open()
        self._watchers.append(changed)
        if self._write.poll is None:
            self._write.poll = self._writer.poll
            # It may be waiting without an end.
            self._write.submit(self._writer.poll)

        def end() -> None:
            if changed in self._watchers:
                self._watchers.remove(changed)
            if not self._watchers:
                self._write.poll = None

        return end

    def _seen_foreign(self) -> None:
        if self._watchers and not self._telling:
            self._telling = True
            self._write.post(self._tell_watchers)

    def _tell_watchers(self) -> None:
        self._telling = False
        for changed in list(self._watchers):
            changed()

    # Nodes.

    async def register_node(self, node_id: str, lease_ms: int) -> None:
        self._check_open()
        self._leases[node_id] = lease_ms

        def register() -> None:
            self._locks.take(node_id, lease_ms)
            try:
                self._writer.register(node_id, lease_ms)
            except BaseException:
                self._locks.drop(node_id)
                raise

        await self._write.submit(register)

    def beat(self, node_id: str) -> bool:
        self._check_open()
        with self._beat_lock:
            if self._state != "open":
                raise StoreClosed(f"{self.path} is closed")
            if self._beating is None:
                self._beating = self._database.connect()
            now = self.now_ms()
            lease_ms = self._leases.get(node_id, 0)
            renewed_ms = self._writer.renewed_ms.get(node_id, 0)
            try:
                if 0 <= now - renewed_ms < lease_ms // 3:
                    return registry.is_known(self._beating, node_id)
                return registry.renew(self._beating, node_id, now + lease_ms)
            except apsw.Error as error:
                raise self._database.explain(error) from error

    async def release_node(self, node_id: str) -> None:
        self._check_open()

        def release() -> None:
            self._writer.release(node_id)
            self._locks.drop(node_id)

        await self._write.submit(release)

    async def reap_nodes(self, node_id: str) -> list[str]:
        others = [other for other in await self._query(reads.node_ids) if other != node_id]

        def reap() -> list[str]:
            unlocked = [other for other in others if self._locks.is_free(other)]
            locked = [other for other in others if other not in unlocked]
            return self._writer.reap(unlocked, locked)

        return await self._write.submit(reap) if others else []

    async def nodes(self) -> list[NodeRow]:
        return await self._query(reads.nodes, self._locks.lease_of)

    # Reading.

    async def _query(
        self,
        read: Callable[Concatenate[apsw.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        self._check_open()

        def run() -> T:
            try:
                return read(self._reading, *args, **kwargs)
            except apsw.Error as error:
                raise self._database.explain(error) from error

        return await self._read.submit(run)

    async def survey(
        self, node_id: str, capabilities: Capabilities, activity_names: frozenset[str]
    ) -> Survey:
        return await self._query(reads.survey, node_id, capabilities, activity_names, self.now_ms())

    async def lost_activities(
        self, node_id: str, claims: Collection[tuple[int, int, int]]
    ) -> list[tuple[int, int, int]]:
        return await self._query(reads.lost_activities, node_id, claims)

    async def unrunnable(self, capabilities: Capabilities, limit: int) -> list[InstanceRow]:
        return await self._query(reads.unrunnable, capabilities, limit, self.now_ms())

    async def histories(self, wanted: Sequence[tuple[int, int]]) -> list[list[bytes]]:
        return await self._query(reads.histories, wanted)

    async def read_history(
        self, instance_id: str, execution_id: int | None = None, after: int = 0, limit: int = 1000
    ) -> list[bytes]:
        return await self._query(reads.read_history, instance_id, execution_id, after, limit)

    async def get_instances(self, instance_ids: Collection[str]) -> dict[str, InstanceRow]:
        return await self._query(reads.get_instances, instance_ids)

    async def get_execution(self, key: int, execution_id: int) -> ExecutionRow | None:
        return await self._query(reads.get_execution, key, execution_id)

    async def list_executions(self, instance_id: str) -> list[ExecutionRow]:
        return await self._query(reads.list_executions, instance_id)

    async def list_instances(
        self, filter: RowFilter, after: int = 0, limit: int = 100
    ) -> list[InstanceRow]:
        return await self._query(reads.list_instances, filter, after, limit)

    async def list_tree(self, instance_id: str) -> list[InstanceRow]:
        return await self._query(reads.list_tree, instance_id)

    async def queue_items(self, key: int, queue: str, after: int, limit: int) -> list[Message]:
        return await self._query(reads.queue_items, key, queue, after, limit)

    async def list_activities(self, key: int) -> list[ActivityRow]:
        return await self._query(reads.list_activities, key)

    async def snapshots(self, instance_id: str) -> list[Snapshot]:
        return await self._query(lives.snapshots, instance_id)

    async def count_instances(self) -> dict[str, int]:
        return await self._query(reads.count_instances)

    async def count_blocked(self) -> dict[str, int]:
        return await self._query(reads.count_blocked)

    async def depths(self) -> Depths:
        return await self._query(reads.depths, self.now_ms())
