"""The tables in memory with a short list for each question that is asked often.

A store in a folder keeps what has ended, and looking for work must not cost more for it. Each list
holds at least the instances in question: one joins it when something of it changes, also if that
change is undone later, and leaves it in `tidy`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from perdure.providers.contract import CommitTurn
from perdure.providers.memory.rows import Activity, Instance
from perdure.providers.memory.store import MemoryStore


class IndexedTables(MemoryStore):
    """loose: instances that may be `ready`. mailed: that may have messages. working: that may have
    activities."""

    def __init__(self, now_ms: Callable[[], int], new_token: Callable[[], str]) -> None:
        super().__init__(now_ms, new_token)
        self.loose: dict[int, Instance] = {}
        self.mailed: dict[int, Instance] = {}
        self.working: dict[int, Instance] = {}

    def enlist(self, instance: Instance) -> None:
        """An instance that has come into the table."""
        for listed in (self.loose, self.mailed, self.working):
            listed[instance.key] = instance

    def tidy(self) -> None:
        """Shorten the lists. Only when nothing can be undone any more."""
        self.loose = {instance.key: instance for instance in self.ready()}
        self.mailed = {
            key: instance
            for key, instance in self.mailed.items()
            if key in self.instances and (instance.inbox or instance.items)
        }
        self.working = {
            key: instance
            for key, instance in self.working.items()
            if key in self.instances and instance.activities
        }

    def set(self, row: object, **values: Any) -> None:
        super().set(row, **values)
        if isinstance(row, Instance):
            self.loose[row.key] = self.mailed[row.key] = row

    def put(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        super().put(table, key, value)
        if table is self.instances:
            self.enlist(value)

    def _write(self, instance: Instance, turn: CommitTurn) -> None:
        self.working[instance.key] = instance
        super()._write(instance, turn)

    def ready(self) -> list[Instance]:
        found = [
            instance
            for key, instance in self.loose.items()
            if instance.owner is None and instance.due_ms is not None and key in self.instances
        ]
        return sorted(found, key=lambda instance: (instance.due_ms, instance.key))

    def unclaimed(self, names: frozenset[str]) -> list[tuple[Instance, int, int, Activity]]:
        found = [
            (instance, execution_id, event_id, activity)
            for key, instance in self.working.items()
            if key in self.instances
            for (execution_id, event_id), activity in instance.activities.items()
            if activity.owner is None and activity.name in names
        ]
        return sorted(found, key=lambda item: (item[3].due_ms, item[0].key, *item[1:3]))

    def with_mail(self, node_id: str, now: int) -> list[Instance]:
        """What a node holds that is due and has messages or queue items, earliest due first."""
        found = [
            (instance.due_ms, key, instance)
            for key, instance in self.mailed.items()
            if instance.owner == node_id
            and instance.due_ms is not None
            and instance.due_ms <= now
            and (instance.inbox or instance.items)
            and key in self.instances
        ]
        return [instance for _, _, instance in sorted(found, key=lambda item: item[:2])]
