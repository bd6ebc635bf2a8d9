"""The operations of the provider contract: everything that a store can be asked to write."""

from __future__ import annotations

from typing import Literal

import msgspec

Status = Literal["pending", "running", "completed", "failed", "cancelled"]
ExecutionStatus = Literal[
    "pending", "running", "completed", "failed", "cancelled", "continued_as_new"
]


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
    """An activity work item, due at once; `claimed`: inserted as attempt 1 of the committing node.
    options: how its caller wants it run, kept and handed back with each claim."""

    event_id: int
    name: str
    input: bytes
    claimed: bool
    options: bytes | None = None


class NewTimer(Value, frozen=True):
    event_id: int
    fire_at_ms: int


class SendMessage(Value, frozen=True):
    """Put `body` into the inbox of an instance; its due_ms becomes at most the store's time now
    (or `hold_ms`, if that is later), its `mail` grows by one, and its `external` if so marked.

    incarnation None: whoever has the id now (a client's call). queue: the message becomes an item
    of that event queue of the instance instead, `queued` grows by one too, and it is read by
    `queue_items` only. event_id: if the instance has been sent one with the same id (of its last
    EVENT_IDS_KEPT), nothing changes and the outcome is Sent with duplicate True.
    Outcome: Sent, NotFound (no such id, or another incarnation), Ended (terminal; no row is left).
    """

    instance_id: str
    body: bytes
    incarnation: str | None = None
    external: bool = False
    queue: str | None = None
    event_id: str | None = None


class StartInstance(Value, frozen=True):
    """Insert an instance with execution 1, status pending, due now, unless the id is taken.

    owner and token: given together, the instance is inserted already acquired (attempt 1).
    if_taken: sent instead when the id is taken (a child start tells its parent so).
    key: one that `reserve_key` gave, or 0 for the store's choice. turn: the instance's first turn,
    applied at once if the instance was inserted (its key and token are those of the start).
    sends: applied if the instance was inserted, after `turn` (items of its event queues); those
    that find no receiver count as `dropped` by the turn. Outcome: Started or Taken.
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
    sends: tuple[SendMessage, ...] = ()


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


class Retention(Value, frozen=True):
    """Which executions go: those before the newest `keep_last` (at least 1: the current one), as
    far as they ended before completed_before_ms, if that is given. The current one never goes."""

    keep_last: int
    completed_before_ms: int | None = None


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
    retention: after all that, executions go as by PruneExecutions.
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
    retention: Retention | None = None


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


class RetryActivity(Value, frozen=True):
    """Give a claimed activity back after a failed attempt, to be claimed again from due_ms on.

    attempt stays, `claims` becomes 0, `error` is kept to be shown.
    Refused("stale") as in CompleteActivity. Outcome: Done.
    """

    key: int
    execution_id: int
    event_id: int
    node_id: str
    attempt: int
    due_ms: int
    error: bytes


class ReleaseActivity(Value, frozen=True):
    """Give a claimed activity back, uncharged: attempt and claims become one less.

    Outcome: Done, Refused.
    """

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


class PruneExecutions(Value, frozen=True):
    """Delete ended executions of an instance with their histories, safe while it runs.

    Outcome: Pruned, or NotFound.
    """

    instance_id: str
    retention: Retention


class DeleteInstance(Value, frozen=True):
    """Delete an instance with all its children and theirs: every row of them, or nothing.

    force: also while one of them is not terminal. incarnation: only if it is this one that has the
    id (None: whichever has it). Outcome: Deleted; NotFound; Undeletable with
    reason "child" (its parent exists) or "running" (one that is not terminal; without force).
    """

    instance_id: str
    force: bool = False
    incarnation: str | None = None


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
    """Claim up to `limit` unclaimed activities that are due and whose name is in `names`, oldest
    due first.

    attempt and claims grow by one; `alone` as in ClaimInstances, by claims.
    Outcome: ClaimedActivities.
    """

    node_id: str
    names: frozenset[str]
    limit: int
    alone: bool = False
