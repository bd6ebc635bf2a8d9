"""Turns: deliveries in, one commit out, and what follows once it is committed."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from functools import partial

import msgspec

from perdure.core import events, work
from perdure.core.execution import Execution, Turn, TurnInterrupted
from perdure.core.journal import TurnRefused, Verdict
from perdure.core.marked import Info
from perdure.errors import StoreClosed
from perdure.providers.contract import (
    Committed,
    CommitTurn,
    NextExecution,
    Outcome,
    Refused,
    Retention,
    Started,
    StartInstance,
)
from perdure.runtime.activities import Activities
from perdure.runtime.effects import Plan, plan_turn, started_event
from perdure.runtime.leaving import Leaving
from perdure.runtime.node import Node, internal
from perdure.runtime.residents import Delivery, Resident, resident_of
from perdure.runtime.timers import Timers
from perdure.runtime.watchdog import TurnStuck, Watchdog

SLICE_S = 0.005
"""How long turns run before the host loop gets its turn."""

logger = logging.getLogger("perdure")


class Turns:
    """reload: fetch the history of residents whose execution is gone, and their messages.
    fetch: get items of these event queues of a resident, and make it ready.
    news: there may be work that only the store knows of."""

    reload: Callable[[Resident], None]
    fetch: Callable[[Resident, list[str]], None]
    news: Callable[[], None]

    def __init__(self, node: Node, activities: Activities, watchdog: Watchdog) -> None:
        self._node = node
        self._activities = activities
        self._watchdog = watchdog
        self.leaving = Leaving(node, activities, watchdog, self.leave_alone)
        self._queue: deque[Resident] = deque()
        self._pumping = False
        node.committer.after = self._after_outcomes
        self.timers = Timers(node.provider, self.deliver)

    def deliver(self, resident: Resident, delivery: Delivery) -> None:
        """Hand a delivery to a resident; its next turn takes it."""
        resident.pending.append(delivery)
        self.ready(resident)

    def ready(self, resident: Resident) -> None:
        """Run a turn of this resident soon, unless one is under way (it is then run after it)."""
        if (
            resident.ready
            or resident.released
            or resident.loading
            or resident.committing is not None
            or resident.execution is None
        ):
            return
        resident.ready = True
        self._queue.append(resident)
        self.pump_soon()

    def pump_soon(self) -> None:
        if not self._pumping and not self._node.stopping:
            self._pumping = True
            if not self._node.committer.telling:
                self._node.loop.call_soon(self._pump)

    def _after_outcomes(self) -> None:
        """Run the turns that the outcomes of a batch have led to, an iteration of the loop
        earlier."""
        if self._pumping:
            self._pump()

    def start_execution(self, resident: Resident, history: list[events.AnyEvent]) -> bool:
        """Give the resident a fresh execution and run its next turn, which repeats the history.

        False if this node does not have its orchestration.
        """
        made = self._make_execution(resident, history)
        if made:
            self.ready(resident)
        return made

    def _make_execution(self, resident: Resident, history: list[events.AnyEvent]) -> bool:
        version = resident.version
        if history and isinstance(history[0], events.OrchestrationStarted):
            version = history[0].version
        orchestration = self._node.registry.orchestration(resident.name, version)
        if orchestration is None:
            return False
        resident.execution = Execution(
            orchestration,
            Info(
                resident.instance_id, resident.incarnation, resident.execution_id, resident.nesting
            ),
            self._node.registry.orchestration,
            repeated=resident.repeated,
            mailbox=resident.mailbox,
        )
        resident.version = orchestration.version
        resident.history = history
        return True

    def _pump(self) -> None:
        self._pumping = False
        node = self._node
        self.timers.fire_due()
        until = node.loop.time() + SLICE_S
        queue = self._queue
        if node.alone is not None:
            self._run_alone(node.alone)
            return
        node.committer.gather()
        try:
            while queue and not node.stopping:
                resident = queue.popleft()
                resident.ready = False
                if resident.execution is not None and resident.committing is None:
                    self._run(resident)
                if node.loop.time() > until:
                    break
        finally:
            node.committer.flush()
            if queue:
                self.pump_soon()

    def _run_alone(self, resident: Resident) -> None:
        """Only this resident runs until it has settled: if the process dies, it was the one."""
        if resident.ready:
            self._queue.remove(resident)
            resident.ready = False
            if resident.execution is not None and resident.committing is None:
                self._run(resident)
            self._node.committer.flush()

    def _settled(self, resident: Resident) -> None:
        resident.unsettled = False
        resident.repeated = False
        self.leaving.settled(resident)
        self.leave_alone(resident)

    def leave_alone(self, resident: Resident) -> None:
        """The resident no longer has to run alone."""
        if self._node.alone is resident:
            self._node.alone = None
            self._node.end_alone(resident)
            self.pump_soon()
            self.news()

    # One turn.

    def _run(self, resident: Resident) -> None:
        deliveries, resident.pending = resident.pending, []
        if len(deliveries) > 1:
            deliveries.sort(key=Delivery.order)
        self._watchdog.enter(resident.instance_id)
        try:
            try:
                turn = self._step(resident, deliveries)
            finally:
                if self._watchdog.leave():
                    raise TurnStuck
            if turn is not None:
                self._commit(resident, turn, deliveries)
        except TurnRefused as refused:
            self.leaving.block(resident, refused.verdict, deliveries)
        except TurnInterrupted as interrupted:
            logger.warning("instance %s: turn repeated after %s", resident.instance_id, interrupted)
            resident.repeated = True
            self._reload(resident, deliveries)
        except TurnStuck as stuck:
            # It may have been raised on the way into the first `leave`.
            self._watchdog.leave()
            self.leaving.block(
                resident, Verdict("stuck", stuck.as_error()), deliveries, charge=True
            )
        except Exception as error:
            logger.exception("instance %s: the turn failed", resident.instance_id)
            self.leaving.block(
                resident, Verdict("internal", internal(error)), deliveries, charge=True
            )

    def _step(self, resident: Resident, deliveries: list[Delivery]) -> Turn | None:
        """The turn; None if items of event queues must be fetched before it, since they may have
        come before what is to be delivered."""
        execution = resident.execution
        assert execution is not None
        started = None
        now_ms = self._node.provider.now_ms()
        if resident.history is not None:
            history, resident.history = resident.history, None
            if history:
                execution.replay(history)
            else:
                assert resident.version is not None
                payload = msgspec.Raw(resident.input)
                started = started_event(resident, resident.version, payload, 1, now_ms)
        if resident.queued and started is None:
            wanted = resident.queues_wanted(deliveries)
            if wanted:
                resident.pending = deliveries + resident.pending
                self.fetch(resident, wanted)
                return None
        return execution.step([delivery.item for delivery in deliveries], now_ms, started)

    def _commit(self, resident: Resident, turn: Turn, deliveries: list[Delivery]) -> None:
        taken, kept = self._split(resident, turn, deliveries)
        operation = self._plan(resident, turn, taken)
        if not (
            operation.events
            or operation.consumed
            or operation.timers_gone
            or operation.settle
            or operation.set_due
        ):
            self._count_dropped(resident, turn)
            return
        resident.committing = operation
        done = partial(self._committed, resident, turn, deliveries, kept)
        self._node.committer.submit(operation, done)

    def _plan(self, resident: Resident, turn: Turn, taken: list[Delivery]) -> CommitTurn:
        node = self._node
        plan = Plan(resident, self._activities.reserve, node.owner_of)
        operation = plan_turn(
            resident, node.node_id, turn, taken, plan, self._next_version(resident)
        )
        if operation.next is None:
            return operation
        retention = self._retention(resident)
        return msgspec.structs.replace(operation, retention=retention) if retention else operation

    def _retention(self, resident: Resident) -> Retention | None:
        orchestration = self._node.registry.orchestration(resident.name, resident.version)
        policy = orchestration.retention if orchestration is not None else None
        if policy is None:
            return None
        return Retention(policy.kept, policy.before_ms(self._node.provider.now_ms()))

    def _split(
        self, resident: Resident, turn: Turn, deliveries: list[Delivery]
    ) -> tuple[list[Delivery], list[Delivery]]:
        """The deliveries that this turn uses up, and those that wait for the next execution."""
        if turn.ending is None or turn.taken == len(deliveries):
            return deliveries, []
        taken, unread = deliveries[: turn.taken], deliveries[turn.taken :]
        if not isinstance(turn.ending, events.OrchestrationContinuedAsNew):
            # Used up all the same: the store would count them a second time. (It does count the
            # items of event queues that are left.)
            turn.dropped["unread_at_end"] = sum(not delivery.kept for delivery in unread)
            return deliveries, []
        kept = [delivery for delivery in unread if isinstance(delivery.item, _KEPT)]
        gone = [delivery for delivery in unread if not isinstance(delivery.item, _KEPT)]
        if gone:
            turn.dropped["stale_execution"] = len(gone) + turn.dropped.get("stale_execution", 0)
        return taken + gone, kept

    def _next_version(self, resident: Resident) -> Callable[[str | None], str]:
        def version(wanted: str | None) -> str:
            if wanted is not None:
                return wanted
            latest = self._node.registry.orchestration(resident.name, None)
            assert latest is not None
            return latest.version

        return version

    # The first turn of a start, in one commit with it.

    def run_first(self, resident: Resident) -> tuple[Turn, CommitTurn] | None:
        """Run the first turn of an instance that is not inserted yet; None if it cannot be had.

        Whatever stands in its way is met again, and dealt with, once the instance exists.
        """
        if not self._make_execution(resident, []):
            return None
        self._watchdog.enter(resident.instance_id)
        try:
            try:
                turn = self._step(resident, [])
            finally:
                if self._watchdog.leave():
                    raise TurnStuck
            assert turn is not None
            return turn, self._plan(resident, turn, [])
        except (TurnRefused, TurnInterrupted, TurnStuck):
            self._watchdog.leave()
        except Exception:
            logger.exception("instance %s: the turn failed", resident.instance_id)
        self.discard(resident)
        return None

    def started(
        self, resident: Resident, operation: CommitTurn, turn: Turn, outcome: Committed
    ) -> None:
        """The instance exists, and its first turn is committed."""
        self._node.residents.add(resident)
        self._applied(resident, operation, turn, [], outcome)

    def discard(self, resident: Resident) -> None:
        """Throw the copy in memory away; the store knows nothing of it."""
        self.leaving.close(resident, resident.execution)
        resident.execution = None

    # What became of the commit.

    def _committed(
        self,
        resident: Resident,
        turn: Turn,
        deliveries: list[Delivery],
        kept: list[Delivery],
        outcome: Outcome | BaseException,
    ) -> None:
        operation, resident.committing = resident.committing, None
        assert operation is not None
        if resident.released:
            self._committed_late(resident, operation, deliveries, outcome)
            return
        if isinstance(outcome, Committed):
            self._applied(resident, operation, turn, kept, outcome)
            return
        self._activities.not_inserted(operation.activities)
        if isinstance(outcome, Refused):
            self._node.counters[f"refused_{outcome.reason}"] += 1
            if outcome.reason == "behind":
                self._reload(resident, deliveries)
            else:
                self._lose(resident, deliveries)
        elif isinstance(outcome, StoreClosed):
            self.leaving.forget(resident, [])
        else:
            assert isinstance(outcome, BaseException)
            self.leaving.block(
                resident, Verdict("internal", internal(outcome)), deliveries, charge=True
            )

    def _committed_late(
        self,
        resident: Resident,
        operation: CommitTurn,
        deliveries: list[Delivery],
        outcome: Outcome | BaseException,
    ) -> None:
        """The resident was given up meanwhile, since the node stops: give up what came of it."""
        if isinstance(outcome, Committed):
            for activity in operation.activities:
                if activity.claimed:
                    self._activities.launch(resident, activity)
            for start, started in zip(operation.starts, outcome.starts, strict=True):
                if isinstance(started, Started) and start.owner is not None:
                    self.adopt(start, started.key)
        else:
            self._activities.not_inserted(operation.activities)
            self.leaving.store_local(resident, deliveries)

    def _applied(
        self,
        resident: Resident,
        operation: CommitTurn,
        turn: Turn,
        kept: list[Delivery],
        outcome: Committed,
    ) -> None:
        if resident.unsettled:
            self._settled(resident)
        if operation.set_due:
            resident.stored_due_ms = operation.due_ms
        self._count_dropped(resident, turn)
        if outcome.dropped:
            self._node.drop("target_gone", resident.instance_id, outcome.dropped)
        for event_id in operation.timers_gone:
            resident.timers.pop(event_id, None)
        if operation.activities_gone:
            self._activities.withdrawn(resident, operation.activities_gone)
        for activity in operation.activities:
            if activity.claimed:
                self._activities.launch(resident, activity)
            else:
                self._activities.queued(activity)
        for timer in operation.timers:
            self.timers.add(resident, timer.event_id, timer.fire_at_ms)
        if operation.starts or operation.sends:
            self._sent(operation, outcome)
        if operation.ending is not None:
            self._ended(resident, operation, turn, kept)
        elif resident.pending or (resident.queued and resident.queues_wanted(())):
            self.ready(resident)
        self._node.residents.touch(resident)
        self.leaving.evict_soon()

    def _count_dropped(self, resident: Resident, turn: Turn) -> None:
        # Once the turn is committed: one that is refused will come across the same messages again.
        for reason, number in turn.dropped.items():
            self._node.drop(reason, resident.instance_id, number)

    def _sent(self, operation: CommitTurn, outcome: Committed) -> None:
        news = bool(operation.sends)
        for start, started in zip(operation.starts, outcome.starts, strict=True):
            if not isinstance(started, Started):
                news = True
                if start.if_taken is None:
                    self._node.drop("start_taken", start.instance_id)
            elif start.owner is not None:
                self.adopt(start, started.key)
            else:
                news = True
        if news:
            self.news()

    def adopt(self, start: StartInstance, key: int) -> None:
        """Run an instance that was inserted already owned by this node."""
        resident = resident_of(start, key)
        self._node.residents.add(resident)
        if self._node.stopping or not self.start_execution(resident, []):
            self.leaving.release(resident)

    def _ended(
        self, resident: Resident, operation: CommitTurn, turn: Turn, kept: list[Delivery]
    ) -> None:
        execution, resident.execution = resident.execution, None
        self._activities.abandon(resident)
        self.leaving.close(resident, execution)
        resident.timers.clear()
        if operation.next is None:
            resident.released = True
            self._node.residents.remove(resident)
            return
        self._continue(resident, operation.next, kept)

    def _continue(
        self, resident: Resident, next_execution: NextExecution, kept: list[Delivery]
    ) -> None:
        resident.execution_id = next_execution.execution_id
        resident.version = next_execution.version
        resident.input = next_execution.input
        resident.pending = kept + resident.pending
        # The first turn of the new execution is still to come; it is due by the mark in the store.
        resident.unsettled = True
        history = [events.decode(next_execution.started)]
        if not self.start_execution(resident, history):
            self.leaving.release(resident)

    # Ways out other than the right end.

    def _reload(self, resident: Resident, deliveries: list[Delivery]) -> None:
        """Throw the copy in memory away and run the turn again from history, with the messages
        that it has not seen."""
        self.leaving.close(resident, resident.execution)
        resident.execution = None
        resident.pending = deliveries + resident.pending
        resident.forget_items()
        self.reload(resident)

    def _lose(self, resident: Resident, deliveries: list[Delivery]) -> None:
        """The instance is no longer ours."""
        self.leaving.forget(resident, deliveries)
        logger.warning("instance %s: taken over by another node", resident.instance_id)
        self.news()


_KEPT = (work.ExternalRaised, work.EventEnqueued, work.CancelInstance)
"""What stays for the next execution when one continues as new."""
