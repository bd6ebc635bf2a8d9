"""What each operation does to the rows of a sheet: the contract's rules, without any SQL."""

from __future__ import annotations

from perdure.errors import ProviderError
from perdure.providers.contract import (
    TERMINAL,
    Committed,
    CommitTurn,
    CompleteActivity,
    Done,
    Ended,
    Imported,
    ImportInstances,
    NewActivity,
    NoteBlocked,
    NotFound,
    Operation,
    Outcome,
    PruneExecutions,
    Refused,
    ReleaseActivity,
    ReleaseInstance,
    Retention,
    RetryActivity,
    SendMessage,
    Sent,
    Snapshot,
    Started,
    StartInstance,
    Taken,
)
from perdure.providers.postgres.rows import Activity, Execution, Instance, instance_values
from perdure.providers.postgres.sheet import Sheet

_COMMITTED = Committed()
_DONE = Done()


def decide(sheet: Sheet, operation: Operation) -> Outcome | int | None:
    """The outcome; for a prune the place of its counts in `put`'s answer; None for claims."""
    match operation:
        case CommitTurn():
            return _turn(sheet, operation)
        case StartInstance():
            return _start(sheet, operation)[0]
        case SendMessage():
            return _send(sheet, operation)
        case CompleteActivity():
            return _complete(sheet, operation)
        case RetryActivity():
            return _retry(sheet, operation)
        case ReleaseActivity():
            return _release_activity(sheet, operation)
        case ReleaseInstance():
            return _release(sheet, operation)
        case NoteBlocked():
            return _note_blocked(sheet, operation)
        case PruneExecutions():
            instance = sheet.by_id.get(operation.instance_id)
            return _prune(sheet, instance, operation.retention) if instance else NotFound()
        case ImportInstances():
            return _import(sheet, operation)
        case _:
            return None


def _held(sheet: Sheet, key: int, token: str) -> Instance | None:
    instance = sheet.by_key.get(key)
    return instance if instance is not None and instance.token == token else None


def _turn(sheet: Sheet, turn: CommitTurn) -> Committed | Refused:
    instance = _held(sheet, turn.key, turn.token)
    if instance is None or instance.execution_id != turn.execution_id:
        return Refused("fenced")
    if turn.external_seen is not None and turn.external_seen != instance.external:
        return Refused("behind")
    _write(sheet, turn)
    dropped = 0
    started: list[Started | Taken] = []
    for start in turn.starts:
        outcome, lost = _start(sheet, start)
        started.append(outcome)
        dropped += lost
    for send in turn.sends:
        dropped += not isinstance(_send(sheet, send), Sent)
    _advance(sheet, instance, turn)
    if turn.ending is not None:
        dropped += _end(sheet, instance, turn)
    if turn.retention is not None:
        _prune(sheet, instance, turn.retention)
    return Committed(tuple(started), dropped) if started or dropped else _COMMITTED


def _write(sheet: Sheet, turn: CommitTurn) -> None:
    key, execution_id, now = turn.key, turn.execution_id, sheet.now_ms
    for event_id, data in enumerate(turn.events, turn.first_event_id):
        sheet.history.append((key, execution_id, event_id, data))
    if turn.consumed:
        sheet.consume(key, turn.consumed)
    for event_id in turn.activities_gone:
        sheet.drop_activity((key, execution_id, event_id))
    for event_id in turn.timers_gone:
        sheet.drop_timer((key, execution_id, event_id))
    for new in turn.activities:
        sheet.insert_activity(_new_activity(new, turn, now))
        sheet.hint.work |= not new.claimed
    for timer in turn.timers:
        sheet.insert_timer((key, execution_id, timer.event_id), timer.fire_at_ms)


def _new_activity(new: NewActivity, turn: CommitTurn, now: int) -> Activity:
    return Activity(
        key=turn.key,
        execution_id=turn.execution_id,
        event_id=new.event_id,
        name=new.name,
        input=new.input,
        owner=turn.node_id if new.claimed else None,
        attempt=int(new.claimed),
        claims=int(new.claimed),
        due_ms=now,
        options=new.options,
        error=None,
    )


def _advance(sheet: Sheet, instance: Instance, turn: CommitTurn) -> None:
    """The state of the instance after a turn that does not end it."""
    before = instance_values(instance)
    if turn.version is not None:
        execution = sheet.execution(instance, turn.execution_id)
        execution.version, execution.status = turn.version, "running"
        instance.version, instance.status = turn.version, "running"
    if turn.settle:
        instance.attempt = 0
        instance.blocked = instance.blocked_detail = instance.hold_ms = None
    if turn.set_due and instance.mail == turn.mail_seen:
        instance.due_ms = turn.due_ms
    if turn.release:
        instance.owner = instance.token = None
        if instance.due_ms is not None and instance.due_ms <= sheet.now_ms:
            sheet.due(instance)
    # Most turns change nothing in it: a row less to write, and to clean up after.
    if instance_values(instance) != before:
        sheet.change(instance)


def _end(sheet: Sheet, instance: Instance, turn: CommitTurn) -> int:
    """Ends the execution; returns how many messages were dropped."""
    ending, following, now = turn.ending, turn.next, sheet.now_ms
    assert ending is not None
    execution = sheet.execution(instance, turn.execution_id)
    execution.status, execution.ended_ms = ending.status, now
    execution.output, execution.error = ending.output, ending.error
    sheet.hint.ended = True
    sheet.change(instance)
    sheet.end_execution(turn.key, turn.execution_id)
    if following is not None:
        number, version = following.execution_id, following.version
        sheet.insert_execution(
            Execution(turn.key, number, version, "running", following.input, None, None, now, None)
        )
        sheet.history.append((turn.key, number, 1, following.started))
        instance.execution_id, instance.version = number, version
        instance.status = "running"
        return 0
    if ending.status not in TERMINAL or ending.status == "continued_as_new":
        raise ProviderError(f"an instance cannot end as {ending.status}")
    instance.status, instance.finished_ms = ending.status, now
    instance.owner = instance.token = instance.due_ms = None
    return sheet.end_instance(turn.key)


def _prune(sheet: Sheet, instance: Instance, retention: Retention) -> int:
    newest = instance.execution_id - retention.keep_last
    return sheet.prune(instance.key, newest, retention.completed_before_ms)


def _start(sheet: Sheet, start: StartInstance) -> tuple[Started | Taken, int]:
    """The outcome, and how many messages about it found no receiver."""
    taken = sheet.by_id.get(start.instance_id)
    if taken is not None:
        outcome = Taken(sheet.shown(taken))
        if start.if_taken is None:
            return outcome, 0
        return outcome, not isinstance(_send(sheet, start.if_taken), Sent)
    if (start.owner is None) != (start.token is None):
        raise ProviderError("owner and token must be given together")
    instance = _new_instance(sheet, start)
    sheet.insert(instance)
    if instance.owner is None:
        sheet.due(instance)
    sheet.insert_execution(
        Execution(
            *(instance.key, 1, start.version, "pending", start.input, None, None),
            *(sheet.now_ms, None),
        )
    )
    committed = _turn(sheet, start.turn) if start.turn is not None else None
    if isinstance(committed, Refused):
        raise ProviderError(f"a start carries a turn that is {committed.reason}")
    lost = sum(not isinstance(_send(sheet, send), Sent) for send in start.sends)
    if committed is not None and lost:
        committed, lost = Committed(committed.starts, committed.dropped + lost), 0
    return Started(instance.key, committed), lost


def _new_instance(sheet: Sheet, start: StartInstance) -> Instance:
    parent, now = start.parent, sheet.now_ms
    return Instance(
        key=start.key or sheet.take_key(),
        instance_id=start.instance_id,
        incarnation=start.incarnation,
        name=start.name,
        version=start.version,
        status="pending",
        execution_id=1,
        parent_instance=parent.instance_id if parent else None,
        parent_incarnation=parent.incarnation if parent else None,
        parent_execution=parent.execution_id if parent else None,
        parent_event=parent.event_id if parent else None,
        nesting=start.nesting,
        created_ms=now,
        finished_ms=None,
        owner=start.owner,
        token=start.token,
        attempt=0 if start.owner is None else 1,
        due_ms=now,
        hold_ms=None,
        mail=0,
        external=0,
        queued=0,
        blocked=None,
        blocked_detail=None,
    )


def _send(sheet: Sheet, send: SendMessage) -> Sent | NotFound | Ended:
    instance = sheet.by_id.get(send.instance_id)
    if instance is None or send.incarnation not in (None, instance.incarnation):
        return NotFound()
    if instance.finished_ms is not None:
        return Ended(instance.status)
    if send.event_id is not None and not sheet.remember(instance.key, send.event_id):
        return Sent(instance.key, duplicate=True)
    _deliver(sheet, instance, send.body, send.queue)
    if send.queue is not None:
        instance.queued += 1
    if send.external:
        instance.external += 1
    return Sent(instance.key)


def _deliver(sheet: Sheet, instance: Instance, body: bytes, queue: str | None = None) -> None:
    now = sheet.now_ms
    sheet.insert_message(instance.key, now, body, queue)
    due_ms = max(now, instance.hold_ms or 0)
    if instance.due_ms is not None:
        due_ms = min(due_ms, instance.due_ms)
    instance.mail, instance.due_ms = instance.mail + 1, due_ms
    sheet.change(instance)
    sheet.due(instance)


def _claimed(
    sheet: Sheet, item: CompleteActivity | RetryActivity | ReleaseActivity
) -> Activity | None:
    activity = sheet.activity((item.key, item.execution_id, item.event_id))
    if activity is None or (activity.owner, activity.attempt) != (item.node_id, item.attempt):
        return None
    return activity


def _complete(sheet: Sheet, done: CompleteActivity) -> Done | Refused:
    activity = _claimed(sheet, done)
    if activity is None:
        return Refused("stale")
    _deliver(sheet, sheet.by_key[done.key], done.body)
    sheet.drop_activity(activity.place)
    return _DONE


def _retry(sheet: Sheet, retry: RetryActivity) -> Done | Refused:
    activity = _claimed(sheet, retry)
    if activity is None:
        return Refused("stale")
    activity.owner, activity.claims = None, 0
    activity.due_ms, activity.error = retry.due_ms, retry.error
    sheet.change_activity(activity)
    return _DONE


def _release_activity(sheet: Sheet, release: ReleaseActivity) -> Done | Refused:
    activity = _claimed(sheet, release)
    if activity is None:
        return Refused("stale")
    activity.owner, activity.attempt = None, activity.attempt - 1
    activity.claims = max(activity.claims - 1, 0)
    sheet.change_activity(activity)
    sheet.hint.work = True
    return _DONE


def _release(sheet: Sheet, release: ReleaseInstance) -> Done | Refused:
    instance = _held(sheet, release.key, release.token)
    if instance is None:
        return Refused("fenced")
    instance.owner = instance.token = None
    if not release.charge:
        instance.attempt = max(instance.attempt - 1, 0)
    if release.blocked is not None:
        instance.blocked, instance.blocked_detail = release.blocked, release.detail
    if release.hold_ms is not None:
        instance.hold_ms = instance.due_ms = release.hold_ms
    elif instance.mail == release.mail_seen:
        instance.due_ms = release.due_ms
    sheet.change(instance)
    if instance.due_ms is not None and instance.due_ms <= sheet.now_ms:
        sheet.due(instance)
    return _DONE


def _note_blocked(sheet: Sheet, note: NoteBlocked) -> Done:
    for key in note.keys:
        instance = sheet.by_key.get(key)
        if instance is not None and instance.owner is None and instance.finished_ms is None:
            instance.blocked, instance.blocked_detail = note.blocked, note.detail
            sheet.change(instance)
    return _DONE


def _import(sheet: Sheet, operation: ImportInstances) -> Imported | Taken:
    for one in operation.instances:
        taken = sheet.by_id.get(one.instance_id)
        if taken is not None:
            return Taken(sheet.shown(taken))
    for one in operation.instances:
        if one.instance_id in sheet.by_id:
            raise ProviderError(f"instance {one.instance_id!r} is imported twice")
        _insert(sheet, one)
    sheet.hint.work = True
    return Imported()


def _insert_instance(sheet: Sheet, one: Snapshot, key: int) -> None:
    parent = one.parent
    items = sum(message.queue is not None for message in one.messages)
    sheet.insert(
        Instance(
            key=key,
            instance_id=one.instance_id,
            incarnation=one.incarnation,
            name=one.name,
            version=one.version,
            status=one.status,
            execution_id=one.execution_id,
            parent_instance=parent.instance_id if parent else None,
            parent_incarnation=parent.incarnation if parent else None,
            parent_execution=parent.execution_id if parent else None,
            parent_event=parent.event_id if parent else None,
            nesting=one.nesting,
            created_ms=one.created_ms,
            finished_ms=one.finished_ms,
            owner=None,
            token=None,
            attempt=0,
            due_ms=one.due_ms,
            hold_ms=None,
            mail=len(one.messages),
            external=0,
            queued=items,
            blocked=None,
            blocked_detail=None,
        )
    )


def _insert(sheet: Sheet, one: Snapshot) -> None:
    key = sheet.take_key()
    _insert_instance(sheet, one, key)
    for ex in one.executions:
        values = ex.version, ex.status, ex.input, ex.output, ex.error, ex.started_ms, ex.ended_ms
        sheet.insert_execution(Execution(key, ex.execution_id, *values))
        for event_id, data in enumerate(ex.events, 1):
            sheet.history.append((key, ex.execution_id, event_id, data))
    for sent in one.messages:
        sheet.insert_message(key, sent.accepted_ms, sent.body, sent.queue)
    for item in one.activities:
        sheet.insert_activity(
            Activity(
                *(key, one.execution_id, item.event_id, item.name, item.input, None),
                *(item.attempt, 0, item.due_ms, item.options, item.error),
            )
        )
    for timer in one.timers:
        sheet.insert_timer((key, one.execution_id, timer.event_id), timer.fire_at_ms)
    for known in one.event_ids:
        sheet.remember(key, known)
