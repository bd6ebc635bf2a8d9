"""Waiting for executions to end, without polling: one watch per instance, shared by its handles.

What ends in this process is told by the committer and costs no query; what ends elsewhere is
looked up when the provider says that another process has committed.
"""

from __future__ import annotations

import asyncio
import logging
from random import Random
from weakref import WeakValueDictionary

from perdure.errors import InstanceNotFound, PerdureError, StoreClosed, StoreUnavailable
from perdure.providers.committer import Committer
from perdure.providers.contract import CommitTurn, Ending

REFRESH_S = 0.02
"""Shortest time between two look-ups: a busy neighbour hints with every commit."""
PAUSES = 3
"""So many times as long as a look-up takes is the pause after it, at least."""
RETRY_S_MAX = 1.0

logger = logging.getLogger("perdure")


class Watch:
    """What is known of one incarnation. current: its execution, at least. final: how it ended.
    seen: the number of the last hint of foreign commits after which it was looked up."""

    def __init__(self, instance_id: str, incarnation: str, seen: int) -> None:
        self.instance_id = instance_id
        self.incarnation = incarnation
        self.seen = seen
        self.current = 1
        self.final: Ending | None = None
        self.gone: PerdureError | None = None
        self.waiters: dict[asyncio.Future[None], int | None] = {}
        """With the execution that each waits for, or None for the instance."""

    def learn(self, current: int, final: Ending | None) -> None:
        """Every execution before the current one has ended by continuing as new."""
        self.current = max(self.current, current)
        self.final = self.final or final
        for waiter, execution_id in self.waiters.items():
            # Who waits for the last execution of thousands is not woken by each.
            if not waiter.done() and self.ending(execution_id) is not None:
                waiter.set_result(None)

    def ending(self, execution_id: int | None) -> Ending | None:
        """How the execution (None: the instance) ended, as far as is known."""
        if execution_id is not None and execution_id < self.current:
            return Ending("continued_as_new")
        return self.final

    def wake(self) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)


class Endings:
    """All watches of one client."""

    def __init__(self, committer: Committer) -> None:
        self._provider = committer.provider
        self._committer = committer
        self._watches: WeakValueDictionary[int, Watch] = WeakValueDictionary()
        self._waiting: set[Watch] = set()
        self._refreshing: asyncio.Task[None] | None = None
        self._again = False
        self._hints = 0
        self._random = Random()
        self._closed = False
        committer.on_ended.append(self._ended)
        self._end_watch = self._provider.watch(self.refresh_soon)

    def watch(self, key: int, instance_id: str, incarnation: str, fresh: bool = False) -> Watch:
        """The watch of an incarnation. fresh: it was started here just now."""
        found = self._watches.get(key)
        if found is None:
            found = self._watches[key] = Watch(
                instance_id, incarnation, self._hints if fresh else -1
            )
        return found

    async def wait(self, watch: Watch, execution_id: int | None) -> Ending:
        """Wait for the end of an execution (None: of the instance, after its last execution).

        Raises InstanceNotFound if the instance is deleted meanwhile, StoreClosed on close.
        """
        while True:
            ending = watch.ending(execution_id)
            if ending is not None:
                return ending
            if watch.gone is not None:
                raise watch.gone
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            # Registered before the look-up: an ending between the two is not missed.
            watch.waiters[waiter] = execution_id
            self._waiting.add(watch)
            try:
                if watch.seen != self._hints:
                    await self._look_up(watch)
                    continue
                await waiter
            finally:
                del watch.waiters[waiter]
                if not watch.waiters:
                    self._waiting.discard(watch)

    async def _look_up(self, watch: Watch) -> None:
        try:
            await self._refresh([watch])
        except StoreUnavailable as error:
            # Whoever waits for a result waits out an outage, too.
            logger.warning("cannot look up a result: %s; trying again", error)
            await asyncio.sleep(RETRY_S_MAX * self._random.uniform(0.1, 1))

    async def close(self) -> None:
        self._closed = True
        self._end_watch()
        self._committer.on_ended.remove(self._ended)
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        for watch in self._waiting:
            watch.gone = StoreClosed("the client was closed while waiting for a result")
            watch.wake()

    def refresh_soon(self) -> None:
        """Look the awaited instances up: another process may have ended one."""
        self._again = True
        self._hints += 1
        if self._waiting and self._refreshing is None and not self._closed:
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh_all())

    def _ended(self, operation: CommitTurn) -> None:
        watch = self._watches.get(operation.key)
        if watch is None or operation.ending is None:
            return
        if operation.next is not None:
            watch.learn(operation.next.execution_id, None)
        else:
            watch.learn(operation.execution_id, operation.ending)

    async def _refresh_all(self) -> None:
        loop = asyncio.get_running_loop()
        pause_s = REFRESH_S
        try:
            while self._again and self._waiting:
                self._again = False
                try:
                    began_s = loop.time()
                    await self._refresh(list(self._waiting))
                    # Looking thousands of them up must not keep the store busy for ever.
                    pause_s = max(REFRESH_S, PAUSES * (loop.time() - began_s))
                except PerdureError as error:
                    logger.warning("cannot look up results: %s; trying again", error)
                    self._again = True
                    pause_s = min(2 * pause_s, RETRY_S_MAX)
                await asyncio.sleep(pause_s)
        finally:
            self._refreshing = None

    async def _refresh(self, watches: list[Watch]) -> None:
        for watch in watches:
            watch.seen = self._hints
        try:
            rows = await self._provider.get_instances([watch.instance_id for watch in watches])
        except BaseException:
            for watch in watches:
                watch.seen = -1
            raise
        for watch in watches:
            row = rows.get(watch.instance_id)
            if row is None or row.incarnation != watch.incarnation:
                watch.gone = InstanceNotFound(
                    f"instance {watch.instance_id!r} was deleted while it was awaited"
                )
                watch.wake()
            elif row.status == "completed" or row.status == "failed" or row.status == "cancelled":
                watch.learn(row.execution_id, Ending(row.status, row.output, row.error))
            elif row.execution_id > watch.current:
                watch.learn(row.execution_id, None)
