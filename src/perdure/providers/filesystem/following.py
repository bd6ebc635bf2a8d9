"""What a committed batch means for the readable files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from perdure.providers.contract import (
    Committed,
    CommitTurn,
    Imported,
    ImportInstances,
    Operation,
    Outcome,
    Pruned,
    PruneExecutions,
    Started,
    StartInstance,
)
from perdure.providers.filesystem.readable import Scribe
from perdure.providers.filesystem.tables import JournaledTables


def follow(
    scribe: Scribe, tables: JournaledTables, batch: Sequence[Operation], outcomes: Sequence[Outcome]
) -> None:
    """Note what has changed in the histories. The tables are as this batch has left them."""
    for instance_id in tables.gone:
        scribe.remove(instance_id)
    pruned: list[int] = []
    for operation, outcome in zip(batch, outcomes, strict=False):
        match operation, outcome:
            case CommitTurn(), Committed():
                _follow_turn(scribe, tables, operation, outcome, pruned)
            case StartInstance(), Started(committed=Committed()):
                _follow_starts(scribe, tables, [operation], [outcome], pruned)
            case PruneExecutions(instance_id), Pruned(executions) if executions:
                pruned.append(tables.keys[instance_id])
            case ImportInstances(instances), Imported():
                for imported in instances:
                    for execution in imported.executions:
                        scribe.append(
                            imported.instance_id, execution.execution_id, execution.events
                        )
            case _:
                pass
    for key in pruned:
        instance = tables.instances[key]
        scribe.keep(instance.instance_id, instance.executions)


def _follow_turn(
    scribe: Scribe,
    tables: JournaledTables,
    turn: CommitTurn,
    committed: Committed,
    pruned: list[int],
) -> None:
    instance = tables.instances[turn.key]
    if turn.events and turn.execution_id in instance.executions:
        scribe.append(instance.instance_id, turn.execution_id, turn.events)
    following = turn.next
    if following is not None and following.execution_id in instance.executions:
        scribe.append(instance.instance_id, following.execution_id, [following.started])
    if turn.retention is not None:
        pruned.append(turn.key)
    _follow_starts(scribe, tables, turn.starts, committed.starts, pruned)


def _follow_starts(
    scribe: Scribe,
    tables: JournaledTables,
    starts: Iterable[StartInstance],
    outcomes: Iterable[Outcome],
    pruned: list[int],
) -> None:
    for start, outcome in zip(starts, outcomes, strict=False):
        match start.turn, outcome:
            case CommitTurn() as turn, Started(committed=Committed() as committed):
                _follow_turn(scribe, tables, turn, committed, pruned)
            case _:
                pass
