"""The committer: every write of this process to one store goes through it, in groups.

While batches are being committed the next one gathers; there is no artificial delay. It is the
queue in front of `Provider.commit`, shared by the client and the runtime of a process. Where the
store takes several batches at once, those in flight touch different instances, so that what
happens to one instance happens in the order in which it was handed over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from random import Random

from perdure.errors import StoreClosed, StoreUnavailable
from perdure.providers.contract import Committed, CommitTurn, Operation, Outcome, Provider
from perdure.providers.touched import EVERYTHING, Touched, touched

Done = Callable[[Outcome | BaseException], None]
"""Called on the loop with the outcome of one operation, or with the error that refused it."""

Item = tuple[Operation, Done, Touched]

RETRY_S_MIN = 0.05
RETRY_S_MAX = 5.0
SLOW_S = 2.0
"""A commit that takes longer is an outage, until it is over."""
BATCH_MAX = 2_000
SMALL = 16
_NOTHING: Touched = ()

logger = logging.getLogger("perdure")


class Flight:
    """A batch that is being committed, or waits to be tried again."""

    __slots__ = ("failures", "items", "since_s")

    def __init__(self, items: list[Item], since_s: float) -> None:
        self.items = items
        self.since_s = since_s
        self.failures = 0

    @property
    def operations(self) -> list[Operation]:
        return [operation for operation, _, _ in self.items]


class Committer:
    """degraded: why nothing can be committed right now, or None. on_ended: called with every
    committed turn that ended an execution, before its submitter learns of it. after: called when
    the outcomes of a small batch have been told, before what they led to is committed; while they
    are being told, `telling` is true: what can wait for `after` need not wait for the loop."""

    def __init__(self, provider: Provider, random: Random) -> None:
        self.provider = provider
        self.degraded: str | None = None
        self.on_ended: list[Callable[[CommitTurn], None]] = []
        self.after: Callable[[], None] | None = None
        self.telling = False
        self._random = random
        self._loop = asyncio.get_running_loop()
        self._flights_max = provider.batches_at_once
        self._queue: list[Item] = []
        self._flights: list[Flight] = []
        self._busy: set[int | str] = set()
        self._flush_scheduled = False
        self._gathering = False
        self._watching = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(self, operation: Operation, done: Done) -> None:
        """Queue an operation for the next batch. `done` is called exactly once, also on close."""
        if self._closed:
            self._loop.call_soon(done, StoreClosed("the store was closed; open it again"))
            return
        alone = self._flights_max == 1
        self._queue.append((operation, done, _NOTHING if alone else touched(operation)))
        if not (self._flush_scheduled or self._gathering or self._is_full):
            self._flush_scheduled = True
            self._loop.call_soon(self._scheduled_flush)

    async def write(self, operation: Operation) -> Outcome:
        """Queue an operation and wait for its outcome. A caller that is cancelled meanwhile does
        not know it: the operation may still be applied."""
        future: asyncio.Future[Outcome] = self._loop.create_future()

        def done(outcome: Outcome | BaseException) -> None:
            if future.done():
                return
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        self.submit(operation, done)
        return await future

    def gather(self) -> None:
        """The caller is about to submit several operations and then to flush: until then none is
        committed for itself, and none costs the loop an iteration."""
        self._gathering = True

    def flush(self) -> None:
        """Commit what is queued now, as far as the batches in flight allow; the rest follows at
        their ends."""
        self._gathering = False
        while self._queue and not self._is_full:
            items = self._take()
            if not items:
                return
            flight = Flight(items, self._loop.time())
            self._flights.append(flight)
            self._idle.clear()
            self._attempt(flight)
            if not self._watching:
                self._watching = True
                self._loop.call_later(SLOW_S, self._look_for_slow)

    @property
    def _is_full(self) -> bool:
        # During an outage the batches in flight are tried again before others join them.
        return len(self._flights) >= self._flights_max or (
            self.degraded is not None and bool(self._flights)
        )

    def _take(self) -> list[Item]:
        """The next batch: in the order of the queue, without what touches an instance of a batch
        in flight, or of something that has to wait for one. Claims, which touch nothing, go by
        themselves: what waits for its commit must not wait for their search, too."""
        items: list[Item] = []
        if self._flights_max == 1:
            items, self._queue = self._queue[:BATCH_MAX], self._queue[BATCH_MAX:]
            return items
        left: list[Item] = []
        waiting: set[int | str] = set()
        place = 0
        if not self._busy.isdisjoint(EVERYTHING):
            return items
        for place, item in enumerate(self._queue, 1):
            touches = item[2]
            if touches is EVERYTHING and (left or self._flights):
                place -= 1
                break
            fits = not items or bool(touches) is bool(items[0][2])
            if fits and self._busy.isdisjoint(touches) and waiting.isdisjoint(touches):
                items.append(item)
            else:
                left.append(item)
                waiting.update(touches)
            if touches is EVERYTHING or len(items) == BATCH_MAX or len(left) == BATCH_MAX:
                break
        self._queue = left + self._queue[place:]
        for _, _, touches in items:
            self._busy.update(touches)
        return items

    async def drain(self) -> None:
        """Wait until everything submitted so far, and what that led to, has its outcome, or until
        the store becomes unavailable."""
        self.flush()
        while (self._flights or self._queue) and not self.degraded:
            await self._idle.wait()
            self.flush()

    async def close(self) -> None:
        """Drain, then refuse whatever comes. While the store is unavailable, give up at once."""
        await self.drain()
        self._closed = True
        lost = [item for flight in self._flights for item in flight.items] + self._queue
        self._queue, self._flights = [], []
        for _, done, _ in lost:
            done(StoreClosed("the store was closed before this could be committed"))

    def ended(self, turn: CommitTurn) -> None:
        """Tell who waits, if this committed turn ended an execution."""
        if turn.ending is not None:
            for listener in self.on_ended:
                listener(turn)

    def _scheduled_flush(self) -> None:
        self._flush_scheduled = False
        self.flush()

    def _attempt(self, flight: Flight) -> None:
        if self._closed:
            return
        committing: asyncio.Future[list[Outcome]]
        try:
            committing = asyncio.ensure_future(self.provider.commit(flight.operations))
        except Exception as error:
            committing = self._loop.create_future()
            committing.set_exception(error)
        committing.add_done_callback(lambda future: self._committed(flight, future))

    def _committed(self, flight: Flight, future: asyncio.Future[list[Outcome]]) -> None:
        if self._closed:
            # Retrieved, so that asyncio does not report it as forgotten.
            _ = future.cancelled() or future.exception()
            return
        error = asyncio.CancelledError() if future.cancelled() else future.exception()
        if isinstance(error, StoreUnavailable):
            self._wait_out(flight, error)
        elif error is not None and len(flight.items) > 1:
            asyncio.ensure_future(self._one_by_one(flight))
        else:
            outcomes = [error] if error is not None else future.result()
            # With a large batch the loop's other callbacks have waited long enough by then.
            self.telling = self.after is not None and len(outcomes) <= SMALL
            self._finish(flight, outcomes)

    def _finish(
        self, flight: Flight, outcomes: Sequence[Outcome] | Sequence[Outcome | BaseException]
    ) -> None:
        self._flights.remove(flight)
        if self._flights_max > 1:
            for _, _, touches in flight.items:
                self._busy.difference_update(touches)
        if self.degraded:
            logger.warning("the store is available again")
            self.degraded = None
            if self._flights:
                # Whoever drains waits for these again, now that there is no outage.
                self._idle.clear()
        # The next batch starts before the outcomes of this one are worked on: the disk and this
        # thread then work at the same time.
        self.flush()
        self.gather()
        try:
            for (operation, done, _), outcome in zip(flight.items, outcomes, strict=True):
                if type(outcome) is Committed:
                    assert isinstance(operation, CommitTurn)
                    self.ended(operation)
                self._tell(done, outcome)
            if self.telling and self.after is not None:
                self.telling = False
                self.after()
        finally:
            if self.telling and self.after is not None:
                # An interruption of the process came in between.
                self.telling = False
                self._loop.call_soon(self.after)
            self.flush()
        if not self._flights:
            self._idle.set()

    def _tell(self, done: Done, outcome: Outcome | BaseException) -> None:
        try:
            done(outcome)
        except Exception as error:
            # A fault in one of them must not leave the others without their outcomes.
            self._loop.call_exception_handler(
                {"message": f"perdure: {done!r} failed", "exception": error}
            )

    # Outages.

    def _wait_out(self, flight: Flight, error: StoreUnavailable) -> None:
        """Nothing was applied: repeat the same batch, with back-off and jitter."""
        self._degrade(str(error))
        ceiling = min(RETRY_S_MAX, RETRY_S_MIN * 2**flight.failures)
        flight.failures = min(flight.failures + 1, 20)
        self._loop.call_later(self._random.uniform(ceiling / 2, ceiling), self._attempt, flight)

    def _degrade(self, why: str) -> None:
        if self.degraded is None:
            logger.warning("degraded: %s; trying again", why)
        self.degraded = why
        # Whoever drains does not wait for the end of an outage.
        self._idle.set()

    def _look_for_slow(self) -> None:
        """Say so if a commit has had no answer for a while: its fate may be unknown."""
        self._watching = bool(self._flights) and not self._closed
        if not self._watching:
            return
        waited_s = self._loop.time() - min(flight.since_s for flight in self._flights)
        if waited_s >= SLOW_S and self.degraded is None:
            self._degrade(f"a commit has had no answer for {waited_s:.0f} s")
        self._loop.call_later(SLOW_S / 2, self._look_for_slow)

    async def _one_by_one(self, flight: Flight) -> None:
        """Some value in the batch is refused: find it, so that it alone fails."""
        outcomes = [await self._alone(operation) for operation in flight.operations]
        if not self._closed:
            self._finish(flight, outcomes)

    async def _alone(self, operation: Operation) -> Outcome | BaseException:
        while True:
            try:
                return (await self.provider.commit([operation]))[0]
            except StoreUnavailable as error:
                self._degrade(str(error))
                await asyncio.sleep(self._random.uniform(RETRY_S_MIN, 4 * RETRY_S_MIN))
            except Exception as error:
                return error
