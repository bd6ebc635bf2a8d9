"""What a turn wants written: a pure function from its actions to one CommitTurn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import msgspec

from perdure.core import actions, events, work
from perdure.core.execution import Turn
from perdure.core.journal import python_minor
from perdure.providers.contract import (
    CommitTurn,
    Ending,
    NewActivity,
    NewTimer,
    NextExecution,
    ParentLink,
    SendMessage,
    StartInstance,
)
from perdure.runtime.residents import Delivery, Resident

ENGINE = 1
"""The number of the history format."""

_encode = msgspec.json.Encoder().encode

OwnerOf = Callable[[str, str | None], tuple[str, str] | None]
"""The node and token under which an instance of this name and version is started, if this node
takes it at once."""


def started_event(
    resident: Resident, version: str, input: msgspec.Raw, event_id: int, now_ms: int
) -> events.OrchestrationStarted:
    """The first event of an execution of this resident."""
    parent = resident.parent
    return events.OrchestrationStarted(
        event_id,
        now_ms,
        resident.name,
        version,
        input,
        resident.incarnation,
        python_minor(),
        ENGINE,
        parent_instance=parent.instance_id if parent else None,
        parent_incarnation=parent.incarnation if parent else None,
        parent_execution=parent.execution_id if parent else None,
        parent_id=parent.event_id if parent else None,
        nesting=resident.nesting,
    )


def child_incarnation(parent: str, execution_id: int, event_id: int) -> str:
    """The incarnation of a child: derived, so that the parent can address exactly this one."""
    return hashlib.sha256(f"{parent}/{execution_id}/{event_id}".encode()).hexdigest()[:32]


_WITH_A_ROW = (work.ActivityCompleted, work.ActivityFailed, work.TimerFired)


class Plan:
    """Collects the rows of one turn. `reserve` says whether an activity can run here at once."""

    __slots__ = (
        "_owner_of",
        "_reserve",
        "_resident",
        "activities",
        "activities_gone",
        "has_timers",
        "sends",
        "starts",
        "timers",
        "timers_gone",
    )

    def __init__(
        self, resident: Resident, reserve: Callable[[str], bool], owner_of: OwnerOf
    ) -> None:
        self._resident = resident
        self._reserve = reserve
        self._owner_of = owner_of
        self.activities: dict[int, actions.CallActivity] = {}
        self.activities_gone: list[int] = []
        self.timers: dict[int, NewTimer] = {}
        self.timers_gone: list[int] = []
        self.has_timers = False
        self.starts: dict[int, StartInstance] = {}
        self.sends: list[SendMessage] = []

    def consumed(self, delivery: Delivery) -> None:
        """The row behind a delivery goes. One of an earlier execution has none, and its event id
        may stand for something else in this one."""
        item = delivery.item
        # A union spelt out here would be built anew for every delivery.
        if not isinstance(item, _WITH_A_ROW):
            return
        if item.execution_id != self._resident.execution_id:
            return
        if isinstance(item, work.TimerFired):
            self.timers_gone.append(item.source_event_id)
        elif delivery.local:
            self.activities_gone.append(item.source_event_id)

    def decided(self, action: actions.AnyAction) -> None:
        if isinstance(action, actions.CallActivity):
            self.activities[action.id] = action
        elif isinstance(action, actions.CreateTimer):
            self.has_timers = True
        elif isinstance(action, actions.StartSubOrchestration):
            self._start_child(action)
        elif isinstance(action, actions.StartOrchestrationDetached):
            self._start_detached(action)
        elif isinstance(action, actions.Cancel):
            self._withdraw(action)

    def set_timers(self, new: Sequence[events.AnyEvent]) -> None:
        """The timers that were created and not cancelled again in the same turn."""
        created = {event.event_id: event for event in new if type(event) is events.TimerCreated}
        self.timers = {
            event_id: NewTimer(event_id, event.fire_at_ms)
            for event_id, event in created.items()
            if event_id not in self.timers_gone
        }
        self.timers_gone = [event_id for event_id in self.timers_gone if event_id not in created]

    def new_activities(self) -> tuple[NewActivity, ...]:
        """The activities that are left at the end of the turn, claimed as far as slots are free."""
        return tuple(
            [
                NewActivity(
                    action.id,
                    action.name,
                    bytes(action.input),
                    self._reserve(action.name),
                    action.options,
                )
                for action in self.activities.values()
            ]
        )

    def _start_child(self, action: actions.StartSubOrchestration) -> None:
        resident = self._resident
        taken = work.SubOrchFailed(
            resident.execution_id,
            action.id,
            events.Failure(
                "InstanceAlreadyExists",
                f"the instance id {action.instance!r} is taken; give the child another id",
            ),
        )
        back = SendMessage(resident.instance_id, _encode(taken), resident.incarnation)
        link = ParentLink(
            resident.instance_id, resident.incarnation, resident.execution_id, action.id
        )
        self.starts[action.id] = self._start(action, link, back)

    def _start_detached(self, action: actions.StartOrchestrationDetached) -> None:
        self.starts[action.id] = self._start(action, None, None)

    def _start(
        self,
        action: actions.StartSubOrchestration | actions.StartOrchestrationDetached,
        parent: ParentLink | None,
        if_taken: SendMessage | None,
    ) -> StartInstance:
        resident = self._resident
        owner = self._owner_of(action.name, action.version)
        return StartInstance(
            action.instance,
            child_incarnation(resident.incarnation, resident.execution_id, action.id),
            action.name,
            action.version,
            bytes(action.input),
            parent=parent,
            nesting=resident.nesting + 1 if parent else 0,
            owner=owner[0] if owner else None,
            token=owner[1] if owner else None,
            if_taken=if_taken,
        )

    def _withdraw(self, action: actions.Cancel) -> None:
        source = action.source
        if action.kind is actions.CallActivity:
            if self.activities.pop(source, None) is None:
                self.activities_gone.append(source)
        elif action.kind is actions.CreateTimer:
            self.timers_gone.append(source)
        elif action.kind is actions.StartSubOrchestration and not self.starts.pop(source, None):
            self._cancel_child(action)

    def _cancel_child(self, action: actions.Cancel) -> None:
        resident = self._resident
        item = work.CancelInstance(f"cancelled by its parent {resident.instance_id}")
        self.sends.append(
            SendMessage(
                action.instance,
                _encode(item),
                child_incarnation(resident.incarnation, resident.execution_id, action.source),
                external=True,
            )
        )

    def report(self, ending: events.AnyEvent) -> None:
        """Tell the parent how its child ended."""
        parent = self._resident.parent
        if parent is None:
            return
        item: work.AnyWorkItem
        if isinstance(ending, events.OrchestrationCompleted):
            item = work.SubOrchCompleted(parent.execution_id, parent.event_id, ending.output)
        elif isinstance(ending, events.OrchestrationFailed):
            item = work.SubOrchFailed(parent.execution_id, parent.event_id, ending.error)
        elif isinstance(ending, events.OrchestrationCancelled):
            failure = events.Failure("OrchestrationCancelled", ending.reason)
            item = work.SubOrchFailed(parent.execution_id, parent.event_id, failure)
        else:
            return
        self.sends.append(SendMessage(parent.instance_id, _encode(item), parent.incarnation))


def plan_turn(
    resident: Resident,
    node_id: str,
    turn: Turn,
    taken: Sequence[Delivery],
    plan: Plan,
    next_version: Callable[[str | None], str],
) -> CommitTurn:
    """The commit of a turn.

    taken: the deliveries that the turn used up. next_version: the version that a new execution
    runs, given the one asked for.
    """
    execution = resident.execution
    assert execution is not None
    ending = turn.ending
    for delivery in taken:
        plan.consumed(delivery)
    for action in turn.actions:
        plan.decided(action)
    if plan.has_timers:
        plan.set_timers(turn.events)
    next_execution = None
    if isinstance(ending, events.OrchestrationContinuedAsNew):
        next_execution = _next(resident, ending, next_version(ending.version))
    elif ending is not None:
        plan.report(ending)
    due_ms = _due_after(resident, plan, turn, next_execution)
    consumed = tuple([delivery.seq for delivery in taken if delivery.seq and not delivery.kept])
    if turn.dequeued:
        consumed += tuple(turn.dequeued)
    return CommitTurn(
        key=resident.key,
        token=resident.token,
        node_id=node_id,
        execution_id=resident.execution_id,
        first_event_id=execution.length - len(turn.events) + 1,
        events=tuple([_encode(event) for event in turn.events]),
        mail_seen=resident.mail,
        external_seen=resident.external if _needs_causality(taken[: turn.taken]) else None,
        consumed=consumed,
        activities_gone=tuple(plan.activities_gone),
        timers_gone=tuple(plan.timers_gone),
        # An execution that ends in this turn would only leave these to be deleted unstarted.
        activities=plan.new_activities() if ending is None else (),
        timers=tuple(plan.timers.values()) if ending is None else (),
        starts=tuple(plan.starts.values()),
        sends=tuple(plan.sends),
        version=_version_started(turn),
        settle=resident.unsettled,
        set_due=bool(consumed) or due_ms != resident.stored_due_ms,
        due_ms=due_ms,
        ending=_ending(ending),
        next=next_execution,
    )


def _needs_causality(taken: Sequence[Delivery]) -> bool:
    """Whether the turn used something that did not come through the inbox, which could have
    overtaken an event or cancel request that was accepted before it."""
    return any(not delivery.seq for delivery in taken)


def _version_started(turn: Turn) -> str | None:
    if turn.events and isinstance(turn.events[0], events.OrchestrationStarted):
        return turn.events[0].version
    return None


def _next(
    resident: Resident, ending: events.OrchestrationContinuedAsNew, version: str
) -> NextExecution:
    started = started_event(resident, version, ending.input, 1, ending.timestamp_ms)
    return NextExecution(resident.execution_id + 1, version, bytes(ending.input), _encode(started))


def _due_after(
    resident: Resident, plan: Plan, turn: Turn, next_execution: NextExecution | None
) -> int | None:
    if next_execution is not None:
        # The new execution is ready: due by this mark until its first turn is committed. An older
        # mark will do, and saves the write of a page.
        mark, stored = turn.events[-1].timestamp_ms, resident.stored_due_ms
        return stored if stored and stored <= mark else mark
    if turn.ending is not None:
        return None
    gone = set(plan.timers_gone)
    due = [at for event_id, at in resident.timers.items() if event_id not in gone]
    due.extend(timer.fire_at_ms for timer in plan.timers.values())
    return min(due, default=None)


def _ending(ending: events.AnyEvent | None) -> Ending | None:
    if ending is None:
        return None
    if isinstance(ending, events.OrchestrationCompleted):
        return Ending("completed", output=bytes(ending.output))
    if isinstance(ending, events.OrchestrationFailed):
        return Ending("failed", error=_encode(ending.error))
    if isinstance(ending, events.OrchestrationCancelled):
        failure = events.Failure("OrchestrationCancelled", ending.reason)
        return Ending("cancelled", error=_encode(failure))
    return Ending("continued_as_new")
