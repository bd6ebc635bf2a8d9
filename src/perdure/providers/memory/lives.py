"""Instances as a whole: deleted with their children, taken out as snapshots, and put in again."""

from __future__ import annotations

from perdure.providers.contract import (
    ActivitySnapshot,
    Deleted,
    DeleteInstance,
    ExecutionSnapshot,
    Imported,
    ImportInstances,
    Message,
    MessageSnapshot,
    NewTimer,
    NotFound,
    Snapshot,
    Taken,
    Undeletable,
)
from perdure.providers.memory.rows import Activity, Execution, Instance
from perdure.providers.memory.tables import Tables


def delete(tables: Tables, operation: DeleteInstance) -> Deleted | NotFound | Undeletable:
    instance = tables.find(operation.instance_id)
    if instance is None or operation.incarnation not in (None, instance.incarnation):
        return NotFound()
    if instance.parent is not None:
        parent = tables.find(instance.parent.instance_id)
        if parent is not None and parent.incarnation == instance.parent.incarnation:
            return Undeletable("child", parent.instance_id)
    doomed = tables.tree(instance)
    running = [one for one in doomed if one.finished_ms is None]
    if running and not operation.force:
        return Undeletable("running", running[0].instance_id)
    for one in doomed:
        tables.drop(tables.instances, one.key)
        tables.drop(tables.keys, one.instance_id)
    return Deleted(len(doomed))


def insert(tables: Tables, operation: ImportInstances) -> Imported | Taken:
    for one in operation.instances:
        taken = tables.find(one.instance_id)
        if taken is not None:
            return Taken(taken.row())
    for one in operation.instances:
        instance = _instance_of(one, tables)
        tables.put(tables.instances, instance.key, instance)
        tables.put(tables.keys, one.instance_id, instance.key)
    return Imported()


def _instance_of(one: Snapshot, tables: Tables) -> Instance:
    instance = Instance(
        key=tables.next_key(),
        instance_id=one.instance_id,
        incarnation=one.incarnation,
        name=one.name,
        version=one.version,
        parent=one.parent,
        nesting=one.nesting,
        created_ms=one.created_ms,
        owner=None,
        token=None,
        attempt=0,
        due_ms=one.due_ms,
        status=one.status,
        execution_id=one.execution_id,
        finished_ms=one.finished_ms,
        mail=len(one.messages),
        queued=sum(message.queue is not None for message in one.messages),
        event_ids=dict.fromkeys(one.event_ids),
    )
    for ex in one.executions:
        execution = Execution(
            ex.version, ex.status, ex.input, ex.started_ms, ex.output, ex.error, ex.ended_ms
        )
        execution.history = dict(enumerate(ex.events, 1))
        instance.executions[ex.execution_id] = execution
    for sent in one.messages:
        seq = tables.next_seq()
        message = Message(seq, sent.accepted_ms, sent.body)
        table = instance.inbox if sent.queue is None else instance.queue(sent.queue)
        table[seq] = message
    for item in one.activities:
        instance.activities[one.execution_id, item.event_id] = Activity(
            item.name, item.input, None, item.attempt, 0, item.due_ms, item.options, item.error
        )
    for timer in one.timers:
        instance.timers[one.execution_id, timer.event_id] = timer.fire_at_ms
    return instance


def snapshot(instance: Instance) -> Snapshot:
    return Snapshot(
        instance_id=instance.instance_id,
        incarnation=instance.incarnation,
        name=instance.name,
        version=instance.version,
        status=instance.status,
        execution_id=instance.execution_id,
        parent=instance.parent,
        nesting=instance.nesting,
        created_ms=instance.created_ms,
        finished_ms=instance.finished_ms,
        due_ms=instance.due_ms,
        executions=tuple(
            ExecutionSnapshot(
                number,
                ex.version,
                ex.status,
                ex.started_ms,
                ex.ended_ms,
                ex.input,
                ex.output,
                ex.error,
                tuple(data for _, data in sorted(ex.history.items())),
            )
            for number, ex in sorted(instance.executions.items())
        ),
        messages=tuple(
            MessageSnapshot(message.accepted_ms, message.body, queue)
            for _, queue, message in sorted(_all_messages(instance), key=lambda item: item[0])
        ),
        activities=tuple(
            ActivitySnapshot(event_id, a.name, a.input, a.options, a.attempt, a.due_ms, a.error)
            for (_, event_id), a in sorted(instance.activities.items())
        ),
        timers=tuple(
            NewTimer(event_id, fire_at_ms)
            for (_, event_id), fire_at_ms in sorted(instance.timers.items())
        ),
        event_ids=tuple(instance.event_ids),
    )


def _all_messages(instance: Instance) -> list[tuple[int, str | None, Message]]:
    found: list[tuple[int, str | None, Message]] = [
        (seq, None, message) for seq, message in instance.inbox.items()
    ]
    for name, items in instance.queues.items():
        found += [(seq, name, message) for seq, message in items.items()]
    return found
