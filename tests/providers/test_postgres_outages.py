"""Connections that die, answers that are lost, and servers that restart or change their role."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from provider_world import CAPS, LEASE_MS, acquire, is_a, new, note, one, row, running, start, turn

from perdure.errors import ProviderError, StoreClosed, StoreUnavailable
from perdure.providers.committer import Committer
from perdure.providers.contract import Committed, Outcome, Provider, RowFilter, Sent, Started
from perdure.providers.postgres import PostgresProvider, connections, session
from perdure.providers.postgres.batches import Mark, became_of
from perdure.providers.postgres.connections import Database
from postgres_proxy import Loss, Proxy, Way
from postgres_server import Server, new_schema, with_database, with_schema


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server that a test may stop."""
    server = Server()
    try:
        yield server
    finally:
        server.close()


@asynccontextmanager
async def opened(url: str, **fields: Any) -> AsyncIterator[PostgresProvider]:
    provider = PostgresProvider(url, **fields)
    await provider.open()
    try:
        yield provider
    finally:
        await provider.close()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    connection = await Database(url).connect()
    try:
        yield connection
    finally:
        await connection.close()


async def terminate(url: str, state: str = "%") -> int:
    """End all other connections to the schema's database that are in such a state."""
    admin = await Database(url).connect()
    query = (
        "select count(pg_terminate_backend(pid)) from pg_stat_activity "
        "where pid <> pg_backend_pid() and state like $1 and datname = current_database()"
    )
    ended: int = await admin.fetchval(query, state)
    await admin.close()
    return ended


async def terminate_all(admin: Any, database: str) -> None:
    """End all connections to another database, which takes no new ones, and wait for that."""
    query = "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = $1"
    async with asyncio.timeout(60):
        while await admin.fetchval(query, database):
            await asyncio.sleep(0.02)


async def patiently(call: Any) -> Any:
    """The result of a call that is repeated as long as the store is unavailable."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await call()
            except StoreUnavailable:
                await asyncio.sleep(0.02)


# A lost answer.


@pytest.mark.parametrize("loss", ["answer", "late"])
async def test_a_commit_whose_answer_is_lost_is_found_to_be_committed(
    postgres_url: str, loss: Loss
) -> None:
    async with Proxy(postgres_url) as proxy, opened(proxy.url) as provider:
        of = await acquire(provider)
        proxy.lose = loss

        outcomes = await provider.commit([turn(of, b"1"), new("i-2"), note("i-1")])

        assert proxy.lost == 1
        assert is_a(Committed, outcomes[0]) == Committed()
        assert is_a(Started, outcomes[1])
        assert await provider.read_history("i-1") == [b"1"]
        assert await one(provider, turn(of, b"2", first=2)) == Committed()


async def test_a_commit_that_never_arrived_changed_nothing_and_may_be_repeated(
    postgres_url: str,
) -> None:
    async with Proxy(postgres_url) as proxy, opened(proxy.url) as provider:
        of = await acquire(provider)
        proxy.lose = "question"

        with pytest.raises(StoreUnavailable, match="did not commit"):
            await provider.commit([turn(of, b"1"), new("i-2")])

        assert proxy.lost == 1
        assert await provider.read_history("i-1") == []
        assert await provider.get_instances(["i-2"]) == {}
        outcomes = await provider.commit([turn(of, b"1"), new("i-2")])
        assert is_a(Started, outcomes[1])


@pytest.mark.parametrize("loss", ["answer", "question", "late"])
async def test_a_batch_in_one_statement_that_is_lost_is_done_once(
    postgres_url: str, loss: Loss
) -> None:
    async with Proxy(postgres_url) as proxy, opened(proxy.url) as provider:
        of = await acquire(provider)
        assert await one(provider, turn(of, b"before")) == Committed()
        proxy.lose, proxy.commit = loss, b"the turn"

        outcome = await settled(provider.commit([turn(of, b"the turn", first=2)]))

        assert proxy.lost == 1
        # What has not arrived yet when it is asked about does nothing any more.
        assert (outcome == [Committed()]) is (loss == "answer")
        await proxy.delivered()
        events = [b"before", b"the turn"] if loss == "answer" else [b"before"]
        assert await provider.read_history("i-1") == events
        assert await one(provider, turn(of, b"after", first=len(events) + 1)) == Committed()


async def settled(commit: Awaitable[list[Outcome]]) -> list[Outcome] | None:
    """The outcomes, or None if the store says that nothing was done."""
    try:
        return await commit
    except StoreUnavailable:
        return None


async def test_nothing_follows_before_it_is_known_what_became_of_a_commit(
    postgres_url: str,
) -> None:
    async with Proxy(postgres_url) as proxy, opened(proxy.url) as provider:
        of = await acquire(provider)
        assert await one(provider, turn(of, b"0")) == Committed()
        proxy.lose, proxy.commit = "late", b"the turn"
        committer = Committer(provider, Random(1))

        first = asyncio.ensure_future(committer.write(turn(of, b"the turn", first=2)))
        async with asyncio.timeout(60):
            while not proxy.lost:
                await asyncio.sleep(0)
        second = asyncio.ensure_future(committer.write(turn(of, b"2", first=3)))

        assert await second == Committed()
        assert first.done()
        assert await first == Committed()
        assert await provider.read_history("i-1") == [b"0", b"the turn", b"2"]
        await committer.close()


async def test_a_number_that_the_server_has_given_again_is_no_proof(postgres_url: str) -> None:
    """After a crash another transaction may have the number of one that was lost with it."""
    async with opened(postgres_url) as provider:
        await start(provider)
        admin = await Database(postgres_url).connect()
        committed = await admin.fetchval("select pg_current_xact_id()::text")
        writer, number = await admin.fetchrow("select writer, batch from writers")
        assert await became_of(admin, committed, None) == "committed"
        assert await became_of(admin, committed, Mark(writer, number)) == "committed"
        assert await became_of(admin, committed, Mark(writer, number + 1)) == "aborted"
        assert await became_of(admin, str(int(committed) + 1_000_000), None) == "aborted"
        await admin.close()


async def test_a_provider_that_is_closed_does_not_wait_for_a_lost_answer_for_ever(
    own_server: Server,
) -> None:
    url = with_schema(own_server.url, new_schema())
    stop = False

    async def probe(place: str) -> None:
        if place == "before_commit" and stop:
            own_server.stop()

    provider = PostgresProvider(url, probe=probe)
    await provider.open()
    stop = True
    try:
        commit = asyncio.ensure_future(provider.commit([new("i-1")]))
        while own_server.is_running:
            await asyncio.sleep(0.01)
        await provider.close()
        with pytest.raises(StoreClosed, match="before it was known"):
            await commit
    finally:
        own_server.start()


# Connections that die.


async def test_a_connection_that_dies_in_the_middle_leaves_nothing_and_the_next_works(
    postgres_url: str,
) -> None:
    terminated = 0

    async def probe(place: str) -> None:
        nonlocal terminated
        if place == "before_commit" and not terminated:
            terminated = await terminate(postgres_url, "idle in transaction")

    async with opened(postgres_url, probe=probe) as provider:
        with pytest.raises(StoreUnavailable):
            await provider.commit([new("i-1")])
        assert terminated == 1
        assert await provider.count_instances() == {}
        assert is_a(Started, await one(provider, new("i-1")))


async def test_when_all_connections_die_reads_go_on_and_commits_may_be_repeated(
    postgres_url: str,
) -> None:
    async with opened(postgres_url) as provider:
        await provider.register_node("n-1", LEASE_MS)
        await start(provider)
        await asyncio.to_thread(provider.beat, "n-1")
        assert await terminate(postgres_url) >= 3

        assert (await row(provider)).status == "pending"
        assert isinstance(await patiently(lambda: one(provider, new("i-2"))), Started)
        assert await patiently(lambda: asyncio.to_thread(provider.beat, "n-1"))


async def test_without_a_free_connection_the_store_is_unavailable_for_now(
    own_server: Server,
) -> None:
    url = with_schema(own_server.url, new_schema())
    admin = await Database(url).connect()
    await admin.execute("create role busy login connection limit 1")
    busy = Database(url.replace("postgres@", "busy@"))
    held = await busy.connect()

    with pytest.raises(StoreUnavailable, match="too many connections"):
        await busy.connect()

    await held.close()
    await admin.close()


async def test_what_keeps_an_open_store_from_connecting_may_go_away_again(
    own_server: Server,
) -> None:
    url = with_schema(own_server.url, new_schema())
    admin = await Database(url).connect()
    await admin.execute("create database other")
    other = with_database(url, "other")
    async with opened(other) as provider:
        await start(provider)
        # A database with a session cannot be renamed, and the provider would connect again at once.
        await admin.execute("alter database other allow_connections false")
        await terminate_all(admin, "other")
        await admin.execute("alter database other rename to moved")
        await admin.execute("alter database moved allow_connections true")
        with pytest.raises(StoreUnavailable, match="does not exist"):
            await patiently_until_refused(provider, "does not exist")
        await admin.execute("alter database moved rename to other")

        assert isinstance(await patiently(lambda: one(provider, new("i-2"))), Started)
    await admin.close()


# Connections that say nothing.


@pytest.mark.slow
@pytest.mark.parametrize("ways", [("questions",), ("answers",)])
async def test_a_connection_that_swallows_everything_is_given_up_and_nothing_is_done_twice(
    postgres_url: str, ways: tuple[Way, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Proxy(postgres_url) as proxy, opened(proxy.url) as provider:
        committer = Committer(provider, Random(1))
        of = await acquire(provider)
        monkeypatch.setattr(connections, "COMMAND_S", 0.5)
        monkeypatch.setattr(connections, "CONNECT_S", 0.5)
        # Those that it makes now have that limit.
        await terminate(postgres_url)
        await patiently(lambda: one(provider, note("i-1")))
        await patiently(lambda: row(provider))
        proxy.swallows = set(ways)
        written = [
            asyncio.ensure_future(committer.write(each))
            for each in (turn(of, b"1"), new("i-2"), note("i-1"))
        ]
        with pytest.raises(StoreUnavailable):
            await row(provider)
        async with asyncio.timeout(60):
            while committer.degraded is None:
                await asyncio.sleep(0.01)

        proxy.mend()

        async with asyncio.timeout(60):
            outcomes = await asyncio.gather(*written)
        assert [type(each) for each in outcomes] == [Committed, Started, Sent]
        assert await provider.read_history("i-1") == [b"1"]
        assert await provider.count_instances() == {"pending": 2}
        await committer.close()


async def test_a_host_that_does_not_even_refuse_does_not_hide_the_next_one(
    postgres_url: str,
) -> None:
    parts = urlsplit(postgres_url)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = f"127.0.0.1:{silent.getsockname()[1]},{parts.hostname}:{parts.port or 5432}"
        user = parts.netloc.rpartition("@")[0]
        database = Database(urlunsplit(parts._replace(netloc=f"{user}@{hosts}")))
        with pytest.raises(StoreUnavailable):
            await database.connect(0.2)

        connection = await database.connect()

        await connection.close()


async def test_a_session_that_is_silent_is_given_up_when_it_is_used(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "LOOK_S", 3_600)
    async with Proxy(postgres_url) as proxy, opened(proxy.url) as provider:
        monkeypatch.setattr(connections, "COMMAND_S", 0.5)
        monkeypatch.setattr(connections, "CONNECT_S", 0.5)
        told = asyncio.Event()
        provider.watch(told.set)
        await patiently(lambda: provider.register_node("n-1", LEASE_MS))
        proxy.swallows = {"questions", "answers"}
        with pytest.raises(StoreUnavailable):
            await provider.register_node("n-2", LEASE_MS)
        told.clear()
        proxy.mend()

        # Made again, and the store looked at, since something may have been missed.
        async with asyncio.timeout(30):
            await told.wait()
        await patiently(lambda: provider.register_node("n-3", LEASE_MS))


async def test_a_dead_peer_is_noticed_by_the_system_and_a_slow_one_is_not_given_up(
    postgres_url: str,
) -> None:
    connection = await Database(postgres_url).connect()
    peer = connection._transport.get_extra_info("socket")
    assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert 0 < peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 12_000
    assert 0 < peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 5
    assert await connection.fetchval("show tcp_keepalives_idle") == "5"
    await connection.close()


# Servers.


async def test_a_commit_that_waits_for_a_standby_is_not_acknowledged_before(
    own_server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when the wait is given up: to cancel it would make the server say that all is well."""
    async with (
        opened(with_schema(own_server.url, new_schema())) as provider,
        connected(own_server.url) as admin,
    ):
        await admin.execute("alter system set synchronous_standby_names = 'nobody'")
        await admin.execute("select pg_reload_conf()")
        async with asyncio.timeout(30):
            while await admin.fetchval("show synchronous_standby_names") != "nobody":
                await asyncio.sleep(0.01)
        try:
            monkeypatch.setattr(connections, "COMMAND_S", 0.5)
            commit = asyncio.ensure_future(patiently(lambda: provider.commit([new("i-1")])))
            async with asyncio.timeout(30):
                while "the answer to a commit was lost" not in caplog.text:
                    await asyncio.sleep(0.01)
            # Whoever asks what became of it is told that it is under way.
            waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'"
            assert await admin.fetchval(waiting) == 1
            assert await provider.count_instances() == {}
            assert not commit.done()
        finally:
            await admin.execute("alter system reset synchronous_standby_names")
            await admin.execute("select pg_reload_conf()")
        assert is_a(Started, (await commit)[0])


async def test_a_server_that_becomes_read_only_and_writable_again_is_waited_for(
    own_server: Server,
) -> None:
    url = with_schema(own_server.url, new_schema())
    async with opened(url) as provider, connected(own_server.url) as admin:
        await start(provider)
        setting = "alter system set default_transaction_read_only = "
        await admin.execute(setting + "on")
        await admin.execute("select pg_reload_conf()")
        try:
            committer = Committer(provider, Random(1))
            written = asyncio.ensure_future(committer.write(new("i-2")))
            async with asyncio.timeout(30):
                while "read-only now" not in (committer.degraded or ""):
                    if written.done():
                        # The server had not read its settings yet.
                        written = asyncio.ensure_future(committer.write(note("i-1")))
                    await asyncio.sleep(0.01)
            assert await provider.count_instances() != {}
        finally:
            await admin.execute("set transaction_read_only = off")
            await admin.execute("alter system reset default_transaction_read_only")
            await admin.execute("select pg_reload_conf()")
        assert isinstance(await written, Started | Sent)
        assert committer.degraded is None
        await committer.close()


async def test_a_standby_is_refused_until_it_is_promoted(own_server: Server) -> None:
    url = with_schema(own_server.url, new_schema())
    async with opened(url) as provider:
        await start(provider)
        own_server.become_standby()
        try:
            with pytest.raises(ProviderError, match="is a standby"):
                await PostgresProvider(url).open()
            assert (await row(provider)).status == "pending"
            with pytest.raises(StoreUnavailable, match="read-only now"):
                await patiently_until_refused(provider, "read-only")
        finally:
            admin = await Database(own_server.url).connect()
            assert await admin.fetchval("select pg_promote()")
            await admin.close()

        assert isinstance(await patiently(lambda: one(provider, new("i-2"))), Started)
        assert await provider.count_instances() == {"pending": 2}


async def patiently_until_refused(provider: Provider, reason: str) -> None:
    """Commit; connections that died meanwhile are forgotten on the way."""
    for _ in range(3):
        try:
            await provider.commit([note("i-1")])
        except StoreUnavailable as error:
            if reason in str(error):
                raise


@pytest.mark.slow
async def test_under_restarts_whatever_was_acknowledged_is_there_once(own_server: Server) -> None:
    url = with_schema(own_server.url, new_schema())
    async with opened(url) as provider:
        await provider.register_node("n-1", 600_000)
        committer = Committer(provider, Random(1))
        acknowledged: list[str] = []
        over = False

        async def write(number: int) -> None:
            count = 0
            while not over:
                instance_id = f"{number}-{count}"
                start = new(instance_id, owner="n-1", token=f"token of {instance_id}")
                # A blind repetition would find it taken.
                key = is_a(Started, await committer.write(start)).key
                of = is_a(Started, await committer.write(new(f"other {instance_id}"))).key
                assert key != of
                acknowledged.append(instance_id)
                count += 1

        writing = [asyncio.create_task(write(number)) for number in range(8)]
        for _ in range(3):
            enough = len(acknowledged) + 40
            while len(acknowledged) < enough:
                await asyncio.sleep(0.01)
            await asyncio.to_thread(own_server.stop, signal.SIGQUIT)
            await asyncio.to_thread(own_server.start)
        enough = len(acknowledged) + 40
        while len(acknowledged) < enough:
            await asyncio.sleep(0.01)
        over = True
        await asyncio.gather(*writing)
        await committer.close()

        known = {
            each.instance_id for each in await provider.list_instances(RowFilter(), limit=10**6)
        }
        assert known == {f"{pre}{each}" for each in acknowledged for pre in ("", "other ")}
        assert await provider.reap_nodes("n-2") == []
        assert await asyncio.to_thread(provider.beat, "n-1")


async def test_a_node_goes_on_with_what_it_held_before_a_restart(own_server: Server) -> None:
    url = with_schema(own_server.url, new_schema())
    async with opened(url) as provider, opened(url) as other:
        await provider.register_node("n-1", 600_000)
        of = await acquire(provider)
        await one(provider, turn(of, b"1", activities=(running(1),)))
        own_server.stop()
        own_server.start()

        assert await patiently(lambda: other.reap_nodes("n-2")) == []
        second = turn(of, b"2", first=2)
        assert await patiently(lambda: one(provider, second)) == Committed()
        assert await provider.lost_activities("n-1", [(of.key, 1, 1)]) == []
        assert (await provider.survey("n-1", CAPS, frozenset())).mail == ()
