"""The provider contract: what a store must do. Rows and bytes; a provider never interprets them.

There is one way to write, `Provider.commit(batch)`: one transaction, one outcome per operation.
An operation that is refused leaves its neighbours untouched. Within one batch the effects are as
if applied in the order of `ORDER`, whatever the order of the list; in list order within a kind.

Words. `key`: the store's integer for one incarnation of an instance, never used again, also not
after deletion. `token`: the random name of one acquisition of an instance; a commit or release
with another token than the current one is refused. `mail` and `external` are two counters of an
instance: messages ever put into its inbox, and how many of those came from clients (events and
cancel requests). `due_ms`: when the instance next has something to do, on the store's clock: its
first turn, a message, a timer; None means parked or ended. `hold_ms`: a blocked instance is not
due before. `queued`: how many items were ever put into the event queues of an instance. `attempt`
of an activity: how often it was claimed; `claims`: how often since an attempt last had an outcome.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Literal, Protocol, Union, get_args

from perdure.providers.operations import (
    Capabilities,
    ClaimActivities,
    ClaimInstances,
    CommitTurn,
    CompleteActivity,
    DeleteInstance,
    Ending,
    ExecutionStatus,
    NewActivity,
    NewTimer,
    NextExecution,
    NoteBlocked,
    ParentLink,
    PruneExecutions,
    ReleaseActivity,
    ReleaseInstance,
    Retention,
    RetryActivity,
    SendMessage,
    StartInstance,
    Status,
    Value,
)
from perdure.providers.rows import (
    ActivityRow,
    Depths,
    ExecutionRow,
    InstanceRow,
    Mail,
    Message,
    NodeRow,
    RowFilter,
    Survey,
)
from perdure.providers.snapshots import (
    ActivitySnapshot,
    ExecutionSnapshot,
    ImportInstances,
    MessageSnapshot,
    Snapshot,
)

__all__ = [
    "EVENT_IDS_KEPT",
    "ORDER",
    "TERMINAL",
    "Acquired",
    "ActivityClaim",
    "ActivityRow",
    "ActivitySnapshot",
    "Capabilities",
    "ClaimActivities",
    "ClaimInstances",
    "Claimed",
    "ClaimedActivities",
    "CommitTurn",
    "Committed",
    "CompleteActivity",
    "DeleteInstance",
    "Deleted",
    "Depths",
    "Done",
    "Ended",
    "Ending",
    "ExecutionRow",
    "ExecutionSnapshot",
    "ExecutionStatus",
    "ImportInstances",
    "Imported",
    "InstanceRow",
    "Mail",
    "Message",
    "MessageSnapshot",
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
    "RetryActivity",
    "RowFilter",
    "SendMessage",
    "Sent",
    "Snapshot",
    "StartInstance",
    "Started",
    "Status",
    "Survey",
    "Taken",
    "Undeletable",
    "Value",
]

TERMINAL: frozenset[str] = frozenset({"completed", "failed", "cancelled"})

EVENT_IDS_KEPT = 10_000
"""How many event ids of sends each instance remembers, the newest."""

Operation = Union[  # noqa: UP007 - read as a closed set
    DeleteInstance,
    ImportInstances,
    CommitTurn,
    StartInstance,
    SendMessage,
    CompleteActivity,
    RetryActivity,
    ReleaseActivity,
    ReleaseInstance,
    NoteBlocked,
    PruneExecutions,
    ClaimInstances,
    ClaimActivities,
]

ORDER: dict[type, int] = {kind: place for place, kind in enumerate(get_args(Operation))}
"""The place of each kind of operation in the order in which a batch acts."""


# What comes back.


class Acquired(Value, frozen=True):
    """One acquisition: the instance, its token, everything in its inbox (but for the items of its
    event queues), and all its timers."""

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
    queued: int = 0


class ActivityClaim(Value, frozen=True):
    key: int
    instance_id: str
    incarnation: str
    execution_id: int
    event_id: int
    name: str
    input: bytes
    attempt: int
    claims: int
    options: bytes | None = None


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
    """duplicate: the event id was known, and nothing was written."""

    key: int
    duplicate: bool = False


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


class Deleted(Value, frozen=True):
    """How many instances went: the one and its descendants."""

    instances: int


class Undeletable(Value, frozen=True):
    """instance_id: the parent of a child, or the first instance found that is not terminal."""

    reason: Literal["child", "running"]
    instance_id: str


class Imported(Value, frozen=True):
    pass


class Claimed(Value, frozen=True):
    instances: tuple[Acquired, ...]


class ClaimedActivities(Value, frozen=True):
    """more: due unclaimed activities that this claim could have taken with a higher limit."""

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
    Deleted,
    Undeletable,
    Imported,
    Claimed,
    ClaimedActivities,
]


class Provider(Protocol):
    """A store, opened by one process. Methods are called on the loop that opened it, except
    `beat`, which may come from any thread. All raise StoreClosed after close.

    batches_at_once: how many batches may be handed to `commit` before the first has its outcome.
    With more than one they may be committed in any order; none of them names an instance that
    another names in the same way (by id or by key).
    transactional: what a transactional activity is here, or None where there are none.
    """

    batches_at_once: int
    transactional: Literal["def", "async def"] | None

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

    async def transact(
        self, claim: CompleteActivity, work: Callable[[Any], Any], limit_s: float | None
    ) -> Outcome:
        """Call `work` with a connection inside a transaction of its own, and complete an activity
        in the same transaction with the body that it returns (awaited if it is a coroutine).

        claim: the completion, its body left empty. limit_s: how long work may take, at most the
        store's own limit. Outcome as of CompleteActivity; work is not called for a claim that is
        stale. If work raises, nothing is written and the error comes out. Raises
        TransactionTimeout; StoreUnavailable if nothing was written and it may be repeated;
        ProviderError where `transactional` is None.
        """

    def watch(self, changed: Callable[[], None], node_id: str | None = None) -> Callable[[], None]:
        """Call `changed` on the loop soon after another process has committed (a hint; it may
        come late, doubled, or for nothing). node_id: only what may concern that node need be told.
        Returns a function that ends the watch."""

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
        self, filter: RowFilter, after: int = 0, limit: int = 100
    ) -> list[InstanceRow]:
        """Matching instances with key > after, in key order (oldest start first)."""

    async def list_tree(self, instance_id: str) -> list[InstanceRow]:
        """The instance, its sub-orchestrations and theirs, oldest first; [] for an unknown id."""

    async def queue_items(self, key: int, queue: str, after: int, limit: int) -> list[Message]:
        """Items of an event queue of an instance with seq > after, oldest first, at most limit."""

    async def list_activities(self, key: int) -> list[ActivityRow]:
        """The open activities of an instance, by execution and event id."""

    async def snapshots(self, instance_id: str) -> list[Snapshot]:
        """The instances of `list_tree` with all that belongs to them, as of one moment."""

    async def count_instances(self) -> dict[str, int]:
        """Number of instances by status."""

    async def count_blocked(self) -> dict[str, int]:
        """Number of blocked instances by reason."""

    async def depths(self) -> Depths:
        """See Depths."""
