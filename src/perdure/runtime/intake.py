"""Intake: what comes to this node from the store. Surveys, claims, histories, dead nodes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec

from perdure.core import events
from perdure.core.journal import Verdict
from perdure.errors import PerdureError, StoreUnavailable
from perdure.limits import CLAIMS_MAX
from perdure.providers.contract import (
    Acquired,
    Claimed,
    ClaimInstances,
    NoteBlocked,
    Outcome,
)
from perdure.runtime.activities import Activities
from perdure.runtime.node import Node
from perdure.runtime.residents import Resident
from perdure.runtime.turns import Turns

CLAIM_LIMIT = 500
CLAIM_SHARE = 20
"""While there are other nodes: who is quick to look must not take everything before they do."""
ITEMS_AT_ONCE = 100
PAUSES, PAUSE_S_MAX = 2, 0.02
"""So many times as long as a survey takes is the pause after it, at most."""
REAP_S = 1.0
RETRY_S = 0.5
UNRUNNABLE_S = 30.0
ORPHANS_S = 0.05
ALONE_S = 0.1
IDLE_POLL_S = 5.0
"""A survey at least this often, should every hint have been missed."""

logger = logging.getLogger("perdure")


class Intake:
    """Asks the store for work when there is news, when something becomes due, and now and then."""

    def __init__(self, node: Node, turns: Turns, activities: Activities) -> None:
        self._node = node
        self._turns = turns
        self._activities = activities
        self._news = asyncio.Event()
        self._claiming = False
        self._claim_again = False
        self._others = 0
        self._told_at = 0.0
        self._due: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._end_watch = node.provider.watch(self.news, node.node_id)

    def start(self) -> None:
        self._spawn(self._forever(self._survey_at_news, "survey the store"))
        self._spawn(self._forever(self._look_after_others, "look after other nodes"))
        self.news()

    async def stop(self) -> None:
        """Take nothing more in."""
        self._end_watch()
        if self._due is not None:
            self._due.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def news(self) -> None:
        """Something may be in the store for this node: survey it soon."""
        self._news.set()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        if self._node.stopping:
            coroutine.close()
            return
        task = self._node.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and not self._node.stopping:
            logger.error("intake failed", exc_info=task.exception())

    async def _forever(self, step: Callable[[], Awaitable[None]], what: str) -> None:
        """Repeat a step. An error in one is reported and waited out: a node that takes nothing in
        any more would look alive and do nothing."""
        while True:
            try:
                await step()
            except StoreUnavailable as error:
                logger.warning("cannot %s: %s; trying again", what, error)
                await self._wait_a_little()
                self.news()
            except Exception:
                logger.exception("cannot %s; trying again", what)
                await self._wait_a_little()
                self.news()

    async def _wait_a_little(self) -> None:
        # Many nodes must not come back at one moment from an outage that they all had.
        await asyncio.sleep(RETRY_S * self._node.random.uniform(0.5, 1.5))

    # Surveys.

    async def _survey_at_news(self) -> None:
        await self._news.wait()
        self._news.clear()
        began_s = self._node.loop.time()
        await self._survey()
        # The busier the store, the rarer the surveys: with many nodes, that hint at each other's
        # every commit, it would have little time for anything else.
        took_s = self._node.loop.time() - began_s
        await asyncio.sleep(min(PAUSE_S_MAX, PAUSES * took_s))

    async def _survey(self) -> None:
        node = self._node
        survey = await node.provider.survey(
            node.node_id, node.registry.capabilities, self._activities.claimable()
        )
        self._others = survey.others
        wake_s = IDLE_POLL_S
        for mail in survey.mail:
            resident = node.residents.get(mail.key)
            if resident is None:
                # Ours by the store, but being given back or not yet adopted: look again.
                wake_s = ORPHANS_S
            elif resident.receive(mail.mail, mail.external, mail.messages, mail.queued):
                self._turns.ready(resident)
        now_ms = node.provider.now_ms()
        for due_ms, take in (
            (survey.activities_due_ms, self._activities.found_waiting),
            (survey.instances_due_ms, self._claim),
        ):
            if due_ms is None:
                continue
            if due_ms <= now_ms:
                take()
            else:
                wake_s = min(wake_s, (due_ms - now_ms) / 1000)
        self._wake_in(wake_s)

    def _wake_in(self, delay_s: float) -> None:
        if self._due is not None:
            self._due.cancel()
        self._due = self._node.loop.call_later(delay_s, self.news)

    # Claims.

    def _claim(self, alone: bool = False) -> None:
        node = self._node
        if self._claiming or node.stopping or node.alone is not None:
            self._claim_again = self._claiming
            return
        if alone and not node.begin_alone(self):
            self._wake_in(ALONE_S)
            return
        self._claiming = True
        limit = 1 if alone else CLAIM_SHARE if self._others else CLAIM_LIMIT
        operation = ClaimInstances(node.node_id, node.registry.capabilities, limit, alone)
        node.committer.submit(operation, lambda outcome: self._claimed(outcome, alone))

    def _claimed(self, outcome: Outcome | BaseException, alone: bool) -> None:
        self._claiming = False
        self._node.end_alone(self)
        if not isinstance(outcome, Claimed):
            self._node.expect(outcome, "claiming instances")
            self._wake_in(0.5)
            return
        again, self._claim_again = self._claim_again, False
        if not outcome.instances:
            if again:
                # What has come meanwhile this claim may not have seen.
                self.news()
            if alone:
                self._wake_in(ALONE_S)
            else:
                self._claim(alone=True)
            return
        residents = [self._resident(acquired) for acquired in outcome.instances]
        self._activities.return_to(residents)
        if self._node.stopping:
            for resident in residents:
                self._turns.leaving.release(resident)
            return
        if alone and residents[0].attempt <= CLAIMS_MAX:
            self._node.alone = residents[0]
            self._node.begin_alone(residents[0])
        self._load_soon([resident for resident in residents if not self._poisoned(resident)])
        self.news()

    def _resident(self, acquired: Acquired) -> Resident:
        resident = Resident(
            acquired.key,
            acquired.instance_id,
            acquired.incarnation,
            acquired.name,
            acquired.version,
            acquired.execution_id,
            acquired.token,
            acquired.input,
            acquired.parent,
            acquired.nesting,
        )
        resident.attempt = acquired.attempt
        resident.receive(acquired.mail, acquired.external, acquired.messages, acquired.queued)
        for timer in acquired.timers:
            self._turns.timers.add(resident, timer.event_id, timer.fire_at_ms)
        self._node.residents.add(resident)
        return resident

    def _poisoned(self, resident: Resident) -> bool:
        if resident.attempt <= CLAIMS_MAX:
            return False
        self._turns.leaving.block(resident, Verdict("poison", _poison()))
        return True

    # Histories.

    def _load_soon(self, residents: list[Resident]) -> None:
        for resident in residents:
            resident.loading = True
        if residents:
            self._spawn(self._load(residents))

    def reload(self, resident: Resident) -> None:
        """Fetch the history of a resident that has lost its execution, and the messages that it
        has not seen, and run its next turn."""
        resident.loading = True
        self._spawn(self._load([resident], survey=True))

    async def _load(self, residents: list[Resident], survey: bool = False) -> None:
        """Fetch the histories of residents that have no execution, and run their next turns."""
        try:
            if survey:
                await self._survey()
            wanted = [(resident.key, resident.execution_id) for resident in residents]
            histories = await self._node.provider.histories(wanted)
        except PerdureError as error:
            logger.warning("cannot read histories: %s; trying again", error)
            await self._wait_a_little()
            self._load_soon([resident for resident in residents if not resident.released])
            return
        for number, (resident, lines) in enumerate(zip(residents, histories, strict=True)):
            resident.loading = False
            if not resident.released:
                self._begin(resident, lines)
            if number % 100 == 99:
                # Decoding thousands of histories must not hold up the turns of the first ones.
                await asyncio.sleep(0)
        self.news()

    # Items of event queues.

    def fetch(self, resident: Resident, queues: list[str]) -> None:
        """Get what is in these queues of a resident that waits at them, and run its next turn."""
        resident.loading = True
        self._spawn(self._fetch(resident, queues))

    async def _fetch(self, resident: Resident, queues: list[str]) -> None:
        provider = self._node.provider
        while not resident.released:
            try:
                # What is put in after this look may be missed by it.
                queued = resident.queued
                for name in queues:
                    items = await provider.queue_items(resident.key, name, 0, ITEMS_AT_ONCE)
                    resident.take_items(name, items, queued, whole=len(items) < ITEMS_AT_ONCE)
                break
            except PerdureError as error:
                logger.warning("cannot read an event queue: %s; trying again", error)
                resident.forget_items()
                await self._wait_a_little()
        resident.loading = False
        self._turns.ready(resident)

    def _begin(self, resident: Resident, lines: list[bytes]) -> None:
        try:
            history = [events.decode(line) for line in lines]
        except msgspec.DecodeError as error:
            self._turns.leaving.block(resident, Verdict("incompatible_payload", error))
            return
        if not self._turns.start_execution(resident, history):
            self._turns.leaving.release(resident)

    # Others.

    async def _look_after_others(self) -> None:
        """Find dead nodes, and tell what waits in vain; at start-up and then now and then."""
        dead = await self._node.provider.reap_nodes(self._node.node_id)
        if dead:
            logger.warning("took over the work of %d dead node(s)", len(dead))
            self.news()
        await self._activities.tell_lost()
        now = self._node.loop.time()
        if self._told_at <= now:
            self._told_at = now + UNRUNNABLE_S
            await self._tell_unrunnable()
        await asyncio.sleep(REAP_S)

    async def _tell_unrunnable(self) -> None:
        node = self._node
        rows = await node.provider.unrunnable(node.registry.capabilities, 1_000)
        if not rows:
            return
        names = sorted({f"{row.name} {row.version or ''}".strip() for row in rows})
        detail = f"no orchestration {', '.join(names)} is listed by this runtime"
        logger.warning(
            "%d unfinished instance(s) stay in the store: %s; list it, or run the deployment that "
            "has it",
            len(rows),
            detail,
        )
        fresh = tuple(row.key for row in rows if row.blocked is None)
        if fresh:
            node.committer.submit(
                NoteBlocked(fresh, "not_registered", detail),
                lambda outcome: node.expect(outcome, "noting what cannot run"),
            )


def _poison() -> PerdureError:
    return PerdureError(
        f"{CLAIMS_MAX} attempts ended with the death of their process; "
        "deploy a fix, or start the work again under another id"
    )
