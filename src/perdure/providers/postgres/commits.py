"""Transactions that write: batches, and the bodies of transactional activities.

A transaction whose answer to COMMIT is lost is looked up before anything else is said of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from random import Random
from typing import Any, TypeVar

import asyncpg

from perdure.errors import (
    ProviderError,
    StoreClosed,
    StoreUnavailable,
    TransactionRefused,
)
from perdure.providers.contract import CompleteActivity, Operation, Refused
from perdure.providers.postgres.batches import (
    Applied,
    Mark,
    apply,
    became_of,
    check_values,
    claim,
    give_up,
    is_claim,
    marking,
)
from perdure.providers.postgres.connections import (
    CONFLICT,
    ERRORS,
    LOST,
    VALUE,
    Connections,
    Database,
    commit,
    in_one_line,
    write,
)
from perdure.providers.postgres.quick import PUT_TURNS, Quick, quick
from perdure.providers.postgres.transactions import (
    Transaction,
    completion,
    is_claimed,
    run_body,
)

BATCHES_AT_ONCE = 3
TRANSACTIONS = 4
"""How many transactional activities run at once; others wait for a connection."""
REPEATS = 20
COMMIT_STATUS_S, COMMIT_STATUS_S_MAX = 0.05, 1.0
"""Between two looks what became of a commit."""

T = TypeVar("T")
logger = logging.getLogger("perdure")


class Commits:
    """others: connections for finding out what became of a commit. now_ms: the store's time, or
    None for the server's. probe: see the provider."""

    def __init__(
        self,
        database: Database,
        others: Connections,
        now_ms: Callable[[], int | None],
        probe: Callable[[str], Awaitable[None]] | None,
    ) -> None:
        self._database = database
        self._others = others
        self._now_ms = now_ms
        self._probe = probe
        self._users = database.for_users()
        self._write = Connections(database, BATCHES_AT_ONCE, begins=True)
        self._transacting = Connections(self._users, TRANSACTIONS, begins=True)
        name = secrets.token_hex(16)
        # One for each transaction that may be open: each marks a row of its own.
        self.writers = [f"{name}/{number}" for number in range(BATCHES_AT_ONCE + TRANSACTIONS)]
        self._free_writers = list(self.writers)
        self.batches = 0
        self._random = Random(name)
        self._closing = False

    def begin_to_close(self) -> None:
        """Wait no longer for what became of a commit."""
        self._closing = True

    async def close(self) -> None:
        await self._write.close()
        await self._transacting.close()

    # Batches.

    async def commit(self, batch: Sequence[Operation], now_ms: int, more_keys: int) -> Applied:
        """Apply a batch. now_ms: a time that the store's clock has passed. more_keys: how many
        keys to reserve with it."""

        async def work(connection: Any) -> Applied:
            # A pooler's session has not the settings that a single statement needs.
            check_values(batch)
            if not (more_keys or self._database.pooled):
                found = quick(batch, now_ms)
                done = None if found is None else await self._at_once(connection, found)
                if done is not None:
                    return done
            with self._mark() as mark:
                if more_keys == 0 and all(map(is_claim, batch)):
                    await connection.execute(f"{self._database.begin}; {marking(mark, now_ms)}")
                    applying = claim(connection, batch, self._now_ms())
                else:
                    await connection.execute(self._database.begin)
                    applying = apply(connection, batch, mark, self._now_ms(), more_keys)
                return await self._finish(connection, mark, applying)

        return await self.repeated(self._write, work)

    async def _at_once(self, connection: Any, found: Quick) -> Applied | None:
        """Write a batch in one round trip; None if nothing was written and it has to be looked at
        first. (If it cannot be written at all, that is then found out.)"""
        with self._mark() as mark:
            try:
                await self._reached("before_commit")
                values = (*found.parameters, *mark, self._now_ms())
                now_ms, owners, unowned = await write(connection, PUT_TURNS, *values)
                seen_at_s = time.monotonic()
                found.hint.nodes.update(owners or ())
                found.hint.work |= bool(unowned)
                await self._reached("after_commit")
            except VALUE:
                return None
            except LOST as error:
                connection.terminate()
                await self._find_out(lambda other: give_up(other, mark), error)
                now_ms, seen_at_s = 0, 0.0
                found.hint.everything = True
            except asyncpg.PostgresError as error:
                logger.debug("a batch has to be looked at first: %s", error)
                return None
        return Applied(found.outcomes, now_ms, seen_at_s, hint=found.hint)

    async def repeated(self, connections: Connections, work: Callable[[Any], Awaitable[T]]) -> T:
        """Do the work, again if it collides with another transaction."""
        for attempt in range(REPEATS):
            try:
                async with connections.use() as connection:
                    return await work(connection)
            except CONFLICT as error:
                logger.debug("repeating a transaction: %s", error)
            except ERRORS as error:
                raise self._database.explain(error) from error
            await asyncio.sleep(self._random.uniform(0, min(0.5, 0.002 * 2**attempt)))
        raise StoreUnavailable(
            f"{self._database.where}: {REPEATS} attempts collided with other transactions"
        )

    @contextlib.contextmanager
    def _mark(self) -> Iterator[Mark]:
        self.batches += 1
        writer = self._free_writers.pop()
        try:
            yield Mark(writer, self.batches)
        finally:
            self._free_writers.append(writer)

    async def _finish(self, connection: Any, mark: Mark, applying: Awaitable[Applied]) -> Applied:
        """Do the work in the transaction that is open, and commit it."""
        try:
            done = await applying
            await self._reached("before_commit")
        except BaseException:
            if not connection.is_closed():
                await connection.execute("rollback")
            raise
        await self._end(connection, done, mark)
        return done

    async def _end(self, connection: Any, done: Applied, mark: Mark) -> None:
        if done.xid is None:
            # A sequence's progress is on the disk only after a commit: a server that crashes would
            # give the same keys again.
            await (commit(connection) if done.keys else connection.execute("rollback"))
            return
        try:
            await commit(connection)
            await self._reached("after_commit")
        except asyncpg.IntegrityConstraintViolationError:
            # A constraint of the user's that is checked at the end: the answer is no.
            raise
        except (asyncpg.PostgresError, *LOST) as error:
            connection.terminate()
            xid, own = done.xid, mark if done.marked else None
            await self._find_out(lambda other: became_of(other, xid, own), error)

    async def _reached(self, place: str) -> None:
        if self._probe is not None:
            await self._probe(place)

    async def _find_out(self, ask: Callable[[Any], Awaitable[str]], error: BaseException) -> None:
        """The answer to a commit was lost. Returns if the transaction was committed; raises
        StoreUnavailable if it was not; waits as long as it is not known."""
        reason = in_one_line(error)
        logger.warning("the answer to a commit was lost (%s); finding out", reason)
        pause_s = COMMIT_STATUS_S
        while not self._closing:
            try:
                async with self._others.use() as connection:
                    status = await ask(connection)
            except (ProviderError, *ERRORS) as unreachable:
                logger.info("it is not known yet: %s", unreachable)
                status = "in progress"
            if status == "committed":
                return
            if status == "aborted":
                message = f"{self._database.where} did not commit: {reason}"
                raise StoreUnavailable(message) from error
            await asyncio.sleep(pause_s * self._random.uniform(0.5, 1.5))
            pause_s = min(2 * pause_s, COMMIT_STATUS_S_MAX)
        raise StoreClosed(
            f"{self._database.where} was closed before it was known whether a commit had succeeded"
        ) from error

    # Transactional activities.

    async def transact(
        self,
        claim: CompleteActivity,
        work: Callable[[Any], Awaitable[bytes]],
        limit_s: float | None,
        ending: Callable[[], None],
    ) -> Applied:
        """See Provider. ending: called when the body is over and what follows must be finished."""
        async with self._transacting.use() as connection:
            with self._explained():
                await connection.execute(self._users.begin)
                number = await is_claimed(connection, self._database.schema, claim)
            if number is None:
                await connection.execute("rollback")
                return Applied([Refused("stale")], 0, 0.0)
            try:
                body = await run_body(Transaction(connection, self._database), work, limit_s)
            except Exception:
                if not connection.is_closed():
                    await connection.execute("rollback")
                raise
            ending()
            with self._explained(), self._mark() as mark:
                return await self._complete(connection, completion(claim, body), mark, number)

    async def _complete(
        self, connection: Any, done: CompleteActivity, mark: Mark, number: str
    ) -> Applied:
        try:
            await connection.execute(self._database.own)
            own = await connection.fetchval("select pg_current_xact_id()::text")
        except asyncpg.InFailedSQLTransactionError as error:
            await connection.execute("rollback")
            raise TransactionRefused(
                "a statement of the activity has failed, after which the transaction takes no "
                "other; let its error out of the activity"
            ) from error
        if own != number:
            await connection.execute("rollback")
            raise TransactionRefused("the activity has ended its transaction by itself")
        applying = apply(connection, [done], mark, self._now_ms(), 0)
        return await self._finish(connection, mark, applying)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except CONFLICT as error:
            raise StoreUnavailable(f"{self._database.where}: {in_one_line(error)}") from error
        except ERRORS as error:
            raise self._database.explain(error) from error
