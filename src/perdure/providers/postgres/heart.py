"""Renewing leases: a thread with a loop and a connection of its own.

A lease must not depend on how busy the host's loop is, and `beat` may come from any thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import asyncpg

from perdure.errors import StoreClosed
from perdure.providers.postgres.connections import LOST, Database, close
from perdure.providers.postgres.reads import NOW

BEAT_S = 3.0
"""Longer than that none takes on a connection that is of any use, nor making one."""

_BEAT = f"update nodes set lease_until_ms = {NOW} + lease_ms where node_id = $2 returning node_id"


class Heart:
    """now_ms: the store's time, or None for the server's. The thread starts with the first beat."""

    def __init__(self, database: Database, now_ms: Callable[[], int | None]) -> None:
        self._database = database
        self._now_ms = now_ms
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._connection: Any = None
        self._lock: asyncio.Lock

    def beat(self, node_id: str) -> bool:
        """Renew a lease, from any thread; False if the node is not known."""
        with self._starting:
            if self._closed:
                raise StoreClosed(f"{self._database.where} is closed")
            loop = self._loop = self._loop or self._start()
            future = asyncio.run_coroutine_threadsafe(self._beat(node_id), loop)
        return future.result()

    def close(self) -> None:
        """End the thread, after the beats under way."""
        with self._starting:
            self._closed = True
            loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def _start(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        self._lock = asyncio.Lock()
        self._thread = threading.Thread(
            target=loop.run_forever, name="perdure-postgres-heart", daemon=True
        )
        self._thread.start()
        return loop

    async def _beat(self, node_id: str) -> bool:
        async with self._lock:
            try:
                if self._connection is None or self._connection.is_closed():
                    self._connection = await self._database.connect_again(BEAT_S)
                values = self._now_ms(), node_id
                async with asyncio.timeout(BEAT_S), self._database.work(self._connection):
                    found = await self._connection.fetchval(_BEAT, *values)
                return found is not None
            except (asyncpg.PostgresError, *LOST) as error:
                if self._connection is not None:
                    self._connection.terminate()
                    self._connection = None
                raise self._database.explain(error) from error

    async def _end(self) -> None:
        async with self._lock:
            if self._connection is not None:
                await close(self._connection)
