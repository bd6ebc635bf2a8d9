"""The connection that lives as long as the provider: it holds the nodes' locks, and listens.

The server gives up a session's advisory locks when its connection ends, so a lock that is missing
tells others that the process has gone. If only the connection has gone, it is made again at once.

Through a pooler there is no session to hold a lock or to listen: that a process has gone is then
known when its leases are over, and what others do is found by looking every now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import Any, TypeVar

import asyncpg

from perdure.errors import ProviderError
from perdure.providers.postgres.connections import LOST, Database, close
from perdure.providers.postgres.hints import Hint, decode
from perdure.providers.postgres.reads import NOW
from perdure.providers.postgres.schema import SERVER

RETRY_S_MAX = 1.0
POOLED_LOOK_S = 0.5
"""Between two looks at what others may have done, where nothing is notified."""
LOOK_S = 5.0
"""The same where notifications come: one may have been lost."""
NOTIFY_S = 0.01
"""At most one notification in so many seconds."""

T = TypeVar("T")
logger = logging.getLogger("perdure")

_LOCK_ID = "hashtextextended(current_schema() || '.' || $1::text, 0)"
_REGISTER = f"""
insert into nodes (
    node_id, host, pid, started_ms, lease_until_ms, lease_ms, lock_id, server
) select $2, $3, $4, now, now + $5::bigint, $5,
    case when $6 then hashtextextended(current_schema() || '.' || $2, 0) end, {SERVER}
from {NOW} as clock (now)
"""
_TAKEN_AGAIN = f"update nodes set server = {SERVER} where node_id = $1"


class Session:
    """changed: called on the loop when other processes may have changed anything. heard: called
    with what one of them says that it has changed."""

    def __init__(
        self, database: Database, changed: Callable[[], None], heard: Callable[[Hint], None]
    ) -> None:
        self._database = database
        self._changed = changed
        self._heard_of = heard
        self._name = secrets.token_hex(8)
        self._channel = f"perdure_{database.schema}"[:63]
        self._random = Random(self._name)
        self._connection: Any = None
        self._lock = asyncio.Lock()
        self._nodes: set[str] = set()
        self._unlocked: set[str] = set()
        self._listening = False
        self._repairing: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._to_tell = Hint()
        self._closed = False

    async def register(self, node_id: str, lease_ms: int, now_ms: int | None) -> None:
        """Take a node's lock and note it. Raises ProviderError if another process has it."""
        taken = f"node {node_id} is registered by another process"
        locks = not self._database.pooled

        async def work(connection: Any) -> None:
            lock = f"select pg_try_advisory_lock({_LOCK_ID})"
            if locks and not await connection.fetchval(lock, node_id):
                raise ProviderError(taken)
            values = node_id, socket.gethostname(), os.getpid(), lease_ms, locks
            try:
                await connection.execute(_REGISTER, now_ms, *values)
            except asyncpg.UniqueViolationError as error:
                if locks:
                    await connection.execute(f"select pg_advisory_unlock({_LOCK_ID})", node_id)
                raise ProviderError(taken) from error
            if locks:
                self._nodes.add(node_id)

        await self._use(work)

    async def unlock(self, node_id: str) -> None:
        """Give up a node's lock."""
        if node_id in self._nodes:
            self._nodes.discard(node_id)
            query = f"select pg_advisory_unlock({_LOCK_ID})"
            await self._use(lambda connection: connection.execute(query, node_id))

    async def listen(self) -> None:
        """From now on `changed` is called for what other processes do."""
        if self._listening or self._closed:
            return
        self._listening = True
        self._looking = asyncio.get_running_loop().create_task(self._look_now_and_then())
        if self._database.pooled:
            return
        try:
            await self._use(self._listen)
        except ProviderError:
            self._lost(None)
            raise

    def tell(self, hint: Hint) -> None:
        """Let the other processes know what has changed, a little later."""
        if self._closed or not hint:
            return
        self._to_tell.add(hint)
        if self._telling is None or self._telling.done():
            self._telling = asyncio.get_running_loop().create_task(self._tell())

    async def close(self) -> None:
        self._closed = True
        for task in (self._repairing, self._looking, self._telling):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        async with self._lock:
            if self._connection is not None:
                await close(self._connection)

    async def _use(self, work: Callable[[Any], Awaitable[T]]) -> T:
        async with self._lock:
            try:
                connection = await self._connected()
                try:
                    async with self._database.work(connection):
                        return await work(connection)
                except LOST:
                    # One that does not answer is of no use, and would not say so by itself.
                    connection.terminate()
                    raise
            except (asyncpg.PostgresError, *LOST) as error:
                raise self._database.explain(error) from error

    async def _connected(self) -> Any:
        kept = self._connection
        if kept is not None and not kept.is_closed():
            if not kept.is_in_transaction():
                return kept
            # The work in it failed.
            kept.terminate()
        connection = await self._database.connect_again()
        try:
            self._unlocked = set(self._nodes)
            await self._lock_again(connection)
            if self._listening and not self._database.pooled:
                await self._listen(connection)
        except BaseException:
            connection.terminate()
            raise
        connection.add_termination_listener(self._lost)
        self._connection = connection
        return connection

    async def _lock_again(self, connection: Any) -> None:
        """Take the locks that are missing, as far as they are free: a session that is gone without
        the server knowing it may have them still, for a while."""
        for node_id in sorted(self._unlocked & self._nodes):
            if await connection.fetchval(f"select pg_try_advisory_lock({_LOCK_ID})", node_id):
                await connection.execute(_TAKEN_AGAIN, node_id)
                self._unlocked.discard(node_id)

    async def _listen(self, connection: Any) -> None:
        await connection.add_listener(self._channel, self._heard)

    def _heard(self, connection: Any, pid: int, channel: str, payload: str) -> None:
        sender, hint = decode(payload)
        if sender != self._name:
            self._heard_of(hint)

    def _lost(self, connection: Any) -> None:
        if not self._closed and (self._repairing is None or self._repairing.done()):
            self._repairing = asyncio.get_running_loop().create_task(self._repair())

    async def _repair(self) -> None:
        pause_s = 0.02
        while True:
            try:
                await self._use(self._lock_again)
                if not self._unlocked & self._nodes:
                    break
            except ProviderError as error:
                logger.info("the session is not there again yet: %s", error)
            await asyncio.sleep(self._random.uniform(pause_s / 2, pause_s))
            pause_s = min(2 * pause_s, RETRY_S_MAX)
            # The other connections may be there.
            self._changed()
        # Something may have happened meanwhile.
        self._changed()

    async def _look_now_and_then(self) -> None:
        pause_s = POOLED_LOOK_S if self._database.pooled else LOOK_S
        while True:
            await asyncio.sleep(pause_s * self._random.uniform(0.75, 1.25))
            self._changed()

    async def _notify(self, payload: str, connection: Any) -> None:
        await connection.execute("select pg_notify($1, $2)", self._channel, payload)

    async def _tell(self) -> None:
        while self._to_tell:
            hint, self._to_tell = self._to_tell, Hint()
            payload = hint.encoded(self._name)
            # A hint that is lost is made up for by looking now and then.
            with contextlib.suppress(ProviderError):
                await self._use(partial(self._notify, payload))
            await asyncio.sleep(NOTIFY_S)
