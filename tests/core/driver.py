"""A small world around one orchestration, without provider or clock.

It keeps the history as a store would (encoded), answers open requests in the order a test asks
for, and can drive the execution in the ways that a runtime does: kept in memory, thrown away and
replayed before every turn, or checked by a second replay after every turn.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

import msgspec

from perdure.core import events, work
from perdure.core.execution import Execution, Turn
from perdure.core.journal import python_minor
from perdure.core.mailbox import Mailbox
from perdure.core.marked import Info
from perdure.marks import Orchestration

START_MS = 1_700_000_000_000
INCARNATION = "0123456789abcdef0123456789abcdef"

WORLDS: list[World] = []
"""Those of the test that runs, for conftest to close."""

AnyOrchestration = Orchestration[..., Any]


class Mode(enum.Enum):
    """RESIDENT: one Execution for all turns. EVICT: closed and replayed before every turn.
    CHECK: resident, and after every turn another one replays the whole history."""

    RESIDENT = "resident"
    EVICT = "evict"
    CHECK = "check"


SETTLED: dict[type[Any], str] = {
    events.ActivityScheduled: "activity",
    events.TimerCreated: "timer",
    events.ExternalSubscribed: "wait",
    events.QueueSubscribed: "dequeue",
    events.SubOrchestrationScheduled: "child",
}
"""The events that open a request."""
WITH_INPUT = (
    events.ActivityScheduled,
    events.SubOrchestrationScheduled,
    events.OrchestrationContinuedAsNew,
)


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def value_of(payload: msgspec.Raw) -> Any:
    return msgspec.json.decode(payload)


def stored(history: Sequence[events.AnyEvent]) -> list[events.AnyEvent]:
    """The history as it comes out of a store."""
    return [events.decode(events.encode(event)) for event in history]


def lines(history: Sequence[events.AnyEvent]) -> list[str]:
    """One JSON object per event, as in a history file."""
    return [events.encode(event).decode() for event in history]


def brief(event: events.AnyEvent) -> str:
    """An event in a few words, without ids of its own and times."""
    name = type(event).__name__
    source = getattr(event, "source_event_id", None)
    if source is not None:
        return f"{name} {source}"
    if isinstance(event, events.TimerCreated):
        return f"{name} {event.fire_at_ms - event.timestamp_ms}"
    label = getattr(event, "name", None)
    if isinstance(
        event, events.ActivityScheduled | events.ExternalSubscribed | events.QueueSubscribed
    ):
        return f"{name} {label}"
    return name


def started(
    orchestration: AnyOrchestration, payload: msgspec.Raw, now_ms: int, incarnation: str
) -> events.OrchestrationStarted:
    return events.OrchestrationStarted(
        1,
        now_ms,
        orchestration.name,
        orchestration.version,
        payload,
        incarnation,
        python_minor(),
        1,
    )


class World:
    """One instance. `args`: the arguments of the orchestration, encoded as a client would.

    history: the current execution's, in the form in which it comes out of a store. earlier: the
    histories of the executions before it. now_ms: virtual time, moved by `fire` and by the test.
    delivered: what was taken, and when. unread: what the last turn did not take. items: those of
    its event queues that came and were not handed out yet.
    """

    def __init__(
        self,
        orchestration: AnyOrchestration,
        *args: Any,
        mode: Mode = Mode.RESIDENT,
        instance_id: str = "inst",
        incarnation: str = INCARNATION,
        nesting: int = 0,
        repeated: bool = False,
        now_ms: int = START_MS,
    ) -> None:
        self.orchestration = orchestration
        self.input = msgspec.Raw(orchestration.signature.bind(args, {}))
        self.mode = mode
        self.instance_id = instance_id
        self.incarnation = incarnation
        self.nesting = nesting
        self.repeated = repeated
        self.now_ms = now_ms
        self.execution_id = 1
        self.history: list[events.AnyEvent] = []
        self.earlier: list[list[events.AnyEvent]] = []
        self.turns: list[Turn] = []
        self.delivered: list[tuple[int, work.AnyWorkItem]] = []
        self.unread: Sequence[work.AnyWorkItem] = ()
        self.items: list[work.EventEnqueued] = []
        self.enqueued = 0
        self.dropped: dict[str, int] = {}
        self.execution: Execution | None = None
        WORLDS.append(self)

    # What can be seen.

    @property
    def ending(self) -> events.AnyEvent | None:
        last = self.history[-1] if self.history else None
        return last if isinstance(last, events.ENDINGS) else None

    @property
    def output(self) -> Any:
        ending = self.ending
        assert isinstance(ending, events.OrchestrationCompleted), ending
        return value_of(ending.output)

    @property
    def error(self) -> events.Failure:
        ending = self.ending
        assert isinstance(ending, events.OrchestrationFailed), ending
        return ending.error

    @property
    def kinds(self) -> list[str]:
        """The history in brief, without its first event."""
        return [brief(event) for event in self.history[1:]]

    def input_of(self, event_id: int) -> Any:
        """The decoded input that an event of the history carries."""
        event = self.history[event_id - 1]
        assert isinstance(event, WITH_INPUT), event
        return value_of(event.input)

    @property
    def open(self) -> dict[int, events.AnyEvent]:
        """Requests that are neither answered nor withdrawn, by event id."""
        found: dict[int, events.AnyEvent] = {}
        for event in self.history:
            if type(event) in SETTLED:
                found[event.event_id] = event
            else:
                found.pop(getattr(event, "source_event_id", 0), None)
        return found

    # Turns.

    def fresh(self) -> Execution:
        """An execution that knows nothing yet."""
        info = Info(self.instance_id, self.incarnation, self.execution_id, self.nesting)
        mailbox = Mailbox()
        for item in self.items:
            mailbox.put(item)
        return Execution(
            self.orchestration, info, self._lookup, repeated=self.repeated, mailbox=mailbox
        )

    def replayed(self) -> Execution:
        """Another execution that has repeated the history."""
        execution = self.fresh()
        execution.replay(stored(self.history))
        return execution

    def start(self) -> Turn:
        """The first turn of the first execution."""
        first = started(self.orchestration, self.input, self.now_ms, self.incarnation)
        self.execution = self.fresh()
        return self._took(self.execution.step([], self.now_ms, first))

    def step(self, *items: work.AnyWorkItem) -> Turn:
        """One turn that gets these items."""
        if not self.history:
            self.start()
        if self.mode is Mode.EVICT:
            self.close()
        if self.execution is None:
            self.execution = self.replayed()
        turn = self.execution.step(items, self.now_ms)
        self.delivered.extend((self.now_ms, item) for item in items[: turn.taken])
        self.unread = items[turn.taken :]
        taken = items[: turn.taken]
        self.items += [item for item in taken if isinstance(item, work.EventEnqueued)]
        self.items = [item for item in self.items if item.seq not in turn.dequeued]
        return self._took(turn)

    def _took(self, turn: Turn) -> Turn:
        self.turns.append(turn)
        for reason, number in turn.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + number
        self.history.extend(stored(turn.events))
        if self.mode is Mode.CHECK and len(self.history) > 1:
            self._check()
        if turn.ending is not None:
            self.close()
        return turn

    def _check(self) -> None:
        other = self.replayed()
        assert other.length == len(self.history)
        assert other.ended == (self.ending is not None)
        assert other.close() == 0

    def close(self) -> int:
        """Throw the execution in memory away; returns what `Execution.close` does."""
        execution, self.execution = self.execution, None
        return execution.close() if execution is not None else 0

    def next_execution(self) -> None:
        """What follows ContinueAsNew: a new execution that has only its first event."""
        ending = self.ending
        assert isinstance(ending, events.OrchestrationContinuedAsNew)
        self.close()
        self.earlier.append(self.history)
        self.execution_id += 1
        first = started(self.orchestration, ending.input, ending.timestamp_ms, self.incarnation)
        self.history = stored([first])
        self.execution = self.replayed()

    def _lookup(self, name: str, version: str | None) -> AnyOrchestration | None:
        return self.orchestration if name == self.orchestration.name else None

    # What the world does.

    def completion(self, source: int, result: Any = None) -> work.AnyWorkItem:
        """The message that answers an activity or a child."""
        kind = work.SubOrchCompleted if self._is_child(source) else work.ActivityCompleted
        return kind(self.execution_id, source, raw(result))

    def failure(
        self, source: int, type: str = "ValueError", message: str = "no"
    ) -> work.AnyWorkItem:
        kind = work.SubOrchFailed if self._is_child(source) else work.ActivityFailed
        return kind(self.execution_id, source, events.Failure(type, message))

    def firing(self, source: int) -> work.TimerFired:
        timer = self.history[source - 1]
        assert isinstance(timer, events.TimerCreated)
        return work.TimerFired(self.execution_id, source, timer.fire_at_ms)

    def _is_child(self, source: int) -> bool:
        return isinstance(self.history[source - 1], events.SubOrchestrationScheduled)

    def complete(self, source: int, result: Any = None) -> Turn:
        return self.step(self.completion(source, result))

    def fail(self, source: int, type: str = "ValueError", message: str = "no") -> Turn:
        return self.step(self.failure(source, type, message))

    def fire(self, source: int) -> Turn:
        """Let time pass until a timer is due, and fire it."""
        item = self.firing(source)
        self.now_ms = max(self.now_ms, item.fire_at_ms)
        return self.step(item)

    def raise_event(self, name: str, data: Any = None) -> Turn:
        return self.step(work.ExternalRaised(name, raw(data)))

    def item(self, name: str, data: Any = None) -> work.EventEnqueued:
        """The message that brings an item of an event queue."""
        self.enqueued += 1
        return work.EventEnqueued(name, raw(data), self.enqueued)

    def enqueue(self, name: str, data: Any = None) -> Turn:
        return self.step(self.item(name, data))

    def cancel(self, reason: str = "") -> Turn:
        return self.step(work.CancelInstance(reason))

    def run(self, steps_max: int = 1_000) -> World:
        """Answer everything in order, timers last and by their due time, until the end.

        An activity or a child gives its input back; a wait is given its own name.
        """
        if not self.history:
            self.start()
        for _ in range(steps_max):
            if self.ending is not None or not self.open:
                return self
            self.answer(self._next_in_order())
        raise AssertionError(f"not ended after {steps_max} steps")

    def _next_in_order(self) -> int:
        def rank(source: int) -> tuple[int, int]:
            event = self.open[source]
            return (event.fire_at_ms if isinstance(event, events.TimerCreated) else 0, source)

        return min(self.open, key=rank)

    def answer(self, source: int) -> Turn:
        """Answer one open request with what its kind usually gets."""
        event = self.open[source]
        if isinstance(event, events.TimerCreated):
            return self.fire(source)
        if isinstance(event, events.ExternalSubscribed):
            return self.raise_event(event.name, event.name)
        if isinstance(event, events.QueueSubscribed):
            return self.enqueue(event.name, event.name)
        return self.complete(source, self.input_of(source))


def play(orchestration: AnyOrchestration, *args: Any, mode: Mode = Mode.RESIDENT) -> World:
    """Run an orchestration to its end, or to where it waits for what never comes."""
    return World(orchestration, *args, mode=mode).run()


def play_everywhere(orchestration: AnyOrchestration, *args: Any) -> World:
    """Play it in every mode; the histories must be the same, and replay."""
    worlds = [play(orchestration, *args, mode=mode) for mode in Mode]
    first = worlds[0]
    for other in worlds[1:]:
        assert lines(other.history) == lines(first.history)
    assert first.replayed().close() == 0
    for world in worlds:
        assert world.close() == 0
    return first
