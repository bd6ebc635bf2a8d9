"""What is special about the PostgreSQL store: schemas, text, many writers, time, notifications."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import pytest
from provider_world import (
    CAPS,
    LEASE_MS,
    Clock,
    World,
    acquire,
    bodies,
    claim,
    claim_work,
    is_a,
    new,
    note,
    one,
    queued,
    row,
    start,
    turn,
)

from perdure.errors import ProviderError, StoreTooNew, StoreUnavailable
from perdure.providers.contract import (
    ClaimActivities,
    ClaimInstances,
    Committed,
    CompleteActivity,
    Done,
    Refused,
    RowFilter,
    Sent,
    Started,
    Taken,
)
from perdure.providers.postgres import PostgresProvider
from perdure.providers.postgres.connections import Database
from perdure.providers.postgres.provider import STEP_MS
from perdure.providers.postgres.schema import MIGRATIONS
from perdure.providers.urls import open_provider
from perdure.testing.conformance.kit import ending
from postgres_server import new_schema, with_database, with_schema


@pytest.fixture
def store(postgres_url: str, tmp_path: Path) -> World:
    return World("postgres", tmp_path, postgres_url)


async def connected(url: str) -> Any:
    return await Database(url).connect()


async def until(holds: Any) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.005)


async def until_one_waits(url: str) -> None:
    """Wait until some transaction waits for a lock of another."""
    admin = await connected(url)
    waiting = "select count(*) from pg_locks where not granted"
    async with asyncio.timeout(20):
        while not await admin.fetchval(waiting):
            await asyncio.sleep(0.01)
    await admin.close()


async def until_locks_count(connection: Any, lease_ms: int) -> None:
    """Wait until the server has run for the length of a lease."""
    query = "select clock_timestamp() > pg_postmaster_start_time() + $1 * interval '1 ms'"
    async with asyncio.timeout(20):
        while not await connection.fetchval(query, lease_ms):
            await asyncio.sleep(0.01)


# Opening.


async def test_a_url_names_a_store_in_a_schema(postgres_url: str) -> None:
    provider = open_provider(postgres_url)
    assert isinstance(provider, PostgresProvider)
    await provider.open()
    await start(provider)
    await provider.close()

    connection = await connected(postgres_url)
    assert await connection.fetchval("select instance_id from instances") == "i-1"
    assert await connection.fetchval("select version from perdure_schema") == len(MIGRATIONS)
    await connection.close()


async def test_two_schemas_are_two_stores(postgres_url: str) -> None:
    first, second = PostgresProvider(postgres_url), PostgresProvider(f"{postgres_url}_b")
    await first.open()
    await second.open()
    await start(first)

    assert await second.count_instances() == {}
    await first.close()
    await second.close()


async def test_ten_may_open_an_empty_schema_at_once(store: World) -> None:
    providers = await asyncio.gather(*(store.open() for _ in range(10)))

    await asyncio.gather(*(start(each, f"i-{n}") for n, each in enumerate(providers)))

    assert [await each.count_instances() for each in providers] == [{"pending": 10}] * 10


async def test_whoever_owns_a_schema_can_have_a_store_in_it(postgres_url: str) -> None:
    schema = new_schema()
    admin = await connected(postgres_url)
    await admin.execute(f"create role {schema} login")
    await admin.execute(f"create schema {schema} authorization {schema}")
    theirs = with_schema(postgres_url, schema).replace("postgres@", f"{schema}@")

    provider = PostgresProvider(theirs)
    await provider.open()
    await start(provider)
    await provider.close()

    await admin.execute(f"drop owned by {schema}; drop role {schema}")
    await admin.close()


@pytest.mark.parametrize("schema", ["", "Perdure", "a-b", 'a"b', "1a", "pg_store", "a" * 64, "ä"])
def test_a_schema_that_is_no_plain_name_is_refused(schema: str) -> None:
    with pytest.raises(ProviderError, match="is no name for a store"):
        open_provider(f"postgresql://host/database?schema={schema}")


def test_an_error_does_not_show_user_and_password() -> None:
    where = Database("postgresql://me:secret@host:5/database?schema=s").where

    assert where == "postgresql://host:5/database (schema s)"


def test_without_its_driver_a_url_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("perdure.providers.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "asyncpg", None)

    with pytest.raises(ProviderError, match=r"pip install 'perdure\[postgres\]'"):
        open_provider("postgresql://host/database")


async def test_a_store_that_is_too_new_is_refused_and_unchanged(store: World) -> None:
    await (await store.open()).close()
    connection = await connected(store.url)
    await connection.execute("update perdure_schema set version = 99")

    with pytest.raises(StoreTooNew, match="schema version 99, this Perdure knows"):
        await store.open()

    assert await connection.fetchval("select version from perdure_schema") == 99
    await connection.close()


async def test_a_database_that_is_not_utf8_is_refused(postgres_url: str) -> None:
    connection = await connected(postgres_url)
    name = f"latin_{postgres_url.rpartition('_')[2]}"
    await connection.execute(f"drop database if exists {name}")
    await connection.execute(
        f"create database {name} encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0"
    )
    other = with_database(postgres_url, name)

    with pytest.raises(ProviderError, match="has the encoding LATIN1"):
        await PostgresProvider(other).open()

    await connection.execute(f"drop database {name}")
    await connection.close()


async def test_a_database_that_does_not_exist_is_named(postgres_url: str) -> None:
    provider = PostgresProvider(with_database(postgres_url, "nowhere"))

    with pytest.raises(ProviderError, match='"nowhere" does not exist') as caught:
        await provider.open()

    assert not isinstance(caught.value, StoreUnavailable)


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(StoreUnavailable, match="cannot be used now"):
        await PostgresProvider("postgresql://me@127.0.0.1:1/database").open()


# Values.


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
async def test_text_that_cannot_be_stored_leaves_the_batch_undone(store: World, text: str) -> None:
    provider = await store.open()
    of = await acquire(provider)
    values = [
        new(text),
        new("other", name=text),
        note(text),
        note(queue=text),
        note(event_id=text),
        turn(of, b"1", version=text),
        turn(of, b"1", sends=(note(text),)),
        ClaimInstances(text, CAPS, 1),
        ClaimActivities("n-1", frozenset({text}), 1),
    ]

    for bad in values:
        with pytest.raises(ProviderError) as caught:
            await provider.commit([new("good"), bad])
        assert not isinstance(caught.value, StoreUnavailable)
    with pytest.raises(ProviderError):
        await provider.list_instances(RowFilter(name=text))

    assert [each.instance_id for each in await provider.list_instances(RowFilter())] == ["i-1"]


# Many writers.


class Trips:
    """Counts the round trips that a provider makes for what it commits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = 0
        for name in ("execute", "fetchrow", "fetch", "fetchval"):
            monkeypatch.setattr(asyncpg.Connection, name, self._counted(name))

    def _counted(self, name: str) -> Any:
        plain = getattr(asyncpg.Connection, name)

        async def counted(connection: Any, *values: Any, **more: Any) -> Any:
            # Others are told outside the commit.
            self.number += "pg_notify" not in values[0]
            return await plain(connection, *values, **more)

        return counted


async def test_turns_and_starts_take_one_round_trip(
    store: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = await store.open()
    await provider.register_node("n-1", LEASE_MS)
    of, other = await acquire(provider, "i-1"), await acquire(provider, "i-2")
    key = provider.reserve_key()
    trips = Trips(monkeypatch)

    outcomes = await provider.commit(
        [
            turn(of, b"1", activities=(queued(1),), set_due=True, due_ms=9),
            ending(other, b"1"),
            new("i-3", key=key),
        ]
    )

    assert outcomes == [Committed(), Committed(), Started(key)]
    assert trips.number == 1
    assert (await row(provider, "i-1")).due_ms == 9
    assert (await row(provider, "i-2")).status == "completed"
    assert (await row(provider, "i-3")).status == "pending"


async def test_completions_take_one_round_trip(
    store: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = await store.open()
    of = await acquire(provider)
    await one(provider, turn(of, b"1", activities=(queued(1), queued(2)), set_due=True))
    await claim_work(provider, node_id="n-2")
    trips = Trips(monkeypatch)

    outcomes = await provider.commit(
        [
            CompleteActivity(of.key, 1, 1, "n-2", 1, b"first"),
            CompleteActivity(of.key, 1, 2, "n-2", 1, b"second"),
        ]
    )

    assert outcomes == [Done(), Done()]
    assert trips.number == 1
    assert await bodies(provider) == [b"first", b"second"]
    found = await row(provider)
    assert found.due_ms == store.clock.now
    assert await provider.list_activities(of.key) == []


async def test_a_stale_completion_beside_others_is_refused_alone(store: World) -> None:
    provider = await store.open()
    of = await acquire(provider)
    await one(provider, turn(of, b"1", activities=(queued(1), queued(2))))
    await claim_work(provider, node_id="n-2")

    outcomes = await provider.commit(
        [
            CompleteActivity(of.key, 1, 1, "n-2", 1, b"first"),
            CompleteActivity(of.key, 1, 2, "n-3", 1, b"second"),
            turn(of, b"2", first=2),
        ]
    )

    assert outcomes == [Done(), Refused("stale"), Committed()]
    assert await bodies(provider) == [b"first"]
    assert await provider.read_history("i-1") == [b"1", b"2"]


async def test_claims_alone_take_three_round_trips(
    store: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = await store.open()
    await start(provider)
    trips = Trips(monkeypatch)

    assert len(await claim(provider)) == 1

    assert trips.number == 3


async def test_a_claim_is_marked_too(store: World) -> None:
    """Its number alone would prove nothing after a crash of the server."""
    provider = await store.open()
    await start(provider)
    admin = await connected(store.url)
    marks = "select max(batch) from writers"
    before = await admin.fetchval(marks)

    assert len(await claim(provider)) == 1

    assert await admin.fetchval(marks) > before
    await admin.close()


async def test_a_batch_is_looked_at_first_if_a_row_is_not_as_believed(
    store: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = await store.open()
    await provider.register_node("n-1", LEASE_MS)
    of, other = await acquire(provider, "i-1"), await acquire(provider, "i-2")
    await one(provider, note("i-1"))
    trips = Trips(monkeypatch)

    outcomes = await provider.commit([turn(of, b"1", set_due=True, due_ms=9), ending(other, b"1")])

    assert outcomes == [Committed(), Committed()]
    assert trips.number == 5
    assert (await row(provider, "i-1")).due_ms != 9


async def test_a_batch_takes_at_most_five_round_trips(
    store: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = await store.open()
    of = await acquire(provider)
    await one(provider, turn(of, b"0", activities=(queued(1),)))
    trips = Trips(monkeypatch)

    outcomes = await provider.commit(
        [
            turn(of, b"1", first=2, activities=(queued(2),), starts=(new("i-1"), new("child"))),
            *(new(f"i-{n}") for n in range(2, 20)),
            note("i-5", event_id="e"),
            CompleteActivity(of.key, 1, 1, "n-1", 1, b"stale"),
            ClaimActivities("n-1", frozenset({"pay"}), 9),
        ]
    )

    assert trips.number == 5
    assert isinstance(is_a(Committed, outcomes[0]).starts[0], Taken)


async def test_many_writers_in_any_order_neither_lose_nor_repeat(store: World) -> None:
    providers = [await store.open() for _ in range(4)]
    ids = [f"i-{n}" for n in range(12)]
    rounds = 15

    async def write(number: int) -> list[Any]:
        random = Random(number)
        outcomes = []
        for _ in range(rounds):
            chosen = random.sample(ids, len(ids))
            batch = [new(each, incarnation=f"of {number}") for each in chosen]
            outcomes += await providers[number].commit([*batch, *(note(each) for each in chosen)])
        return outcomes

    outcomes = [each for found in await asyncio.gather(*map(write, range(4))) for each in found]

    assert sum(isinstance(each, Started) for each in outcomes) == len(ids)
    assert sum(isinstance(each, Sent) for each in outcomes) == 4 * rounds * len(ids)
    assert {each.mail for each in await claim(providers[0])} == {4 * rounds}


async def test_a_transaction_that_collides_is_repeated(store: World) -> None:
    """Two transactions that wait for each other: the server ends one of them."""
    provider = await store.open()
    first, second = await start(provider), await start(provider, "i-2")
    other = await connected(store.url)
    await other.execute("set deadlock_timeout = '10s'")
    await other.execute("begin")
    lock = "select 1 from instances where key = $1 for update"
    await other.execute(lock, second)

    sent = asyncio.ensure_future(provider.commit([note("i-1"), note("i-2")]))
    await until_one_waits(store.url)
    await other.execute(lock, first)
    await other.execute("commit")

    assert await sent == [Sent(first), Sent(second)]
    assert [of.mail for of in await claim(provider)] == [1, 1]
    await other.close()


async def test_of_two_that_start_one_id_at_once_the_second_finds_it_taken(store: World) -> None:
    provider = await store.open()
    other = await connected(store.url)
    await other.execute("begin")
    await other.execute(
        "insert into instances (key, instance_id, incarnation, name, status, execution_id, "
        "nesting, created_ms, attempt, mail, external, queued) values "
        "(nextval('instance_keys'), 'i-1', 'of other', 'order', 'pending', 1, 0, 0, 0, 0, 0, 0)"
    )
    await other.execute("insert into executions values (1, 1, null, 'pending', '7', null, null, 0)")
    started = asyncio.ensure_future(provider.commit([new("i-2"), new("i-1"), note("i-1")]))
    await until_one_waits(store.url)
    await other.execute("commit")

    outcomes = await started

    assert isinstance(outcomes[0], Started)
    assert is_a(Taken, outcomes[1]).instance.incarnation == "of other"
    assert outcomes[2] == Sent(is_a(Taken, outcomes[1]).instance.key)
    await other.close()


async def test_a_caller_that_gives_up_leaves_no_transaction_open(store: World) -> None:
    provider = await store.open()
    given_up = asyncio.ensure_future(provider.commit([new("i-1")]))
    await asyncio.sleep(0)
    given_up.cancel()

    assert isinstance(await one(provider, new("i-1")), Started | Taken)
    assert isinstance(await one(provider, note("i-1")), Sent)


# Time.


async def test_the_estimated_time_is_never_ahead_of_the_servers(postgres_url: str) -> None:
    provider = PostgresProvider(postgres_url)
    await provider.open()
    other = await connected(postgres_url)
    clock = "select floor(extract(epoch from clock_timestamp()) * 1000)::bigint"

    for n in range(20):
        await start(provider, f"i-{n}")
        estimate = provider.now_ms()
        now = await other.fetchval(clock)
        assert now - 1_000 < estimate <= now
    created_ms = (await row(provider, "i-19")).created_ms
    assert now - 1_000 < created_ms <= now
    await other.close()
    await provider.close()


async def test_the_estimated_time_goes_back_only_with_the_servers_clock(postgres_url: str) -> None:
    provider = PostgresProvider(postgres_url)
    await provider.open()
    before = provider.now_ms()

    provider._note_time(before - 5)
    assert provider.now_ms() >= before

    provider._note_time(before - STEP_MS - 60_000)
    assert provider.now_ms() < before
    await provider.close()


# Nodes.


async def test_a_node_whose_lock_is_missing_at_two_looks_is_dead(postgres_url: str) -> None:
    clock = Clock()
    first, second = (PostgresProvider(postgres_url, now_ms=clock) for _ in range(2))
    await first.open()
    await second.open()
    # A short lease, since nobody is looked at so before the server has run for as long.
    await first.register_node("n-1", 1_000)
    await asyncio.to_thread(first.beat, "n-1")
    clock.advance(900)
    assert await second.reap_nodes("n-2") == []
    await first._session.unlock("n-1")
    connection = await connected(postgres_url)
    await connection.execute("update nodes set lease_until_ms = lease_until_ms + 60000")
    await until_locks_count(connection, 1_000)

    assert await second.reap_nodes("n-2") == []
    clock.advance(1_999)
    assert await second.reap_nodes("n-2") == []
    clock.advance(1)
    assert await second.reap_nodes("n-2") == ["n-1"]
    assert first.beat("n-1") is False
    for each in (connection, first, second):
        await each.close()


NODE = """
import asyncio, sys
from perdure.providers.postgres import PostgresProvider

async def main():
    provider = PostgresProvider(sys.argv[1])
    await provider.open()
    await provider.register_node("n-1", 1_000)
    print("registered", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_a_process_that_is_killed_is_known_to_be_dead_long_before_its_lease_is_over(
    postgres_url: str,
) -> None:
    ahead_ms = 0
    provider = PostgresProvider(postgres_url, now_ms=lambda: time.time_ns() // 1_000_000 + ahead_ms)
    await provider.open()
    node = await asyncio.create_subprocess_exec(
        sys.executable, "-c", NODE, postgres_url, stdout=asyncio.subprocess.PIPE
    )
    assert node.stdout is not None
    assert await node.stdout.readline() == b"registered\n"
    connection = await connected(postgres_url)
    await connection.execute("update nodes set lease_until_ms = lease_until_ms + 60000")
    await until_locks_count(connection, 1_000)
    for _ in range(3):
        assert await provider.reap_nodes("n-2") == []
        ahead_ms += 2_000

    node.kill()
    await node.wait()
    lock = "select count(*) from pg_locks, nodes where objid = (lock_id & 4294967295)::oid"
    async with asyncio.timeout(20):
        while await connection.fetchval(lock):
            await asyncio.sleep(0.01)

    assert await provider.reap_nodes("n-2") == []
    ahead_ms += 2_000
    assert await provider.reap_nodes("n-2") == ["n-1"]
    for each in (connection, provider):
        await each.close()


async def test_a_heartbeat_between_the_looks_saves_a_node_without_its_lock(
    postgres_url: str,
) -> None:
    clock = Clock()
    first, second = (PostgresProvider(postgres_url, now_ms=clock) for _ in range(2))
    await first.open()
    await second.open()
    await first.register_node("n-1", 3_000)
    await first._session.unlock("n-1")

    for _ in range(5):
        assert await second.reap_nodes("n-2") == []
        clock.advance(2_000)
        assert await asyncio.to_thread(first.beat, "n-1")
    await first.close()
    await second.close()


async def test_a_lock_says_nothing_on_another_server_than_it_was_taken_on(store: World) -> None:
    first, second = await store.open(), await store.open()
    await first.register_node("n-1", 100)
    connection = await connected(store.url)
    await connection.execute("update nodes set server = 'before', lease_until_ms = 1::bigint << 60")
    await first._session.unlock("n-1")

    for _ in range(3):
        assert await second.reap_nodes("n-2") == []
        store.clock.advance(2_000)
    await connection.close()


async def test_a_session_that_is_lost_takes_its_locks_again_and_listens_again(
    store: World,
) -> None:
    first, second = await store.open(), await store.open()
    await first.register_node("n-1", LEASE_MS)
    told: list[bool] = []
    first.watch(lambda: told.append(True))
    admin = await connected(store.url)
    locks = "select array_agg(pid) from pg_locks where locktype = 'advisory' and granted"

    async def holders() -> list[int]:
        return list(await admin.fetchval(locks) or ())

    async with asyncio.timeout(20):
        while not (before := await holders()):
            await asyncio.sleep(0.01)
    await admin.execute("select pg_terminate_backend(unnest($1::int[]))", before)
    async with asyncio.timeout(20):
        while not (after := await holders()) or after == before:
            await asyncio.sleep(0.01)

    told.clear()
    await start(second)
    await until(lambda: told)
    await admin.close()


async def test_a_lock_that_a_lost_session_still_has_is_taken_when_it_is_free(
    postgres_url: str,
) -> None:
    provider = PostgresProvider(postgres_url)
    await provider.open()
    await provider.register_node("n-1", LEASE_MS)
    other, admin = await connected(postgres_url), await connected(postgres_url)
    lock_id = await admin.fetchval("select lock_id from nodes")
    held = asyncio.ensure_future(other.execute("select pg_advisory_lock($1)", lock_id))
    await until_one_waits(postgres_url)
    own = (
        "select pid from pg_locks where locktype = 'advisory' and granted "
        "and objid = ($1::bigint & 4294967295)::oid"
    )
    first = await admin.fetchval(own, lock_id)
    await admin.execute("update nodes set server = 'before'")
    await admin.execute("select pg_terminate_backend($1)", first)
    await held
    between = await admin.fetchval(own, lock_id)

    await other.execute("select pg_advisory_unlock($1)", lock_id)

    async with asyncio.timeout(20):
        while await admin.fetchval("select server from nodes") == "before":
            await asyncio.sleep(0.01)
    assert await admin.fetchval(own, lock_id) not in (None, first, between)
    for each in (other, admin, provider):
        await each.close()


async def test_closing_leaves_no_connection_and_no_mark(postgres_url: str) -> None:
    marked = f"{postgres_url}&application_name=leaving"
    provider = PostgresProvider(marked)
    await provider.open()
    await provider.register_node("n-1", LEASE_MS)
    provider.watch(lambda: None)
    await asyncio.to_thread(provider.beat, "n-1")
    await start(provider)
    await provider.count_instances()
    await provider.close()

    admin = await connected(postgres_url)
    assert await admin.fetchval("select count(*) from writers") == 0
    count = "select count(*) from pg_stat_activity where application_name = 'leaving'"
    async with asyncio.timeout(20):
        while await admin.fetchval(count):
            await asyncio.sleep(0.01)
    await admin.close()
