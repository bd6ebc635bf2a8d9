"""Runtimes whose PostgreSQL server ends their sessions, takes no more, or is only looked at."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from kit import Gate, until
from mixed import HOSTED, expected, run_mixed

from perdure import OrchestrationContext, Runtime, activity, orchestration
from postgres_server import Server, new_schema, with_schema

pytestmark = pytest.mark.slow

GATES: dict[str, Gate] = {}


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server with a role and a database that a test may do anything to."""
    server = Server()
    try:
        asyncio.run(prepare(server))
        yield server
    finally:
        server.close()


async def prepare(server: Server) -> None:
    async with connected(server.url) as admin:
        await admin.execute("create role worker login")
        await admin.execute("create database work owner worker")


def work_url(server: Server) -> str:
    parts = urlsplit(server.url)
    url = urlunsplit(parts._replace(netloc=f"worker@127.0.0.1:{server.port}", path="/work"))
    return with_schema(url, new_schema())


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


TERMINATE = "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = 'work'"


async def test_sessions_that_are_ended_again_and_again_under_load_cost_nothing_but_time(
    own_server: Server,
) -> None:
    url = work_url(own_server)
    async with (
        connected(own_server.url) as admin,
        Runtime(url, HOSTED) as first,
        Runtime(url, HOSTED) as second,
    ):
        nodes = first.node_id, second.node_id
        ended = 0
        async with asyncio.TaskGroup() as group:
            loads = [
                group.create_task(run_mixed(first.client, "first", range(4))),
                group.create_task(run_mixed(second.client, "second", range(10, 14))),
            ]
            for _ in range(20):
                ended += await admin.fetchval(TERMINATE)
                await asyncio.wait(loads, timeout=0.1)

        assert [load.result() for load in loads] == [expected(range(4)), expected(range(10, 14))]
        assert ended
        assert (first.node_id, second.node_id) == nodes


async def test_without_a_free_session_everything_waits_and_then_goes_on(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    url = work_url(own_server)
    async with (
        connected(own_server.url) as admin,
        Runtime(url, HOSTED) as first,
        Runtime(url, HOSTED) as second,
    ):
        async with asyncio.TaskGroup() as group:
            await admin.execute("alter role worker connection limit 0")
            try:
                await admin.execute(TERMINATE)
                loads = [
                    group.create_task(run_mixed(first.client, "first", range(3))),
                    group.create_task(run_mixed(second.client, "second", range(10, 13))),
                ]
                await until(lambda: "degraded: " in caplog.text)
                await until(lambda: caplog.text.count("too many connections") >= 4)
                assert not any(load.done() for load in loads)
            finally:
                await admin.execute("alter role worker connection limit -1")
        assert [load.result() for load in loads] == [expected(range(3)), expected(range(10, 13))]


# User code and transactions.


@activity
async def gated(name: str) -> str:
    await GATES[name].wait()
    return name


def stand_still() -> None:
    """What the loop does while code computes for long."""
    time.sleep(0.3)


@orchestration
async def blocking(ctx: OrchestrationContext, name: str) -> str:
    for _ in range(2):
        stand_still()
        await gated(name)
    return name


OPEN = """
select query from pg_stat_activity where datname = 'work' and state like 'idle in transaction%'
    and clock_timestamp() - state_change > interval '150 ms'
"""


class Looks:
    """Open transactions that wait for their client, as seen from another thread all the time."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.over = threading.Event()
        self.number = 0
        self.found: list[str] = []

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        async with connected(self._url) as admin:
            while not self.over.is_set():
                self.found += [row["query"] for row in await admin.fetch(OPEN)]
                self.number += 1
                await asyncio.sleep(0.02)


@contextmanager
def looking(url: str) -> Iterator[Looks]:
    looks = Looks(url)
    thread = threading.Thread(target=looks.run)
    thread.start()
    try:
        yield looks
    finally:
        looks.over.set()
        thread.join()


async def test_no_transaction_is_open_while_an_activity_or_a_turn_takes_its_time(
    own_server: Server,
) -> None:
    gate = GATES["long"] = Gate()
    url = work_url(own_server)
    with looking(own_server.url) as looks:
        async with Runtime(url, (gated, blocking)) as runtime:
            handle = await runtime.client.start_orchestration(blocking, "long")
            await gate.has(1)
            enough = looks.number + 10
            await until(lambda: looks.number >= enough)
            gate.open()
            assert await handle.result() == "long"
            assert looks.found == []
            # They would have been seen.
            async with connected(url.partition("?")[0]) as other:
                await other.execute("begin")
                await until(lambda: looks.found)
