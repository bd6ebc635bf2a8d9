"""The limit program: the rows of a turn, written to the same tables with no engine at all.

A turn of a sequential orchestration deletes the finished activity, appends two events and inserts
the next activity. `turns_per_second(url, group)` does that for `group` instances a transaction;
`bare_commit_ms(url)` is one such turn a transaction on an idle connection; `bare_renewal_ms(url)`
is the same with the rows of a continue-as-new under a policy that keeps three executions. The
store has the engine's schema and the engine's durability, and is otherwise empty.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from typing import Protocol

from limit_postgres import PostgresLimit
from limit_sqlite import SqliteLimit

from perdure.providers.urls import open_provider

IN_FLIGHT = (1, 2, 4)
"""So many transactions at once are tried on PostgreSQL; the best counts. SQLite has one writer."""


class Limit(Protocol):
    """A bare connection to a store."""

    async def turns(self, keys: Sequence[int]) -> None: ...
    async def begin_life(self, key: int) -> None: ...
    async def renewal(self, key: int, execution_id: int) -> None: ...
    async def close(self) -> None: ...


async def _opened(url: str) -> Limit:
    provider = open_provider(url)
    await provider.open()
    await provider.close()
    if url.startswith("sqlite:"):
        return SqliteLimit(url)
    limit = PostgresLimit(url)
    await limit.open()
    return limit


async def turns_per_second(url: str, group: int, seconds: float = 0.4) -> float:
    """With `group` instances a transaction: the median of three runs of so many seconds."""
    ways = (1,) if url.startswith("sqlite:") else IN_FLIGHT
    limits = [await _opened(url) for _ in range(max(ways))]
    keys = [range(n * group + 1, (n + 1) * group + 1) for n in range(max(ways))]
    best = 0.0
    for way in ways:
        rates = []
        for _ in range(3):
            began = time.perf_counter()
            until = began + seconds
            done = await asyncio.gather(*(_turns(limits[n], keys[n], until) for n in range(way)))
            rates.append(sum(done) / (time.perf_counter() - began))
        best = max(best, statistics.median(rates))
    for limit in limits:
        await limit.close()
    return best


async def _turns(limit: Limit, keys: range, until: float) -> int:
    done = 0
    while done == 0 or time.perf_counter() < until:
        await limit.turns(keys)
        done += len(keys)
    return done


async def bare_commit_ms(url: str, commits: int = 1_000) -> float:
    """Median time of one transaction with one turn, on an idle connection."""
    limit = await _opened(url)
    times = []
    for number in range(commits):
        began = time.perf_counter()
        await limit.turns([number % 50 + 1])
        times.append(time.perf_counter() - began)
    await limit.close()
    return statistics.median(times) * 1000


async def bare_renewal_ms(url: str, commits: int = 1_000) -> float:
    """Median time of one transaction with the rows of one continue-as-new."""
    limit = await _opened(url)
    await limit.begin_life(1)
    times = []
    for execution_id in range(1, commits + 1):
        began = time.perf_counter()
        await limit.renewal(1, execution_id)
        times.append(time.perf_counter() - began)
    await limit.close()
    return statistics.median(times) * 1000
