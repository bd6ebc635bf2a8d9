"""What a client gives back about instances and executions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from perdure.codec import ANY
from perdure.core.events import Failure
from perdure.errors import OrchestrationFailedError
from perdure.providers.contract import ExecutionRow, InstanceRow

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
class PruneResult:
    """What pruning removed: executions, and the events of their histories."""

    executions: int
    events: int


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
