"""The limit program: the rows of a turn, written to the same tables with no engine at all.

A turn of a sequential orchestration deletes the finished activity, appends two events and inserts
the next activity. `turns_per_second(group)` does that for `group` instances a transaction, with
one prepared statement per kind of row; `bare_commit_ms()` is one such turn a transaction on an idle
connection; `bare_renewal_ms()` is the same with the rows of a continue-as-new under a policy that
keeps three executions. Same file format, same durability (WAL, synchronous=FULL) as the engine's.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

import apsw

from perdure.providers.urls import open_provider

EVENT_DONE = (
    b'{"type":"ActivityCompleted","event_id":5,"timestamp_ms":1763700000000,'
    b'"source_event_id":4,"result":{"i":1}}'
)
EVENT_NEXT = (
    b'{"type":"ActivityScheduled","event_id":6,"timestamp_ms":1763700000000,'
    b'"name":"act","input":{"i":2}}'
)
EVENT_ENDED = (
    b'{"type":"OrchestrationContinuedAsNew","event_id":2,"timestamp_ms":1763700000000,"input":999}'
)
EVENT_STARTED = (
    b'{"type":"OrchestrationStarted","event_id":1,"timestamp_ms":1763700000000,'
    b'"name":"generations","version":"1","input":999,'
    b'"incarnation":"00000000000000000000000000000000","python":"3.11","engine":1}'
)
NODE = "0" * 32
KEPT = 3


class Limit:
    """A bare connection to a store that the engine has created."""

    def __init__(self, path: Path) -> None:
        self._connection = apsw.Connection(str(path), statementcachesize=100)
        self._connection.execute("pragma journal_mode = wal")
        self._connection.execute("pragma synchronous = full")
        self._now = int(time.time() * 1000)
        self._event_id = 2

    def close(self) -> None:
        self._connection.close()

    def turns(self, keys: range) -> None:
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
                for value in (key, 1, event_id, EVENT_DONE, key, 1, event_id + 1, EVENT_NEXT)
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
                for value in (key, 1, event_id + 1, "act", b'{"i":2}', NODE, 1, 1, self._now)
            ],
            9,
        )
        execute("commit")

    def begin_life(self, key: int) -> None:
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

    def renewal(self, key: int, execution_id: int) -> None:
        """One transaction: an execution ends, the next begins, and the one before the last goes."""
        execute = self._connection.execute
        gone = execution_id + 1 - KEPT
        execute("begin immediate")
        execute(
            "insert into history (key, execution_id, event_id, data) values (?, ?, 2, ?), "
            "(?, ?, 1, ?)",
            (key, execution_id, EVENT_ENDED, key, execution_id + 1, EVENT_STARTED),
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


def _rows(execute: object, text: str, values: list[object], width: int) -> None:
    """One multi-row statement, in pieces that SQLite's limit on parameters allows."""
    most = 4_000 * width
    for start in range(0, len(values), most):
        part = values[start : start + most]
        row = "(" + ",".join("?" * width) + ")"
        execute(text.format(",".join([row] * (len(part) // width))), part)  # type: ignore[operator]


def prepare(folder: Path) -> Path:
    """An empty store with the engine's schema."""
    path = folder / "limit.db"

    async def create() -> None:
        provider = open_provider(f"sqlite:///{path}")
        await provider.open()
        await provider.close()

    asyncio.run(create())
    return path


def turns_per_second(folder: Path, group: int, seconds: float = 1.5) -> float:
    """Median of three runs with `group` instances a transaction."""
    limit = Limit(prepare(folder))
    keys = range(1, group + 1)
    limit.turns(keys)
    rates = []
    for _ in range(3):
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds / 3:
            limit.turns(keys)
            done += group
        rates.append(done / (time.perf_counter() - began))
    limit.close()
    return statistics.median(rates)


def bare_commit_ms(folder: Path, commits: int = 1_000) -> float:
    """Median time of one transaction with one turn, on an idle connection."""
    limit = Limit(prepare(folder))
    times = []
    for number in range(commits):
        began = time.perf_counter()
        limit.turns(range(number % 50 + 1, number % 50 + 2))
        times.append(time.perf_counter() - began)
    limit.close()
    return statistics.median(times) * 1000


def bare_renewal_ms(folder: Path, commits: int = 1_000) -> float:
    """Median time of one transaction with the rows of one continue-as-new."""
    limit = Limit(prepare(folder))
    limit.begin_life(1)
    times = []
    for execution_id in range(1, commits + 1):
        began = time.perf_counter()
        limit.renewal(1, execution_id)
        times.append(time.perf_counter() - began)
    limit.close()
    return statistics.median(times) * 1000
