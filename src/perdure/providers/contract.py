"""The provider contract: what a store must do. Rows and bytes; a provider never interprets them.

There is one way to write, `Provider.commit(batch)`: one transaction, one outcome per operation.
An operation that is refused leaves its neighbours untouched. Within one batch the effects are as
if applied in this order, whatever the order of the list: `CommitTurn` (with the starts and sends
it carries), `StartInstance`, `SendMessage`, `CompleteActivity`, `ReleaseActivity`,
`ReleaseInstance`, `NoteBlocked`, `ClaimInstances`, `ClaimActivities`; in list order within a kind.

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

import msgspec

Status = Literal["pending", "running", "completed", "failed", "cancelled"]
ExecutionStatus = Literal[
    "pending", "running", "completed", "failed", "cancelled", "continued_as_new"
]
TERMINAL: frozenset[str] = frozenset({"completed", "failed", "cancelled"})


class Value(msgspec.Struct, frozen=True, gc=False):
    """Base of every value that crosses the boundary."""


# Operations: the parts they are made of.


class ParentLink(Value, frozen=True):
    """Whom a sub-orchestration reports to: the parent's decision `event_id` of `execution_id`."""

    instance_id: str
    incarnation: str
    execution_id: int
    event_id: int


class NewActivity(Value, frozen=True):
    """An activity work item; `claimed`: inserted as attempt 1 of the committing node."""

    event_id: int
    name: str
    input: bytes
    claimed: bool


class NewTimer(Value, frozen=True):
    event_id: int
    fire_at_ms: int


class SendMessage(Value, frozen=True):
    """Put `body` into the inbox of an instance; its due_ms becomes at most the store's time now
    (or `hold_ms`, if that is later), its `mail` grows by one, and its `external` if so marked.

    incarnation None: whoever has the id now (a client's call).
    Outcome: Sent, NotFound (no such id, or another incarnation), Ended (terminal; no row is left).
    """

    instance_id: str
    body: bytes
    incarnation: str | None = None
    external: bool = False


class StartInstance(Value, frozen=True):
    """Insert an instance with execution 1, status pending, due now, unless the id is taken.

    owner and token: given together, the instance is inserted already acquired (attempt 1).
    if_taken: sent instead when the id is taken (a child start tells its parent so).
    key: one that `reserve_key` gave, or 0 for the store's choice. turn: the instance's first turn,
    applied at once if the instance was inserted (its key and token are those of the start).
    Outcome: Started or Taken.
    """

    instance_id: str
    incarnation: str
    name: str
    version: str | None
    input: bytes
    parent: ParentLink | None = None
    nesting: int = 0
    owner: str | None = None
    token: str | None = None
    if_taken: SendMessage | None = None
    key: int = 0
    turn: CommitTurn | None = None


class Ending(Value, frozen=True):
    """How an execution ended. `output` for completed, `error` for failed and cancelled."""

    status: Literal["completed", "failed", "cancelled", "continued_as_new"]
    output: bytes | None = None
    error: bytes | None = None


class NextExecution(Value, frozen=True):
    """The execution that ContinueAsNew creates: its number, version, input and first event."""

    execution_id: int
    version: str
    input: bytes
    started: bytes


class CommitTurn(Value, frozen=True):
    """Everything that one turn wrote, in one value: all of it is committed, or nothing.

    Refused("fenced") if `token` is not the current one of `key`, or execution_id is not current;
    Refused("behind") if external_seen is given and is not the instance's `external`.
    Otherwise: `events` are appended as first_event_id, first_event_id + 1, …; `consumed` messages
    (by seq) go; `activities_gone` and `timers_gone` (by event id, of this execution) go; the new
    ones come; `starts` and `sends` are applied as operations of their own would be, an unreachable
    target being no error. `version` is recorded when given (first turn of a start), with status
    running. settle: the acquisition made progress: attempt becomes 0, and blocked and hold_ms are
    cleared. set_due: due_ms becomes the one given, provided `mail` equals mail_seen (otherwise
    something has come in that this turn has not seen, and due_ms stays).
    ending: the execution gets that status and end time; its remaining timers and activities go.
    Unless `next` is given the instance is then terminal: owner, token and due_ms become None and
    its inbox is emptied (counted as dropped). next: the new execution becomes current, with its
    first event in its history; the instance stays acquired, and messages stay for it.
    release: the instance is given back (owner and token None).
    Outcome: Committed.
    """

    key: int
    token: str
    node_id: str
    execution_id: int
    first_event_id: int
    events: tuple[bytes, ...]
    mail_seen: int
    external_seen: int | None = None
    consumed: tuple[int, ...] = ()
    activities_gone: tuple[int, ...] = ()
    timers_gone: tuple[int, ...] = ()
    activities: tuple[NewActivity, ...] = ()
    timers: tuple[NewTimer, ...] = ()
    starts: tuple[StartInstance, ...] = ()
    sends: tuple[SendMessage, ...] = ()
    version: str | None = None
    settle: bool = False
    set_due: bool = False
    due_ms: int | None = None
    ending: Ending | None = None
    next: NextExecution | None = None
    release: bool = False


class CompleteActivity(Value, frozen=True):
    """Delete a claimed activity and put `body` into its instance's inbox (not external).

    Refused("stale") if the item is gone or claimed by another (node_id, attempt). Outcome: Done.
    """

    key: int
    execution_id: int
    event_id: int
    node_id: str
    attempt: int
    body: bytes


class ReleaseActivity(Value, frozen=True):
    """Give a claimed activity back, uncharged: attempt becomes one less. Outcome: Done, Refused."""

    key: int
    execution_id: int
    event_id: int
    node_id: str
    attempt: int


class ReleaseInstance(Value, frozen=True):
    """Give an instance back. Refused("fenced") if the token is not current.

    due_ms is set under the rule of CommitTurn (mail_seen). charge False: attempt becomes one less,
    as if never claimed. blocked: reason and detail to show; hold_ms: not due before then (due_ms
    becomes hold_ms). Outcome: Done.
    """

    key: int
    token: str
    mail_seen: int
    due_ms: int | None
    charge: bool = False
    blocked: str | None = None
    detail: str = ""
    hold_ms: int | None = None


class NoteBlocked(Value, frozen=True):
    """Show why unowned, open instances wait (reason, detail); changes nothing else. Done."""

    keys: tuple[int, ...]
    blocked: str
    detail: str


Capabilities = frozenset[tuple[str, str]]
"""The (orchestration name, version) pairs that a node can run."""


class ClaimInstances(Value, frozen=True):
    """Acquire up to `limit` unowned instances that are due, oldest due first, for a node.

    Only those whose version (or, with version None, whose name) is among `capabilities`.
    alone False: only instances with attempt < CLAIMS_SHARED_MAX; alone True: only the others, at
    most one. Each gets a new random token, and attempt + 1. Outcome: Claimed.
    """

    node_id: str
    capabilities: Capabilities
    limit: int
    alone: bool = False


class ClaimActivities(Value, frozen=True):
    """Claim up to `limit` unclaimed activities whose name is in `names`, oldest first.

    attempt grows by one; `alone` as in ClaimInstances. Outcome: ClaimedActivities.
    """

    node_id: str
    names: frozenset[str]
    limit: int
    alone: bool = False


Operation = Union[  # noqa: UP007 - read as a closed set
    CommitTurn,
    StartInstance,
    SendMessage,
    CompleteActivity,
    ReleaseActivity,
    ReleaseInstance,
    NoteBlocked,
    ClaimInstances,
    ClaimActivities,
]


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


class Claimed(Value, frozen=True):
    instances: tuple[Acquired, ...]


class ClaimedActivities(Value, frozen=True):
    """more: unclaimed activities that this claim could have taken, had its limit been higher."""

    activities: tuple[ActivityClaim, ...]
    more: bool


Outcome = Union[  # noqa: UP007 - read as a closed set
    Done, Refused, Started, Taken, Sent, NotFound, Ended, Committed, Claimed, ClaimedActivities
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
