"""The limit program on SQLite: WAL, synchronous=FULL, one prepared statement per kind of row."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import apsw
import rows


class SqliteLimit:
    """A bare connection to a store that the engine has created."""

    def __init__(self, url: str) -> None:
        path = url.removeprefix("sqlite:///")
        self._connection = apsw.Connection(path, statementcachesize=100)
        self._connection.execute("pragma journal_mode = wal")
        self._connection.execute("pragma synchronous = full")
        self._now = int(time.time() * 1000)
        self._event_id = 2

    async def close(self) -> None:
        self._connection.close()

    async def turns(self, keys: Sequence[int]) -> None:
        """One transaction: a middle turn of each of these instances."""
        execute = self._connection.execute
        event_id = self._event_id
        self._event_id += 2
        execute("begin immediate")
        _rows(
            execute,
            "delete from activities where (key, execution_id, event_id) in (values {})",
            [value for key in keys for value in (key, 1, event_id - 1)],
            3,
        )
        _rows(
            execute,
            "insert into history (key, execution_id, event_id, data) values {}",
            [
                value
                for key in keys
                for value in (
                    key,
                    1,
                    event_id,
                    rows.EVENT_DONE,
                    key,
                    1,
                    event_id + 1,
                    rows.EVENT_NEXT,
                )
            ],
            4,
        )
        _rows(
            execute,
            "insert into activities (key, execution_id, event_id, name, input, owner, attempt, "
            "claims, due_ms) values {}",
            [
                value
                for key in keys
                for value in (key, 1, event_id + 1, "act", rows.INPUT, rows.NODE, 1, 1, self._now)
            ],
            9,
        )
        execute("commit")

    async def begin_life(self, key: int) -> None:
        """An instance with its first execution, which `renewal` is to follow."""
        self._connection.execute(
            "insert into instances (key, instance_id, incarnation, name, version, status, "
            "execution_id, nesting, created_ms, attempt, mail, external) "
            "values (?, ?, '0', 'generations', '1', 'running', 1, 0, ?, 0, 0, 0)",
            (key, f"i-{key}", self._now),
        )
        self._connection.execute(
            "insert into executions (key, execution_id, version, status, input, started_ms) "
            "values (?, 1, '1', 'running', x'31', ?)",
            (key, self._now),
        )

    async def renewal(self, key: int, execution_id: int) -> None:
        """One transaction: an execution ends, the next begins, and the one before the last goes."""
        execute = self._connection.execute
        gone = execution_id + 1 - rows.KEPT
        execute("begin immediate")
        execute(
            "insert into history (key, execution_id, event_id, data) values (?, ?, 2, ?), "
            "(?, ?, 1, ?)",
            (key, execution_id, rows.EVENT_ENDED, key, execution_id + 1, rows.EVENT_STARTED),
        )
        execute(
            "update executions set status = 'continued_as_new', ended_ms = ? "
            "where key = ? and execution_id = ?",
            (self._now, key, execution_id),
        )
        execute(
            "insert into executions (key, execution_id, version, status, input, started_ms) "
            "values (?, ?, '1', 'running', x'31', ?)",
            (key, execution_id + 1, self._now),
        )
        execute("update instances set execution_id = ? where key = ?", (execution_id + 1, key))
        execute("delete from history where key = ? and execution_id <= ?", (key, gone))
        execute("delete from executions where key = ? and execution_id <= ?", (key, gone))
        execute("commit")


def _rows(execute: Callable[..., Any], text: str, values: list[object], width: int) -> None:
    """One multi-row statement, in pieces that SQLite's limit on parameters allows."""
    most = 4_000 * width
    for start in range(0, len(values), most):
        part = values[start : start + most]
        row = "(" + ",".join("?" * width) + ")"
        execute(text.format(",".join([row] * (len(part) // width))), part)
