"""Looking at instances: it changes nothing and needs no runtime."""

from __future__ import annotations

from perdure.client.connection import Connection, check_addressable, not_found
from perdure.client.filters import InstanceFilter, check_filter, cursor_after, key_of
from perdure.client.models import (
    ExecutionInfo,
    Instance,
    InstancePage,
    InstanceTree,
    Metrics,
    NodeInfo,
    QueueDepths,
    depths_of,
    execution_of,
    instance_of,
    node_of,
    tree_of,
)
from perdure.client.waits import Wait, waits_of
from perdure.core import events

PAGE_MAX = 1_000


class Inspecting(Connection):
    """The part of a client that reads."""

    async def get_instance(self, instance_id: str) -> Instance:
        """The instance as it is now. Raises InstanceNotFound."""
        return instance_of(await self._row(instance_id))

    async def list_instances(
        self, filter: InstanceFilter | None = None, *, cursor: str | None = None, limit: int = 100
    ) -> InstancePage:
        """Up to `limit` (1 to 1,000) matching instances, oldest start first, from `cursor` on.

        cursor: that of the page before; None for the first page. Raises ValueError for a text
        that is no cursor.
        """
        _check_limit(limit)
        after = key_of(cursor)
        wanted = check_filter(filter).rows()
        # One more than asked for tells whether another page follows.
        rows = await self._open_provider.list_instances(wanted, after, limit + 1)
        page = rows[:limit]
        return InstancePage(
            [instance_of(row) for row in page],
            cursor_after(page[-1].key) if len(rows) > limit else None,
        )

    async def list_executions(self, instance_id: str) -> list[ExecutionInfo]:
        """All executions of an instance, oldest first. Raises InstanceNotFound."""
        await self._row(instance_id)
        return [execution_of(row) for row in await self._provider.list_executions(instance_id)]

    async def read_history(
        self, instance_id: str, execution_id: int | None = None
    ) -> list[events.AnyEvent]:
        """The events of an execution (None: the current one). Raises InstanceNotFound."""
        if execution_id is None:
            execution_id = (await self._row(instance_id)).execution_id
        provider = self._open_provider
        lines: list[bytes] = []
        while True:
            page = await provider.read_history(instance_id, execution_id, len(lines))
            if not page:
                return [events.decode(line) for line in lines]
            lines.extend(page)

    async def get_instance_tree(self, instance_id: str) -> InstanceTree:
        """The instance with its sub-orchestrations and theirs. Raises InstanceNotFound."""
        self._check_open()
        check_addressable(instance_id)
        rows = await self._provider.list_tree(instance_id)
        if not rows:
            raise not_found(instance_id)
        return tree_of(instance_id, rows)

    async def waiting_for(self, instance_id: str) -> list[Wait]:
        """What the instance waits for right now, oldest request first; [] once it has ended.

        Raises InstanceNotFound. It is put together from several reads: of an instance that moves
        meanwhile, some of it may be over already.
        """
        row = await self._row(instance_id)
        history = await self.read_history(instance_id, row.execution_id)
        activities = await self._provider.list_activities(row.key)
        return waits_of(
            history, [one for one in activities if one.execution_id == row.execution_id]
        )

    async def get_queue_depths(self) -> QueueDepths:
        """How much waits in the store."""
        return depths_of(await self._open_provider.depths())

    async def nodes(self) -> list[NodeInfo]:
        """The nodes that the store knows, by id; one that has died is among them until another
        finds out."""
        return [node_of(row) for row in await self._open_provider.nodes()]

    async def get_metrics(self) -> Metrics:
        """The store at a glance: instances by status, blocked ones by reason, nodes; and what the
        runtime of this process, if there is one, has dropped and refused."""
        provider = self._open_provider
        return Metrics(
            instances=await provider.count_instances(),
            blocked=await provider.count_blocked(),
            nodes=await self.nodes(),
            counters=None if self._host is None else dict(self._host.counters),
        )


def _check_limit(limit: int) -> None:
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit must be a whole number, not {limit!r}")
    if not 1 <= limit <= PAGE_MAX:
        raise ValueError(f"limit is 1 to {PAGE_MAX:,}, not {limit}")
