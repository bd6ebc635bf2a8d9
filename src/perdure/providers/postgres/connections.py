"""Connections to one database: how they are made, kept, and what their errors mean."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

from perdure.errors import ProviderError, StoreUnavailable
from perdure.providers.postgres.pooled import Pooled

DEFAULT_SCHEMA = "perdure"
CONNECT_S = 10.0
ANSWER_S = 1.0
COMMAND_S = 30.0
"""Longer than that no statement takes on a server that is alive."""
STATEMENTS = 100
"""How many a connection remembers."""
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}\Z")

_NAMED = {"application_name": "perdure", "client_encoding": "UTF8"}
_SETTINGS = {
    # A process that is stopped inside its transaction must not hold its locks for ever.
    "idle_in_transaction_session_timeout": "10000",
    # Every statement here finds a few rows by an index. Plans made while a table was small would
    # otherwise read it whole for as long as the connection lives.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_material": "off",
    # Otherwise each statement about a list is planned anew at each use: half of what a turn costs.
    "plan_cache_mode": "force_generic_plan",
    # Not "jit": the driver changes that one for a moment, for the whole session.
    "jit_above_cost": "-1",
}
_SESSION_SETTINGS = {
    "default_transaction_isolation": "read committed",
    # When a client's machine is gone its locks fall free, as below.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}
# A peer that does not even acknowledge what arrives has gone: known after about 11 seconds, while
# one that is only slow to answer is not given up.
_KEEPALIVE = (
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 5),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 2),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 11_000),
)

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
    schema and `pooling=transaction` if the address is that of a pooler, such as PgBouncer, which
    gives every transaction another session. Raises ProviderError if the schema is no lower-case
    identifier, or pooling neither that nor `session`.

    Of several hosts the one that can be written is taken, unless target_session_attrs says
    otherwise.

    where: how errors name it; without user and password. pooled: whether through such a pooler.
    settings: what sessions are started with. own: the statements that make a transaction one in
    which the store's tables are found. begin: the statements, one round trip, that begin a
    such a transaction.
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
        pooling = dict(query).get("pooling", "session")
        if pooling not in ("session", "transaction"):
            raise ProviderError(f"pooling={pooling} is not known; use session or transaction")
        self.pooled = pooling == "transaction"
        rest = [(name, value) for name, value in query if name not in ("schema", "pooling")]
        address = parts.netloc.rpartition("@")[2]
        if "," in address and "target_session_attrs" not in dict(rest):
            rest.append(("target_session_attrs", "read-write"))
        self._url = parts._replace(query=urlencode(rest))
        self.where = f"postgresql://{address}{parts.path} (schema {self.schema})"
        settings = {**_SETTINGS, "search_path": f'"{self.schema}"'}
        self.own = "; ".join(f"set local {name} = {value}" for name, value in settings.items())
        if self.pooled:
            self.begin = f"begin isolation level read committed; {self.own}"
            self.settings = _NAMED
        else:
            self.begin = "begin"
            self.settings = {**_NAMED, **_SESSION_SETTINGS, **settings}

    def for_users(self) -> Database:
        """The same for statements that are not the store's: with the settings of a session of
        anybody's. A transaction is made the store's by `own`."""
        other = copy.copy(self)
        idle = "idle_in_transaction_session_timeout"
        other.begin = f"begin isolation level read committed; set local {idle} = {_SETTINGS[idle]}"
        other.settings = _NAMED if self.pooled else {**_NAMED, **_SESSION_SETTINGS}
        return other

    async def connect(self, timeout_s: float | None = None) -> Any:
        """A new connection, after at most CONNECT_S unless timeout_s says otherwise. Raises
        StoreUnavailable or ProviderError with the reason."""
        try:
            connecting = asyncpg.connect(
                urlunsplit(self._url),
                timeout=timeout_s or CONNECT_S,
                command_timeout=COMMAND_S,
                server_settings=self.settings,
                # What is prepared in one session does not exist in that of the next transaction.
                statement_cache_size=0 if self.pooled else STATEMENTS,
            )
            connection = await _unharmed(connecting)
            _keep_alive(connection)
        except ERRORS as error:
            if isinstance(error, TimeoutError):
                self._begin_with_another()
            raise self.explain(error) from error
        return Pooled(connection) if self.pooled else connection

    def _begin_with_another(self) -> None:
        """A host that does not even refuse leaves no time for those named after it."""
        user, at, hosts = self._url.netloc.rpartition("@")
        first, comma, others = hosts.partition(",")
        if comma:
            self._url = self._url._replace(netloc=f"{user}{at}{others},{first}")

    async def connect_again(self, timeout_s: float | None = None) -> Any:
        """The same for a store that was open before: whatever is in the way may go away again."""
        try:
            return await self.connect(timeout_s)
        except StoreUnavailable:
            raise
        except ProviderError as error:
            raise StoreUnavailable(str(error)) from error

    @contextlib.asynccontextmanager
    async def work(self, connection: Any) -> AsyncIterator[None]:
        """Around a piece of work that begins no transaction: through a pooler it is one. After an
        error that is left open: the connection must then be closed."""
        if self.pooled:
            await connection.execute(self.begin)
        yield
        if self.pooled:
            await commit(connection)

    def explain(self, error: BaseException) -> ProviderError:
        """What an error of the driver or the server means to a caller."""
        reason = in_one_line(error)
        if isinstance(error, ProviderError):
            return error
        if isinstance(error, VALUE):
            return ProviderError(f"{self.where} does not accept a value: {reason}")
        if isinstance(error, asyncpg.ProtocolViolationError) and "startup parameter" in reason:
            return ProviderError(
                f"{self.where} is behind a pooler that refuses a session's settings ({reason}); "
                "add pooling=transaction to the URL"
            )
        if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
            return StoreUnavailable(f"{self.where} is read-only now (a standby?): {reason}")
        if isinstance(error, _REFUSED):
            return ProviderError(f"{self.where} refuses the connection or its rights: {reason}")
        if isinstance(error, (*LOST, *FOR_NOW, *CONFLICT)):
            return StoreUnavailable(f"{self.where} cannot be used now: {reason}")
        return ProviderError(f"{self.where}: {reason}")


async def _unharmed(connecting: Awaitable[Any]) -> Any:
    """The connection that the driver makes. Cancelled between the connection and the server's first
    answer, the driver would leave an exception behind that nobody asks for: that answer is awaited,
    for a moment, and the connection then closed."""
    making = asyncio.ensure_future(connecting)
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        await asyncio.wait([making], timeout=ANSWER_S)
        if making.cancel():
            await asyncio.wait([making])
        elif not making.cancelled() and making.exception() is None:
            making.result().terminate()
        raise


class Connections:
    """At most `limit` connections, made when they are needed and kept; first come, first served.

    begins: whether their users begin transactions by themselves. If not, each use is one
    transaction through a pooler, and otherwise each statement is.
    """

    def __init__(self, database: Database, limit: int, *, begins: bool = False) -> None:
        self._database = database
        self._begins = begins
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
                if self._begins:
                    yield connection
                else:
                    async with self._database.work(connection):
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


def in_one_line(error: BaseException) -> str:
    """What an error says. The server adds lines to it (DETAIL, HINT); a log has one for each."""
    return " ".join(str(error).split()) or type(error).__name__


async def close(connection: Any) -> None:
    """Close a connection, politely if the server still listens."""
    try:
        await connection.close(timeout=2)
    except (asyncpg.PostgresError, *LOST):
        connection.terminate()


async def commit(connection: Any) -> None:
    """COMMIT."""
    with _never_cancelled(connection):
        await connection.execute("commit", timeout=2 * COMMAND_S)


async def write(connection: Any, statement: str, *values: Any) -> Any:
    """A statement that is a transaction by itself; its row."""
    with _never_cancelled(connection):
        return await connection.fetchrow(statement, *values, timeout=2 * COMMAND_S)


@contextlib.contextmanager
def _never_cancelled(connection: Any) -> Iterator[None]:
    """What commits is given up after COMMAND_S, but never cancelled: a server that waits for its
    standby would then report as committed what may be lost with it."""
    end = asyncio.get_running_loop().call_later(COMMAND_S, connection.terminate)
    try:
        yield
    finally:
        end.cancel()


def _keep_alive(connection: Any) -> None:
    # The driver does not show its socket otherwise.
    peer = connection._transport.get_extra_info("socket")
    if peer is None or peer.family not in (socket.AF_INET, socket.AF_INET6):
        return
    for level, name, value in _KEEPALIVE:
        # Each of them exists where the system has it.
        if hasattr(socket, name):
            peer.setsockopt(level, getattr(socket, name), value)
