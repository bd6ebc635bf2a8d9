"""A batch of operations as rows for the triggers, and the triggers' notes as outcomes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from itertools import count
from typing import Any

import msgspec

from perdure.errors import InternalError, ProviderError
from perdure.providers.contract import (
    ORDER,
    TERMINAL,
    Committed,
    CommitTurn,
    CompleteActivity,
    DeleteInstance,
    Done,
    Ended,
    ImportInstances,
    NextExecution,
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
from perdure.providers.sqlite import triggers as kind
from perdure.providers.sqlite.packing import instance_of_hex

WIDTH = len(kind.COLUMNS)
ROWS_MAX = 2_000
"""Rows of one statement: SQLite takes at most 32,766 parameters."""

FIRST_TURN_SUB = 2
"""Notes of the turn that a start carries are numbered from here, behind the start's own."""

SENDS_SUB = 1_000_000
"""And those of the sends that a start carries, from this times its own number plus one."""

NOTED = (SendMessage, PruneExecutions, DeleteInstance, ImportInstances)
"""Operations whose outcome is always told."""

Note = tuple[int, int, str, Any]
"""op, sub, what, value"""


def in_order(batch: Sequence[Operation]) -> list[tuple[int, Operation]]:
    """The operations with their places, in the order in which they act."""
    order = ORDER
    return sorted(enumerate(batch), key=lambda item: order[type(item[1])])


def bucket(rows: int) -> int:
    """A number of rows for which a statement is kept prepared: exact to 16, then rounded up by at
    most a quarter. The additional rows are left empty."""
    if rows <= 16:
        return rows
    step = 1 << ((rows - 1).bit_length() - 3)
    return min(-(-rows // step) * step, ROWS_MAX)


@cache
def insert_text(rows: int) -> str:
    """The statement for that many rows."""
    row = f"({','.join('?' * WIDTH)})"
    return "insert into batch values " + ",".join([row] * rows)


def answers_itself(operation: Operation) -> bool:
    """Whether its outcome is known without a note, provided that nothing is refused."""
    if type(operation) is CommitTurn:
        return not operation.starts and not operation.sends
    if type(operation) is StartInstance:
        turn = operation.turn
        return (
            operation.key != 0
            and operation.parent is None
            and operation.if_taken is None
            and not operation.sends
            and (turn is None or answers_itself(turn))
        )
    return not isinstance(operation, NOTED)


def parameters(ordered: Sequence[tuple[int, Operation]], quiet: bool, now: int) -> list[Any]:
    """The values of all rows, one after the other. quiet: no notes, rather fail."""
    values: list[Any] = []
    for place, operation in ordered:
        op = -1 if quiet else place
        match operation:
            case CommitTurn():
                _turn(values, op, operation, now)
            case StartInstance():
                _start(values, op, 0, operation, now)
                if operation.turn is not None:
                    _turn(values, op, operation.turn, now, FIRST_TURN_SUB)
                _start_sends(values, op, 0, operation, now)
            case SendMessage():
                _send(values, op, 0, operation, now)
            case CompleteActivity(key, execution_id, event_id, node_id, attempt, body):
                values += (op, kind.COMPLETE_ACTIVITY, key, execution_id, event_id)
                values += (node_id, attempt, body, *_NONE[6], now)
            case RetryActivity(key, execution_id, event_id, node_id, attempt, due_ms, error):
                values += (op, kind.RETRY_ACTIVITY, key, execution_id, event_id)
                values += (node_id, attempt, due_ms, error, *_NONE[5], now)
            case ReleaseActivity(key, execution_id, event_id, node_id, attempt):
                values += (op, kind.RELEASE_ACTIVITY, key, execution_id, event_id)
                values += (node_id, attempt, *_NONE[7], now)
            case ReleaseInstance():
                _release(values, op, operation, now)
            case NoteBlocked(keys, blocked, detail):
                for key in keys:
                    values += (op, kind.NOTE_BLOCKED, key, None, None)
                    values += (blocked, detail, *_NONE[7], now)
            case PruneExecutions(instance_id, retention):
                _prune(values, op, None, instance_id, retention, now)
            case DeleteInstance() | ImportInstances():
                pass
            case _:
                break
    return values


_NONE = [(None,) * n for n in range(WIDTH)]


def _turn(values: list[Any], op: int, turn: CommitTurn, now: int, sub: int = 0) -> None:
    key, execution = turn.key, turn.execution_id
    events, gone, new = turn.events, turn.activities_gone, turn.activities
    count = len(events)
    values += (op, kind.TURN, key, execution, turn.first_event_id, turn.token, turn.external_seen)
    values += (
        events[0] if count else None,
        events[1] if count > 1 else None,
        gone[0] if gone else None,
    )
    # What is gone goes before what is new.
    inline = 1 if new and len(gone) <= 1 and new[0].options is None else 0
    if inline:
        first = new[0]
        owner = turn.node_id if first.claimed else None
        values += (first.event_id, first.name, first.input, owner, now)
    else:
        values += (None, None, None, None, now)
    for n in range(2, count):
        values += (op, kind.EVENT, key, execution, turn.first_event_id + n, events[n])
        values += (*_NONE[8], now)
    for seq in turn.consumed:
        values += (op, kind.CONSUMED, key, execution, seq, *_NONE[9], now)
    for event_id in gone[1:]:
        values += (op, kind.ACTIVITY_GONE, key, execution, event_id, *_NONE[9], now)
    for event_id in turn.timers_gone:
        values += (op, kind.TIMER_GONE, key, execution, event_id, *_NONE[9], now)
    for activity in new[inline:]:
        owner = turn.node_id if activity.claimed else None
        values += (op, kind.ACTIVITY, key, execution, activity.event_id, activity.name)
        values += (activity.input, owner, activity.options, *_NONE[5], now)
    for timer in turn.timers:
        values += (op, kind.TIMER, key, execution, timer.event_id, timer.fire_at_ms)
        values += (*_NONE[8], now)
    if turn.starts or turn.sends:
        _carried(values, op, turn, now, sub)
    ending = turn.ending
    if turn.next is not None and ending is not None and ending.output is ending.error is None:
        _renew(values, op, turn, turn.next, now)
        return
    if turn.settle or turn.set_due or turn.release or turn.version is not None:
        values += (op, kind.STATE, key, execution, None, turn.version, turn.settle)
        values += (turn.set_due, turn.due_ms, turn.mail_seen, turn.release, *_NONE[3], now)
    if turn.ending is not None:
        _ending(values, op, turn, now)
    if turn.retention is not None:
        _prune(values, op, turn.key, None, turn.retention, now)


def _renew(values: list[Any], op: int, turn: CommitTurn, new: NextExecution, now: int) -> None:
    values += (op, kind.RENEW, turn.key, new.execution_id, turn.execution_id, new.version)
    values += (new.input, new.started, turn.version, turn.settle, turn.set_due, turn.due_ms)
    values += (turn.mail_seen, turn.release, now)
    kept = turn.retention
    if kept is not None and kept.completed_before_ms is None:
        newest = new.execution_id - kept.keep_last
        values += (op, kind.PRUNE_OLDER, turn.key, None, None, None, newest, *_NONE[7], now)
    elif kept is not None:
        _prune(values, op, turn.key, None, kept, now)


def _carried(values: list[Any], op: int, turn: CommitTurn, now: int, base: int) -> None:
    for sub, start in zip(count(base, 2), turn.starts, strict=False):
        _start(values, op, sub, start, now)
        _start_sends(values, op, sub, start, now)
    for sub, send in enumerate(turn.sends, base + 2 * len(turn.starts)):
        _send(values, op, sub, send, now)


def _ending(values: list[Any], op: int, turn: CommitTurn, now: int) -> None:
    ending, following = turn.ending, turn.next
    assert ending is not None
    values += (op, kind.ENDING, turn.key, turn.execution_id, None, ending.status, ending.output)
    values += (ending.error, ending.status if following is None else None, *_NONE[5], now)
    if following is not None:
        values += (op, kind.NEXT, turn.key, following.execution_id, None, following.version)
        values += (following.input, following.started, *_NONE[6], now)


def _prune(
    values: list[Any], op: int, key: int | None, instance_id: str | None, kept: Retention, now: int
) -> None:
    values += (op, kind.PRUNE, key, None, None, instance_id, -kept.keep_last)
    values += (kept.completed_before_ms, *_NONE[6], now)


def _start(values: list[Any], op: int, sub: int, start: StartInstance, now: int) -> None:
    values += (
        op,
        kind.START,
        start.key or None,
        None,
        sub,
        start.instance_id,
        start.incarnation,
        start.name,
    )
    values += (start.version, start.input, start.nesting, start.owner, start.token, None, now)
    parent = start.parent
    if parent is not None:
        values += (op, kind.PARENT, None, None, sub, parent.instance_id, parent.incarnation)
        values += (parent.execution_id, parent.event_id, *_NONE[5], now)
    if start.if_taken is not None:
        _send(values, op, sub + 1, start.if_taken, now, sub, "taken")


def _start_sends(values: list[Any], op: int, sub: int, start: StartInstance, now: int) -> None:
    for number, send in enumerate(start.sends, SENDS_SUB * (sub + 1)):
        _send(values, op, number, send, now, sub, "started")


def _send(
    values: list[Any],
    op: int,
    sub: int,
    send: SendMessage,
    now: int,
    start: int | None = None,
    noted: str | None = None,
) -> None:
    """start, noted: sent only if the start of that sub has noted that."""
    plain = send.queue is None and send.event_id is None and noted != "started"
    values += (op, kind.SEND if plain else kind.ENQUEUE, None, None, sub)
    values += (send.instance_id, send.incarnation, send.body, send.external, start)
    values += (send.queue, send.event_id, noted, None, now)


def _release(values: list[Any], op: int, release: ReleaseInstance, now: int) -> None:
    values += (op, kind.RELEASE_INSTANCE, release.key, None, None, release.token)
    values += (release.mail_seen, release.due_ms, release.charge, release.blocked)
    values += (release.detail, release.hold_ms, *_NONE[2], now)


def outcomes(batch: Sequence[Operation], notes: Sequence[Note]) -> list[Outcome]:
    """One outcome each, except for claims, deletes and imports, which get theirs elsewhere."""
    if not notes:
        return [_unnoted(operation) for operation in batch]
    by_place: defaultdict[int, dict[int, tuple[str, Any]]] = defaultdict(dict)
    for place, sub, what, value in notes:
        by_place[place][sub] = what, value
    return [_outcome(operation, by_place[place]) for place, operation in enumerate(batch)]


_DONE = Done()
_COMMITTED = Committed()


def _unnoted(operation: Operation) -> Outcome:
    if type(operation) is CommitTurn:
        return _COMMITTED
    if type(operation) is StartInstance:
        return Started(operation.key, _COMMITTED if operation.turn is not None else None)
    return NotFound() if type(operation) is PruneExecutions else _DONE


def _outcome(operation: Operation, notes: dict[int, tuple[str, Any]]) -> Outcome:
    if isinstance(operation, StartInstance):
        if -1 in notes and notes[0][0] == "started":
            raise ProviderError(f"a start carries a turn that is {notes[-1][0]}")
        outcome = _started(notes[0])
        if operation.turn is None or not isinstance(outcome, Started):
            return outcome
        return Started(outcome.key, _committed(operation.turn, notes, FIRST_TURN_SUB))
    if -1 in notes:
        return Refused(notes[-1][0])
    if isinstance(operation, SendMessage):
        return _sent(notes[0])
    if isinstance(operation, PruneExecutions):
        return Pruned(*msgspec.json.decode(notes[0][1])) if notes else NotFound()
    if not isinstance(operation, CommitTurn):
        return _DONE
    return _committed(operation, notes, 0)


def _committed(turn: CommitTurn, notes: dict[int, tuple[str, Any]], base: int) -> Committed:
    dropped = notes[-2][1] if -2 in notes else 0
    dropped += sum(
        what == "missing" or what in TERMINAL for sub, (what, _) in notes.items() if sub >= base
    )
    starts = tuple(_started(notes[base + 2 * sub]) for sub in range(len(turn.starts)))
    return Committed(starts, dropped)


def _started(note: tuple[str, Any]) -> Started | Taken:
    what, value = note
    return Started(value) if what == "started" else Taken(instance_of_hex(value))


def _sent(note: tuple[str, Any]) -> Outcome:
    match note:
        case "sent", int(key):
            return Sent(key)
        case "duplicate", int(key):
            return Sent(key, duplicate=True)
        case "missing", _:
            return NotFound()
        case ("completed" | "failed" | "cancelled") as status, _:
            return Ended(status)
        case _:
            raise InternalError(f"a send was noted as {note!r}")
