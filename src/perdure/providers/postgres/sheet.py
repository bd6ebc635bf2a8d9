"""The rows that a batch touches, as they are while it is decided, and what is to be written.

Everything is first changed here; `parameters` are then what the function `put` writes. Rows that
come and go within one batch are never written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from perdure.errors import InternalError, ProviderError
from perdure.providers.contract import EVENT_IDS_KEPT, InstanceRow
from perdure.providers.postgres.hints import Hint
from perdure.providers.postgres.rows import (
    Activity,
    Execution,
    Instance,
    Place,
    activity_values,
    execution_values,
    instance_values,
    shown,
)

PUT = f"select * from put({', '.join(f'${n}' for n in range(1, 21))})"

_AREA = tuple[int, int]
"""key, execution id"""


class Sheet:
    """looked: the row of the function `look`. fresh: keys for new instances. hint: what other
    processes may want to know."""

    def __init__(self, looked: Any) -> None:
        self.now_ms: int = looked["now_ms"]
        self.fresh: list[int] = list(reversed(looked["fresh"] or ()))
        self.hint = Hint()
        self.by_key: dict[int, Instance] = {}
        self.by_id: dict[str, Instance] = {}
        for values in looked["held"] or ():
            self._know(Instance(*values))
        self._executions: dict[_AREA, Execution] = {}
        for values in looked["current"] or ():
            self._executions[values[0], values[1]] = Execution(*values)
        self._activities: defaultdict[int, dict[Place, Activity]] = defaultdict(dict)
        for values in looked["claimed"] or ():
            activity = Activity(*values)
            self._activities[activity.key][activity.place] = activity
        self._waiting: defaultdict[int, set[int]] = defaultdict(set)
        for key, seq, _ in looked["waiting"] or ():
            self._waiting[key].add(seq)
        self._numbers: dict[tuple[int, str], int] = {
            (key, event_id): number for key, event_id, number in looked["known"] or ()
        }
        self._last: dict[int, int] = {key: number or 0 for key, _, number in looked["last"] or ()}
        self._new_instances: dict[int, Instance] = {}
        self._changed: dict[int, Instance] = {}
        self._new_executions: dict[_AREA, Execution] = {}
        self._changed_executions: dict[_AREA, Execution] = {}
        self._new_activities: dict[Place, Activity] = {}
        self._changed_activities: dict[Place, Activity] = {}
        self._new_timers: dict[Place, int] = {}
        self._messages: list[tuple[None, int, int, bytes, str | None]] = []
        self._pending: defaultdict[int, int] = defaultdict(int)
        self._event_ids: list[tuple[int, str, int]] = []
        self.history: list[tuple[int, int, int, bytes]] = []
        self._consumed: list[tuple[int, None, int]] = []
        self._activities_gone: list[Place] = []
        self._timers_gone: list[Place] = []
        self._executions_over: list[tuple[int, int, None]] = []
        self._instances_over: list[int] = []
        self._pruned: list[tuple[Any, ...]] = []

    def believe(self, instance: Instance) -> None:
        """Take an instance to be so without having looked."""
        self._know(instance)

    def _know(self, instance: Instance) -> None:
        self.by_key[instance.key] = instance
        self.by_id[instance.instance_id] = instance

    # Instances and executions.

    def take_key(self) -> int:
        if not self.fresh:
            raise InternalError("a batch needs more keys than were counted")
        return self.fresh.pop()

    def insert(self, instance: Instance) -> None:
        if instance.key in self.by_key:
            raise ProviderError(f"key {instance.key} is in use already")
        self._know(instance)
        self._new_instances[instance.key] = instance

    def change(self, instance: Instance) -> None:
        """Say that a field of it is changed."""
        if instance.key not in self._new_instances:
            self._changed[instance.key] = instance

    def due(self, instance: Instance) -> None:
        """Say that it has something to do now."""
        if instance.owner is None:
            self.hint.work = True
        else:
            self.hint.nodes.add(instance.owner)

    def insert_execution(self, execution: Execution) -> None:
        area = execution.key, execution.execution_id
        if area in self._new_executions or area in self._executions:
            raise ProviderError(f"execution {area[1]} is there already")
        self._executions[area] = self._new_executions[area] = execution

    def execution(self, instance: Instance, execution_id: int) -> Execution:
        """An execution that is being changed."""
        area = instance.key, execution_id
        if area not in self._executions:
            # Not read: only what `put` changes is known.
            self._executions[area] = Execution(*area, None, "running", None, None, None, None, None)
        execution = self._executions[area]
        if area not in self._new_executions:
            self._changed_executions[area] = execution
        return execution

    def shown(self, instance: Instance) -> InstanceRow:
        """The row of an instance that was asked for as one of `starts`."""
        return shown(instance, self._executions[instance.key, instance.execution_id])

    def end_execution(self, key: int, execution_id: int) -> None:
        """Its activities and timers go."""
        own = self._activities[key]
        for place in [place for place in own if place[1] == execution_id]:
            del own[place]
            self._new_activities.pop(place, None)
            self._changed_activities.pop(place, None)
        timers = self._new_timers
        for place in [place for place in timers if place[:2] == (key, execution_id)]:
            del timers[place]
        self._executions_over.append((key, execution_id, None))

    def end_instance(self, key: int) -> int:
        """Its messages and event ids go; returns how many messages."""
        dropped = len(self._waiting[key]) + self._pending[key]
        if self._pending.pop(key, 0):
            self._messages = [message for message in self._messages if message[1] != key]
        self._event_ids = [known for known in self._event_ids if known[0] != key]
        self._instances_over.append(key)
        return dropped

    def prune(self, key: int, newest: int, before_ms: int | None) -> int:
        """Ended executions up to `newest` go; returns the place of the counts in `put`'s answer."""
        self._pruned.append((key, newest, *(None,) * 6, before_ms))
        return len(self._pruned) - 1

    # Activities and timers.

    def activity(self, place: Place) -> Activity | None:
        return self._activities[place[0]].get(place)

    def insert_activity(self, activity: Activity) -> None:
        own, place = self._activities[activity.key], activity.place
        if place in own:
            raise ProviderError(f"activity {place[2]} is there already")
        own[place] = self._new_activities[place] = activity

    def change_activity(self, activity: Activity) -> None:
        if activity.place not in self._new_activities:
            self._changed_activities[activity.place] = activity

    def drop_activity(self, place: Place) -> None:
        self._activities[place[0]].pop(place, None)
        self._changed_activities.pop(place, None)
        if self._new_activities.pop(place, None) is None:
            self._activities_gone.append(place)

    def insert_timer(self, place: Place, fire_at_ms: int) -> None:
        if place in self._new_timers:
            raise ProviderError(f"timer {place[2]} is there already")
        self._new_timers[place] = fire_at_ms

    def drop_timer(self, place: Place) -> None:
        if self._new_timers.pop(place, None) is None:
            self._timers_gone.append(place)

    # Messages.

    def insert_message(self, key: int, accepted_ms: int, body: bytes, queue: str | None) -> None:
        self._pending[key] += 1
        self._messages.append((None, key, accepted_ms, body, queue))

    def consume(self, key: int, seqs: Iterable[int]) -> None:
        for seq in seqs:
            self._waiting[key].discard(seq)
            self._consumed.append((key, None, seq))

    def remember(self, key: int, event_id: str) -> bool:
        """Note the event id of a send; False if it is remembered already."""
        last = self._last.get(key, 0)
        number = self._numbers.get((key, event_id))
        if number is not None and number > last - EVENT_IDS_KEPT:
            return False
        self._last[key] = self._numbers[key, event_id] = last + 1
        self._event_ids.append((key, event_id, last + 1))
        return True

    # Writing.

    def parameters(self) -> list[list[Any] | None]:
        """Those of the function `put` that are lists of rows, or None for no rows: each list costs
        the function some microseconds, an empty one as much as another."""
        trimmed, event_ids = self._trim()
        instances = sorted(self._new_instances.values(), key=lambda each: each.instance_id)
        lists: list[list[Any]] = [
            self._consumed,
            self._activities_gone,
            self._timers_gone,
            self._executions_over,
            self._instances_over,
            # In one order everywhere, so that nobody waits for each other.
            [instance_values(each) for each in instances],
            [instance_values(each) for each in self._changed.values()],
            [execution_values(each) for each in self._new_executions.values()],
            [execution_values(each) for each in self._changed_executions.values()],
            self.history,
            [activity_values(each) for each in self._new_activities.values()],
            [activity_values(each) for each in self._changed_activities.values()],
            [(*place, fire_at_ms) for place, fire_at_ms in self._new_timers.items()],
            self._messages,
            trimmed,
            event_ids,
            self._pruned,
        ]
        return [rows or None for rows in lists]

    def _trim(self) -> tuple[list[tuple[int, str, int]], list[tuple[int, str, int]]]:
        """Which event ids are forgotten, by their number, and which are to be written."""
        keys = {key for key, _, _ in self._event_ids}
        oldest = {key: self._last[key] - EVENT_IDS_KEPT for key in sorted(keys)}
        trimmed = [(key, "", number) for key, number in oldest.items() if number > 0]
        return trimmed, [known for known in self._event_ids if known[2] > oldest[known[0]]]
