"""What a transactional activity gets of the writer's connection: statements, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import apsw

from perdure.errors import StoreUnavailable, TransactionRefused, TransactionTimeout
from perdure.providers.contract import CompleteActivity

LIMIT_S = 0.1
"""Every other write waits as long."""
STEPS = 1_000
"""How many steps of a statement are made between two looks at the clock."""

CLAIMED = """
select count(*) from activities
where key = ? and execution_id = ? and event_id = ? and owner = ? and attempt = ?
"""

OWN = frozenset(
    {
        *("activities", "event_ids", "executions", "history", "inbox", "instances", "nodes"),
        *("timers", "batch", "notes"),
    }
)
"""The tables of the store, of which user code must not write any."""

_TRANSACTIONS = {
    apsw.SQLITE_TRANSACTION,
    apsw.SQLITE_SAVEPOINT,
    apsw.SQLITE_ATTACH,
    apsw.SQLITE_DETACH,
    apsw.SQLITE_PRAGMA,
}
_WRITES = {apsw.SQLITE_INSERT, apsw.SQLITE_UPDATE, apsw.SQLITE_DELETE, apsw.SQLITE_DROP_TABLE}
_SECOND_NAMES = {
    apsw.SQLITE_ALTER_TABLE,
    apsw.SQLITE_CREATE_INDEX,
    apsw.SQLITE_CREATE_TEMP_TRIGGER,
    apsw.SQLITE_CREATE_TRIGGER,
    apsw.SQLITE_DROP_INDEX,
    apsw.SQLITE_DROP_TRIGGER,
}
"""Their table is the second thing that they name."""
_UNAVAILABLE = apsw.FullError, apsw.IOError, apsw.NoMemError

Parameters = Sequence[Any] | Mapping[str, Any]


def claimed_by(claim: CompleteActivity) -> tuple[Any, ...]:
    """The parameters of CLAIMED."""
    return claim.key, claim.execution_id, claim.event_id, claim.node_id, claim.attempt


class Guard:
    """Refuses, while user code runs, to prepare what it must not do.

    It is set on the connection once and for all: to set it anew would have every statement
    prepared anew.
    """

    def __init__(self, connection: apsw.Connection) -> None:
        self._watches = False
        connection.authorizer = self._allow

    @contextmanager
    def watching(self) -> Iterator[None]:
        self._watches = True
        try:
            yield
        finally:
            self._watches = False

    def _allow(
        self,
        action: int,
        first: str | None,
        second: str | None,
        database: str | None,
        inner: str | None,
    ) -> int:
        if not self._watches:
            return apsw.SQLITE_OK
        if action in _TRANSACTIONS:
            return apsw.SQLITE_DENY
        table = second if action in _SECOND_NAMES else first if action in _WRITES else None
        return apsw.SQLITE_DENY if (table or "").lower() in OWN else apsw.SQLITE_OK


class Transaction:
    """The connection of the store inside its transaction, for the body of one activity.

    limit_s: how long the body may take, at most LIMIT_S; after that the next statement, or the one
    that is running, raises TransactionTimeout.
    """

    def __init__(self, connection: apsw.Connection, limit_s: float | None) -> None:
        self._connection = connection
        self._limit_s = min(limit_s or LIMIT_S, LIMIT_S)
        self._until = time.monotonic() + self._limit_s
        self._is_late = self._is_over = False

    def __enter__(self) -> Self:
        self._connection.set_progress_handler(self._late, STEPS)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._connection.set_progress_handler(None)
        if self._is_late:
            raise self._timeout()

    def execute(self, statement: str, parameters: Parameters = ()) -> list[tuple[Any, ...]]:
        """Run a statement (or several, which share the parameters) and return its rows.

        parameters: in order for `?`, by name for `:name`. Raises TransactionRefused for statements
        about transactions, databases and settings and for writes to the store's own tables,
        TransactionTimeout, and what SQLite says of it as an `apsw.Error`.
        """
        self._check()
        try:
            # Not from the cache: what is in it was prepared without the guard.
            cursor = self._connection.execute(statement, parameters, can_cache=False)
            return list(cursor)
        except apsw.AuthError as error:
            raise TransactionRefused(
                f"not in a transactional activity: {statement.strip()[:100]!r}"
            ) from error
        except apsw.InterruptError as error:
            raise self._timeout() from error
        except _UNAVAILABLE as error:
            raise StoreUnavailable(f"the store cannot be written now: {error}") from error

    def executemany(self, statement: str, rows: Sequence[Parameters]) -> None:
        """Run a statement once for each row of parameters."""
        for row in rows:
            self.execute(statement, row)

    def _check(self) -> None:
        if self._is_over:
            raise TransactionRefused("the activity has returned, and its transaction is over")
        if self._late():
            raise self._timeout()
        if not self._connection.in_transaction:
            raise TransactionRefused("a statement before this one has undone the transaction")

    def _late(self) -> bool:
        self._is_late = self._is_late or time.monotonic() > self._until
        return self._is_late

    def _timeout(self) -> TransactionTimeout:
        return TransactionTimeout(
            f"the transaction was open for more than {self._limit_s * 1000:g} ms, while every "
            "other write to the store waits for it"
        )
