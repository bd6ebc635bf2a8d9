"""One execution of an orchestration: history and messages in, events and actions out.

Live is replay with one more event: recorded and new stimuli go through the same `_apply`.
Stimuli are delivered one at a time, and after each the loop runs until it is idle.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import msgspec

from perdure.codec import same_value
from perdure.core import actions, events, failures, work
from perdure.core.actions import AnyAction
from perdure.core.context import OrchestrationContext
from perdure.core.events import AnyEvent
from perdure.core.futures import DurableFuture, DurableTimer
from perdure.core.journal import ExecutionClosed, Journal, TurnRefused
from perdure.core.loop import DeterministicLoop
from perdure.core.marked import Info, Lookup, MarkedOrchestration
from perdure.core.unwinding import unwind
from perdure.errors import (
    ActivityError,
    ForbiddenOperation,
    NondeterminismError,
    PayloadError,
    SubOrchestrationError,
    TurnLimitExceeded,
)

INNOCENT = (KeyboardInterrupt, SystemExit, MemoryError, RecursionError)
"""What may end a turn without being its fault: the turn is run once more before it counts."""

logger = logging.getLogger("perdure.orchestration")


class TurnInterrupted(Exception):
    """The turn ended in one of INNOCENT and is void; run it again with `repeated=True`."""


class Turn(msgspec.Struct, frozen=True):
    """What one step gave.

    taken: how many of the work items were looked at before the execution ended (the rest are
    unread). dropped: of the taken ones, how many had no effect, by reason.
    ending: the last event, if it ended the execution.
    """

    events: list[AnyEvent]
    actions: list[AnyAction]
    taken: int
    dropped: dict[str, int]
    ending: AnyEvent | None


class Execution:
    """Drives one orchestration function. Not thread-safe; makes no I/O.

    repeated: record a KeyboardInterrupt, SystemExit, MemoryError or RecursionError as a failure
    instead of interrupting the turn.
    """

    def __init__(
        self,
        orchestration: MarkedOrchestration,
        info: Info,
        lookup: Lookup,
        *,
        repeated: bool = False,
    ) -> None:
        self.info = info
        self.journal = Journal()
        self._orchestration = orchestration
        self._repeated = repeated
        self._interrupted: BaseException | None = None
        self._ending: events.AnyEvent | None = None
        self._cancel_reason: str | None = None
        self._main: asyncio.Task[Any] | None = None
        self._context_vars = contextvars.Context()
        self.context = OrchestrationContext(
            info, self.journal, orchestration, lookup, self._continued
        )
        # Abstract only to the type checker: what it refuses is added to it in a loop.
        self._loop = DeterministicLoop(self, self.context)  # type: ignore[abstract]
        self.context._loop = self._loop

    @property
    def ended(self) -> bool:
        """True once the execution has its last event."""
        return self._ending is not None

    @property
    def length(self) -> int:
        """Events in the history, recorded and new."""
        return self.journal.next_id - 1

    def replay(self, recorded: Sequence[events.AnyEvent]) -> None:
        """Repeat a recorded history, checking each decision.

        Raises TurnRefused with the verdict if the code does not do what is recorded.
        A history that holds only OrchestrationStarted is one whose first turn is still to come:
        it is run, and its decisions are new.
        """
        journal = self.journal
        journal.recorded = recorded
        journal.replaying = len(recorded) > 1
        if recorded and isinstance(recorded[0], events.OrchestrationStarted):
            journal.python = recorded[0].python
        outer = self._loop.enter()
        try:
            while journal.next_id <= len(recorded):
                event = recorded[journal.next_id - 1]
                journal.stimulus(event)
                self._apply(event)
        finally:
            self._loop.leave(outer)
        if not journal.replaying:
            journal.events.pop(0)

    def step(
        self,
        items: Sequence[work.AnyWorkItem],
        now_ms: int,
        started: events.OrchestrationStarted | None = None,
    ) -> Turn:
        """One turn: `started` (of an execution without history), then each work item in order.

        now_ms: the store's time at the beginning of the turn. Raises TurnRefused if the turn is
        void and the instance blocked, TurnInterrupted if it is void and to be repeated; the
        execution must then be closed.
        """
        journal = self.journal
        dropped: dict[str, int] = {}
        taken = 0
        outer = self._loop.enter()
        try:
            if started is not None:
                self._deliver(started)
            for item in items:
                if self._ending is not None:
                    break
                taken += 1
                stimulus = self._stimulus(item, max(now_ms, journal.timestamp_ms))
                if isinstance(stimulus, str):
                    dropped[stimulus] = dropped.get(stimulus, 0) + 1
                else:
                    self._deliver(stimulus)
        finally:
            self._loop.leave(outer)
        new_events, new_actions = journal.take_new()
        return Turn(new_events, new_actions, taken, dropped, self._ending)

    def close(self) -> int:
        """Throw the execution away. What its `finally` blocks do then has no effect.

        Returns how many coroutines refused to end (they are parked).
        """
        self.journal.closed = True
        stubborn = unwind(self._loop, self._context_vars)
        self.context.forget()
        self._main = None
        return stubborn

    def location(self) -> str:
        """Where the main task is suspended: file, line and function."""
        awaiting: Any = self._main.get_coro() if self._main else None
        found = ""
        while awaiting is not None:
            frame = getattr(awaiting, "cr_frame", None) or getattr(awaiting, "gi_frame", None)
            if frame is not None and not frame.f_globals.get("__name__", "").startswith(
                ("perdure.", "asyncio.")
            ):
                code = frame.f_code
                found = f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}"
            awaiting = getattr(awaiting, "cr_await", None) or getattr(
                awaiting, "gi_yieldfrom", None
            )
        return found

    # From work item to stimulus.

    def _stimulus(self, item: work.AnyWorkItem, now_ms: int) -> events.AnyEvent | str:
        """The event that records the item, or why it is dropped."""
        event_id = self.journal.next_id
        if isinstance(item, work.ExternalRaised):
            wait = self.context.waiting(item.name)
            if wait is None:
                return "no_subscription"
            return events.ExternalEvent(event_id, now_ms, wait.event_id, item.name, item.data)
        if isinstance(item, work.CancelInstance):
            if self._cancel_reason is not None:
                return "duplicate_cancel"
            return events.CancelRequested(event_id, now_ms, item.reason)
        if isinstance(item, work.Unreadable):
            return "unreadable"
        if item.execution_id != self.info.execution_id:
            return "stale_execution"
        request = self.context.open_request(item.source_event_id)
        if request is None or request.done():
            return "late_completion"
        if _REQUEST_OF[type(item)] is not getattr(request, "kind", actions.CreateTimer):
            return "unexpected_kind"
        return _EVENT_OF[type(item)](event_id, now_ms, item)

    def _deliver(self, event: events.AnyEvent) -> None:
        self.journal.replaying = False
        self.journal.stimulus(event)
        self._apply(event)

    # From stimulus to decisions.

    def _apply(self, event: events.AnyEvent) -> None:
        self._loop.now_ms = event.timestamp_ms
        try:
            _HANDLERS[type(event)](self, event)
            self._loop.run_until_idle()
        except TurnLimitExceeded as error:
            self._conclude(
                events.OrchestrationFailed(
                    self.journal.next_id, event.timestamp_ms, failures.record(error)
                )
            )
        except INNOCENT as error:
            if self._repeated:
                self._fail(error)
            else:
                self._interrupt(error)
        if self.journal.verdict is not None:
            raise TurnRefused(self.journal.verdict)
        if self._interrupted is not None:
            raise TurnInterrupted(repr(self._interrupted))
        if self._ending is None:
            try:
                self.journal.expect_idle(self.location)
            except NondeterminismError:
                assert self.journal.verdict is not None
                raise TurnRefused(self.journal.verdict) from None

    def _start(self, event: events.OrchestrationStarted) -> None:
        signature = self._orchestration.signature
        try:
            args, kwargs = signature.unbind(bytes(event.input))
        except PayloadError as error:
            if self.journal.replaying:
                self._incompatible(error)
            self._fail(error)
            return
        if self._orchestration.takes_context:
            args = (self.context, *args)
        main = self._run(args, kwargs)
        self._main = self._loop.create_task(main, name="main", context=self._context_vars)

    async def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            result = await self._orchestration.function(*args, **kwargs)
        except BaseException as error:
            if not self.journal.closed:
                self._raised(error)
        else:
            if not self.journal.closed:
                self._returned(result)

    def _returned(self, result: Any) -> None:
        codec = self._orchestration.signature.result
        try:
            output = msgspec.Raw(codec.encode(result))
        except PayloadError as error:
            self._fail(error)
            return
        self._conclude(
            events.OrchestrationCompleted(self.journal.next_id, self.journal.timestamp_ms, output),
            functools.partial(same_value, codec),
        )

    def _raised(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError) and self._cancel_reason is not None:
            for child in self.context.open_children():
                child.cancel()
            self._conclude(
                events.OrchestrationCancelled(
                    self.journal.next_id, self.journal.timestamp_ms, self._cancel_reason
                )
            )
        elif isinstance(error, RuntimeError) and "attached to a different loop" in str(error):
            # asyncio's own words for awaiting a future of the host's loop.
            try:
                self.refuse("awaiting a future of another loop", "an activity")
            except ForbiddenOperation:
                return
        elif isinstance(error, INNOCENT) and not self._repeated:
            self._interrupt(error)
        else:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._conclude(
            events.OrchestrationFailed(
                self.journal.next_id, self.journal.timestamp_ms, failures.record(error)
            )
        )

    def _conclude(
        self, ending: events.AnyEvent, same: Callable[[bytes, bytes], bool] | None = None
    ) -> None:
        """End with the task step that got here; nothing of the execution runs after it."""
        try:
            self.journal.conclude(ending, same)
        except NondeterminismError:
            return
        self._ending = ending
        self.journal.closed = True

    def _continued(self) -> None:
        self.journal.closed = True
        if self.journal.events:
            self._ending = self.journal.events[-1]
        else:
            self._ending = self.journal.recorded[-1]

    def _interrupt(self, error: BaseException) -> None:
        self._interrupted = error
        self.journal.closed = True

    def _cancel(self, event: events.CancelRequested) -> None:
        self._cancel_reason = event.reason
        if self._main is not None:
            self._main.cancel(event.reason or None)

    def _complete(self, event: events.ActivityCompleted | events.SubOrchestrationCompleted) -> None:
        self._resolve(event.source_event_id, event.result)

    def _external(self, event: events.ExternalEvent) -> None:
        self._resolve(event.source_event_id, event.data)

    def _resolve(self, source: int, payload: msgspec.Raw) -> None:
        future = self._requested(source)
        try:
            value = future.codec.decode(payload)
        except PayloadError as error:
            self._incompatible(error)
        if not future.done():
            future.set_result(value)

    def _activity_failed(self, event: events.ActivityFailed) -> None:
        future = self._requested(event.source_event_id)
        future.set_exception(failures.rebuild(event.error, ActivityError, future.raises))

    def _child_failed(self, event: events.SubOrchestrationFailed) -> None:
        future = self._requested(event.source_event_id)
        future.set_exception(failures.rebuild(event.error, SubOrchestrationError, ()))

    def _requested(self, source: int) -> DurableFuture[Any]:
        future = self.context.take(source)
        if not isinstance(future, DurableFuture):
            self._unasked(source)
        return future

    def _timer(self, event: events.TimerFired) -> None:
        timer = self.context.take(event.source_event_id)
        if isinstance(timer, DurableTimer):
            timer.fire()
        elif isinstance(timer, DurableFuture):
            timer.set_result(None)
        else:
            self._unasked(event.source_event_id)

    def _unasked(self, source: int) -> NoReturn:
        """A recorded stimulus answers something that this code did not ask for, or took back."""
        error = NondeterminismError(
            event_id=self.journal.next_id - 1,
            expected=f"an answer to event {source}",
            found="code that does not wait for it",
            location=self.location(),
        )
        self.journal.judge("nondeterminism", error)
        raise TurnRefused(self.journal.verdict)  # type: ignore[arg-type]

    def _incompatible(self, error: PayloadError) -> NoReturn:
        self.journal.judge("incompatible_payload", error)
        raise TurnRefused(self.journal.verdict)  # type: ignore[arg-type]

    def _linked(self, event: events.ParentLinked) -> None:
        """Old histories carry the parent link as an event of its own; nothing to do."""

    # What the loop asks of its host.

    def refuse(self, operation: str, instead: str) -> NoReturn:
        self.context.refuse(operation, instead)

    def create_timer(self, delay_s: float, fire: Callable[[], object]) -> DurableTimer:
        return self.context.create_timer(delay_s, fire)

    def report(self, context: dict[str, Any]) -> None:
        """asyncio's note of an exception that nobody retrieves: logged once, not at replay."""
        journal = self.journal
        error = context.get("exception")
        if journal.closed or journal.replaying or isinstance(error, ExecutionClosed):
            return
        logger.error(
            "instance %s: %s", self.info.instance_id, context.get("message", ""), exc_info=error
        )


_REQUEST_OF: dict[type[Any], type[actions.Action]] = {
    work.ActivityCompleted: actions.CallActivity,
    work.ActivityFailed: actions.CallActivity,
    work.TimerFired: actions.CreateTimer,
    work.SubOrchCompleted: actions.StartSubOrchestration,
    work.SubOrchFailed: actions.StartSubOrchestration,
}
_EVENT_OF: dict[type[Any], Callable[[int, int, Any], events.AnyEvent]] = {
    work.ActivityCompleted: lambda id, at, item: events.ActivityCompleted(
        id, at, item.source_event_id, item.result
    ),
    work.ActivityFailed: lambda id, at, item: events.ActivityFailed(
        id, at, item.source_event_id, item.error
    ),
    # Never before its time, whatever the clocks say.
    work.TimerFired: lambda id, at, item: events.TimerFired(
        id, max(at, item.fire_at_ms), item.source_event_id, item.fire_at_ms
    ),
    work.SubOrchCompleted: lambda id, at, item: events.SubOrchestrationCompleted(
        id, at, item.source_event_id, item.result
    ),
    work.SubOrchFailed: lambda id, at, item: events.SubOrchestrationFailed(
        id, at, item.source_event_id, item.error
    ),
}
_HANDLERS: dict[type[Any], Callable[[Execution, Any], None]] = {
    events.OrchestrationStarted: Execution._start,
    events.CancelRequested: Execution._cancel,
    events.ActivityCompleted: Execution._complete,
    events.ActivityFailed: Execution._activity_failed,
    events.TimerFired: Execution._timer,
    events.ExternalEvent: Execution._external,
    events.SubOrchestrationCompleted: Execution._complete,
    events.SubOrchestrationFailed: Execution._child_failed,
    events.ParentLinked: Execution._linked,
}
