"""The data of a store in memory, and what each operation does to it."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, assert_never

import msgspec

from perdure.errors import ProviderError
from perdure.limits import CLAIMS_SHARED_MAX
from perdure.providers.contract import (
    TERMINAL,
    Acquired,
    ActivityClaim,
    Capabilities,
    ClaimActivities,
    Claimed,
    ClaimedActivities,
    ClaimInstances,
    Committed,
    CommitTurn,
    CompleteActivity,
    Done,
    Ended,
    Message,
    NewActivity,
    NewTimer,
    NoteBlocked,
    NotFound,
    Operation,
    Outcome,
    Pruned,
    PruneExecutions,
    Refused,
    ReleaseActivity,
    ReleaseInstance,
    Retention,
    SendMessage,
    Sent,
    Started,
    StartInstance,
    Taken,
)
from perdure.providers.memory.rows import Activity, Execution, Instance, Node


class MemoryStore:
    """The data. now_ms: the store's clock."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.now_ms = now_ms
        self.lock = threading.Lock()
        self.instances: dict[int, Instance] = {}
        self.keys: dict[str, int] = {}
        self.nodes: dict[str, Node] = {}
        self.listeners: list[Callable[[], None]] = []
        self._last_key = 0
        self._last_seq = 0
        self._undo: list[Callable[[], object]] = []

    def kill_node(self, node_id: str) -> None:
        """Let a node's process die: from now on the others find its lock free."""
        self.nodes[node_id].is_alive = False

    def apply(self, batch: Sequence[Operation]) -> list[Outcome]:
        """All of the batch, or nothing if a value is not acceptable (ProviderError)."""
        self._undo.clear()
        last_key, last_seq = self._last_key, self._last_seq
        outcomes: dict[int, Outcome] = {}
        try:
            for operation in batch:
                # What does not come through the codec could not be stored in a file either.
                msgspec.msgpack.decode(msgspec.msgpack.encode(operation), type=type(operation))
            for place in sorted(range(len(batch)), key=lambda at: _ORDER[type(batch[at])]):
                outcomes[place] = self._apply(batch[place])
        except (ValueError, TypeError, OverflowError, msgspec.MsgspecError) as error:
            while self._undo:
                self._undo.pop()()
            self._last_key, self._last_seq = last_key, last_seq
            raise ProviderError(f"a value in the batch cannot be stored: {error}") from error
        return [outcomes[place] for place in range(len(batch))]

    def _apply(self, operation: Operation) -> Outcome:
        match operation:
            case CommitTurn():
                return self._commit_turn(operation)
            case StartInstance():
                return self._start(operation)[0]
            case SendMessage():
                return self._send(operation)
            case CompleteActivity():
                return self._complete(operation)
            case ReleaseActivity():
                return self._release_activity(operation)
            case ReleaseInstance():
                return self._release_instance(operation)
            case NoteBlocked():
                return self._note_blocked(operation)
            case PruneExecutions():
                key = self.keys.get(operation.instance_id)
                if key is None:
                    return NotFound()
                return self._prune(self.instances[key], operation.retention)
            case ClaimInstances():
                return self._claim_instances(operation)
            case ClaimActivities():
                return self._claim_activities(operation)
            case _:
                assert_never(operation)

    # Every change goes through these three, so that a batch can be undone.

    def _set(self, row: object, **values: Any) -> None:
        for name, value in values.items():
            self._undo.append(partial(setattr, row, name, getattr(row, name)))
            setattr(row, name, value)

    def _put(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        if key in table:
            raise ValueError(f"row {key} is there already")
        self._undo.append(partial(table.pop, key))
        table[key] = value

    def _drop(self, table: dict[Any, Any], key: Any) -> None:
        if key in table:
            self._undo.append(partial(table.__setitem__, key, table.pop(key)))

    def _held(self, key: int, token: str) -> Instance | None:
        instance = self.instances.get(key)
        return instance if instance is not None and instance.token == token else None

    def _commit_turn(self, turn: CommitTurn) -> Outcome:
        instance = self._held(turn.key, turn.token)
        if instance is None or instance.execution_id != turn.execution_id:
            return Refused("fenced")
        if turn.external_seen is not None and turn.external_seen != instance.external:
            return Refused("behind")
        self._write(instance, turn)
        started = [self._start(start) for start in turn.starts]
        dropped = sum(lost for _, lost in started)
        dropped += sum(not isinstance(self._send(send), Sent) for send in turn.sends)
        execution = instance.executions[turn.execution_id]
        if turn.version is not None:
            self._set(execution, version=turn.version, status="running")
            self._set(instance, version=turn.version, status="running")
        if turn.settle:
            self._set(instance, attempt=0, blocked=None, blocked_detail=None, hold_ms=None)
        if turn.set_due and instance.mail == turn.mail_seen:
            self._set(instance, due_ms=turn.due_ms)
        if turn.release:
            self._set(instance, owner=None, token=None)
        if turn.ending is not None:
            dropped += self._end(instance, execution, turn)
        if turn.retention is not None:
            self._prune(instance, turn.retention)
        return Committed(tuple(outcome for outcome, _ in started), dropped)

    def _prune(self, instance: Instance, retention: Retention) -> Pruned:
        newest = instance.execution_id - retention.keep_last
        before = retention.completed_before_ms
        gone = [
            number
            for number, execution in instance.executions.items()
            if number <= newest
            and execution.ended_ms is not None
            and (before is None or execution.ended_ms < before)
        ]
        events = sum(len(instance.executions[number].history) for number in gone)
        for number in gone:
            self._drop(instance.executions, number)
        return Pruned(len(gone), events)

    def _write(self, instance: Instance, turn: CommitTurn) -> None:
        history = instance.executions[turn.execution_id].history
        for event_id, data in enumerate(turn.events, turn.first_event_id):
            self._put(history, event_id, data)
        for seq in turn.consumed:
            self._drop(instance.inbox, seq)
        for event_id in turn.activities_gone:
            self._drop(instance.activities, (turn.execution_id, event_id))
        for event_id in turn.timers_gone:
            self._drop(instance.timers, (turn.execution_id, event_id))
        for activity in turn.activities:
            row = self._new_activity(activity, turn.node_id)
            self._put(instance.activities, (turn.execution_id, activity.event_id), row)
        for timer in turn.timers:
            self._put(instance.timers, (turn.execution_id, timer.event_id), timer.fire_at_ms)

    def _new_activity(self, new: NewActivity, node_id: str) -> Activity:
        owner, attempt = (node_id, 1) if new.claimed else (None, 0)
        return Activity(new.name, new.input, owner, attempt, self.now_ms())

    def _end(self, instance: Instance, execution: Execution, turn: CommitTurn) -> int:
        """Ends the execution; returns how many messages were dropped."""
        ending, following = turn.ending, turn.next
        assert ending is not None
        now = self.now_ms()
        output, error = ending.output, ending.error
        self._set(execution, status=ending.status, output=output, error=error, ended_ms=now)
        for table in (instance.activities, instance.timers):
            for item in [item for item in table if item[0] == turn.execution_id]:
                self._drop(table, item)
        if following is not None:
            created = Execution(following.version, "running", following.input, now)
            created.history[1] = following.started
            self._put(instance.executions, following.execution_id, created)
            self._set(instance, execution_id=following.execution_id, version=following.version)
            self._set(instance, status="running")
            return 0
        if ending.status not in TERMINAL:
            raise ValueError(f"an instance cannot end as {ending.status}")
        dropped = len(instance.inbox)
        for seq in list(instance.inbox):
            self._drop(instance.inbox, seq)
        self._set(instance, status=ending.status, finished_ms=now)
        self._set(instance, owner=None, token=None, due_ms=None)
        return dropped

    def reserve_key(self) -> int:
        with self.lock:
            return self._next_key()

    def _next_key(self) -> int:
        self._last_key += 1
        return self._last_key

    def _start(self, start: StartInstance) -> tuple[Started | Taken, int]:
        """The outcome, and how many messages about it found no receiver."""
        taken = self.keys.get(start.instance_id)
        if taken is not None:
            outcome = Taken(self.instances[taken].row())
            if start.if_taken is None:
                return outcome, 0
            return outcome, not isinstance(self._send(start.if_taken), Sent)
        if (start.owner is None) != (start.token is None):
            raise ValueError("owner and token must be given together")
        now = self.now_ms()
        instance = Instance(
            key=start.key or self._next_key(),
            instance_id=start.instance_id,
            incarnation=start.incarnation,
            name=start.name,
            version=start.version,
            parent=start.parent,
            nesting=start.nesting,
            created_ms=now,
            owner=start.owner,
            token=start.token,
            attempt=0 if start.owner is None else 1,
            due_ms=now,
        )
        instance.executions[1] = Execution(start.version, "pending", start.input, now)
        self._put(self.instances, instance.key, instance)
        self._put(self.keys, start.instance_id, instance.key)
        committed = self._commit_turn(start.turn) if start.turn is not None else None
        assert committed is None or isinstance(committed, Committed)
        return Started(instance.key, committed), 0

    def _send(self, send: SendMessage) -> Sent | NotFound | Ended:
        key = self.keys.get(send.instance_id)
        if key is None or send.incarnation not in (None, self.instances[key].incarnation):
            return NotFound()
        instance = self.instances[key]
        if instance.finished_ms is not None:
            return Ended(instance.status)
        self._deliver(instance, send.body)
        if send.external:
            self._set(instance, external=instance.external + 1)
        return Sent(key)

    def _deliver(self, instance: Instance, body: bytes) -> None:
        now = self.now_ms()
        self._last_seq += 1
        self._put(instance.inbox, self._last_seq, Message(self._last_seq, now, body))
        due_ms = max(now, instance.hold_ms or 0)
        if instance.due_ms is not None:
            due_ms = min(due_ms, instance.due_ms)
        self._set(instance, mail=instance.mail + 1, due_ms=due_ms)

    def _claimed(self, item: CompleteActivity | ReleaseActivity) -> Activity | None:
        instance = self.instances.get(item.key)
        if instance is None:
            return None
        activity = instance.activities.get((item.execution_id, item.event_id))
        if activity is None or (activity.owner, activity.attempt) != (item.node_id, item.attempt):
            return None
        return activity

    def _complete(self, done: CompleteActivity) -> Done | Refused:
        if self._claimed(done) is None:
            return Refused("stale")
        instance = self.instances[done.key]
        self._deliver(instance, done.body)
        self._drop(instance.activities, (done.execution_id, done.event_id))
        return Done()

    def _release_activity(self, release: ReleaseActivity) -> Done | Refused:
        activity = self._claimed(release)
        if activity is None:
            return Refused("stale")
        self._set(activity, owner=None, attempt=activity.attempt - 1)
        return Done()

    def _release_instance(self, release: ReleaseInstance) -> Done | Refused:
        instance = self._held(release.key, release.token)
        if instance is None:
            return Refused("fenced")
        self._set(instance, owner=None, token=None)
        if not release.charge:
            self._set(instance, attempt=max(instance.attempt - 1, 0))
        if release.blocked is not None:
            self._set(instance, blocked=release.blocked, blocked_detail=release.detail)
        if release.hold_ms is not None:
            self._set(instance, hold_ms=release.hold_ms, due_ms=release.hold_ms)
        elif instance.mail == release.mail_seen:
            self._set(instance, due_ms=release.due_ms)
        return Done()

    def _note_blocked(self, note: NoteBlocked) -> Done:
        for key in note.keys:
            instance = self.instances.get(key)
            if instance is not None and instance.owner is None and instance.finished_ms is None:
                self._set(instance, blocked=note.blocked, blocked_detail=note.detail)
        return Done()

    def ready(self) -> list[Instance]:
        """Unowned instances with something to do some time, earliest first."""
        found = [i for i in self.instances.values() if i.owner is None and i.due_ms is not None]
        return sorted(found, key=lambda i: (i.due_ms, i.key))

    def due(self) -> list[Instance]:
        """Those of them that have it now."""
        now = self.now_ms()
        return [i for i in self.ready() if i.due_ms is not None and i.due_ms <= now]

    def _claim_instances(self, claim: ClaimInstances) -> Claimed:
        fitting = [
            instance
            for instance in self.due()
            if is_runnable(instance, claim.capabilities)
            and (instance.attempt >= CLAIMS_SHARED_MAX) == claim.alone
        ]
        taken = fitting[: min(claim.limit, 1) if claim.alone else claim.limit]
        for instance in taken:
            self._set(instance, owner=claim.node_id, token=secrets.token_hex(16))
            self._set(instance, attempt=instance.attempt + 1)
        return Claimed(tuple(_acquired(instance) for instance in taken))

    def unclaimed(self, names: frozenset[str]) -> list[tuple[Instance, int, int, Activity]]:
        """Unclaimed activities of these names, oldest first."""
        found = [
            (instance, execution_id, event_id, activity)
            for instance in self.instances.values()
            for (execution_id, event_id), activity in instance.activities.items()
            if activity.owner is None and activity.name in names
        ]
        return sorted(found, key=lambda item: (item[3].queued_ms, item[0].key, *item[1:3]))

    def _claim_activities(self, claim: ClaimActivities) -> ClaimedActivities:
        fitting = [
            item
            for item in self.unclaimed(claim.names)
            if (item[3].attempt >= CLAIMS_SHARED_MAX) == claim.alone
        ]
        limit = min(claim.limit, 1) if claim.alone else claim.limit
        taken = []
        for instance, execution_id, event_id, activity in fitting[:limit]:
            self._set(activity, owner=claim.node_id, attempt=activity.attempt + 1)
            taken.append(
                ActivityClaim(
                    key=instance.key,
                    instance_id=instance.instance_id,
                    incarnation=instance.incarnation,
                    execution_id=execution_id,
                    event_id=event_id,
                    name=activity.name,
                    input=activity.input,
                    attempt=activity.attempt,
                )
            )
        return ClaimedActivities(tuple(taken), more=len(fitting) > limit)

    def forget_node(self, node_id: str) -> None:
        """Free everything that the node holds; attempts stay as claimed."""
        self.nodes.pop(node_id, None)
        for instance in self.instances.values():
            if instance.owner == node_id:
                instance.owner = instance.token = None
            for activity in instance.activities.values():
                if activity.owner == node_id:
                    activity.owner = None


_ORDER: dict[type, int] = {
    kind: place
    for place, kind in enumerate(
        (
            CommitTurn,
            StartInstance,
            SendMessage,
            CompleteActivity,
            ReleaseActivity,
            ReleaseInstance,
            NoteBlocked,
            PruneExecutions,
            ClaimInstances,
            ClaimActivities,
        )
    )
}


def is_runnable(instance: Instance, capabilities: Capabilities) -> bool:
    if instance.version is None:
        return any(name == instance.name for name, _ in capabilities)
    return (instance.name, instance.version) in capabilities


def _acquired(instance: Instance) -> Acquired:
    assert instance.token is not None
    return Acquired(
        key=instance.key,
        instance_id=instance.instance_id,
        incarnation=instance.incarnation,
        name=instance.name,
        version=instance.version,
        execution_id=instance.execution_id,
        token=instance.token,
        attempt=instance.attempt,
        input=instance.executions[instance.execution_id].input,
        parent=instance.parent,
        nesting=instance.nesting,
        mail=instance.mail,
        external=instance.external,
        messages=instance.messages(),
        timers=tuple(
            NewTimer(event_id, fire_at_ms)
            for (_, event_id), fire_at_ms in sorted(instance.timers.items())
        ),
    )
