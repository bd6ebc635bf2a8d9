"""Removing what is not needed any more: old executions, and whole instances."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from perdure.client.connection import Connection, check_addressable, not_found
from perdure.client.filters import InstanceFilter, check_filter
from perdure.client.models import PruneResult
from perdure.errors import InstanceIsChild, InstanceRunning
from perdure.providers.contract import (
    TERMINAL,
    Deleted,
    DeleteInstance,
    InstanceRow,
    NotFound,
    Outcome,
    Pruned,
    PruneExecutions,
    Retention,
    Undeletable,
)
from perdure.retention import PruneOptions

PAGE = 100
"""Instances of one batch: other writers of the store get their turn in between."""


class Upkeep(Connection):
    """The part of a client that removes."""

    async def prune_executions(self, instance_id: str, options: PruneOptions) -> PruneResult:
        """Delete ended executions with their histories; see PruneOptions for which.

        The current execution is never pruned, running or not. Safe while the instance runs, and
        from several processes at once. Raises InstanceNotFound.
        """
        check_addressable(instance_id)
        pruning = PruneExecutions(instance_id, self._retention(options))
        outcome = await self.committer.write(pruning)
        if not isinstance(outcome, Pruned):
            raise not_found(instance_id)
        return _sum([outcome])

    async def prune_executions_bulk(
        self, filter: InstanceFilter, options: PruneOptions
    ) -> PruneResult:
        """prune_executions for every matching instance; what was removed in all.

        An age (`completed_before` as a timedelta) counts from the call. In small batches, so that
        others are not kept waiting: an error may come after some of them.
        """
        wanted = check_filter(filter)
        retention = self._retention(options)
        total = PruneResult(0, 0, 0)
        async for rows in self._pages(wanted):
            pruned = await self._write_all(
                [PruneExecutions(row.instance_id, retention) for row in rows]
            )
            total = _added(total, _sum(pruned))
        return total

    async def delete_instance(self, instance_id: str, force: bool = False) -> int:
        """Delete an instance with its sub-orchestrations and theirs; how many instances went.

        Everything of them goes at once, or nothing does. force: also while one of them runs; what
        it is doing is lost then. Raises InstanceNotFound; InstanceIsChild: delete its parent;
        InstanceRunning.
        """
        check_addressable(instance_id)
        outcome = await self.committer.write(DeleteInstance(instance_id, force))
        match outcome:
            case Deleted(instances=instances):
                self._open_endings.refresh_soon()
                return instances
            case Undeletable(reason="child", instance_id=parent):
                raise InstanceIsChild(
                    f"instance {instance_id!r} is a sub-orchestration of {parent!r} and goes with "
                    "it; delete that one",
                    instance_id=instance_id,
                    parent=parent,
                )
            case Undeletable(instance_id=running):
                raise InstanceRunning(_still_running(instance_id, running), instance_id=running)
            case _:
                assert isinstance(outcome, NotFound)
                raise not_found(instance_id)

    async def delete_instances_bulk(self, filter: InstanceFilter, force: bool = False) -> int:
        """delete_instance for every matching instance; how many instances went, children included.

        What cannot be deleted is passed over: children (they go with their parents), and without
        `force` what runs or has a child that does. In small batches, as in prune_executions_bulk.
        """
        wanted = check_filter(filter)
        total = 0
        async for rows in self._pages(wanted):
            doomed = [row for row in rows if force or row.status in TERMINAL]
            deleted = await self._write_all(
                [DeleteInstance(row.instance_id, force, row.incarnation) for row in doomed]
            )
            gone = sum(one.instances for one in deleted if isinstance(one, Deleted))
            if gone:
                self._open_endings.refresh_soon()
            total += gone
        return total

    def _retention(self, options: PruneOptions) -> Retention:
        self._check_open()
        return Retention(options.kept, options.before_ms(self._provider.now_ms()))

    async def _pages(self, filter: InstanceFilter) -> AsyncIterator[list[InstanceRow]]:
        wanted = filter.rows()
        after = 0
        while rows := await self._open_provider.list_instances(wanted, after, PAGE):
            after = rows[-1].key
            yield rows

    async def _write_all(self, operations: list[PruneExecutions | DeleteInstance]) -> list[Outcome]:
        committer = self.committer
        return await asyncio.gather(*(committer.write(operation) for operation in operations))


def _sum(outcomes: list[Outcome]) -> PruneResult:
    pruned = [outcome for outcome in outcomes if isinstance(outcome, Pruned)]
    return PruneResult(
        sum(one.executions for one in pruned),
        sum(one.events for one in pruned),
        sum(one.executions > 0 for one in pruned),
    )


def _added(one: PruneResult, other: PruneResult) -> PruneResult:
    return PruneResult(
        one.executions + other.executions,
        one.events + other.events,
        one.instances + other.instances,
    )


def _still_running(instance_id: str, running: str) -> str:
    who = "it" if instance_id == running else f"its sub-orchestration {running!r}"
    return (
        f"instance {instance_id!r} cannot be deleted while {who} runs; cancel it and wait for its "
        "end, or delete it with force"
    )
