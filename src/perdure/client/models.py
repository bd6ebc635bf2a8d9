"""What a client gives back about instances and executions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from perdure.codec import ANY
from perdure.core.events import Failure
from perdure.errors import OrchestrationFailedError
from perdure.providers.contract import Depths, ExecutionRow, InstanceRow, NodeRow

_failure = msgspec.json.Decoder(Failure)


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance in one snapshot. Times are milliseconds since the epoch, UTC.

    status: pending, running, completed, failed or cancelled. output: decoded JSON, once completed.
    error: once failed or cancelled. blocked: why a running instance cannot go on now
    (nondeterminism, incompatible_payload, forbidden_operation, not_registered, poison, …), with
    blocked_detail and the time of the next try in retry_ms.
    """

    instance_id: str
    name: str
    version: str | None
    status: str
    execution_id: int
    created_ms: int
    finished_ms: int | None
    output: Any
    error: Failure | None
    blocked: str | None
    blocked_detail: str | None
    retry_ms: int | None
    parent_instance: str | None
    incarnation: str


@dataclass(frozen=True, slots=True)
class ExecutionInfo:
    """One execution of an instance; status may also be continued_as_new."""

    execution_id: int
    version: str | None
    status: str
    started_ms: int
    ended_ms: int | None
    output: Any
    error: Failure | None


@dataclass(frozen=True, slots=True)
class InstancePage:
    """Some instances, oldest start first. cursor: where the next page begins, None after the last.

    Pages do not overlap, and who was there (and matched) all the time is on one of them.
    """

    instances: list[Instance]
    cursor: str | None

    def __iter__(self) -> Iterator[Instance]:
        return iter(self.instances)

    def __len__(self) -> int:
        return len(self.instances)


@dataclass(frozen=True, slots=True)
class PruneResult:
    """What pruning removed: executions, the events of their histories, and how many instances
    lost some."""

    executions: int
    events: int
    instances: int = 0


@dataclass(frozen=True, slots=True)
class InstanceTree:
    """An instance with its sub-orchestrations, oldest start first, and theirs."""

    instance: Instance
    children: list[InstanceTree]


@dataclass(frozen=True, slots=True)
class ActivityDepth:
    """How many activities of one name wait for a slot, wait for their next attempt, and run."""

    waiting: int
    later: int
    running: int


@dataclass(frozen=True, slots=True)
class QueueDepths:
    """How much waits in a store.

    instances: those that are due and that no node holds. messages: in all inboxes. items: in all
    event queues. timers: not fired yet. activities: by name.
    """

    instances: int
    messages: int
    items: int
    timers: int
    activities: dict[str, ActivityDepth]


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A started runtime that works on the store. Times are milliseconds since the epoch, UTC.

    beat_ms: its last sign of life. lease_until_ms: from then on others may take over what it holds,
    if it gives none. instances: how many it holds, in memory or to be loaded. activities: how many
    it runs, or is about to.
    """

    node_id: str
    host: str
    pid: int
    started_ms: int
    lease_until_ms: int
    beat_ms: int
    instances: int
    activities: int


@dataclass(frozen=True, slots=True)
class Metrics:
    """A store at a glance, and the runtime of this process.

    instances: how many, by status. blocked: how many, by reason. counters: what the runtime of
    this process has dropped, refused or repeated so far, by reason; None if there is none.
    """

    instances: dict[str, int]
    blocked: dict[str, int]
    nodes: list[NodeInfo]
    counters: dict[str, int] | None


def instance_of(row: InstanceRow) -> Instance:
    return Instance(
        instance_id=row.instance_id,
        name=row.name,
        version=row.version,
        status=row.status,
        execution_id=row.execution_id,
        created_ms=row.created_ms,
        finished_ms=row.finished_ms,
        output=None if row.output is None else ANY.decode(row.output),
        error=None if row.error is None else _failure.decode(row.error),
        blocked=row.blocked,
        blocked_detail=row.blocked_detail,
        retry_ms=row.hold_ms if row.blocked else None,
        parent_instance=row.parent_instance,
        incarnation=row.incarnation,
    )


def execution_of(row: ExecutionRow) -> ExecutionInfo:
    return ExecutionInfo(
        execution_id=row.execution_id,
        version=row.version,
        status=row.status,
        started_ms=row.started_ms,
        ended_ms=row.ended_ms,
        output=None if row.output is None else ANY.decode(row.output),
        error=None if row.error is None else _failure.decode(row.error),
    )


def tree_of(root: str, rows: Sequence[InstanceRow]) -> InstanceTree:
    """The tree of the rows that `Provider.list_tree` gives for the instance id `root`."""
    trees = [InstanceTree(instance_of(row), []) for row in rows]
    by_id = {tree.instance.instance_id: tree for tree in trees}
    for tree in trees:
        if tree.instance.instance_id != root:
            by_id[tree.instance.parent_instance or root].children.append(tree)
    return by_id[root]


def depths_of(depths: Depths) -> QueueDepths:
    return QueueDepths(
        instances=depths.instances,
        messages=depths.messages,
        items=depths.items,
        timers=depths.timers,
        activities={
            name: ActivityDepth(*counts) for name, counts in sorted(depths.activities.items())
        },
    )


def node_of(row: NodeRow) -> NodeInfo:
    return NodeInfo(
        node_id=row.node_id,
        host=row.host,
        pid=row.pid,
        started_ms=row.started_ms,
        lease_until_ms=row.lease_until_ms,
        beat_ms=row.beat_ms,
        instances=row.instances,
        activities=row.activities,
    )


def failed_error(instance_id: str, status: str, error: bytes | None) -> OrchestrationFailedError:
    """The exception that stands for a failed or cancelled execution."""
    failure = _failure.decode(error) if error else Failure(status, "")
    return OrchestrationFailedError(
        failure.type,
        failure.message,
        failure.traceback,
        instance_id=instance_id,
        status=status,
    )
