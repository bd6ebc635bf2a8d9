"""Activities: run what is claimed, bounded, and hand the completion on.

A completion goes to the resident instance in memory; only where there is none it becomes a message
in the store. Nothing that user code raises gets past this module.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from perdure.core import work
from perdure.limits import CLAIMS_MAX, CLAIMS_SHARED_MAX
from perdure.marks import Activity
from perdure.providers.contract import (
    ActivityClaim,
    ClaimActivities,
    ClaimedActivities,
    CompleteActivity,
    NewActivity,
    Outcome,
    Refused,
    ReleaseActivity,
    RetryActivity,
)
from perdure.runtime.activity_context import ActivityContext
from perdure.runtime.attempts import (
    Finished,
    Key,
    Over,
    Running,
    attempt,
    attempt_in_thread,
    lost,
    options_for,
    poisoned,
    timed_out,
)
from perdure.runtime.lanes import Lane, Lanes
from perdure.runtime.node import Node
from perdure.runtime.residents import Delivery, Resident
from perdure.runtime.threads import Threads
from perdure.runtime.transactions import attempt_in_transaction

STOP_GRACE_S = 1.0
ALONE_S = 1.0
"""So often a node with a queue that is never empty looks for what may only run alone."""
DRAIN_S = 10.0

_encode = msgspec.json.Encoder().encode


class Activities:
    """deliver: hands a completion to a resident. news: a message has been stored."""

    deliver: Callable[[Resident, Delivery], None]
    news: Callable[[], None]

    def __init__(self, node: Node) -> None:
        self._node = node
        self._running: dict[Key, Running] = {}
        self.lanes = Lanes(node.registry, node.options)
        for lane in self.lanes.all:
            lane.alone_at_s = node.loop.time() + ALONE_S
        self._late: set[Running] = set()
        self._alone: Running | None = None
        self._threads: Threads | None = None
        # Activities start from callbacks that may run in the context of another one.
        self._surroundings = contextvars.copy_context()

    def reserve(self, name: str) -> bool:
        """Take a slot for an activity that is about to be inserted; see Lane.reserve."""
        lane = self.lanes.find(name)
        if lane is None or self._alone or self._node.stopping:
            return False
        return lane.reserve()

    def not_inserted(self, activities: Iterable[NewActivity]) -> None:
        """Free the slots of activities that were to be inserted claimed, and are not."""
        self.lanes.give_back(activities)
        self._look_whether_alone()
        for lane in self.lanes.all:
            self._claim(lane)

    # Starting.

    def launch(self, resident: Resident, activity: NewActivity) -> None:
        """Start an activity of a resident, whose turn has been committed."""
        if self._node.stopping:
            self.lanes.give_back([activity])
            self._release(resident.key, resident.execution_id, activity.event_id, 1)
            return
        resident.local.add(activity.event_id)
        context = ActivityContext(
            resident.instance_id,
            resident.incarnation,
            resident.execution_id,
            activity.name,
            activity.event_id,
            1,
        )
        self._start(self._new(resident.key, context, activity.options), activity.input)

    def queued(self, activity: NewActivity) -> None:
        """An activity has been inserted unclaimed."""
        lane = self.lanes.find(activity.name)
        if lane is not None:
            lane.waits()
            self._claim(lane)

    def found_waiting(self) -> None:
        """The store has unclaimed activities that this node could run."""
        for lane in self.lanes.all:
            if lane.names:
                lane.surveyed = True
                lane.waits()
                self._claim(lane)

    def claimable(self) -> frozenset[str]:
        """The names for which a slot is free. A full lane is not asked about: what waits for it
        would have both lanes of every node look in vain, again and again."""
        for lane in self.lanes.all:
            if lane.taken >= lane.slots:
                lane.backlog = True
        return self.lanes.names_with_room()

    def _claim(self, lane: Lane) -> None:
        """Claim what waits in the queue, as far as slots are free."""
        node = self._node
        free = lane.slots - lane.taken
        if lane.claiming or free <= 0 or node.stopping or self._alone or not lane.backlog:
            return
        # A queue that is never empty must not hide what may only run alone.
        if lane.alone_at_s <= node.loop.time() and self._claim_alone(lane):
            return
        lane.claiming = True
        operation = ClaimActivities(node.node_id, lane.names, free)
        node.committer.submit(operation, lambda outcome: self._claimed(lane, outcome))

    def _claimed(self, lane: Lane, outcome: Outcome | BaseException) -> None:
        lane.claiming = False
        if not isinstance(outcome, ClaimedActivities):
            self._node.expect(outcome, "claiming activities")
            return
        lane.backlog = outcome.more or lane.again
        lane.again = False
        for claim in outcome.activities:
            lane.taken += 1
            self._start_claimed(claim)
        if outcome.activities or lane.backlog:
            self._claim(lane)
        elif lane.surveyed:
            self._claim_alone(lane)

    def _claim_alone(self, lane: Lane) -> bool:
        """What waits and nobody may claim so has brought a node down before. False if that cannot
        be looked for now."""
        node = self._node
        # One lane at a time: two that are to run alone would wait for each other.
        if lane.claiming or self._alone or not node.begin_alone(lane):
            return False
        lane.alone_at_s = node.loop.time() + ALONE_S
        lane.surveyed = False
        lane.claiming = True
        operation = ClaimActivities(node.node_id, lane.names, 1, alone=True)
        node.committer.submit(operation, lambda outcome: self._claimed_alone(lane, outcome))
        return True

    def _claimed_alone(self, lane: Lane, outcome: Outcome | BaseException) -> None:
        lane.claiming = False
        self._node.end_alone(lane)
        if not isinstance(outcome, ClaimedActivities):
            self._node.expect(outcome, "claiming an activity")
            return
        for claim in outcome.activities:
            lane.taken += 1
            self._start_claimed(claim)
        for other in self.lanes.all:
            if other.backlog:
                self._claim(other)
            elif other.surveyed:
                self._claim_alone(other)

    def _start_claimed(self, claim: ActivityClaim) -> None:
        if self._node.stopping:
            self.lanes.of(claim.name).taken -= 1
            self._release(claim.key, claim.execution_id, claim.event_id, claim.attempt)
            return
        resident = self._node.residents.get(claim.key)
        if resident is not None and resident.execution_id == claim.execution_id:
            resident.local.add(claim.event_id)
        context = ActivityContext(
            claim.instance_id,
            claim.incarnation,
            claim.execution_id,
            claim.name,
            claim.event_id,
            claim.attempt,
        )
        running = self._new(claim.key, context, claim.options)
        retry = running.options.retry
        if claim.claims > CLAIMS_MAX:
            self._running[running.id] = running
            self._finished(running, poisoned(context))
        elif retry is not None and not retry.allows_another(claim.attempt - 1):
            self._running[running.id] = running
            self._finished(running, lost(context, claim.attempt - 1))
        elif claim.claims > CLAIMS_SHARED_MAX:
            self._start_alone(running, claim.input)
        else:
            self._start(running, claim.input)

    def _new(self, key: int, context: ActivityContext, called_with: bytes | None) -> Running:
        activity = self._node.registry.activities.get(context.activity_name)
        return Running(key, context, options_for(activity, called_with))

    def _start_alone(self, running: Running, payload: bytes) -> None:
        """Start it when the others have finished; nothing new starts beside it. Those that have
        run for DRAIN_S by then are not waited for: they have shown that they do no harm."""
        self._alone = self._running[running.id] = running
        self._node.begin_alone(running)
        started = self._node.loop.call_later(DRAIN_S, self._begin, running, payload)
        running.when_alone = started, payload
        self._look_whether_alone()

    def _look_whether_alone(self) -> None:
        alone = self._alone
        if alone is None or alone.when_alone is None:
            return
        if sum(lane.taken for lane in self.lanes.all) == 1:
            started, payload = alone.when_alone
            started.cancel()
            self._begin(alone, payload)

    def _start(self, running: Running, payload: bytes) -> None:
        self._running[running.id] = running
        self._begin(running, payload)

    def _begin(self, running: Running, payload: bytes) -> None:
        if running.when_alone is not None:
            # A suspect instance may be what it waits for, so it does not wait for ever itself.
            self._node.loop.call_later(DRAIN_S, self._node.end_alone, running)
            running.when_alone = None
        context = running.context
        activity = self._node.registry.activities[context.activity_name]
        loop = self._node.loop
        # A context of its own: what an activity sets must not reach the next one.
        surroundings = self._surroundings.copy()
        if activity.transactional:
            running.task = loop.create_task(
                self._run_in_transaction(running, activity, payload), context=surroundings
            )
        elif activity.is_async:
            running.task = loop.create_task(
                self._run(running, activity, payload), context=surroundings
            )
        else:
            thread = loop.run_in_executor(
                self._pool(), surroundings.run, attempt_in_thread, running, activity, payload
            )
            thread.add_done_callback(lambda future: self._thread_done(running, future))
            if running.options.timeout_ms is not None:
                late = loop.call_later(running.options.timeout_ms / 1000, self._timed_out, running)
                thread.add_done_callback(lambda _: late.cancel())
            running.task = thread

    def _pool(self) -> Threads:
        if self._threads is None:
            self._threads = Threads("perdure-activity")
        return self._threads

    # Running and finishing.

    async def _run(self, running: Running, activity: Activity[..., Any], payload: bytes) -> None:
        over = await attempt(running, activity, payload)
        if over is None:
            self._abandoned(running)
        else:
            self._over(running, over)

    async def _run_in_transaction(
        self, running: Running, activity: Activity[..., Any], payload: bytes
    ) -> None:
        over = await attempt_in_transaction(self._node, running, activity, payload)
        if over is None:
            self._abandoned(running)
        elif isinstance(over, Over):
            self._over(running, over)
        elif self._running.get(running.id) is running:
            # Its completion is a message now, for whoever owns the instance.
            self._free(running)
            resident = self._node.residents.get(running.key)
            if resident is not None and resident.execution_id == running.execution_id:
                resident.local.discard(running.event_id)
            self._completed(over)
            self._claim(self.lanes.of(running.context.activity_name))

    def _thread_done(self, running: Running, future: asyncio.Future[Over]) -> None:
        if running in self._late:
            self._late.discard(running)
            self._node.counters["late_completion"] += 1
            self._give_slot_back(running)
            self._claim(self.lanes.of(running.context.activity_name))
        elif future.cancelled() or running.context.abandoned:
            self._abandoned(running)
        else:
            self._over(running, future.result())

    def _timed_out(self, running: Running) -> None:
        """A plain function cannot be stopped: its attempt is over, and its thread keeps the slot
        until it returns, or functions that hang would take more and more threads."""
        if self._running.get(running.id) is running and not running.context.abandoned:
            self._late.add(running)
            running.context.cancel()
            self._over(running, timed_out(running))

    def _over(self, running: Running, over: Over) -> None:
        """The attempt has ended: so does the activity, unless another attempt may follow."""
        retry = running.options.retry
        if (
            over.final
            or retry is None
            or not retry.allows_another(running.attempt)
            or not isinstance(over.item, work.ActivityFailed)
            or (running.context.is_cancelled and running not in self._late)
        ):
            self._finished(running, over.item)
            return
        self._free(running)
        resident = self._node.residents.get(running.key)
        if resident is not None:
            resident.local.discard(running.event_id)
        node = self._node
        due_ms = node.provider.now_ms() + retry.pause_ms(running.attempt, node.random)
        node.committer.submit(
            RetryActivity(
                *running.id, node.node_id, running.attempt, due_ms, _encode(over.item.error)
            ),
            self._completed,
        )
        self._claim(self.lanes.of(running.context.activity_name))

    def _finished(self, running: Running, item: Finished) -> None:
        self._free(running)
        resident = self._node.residents.get(running.key)
        if (
            resident is not None
            and resident.execution_id == running.execution_id
            and not self._node.stopping
        ):
            resident.local.discard(running.event_id)
            self.deliver(resident, Delivery(item, 0, 0, True, running.attempt))
        else:
            self._complete(running.key, running.attempt, item)
        self._claim(self.lanes.of(running.context.activity_name))

    def _free(self, running: Running) -> None:
        self._running.pop(running.id, None)
        if running not in self._late:
            self._give_slot_back(running)

    def _give_slot_back(self, running: Running) -> None:
        lane = self.lanes.of(running.context.activity_name)
        lane.taken -= 1
        if running is self._alone:
            self._alone = None
            self._node.end_alone(running)
            self.found_waiting()
            self.news()
        else:
            self._look_whether_alone()

    def _complete(self, key: int, attempt: int, item: Finished) -> None:
        node = self._node
        node.committer.submit(
            CompleteActivity(
                key, item.execution_id, item.source_event_id, node.node_id, attempt, _encode(item)
            ),
            self._completed,
        )

    def store(self, key: int, delivery: Delivery) -> None:
        """Keep a completion that no turn has taken as a message, for whoever owns the instance."""
        if isinstance(delivery.item, work.ActivityCompleted | work.ActivityFailed):
            self._complete(key, delivery.attempt, delivery.item)

    def _completed(self, outcome: Outcome | BaseException) -> None:
        if isinstance(outcome, Refused):
            self._node.counters["late_completion"] += 1
        else:
            self._node.expect(outcome, "completing an activity")
        self.news()

    # Telling activities that nobody waits for them any more.

    def withdrawn(self, resident: Resident, event_ids: Iterable[int]) -> None:
        """Tell those of these activities that run here."""
        for event_id in event_ids:
            self._tell((resident.key, resident.execution_id, event_id))

    def return_to(self, residents: Iterable[Resident]) -> None:
        """Instances are back here; some may have been evicted while their activities ran on."""
        by_key = {resident.key: resident for resident in residents}
        for running in self._running.values():
            resident = by_key.get(running.key)
            if resident is not None and resident.execution_id == running.execution_id:
                resident.local.add(running.event_id)

    def abandon(self, resident: Resident) -> None:
        """Tell every activity of the resident's execution that it has ended."""
        for event_id in resident.local:
            self._tell((resident.key, resident.execution_id, event_id))
        resident.local = set()

    def _tell(self, id: Key) -> None:
        running = self._running.get(id)
        if running is not None:
            running.context.cancel()

    # Stopping.

    async def stop(self, timeout_s: float) -> None:
        """Let what runs finish for this long, then ask it to stop, and give the rest back
        uncharged. Threads that go on regardless are left behind; their results are not taken."""
        await self._wait(timeout_s)
        for running in list(self._running.values()):
            running.context.abandon()
            if running.when_alone is not None:
                running.when_alone[0].cancel()
            if running.task is not None:
                running.task.cancel()
        await self._wait(STOP_GRACE_S)
        for running in list(self._running.values()):
            self._abandoned(running)
        if self._threads is not None:
            self._threads.close()

    async def _wait(self, timeout_s: float) -> None:
        tasks = [running.task for running in self._running.values() if running.task is not None]
        if tasks and timeout_s > 0:
            await asyncio.wait(tasks, timeout=timeout_s)
            # The callbacks that record their results run one step later.
            await asyncio.sleep(0)

    def _abandoned(self, running: Running) -> None:
        """The node stops: the attempt counts for nothing and another node may make it."""
        if self._running.get(running.id) is not running:
            return
        self._free(running)
        if running.at_most_once and running.task is not None:
            self._complete(running.key, running.attempt, lost(running.context, running.attempt))
        else:
            self._release(running.key, running.execution_id, running.event_id, running.attempt)

    def _release(self, key: int, execution_id: int, event_id: int, attempt: int) -> None:
        node = self._node
        node.committer.submit(
            ReleaseActivity(key, execution_id, event_id, node.node_id, attempt),
            lambda outcome: node.expect(outcome, "giving an activity back"),
        )

    async def tell_lost(self) -> None:
        """Tell the activities whose claims are gone: withdrawn by an instance on another node, or
        deleted with theirs."""
        ids = list(self._running)
        if ids:
            for id in await self._node.provider.lost_activities(self._node.node_id, ids):
                self._tell(id)

    @property
    def running(self) -> int:
        return len(self._running)
