"""What only the SQLite provider promises: its settings, its file, and what SQLite costs."""

from __future__ import annotations

import asyncio
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from provider_world import (
    CAPS,
    LEASE_MS,
    World,
    acquire,
    claim,
    claim_work,
    is_a,
    new,
    note,
    one,
    queued,
    row,
    running,
    start,
    turn,
)

from perdure.errors import ProviderError, StoreTooNew, StoreUnavailable
from perdure.providers.contract import (
    Claimed,
    ClaimInstances,
    Committed,
    CommitTurn,
    CompleteActivity,
    Done,
    Ending,
    NewTimer,
    Refused,
    Sent,
    Started,
)
from perdure.providers.sqlite import SqliteProvider


@pytest.fixture
def connections() -> Iterator[list[apsw.Connection]]:
    """Every connection opened during the test, in order: writer, reader, beats."""
    opened: list[apsw.Connection] = []
    apsw.connection_hooks.append(opened.append)
    yield opened
    apsw.connection_hooks.remove(opened.append)


async def test_every_connection_is_durable(
    store: World, connections: list[apsw.Connection]
) -> None:
    provider = await store.open()
    await provider.register_node("n-1", LEASE_MS)
    provider.beat("n-1")

    assert len(connections) == 3
    for connection in connections:
        assert connection.execute("pragma journal_mode").get == "wal"
        assert connection.execute("pragma synchronous").get == 2


async def test_the_files_are_for_their_owner_only_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "store.db"
    provider = SqliteProvider(path)
    await provider.open()
    await provider.register_node("n-1", LEASE_MS)

    files = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    await provider.close()

    assert files == {
        "store.db": 0o600,
        "store.db-wal": 0o600,
        "store.db-shm": 0o600,
        "store.db-nodes": 0o700,
    }


async def test_a_store_outlives_its_provider(store: World) -> None:
    provider = await store.open()
    of = await acquire(provider)
    await one(provider, turn(of, b"\x00event", version="1"))
    before = await row(provider)
    await provider.close()

    again = await store.open()

    assert await row(again) == before
    assert await again.read_history("i-1") == [b"\x00event"]


async def test_a_newer_store_is_refused_and_not_touched(store: World) -> None:
    provider = await store.open()
    await start(provider)
    await provider.close()
    connection = apsw.Connection(str(store.path))
    connection.execute("pragma user_version = 1000")
    connection.close()
    before = store.path.read_bytes()

    with pytest.raises(StoreTooNew, match="1000"):
        await store.open()
    assert store.path.read_bytes() == before


@pytest.mark.parametrize("statement", ["create table t (x)", "pragma user_version = 1"])
async def test_a_database_of_another_program_is_refused_and_not_touched(
    store: World, statement: str
) -> None:
    connection = apsw.Connection(str(store.path))
    connection.execute(statement)
    connection.close()
    before = store.path.read_bytes()

    with pytest.raises(ProviderError, match="another program"):
        await store.open()
    assert store.path.read_bytes() == before


async def test_a_file_that_is_no_database_is_refused_and_not_touched(store: World) -> None:
    store.path.write_bytes(b"not a database at all" * 1_000)
    before = store.path.read_bytes()

    with pytest.raises(ProviderError, match="not a SQLite database"):
        await store.open()
    assert store.path.read_bytes() == before


async def test_a_path_that_cannot_be_opened_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match=str(tmp_path)):
        await SqliteProvider(tmp_path).open()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ProviderError, match="cannot open"):
        await SqliteProvider(tmp_path / "file" / "store.db").open()


async def test_a_damaged_file_is_an_error_that_says_so(store: World) -> None:
    provider = await store.open()
    await provider.commit([new(f"i-{n}") for n in range(500)])
    await provider.close()
    with store.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (store.path.stat().st_size - 4096))

    with pytest.raises(ProviderError, match="damaged"):
        await (await store.open()).get_instances(["i-7"])


@pytest.mark.parametrize("replace", [True, False])
async def test_a_file_deleted_or_replaced_in_use_is_not_written_any_more(
    store: World, replace: bool
) -> None:
    provider = await store.open()
    await provider.register_node("n-1", LEASE_MS)
    store.path.unlink()
    if replace:
        store.path.write_bytes(b"")
    store.clock.advance(100)

    with pytest.raises(ProviderError, match="deleted or replaced"):
        await start(provider, "i-2")
    with pytest.raises(ProviderError):
        provider.beat("n-1")
    assert store.path.exists() == replace
    assert not replace or store.path.read_bytes() == b""


async def test_an_answer_too_big_for_one_value_comes_row_by_row(
    store: World, connections: list[apsw.Connection]
) -> None:
    provider = await store.open()
    for connection in connections:
        connection.limit(apsw.SQLITE_LIMIT_LENGTH, 40_000)
    payloads = [bytes([n]) * 15_000 for n in range(4)]
    await provider.commit([new(f"i-{n}", input=payload) for n, payload in enumerate(payloads)])
    await provider.commit([note("i-0", payload) for payload in payloads])

    taken = await claim(provider)
    assert [of.input for of in taken] == payloads
    assert [message.body for message in taken[0].messages] == payloads

    await one(provider, turn(taken[0], *payloads))
    assert await provider.read_history("i-0") == payloads
    assert await provider.histories([(taken[0].key, 1)]) == [payloads]
    rows = await provider.get_instances([of.instance_id for of in taken])
    assert sorted(instance.input for instance in rows.values()) == payloads


async def test_a_held_write_lock_is_waited_for_and_then_reported(store: World) -> None:
    await (await store.open()).close()
    provider = SqliteProvider(store.path, lock_wait_ms=30)
    await provider.open()
    other = apsw.Connection(str(store.path))
    other.execute("begin immediate")

    with pytest.raises(StoreUnavailable, match="write lock held"):
        await start(provider)
    assert await provider.count_instances() == {}

    other.execute("rollback")
    assert await start(provider) > 0
    other.close()
    await provider.close()


async def test_a_full_disk_is_reported_and_nothing_is_applied(
    store: World, connections: list[apsw.Connection]
) -> None:
    provider = await store.open()
    of = await acquire(provider)
    writing = connections[0]
    pages: int = writing.execute("pragma page_count").get
    writing.execute(f"pragma max_page_count = {pages}").fetchall()
    big = turn(of, *[b"x" * 3_000] * 10, settle=True)

    with pytest.raises(StoreUnavailable):
        await provider.commit([turn(of, b"small", first=100), big])
    with pytest.raises(StoreUnavailable):
        await provider.commit([note(), big])
    assert await provider.read_history("i-1") == []
    assert (await row(provider)).attempt == 1

    writing.execute("pragma max_page_count = 1000000").fetchall()
    assert await one(provider, big) == Committed()


async def test_an_ended_instance_leaves_nothing_but_its_record(store: World) -> None:
    provider = await store.open()
    of = await acquire(provider)
    await one(
        provider,
        turn(of, b"1", activities=(running(1), queued(2)), timers=(NewTimer(3, 1),)),
    )
    await provider.commit([note(), note(external=True)])
    await one(provider, turn(of, b"2", first=2, ending=Ending("completed", output=b"1")))
    await provider.close()

    connection = apsw.Connection(str(store.path))
    for table in ("activities", "timers", "inbox"):
        assert connection.execute(f"select count(*) from {table}").get == 0
    connection.close()


async def test_a_refused_batch_that_also_claims_and_renews_is_repeated_whole(
    store: World,
) -> None:
    provider = await store.open()
    await provider.register_node("n-1", LEASE_MS)
    of = await acquire(provider)
    await start(provider, "i-2")
    store.clock.advance(LEASE_MS // 2)
    claiming = ClaimInstances("n-1", CAPS, 9)

    good, bad, claimed = await provider.commit(
        [turn(of, b"1"), turn(of, b"2", first=2, token="lost"), claiming]
    )

    assert (good, bad) == (Committed(), Refused("fenced"))
    assert [each.instance_id for each in is_a(Claimed, claimed).instances] == ["i-2"]
    assert await provider.read_history("i-1") == [b"1"]


def statements(connection: apsw.Connection) -> list[str]:
    """What the connection executes from now on, in short."""
    seen: list[str] = []

    def trace(_: Any, sql: str, __: Any) -> bool:
        seen.append(" ".join(sql.split()[:3]))
        return True

    connection.exec_trace = trace
    return seen


async def test_turns_and_completions_of_a_batch_are_one_statement(
    store: World, connections: list[apsw.Connection]
) -> None:
    provider = await store.open()
    of = [await acquire(provider, f"i-{n}") for n in range(10)]
    seen = statements(connections[0])

    first = [turn(each, b"1", b"2", activities=(running(2),), settle=True) for each in of]
    await provider.commit(first)
    middle = {"activities_gone": (2,), "activities": (running(4),)}
    await provider.commit([turn(each, b"3", b"4", first=3, **middle) for each in of])
    ending = Ending("completed", output=b"1")
    last = [turn(each, b"5", b"6", first=5, ending=ending) for each in of[1:]]
    done = CompleteActivity(of[0].key, 1, 4, "n-1", 1, b"done")
    await provider.commit([*last, done])

    assert seen == ["insert into batch"] * 3


async def test_a_turn_in_the_middle_does_not_write_the_instance(
    store: World, connections: list[apsw.Connection]
) -> None:
    provider = await store.open()
    of = await acquire(provider)
    await one(provider, turn(of, b"1", b"2", activities=(running(2),)))
    written: list[str] = []
    connections[0].set_update_hook(lambda _, __, table, ___: written.append(table))

    gone, come = (2,), (running(4),)
    await one(provider, turn(of, b"3", b"4", first=3, activities_gone=gone, activities=come))

    # Tables without row ids do not call the hook.
    assert written == []


def work_of(connection: apsw.Connection) -> Callable[[], int]:
    """Counts the steps (by the hundred) of SQLite's machine from now on."""
    count = 0

    def step() -> bool:
        nonlocal count
        count += 1
        return False

    connection.set_progress_handler(step, 100)
    return lambda: count


async def crowd(store: World, many: int) -> None:
    """Instances that wait for long, that ended, and that are due but unknown here."""
    provider = await store.open()
    starts = [
        new(f"{kind}-{n}", name=name, owner="n-9", token="t")
        for kind, name in (("parked", "order"), ("ended", "order"), ("unknown", "other"))
        for n in range(many)
    ]
    keys = [each.key for each in await provider.commit(starts) if isinstance(each, Started)]
    park: dict[str, Any] = {"set_due": True, "due_ms": store.clock.now + 10**9, "release": True}
    changes: list[dict[str, Any]] = [park, {"ending": Ending("failed")}, {"release": True}]
    await provider.commit(
        [
            CommitTurn(key, "t", "n-9", 1, 1, (), 0, **changes[place // many])
            for place, key in enumerate(keys)
        ]
    )


@pytest.mark.slow
async def test_looking_and_claiming_cost_the_same_in_a_crowd(
    store: World, connections: list[apsw.Connection]
) -> None:
    await crowd(store, 5_000)
    provider = await store.open()
    of = await acquire(provider)
    await one(provider, turn(of, activities=(queued(1), queued(2)), release=True))
    await start(provider, "held", owner="n-1", token="t")
    await provider.commit([note("held")])
    writer, reader = connections[2:4]
    read, written = work_of(reader), work_of(writer)

    survey = await provider.survey("n-1", CAPS, frozenset({"pay"}))
    taken = await claim(provider, limit=5)
    work = await claim_work(provider, limit=1)

    assert (len(survey.mail), survey.instances_due_ms) == (1, store.clock.now)
    assert (len(taken), len(work.activities), work.more) == (1, 1, True)
    assert read() < 20
    assert written() < 20


async def test_the_writer_renews_leases_and_beats_then_only_look(store: World) -> None:
    provider = await store.open()
    await provider.register_node("n-1", LEASE_MS)
    now = store.clock.advance(LEASE_MS // 2)

    await start(provider)

    (node,) = await provider.nodes()
    assert node.lease_until_ms == now + LEASE_MS
    store.clock.advance(1)
    other = apsw.Connection(str(store.path))
    other.execute("begin immediate")
    assert provider.beat("n-1") is True
    other.execute("rollback")
    other.close()
    (node,) = await provider.nodes()
    assert node.lease_until_ms == now + LEASE_MS


async def test_a_beat_comes_from_any_thread_while_the_loop_is_blocked(store: World) -> None:
    provider = await store.open()
    await provider.register_node("n-1", LEASE_MS)
    now = store.clock.advance(LEASE_MS // 2)
    beats: list[bool] = []

    thread = threading.Thread(target=lambda: beats.append(provider.beat("n-1")))
    thread.start()
    thread.join(10)

    assert beats == [True]
    assert [node.lease_until_ms for node in await provider.nodes()] == [now + LEASE_MS]


async def test_no_commit_of_another_process_is_missed_between_own_commits(store: World) -> None:
    first, second = await store.open(), await store.open()
    news = asyncio.Event()
    second.watch(news.set)
    for n in range(9):
        news.clear()
        await start(first, f"first-{n}")
        if n % 3 == 0:
            await start(second, f"second-{n}")
        elif n % 3 == 1:
            await claim(second, limit=0)
        await asyncio.wait_for(news.wait(), 5)


async def test_own_commits_are_no_news(store: World) -> None:
    provider = await store.open()
    told = 0

    def changed() -> None:
        nonlocal told
        told += 1

    provider.watch(changed)
    of = await acquire(provider)
    for n in range(1, 31):
        await one(provider, turn(of, b"event", first=n, settle=n % 2 == 0))
        await one(provider, note("nobody"))
        await one(provider, turn(of, token="lost"))
        await claim(provider, limit=0)
    await asyncio.sleep(0.1)

    assert told == 0


async def test_a_refusal_does_not_leak_into_the_next_batch(store: World) -> None:
    provider = await store.open()
    of = await acquire(provider)
    assert await one(provider, turn(of, b"1", token="lost")) == Refused("fenced")
    assert await one(provider, turn(of, b"1")) == Committed()
    assert isinstance(await one(provider, note()), Sent)
    with pytest.raises(ProviderError):
        await provider.commit([note("nobody"), turn(of, b"again")])
    assert await one(provider, turn(of, b"2", first=2)) == Committed()
    assert await one(provider, CompleteActivity(1, 1, 1, "n", 1, b"")) == Refused("stale")
    assert await one(provider, turn(of, activities=(running(1),))) == Committed()
    assert await one(provider, CompleteActivity(of.key, 1, 1, "n-1", 1, b"")) == Done()
