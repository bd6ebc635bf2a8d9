"""Connections to one database: how they are made, kept, and what their errors mean."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

from perdure.errors import ProviderError, StoreUnavailable

DEFAULT_SCHEMA = "perdure"
CONNECT_S = 10.0
COMMAND_S = 30.0
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}\Z")

_SETTINGS = {
    "application_name": "perdure",
    "client_encoding": "UTF8",
    # A process that is stopped inside its transaction must not hold its locks for ever.
    "idle_in_transaction_session_timeout": "10s",
    "default_transaction_isolation": "read committed",
    # Every statement here finds a few rows by an index. Plans made while a table was small would
    # otherwise read it whole for as long as the connection lives.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_material": "off",
    "jit": "off",
}

LOST = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)
"""The connection is gone, or is of no use any more. (A ValueError is never meant.)"""

FOR_NOW = (
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.OperatorInterventionError,
    asyncpg.LockNotAvailableError,
)
"""The server says no to everything for now."""

CONFLICT = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
"""The transaction may simply be repeated."""

_REFUSED = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)

VALUE = (
    asyncpg.exceptions.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    TypeError,
    ValueError,
    OverflowError,
)
"""A value that was to be stored, or asked for, is what the error is about."""

ERRORS = (asyncpg.PostgresError, *LOST, *VALUE)
"""Whatever a piece of work with a connection may raise."""


class Database:
    """Where a store is: an address of PostgreSQL's own form, with `?schema=name` for the store's
    schema. Raises ProviderError if that is no lower-case identifier.

    where: how errors name it; without user and password.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, keep_blank_values=True)
        self.schema = dict(query).get("schema", DEFAULT_SCHEMA)
        if not _SCHEMA.match(self.schema) or self.schema.startswith("pg_"):
            raise ProviderError(
                f"schema {self.schema!r} is no name for a store; use up to 63 lower-case letters, "
                "digits and underscores"
            )
        rest = urlencode([(name, value) for name, value in query if name != "schema"])
        self._dsn = urlunsplit(parts._replace(query=rest))
        address = parts.netloc.rpartition("@")[2]
        self.where = f"postgresql://{address}{parts.path} (schema {self.schema})"

    async def connect(self) -> Any:
        """A new connection. Raises StoreUnavailable or ProviderError with the reason."""
        try:
            return await asyncpg.connect(
                self._dsn,
                timeout=CONNECT_S,
                command_timeout=COMMAND_S,
                server_settings={**_SETTINGS, "search_path": f'"{self.schema}"'},
            )
        except ERRORS as error:
            raise self.explain(error) from error

    async def connect_again(self) -> Any:
        """The same for a store that was open before: whatever is in the way may go away again."""
        try:
            return await self.connect()
        except StoreUnavailable:
            raise
        except ProviderError as error:
            raise StoreUnavailable(str(error)) from error

    def explain(self, error: BaseException) -> ProviderError:
        """What an error of the driver or the server means to a caller."""
        reason = str(error) or type(error).__name__
        if isinstance(error, ProviderError):
            return error
        if isinstance(error, VALUE):
            return ProviderError(f"{self.where} does not accept a value: {reason}")
        if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
            return StoreUnavailable(f"{self.where} is read-only now (a standby?): {reason}")
        if isinstance(error, _REFUSED):
            return ProviderError(f"{self.where} refuses the connection or its rights: {reason}")
        if isinstance(error, (*LOST, *FOR_NOW, *CONFLICT)):
            return StoreUnavailable(f"{self.where} cannot be used now: {reason}")
        return ProviderError(f"{self.where}: {reason}")


class Connections:
    """At most `limit` connections, made when they are needed and kept; first come, first served."""

    def __init__(self, database: Database, limit: int) -> None:
        self._database = database
        self._idle: list[Any] = []
        self._free = asyncio.Semaphore(limit)
        self._closed = False

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncIterator[Any]:
        """A connection for one piece of work. One that fails in it other than by a value that was
        refused is not used again, and neither are the idle ones: they will have gone with it."""
        async with self._free:
            connection = None
            while connection is None and self._idle:
                connection = self._idle.pop()
                if connection.is_closed():
                    connection = None
            if connection is None:
                connection = await self._database.connect_again()
            keep = False
            try:
                yield connection
                keep = True
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                keep = not isinstance(error, (*LOST, *FOR_NOW)) or isinstance(error, VALUE)
                if not keep:
                    self.forget()
                raise
            finally:
                usable = keep and not self._closed and not connection.is_closed()
                if usable and not connection.is_in_transaction():
                    self._idle.append(connection)
                else:
                    connection.terminate()

    def forget(self) -> None:
        """Drop the idle connections."""
        while self._idle:
            self._idle.pop().terminate()

    async def close(self) -> None:
        """Close what is idle now; what is in use is closed at the end of its use."""
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            await close(connection)


async def close(connection: Any) -> None:
    """Close a connection, politely if the server still listens."""
    try:
        await connection.close(timeout=2)
    except (asyncpg.PostgresError, *LOST):
        connection.terminate()
