"""An instance with everything that belongs to it, as one value: what export reads, import writes.

Claims, leases and counters are not part of it: an imported instance is held by nobody.
"""

from __future__ import annotations

from perdure.providers.operations import ExecutionStatus, NewTimer, ParentLink, Status, Value


class ExecutionSnapshot(Value, frozen=True):
    execution_id: int
    version: str | None
    status: ExecutionStatus
    started_ms: int
    ended_ms: int | None
    input: bytes
    output: bytes | None
    error: bytes | None
    events: tuple[bytes, ...]


class MessageSnapshot(Value, frozen=True):
    """A message of the inbox, or (with `queue`) an item of that event queue."""

    accepted_ms: int
    body: bytes
    queue: str | None


class ActivitySnapshot(Value, frozen=True):
    event_id: int
    name: str
    input: bytes
    options: bytes | None
    attempt: int
    due_ms: int
    error: bytes | None


class Snapshot(Value, frozen=True):
    """One instance. messages, in order of acceptance; activities and timers are those of the
    current execution; event_ids: the remembered ones, oldest first."""

    instance_id: str
    incarnation: str
    name: str
    version: str | None
    status: Status
    execution_id: int
    parent: ParentLink | None
    nesting: int
    created_ms: int
    finished_ms: int | None
    due_ms: int | None
    executions: tuple[ExecutionSnapshot, ...]
    messages: tuple[MessageSnapshot, ...] = ()
    activities: tuple[ActivitySnapshot, ...] = ()
    timers: tuple[NewTimer, ...] = ()
    event_ids: tuple[str, ...] = ()


class ImportInstances(Value, frozen=True):
    """Insert instances with everything that belongs to them, all of them or none.

    Outcome: Imported, or Taken (of the first id that exists) and nothing is written.
    """

    instances: tuple[Snapshot, ...]


__all__ = [
    "ActivitySnapshot",
    "ExecutionSnapshot",
    "ImportInstances",
    "MessageSnapshot",
    "Snapshot",
]
