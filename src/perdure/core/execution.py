"""One execution of an orchestration: history and messages in, events and actions out.

Live is replay with one more event: recorded and new stimuli go through the same `_apply`.
Stimuli are delivered one at a time, and after each the loop runs until it is idle.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import msgspec

from perdure.codec import same_value
from perdure.core import actions, events, failures, frames, work
from perdure.core.actions import AnyAction
from perdure.core.context import OrchestrationContext
from perdure.core.events import AnyEvent
from perdure.core.futures import DurableFuture, DurableTimer
from perdure.core.journal import (
    INNOCENT,
    ExecutionClosed,
    Journal,
    TurnRefused,
    describe,
)
from perdure.core.loop import DeterministicLoop
from perdure.core.mailbox import Mailbox
from perdure.core.marked import Info, Lookup, MarkedOrchestration
from perdure.core.requests import Request, Requests
from perdure.core.stimuli import EVENT_OF, REQUEST_OF, Completion
from perdure.core.unwinding import unwind
from perdure.errors import (
    ActivityError,
    ForbiddenOperation,
    NondeterminismError,
    PayloadError,
    SubOrchestrationError,
    TurnLimitExceeded,
)

logger = logging.getLogger("perdure.orchestration")


class TurnInterrupted(Exception):
    """The turn ended in one of INNOCENT and is void; run it again with `repeated=True`."""


class Turn(msgspec.Struct, frozen=True):
    """What one step gave.

    taken: how many of the work items were looked at before the execution ended (the rest are
    unread). dropped: of the taken ones, how many had no effect, by reason.
    dequeued: the seq of each item of an event queue that was given to the code.
    ending: the last event, if it ended the execution.
    """

    events: list[AnyEvent]
    actions: list[AnyAction]
    taken: int
    dropped: dict[str, int]
    dequeued: list[int]
    ending: AnyEvent | None


class Execution:
    """Drives one orchestration function. Not thread-safe; makes no I/O.

    mailbox: the instance's, from which this execution takes and which it leaves to the next one.
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
        mailbox: Mailbox | None = None,
    ) -> None:
        self.info = info
        self.mailbox = mailbox or Mailbox()
        self.journal = Journal()
        self.requests = Requests(self.journal)
        self._orchestration = orchestration
        self._repeated = repeated
        self._interrupted: BaseException | None = None
        self._ending: events.AnyEvent | None = None
        self._cancel_reason: str | None = None
        self._main: asyncio.Task[Any] | None = None
        self._context_vars = contextvars.Context()
        self.context = OrchestrationContext(
            info, self.journal, self.requests, orchestration, lookup, self._continued
        )
        # Abstract only to the type checker: what it refuses is added to it in a loop.
        self._loop = DeterministicLoop(self, self.context)  # type: ignore[abstract]
        self.context._loop = self.journal.loop = self._loop
        self.journal.suspended = self.location

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

        Raises TurnRefused with the verdict if the code does not do what is recorded, or if no
        execution can have recorded it. A history that holds only OrchestrationStarted is one whose
        first turn is still to come: it is run, and its decisions are new.
        """
        journal = self.journal
        journal.begin_replay(recorded)
        outer = self._loop.enter()
        try:
            while self._ending is None and journal.next_recorded() is not None:
                self._apply(journal.recorded_stimulus())
            if self._ending is not None:
                journal.expect_end()
        except NondeterminismError:
            self._check_void()
        finally:
            self._loop.leave(outer)
        if len(recorded) == 1:
            # It counted as new, and is in the store already.
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
            dequeued = self._dequeue(now_ms)
            for item in items:
                if self._ending is not None:
                    break
                taken += 1
                stimulus = self._stimulus(item, max(now_ms, journal.timestamp_ms))
                if isinstance(stimulus, str):
                    dropped[stimulus] = dropped.get(stimulus, 0) + 1
                elif stimulus is not None:
                    self._deliver(stimulus)
                if self.requests.dequeues:
                    dequeued += self._dequeue(now_ms)
        finally:
            self._loop.leave(outer)
        new_events, new_actions = journal.take_new()
        return Turn(new_events, new_actions, taken, dropped, dequeued, self._ending)

    def _dequeue(self, now_ms: int) -> list[int]:
        """Hand out items of event queues as long as one is waited for; which, by seq."""
        taken: list[int] = []
        waits = self.requests.dequeues
        while waits and self._ending is None:
            item = self.mailbox.take_first(waits)
            if item is None:
                break
            taken.append(item.seq)
            journal = self.journal
            self._deliver(
                events.QueueEvent(
                    journal.next_id,
                    max(now_ms, journal.timestamp_ms),
                    waits[item.name][0].event_id,
                    item.name,
                    item.data,
                )
            )
        return taken

    def close(self) -> int:
        """Throw the execution away. What its `finally` blocks do then has no effect.

        Returns how many coroutines refused to end (they are parked).
        """
        self.journal.closed = True
        stubborn = unwind(self._loop, self._context_vars)
        self.requests.forget()
        self._main = None
        return stubborn

    def location(self) -> str:
        """The line at which the main task is suspended, else where its function is defined."""
        waiting = frames.suspended_line(self._main.get_coro()) if self._main else ""
        return waiting or frames.defining_line(self._orchestration.function)

    # From work item to stimulus.

    def _stimulus(self, item: work.AnyWorkItem, now_ms: int) -> events.AnyEvent | str | None:
        """The event that records the item, or why it is dropped; None if it is only kept."""
        event_id = self.journal.next_id
        if isinstance(item, work.ExternalRaised):
            wait = self.requests.oldest_wait(item.name)
            if wait is None:
                return "no_subscription"
            return events.ExternalEvent(event_id, now_ms, wait.event_id, item.name, item.data)
        if isinstance(item, work.EventEnqueued):
            self.mailbox.put(item)
            return None
        if isinstance(item, work.CancelInstance):
            if self._cancel_reason is not None:
                return "duplicate_cancel"
            return events.CancelRequested(event_id, now_ms, item.reason)
        if isinstance(item, work.Unreadable):
            return "unreadable"
        if item.execution_id != self.info.execution_id:
            return "stale_execution"
        request = self.requests.get(item.source_event_id)
        if request is None or request.done():
            return "late_completion"
        if REQUEST_OF[type(item)] is not request.kind:
            return "unexpected_kind"
        return EVENT_OF[type(item)](event_id, now_ms, item)

    def _deliver(self, event: events.AnyEvent) -> None:
        self.journal.new_stimulus(event)
        self._apply(event)

    # From stimulus to decisions.

    def _apply(self, event: events.AnyEvent) -> None:
        """Let the code react to a stimulus until it is idle."""
        journal = self.journal
        self._loop.now_ms = event.timestamp_ms
        try:
            # Decoding runs the user's constructors: they too see the execution's own context.
            self._context_vars.run(_HANDLERS[type(event)], self, event)
            self._loop.run_until_idle()
            if not journal.closed:
                journal.expect_idle()
        except NondeterminismError:
            assert journal.verdict is not None
        except TurnLimitExceeded as error:
            self._fail(error)
        except INNOCENT as error:
            self._raised(error)
        if journal.closed:
            self._check_void()

    def _check_void(self) -> None:
        if self.journal.verdict is not None:
            raise TurnRefused(self.journal.verdict) from None
        if self._interrupted is not None:
            raise TurnInterrupted(repr(self._interrupted))

    def _start(self, event: events.OrchestrationStarted) -> None:
        if self._main is not None:
            self._unasked(event)
        signature = self._orchestration.signature
        try:
            args, kwargs = signature.unbind(event.input)
        except PayloadError as error:
            self._misfit(error)
            return
        if self._orchestration.takes_context:
            args = (self.context, *args)
        main = self._run(args, kwargs)
        self._main = self._loop.create_task(main, name="main", context=self._context_vars)

    async def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            result = await self._orchestration.function(*args, **kwargs)
        except BaseException as error:
            self._raised(error)
        else:
            self._returned(result)

    def _returned(self, result: Any) -> None:
        if self._is_over():
            return
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

    def _is_over(self) -> bool:
        # An execution that nobody closed may come to its end in the garbage collector.
        return self.journal.closed or not self._loop.is_running()

    def _raised(self, error: BaseException) -> None:
        if self._is_over():
            return
        if _is_innocent(error) and not self._repeated:
            self._interrupted = error
            self.journal.closed = True
        elif isinstance(error, asyncio.CancelledError) and self._cancel_reason is not None:
            for child in self.requests.children():
                child.cancel()
            self._conclude(
                events.OrchestrationCancelled(
                    self.journal.next_id, self.journal.timestamp_ms, self._cancel_reason
                )
            )
        else:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._conclude(
            events.OrchestrationFailed(
                self.journal.next_id, self.journal.timestamp_ms, failures.record(error)
            ),
            location=frames.raising_line(error),
        )

    def _conclude(
        self,
        ending: events.AnyEvent,
        same: Callable[[bytes, bytes], bool] | None = None,
        location: str = "",
    ) -> None:
        """End with the task step that got here; nothing of the execution runs after it."""
        try:
            self.journal.conclude(ending, same, location)
        except NondeterminismError:
            return
        self._ending = ending

    def _continued(self) -> None:
        self._ending = self.journal.last
        self.journal.closed = True

    def _misfit(self, error: PayloadError) -> None:
        """New input that does not fit its type fails the execution; recorded input that no longer
        does blocks it, since the right code heals that."""
        journal = self.journal
        if journal.replaying and not isinstance(
            journal.next_recorded(), events.OrchestrationFailed
        ):
            journal.judge("incompatible_payload", error)
        else:
            self._fail(error)

    # What each stimulus does.

    def _cancel(self, event: events.CancelRequested) -> None:
        self._cancel_reason = event.reason
        if self._main is not None:
            self._main.cancel(event.reason or None)

    def _completed(self, event: events.ActivityCompleted) -> None:
        self._resolve(self._future(event, actions.CallActivity), event.result)

    def _child_completed(self, event: events.SubOrchestrationCompleted) -> None:
        self._resolve(self._future(event, actions.StartSubOrchestration), event.result)

    def _resolve(self, future: DurableFuture[Any], payload: msgspec.Raw) -> None:
        try:
            value = future.codec.decode(payload)
        except PayloadError as error:
            self.journal.judge("incompatible_payload", error)
        else:
            future.set_result(value)

    def _external(self, event: events.ExternalEvent) -> None:
        self._event(event, self._future(event, actions.WaitExternal))

    def _dequeued(self, event: events.QueueEvent) -> None:
        self._event(event, self._future(event, actions.DequeueEvent))

    def _event(
        self, event: events.ExternalEvent | events.QueueEvent, future: DurableFuture[Any]
    ) -> None:
        if future.name != event.name:
            self._unasked(event)
        try:
            value = future.codec.decode(event.data)
        except PayloadError as error:
            self._misfit(error)
        else:
            future.set_result(value)

    def _failed(self, event: events.ActivityFailed) -> None:
        future = self._future(event, actions.CallActivity)
        kind = failures.BY_ENGINE.get(event.error.type, ActivityError)
        error = failures.rebuild(event.error, kind, future.raises)
        if isinstance(error, ActivityError):
            error.attempts = event.attempts
        future.set_exception(error)

    def _child_failed(self, event: events.SubOrchestrationFailed) -> None:
        future = self._future(event, actions.StartSubOrchestration)
        future.set_exception(failures.rebuild(event.error, SubOrchestrationError))

    def _timer(self, event: events.TimerFired) -> None:
        timer = self._answered(event, actions.CreateTimer)
        if isinstance(timer, DurableTimer):
            timer.fire()
        else:
            timer.set_result(None)

    def _future(self, event: Completion, kind: type[actions.Action]) -> DurableFuture[Any]:
        request = self._answered(event, kind)
        assert isinstance(request, DurableFuture)
        return request

    def _answered(self, event: Completion, kind: type[actions.Action]) -> Request:
        request = self.requests.take(event.source_event_id)
        if request is None or request.kind is not kind or request.done():
            self._unasked(event)
        return request

    def _unasked(self, event: events.AnyEvent) -> NoReturn:
        """A recorded stimulus answers something that this code did not ask for, or took back."""
        self.journal.mismatch(
            describe(event), "code that does not wait for it", event_id=event.event_id
        )

    # What the loop asks of its host.

    def refuse(self, operation: str, instead: str, location: str = "") -> None:
        if self.journal.closed:
            self.journal.refuse()
            return
        where = location or frames.calling_line(sys._getframe(1)) or self.location()
        error = ForbiddenOperation(
            f"{operation} is not deterministic and not allowed in an orchestration; "
            f"use {instead} (at {where})"
        )
        self.journal.judge("forbidden_operation", error)
        raise error

    def create_timer(self, delay_s: float, fire: Callable[[], object]) -> DurableTimer:
        return self.requests.create_timer(delay_s, fire)

    def report(self, context: dict[str, Any]) -> None:
        """asyncio's note of an exception that nobody retrieves: logged once, not at replay."""
        journal = self.journal
        error = context.get("exception")
        if journal.closed or journal.replaying or isinstance(error, _OF_NO_INTEREST):
            return
        logger.error(
            "instance %s: %s", self.info.instance_id, context.get("message", ""), exc_info=error
        )


# A cancelled gather has the one as its exception, not as its state.
_OF_NO_INTEREST = (asyncio.CancelledError, ExecutionClosed)


def _is_innocent(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(INNOCENT) is not None
    return isinstance(error, INNOCENT)


_HANDLERS: dict[type[Any], Callable[[Execution, Any], None]] = {
    events.OrchestrationStarted: Execution._start,
    events.CancelRequested: Execution._cancel,
    events.ActivityCompleted: Execution._completed,
    events.ActivityFailed: Execution._failed,
    events.TimerFired: Execution._timer,
    events.ExternalEvent: Execution._external,
    events.QueueEvent: Execution._dequeued,
    events.SubOrchestrationCompleted: Execution._child_completed,
    events.SubOrchestrationFailed: Execution._child_failed,
}
