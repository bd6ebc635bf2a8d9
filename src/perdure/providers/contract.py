"""The provider contract: what a store must do. Rows and bytes; a provider never interprets them.

There is one way to write, `Provider.commit(batch)`: one transaction, one outcome per operation.
An operation that is refused leaves its neighbours untouched. Within one batch the effects are as
if applied in this order, whatever the order of the list: `CommitTurn` (with the starts and sends
it carries), `StartInstance`, `SendMessage`, `CompleteActivity`, `ReleaseActivity`,
`ReleaseInstance`, `NoteBlocked`, `PruneExecutions`, `ClaimInstances`, `ClaimActivities`; in list
order within a kind.

Words. `key`: the store's integer for one incarnation of an instance, never used again, also not
after deletion. `token`: the random name of one acquisition of an instance; a commit or release
with another token than the current one is refused. `mail` and `external` are two counters of an
instance: messages ever put into its inbox, and how many of those came from clients (events and
cancel requests). `due_ms`: when the instance next has something to do, on the store's clock: its
first turn, a message, a timer; None means parked or ended. `hold_ms`: a blocked instance is not
due before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Literal, Protocol, Union

from perdure.providers.operations import (
    Capabilities,
    ClaimActivities,
    ClaimInstances,
    CommitTurn,
    CompleteActivity,
    Ending,
    NewActivity,
    NewTimer,
    NextExecution,
    NoteBlocked,
    Operation,
    ParentLink,
    PruneExecutions,
    ReleaseActivity,
    ReleaseInstance,
    Retention,
    SendMessage,
    StartInstance,
    Value,
)

__all__ = [
    "TERMINAL",
    "Acquired",
    "ActivityClaim",
    "Capabilities",
    "ClaimActivities",
    "ClaimInstances",
    "Claimed",
    "ClaimedActivities",
    "CommitTurn",
    "Committed",
    "CompleteActivity",
    "Done",
    "Ended",
    "Ending",
    "ExecutionRow",
    "ExecutionStatus",
    "InstanceFilter",
    "InstanceRow",
    "Mail",
    "Message",
    "NewActivity",
    "NewTimer",
    "NextExecution",
    "NodeRow",
    "NotFound",
    "NoteBlocked",
    "Operation",
    "Outcome",
    "ParentLink",
    "Provider",
    "PruneExecutions",
    "Pruned",
    "Refused",
    "ReleaseActivity",
    "ReleaseInstance",
    "Retention",
    "SendMessage",
    "Sent",
    "StartInstance",
    "Started",
    "Status",
    "Survey",
    "Taken",
    "Value",
]

Status = Literal["pending", "running", "completed", "failed", "cancelled"]
ExecutionStatus = Literal[
    "pending", "running", "completed", "failed", "cancelled", "continued_as_new"
]
TERMINAL: frozenset[str] = frozenset({"completed", "failed", "cancelled"})


# What comes back.


class Message(Value, frozen=True):
    """`seq` grows over the whole store; `accepted_ms` is the store's time at acceptance."""

    seq: int
    accepted_ms: int
    body: bytes


class Acquired(Value, frozen=True):
    """One acquisition: the instance, its token, everything in its inbox, and all its timers."""

    key: int
    instance_id: str
    incarnation: str
    name: str
    version: str | None
    execution_id: int
    token: str
    attempt: int
    input: bytes
    parent: ParentLink | None
    nesting: int
    mail: int
    external: int
    messages: tuple[Message, ...]
    timers: tuple[NewTimer, ...]


class ActivityClaim(Value, frozen=True):
    key: int
    instance_id: str
    incarnation: str
    execution_id: int
    event_id: int
    name: str
    input: bytes
    attempt: int


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


class Done(Value, frozen=True):
    pass


class Refused(Value, frozen=True):
    reason: str


class Started(Value, frozen=True):
    """committed: the outcome of the turn that the start carried."""

    key: int
    committed: Committed | None = None


class Taken(Value, frozen=True):
    instance: InstanceRow


class Sent(Value, frozen=True):
    key: int


class NotFound(Value, frozen=True):
    pass


class Ended(Value, frozen=True):
    status: Status


class Committed(Value, frozen=True):
    """`starts`: the outcome of each start that the turn carried. `dropped`: messages left unread
    at the end of the instance, and sends whose target was gone."""

    starts: tuple[Started | Taken, ...] = ()
    dropped: int = 0


class Pruned(Value, frozen=True):
    """How many executions went, and how many events with them."""

    executions: int
    events: int


class Claimed(Value, frozen=True):
    instances: tuple[Acquired, ...]


class ClaimedActivities(Value, frozen=True):
    """more: unclaimed activities that this claim could have taken, had its limit been higher."""

    activities: tuple[ActivityClaim, ...]
    more: bool


Outcome = Union[  # noqa: UP007 - read as a closed set
    Done,
    Refused,
    Started,
    Taken,
    Sent,
    NotFound,
    Ended,
    Committed,
    Pruned,
    Claimed,
    ClaimedActivities,
]


class Mail(Value, frozen=True):
    """The messages in the inbox of an instance that the asking node holds, oldest first."""

    key: int
    mail: int
    external: int
    messages: tuple[Message, ...]


class Survey(Value, frozen=True):
    """Is there anything for this node? A cheap read.

    mail: of the instances it holds whose due_ms has come and whose inbox is not empty.
    instances_due_ms: the earliest due_ms of an unowned instance that it could run, or None.
    activities: an unclaimed activity that it could run exists.
    """

    mail: tuple[Mail, ...]
    instances_due_ms: int | None
    activities: bool


class NodeRow(Value, frozen=True):
    node_id: str
    host: str
    pid: int
    started_ms: int
    lease_until_ms: int


class InstanceFilter(Value, frozen=True):
    """Every field given must hold. id_prefix is compared by bytes."""

    status: Status | None = None
    name: str | None = None
    id_prefix: str | None = None
    blocked: bool | None = None


class Provider(Protocol):
    """A store, opened by one process. Methods are called on the loop that opened it, except
    `beat`, which may come from any thread. All raise StoreClosed after close."""

    async def open(self) -> None:
        """Create or migrate the schema, verify settings. Raises StoreTooNew, ProviderError."""

    async def close(self) -> None:
        """Finish what was accepted, then let go of everything. A second call does nothing."""

    def now_ms(self) -> int:
        """The store's clock (or a lower bound of it), in milliseconds since the epoch, UTC."""

    def reserve_key(self) -> int:
        """A key for an instance that is about to be started, given to nobody else, ever; 0 if none
        is at hand. Does not wait."""

    def commit(self, batch: Sequence[Operation]) -> Awaitable[list[Outcome]]:
        """Apply the batch in one durable transaction; one outcome each, in the batch's order.

        Raises StoreUnavailable if nothing of it was applied and it may be repeated; any other
        error if nothing was applied and some value in it is not acceptable.
        """

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` on the loop soon after another process has committed (a hint; it may
        come late, doubled, or for nothing). Returns a function that ends the watch."""

    async def register_node(self, node_id: str, lease_ms: int) -> None:
        """Make a node known, with a lease and, where the store has them, a lock that dies with
        this process."""

    def beat(self, node_id: str) -> bool:
        """Renew the node's lease; False if the node is no longer known (it was taken over)."""

    async def release_node(self, node_id: str) -> None:
        """Forget a node and free everything that it still holds, charging nothing more."""

    async def reap_nodes(self, node_id: str) -> list[str]:
        """Find other nodes that are dead (lock free, or lease over); forget them and free what
        they held (owner and token None; attempts stay as claimed). Returns their ids."""

    async def nodes(self) -> list[NodeRow]:
        """All known nodes, by id."""

    async def survey(
        self, node_id: str, capabilities: Capabilities, activity_names: frozenset[str]
    ) -> Survey:
        """See Survey."""

    async def lost_activities(
        self, node_id: str, claims: Collection[tuple[int, int, int]]
    ) -> list[tuple[int, int, int]]:
        """Which of these (key, execution_id, event_id) the node no longer has a claim on."""

    async def unrunnable(self, capabilities: Capabilities, limit: int) -> list[InstanceRow]:
        """Open, unowned, due instances that no pair of `capabilities` fits, oldest due first."""

    async def histories(self, wanted: Sequence[tuple[int, int]]) -> list[list[bytes]]:
        """The whole history of each (key, execution_id), in event order; [] where there is none."""

    async def read_history(
        self, instance_id: str, execution_id: int | None = None, after: int = 0, limit: int = 1000
    ) -> list[bytes]:
        """Events of an execution (None: the current one) with event id > after, at most limit.
        Raises InstanceNotFound for an unknown instance id."""

    async def get_instances(self, instance_ids: Collection[str]) -> dict[str, InstanceRow]:
        """The known ones among these ids."""

    async def get_execution(self, key: int, execution_id: int) -> ExecutionRow | None:
        """One execution of one incarnation, or None."""

    async def list_executions(self, instance_id: str) -> list[ExecutionRow]:
        """All executions of the instance, oldest first; [] for an unknown id."""

    async def list_instances(
        self, filter: InstanceFilter, after: int = 0, limit: int = 100
    ) -> list[InstanceRow]:
        """Matching instances with key > after, in key order (oldest start first)."""

    async def list_children(self, instance_id: str, incarnation: str) -> list[InstanceRow]:
        """Sub-orchestrations whose parent link names this incarnation, oldest first."""

    async def count_instances(self) -> dict[str, int]:
        """Number of instances by status."""
