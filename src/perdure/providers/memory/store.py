"""The data of a store in memory, and what each operation does to it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import assert_never

import msgspec

from perdure.errors import ProviderError
from perdure.providers.contract import (
    EVENT_IDS_KEPT,
    ORDER,
    TERMINAL,
    ClaimActivities,
    ClaimInstances,
    Committed,
    CommitTurn,
    CompleteActivity,
    DeleteInstance,
    Done,
    Ended,
    ImportInstances,
    Message,
    NewActivity,
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
    RetryActivity,
    SendMessage,
    Sent,
    Started,
    StartInstance,
    Taken,
)
from perdure.providers.memory.claims import claim_activities, claim_instances
from perdure.providers.memory.lives import delete, insert
from perdure.providers.memory.rows import Activity, Execution, Instance
from perdure.providers.memory.tables import Tables


def random_token() -> str:
    return secrets.token_hex(16)


class MemoryStore(Tables):
    """The data. now_ms: the store's clock. new_token: the source of tokens, unpredictable ones
    unless given."""

    def __init__(
        self,
        now_ms: Callable[[], int],
        new_token: Callable[[], str] = random_token,
    ) -> None:
        super().__init__(now_ms, new_token)

    def kill_node(self, node_id: str) -> None:
        """Let a node's process die: from now on the others find its lock free."""
        self.nodes[node_id].is_alive = False

    def apply(self, batch: Sequence[Operation]) -> list[Outcome]:
        """All of the batch, or nothing if a value is not acceptable (ProviderError)."""
        self.begin()
        outcomes: dict[int, Outcome] = {}
        try:
            for operation in batch:
                # What does not come through the codec could not be stored in a file either.
                msgspec.msgpack.decode(msgspec.msgpack.encode(operation), type=type(operation))
            for place in sorted(range(len(batch)), key=lambda at: ORDER[type(batch[at])]):
                outcomes[place] = self._apply(batch[place])
        except (ValueError, TypeError, OverflowError, msgspec.MsgspecError) as error:
            self.revert()
            raise ProviderError(f"a value in the batch cannot be stored: {error}") from error
        return [outcomes[place] for place in range(len(batch))]

    def _apply(self, operation: Operation) -> Outcome:
        match operation:
            case DeleteInstance():
                return delete(self, operation)
            case ImportInstances():
                return insert(self, operation)
            case CommitTurn():
                return self._commit_turn(operation)
            case StartInstance():
                return self._start(operation)[0]
            case SendMessage():
                return self._send(operation)
            case CompleteActivity():
                return self._complete(operation)
            case RetryActivity():
                return self._retry_activity(operation)
            case ReleaseActivity():
                return self._release_activity(operation)
            case ReleaseInstance():
                return self._release_instance(operation)
            case NoteBlocked():
                return self._note_blocked(operation)
            case PruneExecutions():
                instance = self.find(operation.instance_id)
                return self._prune(instance, operation.retention) if instance else NotFound()
            case ClaimInstances():
                return claim_instances(self, operation)
            case ClaimActivities():
                return claim_activities(self, operation)
            case _:
                assert_never(operation)

    def _held(self, key: int, token: str) -> Instance | None:
        instance = self.instances.get(key)
        return instance if instance is not None and instance.token == token else None

    def _commit_turn(self, turn: CommitTurn) -> Committed | Refused:
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
            self.set(execution, version=turn.version, status="running")
            self.set(instance, version=turn.version, status="running")
        if turn.settle:
            self.set(instance, attempt=0, blocked=None, blocked_detail=None, hold_ms=None)
        if turn.set_due and instance.mail == turn.mail_seen:
            self.set(instance, due_ms=turn.due_ms)
        if turn.release:
            self.set(instance, owner=None, token=None)
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
            self.drop(instance.executions, number)
        return Pruned(len(gone), events)

    def _write(self, instance: Instance, turn: CommitTurn) -> None:
        history = instance.executions[turn.execution_id].history
        for event_id, data in enumerate(turn.events, turn.first_event_id):
            self.put(history, event_id, data)
        for seq in turn.consumed:
            for table in (instance.inbox, *instance.queues.values()):
                self.drop(table, seq)
        for event_id in turn.activities_gone:
            self.drop(instance.activities, (turn.execution_id, event_id))
        for event_id in turn.timers_gone:
            self.drop(instance.timers, (turn.execution_id, event_id))
        for activity in turn.activities:
            row = self._new_activity(activity, turn.node_id)
            self.put(instance.activities, (turn.execution_id, activity.event_id), row)
        for timer in turn.timers:
            self.put(instance.timers, (turn.execution_id, timer.event_id), timer.fire_at_ms)

    def _new_activity(self, new: NewActivity, node_id: str) -> Activity:
        owner, attempt = (node_id, 1) if new.claimed else (None, 0)
        return Activity(new.name, new.input, owner, attempt, attempt, self.now_ms(), new.options)

    def _end(self, instance: Instance, execution: Execution, turn: CommitTurn) -> int:
        """Ends the execution; returns how many messages were dropped."""
        ending, following = turn.ending, turn.next
        assert ending is not None
        now = self.now_ms()
        output, error = ending.output, ending.error
        self.set(execution, status=ending.status, output=output, error=error, ended_ms=now)
        for table in (instance.activities, instance.timers):
            for item in [item for item in table if item[0] == turn.execution_id]:
                self.drop(table, item)
        if following is not None:
            created = Execution(following.version, "running", following.input, now)
            created.history[1] = following.started
            self.put(instance.executions, following.execution_id, created)
            self.set(instance, execution_id=following.execution_id, version=following.version)
            self.set(instance, status="running")
            return 0
        if ending.status not in TERMINAL:
            raise ValueError(f"an instance cannot end as {ending.status}")
        dropped = len(instance.inbox) + instance.items
        for messages in (instance.inbox, *instance.queues.values()):
            for seq in list(messages):
                self.drop(messages, seq)
        self.set(instance, status=ending.status, finished_ms=now)
        self.set(instance, owner=None, token=None, due_ms=None, event_ids={})
        return dropped

    def reserve_key(self) -> int:
        with self.lock:
            return self.next_key()

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
            key=start.key or self.next_key(),
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
        self.put(self.instances, instance.key, instance)
        self.put(self.keys, start.instance_id, instance.key)
        committed = self._commit_turn(start.turn) if start.turn is not None else None
        if isinstance(committed, Refused):
            raise ValueError(f"a start carries a turn that is {committed.reason}")
        lost = sum(not isinstance(self._send(send), Sent) for send in start.sends)
        if committed is not None:
            committed, lost = Committed(committed.starts, committed.dropped + lost), 0
        return Started(instance.key, committed), lost

    def _send(self, send: SendMessage) -> Sent | NotFound | Ended:
        instance = self.find(send.instance_id)
        if instance is None or send.incarnation not in (None, instance.incarnation):
            return NotFound()
        if instance.finished_ms is not None:
            return Ended(instance.status)
        if send.event_id is not None and not self._remember(instance, send.event_id):
            return Sent(instance.key, duplicate=True)
        if send.queue is None:
            self._deliver(instance, instance.inbox, send.body)
        else:
            self._deliver(instance, instance.queue(send.queue), send.body)
            self.set(instance, queued=instance.queued + 1)
        if send.external:
            self.set(instance, external=instance.external + 1)
        return Sent(instance.key)

    def _remember(self, instance: Instance, event_id: str) -> bool:
        """False if the id is known already."""
        if event_id in instance.event_ids:
            return False
        self.put(instance.event_ids, event_id, None)
        if len(instance.event_ids) > EVENT_IDS_KEPT:
            # A new table, so that undoing it restores the order too.
            kept = dict.fromkeys(list(instance.event_ids)[-EVENT_IDS_KEPT:])
            self.set(instance, event_ids=kept)
        return True

    def _deliver(self, instance: Instance, table: dict[int, Message], body: bytes) -> None:
        now = self.now_ms()
        seq = self.next_seq()
        self.put(table, seq, Message(seq, now, body))
        due_ms = max(now, instance.hold_ms or 0)
        if instance.due_ms is not None:
            due_ms = min(due_ms, instance.due_ms)
        self.set(instance, mail=instance.mail + 1, due_ms=due_ms)

    def _claimed(self, item: CompleteActivity | RetryActivity | ReleaseActivity) -> Activity | None:
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
        self._deliver(instance, instance.inbox, done.body)
        self.drop(instance.activities, (done.execution_id, done.event_id))
        return Done()

    def _release_activity(self, release: ReleaseActivity) -> Done | Refused:
        activity = self._claimed(release)
        if activity is None:
            return Refused("stale")
        self.set(activity, owner=None, attempt=activity.attempt - 1)
        self.set(activity, claims=max(activity.claims - 1, 0))
        return Done()

    def _retry_activity(self, retry: RetryActivity) -> Done | Refused:
        activity = self._claimed(retry)
        if activity is None:
            return Refused("stale")
        self.set(activity, owner=None, claims=0, due_ms=retry.due_ms, error=retry.error)
        return Done()

    def _release_instance(self, release: ReleaseInstance) -> Done | Refused:
        instance = self._held(release.key, release.token)
        if instance is None:
            return Refused("fenced")
        self.set(instance, owner=None, token=None)
        if not release.charge:
            self.set(instance, attempt=max(instance.attempt - 1, 0))
        if release.blocked is not None:
            self.set(instance, blocked=release.blocked, blocked_detail=release.detail)
        if release.hold_ms is not None:
            self.set(instance, hold_ms=release.hold_ms, due_ms=release.hold_ms)
        elif instance.mail == release.mail_seen:
            self.set(instance, due_ms=release.due_ms)
        return Done()

    def _note_blocked(self, note: NoteBlocked) -> Done:
        for key in note.keys:
            instance = self.instances.get(key)
            if instance is not None and instance.owner is None and instance.finished_ms is None:
                self.set(instance, blocked=note.blocked, blocked_detail=note.detail)
        return Done()

    def forget_node(self, node_id: str) -> None:
        """Free everything that the node holds; attempts stay as claimed."""
        self.nodes.pop(node_id, None)
        for instance in self.instances.values():
            if instance.owner == node_id:
                instance.owner = instance.token = None
        for activity in self.all_activities():
            if activity.owner == node_id:
                activity.owner = None
