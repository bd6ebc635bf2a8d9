"""What a store shows: the rows of the provider contract."""

from __future__ import annotations

from perdure.providers.operations import ExecutionStatus, Status, Value


class Message(Value, frozen=True):
    """`seq` grows over the whole store; `accepted_ms` is the store's time at acceptance."""

    seq: int
    accepted_ms: int
    body: bytes


class ActivityRow(Value, frozen=True):
    """An activity that has no completion yet. owner: the node that runs it. error: of its last
    attempt, if that failed."""

    execution_id: int
    event_id: int
    name: str
    owner: str | None
    attempt: int
    due_ms: int
    error: bytes | None


class InstanceRow(Value, frozen=True):
    """What is known of an instance, in one snapshot. output, error: of its current execution."""

    key: int
    instance_id: str
    incarnation: str
    name: str
    version: str | None
    status: Status
    execution_id: int
    created_ms: int
    finished_ms: int | None
    due_ms: int | None
    owner: str | None
    attempt: int
    blocked: str | None
    blocked_detail: str | None
    hold_ms: int | None
    parent_instance: str | None
    input: bytes
    output: bytes | None
    error: bytes | None


class ExecutionRow(Value, frozen=True):
    execution_id: int
    version: str | None
    status: ExecutionStatus
    started_ms: int
    ended_ms: int | None
    output: bytes | None
    error: bytes | None
    input: bytes = b"null"


class Mail(Value, frozen=True):
    """The messages in the inbox of an instance that the asking node holds, oldest first (without
    the items of event queues, whose number ever put there is `queued`)."""

    key: int
    mail: int
    external: int
    messages: tuple[Message, ...]
    queued: int = 0


class Survey(Value, frozen=True):
    """Is there anything for this node? A cheap read.

    mail: of the instances it holds whose due_ms has come and that have messages or queue items.
    instances_due_ms: the earliest due_ms of an unowned instance that it could run, or None.
    activities_due_ms: the earliest due_ms of an unclaimed activity that it could run, or None.
    others: how many other nodes are known.
    """

    mail: tuple[Mail, ...]
    instances_due_ms: int | None
    activities_due_ms: int | None
    others: int = 0


class NodeRow(Value, frozen=True):
    """A known node. beat_ms: its last sign of life, that is, when its lease was renewed or begun.
    instances, activities: how many of them it holds now."""

    node_id: str
    host: str
    pid: int
    started_ms: int
    lease_until_ms: int
    beat_ms: int
    instances: int
    activities: int


class RowFilter(Value, frozen=True):
    """Every field given must hold. id_prefix is compared by bytes; `after` and `before` exclude
    the time itself; parent is the instance id in the parent link."""

    status: Status | None = None
    name: str | None = None
    version: str | None = None
    id_prefix: str | None = None
    parent: str | None = None
    blocked: bool | None = None
    created_after_ms: int | None = None
    created_before_ms: int | None = None
    finished_after_ms: int | None = None
    finished_before_ms: int | None = None


class Depths(Value, frozen=True):
    """How much waits in a store. instances: unowned and due now. messages: in all inboxes.
    items: in all event queues. timers: not fired. activities: by name, how many wait for a slot
    (due), for their next attempt (later), and run (claimed)."""

    instances: int
    messages: int
    items: int
    timers: int
    activities: dict[str, tuple[int, int, int]]
