"""A connection to a pooler that gives every transaction another session of the server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

STATEMENTS_MAX = 200


class Pooled:
    """A connection of the driver's that keeps to itself what it knows of a statement's types, and
    sends the statement anew at each use: one round trip, and nothing is left in the session.

    It must have been made with statement_cache_size=0.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._statements: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def execute(self, query: str, *values: Any, timeout: float | None = None) -> None:
        if values:
            await self.fetch(query, *values, timeout=timeout)
        else:
            await self._connection.execute(query, timeout=timeout)

    async def fetch(self, query: str, *values: Any, timeout: float | None = None) -> list[Any]:
        statement = await self._statement(query, timeout)
        rows: list[Any] = await statement.fetch(*values, timeout=timeout)
        return rows

    async def fetchrow(self, query: str, *values: Any, timeout: float | None = None) -> Any:
        return await (await self._statement(query, timeout)).fetchrow(*values, timeout=timeout)

    async def fetchval(self, query: str, *values: Any, timeout: float | None = None) -> Any:
        return await (await self._statement(query, timeout)).fetchval(*values, timeout=timeout)

    @contextlib.asynccontextmanager
    async def transaction(self, *, isolation: str, readonly: bool) -> AsyncIterator[None]:
        """Whatever is done with such a connection is in a transaction; make this one what is asked
        for, before its first query."""
        level = isolation.replace("_", " ")
        access = "read only" if readonly else "read write"
        await self._connection.execute(f"set transaction isolation level {level}, {access}")
        yield

    async def _statement(self, query: str, timeout: float | None) -> Any:
        statement = self._statements.get(query)
        if statement is None:
            if len(self._statements) >= STATEMENTS_MAX:
                self._statements.clear()
            statement = await self._connection.prepare(query, timeout=timeout)
            self._statements[query] = statement
        return statement
