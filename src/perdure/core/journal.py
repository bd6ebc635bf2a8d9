"""The journal of one execution: recorded events ahead of it, new events behind it.

The only place where replay is compared with the record. Its verdict is final: after the first
mismatch the journal is closed and the turn is thrown away, whatever the code catches.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import msgspec

from perdure.core import actions, events
from perdure.core.frames import calling_line
from perdure.errors import (
    HistoryLimitExceeded,
    NondeterminismError,
    NotInOrchestration,
    TurnLimitExceeded,
)
from perdure.limits import HISTORY_EVENTS_MAX, TURN_DECISIONS_MAX

Same = Callable[[bytes, bytes], bool]
"""Whether two encoded inputs mean the same; asked only when their bytes differ."""

REFUSALS_MAX = 1_000
MATCHED_SHOWN = 3
SHOWN_MAX = 200
_THE_END = "the end of the history"


class ExecutionClosed(BaseException):
    """Raised by every durable call of an execution that is being thrown away."""


INNOCENT = (KeyboardInterrupt, SystemExit, MemoryError, RecursionError)
"""What may end a turn without being its fault: the turn is run once more before it counts."""


class Verdict(msgspec.Struct, frozen=True):
    """Why a turn is refused and its instance blocked: one of the documented reasons."""

    reason: str
    error: Exception


class TurnRefused(Exception):
    """The turn is void and the instance is blocked with this verdict."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(str(verdict.error))
        self.verdict = verdict


class Journal:
    """next_id: the id of the next event, recorded or new. timestamp_ms: of the last stimulus.

    replaying: True until the first new stimulus. closed: nothing more is taken. loop: the one in
    which decisions may be made. suspended: the line that the code waits at, for reports.
    """

    __slots__ = (
        "actions",
        "closed",
        "decisions",
        "events",
        "loop",
        "next_id",
        "python",
        "recorded",
        "refusals",
        "replaying",
        "suspended",
        "timestamp_ms",
        "verdict",
    )

    loop: asyncio.AbstractEventLoop
    suspended: Callable[[], str]

    def __init__(self) -> None:
        self.recorded: Sequence[events.AnyEvent] = ()
        self.events: list[events.AnyEvent] = []
        self.actions: list[actions.AnyAction] = []
        self.next_id = 1
        self.timestamp_ms = 0
        self.decisions = 0
        self.refusals = 0
        self.replaying = False
        self.closed = False
        self.verdict: Verdict | None = None
        self.python = ""

    def begin_replay(self, recorded: Sequence[events.AnyEvent]) -> None:
        """Put a recorded history ahead. One of a single event is that of a first turn to come."""
        self.recorded = recorded
        self.replaying = len(recorded) > 1
        if recorded and isinstance(recorded[0], events.OrchestrationStarted):
            self.python = recorded[0].python

    def next_recorded(self) -> events.AnyEvent | None:
        """The recorded event that comes next, in replay."""
        if self.next_id > len(self.recorded):
            return None
        return self.recorded[self.next_id - 1]

    @property
    def last(self) -> events.AnyEvent:
        """The last event taken, recorded or new."""
        return self.events[-1] if self.events else self.recorded[self.next_id - 2]

    def recorded_stimulus(self) -> events.AnyEvent:
        """Take the next recorded event, which must be a stimulus."""
        event = self.recorded[self.next_id - 1]
        if event.event_id != self.next_id or not isinstance(event, events.STIMULI):
            self.mismatch(f"{describe(event)} with id {event.event_id}", "a damaged history")
        self.stimulus(event)
        while isinstance(self.next_recorded(), events.ParentLinked):
            self.next_id += 1
        return event

    def new_stimulus(self, event: events.AnyEvent) -> None:
        """Take a stimulus that is not recorded yet. Replay is over."""
        self.replaying = False
        self.recorded = ()
        self.stimulus(event)

    def stimulus(self, event: events.AnyEvent) -> None:
        self.next_id = event.event_id + 1
        self.timestamp_ms = event.timestamp_ms
        self.decisions = 0
        if not self.replaying:
            self.events.append(event)

    def check_inside(self) -> None:
        """Raises NotInOrchestration unless a turn of this execution is running on this thread."""
        if asyncio._get_running_loop() is not self.loop:
            raise NotInOrchestration(
                "an orchestration's context and futures are for its own code, while it runs; "
                "from elsewhere use a client, for example to raise an event"
            )

    def decide(self, action: actions.AnyAction, same: Same | None = None) -> None:
        """Take a decision: matched with the record in replay, appended otherwise.

        Raises NondeterminismError on a mismatch, LimitExceeded at a limit: in replay too, since
        the code may have caught it and gone on. Withdrawals and ContinueAsNew are exempt from the
        limits, so that an orchestration at a limit can still end.
        """
        self.check_inside()
        if self.closed:
            self.refuse()
            return
        if type(action) not in _UNLIMITED:
            self._check_limits()
        if self.next_id <= len(self.recorded):
            self._match(action, same)
        else:
            event = _EVENT_OF[type(action)](action, self.timestamp_ms)
            if self.replaying:
                self.mismatch(_THE_END, _shown(event))
            self.events.append(event)
            self.actions.append(action)
        self.decisions += 1
        self.next_id += 1

    def _match(self, action: actions.AnyAction, same: Same | None) -> None:
        recorded = self.recorded[self.next_id - 1]
        event = _EVENT_OF[type(action)](action, recorded.timestamp_ms)
        if not _equal(recorded, event, same):
            self.mismatch(_shown(recorded), _shown(event))

    def conclude(
        self, ending: events.AnyEvent, same: Same | None = None, location: str = ""
    ) -> None:
        """Take the event that ends the execution. location: the line that did, for a report."""
        recorded = self.next_recorded()
        if recorded is not None:
            if not _equal(recorded, ending, same):
                self.mismatch(_shown(recorded), _shown(ending), location)
        elif self.replaying:
            self.mismatch(_THE_END, _shown(ending), location)
        else:
            self.events.append(ending)
        self.next_id += 1
        self.closed = True

    def expect_idle(self) -> None:
        """In replay: refuse the turn if the next recorded event is a decision the code skipped."""
        event = self.next_recorded()
        if event is not None and not isinstance(event, events.STIMULI):
            self.mismatch(_shown(event), "no further decision", self.suspended())

    def expect_end(self) -> None:
        """In replay: refuse the turn if anything is recorded after the end."""
        event = self.next_recorded()
        if event is not None:
            self.mismatch(_shown(event), "the end of the execution", self.suspended())

    def judge(self, reason: str, error: Exception) -> None:
        """Close the journal with a verdict; the first one stands."""
        if self.verdict is None:
            self.verdict = Verdict(reason, error)
        self.closed = True

    def mismatch(
        self, expected: str, found: str, location: str = "", event_id: int | None = None
    ) -> NoReturn:
        """Close the journal with a verdict of nondeterminism, and raise the error."""
        event_id = self.next_id if event_id is None else event_id
        error = NondeterminismError(
            event_id=event_id,
            expected=expected,
            found=found,
            location=location or calling_line(sys._getframe(1)) or self.suspended(),
            matched=tuple(
                f"{event.event_id} {type(event).__name__}"
                for event in self.recorded[max(0, event_id - 1 - MATCHED_SHOWN) : event_id - 1]
            ),
            hint=self._version_hint(),
        )
        self.judge("nondeterminism", error)
        raise error

    def refuse(self) -> None:
        """Answer a durable call of a closed execution.

        Code that swallows the refusal for ever gets a future that never resolves instead, so that
        its next await hands control back and it can be parked.
        """
        self.refusals += 1
        if self.refusals <= REFUSALS_MAX:
            raise ExecutionClosed

    def take_new(self) -> tuple[list[events.AnyEvent], list[actions.AnyAction]]:
        """The events and actions since the last call."""
        new = (self.events, self.actions)
        self.events, self.actions = [], []
        return new

    def _check_limits(self) -> None:
        # Counted per stimulus, not per commit: how stimuli are batched is not in the record, and
        # replay must reach the limit at the same call.
        if self.decisions >= TURN_DECISIONS_MAX:
            raise TurnLimitExceeded(
                f"more than {TURN_DECISIONS_MAX:,} decisions without an await that waits; "
                "await some of them before making more"
            )
        if self.next_id >= HISTORY_EVENTS_MAX:
            raise HistoryLimitExceeded(
                f"the history has {HISTORY_EVENTS_MAX:,} events; watch ctx.history_length and "
                "continue as new earlier"
            )

    def _version_hint(self) -> str:
        here = python_minor()
        if self.python and self.python != here:
            return f"the history was made on Python {self.python}, this is {here}"
        return ""


def python_minor() -> str:
    """The interpreter's minor version, within which replay is promised: "3.11"."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def describe(event: events.AnyEvent) -> str:
    """An event in one line: kind and what tells it from its like."""
    parts = []
    for field in ("name", "instance", "version", "fire_at_ms", "source_event_id", "reason"):
        value = getattr(event, field, None)
        if value is not None:
            parts.append(f"{field}={value!r}")
    for field in ("input", "output"):
        raw = getattr(event, field, None)
        if raw is not None:
            parts.append(f"{field}={_cut(bytes(raw).decode('utf-8', 'replace'))}")
    error = getattr(event, "error", None)
    if isinstance(error, events.Failure):
        parts.append(f"error={_cut(f'{error.type}: {error.message}')!r}")
    return f"{type(event).__name__}({', '.join(parts)})"


def _shown(decision: events.AnyEvent) -> str:
    """As `describe`, but a timer by its delay, which is what the code wrote."""
    if isinstance(decision, events.TimerCreated):
        return f"TimerCreated(delay_ms={decision.fire_at_ms - decision.timestamp_ms})"
    return describe(decision)


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "…"


def _equal(recorded: events.AnyEvent, found: events.AnyEvent, same: Same | None) -> bool:
    if type(recorded) is not type(found):
        return False
    if isinstance(recorded, events.TimerCreated):
        assert isinstance(found, events.TimerCreated)
        return recorded.fire_at_ms == found.fire_at_ms
    for field in recorded.__struct_fields__:
        one, other = getattr(recorded, field), getattr(found, field)
        if one == other or field in _NOT_COMPARED:
            continue
        if not isinstance(one, msgspec.Raw) or not isinstance(other, msgspec.Raw):
            return False
        if bytes(one) == bytes(other):
            continue
        if same is None or not same(bytes(one), bytes(other)):
            return False
    return True


# A failure's text may hold addresses and line numbers: that it failed is the decision.
_NOT_COMPARED = {"event_id", "timestamp_ms", "error"}

# An orchestration at a limit must still be able to end.
_UNLIMITED = (actions.Cancel, actions.ContinueAsNew)

_CANCELLED: dict[type[actions.Action], Any] = {
    actions.CallActivity: events.ActivityCancelled,
    actions.CreateTimer: events.TimerCancelled,
    actions.WaitExternal: events.ExternalUnsubscribed,
    actions.DequeueEvent: events.QueueUnsubscribed,
    actions.StartSubOrchestration: events.SubOrchestrationCancelled,
}

_EVENT_OF: dict[type[Any], Callable[[Any, int], events.AnyEvent]] = {
    actions.CallActivity: lambda a, at: events.ActivityScheduled(a.id, at, a.name, a.input),
    actions.CreateTimer: lambda a, at: events.TimerCreated(a.id, at, at + a.delay_ms),
    actions.WaitExternal: lambda a, at: events.ExternalSubscribed(a.id, at, a.name),
    actions.DequeueEvent: lambda a, at: events.QueueSubscribed(a.id, at, a.name),
    actions.StartSubOrchestration: lambda a, at: events.SubOrchestrationScheduled(
        a.id, at, a.name, a.instance, a.input, a.version
    ),
    actions.StartOrchestrationDetached: lambda a, at: events.OrchestrationChained(
        a.id, at, a.name, a.instance, a.input, a.version
    ),
    actions.ContinueAsNew: lambda a, at: events.OrchestrationContinuedAsNew(
        a.id, at, a.input, a.version
    ),
    actions.Cancel: lambda a, at: _CANCELLED[a.kind](a.id, at, a.source),
}
