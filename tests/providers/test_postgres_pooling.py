"""Through PgBouncer in transaction mode: whatever works without it works, some of it later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from provider_world import (
    CAPS,
    LEASE_MS,
    Clock,
    World,
    acquire,
    claim,
    is_a,
    new,
    note,
    one,
    row,
    running,
    start,
    turn,
)

from perdure.errors import ProviderError
from perdure.providers.contract import Committed, RowFilter, Started
from perdure.providers.postgres import PostgresProvider
from perdure.providers.postgres.connections import Database
from perdure.providers.urls import open_provider
from postgres_pooler import PROGRAM, Pooler
from postgres_proxy import Proxy
from postgres_server import new_schema, with_schema

if PROGRAM is None:
    pytest.skip("pgbouncer is not installed", allow_module_level=True)


def through(pooler: Pooler, url: str) -> str:
    """The URL of the same store through the pooler."""
    return f"{with_schema(pooler.url, Database(url).schema)}&pooling=transaction"


@pytest.fixture(scope="module")
def pooler(postgres_server: str) -> Iterator[Pooler]:
    pooler = Pooler(postgres_server)
    try:
        yield pooler
    finally:
        pooler.close()


@pytest.fixture
def lone_session(postgres_server: str) -> Iterator[Pooler]:
    """All clients share one session of the server."""
    pooler = Pooler(postgres_server, size=1)
    try:
        yield pooler
    finally:
        pooler.close()


@pytest.fixture
def store(pooler: Pooler, postgres_url: str, tmp_path: Path) -> World:
    return World("postgres", tmp_path, through(pooler, postgres_url))


@asynccontextmanager
async def opened(*urls: str, **fields: Any) -> AsyncIterator[list[PostgresProvider]]:
    async with AsyncExitStack() as stack:
        providers = [PostgresProvider(url, **fields) for url in urls]
        for provider in providers:
            await provider.open()
            stack.push_async_callback(provider.close)
        yield providers


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """A connection of somebody else's, without the provider's settings."""
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        yield connection
    finally:
        await connection.close()


async def wait_for(holds: Any) -> None:
    async with asyncio.timeout(30):
        while not await holds():
            await asyncio.sleep(0.01)


# The URL.


def test_a_way_of_pooling_that_is_not_known_is_refused() -> None:
    with pytest.raises(ProviderError, match="pooling=statement is not known; use session or"):
        open_provider("postgresql://host/database?pooling=statement")


async def test_a_pooler_that_the_url_does_not_speak_of_is_refused(pooler: Pooler) -> None:
    with pytest.raises(ProviderError, match="add pooling=transaction to the URL"):
        await PostgresProvider(with_schema(pooler.url, new_schema())).open()


async def test_a_pooler_that_ignores_settings_is_refused(postgres_server: str) -> None:
    database = Database(postgres_server)
    ignored = f"ignore_startup_parameters = {', '.join(database.settings)}"
    pooler = Pooler(postgres_server, more=ignored)
    try:
        with pytest.raises(ProviderError, match="ignores a session's settings; add pooling="):
            await PostgresProvider(with_schema(pooler.url, new_schema())).open()
    finally:
        pooler.close()


# What a provider does.


async def test_ten_may_open_an_empty_schema_at_once(store: World) -> None:
    providers = await asyncio.gather(*(store.open() for _ in range(10)))

    await asyncio.gather(*(start(each, f"i-{n}") for n, each in enumerate(providers)))

    assert [await each.count_instances() for each in providers] == [{"pending": 10}] * 10


async def test_reads_and_writes_of_two_processes_are_as_ever(store: World) -> None:
    first, second = await store.open(), await store.open()
    for n, each in enumerate((first, second), 1):
        await each.register_node(f"n-{n}", LEASE_MS)
    of = await acquire(first)
    assert await one(first, turn(of, b"1", activities=(running(1),))) == Committed()
    await one(second, note("i-1"))

    ((mail,), now_ms) = (await first.survey("n-1", CAPS, frozenset())).mail, store.clock.now
    assert len(mail.messages) == 1
    assert mail.messages[0].accepted_ms == now_ms
    assert await second.read_history("i-1") == [b"1"]
    assert len(await second.list_instances(RowFilter(), limit=10)) == 1
    (shown,) = await second.snapshots("i-1")
    assert shown.instance_id == "i-1"
    assert await asyncio.to_thread(second.beat, "n-2")
    assert [each.node_id for each in await first.nodes()] == ["n-1", "n-2"]


async def test_a_value_that_is_refused_spoils_nothing_that_follows(store: World) -> None:
    provider = await store.open()
    for _ in range(3):
        with pytest.raises(ProviderError, match="does not accept a value"):
            await one(provider, new("i\0"))
        with pytest.raises(ProviderError, match="does not accept a value"):
            await provider.get_instances(["i\0"])
    assert is_a(Started, await one(provider, new("i-1")))


async def test_many_transactions_share_few_sessions(store: World) -> None:
    providers = [await store.open() for _ in range(4)]

    async def write(number: int) -> None:
        for count in range(10):
            await start(providers[number], f"{number}-{count}")
            await row(providers[number], f"{number}-{count}")

    await asyncio.gather(*map(write, range(4)))

    assert len(await claim(providers[0])) == 40


async def test_a_session_is_left_as_it_was(postgres_url: str, lone_session: Pooler) -> None:
    # The pooler itself looks after the name, and the language is loaded at its first use.
    settings = (
        "select name, setting from pg_settings where name !~ '^(plpgsql[.]|application_name$)' "
        "union select 'pid', pg_backend_pid()::text"
    )
    async with (
        connected(lone_session.url) as client,
        opened(through(lone_session, postgres_url)) as (provider,),
    ):
        before = set(await client.fetch(settings))
        await provider.register_node("n-1", LEASE_MS)
        await acquire(provider)
        await provider.snapshots("i-1")
        await asyncio.to_thread(provider.beat, "n-1")
        await provider.survey("n-1", CAPS, frozenset())
        await provider.reap_nodes("n-1")

        assert set(await client.fetch(settings)) == before
        assert await client.fetchval("select count(*) from pg_prepared_statements") == 0
        locks = "select count(*) from pg_locks where locktype = 'advisory'"
        assert await client.fetchval(locks) == 0


async def test_a_commit_costs_four_round_trips_also_through_a_pooler(
    pooler: Pooler, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Proxy(through(pooler, postgres_url)) as proxy, opened(proxy.url) as (provider,):
        monkeypatch.setattr(provider._session, "tell", lambda *_: None)
        of = await acquire(provider)
        await one(provider, turn(of, b"1"))
        before = proxy.asked

        await one(provider, turn(of, b"2", first=2))

        assert proxy.asked - before == 4


# Many nodes.


async def test_what_another_process_does_is_seen_without_notifications(store: World) -> None:
    first, second = await store.open(), await store.open()
    seen = asyncio.Event()

    async def look() -> None:
        if await first.count_instances():
            seen.set()

    looks: list[asyncio.Task[None]] = []
    first.watch(lambda: looks.append(asyncio.ensure_future(look())))
    await start(second)

    await asyncio.wait_for(seen.wait(), 30)
    await asyncio.gather(*looks)


async def test_who_is_connected_directly_is_notified_of_what_is_done_through_a_pooler(
    pooler: Pooler, postgres_url: str
) -> None:
    async with opened(through(pooler, postgres_url), postgres_url) as (pooled, direct):
        told = asyncio.Event()
        direct.watch(told.set)
        async with connected(postgres_url.partition("?")[0]) as admin:
            listening = "select count(*) from pg_stat_activity where query ~* ('^listen .*' || $1)"
            schema = Database(postgres_url).schema
            await wait_for(lambda: admin.fetchval(listening, schema))

        await start(pooled)

        await asyncio.wait_for(told.wait(), 30)


async def test_a_node_without_a_lock_is_dead_at_the_end_of_its_lease_only(
    pooler: Pooler, postgres_url: str
) -> None:
    clock = Clock()
    urls = through(pooler, postgres_url), postgres_url
    async with opened(*urls, now_ms=clock) as (pooled, direct):
        await pooled.register_node("n-1", 60_000)
        await direct.register_node("n-2", 60_000)
        for _ in range(5):
            assert await direct.reap_nodes("n-2") == []
            assert await pooled.reap_nodes("n-1") == []
            clock.advance(10_000)
        assert await asyncio.to_thread(direct.beat, "n-2")
        clock.advance(10_001)

        assert await direct.reap_nodes("n-2") == ["n-1"]
        assert not await asyncio.to_thread(pooled.beat, "n-1")
