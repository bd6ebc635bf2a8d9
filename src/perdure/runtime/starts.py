"""Starts by the client of this process: the instance and its first turn in one commit."""

from __future__ import annotations

from functools import partial

import msgspec

from perdure.core.execution import Turn
from perdure.providers.committer import Done
from perdure.providers.contract import Outcome, Started, StartInstance
from perdure.runtime.activities import Activities
from perdure.runtime.node import Node
from perdure.runtime.residents import Resident, resident_of
from perdure.runtime.turns import Turns


class Starts:
    """Takes new instances over before they exist, so that neither a claim nor a first turn costs a
    commit of its own. Nothing of that turn is visible unless the start succeeds."""

    def __init__(self, node: Node, turns: Turns, activities: Activities) -> None:
        self._node = node
        self._turns = turns
        self._activities = activities

    def start(self, start: StartInstance, done: Done) -> None:
        """Submit a start. done: called as by Committer.submit, before anything else follows."""
        node = self._node
        owner = node.owner_of(start.name, start.version)
        if owner is None:
            node.committer.submit(start, partial(self._elsewhere, done))
            return
        key = node.provider.reserve_key()
        start = msgspec.structs.replace(start, owner=owner[0], token=owner[1], key=key)
        resident = resident_of(start, key)
        # Items of its event queues are not at hand before they are in the store.
        first = self._turns.run_first(resident) if key and not start.sends else None
        turn = None
        if first is not None:
            turn, operation = first
            start = msgspec.structs.replace(start, turn=operation)
        node.committer.submit(start, partial(self._here, start, resident, turn, done))

    def _elsewhere(self, done: Done, outcome: Outcome | BaseException) -> None:
        done(outcome)
        if isinstance(outcome, Started):
            self._turns.news()

    def _here(
        self,
        start: StartInstance,
        resident: Resident,
        turn: Turn | None,
        done: Done,
        outcome: Outcome | BaseException,
    ) -> None:
        done(outcome)
        if not isinstance(outcome, Started):
            if start.turn is not None:
                self._activities.not_inserted(start.turn.activities)
            self._turns.discard(resident)
        elif turn is None or start.turn is None or outcome.committed is None:
            self._turns.adopt(start, outcome.key)
        else:
            self._node.committer.ended(start.turn)
            self._turns.started(resident, start.turn, turn, outcome.committed)
