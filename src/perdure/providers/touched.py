"""Which instances an operation touches, so that batches which are committed at once can differ."""

from __future__ import annotations

from collections.abc import Iterable

from perdure.providers.contract import (
    ClaimActivities,
    ClaimInstances,
    CommitTurn,
    DeleteInstance,
    ImportInstances,
    NoteBlocked,
    Operation,
    PruneExecutions,
    SendMessage,
    StartInstance,
)

Touched = tuple[int | str, ...]
"""Keys and ids. An instance that is named by its key in one operation and by its id in another
counts as two: of these, one comes from outside and has no order to the other."""

EVERYTHING: Touched = (-1,)
"""Nothing else may be in flight: which instances it touches is found out by the store."""


def touched(operation: Operation) -> Touched:
    """Claims touch nothing: they pass over what another transaction holds."""
    match operation:
        case CommitTurn():
            if operation.starts or operation.sends:
                return _of_turn(operation)
            return (operation.key,)
        case StartInstance():
            return _of_start(operation)
        case SendMessage() | PruneExecutions():
            return (operation.instance_id,)
        case ClaimInstances() | ClaimActivities():
            return ()
        case NoteBlocked():
            return operation.keys
        case DeleteInstance() | ImportInstances():
            return EVERYTHING
        case _:
            return (operation.key,)


def _of_turn(turn: CommitTurn) -> Touched:
    found: list[int | str] = [turn.key, *_targets(turn.sends)]
    for start in turn.starts:
        found += _of_start(start)
    return tuple(found)


def _of_start(start: StartInstance) -> Touched:
    found: list[int | str] = [start.instance_id, *_targets(start.sends)]
    if start.if_taken is not None:
        found.append(start.if_taken.instance_id)
    if start.turn is not None:
        found += _of_turn(start.turn)
    return tuple(found)


def _targets(sends: Iterable[SendMessage]) -> Iterable[str]:
    return (send.instance_id for send in sends)
