"""Leaving: every way in which a resident is let go other than the end of its instance."""

from __future__ import annotations

import logging
from collections.abc import Callable

from perdure.core.execution import Execution
from perdure.core.journal import Verdict
from perdure.providers.contract import Outcome, ReleaseInstance
from perdure.runtime.activities import Activities
from perdure.runtime.node import Node
from perdure.runtime.residents import Delivery, Resident
from perdure.runtime.watchdog import TurnStuck, Watchdog

RETRY_MS_MIN = 1_000
RETRY_MS_MAX = 60_000

logger = logging.getLogger("perdure")


class Leaving:
    """left: told of each resident that is gone. news: something may be due in the store."""

    news: Callable[[], None]

    def __init__(
        self,
        node: Node,
        activities: Activities,
        watchdog: Watchdog,
        left: Callable[[Resident], None],
    ) -> None:
        self._node = node
        self._activities = activities
        self._watchdog = watchdog
        self._left = left
        self._refusals: dict[int, int] = {}
        self._evicting = False

    def settled(self, resident: Resident) -> None:
        """It has made progress: the next time that it is blocked counts as the first."""
        self._refusals.pop(resident.key, None)

    def forget(self, resident: Resident, deliveries: list[Delivery]) -> None:
        """Drop the copy in memory. In-memory completions become messages for the next owner."""
        resident.released = True
        self._node.residents.remove(resident)
        self.close(resident, resident.execution)
        resident.execution = None
        resident.timers.clear()
        self.store_local(resident, deliveries + resident.pending)
        resident.pending = []
        self._left(resident)

    def store_local(self, resident: Resident, deliveries: list[Delivery]) -> None:
        """Keep the in-memory completions among these as messages."""
        for delivery in deliveries:
            if delivery.local:
                self._activities.store(resident.key, delivery)

    def release(self, resident: Resident, charge: bool = False) -> None:
        """Give an idle resident back; its parked instance is free for any node."""
        due_ms = resident.stored_due_ms if resident.unsettled else resident.next_due_ms()
        self.forget(resident, [])
        self._node.committer.submit(
            ReleaseInstance(resident.key, resident.token, resident.mail, due_ms, charge=charge),
            self._released,
        )

    def _released(self, outcome: Outcome | BaseException) -> None:
        self._node.expect(outcome, "giving an instance back")
        # A message may have come meanwhile, and nobody else here watches its timers any more.
        self.news()

    def give_everything_back(self) -> None:
        """The node stops: nothing in memory is needed any more. What was claimed but never ran is
        given back uncharged; the rest goes with the node."""
        for resident in self._node.residents:
            if resident.unsettled and resident.committing is None:
                self.release(resident)
            else:
                self.forget(resident, [])

    def block(
        self,
        resident: Resident,
        verdict: Verdict,
        deliveries: list[Delivery] | None = None,
        charge: bool = False,
    ) -> None:
        """Give the instance back with the reason why it cannot go on now, to be tried again."""
        logger.error(
            "instance %s is blocked (%s): %s", resident.instance_id, verdict.reason, verdict.error
        )
        due_ms = resident.stored_due_ms
        self.forget(resident, deliveries or [])
        times = self._refusals[resident.key] = self._refusals.get(resident.key, 0) + 1
        now_ms = self._node.provider.now_ms()
        hold_ms = now_ms + min(RETRY_MS_MAX, RETRY_MS_MIN * 2 ** min(times - 1, 10))
        self._node.committer.submit(
            ReleaseInstance(
                resident.key,
                resident.token,
                resident.mail,
                now_ms if due_ms is None else due_ms,
                charge=charge,
                blocked=verdict.reason,
                detail=str(verdict.error),
                hold_ms=hold_ms,
            ),
            self._blocked,
        )

    def _blocked(self, outcome: Outcome | BaseException) -> None:
        self._node.expect(outcome, "giving a blocked instance back")
        self.news()

    def evict_soon(self) -> None:
        """Give the surplus back, once for all turns of a batch: looking for idle residents among
        thousands of busy ones after each turn would cost more than the turns."""
        if self._node.residents.over_limit and not self._evicting:
            self._evicting = True
            self._node.loop.call_soon(self._evict)

    def _evict(self) -> None:
        self._evicting = False
        for resident in self._node.residents.surplus():
            self.release(resident)

    def close(self, resident: Resident, execution: Execution | None) -> None:
        if execution is None:
            return
        # Cleanup code of the user runs in there, and may block as a turn may.
        self._watchdog.enter(resident.instance_id)
        try:
            try:
                stubborn = execution.close()
            finally:
                self._watchdog.leave()
        except TurnStuck:
            # It may have been raised on the way into the first `leave`.
            self._watchdog.leave()
            stubborn = 1
        if stubborn:
            self._node.counters["parked_coroutines"] += stubborn
            logger.error(
                "instance %s: %d coroutine(s) refuse to end (they swallow BaseException for ever)",
                resident.instance_id,
                stubborn,
            )
