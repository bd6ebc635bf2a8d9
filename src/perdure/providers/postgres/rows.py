"""The rows of a store as Python sees them: fields in the order of the tables' columns."""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import attrgetter

from perdure.providers.contract import (
    ExecutionStatus,
    InstanceRow,
    ParentLink,
    Status,
)

Place = tuple[int, int, int]
"""key, execution id, event id"""


@dataclass(slots=True)
class Instance:
    key: int
    instance_id: str
    incarnation: str
    name: str
    version: str | None
    status: Status
    execution_id: int
    parent_instance: str | None
    parent_incarnation: str | None
    parent_execution: int | None
    parent_event: int | None
    nesting: int
    created_ms: int
    finished_ms: int | None
    owner: str | None
    token: str | None
    attempt: int
    due_ms: int | None
    hold_ms: int | None
    mail: int
    external: int
    queued: int
    blocked: str | None
    blocked_detail: str | None

    @property
    def parent(self) -> ParentLink | None:
        if self.parent_instance is None:
            return None
        assert self.parent_incarnation is not None
        assert self.parent_execution is not None
        assert self.parent_event is not None
        return ParentLink(
            self.parent_instance, self.parent_incarnation, self.parent_execution, self.parent_event
        )


@dataclass(slots=True)
class Execution:
    """input: None for one that is changed without having been read."""

    key: int
    execution_id: int
    version: str | None
    status: ExecutionStatus
    input: bytes | None
    output: bytes | None
    error: bytes | None
    started_ms: int | None
    ended_ms: int | None


@dataclass(slots=True)
class Activity:
    key: int
    execution_id: int
    event_id: int
    name: str
    input: bytes
    owner: str | None
    attempt: int
    claims: int
    due_ms: int
    options: bytes | None
    error: bytes | None

    @property
    def place(self) -> Place:
        return self.key, self.execution_id, self.event_id


instance_values = attrgetter(*(field.name for field in fields(Instance)))
execution_values = attrgetter(*(field.name for field in fields(Execution)))
activity_values = attrgetter(*(field.name for field in fields(Activity)))

INSTANCE_COLUMNS = (
    "i.key, i.instance_id, i.incarnation, i.name, i.version, i.status, i.execution_id, "
    "i.created_ms, i.finished_ms, i.due_ms, i.owner, i.attempt, i.blocked, i.blocked_detail, "
    "i.hold_ms, i.parent_instance, e.input, e.output, e.error"
)
EXECUTION_COLUMNS = (
    "e.execution_id, e.version, e.status, e.started_ms, e.ended_ms, e.output, e.error, e.input"
)
JOIN = "join executions as e on e.key = i.key and e.execution_id = i.execution_id"

__all__ = [
    "EXECUTION_COLUMNS",
    "INSTANCE_COLUMNS",
    "JOIN",
    "Activity",
    "Execution",
    "Instance",
    "Place",
    "activity_values",
    "execution_values",
    "instance_values",
    "shown",
]


def shown(instance: Instance, current: Execution) -> InstanceRow:
    """The row that callers see."""
    assert current.input is not None
    return InstanceRow(
        instance.key,
        instance.instance_id,
        instance.incarnation,
        instance.name,
        instance.version,
        instance.status,
        instance.execution_id,
        instance.created_ms,
        instance.finished_ms,
        instance.due_ms,
        instance.owner,
        instance.attempt,
        instance.blocked,
        instance.blocked_detail,
        instance.hold_ms,
        instance.parent_instance,
        current.input,
        current.output,
        current.error,
    )
