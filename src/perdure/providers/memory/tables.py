"""The tables of a store in memory, and the changes made to them, so that a batch can be undone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from perdure.providers.contract import Capabilities
from perdure.providers.memory.rows import Activity, Instance, Node


class Tables:
    """now_ms: the store's clock. new_token: the source of tokens. lock: hold it to read or change
    anything. listeners: called after a change by another view of the store."""

    def __init__(self, now_ms: Callable[[], int], new_token: Callable[[], str]) -> None:
        self.now_ms = now_ms
        self.new_token = new_token
        self.lock = threading.Lock()
        self.instances: dict[int, Instance] = {}
        self.keys: dict[str, int] = {}
        self.nodes: dict[str, Node] = {}
        self.listeners: list[Callable[[], None]] = []
        self.last_key = 0
        self.last_seq = 0
        self._undo: list[Callable[[], object]] = []

    # Every change goes through these three.

    def set(self, row: object, **values: Any) -> None:
        for name, value in values.items():
            self._undo.append(partial(setattr, row, name, getattr(row, name)))
            setattr(row, name, value)

    def put(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        if key in table:
            raise ValueError(f"row {key} is there already")
        self._undo.append(partial(table.pop, key))
        table[key] = value

    def drop(self, table: dict[Any, Any], key: Any) -> None:
        if key in table:
            self._undo.append(partial(table.__setitem__, key, table.pop(key)))

    def begin(self) -> None:
        """What follows can be undone by `revert`, until the next `begin`."""
        self._undo = [partial(setattr, self, "last_seq", self.last_seq)]

    def revert(self) -> None:
        """Undo everything since `begin`. (A key that was given out is not given out again.)"""
        while self._undo:
            self._undo.pop()()

    @property
    def changed(self) -> bool:
        """Whether anything has changed since `begin`."""
        return len(self._undo) > 1

    def next_key(self) -> int:
        self.last_key += 1
        return self.last_key

    def next_seq(self) -> int:
        self.last_seq += 1
        return self.last_seq

    def find(self, instance_id: str) -> Instance | None:
        key = self.keys.get(instance_id)
        return None if key is None else self.instances[key]

    def tree(self, root: Instance) -> list[Instance]:
        """The instance and all its descendants, by key."""
        found, ring = {root.key: root}, [root]
        while ring:
            wanted = {(instance.instance_id, instance.incarnation) for instance in ring}
            # Those that are there already: links that an import brings may go round in a circle.
            ring = [
                instance
                for instance in self.instances.values()
                if instance.parent_named in wanted and instance.key not in found
            ]
            found.update((instance.key, instance) for instance in ring)
        return [found[key] for key in sorted(found)]

    def ready(self) -> list[Instance]:
        """Unowned instances with something to do some time, earliest first."""
        found = [i for i in self.instances.values() if i.owner is None and i.due_ms is not None]
        return sorted(found, key=lambda i: (i.due_ms, i.key))

    def due(self) -> list[Instance]:
        """Those of them that have it now."""
        now = self.now_ms()
        return [i for i in self.ready() if i.due_ms is not None and i.due_ms <= now]

    def unclaimed(self, names: frozenset[str]) -> list[tuple[Instance, int, int, Activity]]:
        """Unclaimed activities of these names, due or not, earliest due first."""
        found = [
            (instance, execution_id, event_id, activity)
            for instance in self.instances.values()
            for (execution_id, event_id), activity in instance.activities.items()
            if activity.owner is None and activity.name in names
        ]
        return sorted(found, key=lambda item: (item[3].due_ms, item[0].key, *item[1:3]))

    def all_activities(self) -> Iterator[Activity]:
        for instance in self.instances.values():
            yield from instance.activities.values()


def is_runnable(instance: Instance, capabilities: Capabilities) -> bool:
    if instance.version is None:
        return any(name == instance.name for name, _ in capabilities)
    return (instance.name, instance.version) in capabilities
