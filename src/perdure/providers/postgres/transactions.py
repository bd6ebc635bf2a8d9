"""Transactional activities: a connection of their own, a transaction, and a limit of time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg
import msgspec

from perdure.errors import StoreUnavailable, TransactionRefused, TransactionTimeout
from perdure.providers.contract import CompleteActivity
from perdure.providers.postgres.connections import LOST, Database, in_one_line

LIMIT_S = 5.0
"""Its rows are locked, and cleaning up after others is held up, for as long."""

_REFUSED = frozenset(
    {
        *("abort", "begin", "commit", "discard", "end", "prepare", "release", "reset"),
        *("rollback", "savepoint", "set", "start"),
    }
)
_SPACE = re.compile(r"(?:\s|;|--[^\n]*(?:\n|\Z))*")
_COMMENT_MARK = re.compile(r"/\*|\*/|\Z")
_WORD = re.compile(r"[a-z]*", re.IGNORECASE)


class Transaction:
    """The connection of the store inside its transaction, for the body of one activity.

    Statements have `$1`, `$2`, … for parameters. What the database says of one is raised as an
    `asyncpg.PostgresError`, and after that the transaction takes no other statement. Raises
    TransactionRefused for statements about the transaction and the session, and once the activity
    has returned; TransactionTimeout ends the activity itself.
    """

    def __init__(self, connection: Any, database: Database) -> None:
        self._connection = connection
        self._database = database
        self._is_over = False

    async def execute(self, statement: str, *parameters: Any) -> None:
        """Run one statement."""
        await self.fetch(statement, *parameters)

    async def executemany(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run one statement once for each row of parameters."""
        for row in rows:
            await self.fetch(statement, *row)

    async def fetch(self, statement: str, *parameters: Any) -> list[Any]:
        """Run one statement and return its rows: of values, by number or by column name."""
        self._check(statement)
        try:
            rows: list[Any] = await self._connection.fetch(statement, *parameters)
        except (asyncpg.PostgresError, *LOST) as error:
            if self._connection.is_closed():
                raise self._gone(error) from error
            raise
        return rows

    async def fetchrow(self, statement: str, *parameters: Any) -> Any:
        """Run one statement and return its first row, or None."""
        rows = await self.fetch(statement, *parameters)
        return rows[0] if rows else None

    async def fetchval(self, statement: str, *parameters: Any) -> Any:
        """Run one statement and return the first value of its first row, or None."""
        row = await self.fetchrow(statement, *parameters)
        return None if row is None else row[0]

    def close(self) -> None:
        """Take no statement any more."""
        self._is_over = True

    def _check(self, statement: str) -> None:
        if self._is_over:
            raise TransactionRefused("the activity has returned, and its transaction is over")
        if first_word(statement) in _REFUSED:
            raise TransactionRefused(
                f"not in a transactional activity: {statement.strip()[:100]!r}"
            )

    def _gone(self, error: BaseException) -> StoreUnavailable:
        reason = in_one_line(error)
        return StoreUnavailable(f"{self._database.where}: the connection was lost: {reason}")


def first_word(statement: str) -> str:
    """The first keyword of a statement, in small letters, behind comments and spaces."""
    place = _skip(_SPACE, statement, 0)
    while statement.startswith("/*", place):
        depth, place = 1, place + 2
        while depth and place < len(statement):
            found = _COMMENT_MARK.search(statement, place)
            assert found is not None
            place = found.end()
            depth += {"/*": 1, "*/": -1}.get(found.group(), 0)
        place = _skip(_SPACE, statement, place)
    return statement[place : _skip(_WORD, statement, place)].lower()


def _skip(pattern: re.Pattern[str], text: str, place: int) -> int:
    found = pattern.match(text, place)
    return found.end() if found else place


async def run_body(
    transaction: Transaction, work: Callable[[Any], Awaitable[bytes]], limit_s: float | None
) -> bytes:
    """The completion that the activity's function returns. Raises what it raises, and
    TransactionTimeout."""
    limit_s = min(limit_s or LIMIT_S, LIMIT_S)
    try:
        async with asyncio.timeout(limit_s) as limit:
            return await work(transaction)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise TransactionTimeout(f"the transaction was open for more than {limit_s:g} s") from error
    finally:
        transaction.close()


async def is_claimed(connection: Any, schema: str, claim: CompleteActivity) -> str | None:
    """The number of the transaction if the claim holds now (it is checked again at the end, under
    a lock), else None."""
    number: str | None = await connection.fetchval(
        f'select pg_current_xact_id()::text from "{schema}".activities where key = $1 '
        "and execution_id = $2 and event_id = $3 and owner = $4 and attempt = $5",
        *(claim.key, claim.execution_id, claim.event_id, claim.node_id, claim.attempt),
    )
    return number


def completion(claim: CompleteActivity, body: bytes) -> CompleteActivity:
    return msgspec.structs.replace(claim, body=body)
