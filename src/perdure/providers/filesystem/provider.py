"""One process's view of a store in a folder.

It reads as the provider in memory does, from the same tables, but never what is not durable yet.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from perdure.providers.clock import wall_ms
from perdure.providers.contract import Capabilities, Mail, Operation, Outcome, Survey
from perdure.providers.filesystem.store import FilesystemStore
from perdure.providers.memory.provider import MemoryProvider
from perdure.providers.memory.tables import is_runnable

P = ParamSpec("P")
T = TypeVar("T")


def _durable(
    read: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[FilesystemProvider, P], Coroutine[Any, Any, T]]:
    """The same read, after the commit that is under way."""

    async def settled(self: FilesystemProvider, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self._check_open()
        await self.store.settled()
        return await read(self, *args, **kwargs)

    return settled


class FilesystemProvider(MemoryProvider):
    """A provider on a store in a folder, given as its path or as the store itself, which it may
    then share with others on the same loop. The last to close closes the store."""

    def __init__(
        self,
        store: FilesystemStore | str | Path,
        *,
        now_ms: Callable[[], int] = wall_ms,
        probe: Callable[[str], None] | None = None,
    ) -> None:
        if not isinstance(store, FilesystemStore):
            store = FilesystemStore(store, now_ms, probe)
        super().__init__(store.tables)
        self.store = store
        self.path = store.path

    async def open(self) -> None:
        self.store.check_process()
        await self.store.acquire()
        await super().open()

    async def close(self) -> None:
        self.store.check_process()
        if self._state == "open":
            await super().close()
            await self.store.release()

    def _check_open(self) -> None:
        self.store.check_process()
        super()._check_open()

    def commit(self, batch: Sequence[Operation]) -> Awaitable[list[Outcome]]:
        self._check_open()
        future = self.store.commit(batch)
        if len(self._store.listeners) > 1:
            future.add_done_callback(lambda _: self._tell_others())
        return future

    async def register_node(self, node_id: str, lease_ms: int) -> None:
        await super().register_node(node_id, lease_ms)
        await self.store.reserve_keys()

    async def release_node(self, node_id: str) -> None:
        self._check_open()
        await self.store.forget([node_id])
        self._node_ids.discard(node_id)
        self._tell_others()

    async def reap_nodes(self, node_id: str) -> list[str]:
        self._check_open()
        now = self.now_ms()
        dead = [
            other
            for other, node in sorted(self._store.nodes.items())
            if other != node_id and (not node.is_alive or node.row.lease_until_ms < now)
        ]
        if dead:
            await self.store.forget(dead)
            self._tell_others()
        return dead

    async def survey(
        self, node_id: str, capabilities: Capabilities, activity_names: frozenset[str]
    ) -> Survey:
        self._check_open()
        await self.store.settled()
        tables, now = self.store.tables, self.now_ms()
        tables.tidy()
        unclaimed = tables.unclaimed(activity_names)
        return Survey(
            mail=tuple(
                Mail(i.key, i.mail, i.external, i.messages(), i.queued)
                for i in tables.with_mail(node_id, now)
            ),
            instances_due_ms=next(
                (i.due_ms for i in tables.ready() if is_runnable(i, capabilities)), None
            ),
            activities_due_ms=unclaimed[0][3].due_ms if unclaimed else None,
            others=sum(other != node_id for other in tables.nodes),
        )

    nodes = _durable(MemoryProvider.nodes)
    lost_activities = _durable(MemoryProvider.lost_activities)
    unrunnable = _durable(MemoryProvider.unrunnable)
    histories = _durable(MemoryProvider.histories)
    read_history = _durable(MemoryProvider.read_history)
    get_instances = _durable(MemoryProvider.get_instances)
    get_execution = _durable(MemoryProvider.get_execution)
    list_executions = _durable(MemoryProvider.list_executions)
    list_instances = _durable(MemoryProvider.list_instances)
    list_tree = _durable(MemoryProvider.list_tree)
    queue_items = _durable(MemoryProvider.queue_items)
    list_activities = _durable(MemoryProvider.list_activities)
    snapshots = _durable(MemoryProvider.snapshots)
    count_instances = _durable(MemoryProvider.count_instances)
    count_blocked = _durable(MemoryProvider.count_blocked)
    depths = _durable(MemoryProvider.depths)
