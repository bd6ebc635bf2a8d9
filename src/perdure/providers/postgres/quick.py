"""Batches in one round trip: turns, starts and completions whose rows are as one believes.

Nearly every batch is of this kind. What it writes is decided from what the turns themselves say,
and the store writes it only if that is how its rows are; if not, the batch goes the longer way,
which looks first.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from perdure.providers.contract import (
    ORDER,
    CommitTurn,
    CompleteActivity,
    Done,
    Operation,
    Outcome,
    StartInstance,
)
from perdure.providers.postgres.decisions import decide
from perdure.providers.postgres.hints import Hint
from perdure.providers.postgres.rows import Instance
from perdure.providers.postgres.sheet import Sheet

PUT_TURNS = f"select * from put_turns({', '.join(f'${n}' for n in range(1, 19))})"

_DONE = Done()
_UNREAD = ""
"""Stands for what is not known of an instance, and not changed by a turn."""


class Quick(NamedTuple):
    """parameters: those of the function `put_turns`, without mark and time. outcomes: what becomes
    of the batch if the store writes it. hint: what others are to be told."""

    parameters: list[list[Any] | None]
    outcomes: list[Outcome]
    hint: Hint


def quick(batch: Sequence[Operation], now_ms: int) -> Quick | None:
    """What to write for a batch of turns, starts and completions; None if it has to be looked at
    first.

    now_ms: a time that the store's clock has passed.
    """
    turns = [operation for operation in batch if type(operation) is CommitTurn]
    starts = [operation for operation in batch if type(operation) is StartInstance]
    completed = [operation for operation in batch if type(operation) is CompleteActivity]
    if not batch or len(turns) + len(starts) + len(completed) < len(batch):
        return None
    keys = {turn.key for turn in turns} | {start.key for start in starts}
    places = {(done.key, done.execution_id, done.event_id) for done in completed}
    is_single = len(keys) + len(places) == len(batch)
    if not (is_single and all(map(_is_plain, turns)) and all(map(_is_new, starts))):
        return None
    # In one order everywhere, so that nobody waits for each other.
    turns.sort(key=_key)
    locks = sorted({turn.key for turn in turns} | {done.key for done in completed})
    sheet = Sheet({**_LOOKED, "now_ms": now_ms})
    for turn in turns:
        sheet.believe(_believed(turn))
    found: list[Any] = [None] * len(batch)
    for place, operation in sorted(enumerate(batch), key=lambda item: ORDER[type(item[1])]):
        is_completion = type(operation) is CompleteActivity
        found[place] = _DONE if is_completion else decide(sheet, operation)
    parameters: list[list[Any] | None] = [
        [_row(sheet, turn) for turn in turns] or None,
        *_lists(sheet),
        [_completion(done) for done in completed] or None,
        # Turns alone lock their rows in order as they are written.
        locks if completed else None,
    ]
    return Quick(parameters, found, sheet.hint)


_LOOKED = dict.fromkeys(("fresh", "held", "current", "claimed", "waiting", "known", "last"))


def _key(turn: CommitTurn) -> int:
    return turn.key


def _is_plain(turn: CommitTurn) -> bool:
    # Without set_due it is not known what is due when the instance is given back.
    return not (turn.starts or turn.sends or (turn.release and not turn.set_due))


def _is_new(start: StartInstance) -> bool:
    return (
        start.key != 0
        and start.if_taken is None
        and not start.sends
        and (start.turn is None or _is_plain(start.turn))
    )


def _believed(turn: CommitTurn) -> Instance:
    """The instance as it has to be for the turn to be accepted."""
    return Instance(
        key=turn.key,
        # No instance can have such an id.
        instance_id=f"\0{turn.key}",
        incarnation=_UNREAD,
        name=_UNREAD,
        version=None,
        status="running",
        execution_id=turn.execution_id,
        parent_instance=None,
        parent_incarnation=None,
        parent_execution=None,
        parent_event=None,
        nesting=0,
        created_ms=0,
        finished_ms=None,
        owner=turn.node_id,
        token=turn.token,
        attempt=0,
        due_ms=None,
        hold_ms=None,
        mail=turn.mail_seen,
        external=turn.external_seen or 0,
        queued=0,
        blocked=None,
        blocked_detail=None,
    )


def _row(sheet: Sheet, turn: CommitTurn) -> tuple[Any, ...]:
    """What becomes of the instance, and under which conditions, as a `turn` of the schema."""
    after = sheet.by_key[turn.key]
    over = after.finished_ms is not None
    says_status = turn.version is not None or turn.ending is not None
    return (
        turn.key,
        turn.token,
        turn.execution_id,
        turn.external_seen,
        turn.mail_seen if turn.set_due or over else None,
        after.version,
        after.status if says_status else None,
        after.execution_id,
        after.finished_ms,
        turn.settle,
        after.token is None,
        turn.set_due or over,
        after.due_ms,
    )


_completion = attrgetter("key", "execution_id", "event_id", "node_id", "attempt", "body")


def _lists(sheet: Sheet) -> list[list[Any] | None]:
    """Those of the lists that `put` takes which turns and starts can fill."""
    lists = sheet.parameters()
    return [*lists[:6], *lists[7:11], lists[12], lists[16]]
