"""The rows of a store in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from perdure.providers.contract import (
    ExecutionRow,
    ExecutionStatus,
    InstanceRow,
    Message,
    NodeRow,
    ParentLink,
    Status,
)


@dataclass(slots=True)
class Execution:
    version: str | None
    status: ExecutionStatus
    input: bytes
    started_ms: int
    output: bytes | None = None
    error: bytes | None = None
    ended_ms: int | None = None
    history: dict[int, bytes] = field(default_factory=dict)

    def row(self, execution_id: int) -> ExecutionRow:
        return ExecutionRow(
            execution_id,
            self.version,
            self.status,
            self.started_ms,
            self.ended_ms,
            self.output,
            self.error,
            self.input,
        )


@dataclass(slots=True)
class Activity:
    name: str
    input: bytes
    owner: str | None
    attempt: int
    claims: int
    due_ms: int
    options: bytes | None = None
    error: bytes | None = None


@dataclass(slots=True)
class Instance:
    key: int
    instance_id: str
    incarnation: str
    name: str
    version: str | None
    parent: ParentLink | None
    nesting: int
    created_ms: int
    owner: str | None
    token: str | None
    attempt: int
    due_ms: int | None
    status: Status = "pending"
    execution_id: int = 1
    finished_ms: int | None = None
    hold_ms: int | None = None
    mail: int = 0
    external: int = 0
    queued: int = 0
    blocked: str | None = None
    blocked_detail: str | None = None
    executions: dict[int, Execution] = field(default_factory=dict)
    inbox: dict[int, Message] = field(default_factory=dict)
    queues: dict[str, dict[int, Message]] = field(default_factory=dict)
    event_ids: dict[str, None] = field(default_factory=dict)
    activities: dict[tuple[int, int], Activity] = field(default_factory=dict)
    timers: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def parent_named(self) -> tuple[str, str] | None:
        """Id and incarnation of the parent."""
        return (self.parent.instance_id, self.parent.incarnation) if self.parent else None

    @property
    def items(self) -> int:
        """How many items its event queues hold."""
        return sum(len(items) for items in self.queues.values())

    def queue(self, name: str) -> dict[int, Message]:
        """The items of an event queue by seq."""
        return self.queues.setdefault(name, {})

    def messages(self) -> tuple[Message, ...]:
        """The inbox, oldest first (which it is not by itself after a batch was undone)."""
        return tuple(message for _, message in sorted(self.inbox.items()))

    def row(self) -> InstanceRow:
        current = self.executions[self.execution_id]
        return InstanceRow(
            self.key,
            self.instance_id,
            self.incarnation,
            self.name,
            self.version,
            self.status,
            self.execution_id,
            self.created_ms,
            self.finished_ms,
            self.due_ms,
            self.owner,
            self.attempt,
            self.blocked,
            self.blocked_detail,
            self.hold_ms,
            self.parent.instance_id if self.parent else None,
            current.input,
            current.output,
            current.error,
        )


@dataclass(slots=True)
class Node:
    row: NodeRow
    lease_ms: int
    is_alive: bool = True
