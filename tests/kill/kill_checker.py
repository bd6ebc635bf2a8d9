"""Compares what the store says with what really happened. Pure: `faults(seen)` lists every lie."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
from kill_ledger import Line
from kill_load import LAST, Load, expected_status
from kill_worker import digest

from perdure.core import events


class Execution(msgspec.Struct, frozen=True):
    execution_id: int
    status: str
    history: list[events.AnyEvent]


class Instance(msgspec.Struct, frozen=True):
    instance_id: str
    name: str
    incarnation: str
    status: str
    executions: list[Execution]

    @property
    def events(self) -> Iterator[events.AnyEvent]:
        """Of all executions, in order."""
        for execution in self.executions:
            yield from execution.history


class Seen(msgspec.Struct, frozen=True):
    """What a run has left. leftovers: rows that should be gone, by table. integrity: what SQLite's
    own check says."""

    lines: list[Line]
    instances: list[Instance]
    leftovers: dict[str, int]
    integrity: str


def faults(seen: Seen) -> list[str]:
    """Everything in which store and ledger contradict each other or the promises; [] if none."""
    effects = Effects(seen.lines)
    found = [*_store_faults(seen), *_start_faults(seen), *effects.faults()]
    by_id = {instance.instance_id: instance for instance in seen.instances}
    for instance in seen.instances:
        complaints = [
            *_shape_faults(instance),
            *_value_faults(instance),
            *_child_faults(instance, by_id),
            *effects.faults_of(instance),
        ]
        found += [f"{instance.instance_id}: {complaint}" for complaint in complaints]
    found += _message_faults(seen.lines, by_id)
    return found


def _store_faults(seen: Seen) -> Iterator[str]:
    if seen.integrity != "ok":
        yield f"integrity check: {seen.integrity}"
    for table, number in seen.leftovers.items():
        if number:
            yield f"{number} row(s) left over: {table}"


# Starts and results.


def _start_faults(seen: Seen) -> Iterator[str]:
    by_id = {instance.instance_id: instance for instance in seen.instances}
    if len(by_id) != len(seen.instances):
        yield "one instance id stands for two instances"
    intended: set[str] = set()
    acknowledged: set[str] = set()
    late: set[tuple[int, str]] = set()
    for line in seen.lines:
        if line.word == "intent" and line.args[0] == "start":
            intended.add(line.args[1])
            if line.args[1] in acknowledged:
                late.add((line.pid, line.args[1]))
        elif line.word == "ok" and line.args[0] == "start":
            if line.args[2] == "new" and (line.pid, line.args[1]) in late:
                yield f"{line.args[1]}: an acknowledged start was lost and made again"
            acknowledged.add(line.args[1])
        elif line.word == "result":
            yield from _result_faults(line, by_id)
    for instance_id in sorted(acknowledged - by_id.keys()):
        yield f"{instance_id}: an acknowledged start is lost"
    for instance in seen.instances:
        intended |= {event.instance for event in instance.events if isinstance(event, _STARTS)}
    for instance_id in sorted(by_id.keys() - intended):
        yield f"{instance_id}: nobody intended this instance"


def _result_faults(line: Line, by_id: dict[str, Instance]) -> Iterator[str]:
    instance_id, status, shown = line.args
    instance = by_id.get(instance_id)
    if instance is not None and (status, shown) != (instance.status, digest(_output(instance))):
        yield f"{instance_id}: a caller was given another result than the history has"


_STARTS = (events.SubOrchestrationScheduled, events.OrchestrationChained)


def _output(instance: Instance) -> Any:
    last = instance.executions[-1].history[-1]
    return _decode(last.output) if isinstance(last, events.OrchestrationCompleted) else None


def _decode(payload: msgspec.Raw) -> Any:
    return msgspec.json.decode(payload)


# The shape of histories.

_SETTLED_BY: dict[type[Any], tuple[type[Any], ...]] = {
    events.ActivityScheduled: (
        events.ActivityCompleted,
        events.ActivityFailed,
        events.ActivityCancelled,
    ),
    events.TimerCreated: (events.TimerFired, events.TimerCancelled),
    events.ExternalSubscribed: (events.ExternalEvent, events.ExternalUnsubscribed),
    events.QueueSubscribed: (events.QueueEvent, events.QueueUnsubscribed),
    events.SubOrchestrationScheduled: (
        events.SubOrchestrationCompleted,
        events.SubOrchestrationFailed,
        events.SubOrchestrationCancelled,
    ),
}
_SETTLING = tuple(kind for kinds in _SETTLED_BY.values() for kind in kinds)


def _shape_faults(instance: Instance) -> Iterator[str]:
    executions = instance.executions
    if [execution.execution_id for execution in executions] != list(range(1, len(executions) + 1)):
        yield "its executions are not 1, 2, 3, …"
    if instance.status != expected_status(instance.name):
        yield f"it is {instance.status}"
    wanted = ["continued_as_new"] * (len(executions) - 1) + [instance.status]
    if [execution.status for execution in executions] != wanted:
        yield "its executions do not end as they should"
    stamps = [event.timestamp_ms for event in instance.events]
    if stamps != sorted(stamps):
        yield "time goes back"
    for execution in executions:
        yield from _history_faults(instance, execution)


def _history_faults(instance: Instance, execution: Execution) -> Iterator[str]:
    history, number = execution.history, execution.execution_id
    if [event.event_id for event in history] != list(range(1, len(history) + 1)):
        yield f"event ids of execution {number} are not 1, 2, 3, …"
    starts = [event for event in history if isinstance(event, events.OrchestrationStarted)]
    if len(starts) != 1 or history[0] is not starts[0]:
        yield f"execution {number} does not begin with its one OrchestrationStarted"
    elif starts[0].incarnation != instance.incarnation or starts[0].name != instance.name:
        yield f"execution {number} was started as another instance"
    endings = [event for event in history if isinstance(event, events.ENDINGS)]
    if len(endings) != 1 or history[-1] is not endings[0]:
        yield f"execution {number} has {len(endings)} endings, or events after it"
    elif _STATUS_OF[type(endings[0])] != execution.status:
        yield f"execution {number} is {execution.status}, its history says otherwise"
    yield from _settling_faults(execution)


_STATUS_OF: dict[type[Any], str] = {
    events.OrchestrationCompleted: "completed",
    events.OrchestrationFailed: "failed",
    events.OrchestrationCancelled: "cancelled",
    events.OrchestrationContinuedAsNew: "continued_as_new",
}


def _settling_faults(execution: Execution) -> Iterator[str]:
    """The load leaves nothing open: each request is settled exactly once."""
    settled: Counter[int] = Counter()
    asked: dict[int, events.AnyEvent] = {}
    for event in execution.history:
        if type(event) in _SETTLED_BY:
            asked[event.event_id] = event
        elif isinstance(event, _SETTLING):
            request = asked.get(event.source_event_id)
            settled[event.source_event_id] += 1
            if request is None or type(event) not in _SETTLED_BY[type(request)]:
                yield f"{_at(execution, event)} settles nothing that was asked for"
            elif isinstance(event, events.TimerFired):
                assert isinstance(request, events.TimerCreated)
                if event.fire_at_ms != request.fire_at_ms:
                    yield f"{_at(execution, event)} is not the timer that was created"
                if event.timestamp_ms < event.fire_at_ms:
                    yield f"{_at(execution, event)} came early"
    for event_id, request in asked.items():
        if settled[event_id] != 1:
            yield f"{_at(execution, request)} was settled {settled[event_id]} times"


def _at(execution: Execution, event: events.AnyEvent) -> str:
    return f"{type(event).__name__} {execution.execution_id}.{event.event_id}"


# Values: what came in is what goes out.


def _received(history: Iterable[events.AnyEvent]) -> Iterator[str]:
    for event in history:
        match event:
            case events.ActivityCompleted():
                yield _decode(event.result)
            case events.ActivityFailed() if not _is_lost(event):
                yield event.error.message
            case events.ExternalEvent() | events.QueueEvent():
                yield _decode(event.data)
            case events.SubOrchestrationCompleted():
                yield from _decode(event.result)


def _value_faults(instance: Instance) -> Iterator[str]:
    """Each execution hands on exactly what it was given and what it received."""
    handed_on: msgspec.Raw | None = None
    for execution in instance.executions:
        first, last = execution.history[0], execution.history[-1]
        if not isinstance(first, events.OrchestrationStarted):
            continue
        if handed_on is not None and bytes(first.input) != bytes(handed_on):
            yield f"execution {execution.execution_id} got another input than was handed on"
        got = msgspec.json.decode(first.input, type=Load).got
        wanted = sorted([*got, *_received(execution.history)])
        match last:
            case events.OrchestrationCompleted(output=output):
                if sorted(_decode(output)) != wanted:
                    yield "its output is not what its history received"
            case events.OrchestrationContinuedAsNew(input=handed_on):
                if sorted(msgspec.json.decode(handed_on, type=Load).got) != wanted:
                    yield f"execution {execution.execution_id} handed on what it did not receive"


def _child_faults(instance: Instance, by_id: dict[str, Instance]) -> Iterator[str]:
    """Each child exists, knows its parent, and ended with what the parent received."""
    for execution in instance.executions:
        withdrawn = {
            event.source_event_id
            for event in execution.history
            if isinstance(event, events.SubOrchestrationCancelled)
        }
        results = {
            event.source_event_id: _decode(event.result)
            for event in execution.history
            if isinstance(event, events.SubOrchestrationCompleted)
        }
        for event in execution.history:
            if not isinstance(event, _STARTS):
                continue
            child = by_id.get(event.instance)
            if child is None:
                # One that is withdrawn in the turn that asked for it is never started.
                if event.event_id not in withdrawn:
                    yield f"its child {event.instance} is lost"
                continue
            if event.event_id in results and results[event.event_id] != _output(child):
                yield f"it received another result than its child {event.instance} has"
            if isinstance(event, events.SubOrchestrationScheduled):
                yield from _link_faults(instance, execution, event, child)


def _link_faults(
    instance: Instance,
    execution: Execution,
    event: events.SubOrchestrationScheduled,
    child: Instance,
) -> Iterator[str]:
    link = (instance.instance_id, instance.incarnation, execution.execution_id, event.event_id)
    for own in child.executions:
        first = own.history[0]
        if isinstance(first, events.OrchestrationStarted) and link != (
            first.parent_instance,
            first.parent_incarnation,
            first.parent_execution,
            first.parent_id,
        ):
            yield f"its child {child.instance_id} has another parent"


# Effects.


class Lost:
    """When a process was lost to the others: from the place in the ledger where it was killed, or
    stopped, to the place where it had become another node."""

    def __init__(self) -> None:
        self._times: list[tuple[int, float]] = []

    def begin(self, place: int) -> None:
        self._times.append((place, math.inf))

    def end(self, place: int) -> None:
        if self._times:
            self._times[-1] = self._times[-1][0], place

    def explains(self, before: int, after: int) -> bool:
        """Whether what was begun here at one place may be begun elsewhere at another."""
        return any(lost < after and before < back for lost, back in self._times)

    def is_late(self, place: int) -> bool:
        """Whether what was begun here may have been overtaken: a process that was stopped and goes
        on may begin what it had claimed before, until it notices that it was lost."""
        return any(lost < place < back < math.inf for lost, back in self._times)


class Effects:
    """The activities as the ledger has them, by idempotency key."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.begins: dict[str, list[Line]] = defaultdict(list)
        self.ends: dict[str, dict[str, int]] = defaultdict(dict)
        """By nonce, the places where its attempts had their effect."""
        self._lost: dict[int, Lost] = defaultdict(Lost)
        for line in lines:
            match line.word:
                case "begin":
                    self.begins[line.args[0]].append(line)
                case "end":
                    self.ends[line.args[0]][line.args[1]] = line.place
                case "kill" | "pause":
                    self._lost[int(line.args[0])].begin(line.place)
                case "back":
                    self._lost[line.pid].end(line.place)

    @property
    def repeated(self) -> int:
        """How many activities were begun more than once."""
        return sum(len(begins) > 1 for begins in self.begins.values())

    def faults(self) -> Iterator[str]:
        """An activity begins again only if the node of its last attempt has been lost."""
        for key, begins in self.begins.items():
            attempts = sorted(begins, key=lambda begin: (int(begin.args[1]), begin.place))
            for before, after in itertools.pairwise(attempts):
                if not self._lost[before.pid].explains(before.place, after.place):
                    yield f"activity {key} began again at line {after.place}, without a kill"
                if after.args[1] == before.args[1]:
                    yield f"activity {key}: attempt {after.args[1]} follows {before.args[1]}"

    def faults_of(self, instance: Instance) -> Iterator[str]:
        scheduled = set()
        for execution in instance.executions:
            prefix = f"{instance.incarnation}/{execution.execution_id}"
            yield from self._history_faults(execution.history, prefix)
            scheduled |= {
                f"{prefix}/{event.event_id}"
                for event in execution.history
                if isinstance(event, events.ActivityScheduled)
            }
        own = {key for key in self.begins if key.split("/")[0] == instance.incarnation}
        for key in sorted(own - scheduled):
            yield f"activity {key} ran, and is in no history"

    def _history_faults(self, history: Sequence[events.AnyEvent], prefix: str) -> Iterator[str]:
        """Effects come in the order of the history: nothing runs before what it follows, and
        nothing again after its completion has led to something."""
        last_done, fired_ms = -1, 0
        for event in history:
            match event:
                case events.ActivityScheduled():
                    begins = self.begins.get(f"{prefix}/{event.event_id}", [])
                    if event.name == "once" and len(begins) > 1:
                        yield f"activity {prefix}/{event.event_id} was begun {len(begins)} times"
                    if begins and begins[0].place < last_done:
                        yield f"activity {prefix}/{event.event_id} overlaps what it follows"
                    if begins and begins[0].at_ms < fired_ms:
                        yield f"activity {prefix}/{event.event_id} began before the timer's time"
                case events.ActivityCompleted() | events.ActivityFailed() if not _is_lost(event):
                    key = f"{prefix}/{event.source_event_id}"
                    ends, nonce = self.ends.get(key, {}), _nonce(event)
                    if nonce not in ends:
                        yield f"activity {key}: no attempt has returned {nonce}"
                    places = [
                        begin.place
                        for begin in self.begins.get(key, [])
                        if not self._lost[begin.pid].is_late(begin.place)
                    ]
                    last_done = max([last_done, ends.get(nonce, -1), *places])
                case events.TimerFired():
                    fired_ms = max(fired_ms, event.fire_at_ms)


def _is_lost(event: events.AnyEvent) -> bool:
    """Whether the history says that nobody knows what became of an activity's one attempt."""
    return isinstance(event, events.ActivityFailed) and event.error.type == "ActivityLost"


def _nonce(event: events.ActivityCompleted | events.ActivityFailed) -> str:
    if isinstance(event, events.ActivityFailed):
        return event.error.message
    return str(_decode(event.result))


# Events and cancel requests.


def _message_faults(lines: Sequence[Line], by_id: dict[str, Instance]) -> Iterator[str]:
    sent: dict[tuple[str, str], list[str]] = defaultdict(list)
    acknowledged: set[str] = set()
    cancelled: set[str] = set()
    for line in lines:
        match line.word, *line.args:
            case "intent", "event", instance_id, name, data:
                sent[instance_id, name].append(data)
            case "ok", "event", _, _, data:
                acknowledged.add(data)
            case "ok", "cancel", instance_id:
                cancelled.add(instance_id)
    for instance in by_id.values():
        received: dict[str, list[str]] = {"note": [], "letter": [], "back": []}
        for event in instance.events:
            if isinstance(event, events.ExternalEvent | events.QueueEvent):
                received[event.name].append(_decode(event.data))
        notes, letters, backs = (
            sent[instance.instance_id, name] for name in ("note", "letter", "back")
        )
        complaints = [
            *_note_faults(notes, received["note"]),
            *_note_faults(letters, received["letter"]),
            *_back_faults(backs, received["back"], acknowledged, instance),
        ]
        yield from (f"{instance.instance_id}: {complaint}" for complaint in complaints)
    for instance_id in sorted(cancelled & by_id.keys()):
        if by_id[instance_id].status != "cancelled":
            yield f"{instance_id}: an acknowledged cancel request is lost"


def _note_faults(sent: list[str], received: list[str]) -> Iterator[str]:
    """Notes come from a client that lives on, so that all are acknowledged, to an instance that
    is always subscribed; letters are kept, and repeated under the same id. Each comes exactly once,
    in order."""
    if sent != received:
        yield f"notes sent {sent}, received {received}"
    if received and not received[-1].startswith(LAST):
        yield "it ended without its last note"


def _back_faults(
    sent: list[str], received: list[str], acknowledged: set[str], instance: Instance
) -> Iterator[str]:
    """Each attempt sends one, and the first that was accepted is taken, before the activity's
    completion: it was raised before the activity returned."""
    if not sent and not received:
        return
    unknown = next((at for at, data in enumerate(sent) if data in acknowledged), len(sent))
    if len(received) != 1 or received[0] not in sent[: unknown + 1]:
        yield f"sent back {sent}, the first {unknown} unknown, received {received}"
    kinds = [type(event) for event in instance.events]
    completed = kinds.index(events.ActivityCompleted) if events.ActivityCompleted in kinds else 0
    if events.ExternalEvent not in kinds[:completed]:
        yield "its activity's completion has overtaken the event that was raised before"
