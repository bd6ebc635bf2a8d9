"""The committer: every write of this process to one store goes through it, in groups.

While one batch is being committed the next one gathers; there is no artificial delay. It is the
queue in front of `Provider.commit`, shared by the client and the runtime of a process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from random import Random

from perdure.errors import StoreClosed, StoreUnavailable
from perdure.providers.contract import Committed, CommitTurn, Operation, Outcome, Provider

Done = Callable[[Outcome | BaseException], None]
"""Called on the loop with the outcome of one operation, or with the error that refused it."""

RETRY_S_MIN = 0.05
RETRY_S_MAX = 5.0
BATCH_MAX = 2_000
SMALL = 16

logger = logging.getLogger("perdure")


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
        self._queue: list[tuple[Operation, Done]] = []
        self._in_flight: list[tuple[Operation, Done]] = []
        self._flush_scheduled = False
        self._gathering = False
        self._failures = 0
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()

    def submit(self, operation: Operation, done: Done) -> None:
        """Queue an operation for the next batch. `done` is called exactly once, also on close."""
        if self._closed:
            self._loop.call_soon(done, StoreClosed("the store was closed; open it again"))
            return
        self._queue.append((operation, done))
        if not (self._flush_scheduled or self._in_flight or self._gathering):
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
        """Commit what is queued now, unless a batch is in flight (it then follows at its end)."""
        self._gathering = False
        if self._in_flight or not self._queue:
            return
        self._in_flight = self._queue[:BATCH_MAX]
        self._queue = self._queue[BATCH_MAX:]
        self._idle.clear()
        self._attempt()

    async def drain(self) -> None:
        """Wait until everything submitted so far, and what that led to, has its outcome, or until
        the store becomes unavailable."""
        self.flush()
        while (self._in_flight or self._queue) and not self.degraded:
            await self._idle.wait()
            self.flush()

    async def close(self) -> None:
        """Drain, then refuse whatever comes. While the store is unavailable, give up at once."""
        await self.drain()
        self._closed = True
        lost, self._queue, self._in_flight = self._in_flight + self._queue, [], []
        for _, done in lost:
            done(StoreClosed("the store was closed before this could be committed"))

    def ended(self, turn: CommitTurn) -> None:
        """Tell who waits, if this committed turn ended an execution."""
        if turn.ending is not None:
            for listener in self.on_ended:
                listener(turn)

    def _scheduled_flush(self) -> None:
        self._flush_scheduled = False
        self.flush()

    def _attempt(self) -> None:
        if self._closed:
            return
        batch = [operation for operation, _ in self._in_flight]
        committing: asyncio.Future[list[Outcome]]
        try:
            committing = asyncio.ensure_future(self.provider.commit(batch))
        except Exception as error:
            committing = self._loop.create_future()
            committing.set_exception(error)
        committing.add_done_callback(self._committed)

    def _committed(self, future: asyncio.Future[list[Outcome]]) -> None:
        if self._closed:
            # Retrieved, so that asyncio does not report it as forgotten.
            _ = future.cancelled() or future.exception()
            return
        error = asyncio.CancelledError() if future.cancelled() else future.exception()
        if isinstance(error, StoreUnavailable):
            self._wait_out(error)
        elif error is not None and len(self._in_flight) > 1:
            asyncio.ensure_future(self._one_by_one())
        else:
            outcomes = [error] if error is not None else future.result()
            # With a large batch the loop's other callbacks have waited long enough by then.
            self.telling = self.after is not None and len(outcomes) <= SMALL
            self._finish(outcomes)

    def _finish(self, outcomes: list[Outcome] | list[BaseException]) -> None:
        batch, self._in_flight = self._in_flight, []
        self._failures = 0
        if self.degraded:
            logger.warning("the store is available again")
            self.degraded = None
        # The next batch starts before the outcomes of this one are worked on: the disk and this
        # thread then work at the same time.
        self.flush()
        self.gather()
        try:
            for (operation, done), outcome in zip(batch, outcomes, strict=True):
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
        if not self._in_flight:
            self._idle.set()

    def _tell(self, done: Done, outcome: Outcome | BaseException) -> None:
        try:
            done(outcome)
        except Exception as error:
            # A fault in one of them must not leave the others without their outcomes.
            self._loop.call_exception_handler(
                {"message": f"perdure: {done!r} failed", "exception": error}
            )

    def _wait_out(self, error: StoreUnavailable) -> None:
        """Nothing was applied: repeat the same batch, with back-off and jitter."""
        self._degrade(error)
        ceiling = min(RETRY_S_MAX, RETRY_S_MIN * 2**self._failures)
        self._failures = min(self._failures + 1, 20)
        self._loop.call_later(self._random.uniform(ceiling / 2, ceiling), self._attempt)

    def _degrade(self, error: StoreUnavailable) -> None:
        if self.degraded is None:
            logger.warning("degraded: %s; trying again", error)
        self.degraded = str(error)
        # Whoever drains does not wait for the end of an outage.
        self._idle.set()

    async def _one_by_one(self) -> None:
        """Some value in the batch is refused: find it, so that it alone fails."""
        outcomes: list[Outcome | BaseException] = []
        for operation, _ in list(self._in_flight):
            outcomes.append(await self._alone(operation))
        if not self._closed:
            self._finish(outcomes)  # type: ignore[arg-type]

    async def _alone(self, operation: Operation) -> Outcome | BaseException:
        while True:
            try:
                return (await self.provider.commit([operation]))[0]
            except StoreUnavailable as error:
                self._degrade(error)
                await asyncio.sleep(self._random.uniform(RETRY_S_MIN, 4 * RETRY_S_MIN))
            except Exception as error:
                return error
