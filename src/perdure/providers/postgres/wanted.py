"""What must be locked and looked at before a batch can be decided."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from perdure.providers.contract import (
    CommitTurn,
    CompleteActivity,
    ImportInstances,
    NoteBlocked,
    Operation,
    PruneExecutions,
    ReleaseActivity,
    ReleaseInstance,
    RetryActivity,
    SendMessage,
    StartInstance,
)
from perdure.providers.postgres.rows import Place


class Wanted:
    """keys, ids: the instances touched. starts: ids whose owner a caller may be shown. ending: keys
    of instances that may end. claimed: activities whose claim is to be checked. events: pairs of
    instance id and event id. fresh: how many keys the store is to choose."""

    def __init__(self, batch: Iterable[Operation]) -> None:
        self.keys: set[int] = set()
        self.ids: set[str] = set()
        self.starts: set[str] = set()
        self.ending: set[int] = set()
        self.claimed: set[Place] = set()
        self.events: set[tuple[str, str]] = set()
        self.fresh = 0
        for operation in batch:
            self._add(operation)

    def _add(self, operation: Operation) -> None:
        match operation:
            case CommitTurn():
                self._turn(operation)
            case StartInstance():
                self._start(operation)
            case SendMessage():
                self._sends((operation,))
            case CompleteActivity() | RetryActivity() | ReleaseActivity():
                self.keys.add(operation.key)
                place = operation.key, operation.execution_id, operation.event_id
                self.claimed.add(place)
            case ReleaseInstance():
                self.keys.add(operation.key)
            case NoteBlocked():
                self.keys.update(operation.keys)
            case PruneExecutions():
                self.ids.add(operation.instance_id)
            case ImportInstances():
                ids = {one.instance_id for one in operation.instances}
                self.ids |= ids
                self.starts |= ids
                self.fresh += len(operation.instances)
            case _:
                pass

    def _turn(self, turn: CommitTurn) -> None:
        self.keys.add(turn.key)
        if turn.ending is not None and turn.next is None:
            self.ending.add(turn.key)
        for start in turn.starts:
            self._start(start)
        self._sends(turn.sends)

    def _start(self, start: StartInstance) -> None:
        self.ids.add(start.instance_id)
        self.starts.add(start.instance_id)
        self.fresh += start.key == 0
        if start.if_taken is not None:
            self._sends((start.if_taken,))
        if start.turn is not None:
            self._turn(start.turn)
        self._sends(start.sends)

    def _sends(self, sends: Sequence[SendMessage]) -> None:
        for send in sends:
            self.ids.add(send.instance_id)
            if send.event_id is not None:
                self.events.add((send.instance_id, send.event_id))

    def parameters(self, now_ms: int | None, more_keys: int) -> tuple[Any, ...]:
        """Those of the function `look`. more_keys: how many keys to bring beyond `fresh`."""
        events = list(self.events)
        return (
            now_ms,
            list(self.keys),
            list(self.ids),
            list(self.starts),
            list(self.ending),
            list(self.claimed),
            [instance_id for instance_id, _ in events],
            [event_id for _, event_id in events],
            self.fresh + more_keys,
        )


LOOK = "select * from look($1, $2, $3, $4, $5, $6, $7, $8, $9)"
