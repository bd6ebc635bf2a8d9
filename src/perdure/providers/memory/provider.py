"""One process's view of a store in memory."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from operator import attrgetter
from typing import Any, Literal

import msgspec

from perdure.errors import InstanceNotFound, ProviderError, StoreClosed
from perdure.providers.contract import (
    ActivityRow,
    Capabilities,
    CompleteActivity,
    Depths,
    ExecutionRow,
    InstanceRow,
    Mail,
    Message,
    NodeRow,
    Operation,
    Outcome,
    RowFilter,
    Snapshot,
    Survey,
)
from perdure.providers.memory.lives import snapshot
from perdure.providers.memory.rows import Instance, Node
from perdure.providers.memory.store import MemoryStore
from perdure.providers.memory.tables import is_runnable


class MemoryProvider:
    """A provider on a store that it may share with others, in other threads too."""

    batches_at_once = 1
    transactional: Literal["def", "async def"] | None = None

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._state = "new"
        self._loop: asyncio.AbstractEventLoop
        self._watchers: list[Callable[[], None]] = []
        self._node_ids: set[str] = set()

    def now_ms(self) -> int:
        return self._store.now_ms()

    async def open(self) -> None:
        if self._state != "new":
            raise StoreClosed("this provider was opened before; make a new one")
        self._loop = asyncio.get_running_loop()
        self._state = "open"
        self._store.listeners.append(self._tell)

    async def close(self) -> None:
        if self._state != "open":
            return
        self._state = "closed"
        self._store.listeners.remove(self._tell)
        self._watchers.clear()
        for node_id in self._node_ids & self._store.nodes.keys():
            self._store.kill_node(node_id)

    def _check_open(self) -> None:
        if self._state != "open":
            raise StoreClosed(f"the store is {'not open' if self._state == 'new' else 'closed'}")

    def reserve_key(self) -> int:
        self._check_open()
        return self._store.reserve_key()

    def commit(self, batch: Sequence[Operation]) -> Awaitable[list[Outcome]]:
        self._check_open()
        future: asyncio.Future[list[Outcome]] = self._loop.create_future()
        try:
            with self._store.lock:
                outcomes = self._store.apply(batch)
                changed = self._store.changed
        except ProviderError as error:
            future.set_exception(error)
            return future
        if changed:
            # Two nodes that look in vain must not tell each other of it for ever.
            self._tell_others()
        # Not at once: a caller that commits in a loop must let others run, as with a real store.
        self._loop.call_soon(_settle, future, outcomes)
        return future

    def _tell_others(self) -> None:
        for tell in list(self._store.listeners):
            if tell != self._tell:
                tell()

    def _tell(self) -> None:
        for changed in self._watchers:
            if self._loop is asyncio.get_running_loop():
                self._loop.call_soon(changed)
            else:
                self._loop.call_soon_threadsafe(changed)

    async def transact(
        self, claim: CompleteActivity, work: Callable[[Any], Any], limit_s: float | None
    ) -> Outcome:
        raise ProviderError(
            "this store has no transactions for activities; use sqlite:/// or postgresql://"
        )

    def watch(self, changed: Callable[[], None], node_id: str | None = None) -> Callable[[], None]:
        self._check_open()
        self._watchers.append(changed)

        def end() -> None:
            if changed in self._watchers:
                self._watchers.remove(changed)

        return end

    async def register_node(self, node_id: str, lease_ms: int) -> None:
        self._check_open()
        now = self.now_ms()
        if node_id in self._store.nodes:
            raise ProviderError(f"node {node_id} is registered by another process")
        place = socket.gethostname(), os.getpid()
        row = NodeRow(node_id, *place, now, now + lease_ms, now, instances=0, activities=0)
        self._store.nodes[node_id] = Node(row, lease_ms)
        self._node_ids.add(node_id)

    def beat(self, node_id: str) -> bool:
        self._check_open()
        with self._store.lock:
            node = self._store.nodes.get(node_id)
            if node is None:
                return False
            now = self.now_ms()
            node.row = msgspec.structs.replace(
                node.row, lease_until_ms=now + node.lease_ms, beat_ms=now
            )
            return True

    async def release_node(self, node_id: str) -> None:
        self._check_open()
        with self._store.lock:
            self._store.forget_node(node_id)
        self._node_ids.discard(node_id)
        self._tell_others()

    async def reap_nodes(self, node_id: str) -> list[str]:
        self._check_open()
        with self._store.lock:
            now = self.now_ms()
            dead = [
                other
                for other, node in sorted(self._store.nodes.items())
                if other != node_id and (not node.is_alive or node.row.lease_until_ms < now)
            ]
            for other in dead:
                self._store.forget_node(other)
        if dead:
            self._tell_others()
        return dead

    async def nodes(self) -> list[NodeRow]:
        self._check_open()
        with self._store.lock:
            instances = Counter(each.owner for each in self._store.instances.values())
            activities = Counter(each.owner for each in self._store.all_activities())
            return [
                msgspec.structs.replace(
                    node.row, instances=instances[node_id], activities=activities[node_id]
                )
                for node_id, node in sorted(self._store.nodes.items())
            ]

    async def survey(
        self, node_id: str, capabilities: Capabilities, activity_names: frozenset[str]
    ) -> Survey:
        self._check_open()
        with self._store.lock:
            now = self.now_ms()
            held = [
                (instance.due_ms, instance.key, instance)
                for instance in self._store.instances.values()
                if instance.owner == node_id
                and instance.due_ms is not None
                and instance.due_ms <= now
                and (instance.inbox or instance.items)
            ]
            unclaimed = self._store.unclaimed(activity_names)
            runnable = (i.due_ms for i in self._store.ready() if is_runnable(i, capabilities))
            return Survey(
                mail=tuple(
                    Mail(i.key, i.mail, i.external, i.messages(), i.queued)
                    for _, _, i in sorted(held, key=lambda item: item[:2])
                ),
                instances_due_ms=next(runnable, None),
                activities_due_ms=unclaimed[0][3].due_ms if unclaimed else None,
                others=sum(other != node_id for other in self._store.nodes),
            )

    async def lost_activities(
        self, node_id: str, claims: Collection[tuple[int, int, int]]
    ) -> list[tuple[int, int, int]]:
        self._check_open()
        with self._store.lock:
            return [claim for claim in claims if self._claimant(*claim) != node_id]

    def _claimant(self, key: int, execution_id: int, event_id: int) -> str | None:
        instance = self._store.instances.get(key)
        activity = instance and instance.activities.get((execution_id, event_id))
        return activity.owner if activity else None

    async def unrunnable(self, capabilities: Capabilities, limit: int) -> list[InstanceRow]:
        self._check_open()
        with self._store.lock:
            found = [i for i in self._store.due() if not is_runnable(i, capabilities)]
            return [instance.row() for instance in found[:limit]]

    async def histories(self, wanted: Sequence[tuple[int, int]]) -> list[list[bytes]]:
        self._check_open()
        with self._store.lock:
            return [self._history(self._store.instances.get(key), ex) for key, ex in wanted]

    def _history(self, instance: Instance | None, execution_id: int) -> list[bytes]:
        if instance is None or execution_id not in instance.executions:
            return []
        return [data for _, data in sorted(instance.executions[execution_id].history.items())]

    async def read_history(
        self, instance_id: str, execution_id: int | None = None, after: int = 0, limit: int = 1000
    ) -> list[bytes]:
        self._check_open()
        with self._store.lock:
            instance = self._store.find(instance_id)
            if instance is None:
                raise InstanceNotFound(
                    f"there is no instance {instance_id!r}; check the id and the store"
                )
            number = instance.execution_id if execution_id is None else execution_id
            if number not in instance.executions:
                return []
            events = sorted(instance.executions[number].history.items())
            return [data for event_id, data in events if event_id > after][:limit]

    async def get_instances(self, instance_ids: Collection[str]) -> dict[str, InstanceRow]:
        self._check_open()
        with self._store.lock:
            found = [self._store.find(instance_id) for instance_id in instance_ids]
            return {i.instance_id: i.row() for i in found if i is not None}

    async def get_execution(self, key: int, execution_id: int) -> ExecutionRow | None:
        self._check_open()
        with self._store.lock:
            instance = self._store.instances.get(key)
            if instance is None or execution_id not in instance.executions:
                return None
            return instance.executions[execution_id].row(execution_id)

    async def list_executions(self, instance_id: str) -> list[ExecutionRow]:
        self._check_open()
        with self._store.lock:
            instance = self._store.find(instance_id)
            if instance is None:
                return []
            return [execution.row(n) for n, execution in sorted(instance.executions.items())]

    async def list_instances(
        self, filter: RowFilter, after: int = 0, limit: int = 100
    ) -> list[InstanceRow]:
        self._check_open()
        with self._store.lock:
            found = [
                instance
                for instance in self._by_key()
                if instance.key > after and _matches(instance, filter)
            ]
            return [instance.row() for instance in found[:limit]]

    async def list_tree(self, instance_id: str) -> list[InstanceRow]:
        self._check_open()
        with self._store.lock:
            root = self._store.find(instance_id)
            return [] if root is None else [one.row() for one in self._store.tree(root)]

    async def queue_items(self, key: int, queue: str, after: int, limit: int) -> list[Message]:
        self._check_open()
        with self._store.lock:
            instance = self._store.instances.get(key)
            items = instance.queues.get(queue, {}) if instance else {}
            return [item for seq, item in sorted(items.items()) if seq > after][:limit]

    async def list_activities(self, key: int) -> list[ActivityRow]:
        self._check_open()
        with self._store.lock:
            instance = self._store.instances.get(key)
            items = sorted(instance.activities.items()) if instance else []
            return [
                ActivityRow(*place, a.name, a.owner, a.attempt, a.due_ms, a.error)
                for place, a in items
            ]

    async def snapshots(self, instance_id: str) -> list[Snapshot]:
        self._check_open()
        with self._store.lock:
            root = self._store.find(instance_id)
            return [] if root is None else [snapshot(one) for one in self._store.tree(root)]

    def _by_key(self) -> list[Instance]:
        return sorted(self._store.instances.values(), key=attrgetter("key"))

    async def count_instances(self) -> dict[str, int]:
        self._check_open()
        counts: dict[str, int] = {}
        with self._store.lock:
            for instance in self._store.instances.values():
                counts[instance.status] = counts.get(instance.status, 0) + 1
        return counts

    async def count_blocked(self) -> dict[str, int]:
        self._check_open()
        with self._store.lock:
            reasons = [i.blocked for i in self._store.instances.values() if i.blocked is not None]
            return dict(Counter(reasons))

    async def depths(self) -> Depths:
        self._check_open()
        with self._store.lock:
            instances = self._store.instances.values()
            return Depths(
                instances=len(self._store.due()),
                messages=sum(len(instance.inbox) for instance in instances),
                items=sum(instance.items for instance in instances),
                timers=sum(len(instance.timers) for instance in instances),
                activities=self._activity_depths(),
            )

    def _activity_depths(self) -> dict[str, tuple[int, int, int]]:
        now = self.now_ms()
        found: dict[str, tuple[int, int, int]] = {}
        for activity in self._store.all_activities():
            waiting, later, running = found.get(activity.name, (0, 0, 0))
            if activity.owner is not None:
                running += 1
            elif activity.due_ms <= now:
                waiting += 1
            else:
                later += 1
            found[activity.name] = waiting, later, running
        return found


def _matches(instance: Instance, wanted: RowFilter) -> bool:
    return (
        wanted.status in (None, instance.status)
        and wanted.name in (None, instance.name)
        and wanted.version in (None, instance.version)
        and (wanted.id_prefix is None or instance.instance_id.startswith(wanted.id_prefix))
        and wanted.parent in (None, instance.parent.instance_id if instance.parent else "")
        and wanted.blocked in (None, instance.blocked is not None)
        and _between(instance.created_ms, wanted.created_after_ms, wanted.created_before_ms)
        and _between(instance.finished_ms, wanted.finished_after_ms, wanted.finished_before_ms)
    )


def _between(time_ms: int | None, after_ms: int | None, before_ms: int | None) -> bool:
    if time_ms is None:
        return after_ms is None and before_ms is None
    return (after_ms is None or time_ms > after_ms) and (before_ms is None or time_ms < before_ms)


def _settle(future: asyncio.Future[list[Outcome]], outcomes: list[Outcome]) -> None:
    if not future.done():
        future.set_result(outcomes)
