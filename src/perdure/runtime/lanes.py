"""Lanes: the slots of a node. Coroutines share one lane, plain functions (threads) another."""

from __future__ import annotations

from collections.abc import Iterable

from perdure.providers.contract import NewActivity
from perdure.registry import Registry
from perdure.runtime.options import Options


class Lane:
    """slots: how many of these activities run at once. taken: slots in use, by running activities
    and by those that start when their turn is committed. backlog: an older one is known to wait in
    the queue. claiming: a claim is under way. again: something came into the queue meanwhile,
    which the claim may not have seen. surveyed: a survey has seen something in the queue that no
    claim has taken since. alone_at_s: when, by the loop's clock, to look again for what may only
    run alone."""

    __slots__ = (
        *("again", "alone_at_s", "backlog", "claiming", "names", "slots", "surveyed", "taken"),
    )

    def __init__(self, names: frozenset[str], slots: int) -> None:
        self.names = names
        self.slots = slots
        self.taken = 0
        self.backlog = False
        self.claiming = False
        self.again = False
        self.surveyed = False
        self.alone_at_s = 0.0

    def waits(self) -> None:
        """Something is known to wait in the queue."""
        self.backlog = True
        self.again = self.claiming

    def reserve(self) -> bool:
        """Take a slot for an activity that is about to be inserted, if it may run here at once.

        Not while an older one waits in the queue: sequential instances would otherwise hand the
        slots to themselves for ever.
        """
        if self.backlog or self.taken >= self.slots:
            self.backlog = True
            return False
        self.taken += 1
        return True


class Lanes:
    """The lanes of a node, by activity name."""

    def __init__(self, registry: Registry, options: Options) -> None:
        coroutines = {name for name, item in registry.activities.items() if item.is_async}
        functions = registry.activities.keys() - coroutines
        self.all = (
            Lane(frozenset(coroutines), options.max_activities),
            Lane(frozenset(functions), options.max_threads),
        )
        self._all_names = frozenset(registry.activities)
        self._by_name = {name: lane for lane in self.all for name in lane.names}

    def names_with_room(self) -> frozenset[str]:
        """The activities for which a slot is free."""
        coroutines, functions = self.all
        if functions.taken >= functions.slots:
            return frozenset() if coroutines.taken >= coroutines.slots else coroutines.names
        return functions.names if coroutines.taken >= coroutines.slots else self._all_names

    def of(self, name: str) -> Lane:
        return self._by_name[name]

    def find(self, name: str) -> Lane | None:
        """None for an activity that this node does not have."""
        return self._by_name.get(name)

    def give_back(self, activities: Iterable[NewActivity]) -> None:
        """Free the slots of activities that were to be inserted claimed, and are not."""
        for activity in activities:
            if activity.claimed:
                self._by_name[activity.name].taken -= 1
