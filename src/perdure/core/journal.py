"""The journal of one execution: recorded events ahead of it, new events behind it.

The only place where replay is compared with the record. Its verdict is final: after the first
mismatch the journal is closed and the turn is thrown away, whatever the code catches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import msgspec

from perdure.core import actions, events
from perdure.errors import HistoryLimitExceeded, NondeterminismError, TurnLimitExceeded
from perdure.limits import HISTORY_EVENTS_MAX, TURN_DECISIONS_MAX

Same = Callable[[bytes, bytes], bool]
"""Whether two encoded inputs mean the same; asked only when their bytes differ."""

REFUSALS_MAX = 1_000


class ExecutionClosed(BaseException):
    """Raised by every durable call of an execution that is being thrown away."""


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

    replaying: True until the first new stimulus. closed: nothing more is taken.
    """

    __slots__ = (
        "actions",
        "closed",
        "decisions",
        "events",
        "next_id",
        "python",
        "recorded",
        "refusals",
        "replaying",
        "timestamp_ms",
        "verdict",
    )

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

    def stimulus(self, event: events.AnyEvent) -> None:
        """Take the next stimulus, recorded or new."""
        self.next_id = event.event_id + 1
        self.timestamp_ms = event.timestamp_ms
        self.decisions = 0
        if not self.replaying:
            self.events.append(event)

    def decide(self, action: actions.AnyAction, same: Same | None = None) -> None:
        """Take a decision: matched with the record in replay, appended otherwise.

        Raises NondeterminismError on a mismatch, LimitExceeded at a limit. Withdrawals are exempt
        from the limits, so that an orchestration at a limit can still end.
        """
        if self.closed:
            self.refuse()
        if self.next_id <= len(self.recorded):
            self._match(action, same)
        elif self.replaying:
            self._mismatch("the end of the history", action)
        else:
            if type(action) is not actions.Cancel:
                self._check_limits()
            self.events.append(_EVENT_OF[type(action)](action, self.timestamp_ms))
            self.actions.append(action)
        self.decisions += 1
        self.next_id += 1

    def conclude(self, ending: events.AnyEvent, same: Same | None = None) -> None:
        """Take the event that ends the execution."""
        if self.next_id <= len(self.recorded):
            recorded = self.recorded[self.next_id - 1]
            if not _equal(recorded, ending, same):
                self._mismatch(describe(recorded), ending)
        elif self.replaying:
            self._mismatch("the end of the history", ending)
        else:
            self.events.append(ending)
        self.next_id += 1

    def expect_idle(self, location: Callable[[], str]) -> None:
        """In replay: refuse the turn if the next recorded event is a decision the code skipped."""
        if self.next_id <= len(self.recorded):
            event = self.recorded[self.next_id - 1]
            if not isinstance(event, events.STIMULI):
                self._mismatch(describe(event), None, location())

    def judge(self, reason: str, error: Exception) -> None:
        """Close the journal with a verdict; the first one stands."""
        if self.verdict is None:
            self.verdict = Verdict(reason, error)
        self.closed = True

    def refuse(self) -> None:
        """Answer a durable call of a closed execution.

        Code that swallows the refusal for ever gets a future that never resolves instead (see
        ExecutionContext), so that its next await hands control back and it can be parked.
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

    def _match(self, action: actions.AnyAction, same: Same | None) -> None:
        recorded = self.recorded[self.next_id - 1]
        expected = _EVENT_OF[type(action)](action, recorded.timestamp_ms)
        if not _equal(recorded, expected, same):
            self._mismatch(describe(recorded), action)

    def _mismatch(self, expected: str, found: object, location: str | None = None) -> NoReturn:
        error = NondeterminismError(
            event_id=self.next_id,
            expected=expected,
            found=describe(found) if found is not None else "no further decision",
            location=user_location() if location is None else location,
            matched=tuple(
                f"{event.event_id} {type(event).__name__}"
                for event in self.recorded[max(0, self.next_id - 4) : self.next_id - 1]
            ),
            hint=self._version_hint(),
        )
        self.judge("nondeterminism", error)
        raise error

    def _version_hint(self) -> str:
        here = python_minor()
        if self.python and self.python != here:
            return f"the history was made on Python {self.python}, this is {here}"
        return ""


def python_minor() -> str:
    """The interpreter's minor version, within which replay is promised: "3.11"."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def describe(thing: object) -> str:
    """An event or action in one line: kind and what tells it from its like."""
    parts = []
    for field in (
        "name",
        "instance",
        "version",
        "fire_at_ms",
        "delay_ms",
        "source",
        "source_event_id",
    ):
        value = getattr(thing, field, None)
        if value is not None:
            parts.append(f"{field}={value!r}")
    for field in ("input", "output"):
        raw = getattr(thing, field, None)
        if raw is not None:
            text = bytes(raw).decode("utf-8", "replace")
            parts.append(f"{field}={text if len(text) <= 200 else text[:200] + '…'}")
    return f"{type(thing).__name__}({', '.join(parts)})"


def user_location() -> str:
    """The innermost source line that is neither Perdure's nor asyncio's."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(("perdure.", "asyncio.")) and module != "perdure":
            code = frame.f_code
            return f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return ""


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

_CANCELLED: dict[type[actions.Action], Any] = {
    actions.CallActivity: events.ActivityCancelled,
    actions.CreateTimer: events.TimerCancelled,
    actions.WaitExternal: events.ExternalUnsubscribed,
    actions.StartSubOrchestration: events.SubOrchestrationCancelled,
}

_EVENT_OF: dict[type[Any], Callable[[Any, int], events.AnyEvent]] = {
    actions.CallActivity: lambda a, at: events.ActivityScheduled(a.id, at, a.name, a.input),
    actions.CreateTimer: lambda a, at: events.TimerCreated(a.id, at, at + a.delay_ms),
    actions.WaitExternal: lambda a, at: events.ExternalSubscribed(a.id, at, a.name),
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
